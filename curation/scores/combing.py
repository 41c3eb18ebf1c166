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

STEP_S = 0.6  # between looks. Ours, for the cost (docs/filters.md)
NUM_FRAMES = 3  # of a look: two pairs, since a thin line may be in one field now and the other next
NUM_STRIPS, STRIP_PX = 4, 32  # of full height, evenly over the width. Ours, for the cost too
LATE_S = 1e-3  # times come from rounded stamps
# The bounds are measured (docs/filters.md, Interlaced).
MIN_TEETH = 0.02  # grey levels, mean over the picture; less is nothing that moves
MIN_SHARE = 0.05  # of the teeth that the frames have anyway; less is noise
UNEVEN = 0.5  # how uneven the two weaves are: 0 progressive, 1 interlaced
UNEVEN_FLAGGED = 0.3  # the same where the stream says that it is interlaced
OWN = 0.1  # teeth of the frames as they are, of those of the worse weave


FieldOrder = Literal["tff", "bff"]  # which field is the earlier one: top, bottom


class Look(NamedTuple):
    """Three frames in a row: the teeth, grey levels, of what is woven of their fields."""

    start_s: float
    end_s: float  # of the last frame
    own: float  # each frame as it is
    top_first: float  # a frame's top field and the next one's bottom field
    bottom_first: float
    is_flagged: float  # the decoder calls the frames interlaced


class CombingTrack:
    """The score `interlaced`: of the looks in which something moves the share that is combed, 0..1.

    A track (decode/tracks.py). 0 where nothing moves: nothing is combed there.
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
            self.looks.extend(
                Look(self.start_s, now_s, *teeth(self.held), float(frame.interlaced_frame))
            )
            self.held = []

    def measured(self, start_s: float, end_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each look in [start_s, end_s) in which something moves: uneven, own, is_flagged.

        uneven: 0 progressive, 1 the top field is the earlier one, -1 the bottom field is. own: the
        teeth of the frames as they are, of those of the worse weave.
        """
        table = np.array(self.looks).reshape(-1, len(Look._fields))
        # Half a microsecond: times of stored clips went through a file.
        inside = (table[:, 0] >= start_s - 5e-7) & (table[:, 1] < end_s - 5e-7)
        _, _, own, top_first, bottom_first, is_flagged = table[inside].T
        worse = np.maximum(top_first, bottom_first)
        moves = worse - own > np.maximum(MIN_TEETH, MIN_SHARE * own)
        own, worse, is_flagged = own[moves], worse[moves], is_flagged[moves]
        uneven = (top_first - bottom_first)[moves] / (worse - own)
        return uneven, own / worse, is_flagged

    def signs(self, start_s: float, end_s: float) -> np.ndarray:
        """Of the same looks: 1 or -1 for one that is combed, as `uneven` has it, 0 for another."""
        uneven, own, is_flagged = self.measured(start_s, end_s)
        bound = np.where(is_flagged > 0, UNEVEN_FLAGGED, UNEVEN)
        return np.sign(uneven) * ((np.abs(uneven) >= bound) & (own >= OWN))

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        """The score; looks of the other order count against each other, as no camera makes both."""
        signs = self.signs(start_s, end_s)
        return {"interlaced": abs(float(signs.mean())) if len(signs) else 0.0}

    def field_order(self, start_s: float, end_s: float) -> FieldOrder:
        """The order of most looks. Streams' own words are wrong too often to go by."""
        return "tff" if self.signs(start_s, end_s).sum() >= 0 else "bff"


def strips(frame: av.VideoFrame) -> np.ndarray:
    """A frame's brightness in some strips of full height side by side, uint8 [H, W], H even."""
    stored = stored_luma(frame)
    lines = luma(frame) if stored is None else stored
    lines = lines[: len(lines) // 2 * 2]
    if lines.shape[1] <= NUM_STRIPS * STRIP_PX:
        return lines.copy()  # the decoder takes its memory back
    step = lines.shape[1] // NUM_STRIPS
    starts = [i * step + (step - STRIP_PX) // 2 for i in range(NUM_STRIPS)]
    return np.concatenate([lines[:, x : x + STRIP_PX] for x in starts], axis=1)


def teeth(frames: list[np.ndarray]) -> tuple[float, float, float]:
    """The teeth of frames [H, W] as they are, and of both weaves of each with the next."""
    fields = [(lines[0::2], lines[1::2]) for lines in frames]
    pairs = list(itertools.pairwise(fields))
    own = [teeth_of(top, bottom) for top, bottom in fields]
    top_first = [teeth_of(top, bottom) for (top, _), (_, bottom) in pairs]
    bottom_first = [teeth_of(top, bottom) for (_, bottom), (top, _) in pairs]
    return sum(own) / len(own), sum(top_first) / len(pairs), sum(bottom_first) / len(pairs)


def teeth_of(top: np.ndarray, bottom: np.ndarray) -> float:
    """How far the lines of one field stick out of those of another that they are woven with.

    In grey levels, mean over the field: a line's distance from the median of it and the two lines
    around it. Of both fields as of one: what sticks out has others that stick out beside it.
    """
    above, line, below = top[:-1], bottom[:-1], top[1:]
    if line.size == 0:
        return 0.0
    inside = cv2.max(cv2.min(above, below), cv2.min(line, cv2.max(above, below)))
    return cv2.norm(line, inside, cv2.NORM_L1) / line.size
