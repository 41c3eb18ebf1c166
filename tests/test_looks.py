"""The look of pictures whose look is known."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import ffmpeg

from curation.media.frames import decode
from curation.media.pictures import luma, small_bgr
from curation.scores.quality import (
    LookTrack,
    blockiness,
    colourfulness,
    exposure,
    sharpness,
    technical_quality,
)

MEADOW = Path(__file__).parents[1] / "examples/media/meadow.mp4"
NAMES = ("sharpness", "exposure", "colourfulness", "blockiness")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A sharp frame of real footage, brightness [720, 1280]."""
    with av.open(str(MEADOW)) as container:
        container.seek(11_000_000)
        return luma(next(container.decode(video=0))).copy()


def encoded(folder: Path, *options: object) -> dict[str, float | None]:
    """The look of half a second of real footage, encoded again."""
    path = folder / "again.mp4"
    ffmpeg("-ss", 11, "-i", MEADOW, "-t", 0.5, "-threads", 1, *options, path)
    track = LookTrack()
    for timeline, frame in decode(path, num_threads=1):
        small = small_bgr(frame, (256, 144))
        gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        track.add(timeline.time_s(timeline.num_frames - 1), frame, small, gray)
    return track.between(0.0, 1.0)


# -- sharpness


def test_blur_lowers_sharpness(picture: np.ndarray) -> None:
    blurred = [cv2.GaussianBlur(picture, (0, 0), sigma) for sigma in (0.5, 1, 2)]
    values = [sharpness(p) for p in (picture, *blurred)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.6 and values[-1] < 0.1


def test_an_enlarged_picture_is_not_sharp(picture: np.ndarray) -> None:
    small = cv2.resize(picture, (640, 360), interpolation=cv2.INTER_AREA)
    assert sharpness(small) > 0.5
    assert sharpness(cv2.resize(small, (1280, 720), interpolation=cv2.INTER_CUBIC)) < 0.25


def test_contrast_and_brightness_are_no_sharpness(picture: np.ndarray) -> None:
    flat = cv2.convertScaleAbs(picture, alpha=0.5, beta=60)
    assert sharpness(flat) == pytest.approx(sharpness(picture), abs=0.1)  # rounding to grey levels


def test_a_ramp_is_not_sharp_and_like_octaves_are() -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    assert sharpness(ramp) == pytest.approx(0, abs=0.02)
    # Two Haar octaves of the same strength: 16 levels of single pixels, 16 of pairs.
    rng = np.random.default_rng(0)
    signs = [rng.choice([-16, 16], (256 // n, 256 // n)).repeat(n, 0).repeat(n, 1) for n in (1, 2)]
    fine = np.tile([[1, -1], [-1, 1]], (128, 128)) * np.abs(signs[0])
    pairs = np.tile([[1, 1, -1, -1], [1, 1, -1, -1], [-1, -1, 1, 1], [-1, -1, 1, 1]], (64, 64)) * 16
    assert sharpness((128 + fine + pairs).astype(np.uint8)) == pytest.approx(1, abs=0.01)
    assert sharpness((128 + fine / 2 + pairs).astype(np.uint8)) == pytest.approx(0, abs=0.02)


def test_a_blank_picture_is_not_sharp() -> None:
    assert sharpness(np.full((72, 128), 90, np.uint8)) == 0
    assert sharpness(np.zeros((2, 2), np.uint8)) == 0


# -- exposure and colour


def test_exposure_is_mean_brightness() -> None:
    black, white = np.zeros((9, 16), np.uint8), np.full((9, 16), 255, np.uint8)
    assert (exposure(black), exposure(white)) == (0, 1)
    assert exposure(np.hstack([black, white])) == pytest.approx(0.5)


def test_under_and_over_exposure_of_footage(tmp_path: Path) -> None:
    values = [encoded(tmp_path, "-vf", f"lutyuv=y='clip(val*{g},16,235)'") for g in (0.1, 1, 3)]
    dark, normal, bright = (v["exposure"] for v in values)
    assert dark is not None and normal is not None and bright is not None
    assert dark < 0.15 < 0.3 < normal < 0.6 < 0.75 < bright


def test_colourfulness_is_that_of_the_paper() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert colourfulness(grey) == 0
    red = np.full((4, 4, 3), (0, 0, 255), np.uint8)  # rg 255, yb 127.5, no spread
    assert colourfulness(red) == pytest.approx(0.3 * np.hypot(255, 127.5))
    half = np.concatenate([red, np.zeros_like(red)])  # means and spreads of half
    assert colourfulness(half) == pytest.approx(1.3 * np.hypot(127.5, 63.75))


def test_grey_footage_has_no_colour(tmp_path: Path) -> None:
    assert encoded(tmp_path, "-vf", "hue=s=0")["colourfulness"] == pytest.approx(0, abs=0.5)
    colourful = encoded(tmp_path)["colourfulness"]
    assert colourful is not None and colourful > 40


# -- blockiness


def test_coarse_coding_raises_blockiness(tmp_path: Path) -> None:
    fine, coarse = (encoded(tmp_path, "-crf", crf) for crf in (18, 45))
    assert fine["blockiness"] is not None and coarse["blockiness"] is not None
    assert fine["blockiness"] < 0.25 and coarse["blockiness"] > 0.4
    assert fine["sharpness"] > coarse["sharpness"]  # type: ignore[operator]
    good, bad = technical_quality(fine), technical_quality(coarse)
    assert good is not None and bad is not None and good > 0.7 > 0.5 > bad


def test_blocks_are_found_wherever_the_grid_is(picture: np.ndarray) -> None:
    small = cv2.resize(picture, (160, 90), interpolation=cv2.INTER_AREA)
    blocks = cv2.resize(small, (1280, 720), interpolation=cv2.INTER_NEAREST)
    assert blockiness(blocks) > 5
    assert blockiness(blocks[3:, 5:]) == pytest.approx(blockiness(blocks), rel=0.05)
    assert blockiness(np.full((72, 128), 90, np.uint8)) == 0


# -- together


@pytest.mark.parametrize("name", ["sharpness", "blockiness", "exposure"])
def test_technical_quality_needs_every_part(name: str) -> None:
    good: dict[str, float | None] = {"sharpness": 0.5, "blockiness": 0.15, "exposure": 0.25}
    best = technical_quality(good)
    assert best == pytest.approx((0.5 * 0.75 * 0.75) ** (1 / 3))
    better = {"sharpness": 0.6, "blockiness": 0.1, "exposure": 0.3}[name]
    bad = {"sharpness": 0.1, "blockiness": 0.5, "exposure": 0.1}[name]
    worst = {"sharpness": 0.0, "blockiness": 0.9, "exposure": 1.0}[name]
    assert (technical_quality(good | {name: better}) or 0) > best
    some = technical_quality(good | {name: bad})
    assert some is not None and 0 < some < best
    assert technical_quality(good | {name: worst}) == 0
    assert technical_quality(good | {name: None}) is None


def test_looks_are_taken_twice_a_second_and_told_by_stretch() -> None:
    track = LookTrack()
    for index in range(72):
        level = 50 if index < 48 else 200
        shown = np.full((90, 160, 3), level, np.uint8)
        frame = av.VideoFrame.from_ndarray(shown, format="bgr24")
        track.add(index / 24, frame, shown, cv2.cvtColor(shown, cv2.COLOR_BGR2GRAY))
    assert len(track.looks) == 6 * 5
    first, last = track.between(0.0, 2.0), track.between(2.0, 3.0)
    assert tuple(first) == NAMES
    assert first["exposure"] == pytest.approx(50 / 255)
    assert last["exposure"] == pytest.approx(200 / 255)
    assert track.between(0.1, 0.4) == dict.fromkeys(NAMES)
    assert LookTrack().between(0.0, 9.0) == dict.fromkeys(NAMES)
