"""Finds overlays burnt into a video, without weights: an overlay stays while the scene changes.

Per pixel, only samples whose neighbourhood shows a new look count, so that a still camera gives no
evidence. Through those looks an overlay's edges keep their place and direction, and those of a
scene do not. What is left is dense in a logo or text and thin along a horizon or a tree that stays
by chance. Grey levels are 0-255, pixels are those of the samples (short side about 360).

"Measured": on windows of 8 to 60 s of Big Buck Bunny, clean and with a text logo 12% of the width
in a corner at alpha 0.35 to 1, and on eight other real videos; 2 samples per second.
"""

from dataclasses import dataclass

import cv2
import numpy as np

BLANK_STD = 6.0  # grey levels; a flatter sample is a black, white or faded frame. Ours.
BAR_LEVEL = 32.0  # grey levels; a row or column never brighter is a bar (video black: 16). Ours.
BAR_MARGIN = 6  # px; reach of a bar's edge after scaling and coding. Ours.
CELL = 8  # px; side of the cells in which a new look is decided. Ours.
CHANGE = 8.0  # grey levels between two looks of a cell; noise averages out within it. Measured.
AROUND = (5, 5)  # cells, what a look is judged by; 3x3 scores a still phone video 0.3. Measured.
CHANGED_SHARE = 0.6  # of those cells: an animal that walks past a still edge is no look. Measured.
MIN_LOOKS = 4  # Measured: 3 finds 8% more logos, and more trees in videos under 15 s.
FINE = 17  # px; window of DENSE and of the shading that is taken away. Ours.
EDGE = 3.0  # grey levels a pixel; 2 makes a still phone video score 1. Measured.
SAME_WAY = 0.7  # cosine to the mean edge: within 45 degrees. Ours.
STAYS = 0.8  # share of looks that show the edge; 0.7 lets still trees through. Measured.
ALWAYS = 0.7  # share of all samples that show it: white on white hides some. Measured.
COHERENCE = 0.8  # |sum of gradients| / sum of |gradients| over the looks; 0.7 as STAYS. Measured.
DENSE = 0.2  # share of edge pixels in FINE x FINE px: logos 0.3, trees and horizons 0.1. Measured.
JOIN = (17, 9)  # px, width and height; joins the letters of a word. Ours.
ROUND = (0.15, 0.35)  # weak / strong edge direction: horizons 0.1 and less, logos 0.3 up. Measured.
HALO = 0.2  # of the strongest edge; taking shading away leaves weaker ones around. Ours.
HALF = 50.0  # px of evidence at score 0.5; logos give 150 to 650, clean 20 s windows 0. Measured.


@dataclass(frozen=True)
class Watermark:
    """An overlay: score in [0, 1], box (x0, y0, x1, y1) as fractions of width and height."""

    score: float
    box: tuple[float, float, float, float] | None


def watermark_evidence(luma: np.ndarray) -> Watermark:
    """Score the strongest overlay of one video; score 0 and no box mean "no evidence", not "clean".

    luma: uint8 [N, H, W], N samples in display order spread evenly over the video (1-2 per second,
    at most 64), short side about 360 px, full picture. A static video, or one with fewer than
    MIN_LOOKS looks, gives no evidence.
    """
    if luma.ndim != 3 or luma.dtype != np.uint8:
        raise ValueError(f"luma must be uint8 [N, H, W], got {luma.dtype} {list(luma.shape)}")
    luma = luma[[sample.std() >= BLANK_STD for sample in luma]]
    if len(luma) < MIN_LOOKS:
        return Watermark(0.0, None)
    stays, mean = staying_edges(luma, new_looks(luma))
    return strongest(stays & inside_bars(luma), mean)


def new_looks(luma: np.ndarray) -> np.ndarray:
    """Say where each sample shows a new look: bool [N, H / CELL, W / CELL].

    A look differs from all earlier ones, or a camera that returns would count each time. The change
    must hold both as it is and after mean and contrast are made equal, so that neither a
    fade or flicker nor a large object elsewhere makes a still corner look new.
    """
    size = (max(luma.shape[2] // CELL, 1), max(luma.shape[1] // CELL, 1))
    small = [cv2.resize(sample, size, interpolation=cv2.INTER_AREA) for sample in luma]
    plain = np.stack(small).astype(np.float32)
    contrast = np.maximum(plain.std(axis=(1, 2), keepdims=True), 1)
    equal = (plain - plain.mean(axis=(1, 2), keepdims=True)) / contrast * contrast.mean()
    views = np.stack([plain, equal], axis=1)  # [N, 2, h, w]
    new = np.ones(plain.shape, dtype=bool)
    for i in range(1, len(views)):
        changed = (np.abs(views[i] - views[:i]).min(axis=1) > CHANGE).astype(np.float32)
        share = np.stack([cv2.blur(cells, AROUND) for cells in changed])  # one per earlier sample
        new[i] = ((share >= CHANGED_SHARE) | ~new[:i]).all(axis=0)
    return new


def staying_edges(luma: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the edges that stay through the looks: bool [H, W], and the mean gradient [2, H, W]."""
    size = luma.shape[:0:-1]  # (W, H), as OpenCV wants it
    counts = [cv2.resize(n.astype(np.float32), size, interpolation=cv2.INTER_NEAREST) for n in new]
    total = np.zeros((2, *luma.shape[1:]), dtype=np.float32)
    looks, length, there, always = np.zeros((4, *luma.shape[1:]), dtype=np.float32)
    for sample, count in zip(luma, counts, strict=True):
        x, y = gradient(sample)
        total += np.stack([x * count, y * count])
        length += cv2.magnitude(x, y) * count
        looks += count
    strength = cv2.magnitude(total[0], total[1])
    way = total / np.maximum(strength, 1e-6)
    for sample, count in zip(luma, counts, strict=True):
        x, y = gradient(sample)
        along = x * way[0] + y * way[1]
        shows = along > np.maximum(SAME_WAY * cv2.magnitude(x, y), EDGE)
        there += count * shows
        always += shows
    enough = (looks >= MIN_LOOKS) & (there >= STAYS * looks) & (always >= ALWAYS * len(luma))
    return enough & (strength >= COHERENCE * length), total / np.maximum(looks, 1)


def gradient(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate one sample along x and y by Scharr, scaled so that a step of d reads d.

    What is smooth over FINE pixels goes first: broad shading agrees by chance, thin strokes do not.
    """
    plain = sample.astype(np.float32)
    fine = plain - cv2.blur(plain, (FINE, FINE))
    x, y = (cv2.Scharr(fine, cv2.CV_32F, along, 1 - along, scale=1 / 16) for along in (1, 0))
    return x, y


def inside_bars(luma: np.ndarray) -> np.ndarray:
    """Mask the picture without black bars and their edges: bool [H, W]."""
    brightest = luma.max(axis=0)
    rows = np.percentile(brightest, 95, axis=1) >= BAR_LEVEL  # 95: a logo in a bar leaves it a bar
    columns = np.percentile(brightest, 95, axis=0) >= BAR_LEVEL
    picture = np.outer(rows, columns).astype(np.uint8)
    return cv2.erode(picture, np.ones((2 * BAR_MARGIN + 1,) * 2, np.uint8)) > 0


def strongest(stays: np.ndarray, mean: np.ndarray) -> Watermark:
    """Score the strongest dense group of staying edges; 1 - 2^(-evidence / HALF) rises smoothly."""
    height, width = stays.shape
    dense = stays & (cv2.blur(stays.astype(np.float32), (FINE, FINE)) >= DENSE)
    brush = np.ones(JOIN[::-1], np.uint8)
    joined = cv2.morphologyEx(dense.astype(np.uint8), cv2.MORPH_CLOSE, brush)
    groups, labels = cv2.connectedComponents(joined)
    best = Watermark(0.0, None)
    for group in range(1, groups):
        rows, columns = np.nonzero(dense & (labels == group))
        edges = mean[:, rows, columns]  # [2, pixels]
        weak, strong = np.linalg.eigvalsh(
            edges @ edges.T
        )  # an overlay has edges in every direction
        roundness = np.interp(weak / max(strong, 1e-6), ROUND, (0, 1))
        score = float(1 - 2 ** (-len(rows) * roundness / HALF))
        if score > best.score:
            strength = np.hypot(*edges)
            loud = strength >= HALO * strength.max()
            (y0, y1), (x0, x1) = ((v[loud].min(), v[loud].max() + 1) for v in (rows, columns))
            box = (float(x0 / width), float(y0 / height), float(x1 / width), float(y1 / height))
            best = Watermark(score, box)
    return best
