"""How models that see a few pictures of a clip are called: one way for all of them.

Many clips in, a row of columns or an error for each out. Curation asks them about the clips that it
is about to keep, vf-clean about stored ones, both through flow/actors.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# What a scorer found of one clip: its columns, or `error` when it could not score it.
Row = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What a model sees of a clip: pictures, uint8 BGR [H, W, 3], and its caption."""

    pictures: Sequence[np.ndarray]
    caption: str | None = None


class Model(Protocol):
    """Scores many clips, each of one picture or more: a row for each, in order."""

    def __call__(self, clips: Sequence[Seen]) -> list[Row]: ...


def score_each(model: Model, clips: Sequence[Seen]) -> list[Row]:
    """The model's row of every clip; a batch that raises is tried clip by clip."""
    try:
        if not all(clip.pictures for clip in clips):
            raise ValueError("no frame of this clip was looked at")
        rows = model(clips)
        if len(rows) != len(clips):
            raise RuntimeError(f"{len(rows)} scores for {len(clips)} clips")
        return [checked(row) for row in rows]
    except Exception as error:  # goes to the ledger of the clip that it belongs to
        if len(clips) == 1:
            return [{"error": described(error)}]
    return [score_each(model, [clip])[0] for clip in clips]


def checked(row: Row) -> Row:
    """A row whose scores are numbers or null; a scorer that gives NaN has failed."""
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            return {"error": f"the scorer gave {value} for {name}"}
    return row


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def of_video(rows: Mapping[str, Row], num_pictures: Mapping[str, int]) -> dict[str, Row]:
    """The scores of a video from its clips': the means over all pictures, in every clip.

    Without a number for each of its clips none has one.
    """
    errors = [row for row in rows.values() if "error" in row]
    if errors:
        return {c: row if "error" in row else errors[0] for c, row in rows.items()}
    weights = [num_pictures[clip_id] for clip_id in rows]
    names = next(iter(rows.values()), {}).keys()
    means = {
        name: float(np.average([row[name] for row in rows.values()], weights=weights))
        for name in names
    }
    return {clip_id: dict(means) for clip_id in rows}


# -- for the models


def by_clip(clips: Sequence[Seen], found: Iterable[Any]) -> list[list[Any]]:
    """What was found of every picture, told clip by clip."""
    rest = iter(found)
    return [[next(rest) for _ in clip.pictures] for clip in clips]


def pictures_of(clips: Sequence[Seen]) -> list[np.ndarray]:
    return [picture for clip in clips for picture in clip.pictures]


class Means:
    """A score that is the mean of what a model says of each of a clip's pictures."""

    def __init__(self, name: str, model: Callable[[Any], list[float]]) -> None:
        self.name = name
        self.model = model

    def __call__(self, clips: Sequence[Seen]) -> list[Row]:
        found = by_clip(clips, self.model(pictures_of(clips)))
        return [{self.name: float(np.mean(values))} for values in found]
