"""Text in pictures: the real detector on drawn words, and the score of known boxes."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from curation.scores.burnt_in_text import (
    TEXT_SIDE_PX,
    TextDetector,
    covered,
    text_score,
    text_times_s,
)


def picture(text: str | None, size: float = 1.5) -> np.ndarray:
    """A soft coloured picture, with a line of white text near its bottom or without."""
    coarse = np.random.default_rng(3).integers(40, 160, (5, 8, 3), dtype=np.uint8)
    out = cv2.resize(coarse, (1280, 720), interpolation=cv2.INTER_CUBIC)
    if text:
        cv2.putText(out, text, (300, 660), cv2.FONT_HERSHEY_SIMPLEX, size, (255,) * 3, 3)
    return out


@pytest.fixture(scope="module")
def detector() -> TextDetector:
    return TextDetector()


def test_a_subtitle_is_found_where_it_is_and_a_clean_picture_has_none(
    detector: TextDetector, capfd: pytest.CaptureFixture[str]
) -> None:
    clean, [(x0, y0, x1, y1)] = detector([picture(None), picture("Wait for me here")])
    assert clean == []
    assert (x0, y0) == pytest.approx((300 / 1280, 615 / 720), abs=0.03)
    width = cv2.getTextSize("Wait for me here", cv2.FONT_HERSHEY_SIMPLEX, 1.5, 3)[0][0]
    assert x1 - x0 == pytest.approx(width / 1280, rel=0.1)
    assert 660 / 720 <= y1 <= 680 / 720
    assert capfd.readouterr() == ("", "")  # rapidocr greets otherwise


def test_a_block_must_be_surer_than_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known boxes and scores in place of the network's."""
    detector = TextDetector()

    def boxes(width: float, height: float, sure: float) -> int:
        x1, y1 = 10 + width, 20 + height
        found = SimpleNamespace(boxes=[[[10, 20], [x1, 20], [x1, y1], [10, y1]]], scores=[sure])
        monkeypatch.setattr(detector, "model", lambda *_, **__: found)
        return len(detector.boxes(np.zeros((100, 200, 3), np.uint8)))

    assert [boxes(40, 20, sure) for sure in (0.64, 0.66)] == [0, 1]
    assert [boxes(40, 21, sure) for sure in (0.74, 0.76)] == [0, 1]
    assert [boxes(150, height, 0.9) for height in (50, 51)] == [1, 0]
    for unknown in ((float("nan"), 20, 0.9), (40, 20, float("nan"))):
        with pytest.raises(ValueError, match="not a number"):
            boxes(*unknown)


def test_small_pictures_and_small_text_are_seen(detector: TextDetector) -> None:
    small = cv2.resize(picture("Wait for me here"), (640, 360), interpolation=cv2.INTER_AREA)
    tiny = picture("Wait for me here", size=1.0)  # letters of 22 px
    assert [len(boxes) for boxes in detector([small, tiny])] == [1, 1]


def test_the_detector_enlarges_to_the_side_that_was_measured(detector: TextDetector) -> None:
    model = detector.model._load_det_model()
    assert (model.limit_side_len, model.limit_type) == (TEXT_SIDE_PX, "min")


def test_threads_are_bounded(detector: TextDetector) -> None:
    options = detector.model._load_det_model().session.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert logging.getLogger("RapidOCR").level == logging.CRITICAL


def test_overlapping_boxes_count_once() -> None:
    assert covered([]) == 0
    assert covered([(0.0, 0.0, 1.0, 1.0)]) == 1
    assert covered([(0.1, 0.1, 0.3, 0.2), (0.6, 0.1, 0.8, 0.2)]) == pytest.approx(0.04)
    assert covered([(0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75)]) == pytest.approx(0.4375)
    assert covered([(0.0, 0.0, 0.5, 0.5)] * 3) == pytest.approx(0.25)


def test_the_score_is_that_of_the_frame_with_most_text() -> None:
    line, word = (0.2, 0.9, 0.8, 0.95), (0.2, 0.9, 0.3, 0.95)
    assert text_score([[], [word], [line, word], []]) == (pytest.approx(0.03), [line, word])
    assert text_score([[], []]) == (0.0, [])


def test_what_was_not_looked_at_has_no_score() -> None:
    with pytest.raises(ValueError, match="no frame"):
        text_score([])
    with pytest.raises(ValueError, match="not a number"):
        text_score([[], [(0.0, 0.0, float("nan"), 1.0)]])


def test_longer_clips_are_looked_at_more_often() -> None:
    assert text_times_s(10.0, 13.0) == pytest.approx([10.5, 11.5, 12.5])
    assert [len(text_times_s(0.0, end_s)) for end_s in (0.5, 5.9, 6.0, 12.0, 600.0)] == [
        *(3, 3, 4, 5, 5)
    ]
