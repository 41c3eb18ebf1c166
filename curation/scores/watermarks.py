"""Finds overlays burnt into a video: what stays while the scene changes, told by a small network.

The network sees samples of a video together. Its first half describes the edges of each; the
quantiles of every edge over time go to its second half, which says for each cell of the picture
whether a mark lies there. Its 135 000 weights come with the package (watermark_*.onnx); they were
trained on logos, words and tiled marks blended over moving pictures, by
benchmarks/watermark_training.py. What it finds and misses is in docs/filters.md. "Measured": on
videos of pictures kept from training and of footage that was not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CELL_PX = 4  # the network answers for cells of this side. Of the network
MID, SPREAD = 128, 64  # grey levels that are 0 and 1 to it. Of the network
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # what stays has one value at all. Of the network
FULL = 127  # of its edges, int8, -1..1. Of the network
MAX_LOOKS = 36  # of a video: about 0.4 CPU s, however long it is (measured)
MAX_AT_ONCE = 16  # looks; the network was trained on 4 to 20
BLANK_STD = 6.0  # grey levels; a flatter sample is a black, white or faded frame: no edges
THUMBNAIL = (32, 18)  # px, in which looks are compared: a mark is too small to count there
CONTRAST = 40.0  # grey levels; standard deviation of a view made equal; as in training
CHANGE = 5.0  # grey levels between two looks, mean over a thumbnail; noise stays under 1
BAR_LEVEL = 32.0  # grey levels; a row or column never brighter is a bar (video black: 16)
BAR_MARGIN = 4  # px; reach of a bar's edge after scaling and an 8 px transform
MIN_SIDE_PX = 64  # less than this within bars is 16 cells: no place for a mark beside a scene
PARTS = 3  # stretches judged alone too, for marks that come, go or hop. Measured
PART_LOOKS = 4  # fewer than the network was trained on
SURE, SURE_OF_PART = 0.4, 0.9  # belief of a cell that counts; a part tells less. Measured
HALF = 16.0  # cells' worth of belief at score 0.5; small marks have 25. Measured
NEAR = 40  # cells; side of what is near a mark, as of the examples of the training
JOIN = (5, 3)  # cells, width and height; joins the letters of a word, 20 px apart at most

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Watermark:
    """An overlay: score in [0, 1], box (x0, y0, x1, y1) as fractions of width and height.

    No score: too little changes in the video to tell an overlay from what is in the scene.
    """

    score: float | None
    box: Box | None

    def or_clean(self) -> Watermark:
        """The same, with score 0 where there was too little evidence."""
        return self if self.score is not None else replace(self, score=0.0)


def watermark_evidence(luma: np.ndarray) -> Watermark:
    """Score the strongest overlay of one video; no score where nothing changes.

    luma: uint8 [N, H, W], N samples in display order spread evenly over the video, short side about
    360 px, full picture. Score 0 means "nothing found".
    """
    if luma.ndim != 3 or luma.dtype != np.uint8:
        raise ValueError(f"luma must be uint8 [N, H, W], got {luma.dtype} {list(luma.shape)}")
    looks = luma[different(luma)]
    if len(looks) < 2:
        return Watermark(None, None)
    looks = looks[evenly(len(looks), MAX_LOOKS)]
    rows, columns = inside_bars(looks)
    looks = looks[:, rows, columns]
    found = strongest_of(looks, edges_of(looks))
    if found.box is None:
        return found
    return replace(found, box=whole(found.box, (rows, columns), luma.shape[1:]))


def strongest_of(looks: np.ndarray, edges: np.ndarray) -> Watermark:
    """The strongest overlay of all looks together, or of a part of them alone."""
    found = [judged_again(looks, edges, SURE)]
    if len(looks) >= PARTS * PART_LOOKS:
        parts = zip(np.array_split(looks, PARTS), np.array_split(edges, PARTS), strict=True)
        found += [judged_again(*part, SURE_OF_PART) for part in parts]
    return max(found, key=lambda watermark: watermark.score or 0.0)


def judged_again(looks: np.ndarray, edges: np.ndarray, sure: float) -> Watermark:
    """The strongest overlay of the picture, scored by what is near it alone.

    Where a camera that stands still, or comes back, shows one place again and again while people
    move elsewhere, all that is there stays. Near a true mark the looks differ too.
    """
    found = strongest(beliefs(edges), sure)
    if found.box is None:
        return found
    cells = around(found.box, edges.shape[2:])
    rows, columns = (slice(c.start * CELL_PX, c.stop * CELL_PX) for c in cells)
    kept = different(looks[:, rows, columns])
    if len(kept) < 2:
        return Watermark(0.0, None)
    again = strongest(beliefs(edges[kept][:, :, *cells]), sure)
    if again.box is None:
        return again
    return replace(again, box=whole(again.box, cells, edges.shape[2:]))


def around(box: Box, sides: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of a box, given as fractions of the sides, and of what is near it."""
    spans = []
    for side, low, high in zip(sides, box[1::-1], box[:1:-1], strict=True):
        length = min(max(NEAR, round(2 * (high - low) * side)), side)
        start = min(max(round((low + high) / 2 * side - length / 2), 0), side - length)
        spans.append(slice(start, start + length))
    return spans[0], spans[1]


def whole(box: Box, part: tuple[slice, slice], sides: tuple[int, ...]) -> Box:
    """A box of some rows and columns as fractions of all of them, `sides` high and wide."""
    (y0, x0), (height, width) = (span.start for span in part), (s.stop - s.start for s in part)
    x0, x1 = ((x0 + share * width) / sides[1] for share in box[::2])
    y0, y1 = ((y0 + share * height) / sides[0] for share in box[1::2])
    return (x0, y0, x1, y1)


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` places, spread evenly."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def different(luma: np.ndarray) -> list[int]:
    """The samples that show something else than all before them; black and white ones left out.

    A still view counts once however long it is shown: else all that is in it would seem to stay.
    The change must hold as it is and with mean and contrast made equal: a fade shows nothing new.
    """
    seen = np.empty((0, 2, *THUMBNAIL[::-1]), np.float32)
    kept = []
    for i, sample in enumerate(luma):
        if sample.std() < BLANK_STD:
            continue
        small = cv2.resize(sample, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        equal = (small - small.mean()) / max(float(small.std()), 1.0) * CONTRAST
        views = np.stack([small, equal])
        if (np.abs(seen - views).mean(axis=(2, 3)) >= CHANGE).all():
            seen = np.concatenate([seen, views[None]])
            kept.append(i)
    return kept


def inside_bars(looks: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of the picture without black bars, whose edges stay in every video."""
    brightest = looks.max(axis=0)
    spans = []
    for axis in (1, 0):
        # 95: a logo in a bar leaves it a bar.
        bright = np.flatnonzero(np.percentile(brightest, 95, axis=axis) >= BAR_LEVEL)
        first, last = (int(bright[0]), int(bright[-1]) + 1) if len(bright) else (0, 0)
        margins = BAR_MARGIN * (first > 0), BAR_MARGIN * (last < brightest.shape[1 - axis])
        spans.append(slice(first + margins[0], last - margins[1]))
    if min(span.stop - span.start for span in spans) < MIN_SIDE_PX:
        return slice(0, brightest.shape[0]), slice(0, brightest.shape[1])
    return spans[0], spans[1]


def edges_of(looks: np.ndarray) -> np.ndarray:
    """The edges of every look, int8 [N, edges, H / CELL, W / CELL], -FULL..FULL."""
    height, width = (side // CELL_PX * CELL_PX for side in looks.shape[1:])
    # Each 2x2 px become four channels: PyTorch's pixel unshuffle.
    pairs = looks[:, :height, :width].reshape(-1, height // 2, 2, width // 2, 2)
    samples = pairs.transpose(0, 2, 4, 1, 3).reshape(len(looks), 4, height // 2, width // 2)
    made = [
        network("edges").run(None, {"samples": (one[None].astype(np.float32) - MID) / SPREAD})[0]
        for one in samples
    ]
    return (np.concatenate(made) * FULL).round().astype(np.int8)


def beliefs(edges: np.ndarray) -> np.ndarray:
    """How sure the network is of a mark in every cell, 0..1: float32 [H / CELL, W / CELL]."""
    values = in_order(edges[evenly(len(edges), MAX_AT_ONCE)])
    places = [round(quantile * (len(values) - 1)) for quantile in QUANTILES]
    quantiles = np.concatenate([values[place] for place in places]).astype(np.float32) / FULL
    [logits] = network("marks").run(None, {"quantiles": quantiles[None]})
    return 1 / (1 + np.exp(-logits[0]))


def in_order(values: np.ndarray) -> list[np.ndarray]:
    """The values [N, ...] sorted along N: Batcher's odd-even merge sort (1968).

    Whole arrays are compared at once: 30 times as fast as numpy.sort (measured, 16 looks).
    """
    out, count = list(values), len(values)
    run = 1
    while run < count:
        step = run
        while step:
            for first in range(step % run, count - step, 2 * step):
                for i in range(first, first + min(step, count - first - step)):
                    if i // (2 * run) == (i + step) // (2 * run):
                        low, high = out[i], out[i + step]
                        out[i], out[i + step] = np.minimum(low, high), np.maximum(low, high)
            step //= 2
        run *= 2
    return out


@cache
def network(half: str) -> Any:
    """A half of the network, once per process; one thread, as the decode beside it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(__file__).with_name(f"watermark_{half}.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def strongest(belief: np.ndarray, sure: float) -> Watermark:
    """Score the group of cells with most belief; 1 - 2^(-belief / HALF) rises smoothly."""
    there = belief >= sure
    near = np.ones(JOIN[::-1], np.uint8)
    joined = cv2.morphologyEx(there.astype(np.uint8), cv2.MORPH_CLOSE, near)
    count, labels = cv2.connectedComponents(joined)
    sums = np.bincount(labels[there], belief[there], count)
    group = int(sums[1:].argmax()) + 1 if count > 1 else 0
    if not group or not sums[group]:
        return Watermark(0.0, None)
    rows, columns = np.nonzero(there & (labels == group))
    height, width = belief.shape
    box = (
        float(columns.min() / width),
        float(rows.min() / height),
        float((columns.max() + 1) / width),
        float((rows.max() + 1) / height),
    )
    return Watermark(float(1 - 2 ** (-sums[group] / HALF)), box)
