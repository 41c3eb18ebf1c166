"""Frames kept from the one decode: bounded in number, spread evenly."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import av
import cv2
import numpy as np

from curation.decode.jpegs import jpeg_from_picture
from curation.media.pictures import luma, upright
from curation.media.probes import Turn
from curation.sources import Span

T = TypeVar("T")

# Short side of the pictures that the overlay detector sees. Ours: a corner logo of a tenth of the
# width is gone at analysis size.
OVERLAY_SIDE_PX = 360
# Short side of caption frames. Ours: twice what BLIP-2 sees (224 x 224, its processor's config), so
# that its own resizing has pixels to choose from.
CAPTION_SIDE_PX = 448
# How far apart the samples of a scene are at first: a middle frame is off by half of it at most.
CAPTION_STEP_S = 0.25
OVERLAY_STEP_S = 0.5
MAX_SAMPLES = 64
# Samples that wait for the scene they belong to; older ones wait as JPEGs. Ours: shots are told up
# to 572 frames late, which is 24 s or 96 samples at 24 fps, so that seldom one is made a JPEG.
MAX_WAITING = 128
# Of the frames of a long take that is split (`scenes.max_s`), samples are at most this share of a
# part apart. Ours: two samples at least for any part.
PART_SHARE = 0.25
# Detectors report a cut a few frames late; this many frames are held so that the first frame
# of even the shortest scene can still be taken. Adaptive needs 2 (its window).
HELD_FRAMES = 8


@dataclass
class Spread(Generic[T]):
    """At most MAX_SAMPLES samples of a growing stretch of video, at even distances.

    When it is full every other one is dropped and the distance doubles, so that the result
    depends on the video alone. There are more only where they would be over `max_step_s` apart.
    """

    step_s: float
    items: list[tuple[float, T]] = field(default_factory=list)
    max_step_s: float = math.inf

    def wants(self, time_s: float) -> bool:
        return not self.items or time_s - self.items[-1][0] >= self.step_s - 1e-6

    def add(self, time_s: float, item: T) -> None:
        self.items.append((time_s, item))
        if len(self.items) > MAX_SAMPLES and 2 * self.step_s <= self.max_step_s:
            del self.items[1::2]
            self.step_s *= 2


def nearest(items: Sequence[tuple[float, T]], time_s: float) -> tuple[float, T]:
    """Of some frames by time, at least one, that whose time is closest."""
    return min(items, key=lambda item: abs(item[0] - time_s))


def shown_at(items: Sequence[tuple[float, T]], time_s: float) -> tuple[float, T]:
    """Of some frames by time, in order, the last that is not later; the first where all are."""
    return next((item for item in reversed(items) if item[0] <= time_s + 1e-6), items[0])


def caption_times_s(num_frames: int, start_s: float, end_s: float) -> list[float]:
    """The times of a clip's caption frames: (i + 1/2) / n of its length; n = 1 is the middle."""
    return [start_s + (i + 0.5) / num_frames * (end_s - start_s) for i in range(num_frames)]


class ClipFrames:
    """Takes, while a video is decoded, the frames of its clips that models will see.

    `times_s` tells of a clip's start and end, seconds, which times are wanted; the nearest frames
    are taken, once each, short side at most `side_px`. Where clips are known beforehand their times
    are simply waited for; where scenes are being found, samples wait until it is known which scene
    they belong to, and no clip is longer than `max_clip_s`. `as_shown`, for spans alone: for each
    time the frame that is on the screen then, so that a frame that stays for long counts for every
    time that it is there.
    """

    def __init__(
        self,
        times_s: Callable[[float, float], list[float]],
        side_px: int,
        turn: Turn,
        spans: Sequence[Span],
        *,
        as_shown: bool = False,
        max_clip_s: float = math.inf,
    ) -> None:
        self.times_s = times_s
        self.as_shown = as_shown
        self.pick = shown_at if as_shown else nearest
        self.side_px = side_px
        self.turn = turn
        self.waiting = sorted(
            {(t, s.start_s, s.end_s) for s in spans for t in times_s(s.start_s, s.end_s)}
        )
        self.finds_scenes = not spans
        self.taken: list[tuple[float, bytes]] = []  # time and JPEG
        self.max_step_s = PART_SHARE * max_clip_s
        # Samples of the scene whose end is not known, and behind them those of whichever scene.
        self.scene: Spread[Sample] = Spread(CAPTION_STEP_S, max_step_s=self.max_step_s)
        self.recent: deque[tuple[float, Sample]] = deque()
        self.sampled_s = -math.inf
        self.has_changed = False
        self.held: deque[tuple[float, av.VideoFrame]] = deque(maxlen=HELD_FRAMES)

    def add(self, time_s: float, frame: av.VideoFrame, changed: bool = False) -> None:
        """Take the next frame; `changed` says that it differs much from the one before.

        Such a frame may open a scene, so that even a short one has a sample of its own; one behind
        another such frame is in the midst of fast motion.
        """
        opens = changed and not self.has_changed
        self.has_changed = changed
        if self.finds_scenes and (opens or time_s - self.sampled_s >= CAPTION_STEP_S - 1e-6):
            # A small copy: decoded frames of 4K video would fill the memory.
            self.recent.append((time_s, shrink(frame, self.side_px)))
            self.sampled_s = time_s
            self.pack(self.recent, MAX_WAITING)
        self.held.append((time_s, frame))
        while self.waiting and time_s >= self.waiting[0][0]:
            self.take(*self.waiting.pop(0))

    def take(self, ideal_s: float, start_s: float, end_s: float) -> None:
        """Of the frames held inside a given span, take the one for a time."""
        inside = [h for h in self.held if start_s - 5e-7 <= h[0] < end_s - 5e-7]
        if inside:
            time_s, frame = self.pick(inside, ideal_s)
            if not any(time_s == known for known, _ in self.taken[-2 * MAX_SAMPLES :]):
                self.taken.append((time_s, jpeg(shrink(frame, self.side_px), self.turn)))

    def finish(self) -> None:
        """End the video; a given span that goes on behind its end makes do with the last frames."""
        for wanted in self.waiting:
            self.take(*wanted)

    def pack(self, items: MutableSequence[tuple[float, Sample]], num_raw: int) -> None:
        """Make a JPEG of the youngest of the samples before the last `num_raw`."""
        if len(items) > num_raw:
            time_s, picture = items[-num_raw - 1]
            items[-num_raw - 1] = (time_s, packed(picture, self.turn))

    def settle(self, until_s: float) -> None:
        """No scene that is closed later ends before `until_s`: what lies there is of the next."""
        while self.recent and self.recent[0][0] < until_s - 5e-7:
            time_s, picture = self.recent.popleft()
            if self.scene.wants(time_s):
                self.scene.add(time_s, picture)
                self.pack(self.scene.items, MAX_SAMPLES)

    def close_scene(self, start_s: float, end_s: float) -> None:
        """A scene is known, the first behind those that were closed before."""
        while self.recent and self.recent[0][0] < start_s - 5e-7:
            self.recent.popleft()
        self.scene.items = [i for i in self.scene.items if i[0] >= start_s - 5e-7]
        self.settle(end_s)
        inside = [i for i in self.scene.items if i[0] < end_s - 5e-7]
        later = self.scene.items[len(inside) :]
        self.scene = Spread(CAPTION_STEP_S, later, self.max_step_s)
        if not inside:  # shorter than a step
            held = [(t, f) for t, f in self.held if start_s - 5e-7 <= t < end_s - 5e-7]
            middle_s = (start_s + end_s) / 2
            inside = [
                (t, shrink(f, self.side_px))
                for t, f in sorted(held, key=lambda h: abs(h[0] - middle_s))[:1]
            ]
        chosen = dict(nearest(inside, t) for t in self.times_s(start_s, end_s) if inside)
        self.taken += [(t, packed(f, self.turn)) for t, f in chosen.items()]

    def of_clip(self, start_s: float, end_s: float) -> list[tuple[float, bytes]]:
        """The frames taken inside [start_s, end_s) for a clip, time and JPEG, in order."""
        inside = [t for t in self.taken if start_s - 1e-6 <= t[0] < end_s]
        if not inside:
            return []
        chosen = [self.pick(inside, t) for t in self.times_s(start_s, end_s)]
        return chosen if self.as_shown else sorted(set(chosen))


Sample = av.VideoFrame | bytes  # a small RGB frame, or its JPEG


def shrink(frame: av.VideoFrame, side_px: int) -> av.VideoFrame:
    """A copy in RGB whose short side is at most `side_px`, with the file's own colours."""
    scale = min(1.0, side_px / min(frame.width, frame.height))
    width, height = round(frame.width * scale), round(frame.height * scale)
    return frame.reformat(width=width, height=height, format="rgb24")


def jpeg(frame: av.VideoFrame, turn: Turn) -> bytes:
    """An RGB frame, turned upright, as JPEG bytes."""
    return jpeg_from_picture(upright(frame.to_ndarray(), turn))


def packed(sample: Sample, turn: Turn) -> bytes:
    """A sample, turned upright, as JPEG bytes."""
    return sample if isinstance(sample, bytes) else jpeg(sample, turn)


def overlay_luma(frame: av.VideoFrame, turn: Turn) -> np.ndarray:
    """The upright brightness that a logo is sought in, uint8 [H, W], short side OVERLAY_SIDE_PX."""
    stored = luma(frame)
    scale = min(1.0, OVERLAY_SIDE_PX / min(stored.shape))
    size = (round(stored.shape[1] * scale), round(stored.shape[0] * scale))
    return upright(cv2.resize(stored, size, interpolation=cv2.INTER_AREA), turn)
