"""Pretrained weights: the table, those beside the U-Net of --init, folders of fp16 alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet3DConditionModel
from training_media import TINY, small_dataset
from transformers import CLIPTextConfig, CLIPTextModel

from model.latents import StableDiffusionLatents
from model.texts import OpenCLIPText, TransformersText
from model.weights import WEIGHTS, table
from training.train import train as vf_train

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def clip_tower(width: int = 64, layers: int = 2) -> CLIPTextModel:
    """OpenCLIP's kind of text tower with random weights, in transformers' class."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * width, hidden_act="gelu", projection_dim=width,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return model


@pytest.fixture(scope="module")
def modelscope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole download of ModelScope T2V's layout, small and random."""
    folder = tmp_path_factory.mktemp("modelscope")
    torch.manual_seed(0)
    UNet3DConditionModel(
        in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8), cross_attention_dim=64, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D",) * 2, up_block_types=("CrossAttnUpBlock3D",) * 2,
    ).save_pretrained(folder / "unet", variant="fp16")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae", variant="fp16")  # fmt: skip
    clip_tower().save_pretrained(folder / "text_encoder", variant="fp16")
    DDPMScheduler(prediction_type="epsilon").save_pretrained(folder / "scheduler")
    return folder


def test_modelscope_brings_its_autoencoder_and_text_encoder(
    modelscope: Path, tmp_path: Path
) -> None:
    """With files of 16 bits alone, as a frugal download has them."""
    data, run = small_dataset(tmp_path / "data", 3), tmp_path / "run"
    sets = [*TINY, "unet={}", "latents=stable_diffusion", "text=open_clip", "max_steps=1"]
    vf_train("tiny", [str(data)], run, f"modelscope:{modelscope}", sets)
    config = json.loads((run / "card.json").read_text())["config"]
    assert config["latents_path"] == str(modelscope / "vae")
    assert config["text_path"] == str(modelscope / "text_encoder")


def test_what_is_given_stays(
    modelscope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small_dataset(tmp_path / "data", 3)
    sets = [*TINY, "unet={}", "latents=stable_diffusion", "text=open_clip", "latents_path=/no/vae"]
    with pytest.raises(SystemExit):
        vf_train("tiny", [str(data)], tmp_path / "run", f"modelscope:{modelscope}", sets)
    assert "no autoencoder at '/no/vae'" in capsys.readouterr().err


def test_a_text_encoder_folder_gives_the_states_of_openclip(tmp_path: Path) -> None:
    theirs = clip_tower(width=16, layers=2)
    theirs.save_pretrained(tmp_path / "text_encoder")
    small = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 4, "layers": 3}
    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8}
    named = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": small}
    (tmp_path / "equal-small.json").write_text(json.dumps(named))
    open_clip.add_model_config(tmp_path / "equal-small.json")
    tower = open_clip.create_model("equal-small")
    state, source = tower.state_dict(), theirs.state_dict()

    def of(name: str) -> torch.Tensor:
        return next(value for key, value in source.items() if key.endswith(name))

    state["token_embedding.weight"] = of("token_embedding.weight")
    state["positional_embedding"] = of("position_embedding.weight")
    for n in range(2):
        mine, other = f"transformer.resblocks.{n}", f"layers.{n}"
        for part in ("weight", "bias"):
            state[f"{mine}.attn.in_proj_{part}"] = torch.cat(
                [of(f"{other}.self_attn.{x}_proj.{part}") for x in "qkv"]
            )
            state[f"{mine}.attn.out_proj.{part}"] = of(f"{other}.self_attn.out_proj.{part}")
            for mine_norm, other_norm in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                state[f"{mine}.{mine_norm}.{part}"] = of(f"{other}.{other_norm}.{part}")
            state[f"{mine}.mlp.c_fc.{part}"] = of(f"{other}.mlp.fc1.{part}")
            state[f"{mine}.mlp.c_proj.{part}"] = of(f"{other}.mlp.fc2.{part}")
    for part in ("weight", "bias"):
        state[f"ln_final.{part}"] = of(f"final_layer_norm.{part}")
    torch.save(state, tmp_path / "weights.bin")
    prompts = ["a cat runs", ""]
    states = TransformersText(tmp_path / "text_encoder").encode(prompts)
    expected = OpenCLIPText(tmp_path / "weights.bin", model="equal-small").encode(prompts)
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)


def test_another_model_is_no_text_encoder(modelscope: Path) -> None:
    with pytest.raises(ValueError, match="not a clip_text_model"):
        TransformersText(modelscope / "vae").encode([""])


def test_an_autoencoder_of_16_bits_alone_is_read(modelscope: Path) -> None:
    codec = StableDiffusionLatents(modelscope)
    assert codec.encode(torch.zeros(1, 3, 1, 16, 16)).dtype == torch.float32


def test_the_table_of_the_docs_is_that_of_the_messages() -> None:
    assert table() in (ROOT / "docs/training.md").read_text()
    assert not any("stabilityai" in each.repo for each in WEIGHTS.values())
