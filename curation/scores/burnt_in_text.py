"""Text burnt into clips: a detector on a few frames of each, and one number from its boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from curation.pipelines import Scorers
from curation.scores.models import Row, Seen, by_clip, pictures_of

Box = tuple[float, float, float, float]  # x0, y0, x1, y1, fractions of the picture

# Short side of the frames that are looked at. PP-OCR's own is 736; on textless film that costs 1.6
# times as much and finds more text that is none. Measured, as what follows: docs/filters.md.
TEXT_SIDE_PX = 608

# From where the detector is sure of a box: of a line of text, and of what is less than twice as
# wide as high. On textless film its boxes have up to 0.50 and 0.70, burnt-in lines of 26 px in 720
# and more 0.75 to 0.88. rapidocr's own is 0.5.
SURE_LINE, SURE_BLOCK = 0.65, 0.75
LINE = 2.0  # width over height
MAX_HEIGHT = 0.5  # of the picture's; what is taller is no text but the whole picture


def text_times_s(start_s: float, end_s: float) -> list[float]:
    """The times of a clip at which text is looked for, seconds: 3 to 5, in the middle of as many
    equal parts. Ours: a subtitle of 2 s in every 4 is met in any clip longer than that."""
    num = int(min(3 + (end_s - start_s) // 6, 5))
    return [start_s + (i + 0.5) / num * (end_s - start_s) for i in range(num)]


class TextDetector:
    """The text detector whose weights are in rapidocr's wheel (PP-OCRv6 small): no network.

    Pictures in, boxes out; nothing is read. `num_threads` bounds those of onnxruntime.
    """

    def __init__(self, num_threads: int = 1) -> None:
        from rapidocr import RapidOCR

        self.model = RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.use_rec": False,
                "Global.log_level": "critical",
                "Det.limit_type": "min",
                "Det.limit_side_len": TEXT_SIDE_PX,
                "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[list[Box]]:
        """The boxes of text in every picture (uint8 BGR [H, W, 3]), in order."""
        return [self.boxes(picture) for picture in pictures]

    def boxes(self, picture: np.ndarray) -> list[Box]:
        height, width = picture.shape[:2]
        found: Any = self.model(picture, use_det=True, use_cls=False, use_rec=False)
        if found.boxes is None:
            return []
        corners, scores = np.asarray(found.boxes), np.asarray(found.scores)
        if not (np.isfinite(corners).all() and np.isfinite(scores).all()):
            raise ValueError("the text detector found a box that is not a number")
        first, last = corners.min(axis=1), corners.max(axis=1)
        widths, heights = (last - first).T
        bounds = np.where(widths >= LINE * heights, SURE_LINE, SURE_BLOCK)
        text = (scores >= bounds) & (heights <= MAX_HEIGHT * height)
        boxes = np.clip(np.hstack([first, last]) / (width, height, width, height), 0, 1)
        return [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes[text].tolist()]


def text_score(looks: Sequence[Sequence[Box]]) -> tuple[float, list[Box]]:
    """`text` of a clip, 0..1, and the boxes it stems from.

    `looks` are the boxes of each frame looked at. The score is the share of the picture under
    boxes in the frame that has most: what passes through a clip spoils it as what stays does.
    Overlapping boxes count once. Raises ValueError without a frame or with a box that is no
    number, because a clip that could not be looked at is not free of text.
    """
    if not looks:
        raise ValueError("no frame of this clip was looked at for text")
    if not all(math.isfinite(side) for boxes in looks for box in boxes for side in box):
        raise ValueError("the text detector found a box that is not a number")
    areas = [covered(boxes) for boxes in looks]
    most = int(np.argmax(areas))
    return areas[most], list(looks[most])


def covered(boxes: Sequence[Box]) -> float:
    """The area of the union of boxes, exact.

    >>> covered([(0.0, 0.0, 0.5, 0.5), (0.25, 0.0, 0.75, 0.5)])
    0.375
    """
    xs = np.unique([x for box in boxes for x in (box[0], box[2])])
    ys = np.unique([y for box in boxes for y in (box[1], box[3])])
    inside = np.zeros((max(len(ys) - 1, 0), max(len(xs) - 1, 0)), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        inside[(ys[:-1] >= y0) & (ys[1:] <= y1)] |= (xs[:-1] >= x0) & (xs[1:] <= x1)
    return float((np.diff(ys)[:, None] * np.diff(xs)[None] * inside).sum())


class TextScore:
    """The text detector: the share of the picture under text, and its boxes."""

    def __init__(self, scorers: Scorers) -> None:
        self.detector = TextDetector()

    def __call__(self, clips: Sequence[Seen]) -> list[Row]:
        found = by_clip(clips, self.detector(pictures_of(clips)))
        scores = [text_score(boxes) for boxes in found]
        return [{"text": score, "text_boxes": boxes} for score, boxes in scores]
