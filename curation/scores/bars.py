"""Black bars at the edges of a picture: dark, straight, and there for as long as the clip."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from curation.media.pictures import FULL

# A line is looked at in so many places along it, each the brightest of as many pixels. Ours: 128
# pixels a line find an edge within a line at 0.2 ms a picture of 1280x720.
PLACES, PIXELS_A_PLACE = 32, 4
# Grey levels of full range. Ours: coded bars stay below 6, the black of dark themes begins at 18.
BAR_LEVEL = 12
# Where a bar ends the picture is brighter by this much within EDGE_LINES, in half of the places at
# once. Ours: coding smears an edge over 2 lines; natural darkness ends gradually or here and there.
JUMP = 8
EDGE_LINES = 3


class Lines(NamedTuple):
    """What was seen of every row, or column, of a picture, bool [N]."""

    lit: np.ndarray  # it is no bar's
    opens: np.ndarray  # the picture behind it is brighter, along its length
    closes: np.ndarray  # the picture before it is brighter


class Bars:
    """Takes frames of a video; tells what share of the picture lies under bars."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, list[np.ndarray]]] = []  # time; bits of rows and columns
        self.size: tuple[int, int] | None = None  # rows, columns

    def add(self, time_s: float, luma: np.ndarray, *, is_full_range: bool) -> None:
        """Take a frame's brightness as it is stored, uint8 [H, W]."""
        self.size = luma.shape[0], luma.shape[1]
        rows = lines_of(luma.T, is_full_range=is_full_range)
        columns = lines_of(luma, is_full_range=is_full_range)
        self.seen.append((time_s, [np.packbits(np.stack(lines)) for lines in (rows, columns)]))

    def between(self, start_s: float, end_s: float) -> float | None:
        """The black_bars score of a stretch; None where no frame of it was taken."""
        box = self.picture(start_s, end_s)
        return None if box is None else 1.0 - (box[2] - box[0]) * (box[3] - box[1])

    def picture(self, start_s: float, end_s: float) -> tuple[float, float, float, float] | None:
        """The picture between the bars of a stretch: x0, y0, x1, y1 as shares of what is stored.

        Empty where nothing ever lit up; None where no frame of it was taken.
        """
        inside = [bits for time_s, bits in self.seen if start_s - 1e-6 <= time_s < end_s - 1e-6]
        if not inside or self.size is None:
            return None
        spans = []
        for axis, count in enumerate(self.size):
            bits = np.bitwise_or.reduce(np.stack([both[axis] for both in inside]))
            spans.append(lit_span(Lines(*np.unpackbits(bits, count=3 * count).reshape(3, count))))
        (y0, y1), (x0, x1) = spans
        return x0, y0, x1, y1


def lines_of(luma: np.ndarray, *, is_full_range: bool) -> Lines:
    """What is seen of the columns of a picture, uint8 [H, W]."""
    height, width = luma.shape
    places = min(PLACES, height)
    wanted = np.linspace(0, height - 1, places * min(PIXELS_A_PLACE, height // places)).astype(int)
    seen = np.ascontiguousarray(luma[wanted]).reshape(places, -1, width).max(axis=1)
    seen = seen if is_full_range else FULL[seen]
    opens, closes = np.zeros((2, width), bool)
    if width > EDGE_LINES:
        before, behind = seen[:, :-EDGE_LINES], seen[:, EDGE_LINES:]
        opens[:-EDGE_LINES] = in_half(cv2.subtract(behind, before) >= JUMP)
        closes[EDGE_LINES:] = in_half(cv2.subtract(before, behind) >= JUMP)
    return Lines(seen.max(axis=0) > BAR_LEVEL, opens, closes)


def in_half(found: np.ndarray) -> np.ndarray:
    """Of which columns of bool [places, N] half of the places are true."""
    return 2 * found.sum(axis=0, dtype=np.uint8) >= len(found)  # a quarter of the time of int64


def lit_span(lines: Lines) -> tuple[float, float]:
    """Where the lines between the bars begin and end, 0..1; both 0 where nothing ever lit up.

    Darkness at an edge that does not end straight is no bar.
    """
    lit = np.flatnonzero(lines.lit)
    if len(lit) == 0:
        return 0.0, 0.0
    first, last = int(lit[0]), int(lit[-1])
    if not lines.opens[max(0, first - EDGE_LINES - 1) : first + 1].any():
        first = 0
    if not lines.closes[last : last + EDGE_LINES + 2].any():
        last = len(lines.lit) - 1
    return first / len(lines.lit), (last + 1) / len(lines.lit)
