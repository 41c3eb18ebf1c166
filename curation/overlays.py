"""Models that look at a few frames of kept clips, and what becomes of a clip where one fails."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from curation.captions import missing_weights
from curation.pipelines import ConfigError, Scorers
from curation.samples import bgr_from_jpeg
from curation.texts import TextDetector, text_score

# A look at one frame takes about a second at worst; a clip that takes this long hangs. Ours.
TIMEOUT_S = 120.0

Pictures = Sequence[np.ndarray]  # uint8 BGR [H, W, 3]
Scorer = Callable[[Pictures], Any]


def load_scorers(settings: Scorers) -> dict[str, Scorer]:
    """The models that a pipeline asks for, by the score that they make."""
    scorers: dict[str, Scorer] = {}
    if settings.text:
        scorers["text"] = TextDetector()
    if settings.watermark == "classifier":
        scorers["watermark"] = WatermarkClassifier(settings)
    return scorers


def score_clips(
    scorers: Mapping[str, Scorer], frames: Mapping[str, Sequence[bytes]]
) -> dict[str, dict[str, Any] | Exception]:
    """The ledger columns of every clip of a video, or the exception that its scorer met.

    `frames` are JPEGs by clip id. Text is a clip's own; a watermark is the video's, the mean over
    all of its frames, and without a number for each clip none has one.
    """
    clips = {c: [bgr_from_jpeg(jpeg) for jpeg in jpegs] for c, jpegs in frames.items()}
    found: dict[str, dict[str, Any] | Exception] = {clip_id: {} for clip_id in clips}
    for name, scorer in scorers.items():
        answers = each_in_time(scorer, clips, TIMEOUT_S)
        columns = text_columns(answers) if name == "text" else watermark_columns(answers)
        for clip_id, known in found.items():
            new = columns[clip_id]
            if not isinstance(known, Exception):
                found[clip_id] = new if isinstance(new, Exception) else known | new
    return found


def text_columns(answers: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for clip_id, looks in answers.items():
        try:
            if isinstance(looks, Exception):
                raise looks
            score, boxes = text_score(looks)
            out[clip_id] = {"text": score, "text_boxes": boxes}
        except Exception as error:
            out[clip_id] = error
    return out


def watermark_columns(answers: Mapping[str, Any]) -> dict[str, Any]:
    errors = [answer for answer in answers.values() if isinstance(answer, Exception)]
    scores = [score for answer in answers.values() if isinstance(answer, list) for score in answer]
    if not errors and not (scores and all(math.isfinite(score) for score in scores)):
        errors = [ValueError("the watermark classifier gave no number")]
    if errors:
        return {c: a if isinstance(a, Exception) else errors[0] for c, a in answers.items()}
    return {clip_id: {"watermark": float(np.mean(scores))} for clip_id in answers}


def each_in_time(scorer: Scorer, clips: Mapping[str, Pictures], timeout_s: float) -> dict[str, Any]:
    """What a scorer returns for the pictures of every clip, or the exception it met.

    A call that takes longer than `timeout_s` is given up and its thread left behind, so that a
    hanging model costs one clip and not the run.
    """
    out: dict[str, Any] = {}
    pool = ThreadPoolExecutor(1)
    for clip_id, pictures in clips.items():
        try:
            out[clip_id] = pool.submit(scorer, pictures).result(timeout_s)
        except TimeoutError:
            out[clip_id] = TimeoutError(f"no answer in {timeout_s:g} s")
            pool.shutdown(wait=False)
            pool = ThreadPoolExecutor(1)
        except Exception as error:  # any failure of a model is this clip's failure
            out[clip_id] = error
    pool.shutdown(wait=False)
    return out


# -- a watermark classifier


def check_classifier(settings: Scorers) -> None:
    """Raise ConfigError, before any work, when the watermark classifier cannot be loaded.

    A folder must hold config, image processor and weights; a hub id must be in the local cache or
    on a hub that answers. One label must say watermark.
    """
    if settings.watermark != "classifier":
        return
    name = settings.watermark_checkpoint
    other = "or --set scorers.watermark=gradients, which needs no weights"
    if not name:
        raise ConfigError(
            "scorers.watermark is classifier but scorers.watermark_checkpoint is not set; give a "
            "hub id or a folder of an image-classification model, such as "
            f"--set scorers.watermark_checkpoint=/models/watermarks, {other}"
        )
    from transformers import AutoConfig, AutoImageProcessor

    try:
        marked_labels(name, AutoConfig.from_pretrained(name).id2label)
        AutoImageProcessor.from_pretrained(name)
        if missing := missing_weights(name):
            raise OSError(f"it has no {missing}")
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the watermark classifier {name!r} cannot be loaded: {str(error).splitlines()[0]} "
            f"Download it where there is a network (hf download {name} --local-dir FOLDER) and "
            f"give --set scorers.watermark_checkpoint=FOLDER, {other}"
        ) from None


DENIED = re.compile(r"(?:^|[^a-z])(?:no|not|non|un|without)(?=[^a-z]|watermark)")


def marked_labels(name: str, labels: Mapping[int, str]) -> list[int]:
    """The classes that mean a watermark is there; ConfigError when the labels do not tell.

    >>> marked_labels("m", {0: "no_watermark", 1: "Watermark"})
    [1]
    """
    told = {i: label.lower() for i, label in labels.items() if "watermark" in label.lower()}
    marked = [i for i, label in told.items() if not DENIED.search(label)]
    if not marked or len(marked) == len(labels):
        raise ConfigError(
            f"{name!r} has the labels {', '.join(labels.values())}; a watermark classifier needs "
            "one that says watermark, and one that does not"
        )
    return marked


class WatermarkClassifier:
    """An image-classification model through transformers: pictures in, shares of belief out.

    Raises ConfigError through check_classifier when it cannot be had. Runs on cuda where there is
    one.
    """

    def __init__(self, settings: Scorers) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        check_classifier(settings)
        name = settings.watermark_checkpoint
        assert name is not None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor: Any = AutoImageProcessor.from_pretrained(name)
        model: Any = AutoModelForImageClassification.from_pretrained(name)
        self.model = model.to(self.device).eval()
        self.marked = marked_labels(name, model.config.id2label)

    def __call__(self, pictures: Pictures) -> list[float]:
        """How sure the model is of a watermark in each picture (uint8 BGR [H, W, 3]), 0..1."""
        import torch

        if not pictures:
            return []
        rgb = [np.ascontiguousarray(picture[..., ::-1]) for picture in pictures]
        inputs = self.processor(images=rgb, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            belief = self.model(**inputs).logits.float().softmax(dim=-1)
        return [float(b) for b in belief[:, self.marked].sum(dim=-1)]
