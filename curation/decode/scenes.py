"""Frames -> scenes, by PySceneDetect's detectors fed from our own decode."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.common import Timecode
from scenedetect.detector import SceneDetector
from scenedetect.detectors import AdaptiveDetector, ContentDetector, ThresholdDetector

from curation.media.frames import Timeline


class QuickScore:
    """PySceneDetect's score of a frame with its default weights, to the last bit, in less time.

    It is the mean over hue, saturation and value of the mean absolute difference from the frame
    before. PySceneDetect adds up a plane of 256x144 in numpy in 0.08 ms, OpenCV the same integers
    in 0.007 ms. In front of a detector's class this takes the place of its method; a release
    without a method of this name only goes slower (a test tells).
    """

    planes: Sequence[np.ndarray] = ()  # of the frame before

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: np.ndarray) -> float:
        before, self.planes = self.planes, cv2.split(cv2.cvtColor(frame_img, cv2.COLOR_BGR2HSV))
        pairs = zip(self.planes, before, strict=bool(before))
        means = [cv2.norm(now, then, cv2.NORM_L1) / now.size for now, then in pairs]
        return sum(means) / len(self.planes)


class QuickContentDetector(QuickScore, ContentDetector): ...


class QuickAdaptiveDetector(QuickScore, AdaptiveDetector): ...


# Width of the picture that detectors see. 256x144 gave the same cuts as PySceneDetect's own
# full path on two real films, at 0.8 of its CPU (measured).
ANALYSIS_WIDTH_PX = 256


def build_detector(name: str, threshold: float | None, min_scene_s: float) -> SceneDetector:
    """A PySceneDetect detector by its pipelines.yaml name: adaptive, content or threshold.

    `threshold` None is PySceneDetect's own default (3.0, 27.0 and 12); `min_scene_s` in seconds.
    """
    scene_len = float(min_scene_s)
    given = {} if threshold is None else {"threshold": threshold}
    if name == "adaptive":
        ratio = {} if threshold is None else {"adaptive_threshold": threshold}
        return QuickAdaptiveDetector(min_scene_len=scene_len, **ratio)
    if name == "content":
        return QuickContentDetector(min_scene_len=scene_len, **given)
    if name == "threshold":
        return ThresholdDetector(min_scene_len=scene_len, **given)
    raise ValueError(
        f"{name!r} is no detector of PySceneDetect; allowed: adaptive, content, threshold"
    )


def analysis_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) in px, even, that a width x height picture is analysed at.

    >>> analysis_size(1280, 720)
    (256, 144)
    """
    scale = ANALYSIS_WIDTH_PX / max(width, height)
    return tuple(max(2, 2 * round(side * min(1.0, scale) / 2)) for side in (width, height))  # type: ignore[return-value]


# PySceneDetect tells a cut a few frames late, and later where scenes are merged. Samples of this
# long are kept as they came, until it is told. Ours: ten times `min_scene_s` of every pipeline.
CUT_DELAY_S = 2.0


class CutFinder:
    """Collects the scenes of a video while it is decoded; each begins where the last one ends.

    `add` each frame's small BGR picture in order, `finish` after the last: both return the scenes
    that were made known, as frames [first, last).
    """

    def __init__(self, detector: SceneDetector, fps: float) -> None:
        self.detector = detector
        # Only a hint for frame counts inside PySceneDetect: all its times come from our stamps.
        self.fps = Fraction(fps or 25).limit_denominator(100_000)
        self.open_from = 0  # the first frame of the scene whose end is not known

    def timecode(self, timeline: Timeline, index: int) -> FrameTimecode:
        stamp = Timecode(timeline.pts[index] - timeline.pts[0], timeline.time_base)
        return FrameTimecode(stamp, fps=self.fps)

    def add(self, timeline: Timeline, small: np.ndarray) -> list[tuple[int, int]]:
        """Take the newest frame."""
        now = self.timecode(timeline, timeline.num_frames - 1)
        return self.closed(timeline, self.detector.process_frame(now, small))

    def closed(self, timeline: Timeline, cuts: list[FrameTimecode]) -> list[tuple[int, int]]:
        scenes = []
        for cut in cuts:
            at = frame_at(timeline, cut.seconds)
            if self.open_from < at < timeline.num_frames:
                scenes.append((self.open_from, at))
                self.open_from = at
        return scenes

    def finish(self, timeline: Timeline) -> list[tuple[int, int]]:
        last = self.timecode(timeline, timeline.num_frames - 1)
        scenes = self.closed(timeline, self.detector.post_process(last))
        return [*scenes, (self.open_from, timeline.num_frames)]

    def settled_s(self, timeline: Timeline) -> float:
        """Seconds: a scene that is told later seldom ends before this time."""
        return timeline.time_s(timeline.num_frames - 1) - CUT_DELAY_S


def frame_at(timeline: Timeline, time_s: float) -> int:
    """The first frame at or after a time in seconds; `num_frames` where there is none."""
    # Half a microsecond: times went through floats, stamps are exact.
    return bisect.bisect_left(range(timeline.num_frames), time_s - 5e-7, key=timeline.time_s)
