"""How a clip's pictures look: sharpness, exposure, colourfulness, blockiness; and one number.

Weight-free, and free of Ray: any decode may feed it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import NamedTuple

import av
import cv2
import numpy as np

from curation.media.pictures import luma

STEP_S = 0.5  # between frames that are measured. Ours: 0.04 decodes (docs/filters.md)
LATE_S = 1e-3  # times come from rounded stamps
BLOCK = 8  # px; the transform of MPEG-2, and half a macroblock of H.264
ROUNDING = 5 / 64  # grey levels squared; variance that rounding a mean of four adds
EPSILON = 1e-3  # grey levels squared


class Look(NamedTuple):
    """One frame."""

    time_s: float
    sharpness: float
    exposure: float
    colourfulness: float
    blockiness: float


class LookTrack:
    """Takes every frame of a video in order, looks at some, and answers for any stretch of it.

    Holds 80 bytes a second of video.
    """

    def __init__(self) -> None:
        self.looks = array("d")  # rows of Look
        self.next_s = 0.0

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray, gray: np.ndarray) -> None:
        """Take the next frame, as decode.tracks.Track has it."""
        if now_s < self.next_s - LATE_S:
            return
        self.next_s = now_s + STEP_S
        full = luma(frame)
        self.looks.extend(
            Look(now_s, sharpness(full), exposure(gray), colourfulness(small), blockiness(full))
        )

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        """The median look of the clip [start_s, end_s); None where it holds none."""
        table = np.array(self.looks).reshape(-1, len(Look._fields))
        inside = (table[:, 0] >= start_s - LATE_S / 2) & (table[:, 0] < end_s - LATE_S / 2)
        names = Look._fields[1:]
        if not inside.any():
            return dict.fromkeys(names)
        return dict(zip(names, np.median(table[inside, 1:], axis=0).tolist(), strict=True))


def sharpness(full: np.ndarray) -> float:
    """How strong the finest octave of detail is against the next, 0..1, of brightness [H, W].

    Natural pictures have like contrast in every octave (Field 1987): 1. What is blurred, enlarged
    or coded to death is a ramp from pixel to pixel: 0. Neither contrast nor size matters. Octaves
    are Haar's: what averaging 2x2 pixels takes away. Noise reads as detail. A definition of
    ours: the variance of a Laplacian, the usual one, grows with contrast.
    """
    height, width = (side // 4 * 4 for side in full.shape)
    if min(height, width) == 0:
        return 0.0
    fine = full[:height, :width]
    half = cv2.resize(fine, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    quarter = cv2.resize(half, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    power = [cv2.meanStdDev(picture)[1].item() ** 2 for picture in (fine, half, quarter)]
    finest, next_ = max(power[0] - power[1] + ROUNDING, 0.0), power[1] - power[2]
    if next_ < EPSILON:
        return 0.0
    return float(np.clip(2 * math.sqrt(finest / next_) - 1, 0, 1))


def exposure(gray: np.ndarray) -> float:
    """Mean brightness of the picture, 0 (black) to 1 (white)."""
    return cv2.mean(gray)[0] / 255


def colourfulness(bgr: np.ndarray) -> float:
    """M3 of Hasler and Suesstrunk (2003), BGR [H, W, 3]: grey 0, average 33 to 45, vivid 80 up."""
    blue, green, red = cv2.split(bgr.astype(np.float32))
    (mean_a, spread_a), (mean_b, spread_b) = (
        cv2.meanStdDev(d) for d in (red - green, (red + green) / 2 - blue)
    )
    spread = np.hypot(spread_a, spread_b).item()
    return float(spread + 0.3 * np.hypot(mean_a, mean_b).item())


def blockiness(full: np.ndarray) -> float:
    """How much more neighbours differ at one place of every 8 px than at most: 0 not at all.

    Of brightness [H, W] at the size that was coded; up to 0.2 is none, 0.4 to 1 is crf 45 of H.264
    (measured on five videos). The place is found, so a crop does not hide it; scaling does. A
    definition of ours, to need no original to compare with.
    """
    across = cv2.reduce(cv2.absdiff(full[:, 1:], full[:, :-1]), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    down = cv2.reduce(cv2.absdiff(full[1:], full[:-1]), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    lines = (across.ravel() / full.shape[0], down.ravel() / full.shape[1])
    return max(sum(grid(steps) for steps in lines) / 2, 0.0)


def grid(steps: np.ndarray) -> float:
    """How far the largest of BLOCK phases of mean steps, in grey levels, is over the median."""
    whole = steps[: len(steps) // BLOCK * BLOCK].reshape(-1, BLOCK)
    if len(whole) == 0:
        return 0.0
    phases = whole.mean(axis=0)
    # A tenth of a grey level: a flat picture has no grid.
    return float(phases.max() / (np.median(phases) + 0.1)) - 1


def technical_quality(look: Mapping[str, float | None]) -> float | None:
    """Of a LookTrack's answer, 0 (bad) to 1 (as good as can be); None where a part is missing.

    The geometric mean of sharpness, of blockiness on its way from 0.6 to 0, and of exposure e as
    4 e (1 - e), which is 1 for middle grey and 0 for black and white. No part stops counting short
    of its best, so that clips are told apart among the good ones too, where a recipe's percentile
    cuts. Colour is taste and does not count. Weight-free and ours: nobody was asked, and it is no
    aesthetic score.
    """
    sharp, light, block = (look[name] for name in ("sharpness", "exposure", "blockiness"))
    if sharp is None or light is None or block is None:
        return None
    parts = (sharp, max(0.0, 1 - block / 0.6), 4 * light * (1 - light))
    return float(np.prod(parts) ** (1 / len(parts)))


class TechnicalQuality:
    """The weight-free aesthetic: technical_quality of a clip's look."""

    def __init__(self) -> None:
        self.track = LookTrack()

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray, gray: np.ndarray) -> None:
        self.track.add(now_s, frame, small, gray)

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        return {"aesthetic": technical_quality(self.track.between(start_s, end_s))}
