"""Models that look at a few pictures of a clip: text, a watermark, looks, whether its caption fits.

All are called one way: many clips in, a row of columns or an error for each out. Curation asks them
about the clips that it is about to keep, vf-clean about stored ones, both through actors.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from curation.pipelines import Scorers
from curation.scores.aesthetics import Laion, check_aesthetic
from curation.scores.burnt_in_text import TextDetector, text_score
from curation.scores.classifiers import WatermarkClassifier, check_classifier
from curation.scores.image_text import Clip, check_clip
from curation.shards import SCORES

# What a scorer found of one clip: its columns, or `error` when it could not score it.
Row = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """What a model sees of a clip: pictures, uint8 BGR [H, W, 3], and its caption."""

    pictures: Sequence[np.ndarray]
    caption: str | None = None


class Model(Protocol):
    """Scores many clips, each of one picture or more: a row for each, in order."""

    def __call__(self, looks: Sequence[Look]) -> list[Row]: ...


def build_models(scorers: Scorers, keys: Iterable[str]) -> dict[str, Callable[[], Model]]:
    """What builds each model that these keys of `scorers` name; pickled by name."""
    known: dict[str, Callable[[], Model]] = {
        "text": Text,
        "watermark": partial(Means, "watermark", partial(WatermarkClassifier, scorers)),
        "aesthetic": partial(Means, "aesthetic", partial(Laion, scorers)),
        "caption": partial(CaptionScore, scorers),
    }
    return {key: known[key] for key in keys if key in scorers.models}


def check_models(scorers: Scorers, keys: Iterable[str]) -> None:
    """Raise ConfigError, before any work, when a key's model has weights that are not to be had."""
    checks = {"watermark": check_classifier, "aesthetic": check_aesthetic, "caption": check_caption}
    for key in keys:
        if key in scorers.models and key in checks:
            checks[key](scorers)


def check_caption(scorers: Scorers) -> None:
    check_clip("caption", scorers.caption_checkpoint, "or leave scorers.caption out")


def score_each(model: Model, looks: Sequence[Look]) -> list[Row]:
    """The model's row of every clip; a batch that raises is tried clip by clip."""
    try:
        if not all(look.pictures for look in looks):
            raise ValueError("no frame of this clip was looked at")
        rows = model(looks)
        if len(rows) != len(looks):
            raise RuntimeError(f"{len(rows)} scores for {len(looks)} clips")
        return [checked(row) for row in rows]
    except Exception as error:  # goes to the ledger of the clip that it belongs to
        if len(looks) == 1:
            return [{"error": described(error)}]
    return [score_each(model, [look])[0] for look in looks]


def checked(row: Row) -> Row:
    """A row whose scores are numbers or null; a scorer that gives NaN has failed."""
    for name in SCORES:
        value = row.get(name)
        if value is not None and not math.isfinite(value):
            return {"error": f"the scorer gave {value} for {name}"}
    return row


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def of_video(rows: Mapping[str, Row], num_pictures: Mapping[str, int]) -> dict[str, Row]:
    """The watermark of a video from its clips': the mean over all pictures, in every clip.

    Without a number for each of its clips none has one.
    """
    errors = [row for row in rows.values() if "error" in row]
    if errors:
        return {c: row if "error" in row else errors[0] for c, row in rows.items()}
    weights = [num_pictures[clip_id] for clip_id in rows]
    mean = float(np.average([row["watermark"] for row in rows.values()], weights=weights))
    return {clip_id: {"watermark": mean} for clip_id in rows}


# -- the models


def by_clip(looks: Sequence[Look], found: Iterable[Any]) -> list[list[Any]]:
    """What was found of every picture, told clip by clip."""
    rest = iter(found)
    return [[next(rest) for _ in look.pictures] for look in looks]


def pictures_of(looks: Sequence[Look]) -> list[np.ndarray]:
    return [picture for look in looks for picture in look.pictures]


class Text:
    """The text detector: the share of the picture under text, and its boxes."""

    def __init__(self) -> None:
        self.detector = TextDetector()

    def __call__(self, looks: Sequence[Look]) -> list[Row]:
        found = by_clip(looks, self.detector(pictures_of(looks)))
        scores = [text_score(boxes) for boxes in found]
        return [{"text": score, "text_boxes": boxes} for score, boxes in scores]


class Means:
    """A score that is the mean of what a model says of each of a clip's pictures."""

    def __init__(self, name: str, make: Callable[[], Callable[[Any], list[float]]]) -> None:
        self.name = name
        self.model = make()

    def __call__(self, looks: Sequence[Look]) -> list[Row]:
        found = by_clip(looks, self.model(pictures_of(looks)))
        return [{self.name: float(np.mean(values))} for values in found]


class CaptionScore:
    """How well a clip's caption fits its pictures by CLIP, -1..1; null without a caption.

    The cosine between the text's embedding and the mean of the pictures', each of length one
    (CLIPScore of Hessel et al. 2021 is 2.5 times this, cut off at 0; the mean is CLIP4Clip's).
    """

    def __init__(self, scorers: Scorers) -> None:
        assert scorers.caption_checkpoint is not None
        self.clip = Clip(scorers.caption_checkpoint)
        _ = self.clip.tokenize  # one that is not there stops the run; later it would fail each clip

    def __call__(self, looks: Sequence[Look]) -> list[Row]:
        told = [look for look in looks if look.caption and look.caption.strip()]
        texts = self.clip.texts([look.caption or "" for look in told])
        pictures = by_clip(told, self.clip.pictures(pictures_of(told)))
        means = [np.mean(vectors, axis=0) for vectors in pictures]
        cosines = {
            id(look): float(mean @ text / np.linalg.norm(mean))
            for look, mean, text in zip(told, means, texts, strict=True)
        }
        return [{"caption_score": cosines.get(id(look))} for look in looks]
