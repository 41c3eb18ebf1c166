"""Tracks: scorers that see every frame of a source or of a stored clip, where it is decoded.

A model (scores/models.py) sees a few frames of many clips instead, in an actor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from curation.media.files import MediaError
from curation.pipelines import Scorers
from curation.scores.chosen import build_models, check_models
from curation.scores.models import Model, Row, checked, described
from curation.scores.table import TABLE, load
from curation.settings import ConfigError

if TYPE_CHECKING:
    import av


class Track(Protocol):
    """Takes every frame of a video in order, and scores any stretch of it afterwards."""

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray, gray: np.ndarray) -> None:
        """Take the next frame, shown from `now_s` on.

        `small`: the same at analysis size, uint8 BGR [H, W, 3], as stored; `gray`: its brightness,
        uint8 [H, W]. Neither may be changed.
        """
        ...

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        """The scores of [start_s, end_s), by column."""
        ...


MakeTrack = Callable[[], Track]  # pickled by name


@contextmanager
def scoring() -> Iterator[None]:
    """Whatever goes wrong in a scorer fails what it scores, as MediaError scorer, and no more."""
    try:
        yield
    except Exception as error:
        raise MediaError("scorer", f"{type(error).__name__}: {error}") from error


class Tracks:
    """The tracks of one decode, by scorer key.

    strict: one that raises ends the decode as MediaError scorer; otherwise it has failed alone.
    """

    def __init__(self, makers: Mapping[str, MakeTrack], *, strict: bool) -> None:
        self.running = {key: make() for key, make in makers.items()}
        self.strict = strict
        self.errors: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.running)

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray, gray: np.ndarray) -> None:
        """Show the next frame to every track, as Track.add has it."""
        for key, track in self.running.items():
            if self.strict:
                with scoring():
                    track.add(now_s, frame, small, gray)
            elif key not in self.errors:
                try:
                    track.add(now_s, frame, small, gray)
                except (
                    Exception
                ) as error:  # goes to the ledger: this scorer could not see this clip
                    self.errors[key] = described(error)

    def row(self, key: str, start_s: float, end_s: float) -> Row:
        """What a track says of a stretch, or its `error`."""
        if key in self.errors:
            return {"error": self.errors[key]}
        try:
            return checked(self.running[key].between(start_s, end_s))
        except Exception as error:  # as above
            return {"error": described(error)}


@dataclass
class ClipScores:
    """What the decode of a stored clip gave: a row by track, pictures as JPEGs; or an error."""

    rows: dict[str, Row] = field(default_factory=dict)
    pictures: list[bytes] = field(default_factory=list)
    error: str | None = None


# -- which ones a run needs


@dataclass(frozen=True)
class Scoring:
    """The scorers that a run needs, by key, as things to call; pickled by name."""

    tracks: dict[str, MakeTrack] = field(default_factory=dict)
    models: dict[str, Callable[[], Model]] = field(default_factory=dict)


def build_tracks(scorers: Scorers) -> dict[str, MakeTrack]:
    """What makes each track that is switched on, by scorer key."""
    rows = [row for row in TABLE if row.sees == "track" and row.wants(scorers)]
    return {row.key: load(row.make) for row in rows}


def build_scoring(scorers: Scorers, keys: Sequence[str]) -> Scoring:
    """The scorers that these keys name; ConfigError for one that cannot run here."""
    tracks = {key: make for key, make in build_tracks(scorers).items() if key in keys}
    models = build_models(scorers, keys)
    for key in keys:
        if key not in tracks and key not in models:
            raise ConfigError(
                f"{key} is not stored for every clip, and it cannot be measured from "
                "stored clips: curate the sources again with it"
            )
    check_models(scorers, keys)
    return Scoring(tracks, models)
