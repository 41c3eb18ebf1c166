"""Finds overlays burnt into a video, without weights: an overlay stays while the scene changes.

Per pixel, only samples whose neighbourhood shows a new look count, so that a still camera gives no
evidence. Through those looks an overlay's edges keep their place and orientation, and those of a
scene do not. How much a repeated edge tells depends on how many edges each look has around it: on a
plain sky two looks tell much, in a meadow ten tell little. What is left is dense and has edges of
every orientation in a logo or text, and is thin or runs one way along a horizon or a tree that
stays by chance; and it is gone when one look is moved by a few pixels against another. Grey levels
are 0-255, pixels are those of the samples (short side about 360).

"Measured": on the tuning half of benchmarks/filters.py, windows of 8 to 30 s; docs/filters.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

BLANK_STD = 6.0  # grey levels; a flatter sample is a black, white or faded frame. Ours.
BAR_LEVEL = 32.0  # grey levels; a row or column never brighter is a bar (video black: 16). Ours.
BAR_MARGIN = 6  # px; reach of a bar's edge after scaling and coding. Ours.
CELL = 8  # px; side of the cells in which a new look is decided. Ours.
CHANGE = 8.0  # grey levels between two looks of a cell; noise averages out within it. Measured.
AROUND = (5, 5)  # cells, what a look is judged by; 3x3 scores a still phone video 0.3. Measured.
CHANGED_SHARE = 0.6  # of those cells: an animal that walks past a still edge is no look. Measured.
VIEW = 97  # px; window in which two looks' edges are compared. Ours.
ALIKE = 0.5  # agreement above which two looks are one view: other pictures 0.0, the same 0.8. Ours.
BUSY = (
    0.35  # edge strength there, mean: trees 0.5; a mark on a plain sky 0.25, with its halo. Ours.
)
MIN_LOOKS = 3  # fewer tell nothing: two pictures agree by chance somewhere. Measured.
MAX_LOOKS = 24  # that cover most of the picture; more cost time and tell no more. Ours.
STRETCH = 16  # samples; longer videos are also judged by halves, for marks that come and go. Ours.
FINE = 17  # px; window of DENSE and of the shading that is taken away. Ours.
EDGE = 2.0  # grey levels a pixel; coding noise stays under it. Measured.
SOFT = 2.0  # grey levels a pixel; weaker gradients count for less. Ours.
SAME_WAY = 0.6  # cosine of the doubled angle: within 27 degrees of the mean orientation. Ours.
CHANCE = (0.02, 0.30)  # that a pixel shows a given edge: floor, and share of the edges near. Ours.
NEAR = 33  # px; window in which a look's edges are counted. Ours.
PRESENT = (0.9, 0.5)  # share of looks that show a mark: always there, or half of the time. Ours.
STAYS = 3.5  # nats of evidence that a pixel's edge stays. Measured.
DENSE = 0.2  # share of staying pixels in FINE x FINE px: logos 0.3, horizons 0.1. Measured.
JOIN = (17, 9)  # px, width and height; joins the letters of a word. Ours.
MIN_PIXELS = 25  # staying pixels of a group; smaller ones are specks. Ours.
ONE_WAY = (0.4, 0.7)  # concentration of orientations: text 0.0 to 0.5, horizons 0.9. Measured.
SURE = (3.9, 4.5)  # nats a pixel, mean over a group. Measured.
SHIFT = 8  # px; how far looks are moved against each other. Ours.
NEXT_TO = 4.0  # px; a shift under this still meets the same stroke. Ours.
SHARP = (0.5, 0.8)  # agreement when moved / in place: text 0.2 to 0.5, chance 0.7 up. Measured.
TRIM = (7, 93)  # percent; chance edges beside a mark do not widen its box. Ours.
HALF = 60.0  # px of evidence at score 0.5; logos give 100 to 1000. Measured.


@dataclass(frozen=True)
class Watermark:
    """An overlay: score in [0, 1], box (x0, y0, x1, y1) as fractions of width and height.

    No score: too little changes in the video to tell an overlay from what is in the scene.
    """

    score: float | None
    box: tuple[float, float, float, float] | None

    def or_clean(self) -> Watermark:
        """The same, with score 0 where there was too little evidence."""
        return self if self.score is not None else replace(self, score=0.0)


@dataclass(frozen=True)
class Edges:
    """Orientations of one sample's edges: doubled angle [2, H, W] times strength 0..1; and mask."""

    ways: np.ndarray
    there: np.ndarray  # bool [H, W]
    chance: np.ndarray  # [H, W] that a given edge is met here


def watermark_evidence(luma: np.ndarray) -> Watermark:
    """Score the strongest overlay of one video; no score where fewer than MIN_LOOKS looks are.

    luma: uint8 [N, H, W], N samples in display order spread evenly over the video (1-2 per second,
    at most 64), short side about 360 px, full picture. Score 0 means "nothing found"; a static
    video, or one of few looks in most of the picture, has no score.
    """
    if luma.ndim != 3 or luma.dtype != np.uint8:
        raise ValueError(f"luma must be uint8 [N, H, W], got {luma.dtype} {list(luma.shape)}")
    luma = luma[[sample.std() >= BLANK_STD for sample in luma]]
    picture = inside_bars(luma) if len(luma) else np.zeros((0, 0), bool)
    known: dict[int, Edges] = {}
    whole = range(len(luma))
    halves = [whole[: len(luma) // 2], whole[len(luma) // 2 :]]
    found = Watermark(None, None)
    for stretch in [whole, *(halves if len(luma) >= 2 * STRETCH else [])]:
        best = evidence_of(luma, stretch, known, picture)
        if best.score is not None and best.score > (found.score or -1.0):
            found = best
    return found


def evidence_of(
    luma: np.ndarray, stretch: range, known: dict[int, Edges], picture: np.ndarray
) -> Watermark:
    """Score one stretch of samples; `known` keeps the edges of samples from call to call."""
    if len(stretch) < MIN_LOOKS:
        return Watermark(None, None)
    cells = new_looks(luma[stretch.start : stretch.stop])
    news = cells.mean(axis=(1, 2))
    chosen = sorted(i for i in np.argsort(-news)[:MAX_LOOKS] if news[i] > 0)
    for i in chosen:
        if stretch[i] not in known:
            known[stretch[i]] = edges_of(luma[stretch[i]])
    edges = [known[stretch[i]] for i in chosen]
    size = luma.shape[:0:-1]  # (W, H), as OpenCV wants it
    looks = [
        cv2.resize(new.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
        for new in other_views(edges, cells[chosen])
    ]
    seen = np.sum(looks, axis=0) >= MIN_LOOKS
    if not (seen & picture).any():
        return Watermark(None, None)
    best = strongest(edges, looks, seen & picture)
    enough = best.score or seen[picture].mean() >= 0.5
    return best if enough else Watermark(None, None)


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


def edges_of(sample: np.ndarray) -> Edges:
    """The edges of one sample by Scharr, scaled so that a step of d reads d.

    What is smooth over FINE pixels goes first: broad shading agrees by chance, thin strokes do not.
    An angle is doubled, so that grey on white and the same grey on black are one orientation.
    """
    plain = sample.astype(np.float32)
    fine = plain - cv2.blur(plain, (FINE, FINE))
    x, y = (cv2.Scharr(fine, cv2.CV_32F, along, 1 - along, scale=1 / 16) for along in (1, 0))
    length = cv2.magnitude(x, y)
    weight = 1 / (length * (length + SOFT) + 1e-6)
    there = length >= EDGE
    floor, share = CHANCE
    chance = floor + share * cv2.blur(there.astype(np.float32), (NEAR, NEAR))
    return Edges(np.stack([(x * x - y * y) * weight, 2 * x * y * weight]), there, chance)


def other_views(edges: Sequence[Edges], new: np.ndarray) -> np.ndarray:
    """Take from the looks [L, h, w] those whose edges are an earlier look's in other light.

    A small mark leaves most edges around it as they are; the same trees from the same place do not.
    """
    size = new.shape[:0:-1]
    thin = [edge.ways[:, ::2, ::2] for edge in edges]
    lengths = [cv2.magnitude(ways[0], ways[1]) for ways in thin]
    new = new.copy()
    window = (VIEW // 2, VIEW // 2)
    for i in range(1, len(thin)):
        for j in range(i):
            if not (both := new[i] & new[j]).any():
                continue
            agreed = cv2.blur((thin[i] * thin[j]).sum(axis=0), window)
            could = cv2.blur(lengths[i] * lengths[j], window)
            same = ((agreed > ALIKE * could) & (could > BUSY)).astype(np.float32)
            new[i] &= ~(both & (cv2.resize(same, size, interpolation=cv2.INTER_NEAREST) > 0))
    return new


def staying(edges: Sequence[Edges], looks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Nats of evidence per pixel that its edge stays [H, W], and the mean orientation [2, H, W].

    The log-likelihood of "shown in a share PRESENT of the looks" over "met by chance".
    """
    total = np.zeros_like(edges[0].ways)
    for edge, look in zip(edges, looks, strict=True):
        total += edge.ways * look
    way = total / np.maximum(cv2.magnitude(total[0], total[1]), 1e-6)
    nats = np.zeros((len(PRESENT), *way.shape[1:]), np.float32)
    for edge, look in zip(edges, looks, strict=True):
        along = edge.ways[0] * way[0] + edge.ways[1] * way[1]
        shown = edge.there & (along >= SAME_WAY * cv2.magnitude(edge.ways[0], edge.ways[1]))
        hit, miss = np.log(edge.chance), np.log1p(-edge.chance)
        for nat, share in zip(nats, PRESENT, strict=True):
            nat += look * np.where(shown, np.log(share) - hit, np.log(1 - share) - miss)
    return nats.max(axis=0), way


def inside_bars(luma: np.ndarray) -> np.ndarray:
    """Mask the picture without black bars and their edges: bool [H, W]."""
    brightest = luma.max(axis=0)
    rows = np.percentile(brightest, 95, axis=1) >= BAR_LEVEL  # 95: a logo in a bar leaves it a bar
    columns = np.percentile(brightest, 95, axis=0) >= BAR_LEVEL
    picture = np.outer(rows, columns).astype(np.uint8)
    return cv2.erode(picture, np.ones((2 * BAR_MARGIN + 1,) * 2, np.uint8)) > 0


def strongest(edges: Sequence[Edges], looks: Sequence[np.ndarray], where: np.ndarray) -> Watermark:
    """Score the strongest dense group of staying edges; 1 - 2^(-evidence / HALF) rises smoothly."""
    nats, way = staying(edges, looks)
    height, width = nats.shape
    stays = (nats >= STAYS) & where
    dense = stays & (cv2.blur(stays.astype(np.float32), (FINE, FINE)) >= DENSE)
    joined = cv2.morphologyEx(
        dense.astype(np.uint8), cv2.MORPH_CLOSE, np.ones(JOIN[::-1], np.uint8)
    )
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(joined)
    best = Watermark(0.0, None)
    for group in range(1, count):
        x0, y0, w, h, _ = (int(side) for side in boxes[group])
        inside = (slice(y0, y0 + h), slice(x0, x0 + w))
        mark = dense[inside] & (labels[inside] == group)
        one_way = float(np.hypot(*way[(slice(None), *inside)][:, mark].mean(axis=1)))
        evidence = mark.sum() * np.interp(one_way, ONE_WAY, (1, 0))
        evidence *= np.interp(nats[inside][mark].mean(), SURE, (0, 1))
        if mark.sum() < MIN_PIXELS or 1 - 2 ** (-evidence / HALF) <= (best.score or 0.0):
            continue
        moved = agreement_when_moved(edges, looks, mark, (y0, x0))
        score = float(1 - 2 ** (-evidence * np.interp(moved, SHARP, (1, 0)) / HALF))
        if score > (best.score or 0.0):
            rows, columns = np.nonzero(mark)
            (top, bottom), (left, right) = (np.percentile(v, TRIM) for v in (rows, columns))
            box = (
                float((x0 + left) / width),
                float((y0 + top) / height),
                float((x0 + right + 1) / width),
                float((y0 + bottom + 1) / height),
            )
            best = Watermark(score, box)
    return best


def agreement_when_moved(
    edges: Sequence[Edges], looks: Sequence[np.ndarray], mark: np.ndarray, at: tuple[int, int]
) -> float:
    """How well the looks agree on a group when moved against each other, relative to in place.

    The largest correlation between different looks at shifts of NEXT_TO to SHIFT px over that at
    none. Edges pinned to the screen agree in place alone; alike scenes agree about as well nearby.
    """
    (y0, x0), (h, w), (height, width) = at, mark.shape, looks[0].shape
    top, left = max(y0 - SHIFT, 0), max(x0 - SHIFT, 0)
    crop = (slice(top, min(y0 + h + SHIFT, height)), slice(left, min(x0 + w + SHIFT, width)))
    ways = np.stack([e.ways[:, *crop] * look[crop] for e, look in zip(edges, looks, strict=True)])
    masked = np.zeros(ways.shape[2:], np.float32)
    masked[y0 - top : y0 - top + h, x0 - left : x0 - left + w] = mark
    size = (ways.shape[2] + 2 * SHIFT, ways.shape[3] + 2 * SHIFT)
    all_of, group = (np.fft.rfft2(v, size, axes=(2, 3)) for v in (ways, ways * masked))
    pairs = (np.conj(group.sum(axis=0)) * all_of.sum(axis=0)).sum(axis=0)
    pairs -= (np.conj(group) * all_of).sum(axis=(0, 1))  # a look agrees with itself: not counted
    moved = np.roll(np.fft.irfft2(pairs, size), (SHIFT, SHIFT), axis=(0, 1))
    moved = moved[: 2 * SHIFT + 1, : 2 * SHIFT + 1]
    y, x = np.mgrid[-SHIFT : SHIFT + 1, -SHIFT : SHIFT + 1]
    return float(moved[np.hypot(x, y) >= NEXT_TO].max() / max(moved[SHIFT, SHIFT], 1e-6))
