"""What scores a stored clip: which frames each scorer wants, and what it makes of them.

A track sees every frame of a clip as it is decoded, in the media worker. A model sees a few
pictures of each clip, many clips at once, in an actor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np

from curation.frames import MediaError, decode, small_bgr
from curation.pipelines import ConfigError, Scorers
from curation.samples import jpeg, shrink
from curation.scenes import analysis_size
from curation.texts import TEXT_SIDE_PX, text_times_s
from curation.videos import Beat


class Model(Protocol):
    """Scores many clips by their pictures, BGR uint8 [H, W, 3]: names of scores -> values."""

    def __call__(self, clips: Sequence[Sequence[np.ndarray]]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Scoring:
    """The scorers that a run needs, by key, as things to call; pickled by name."""

    tracks: dict[str, Callable[[], Any]] = field(default_factory=dict)
    models: dict[str, Callable[[], Model]] = field(default_factory=dict)
    # (start, end) in seconds -> when to take the pictures that a model sees
    times_s: dict[str, Callable[[float, float], list[float]]] = field(default_factory=dict)


def build_scoring(scorers: Scorers, keys: Sequence[str]) -> Scoring:
    """The scorers that these keys name; ConfigError for one that cannot run here."""
    scoring = Scoring()
    for key in keys:
        match key, getattr(scorers, key):
            case "motion", "flow":
                from curation.motions import MotionTrack

                scoring.tracks[key] = MotionTrack
            case "look", "pixels":
                from curation.looks import LookTrack

                scoring.tracks[key] = LookTrack
            case "aesthetic", "technical_quality":
                scoring.tracks[key] = TechnicalQuality
            case "aesthetic", "laion":
                from curation.aesthetics import check_aesthetic

                check_aesthetic(scorers)
                scoring.models[key] = partial(Aesthetic, scorers)
                scoring.times_s[key] = middle_s
            case "text", "rapidocr":
                scoring.models[key] = Text
                scoring.times_s[key] = text_times_s
            case _:
                raise ConfigError(
                    f"{key} is not stored for every clip, and it cannot be measured from "
                    "stored clips: curate the sources again with it"
                )
    return scoring


def middle_s(start_s: float, end_s: float) -> list[float]:
    return [(start_s + end_s) / 2]


class TechnicalQuality:
    """The weight-free aesthetic: looks.technical_quality of a clip's look."""

    def __init__(self) -> None:
        from curation.looks import LookTrack

        self.track = LookTrack()

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray) -> None:
        self.track.add(now_s, frame, small)

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        from curation.looks import technical_quality

        return {"aesthetic": technical_quality(self.track.between(start_s, end_s))}


class Aesthetic:
    """The LAION predictor on each clip's picture."""

    def __init__(self, scorers: Scorers) -> None:
        from curation.aesthetics import Laion

        self.laion = Laion(scorers)

    def __call__(self, clips: Sequence[Sequence[np.ndarray]]) -> list[dict[str, Any]]:
        values = iter(self.laion([picture for pictures in clips for picture in pictures]))
        means = [float(np.mean([next(values) for _ in pictures])) for pictures in clips]
        return [{"aesthetic": mean} for mean in means]


class Text:
    """The text detector on each clip's pictures."""

    def __init__(self) -> None:
        from curation.texts import TextDetector

        self.detector = TextDetector()

    def __call__(self, clips: Sequence[Sequence[np.ndarray]]) -> list[dict[str, Any]]:
        from curation.texts import text_score

        found = iter(self.detector([picture for pictures in clips for picture in pictures]))
        looks = [[next(found) for _ in pictures] for pictures in clips]
        scores = [text_score(of_clip) for of_clip in looks]
        return [{"text": score, "text_boxes": boxes} for score, boxes in scores]


# -- one clip, in the media worker


@dataclass
class ClipScores:
    """What the decode of a stored clip gave, by scorer key."""

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, list[bytes]] = field(default_factory=dict)  # JPEG


def score_clip(
    data: bytes, duration_s: float, keys: Sequence[str], scoring: Scoring, folder: Path, beat: Beat
) -> ClipScores:
    """Decode a stored clip once for all its scorers; a scorer that raises fails alone."""
    path = folder / "clip.mp4"
    path.write_bytes(data)
    out = ClipScores()
    tracks = {key: make() for key, make in scoring.tracks.items() if key in keys}
    takers = {
        key: PictureTaker(times(0.0, duration_s))
        for key, times in scoring.times_s.items()
        if key in keys
    }
    try:
        for timeline, frame in decode(path, num_threads=1):
            now_s = timeline.time_s(timeline.num_frames - 1)
            beat("score", now_s)
            feed(tracks, now_s, frame, out.errors)
            for taker in takers.values():
                taker.add(now_s, frame)
    except MediaError as error:
        return ClipScores(errors=dict.fromkeys(keys, str(error)))
    for key, track in tracks.items():
        if key not in out.errors:
            with_errors(out, key, partial(track.between, 0.0, timeline.duration_s))
    out.pictures = {key: taker.finish() for key, taker in takers.items()}
    return out


def feed(
    tracks: dict[str, Any], now_s: float, frame: av.VideoFrame, errors: dict[str, str]
) -> None:
    """Show a frame to every track that has not failed."""
    if not tracks.keys() - errors.keys():
        return
    small = small_bgr(frame, analysis_size(frame.width, frame.height))
    for key, track in tracks.items():
        if key in errors:
            continue
        try:
            if key == "motion":
                track.add(now_s, cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))
            else:
                track.add(now_s, frame, small)
        except Exception as error:  # goes to the ledger: this scorer could not see this clip
            errors[key] = described(error)


def with_errors(out: ClipScores, key: str, score: Callable[[], dict[str, Any]]) -> None:
    try:
        out.scores[key] = score()
    except Exception as error:  # as above
        out.errors[key] = described(error)


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


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
