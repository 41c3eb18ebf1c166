"""Clips -> captions: the source's own text, or BLIP-2 on a few frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curation.pipelines import Captions
from curation.scores.weights import Weights, missing_file
from curation.settings import ConfigError
from curation.sources import Source
from curation.sources.source import storable
from curation.sources.subtitles import Cue

SOURCE_TEXT = "source_text"


# -- the source's own text


def source_caption(source: Source, cues: Sequence[Cue], start_s: float, end_s: float) -> str | None:
    """What the source itself says of [start_s, end_s): its span's or own caption, the timed text
    that overlaps, else the title; None when it says nothing."""
    if given := source.captions_at(start_s, end_s):
        return given[0]
    spoken = [c.text for c in cues if c.start_s < end_s and c.end_s > start_s]
    return " ".join(spoken) or source.title


# -- BLIP-2


BLIP2 = Weights(
    "BLIP-2 checkpoint",
    "captions.checkpoint",
    "a hub id or a folder, such as --set captions.checkpoint=/models/blip2-opt-2.7b",
    "or --set captions.model=source_text to use the source's own text",
)


def check_checkpoint(settings: Captions) -> None:
    """Raise ConfigError, before any work, when the captioner's weights cannot be had.

    A folder must hold config, processor and weights. A hub id must be in the local cache or on a
    hub that answers; nothing is downloaded but its config and processor.
    """
    if settings.model == SOURCE_TEXT:
        return
    name = settings.checkpoint
    if not name:
        raise BLIP2.not_set("captions.model is blip2 but ")
    BLIP2.check_place(name)
    from transformers import AutoConfig, Blip2Processor

    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind == "blip-2":
            Blip2Processor.from_pretrained(name)
        missing = missing_file(name)
    except (OSError, ValueError) as error:
        raise BLIP2.not_had(name, error) from None
    if kind != "blip-2":
        raise BLIP2.unfit(name, f"is a {kind} model; captions.model blip2 needs blip-2")
    if missing:
        raise BLIP2.not_had(name, f"it has no {missing}")


class Blip2:
    """BLIP-2 through transformers: pictures in, one caption each out, in order.

    `device` auto is cuda where there is one; `dtype` auto is float16 on cuda and float32 on a CPU.
    Raises ConfigError through check_checkpoint when the weights cannot be had.
    """

    def __init__(self, settings: Captions) -> None:
        import torch
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        check_checkpoint(settings)
        assert settings.checkpoint is not None
        self.settings = settings
        has_cuda = torch.cuda.is_available()
        self.device = (
            ("cuda" if has_cuda else "cpu") if settings.device == "auto" else settings.device
        )
        on_gpu = not self.device.startswith("cpu")
        dtype = ("float16" if on_gpu else "float32") if settings.dtype == "auto" else settings.dtype
        self.dtype = getattr(torch, dtype)
        self.processor = Blip2Processor.from_pretrained(settings.checkpoint)
        self.processor.tokenizer.padding_side = "left"  # generation continues at the right end
        model: Any = Blip2ForConditionalGeneration.from_pretrained(
            settings.checkpoint, dtype=self.dtype
        )
        self.model = model.to(self.device).eval()
        self.agree_on_image_tokens()

    def agree_on_image_tokens(self) -> None:
        """Make the processor's prompt hold the tokens that the model replaces by the picture.

        Checkpoints saved before transformers 4.46 lack both numbers; without them captions would
        not depend on the picture.
        """
        config, tokenizer = self.model.config, self.processor.tokenizer
        self.processor.num_query_tokens = config.num_query_tokens
        token = tokenizer.convert_tokens_to_ids(str(self.processor.image_token))
        if config.image_token_index is None:
            config.image_token_index = token
        if config.image_token_index != token:
            raise ConfigError(
                f"{self.settings.checkpoint!r}: its model replaces token "
                f"{config.image_token_index} by the picture, its tokenizer writes {token}"
            )
        if token >= self.model.get_input_embeddings().num_embeddings:
            self.model.resize_token_embeddings(token + 1)

    def caption(self, pictures: Sequence[np.ndarray]) -> list[str]:
        """One caption per picture (uint8 RGB [H, W, 3]); batches of settings.batch_size.

        Greedy decoding, so a picture's caption does not depend on its batch; a repeated phrase of
        three words is barred (BLIP-2 loops otherwise: LAVIS #713).
        """
        import torch

        captions: list[str] = []
        size = self.settings.batch_size
        for start in range(0, len(pictures), size):
            batch = list(pictures[start : start + size])
            prompts = [self.settings.prompt or ""] * len(batch)
            inputs = self.processor(images=batch, text=prompts, return_tensors="pt", padding=True)
            inputs = inputs.to(self.device, self.dtype)
            with torch.inference_mode():
                tokens = self.model.generate(
                    **inputs,
                    max_new_tokens=self.settings.max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    no_repeat_ngram_size=3,
                )
            captions += self.decode(tokens, inputs["input_ids"])
        return captions

    def decode(self, tokens: Any, prompt: Any) -> list[str]:
        """Generated ids as text; decoder-only language models return the prompt in front."""
        length = prompt.shape[1]
        if tokens[:, :length].equal(prompt):
            tokens = tokens[:, length:]
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(storable(text).split()) for text in texts]


def caption_each(model: Blip2, pictures: Sequence[np.ndarray]) -> list[str | Exception]:
    """A caption, or the error it met, for every picture in order.

    When a batch fails its pictures are tried one by one, so that one picture cannot take others'
    captions along.
    """
    try:
        return list(model.caption(pictures))
    except (RuntimeError, ValueError) as error:
        if len(pictures) == 1:
            return [error]
    return [caption_each(model, [picture])[0] for picture in pictures]
