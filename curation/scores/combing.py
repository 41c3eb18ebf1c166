"""Interlaced video: whether the two fields of a frame, its even and odd lines, are of two times.

Told from the lines alone. A frame woven of the fields of two times has teeth where something moves.
So each look weaves the fields of neighbouring frames anew, as field matching does (FFmpeg's filters
fieldmatch and idet, after TIVTC's TFM), and asks which weave has more teeth. Of progressive video
the top field of a frame fits the bottom field of the next as badly as the other way round; of
interlaced video the two pairs are half a frame and one and a half apart. The comparison is of one
picture with itself, so that texture, text, repeated frames, cuts and noise weigh on both sides.
"""

from __future__ import annotations

import itertools
from array import array
from typing import Literal, NamedTuple

import av
import cv2
import numpy as np

from curation.media.pictures import luma, stored_luma

# Between looks. Ours, for the cost (docs/filters.md). Telecined film repeats every five frames, and
# 1.5 s at 30 fps would always show the same one.
STEP_S = 1.4
NUM_FRAMES = 3  # of a look: two pairs, since a thin line may be in one field now and the other next
NUM_STRIPS, STRIP_PX = 4, 32  # of full height, evenly over the width. Ours, for the cost too
# What is even along a line has no teeth that can be seen, and moving up or down by whole lines it
# fits better in one order than in the other. Measured: of 1, 2 and 4 px 4 tells combed ones best.
ASIDE_PX = 4
LATE_S = 1e-3  # times come from rounded stamps
# Measured (docs/filters.md, Interlaced).
MIN_TEETH = 0.05  # grey levels that the worse weave has more than the frames; less: nothing moves
MIN_SHARE = 0.1  # the same, of what the frames have; less is noise
MIN_OWN = 0.1  # teeth of the frames, of those of the worse weave; less: none to be seen

FieldOrder = Literal["tff", "bff"]  # which field is the earlier one: top, bottom


class Look(NamedTuple):
    """Three frames in a row: the teeth, grey levels, of what is woven of their fields."""

    start_s: float
    end_s: float  # of the last frame
    own: float  # each frame as it is
    top_first: float  # a frame's top field and the next one's bottom field
    bottom_first: float


class CombingTrack:
    """The score `interlaced`: how much better the fields fit in one order than in the other, 0..1.

    0 progressive, 1 interlaced, the mean of a clip's looks in which something moves; 0 without any.
    A track (decode/tracks.py).
    """

    def __init__(self) -> None:
        self.looks = array("d")  # rows of Look
        self.held: list[np.ndarray] = []  # frames of the look that is begun
        self.start_s = 0.0
        self.next_s = 0.0

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray, gray: np.ndarray) -> None:
        """Take the next frame, as Track.add has it."""
        if not self.held:
            if now_s < self.next_s - LATE_S:
                return
            self.start_s, self.next_s = now_s, now_s + STEP_S
        self.held.append(strips(frame))
        if len(self.held) == NUM_FRAMES:
            self.looks.extend(Look(self.start_s, now_s, *teeth(self.held)))
            self.held = []

    def uneven(self, start_s: float, end_s: float) -> np.ndarray:
        """Of each look in [start_s, end_s) in which something moves how uneven its weaves are.

        0: not at all; 1: the top field is the earlier one; -1: the bottom field is.
        """
        table = np.array(self.looks).reshape(-1, len(Look._fields))
        # Half a microsecond: times of stored clips went through a file.
        inside = (table[:, 0] >= start_s - 5e-7) & (table[:, 1] < end_s - 5e-7)
        if len(table) and not inside.any():  # too short for one of its own: the nearest
            inside[np.argmin(np.abs(table[:, 0] - start_s))] = True
        _, _, own, top_first, bottom_first = table[inside].T
        worse = np.maximum(top_first, bottom_first)
        moved = worse - own
        moves = (moved > MIN_TEETH) & (moved > MIN_SHARE * own)
        found = (top_first - bottom_first) / np.where(moves, moved, 1)
        return (np.clip(found, -1, 1) * (own >= MIN_OWN * worse))[moves]

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        """The score; one order speaks against the other, as no camera makes both."""
        found = self.uneven(start_s, end_s)
        return {"interlaced": abs(float(found.mean())) if len(found) else 0.0}

    def field_order(self, start_s: float, end_s: float) -> FieldOrder:
        """The order in which the fields fit; what a stream says may be wrong or missing."""
        return "tff" if self.uneven(start_s, end_s).sum() >= 0 else "bff"


def strips(frame: av.VideoFrame) -> np.ndarray:
    """Strips of a frame's brightness, of full height, side by side: differences along its lines.

    uint8 [H, W], H even: 128 and half of what a place is brighter than the one ASIDE_PX beside it.
    """
    stored = stored_luma(frame)
    lines = luma(frame) if stored is None else stored
    lines = lines[: len(lines) // 2 * 2]
    width, px = lines.shape[1] - ASIDE_PX, STRIP_PX
    if lines.size == 0 or width <= 0:
        return np.full_like(lines, 128)
    step = width // NUM_STRIPS
    starts = [i * step + (step - px) // 2 for i in range(NUM_STRIPS)]
    if step < px:
        starts, px = [0], width
    pairs = [(lines[:, x + ASIDE_PX : x + ASIDE_PX + px], lines[:, x : x + px]) for x in starts]
    return np.concatenate([cv2.addWeighted(a, 0.5, b, -0.5, 128) for a, b in pairs], axis=1)


def teeth(frames: list[np.ndarray]) -> tuple[float, float, float]:
    """The teeth of frames [H, W] as they are, and of both weaves of each with the next."""
    fields = [(lines[0::2], lines[1::2]) for lines in frames]
    pairs = list(itertools.pairwise(fields))
    own = [teeth_of(top, bottom) for top, bottom in fields]
    top_first = [teeth_of(top, bottom) for (top, _), (_, bottom) in pairs]
    bottom_first = [teeth_of(top, bottom) for (_, bottom), (top, _) in pairs]
    return sum(own) / len(own), sum(top_first) / len(pairs), sum(bottom_first) / len(pairs)


def teeth_of(top: np.ndarray, bottom: np.ndarray) -> float:
    """How far the lines of a frame woven of two fields stick out, grey levels, mean over the lines.

    A line sticks out of the two around it by its distance from the median of the three. Of both
    fields: by one alone progressive video looks up to three times as uneven (measured).
    """
    if len(top) < 2:
        return 0.0
    total = 0.0
    for outer, inner in ((top, bottom[:-1]), (bottom, top[1:])):
        above, below = outer[:-1], outer[1:]
        inside = cv2.max(cv2.min(above, below), cv2.min(inner, cv2.max(above, below)))
        total += cv2.norm(inner, inside, cv2.NORM_L1)
    return total / (2 * top[1:].size)
