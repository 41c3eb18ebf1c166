"""The source's own words, and BLIP-2 with a tiny random model of the real classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.captions import (
    Blip2,
    caption_each,
    check_checkpoint,
    source_caption,
)
from curation.pipelines import Captions
from curation.settings import ConfigError
from curation.sources import Source, Span
from curation.sources.subtitles import Cue

SENTENCE = "a red cat runs over the green hill while two dogs sleep in blue grass question answer"
WORDS = SENTENCE.split(" ")

# -- the source's own words

CUES = [Cue(0.0, 2.0, "one"), Cue(2.0, 4.0, "two"), Cue(4.0, 6.0, "three"), Cue(8.0, 9.0, "one")]


def test_text_that_overlaps_a_clip_is_its_caption() -> None:
    source = Source(url="x", title="T")
    assert source_caption(source, CUES, 1.0, 3.5) == "one two"
    assert source_caption(source, CUES, 2.0, 4.0) == "two"  # touching is no overlap
    assert source_caption(source, CUES, 0.0, 9.0) == "one two three one"  # what is said again stays
    assert source_caption(source, CUES, 7.0, 8.0) == "T"
    assert source_caption(Source(url="x"), CUES, 7.0, 8.0) is None


def test_the_nearest_word_of_the_source_is_preferred() -> None:
    spans = (Span(0, 2, "span"), Span(2, 4))
    source = Source(url="x", title="T", caption="whole", spans=spans)
    assert source_caption(source, CUES, 0.0, 2.0) == "span"
    assert source_caption(source, CUES, 2.0, 4.0) == "whole"
    assert source_caption(Source(url="x", title="T", spans=spans), CUES, 2.0, 4.0) == "two"


def test_overlapping_spans_keep_their_own_captions() -> None:
    source = Source(url="x", spans=(Span(0, 5, "early"), Span(4, 9, "late")))
    assert source_caption(source, [], 0.0, 5.0) == "early"
    assert source_caption(source, [], 4.0, 9.0) == "late"


# -- BLIP-2


def tiny_text_config(kind: str, num_words: int) -> Any:
    from transformers import OPTConfig, T5Config

    if kind == "t5":
        return T5Config(
            vocab_size=num_words, d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, initializer_factor=1.0,
        )  # fmt: skip
    return OPTConfig(
        vocab_size=num_words, hidden_size=32, ffn_dim=37, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=1, init_std=0.5,
    )  # fmt: skip


def build_checkpoint(folder: Path, kind: str) -> Path:
    """A random BLIP-2 of the real classes, saved as hub checkpoints are."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        PreTrainedTokenizerFast,
    )

    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "</s> $A" if kind == "opt" else "$A </s>"
    words.post_processor = processors.TemplateProcessing(template, special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", bos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip
    image_processor = BlipImageProcessor(size={"height": 28, "width": 28})
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=4)
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
            image_size=28, patch_size=7, initializer_range=0.5,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
            encoder_hidden_size=32, initializer_range=0.5, vocab_size=50,
        ).to_dict(),
        text_config=tiny_text_config(kind, len(tokenizer)).to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slowed by threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["opt", "t5"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("blip2") / request.param, request.param)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Blip2:
    return load(checkpoint)


def load(checkpoint: Path, **settings: Any) -> Blip2:
    known = {"batch_size": 4, "max_new_tokens": 8, "device": "cpu"} | settings
    return Blip2(Captions(model="blip2", checkpoint=str(checkpoint), **known))


def pictures(count: int = 7) -> list[np.ndarray]:
    """Random pictures of mixed sizes and brightness."""
    rng = np.random.default_rng(5)
    sizes = [(20 + 13 * i % 40, 31 + 7 * i % 50, 3) for i in range(count)]
    noise = [rng.integers(0, 256, size) * rng.random(3) for size in sizes]
    return [picture.astype(np.uint8) for picture in noise]


def test_a_batch_says_what_each_picture_alone_says(model: Blip2) -> None:
    alone = [model.caption([picture])[0] for picture in pictures()]
    assert model.caption(pictures()) == alone
    assert len(set(alone)) > 1  # the picture matters
    assert model.caption(pictures()[::-1]) == alone[::-1]


def test_captions_are_words_without_prompt_or_marks(model: Blip2) -> None:
    for text in model.caption(pictures()):
        assert set(text.split()) <= set(WORDS)
        assert len(text.split()) <= 8


def test_no_pictures_have_no_captions(model: Blip2) -> None:
    assert model.caption([]) == []
    assert caption_each(model, []) == []


def test_a_prompt_is_answered_and_not_repeated(checkpoint: Path, model: Blip2) -> None:
    asked = load(checkpoint, prompt="question two dogs answer")
    answers = asked.caption(pictures())
    assert answers == [asked.caption([picture])[0] for picture in pictures()]
    assert answers != model.caption(pictures())
    assert not any(text.startswith("question two dogs") for text in answers)


def test_checkpoints_without_image_token_numbers_caption_the_same(
    checkpoint: Path, model: Blip2, tmp_path: Path
) -> None:
    """Copies saved by older transformers lack them; the picture must still be seen."""
    old = shutil.copytree(checkpoint, tmp_path / "old")
    for name, key in (("config.json", "image_token_index"), ("processor_config.json", "num_query")):
        path = old / name
        kept = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith(key)}
        path.write_text(json.dumps(kept))
    assert load(old).caption(pictures()) == model.caption(pictures())


def test_lower_precision_is_used_when_asked_for(checkpoint: Path) -> None:
    model = load(checkpoint, dtype="bfloat16")
    assert str(next(model.model.vision_model.parameters()).dtype) == "torch.bfloat16"
    assert len(model.caption(pictures(2))) == 2


def test_one_bad_picture_costs_no_other_its_caption(model: Blip2) -> None:
    good = pictures(3)
    bad = np.zeros((2, 2, 2, 2), np.uint8)
    first, error, last = caption_each(model, [good[0], bad, good[2]])
    assert isinstance(error, Exception)
    assert [first, last] == model.caption([good[0], good[2]])


# -- before any work


def refusal(checkpoint: object) -> str:
    name = None if checkpoint is None else str(checkpoint)
    with pytest.raises(ConfigError) as caught:
        check_checkpoint(Captions(model="blip2", checkpoint=name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_checkpoint_is_accepted(checkpoint: Path) -> None:
    check_checkpoint(Captions(model="blip2", checkpoint=str(checkpoint)))
    check_checkpoint(Captions(model="source_text"))


def test_no_checkpoint_says_how_to_give_one() -> None:
    assert "--set captions.checkpoint=" in refusal(None)
    assert "--set captions.model=source_text" in refusal(None)


def test_a_hub_id_that_cannot_be_had_says_how_to_get_it() -> None:
    message = refusal("Salesforce/blip2-opt-2.7b")
    assert "hf download Salesforce/blip2-opt-2.7b" in message
    assert "--set captions.checkpoint=FOLDER" in message


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "cannot be loaded" in refusal(tmp_path / "none")
    assert "a hub id or a folder, such as" in refusal(tmp_path / "none")
    assert "hf download OWNER/MODEL --local-dir" in refusal(tmp_path / "none")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_checkpoint_with_a_file_missing_is_refused(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    part = shutil.copytree(checkpoint, tmp_path / "part")
    (part / name).unlink()
    assert "--set captions.checkpoint=FOLDER" in refusal(part)


def test_a_checkpoint_with_a_shard_missing_names_it(checkpoint: Path, tmp_path: Path) -> None:
    part = shutil.copytree(checkpoint, tmp_path / "part")
    (part / "model.safetensors").rename(part / "one.safetensors")
    index = part / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    check_checkpoint(Captions(model="blip2", checkpoint=str(part)))
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert "two.safetensors" in refusal(part)


def test_another_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "is a bert model; captions.model blip2 needs blip-2" in refusal(tmp_path)
