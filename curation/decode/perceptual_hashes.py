"""What a clip looks like in 128 bytes that re-encoding, small crops, bars and logos change little.

A clip is halved three times over; each of its eight parts is one mean picture, which no other frame
rate or speed changes much. Two hashes of 64 bits are taken of each: of the picture, and of what
distinguishes it from the mean of the whole clip. Shots that return to a view are alike in the
first and differ in the second. A hash is the signs of the lowest frequencies of a discrete cosine
transform (as in Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010,
whose bound is the median).
"""

from __future__ import annotations

import cv2
import numpy as np

from curation.media.pictures import shrink, upright
from curation.media.probes import Turn

NUM_PARTS = 8
SIDE_PX = 32  # of a thumbnail, whatever the picture's shape: stretched copies are copies
LOW = 8  # frequencies each way
NUM_BYTES = 2 * NUM_PARTS * 8  # of a clip
# The median size of 63 coefficients (grey levels, orthonormal transform of 32x32) below which signs
# are those of noise: of a picture, and of what distinguishes it. Ours; the second one measured: a
# figure that breathes before a still camera reads 0.3 to 0.8, in every copy, moving shots over 3.
MIN_PICTURE, MIN_CHANGE = 2.0, 0.25
# How far apart thumbnails are. Ours: every second frame of 24 to 30 a second, three for each part
# of the shortest clip of `web`.
STEP_S = 1 / 16
# Of one video, 64 MB; beyond it every other one goes. Ours: that is from 90 minutes (24 fps) on.
MAX_THUMBNAILS = 1 << 16

Box = tuple[float, float, float, float]  # x0 y0 x1 y1, fractions of the picture as stored


class PerceptualHashes:
    """Takes thumbnails while a video is decoded; tells the hash of any stretch."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.times_s: list[float] = []
        self.thumbnails: list[np.ndarray] = []
        self.step_s = STEP_S

    def add(self, time_s: float, gray: np.ndarray) -> None:
        """Take the next frame's brightness, uint8 [H, W], as stored."""
        if self.times_s and time_s - self.times_s[-1] < self.step_s - 1e-6:
            return
        self.thumbnails.append(shrink(gray, (SIDE_PX, SIDE_PX)))
        self.times_s.append(time_s)
        if len(self.thumbnails) > MAX_THUMBNAILS:
            del self.times_s[1::2], self.thumbnails[1::2]
            self.step_s *= 2

    def of_clip(self, start_s: float, end_s: float, box: Box) -> bytes:
        """The hash of [start_s, end_s), whose picture without its bars is `box`.

        64-bit numbers, little-endian: the eight parts' pictures in order, then what distinguishes
        them; 0 where there is nothing to tell.
        """
        edges_s = np.linspace(start_s, end_s, NUM_PARTS + 1)
        edges = np.searchsorted(self.times_s, edges_s - 1e-6)
        first = np.minimum(edges[:-1], len(self.times_s) - 1)
        parts = [
            np.stack(self.thumbnails[a : max(a + 1, b)]).mean(axis=0, dtype=np.float32)
            for a, b in zip(first, edges[1:], strict=True)
        ]
        low = np.stack([frequencies(upright(inside(part, box), self.turn)) for part in parts])
        pictures = signs(low, MIN_PICTURE)
        changes = signs(low - low.mean(axis=0), MIN_CHANGE)
        changes[pictures == 0] = 0  # noise of a flat picture
        return np.concatenate([pictures, changes]).tobytes()


def inside(picture: np.ndarray, box: Box) -> np.ndarray:
    """The part of a thumbnail [SIDE, SIDE] in `box`, as large as the whole."""
    x0, y0, x1, y1 = box
    # Positions are of pixels' centres.
    fit = [
        [x1 - x0, 0, x0 * SIDE_PX + (x1 - x0 - 1) / 2],
        [0, y1 - y0, y0 * SIDE_PX + (y1 - y0 - 1) / 2],
    ]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        picture, np.array(fit), (SIDE_PX, SIDE_PX), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


def frequencies(picture: np.ndarray) -> np.ndarray:
    """The lowest frequencies of a picture float32 [SIDE, SIDE], its mean left out: [63]."""
    return cv2.dct(picture)[:LOW, :LOW].ravel()[1:]


def signs(low: np.ndarray, min_size: float) -> np.ndarray:
    """The hashes of some pictures' frequencies [N, 63]: little-endian uint64 [N].

    0 of those whose median size is below `min_size`; the highest bit of all others is set.
    """
    told = np.median(np.abs(low), axis=1) >= min_size
    bits = np.concatenate([low > 0, np.ones((len(low), 1), bool)], axis=1) & told[:, None]
    return np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0]
