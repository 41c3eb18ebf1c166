"""What scores a stored clip while it is decoded, and the pictures of it that models will see.

A track sees every frame of a clip, in the media worker; a model (scorers.py) sees a few pictures of
many clips, in an actor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2

from curation.decode.samples import jpeg, shrink
from curation.decode.scenes import analysis_size
from curation.frames import MediaError, decode, small_bgr
from curation.pipelines import Scorers
from curation.records import Beat
from curation.scores.burnt_in_text import TEXT_SIDE_PX, text_times_s
from curation.scores.chosen import build_models, check_models
from curation.scores.models import Model, Row, checked, described
from curation.scores.table import TABLE, load
from curation.settings import ConfigError

Tracks = dict[str, Callable[[], Any]]  # by scorer key, what makes a track; pickled by name


@dataclass(frozen=True)
class Scoring:
    """The scorers that a run needs, by key, as things to call; pickled by name."""

    tracks: Tracks = field(default_factory=dict)
    models: dict[str, Callable[[], Model]] = field(default_factory=dict)


def build_scoring(scorers: Scorers, keys: Sequence[str]) -> Scoring:
    """The scorers that these keys name; ConfigError for one that cannot run here."""
    rows = [row for row in TABLE if row.sees == "track" and row.wants(scorers)]
    tracks = {row.key: load(row.make) for row in rows if row.key in keys}
    models = build_models(scorers, keys)
    for key in keys:
        if key not in tracks and key not in models:
            raise ConfigError(
                f"{key} is not stored for every clip, and it cannot be measured from "
                "stored clips: curate the sources again with it"
            )
    check_models(scorers, keys)
    return Scoring(tracks, models)


# -- one clip, in the media worker


@dataclass
class ClipScores:
    """What the decode of a stored clip gave: a row by track, pictures as JPEGs; or an error."""

    rows: dict[str, Row] = field(default_factory=dict)
    pictures: list[bytes] = field(default_factory=list)
    error: str | None = None


def score_clip(
    data: bytes, duration_s: float, tracks: Tracks, wants_pictures: bool, folder: Path, beat: Beat
) -> ClipScores:
    """Decode a stored clip once for all its scorers; a track that raises fails alone."""
    path = folder / "clip.mp4"
    path.write_bytes(data)
    running = {key: make() for key, make in tracks.items()}
    rows: dict[str, Row] = {}
    taker = PictureTaker(text_times_s(0.0, duration_s) if wants_pictures else [])
    try:
        for timeline, frame in decode(path, num_threads=1):
            now_s = timeline.time_s(timeline.num_frames - 1)
            beat("score", now_s)
            feed({k: track for k, track in running.items() if k not in rows}, now_s, frame, rows)
            taker.add(now_s, frame)
    except MediaError as error:
        return ClipScores(error=str(error))
    for key in running.keys() - rows.keys():
        try:
            rows[key] = checked(running[key].between(0.0, timeline.duration_s))
        except Exception as error:  # goes to the ledger: this scorer could not see this clip
            rows[key] = {"error": described(error)}
    return ClipScores(rows, taker.finish())


def feed(
    tracks: Mapping[str, Any], now_s: float, frame: av.VideoFrame, rows: dict[str, Row]
) -> None:
    """Show a frame to every track; one that raises has the error as its row."""
    if not tracks:
        return
    small = small_bgr(frame, analysis_size(frame.width, frame.height))
    for key, track in tracks.items():
        try:
            if key == "motion":
                track.add(now_s, cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))
            else:
                track.add(now_s, frame, small)
        except Exception as error:  # as above
            rows[key] = {"error": described(error)}


class PictureTaker:
    """Takes the frames shown at given times of one clip as JPEGs, as large as text wants them."""

    def __init__(self, times_s: Sequence[float]) -> None:
        self.waiting = sorted(times_s)
        self.last: av.VideoFrame | None = None
        self.taken: list[bytes] = []

    def add(self, now_s: float, frame: av.VideoFrame) -> None:
        while self.waiting and now_s > self.waiting[0] + 1e-6:
            self.take(self.last or frame)
        self.last = frame

    def take(self, frame: av.VideoFrame) -> None:
        self.waiting.pop(0)
        self.taken.append(jpeg(shrink(frame, TEXT_SIDE_PX), 0))

    def finish(self) -> list[bytes]:
        """The pictures; times behind the last frame show the last frame."""
        while self.waiting and self.last is not None:
            self.take(self.last)
        return self.taken
