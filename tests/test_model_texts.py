"""Text towers: OpenCLIP's loading code on random weights, the tiny tower, the real tokenizer."""

import json

import open_clip
import pytest
import torch

from model.texts import OpenCLIPText, TinyText, tokenize

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
}


@pytest.fixture(scope="module")
def random_clip(tmp_path_factory):
    """A small open_clip model with random weights, saved as a checkpoint; its name and file."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "random-small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / "random-small.json")
    torch.manual_seed(0)
    model = open_clip.create_model("random-small").eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    torch.save(model.state_dict(), folder / "weights.bin")
    return model, folder / "weights.bin"


def test_openclip_states_are_those_before_the_last_layer_with_the_final_norm(random_clip):
    model, weights = random_clip
    states = OpenCLIPText(weights, model="random-small").encode(["a cat runs", ""])
    assert states.shape == (2, 77, 16)
    with torch.no_grad():
        x = model.token_embedding(tokenize(["a cat runs", ""])) + model.positional_embedding
        for layer in list(model.transformer.resblocks)[:2]:
            x = layer(x, attn_mask=model.attn_mask)
        expected = model.ln_final(x)
        after_all = model.ln_final(model.transformer.resblocks[2](x, attn_mask=model.attn_mask))
    torch.testing.assert_close(states, expected)
    assert not torch.allclose(states, after_all, atol=0.01)


def test_openclip_loads_on_first_use_without_its_image_half(random_clip):
    _, weights = random_clip
    text = OpenCLIPText(weights, model="random-small")
    assert (text._tower, text.width) == (None, 16)
    text.encode([""])
    assert text.tower.visual is None
    assert not any(p.requires_grad for p in text.tower.parameters())


def test_vit_h_is_as_wide_as_stable_diffusion_2_expects():
    assert OpenCLIPText().width == 1024


def test_missing_weights_say_what_to_fetch_and_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hf download laion/CLIP-ViT-H-14.*TinyText"):
        OpenCLIPText(tmp_path / "open_clip_model.safetensors").encode(["a"])
    with pytest.raises(ValueError, match="open_clip has no model 'ViT-Q'"):
        _ = OpenCLIPText(model="ViT-Q").width


def test_tiny_text_tells_prompts_apart_and_is_the_same_every_time():
    prompts = ["a ball moves left", "a ball moves right", ""]
    states = TinyText().encode(prompts)
    assert states.shape == (3, 77, 64)
    torch.manual_seed(123)  # the tower has a seed of its own
    before = torch.random.get_rng_state()
    again = TinyText()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(again.encode(prompts), states)
    assert not torch.equal(TinyText(seed=1).encode(prompts), states)
    gap = (states[0] - states[1]).norm(dim=-1) / states[0].norm(dim=-1)
    assert gap[:3].max() == 0  # causal: the same up to the word that differs
    assert gap[4] > 0.3
    assert (gap[4:] > 0.01).all()


def test_a_prompt_in_a_batch_is_the_prompt_alone():
    text = TinyText()
    torch.testing.assert_close(text.encode(["a", "b c"])[1:], text.encode(["b c"]))


def test_the_tokenizer_is_openclips():
    ids = tokenize(["A photo of a cat", "", "word " * 100])
    assert ids.shape == (3, 77)
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ids[1, :3].tolist() == [49406, 49407, 0]
    assert ids[2, 76] == 49407
    with pytest.raises(ValueError, match="give a list of prompts"):
        tokenize("a cat")
