"""The watermark detector: known overlays, what only looks like one, and the samples."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.scores.watermarks import Watermark, around, in_order, watermark_evidence, whole

SAMPLES = Path(__file__).parent.parent / "examples" / "media"
HEIGHT, WIDTH = 360, 640


def scenes(count: int, hold: int = 1, seed: int = 0) -> np.ndarray:
    """Random pictures of discs that hide one another, each held for `hold` samples.

    Uint8 [count * hold, 360, 640]. Discs of every size are the simplest model with the edges of
    natural pictures (Lee, Mumford and Huang 2001, "dead leaves").
    """
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    for picture in pictures:
        for radius in np.sort(6 / rng.uniform(0.03, 1, 250))[::-1]:
            at = (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))
            cv2.circle(picture, at, int(radius), int(rng.integers(20, 220)), -1, cv2.LINE_AA)
    return pictures.repeat(hold, axis=0)


def with_logo(luma: np.ndarray, x: int, y: int, alpha: float) -> tuple[np.ndarray, list[float]]:
    """Blend a white word over every sample, and give its box as fractions of the picture."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.putText(mask, "STOCK", (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 2, cv2.LINE_AA)
    left, top, width, height = cv2.boundingRect(mask)
    blend = luma + (255.0 - luma) * (mask / 255.0 * alpha)
    box = [left / WIDTH, top / HEIGHT, (left + width) / WIDTH, (top + height) / HEIGHT]
    return blend.round().astype(np.uint8), box


def overlap(found: Watermark, box: list[float]) -> float:
    """Intersection over union of the found box and the true one."""
    assert found.box is not None
    a, b = np.array(found.box), np.array(box)
    common = np.prod(np.clip(np.minimum(a, b)[2:] - np.maximum(a, b)[:2], 0, None))
    return float(common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common))


def decoded(name: str, start_s: float = 0.0) -> np.ndarray:
    """Two samples per second of a 24 fps sample video from start_s on: uint8 [N, 360, 640]."""
    with av.open(SAMPLES / name) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = [
            frame.to_ndarray(format="gray")
            for i, frame in enumerate(container.decode(video=0))
            if i >= start_s * 24 and i % 12 == 0
        ]
    size = (WIDTH, HEIGHT)
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])


def score(luma: np.ndarray) -> float:
    """The score that a pipeline sees by default: 0 where the evidence is thin."""
    found = watermark_evidence(luma).or_clean().score
    assert found is not None
    return found


@pytest.mark.parametrize("alpha", [0.35, 1.0])
@pytest.mark.parametrize("x,y", [(20, 40), (520, 40), (20, 340), (520, 340), (280, 190)])
def test_a_logo_over_changing_scenes_is_found_where_it_is(x: int, y: int, alpha: float) -> None:
    luma, box = with_logo(scenes(12), x, y, alpha)
    found = watermark_evidence(luma)
    assert found.score is not None and found.score > 0.5
    assert overlap(found, box) > 0.4


def test_changing_scenes_without_a_logo_pass() -> None:
    assert score(scenes(24)) < 0.5


def test_a_still_camera_gives_no_evidence() -> None:
    luma, _ = with_logo(scenes(1, hold=24), 520, 340, 1.0)  # a sign on the wall, not an overlay
    for i, sample in enumerate(luma):
        cv2.circle(sample, (20 + 25 * i, 325), 12, 255, -1)  # passes in front of it
    assert score(luma) < 0.5


def test_a_camera_that_returns_is_one_look() -> None:
    sign, _ = with_logo(scenes(1, hold=20), 520, 340, 1.0)
    other = scenes(5, seed=1)
    luma = np.concatenate([np.concatenate([sign[:4], shot[None]]) for shot in other])
    assert score(luma) < 0.5


def test_a_fade_of_a_still_title_is_no_new_look() -> None:
    title, _ = with_logo(scenes(1, hold=24), 280, 190, 1.0)
    gain = np.linspace(0.2, 1.0, len(title))[:, None, None]
    assert score((title * gain).astype(np.uint8)) < 0.5


@pytest.mark.parametrize("axes,width", [((1,), 50), ((2,), 50), ((1, 2), 8)])
def test_black_bars_are_no_overlay(axes: tuple[int, ...], width: int) -> None:
    luma = scenes(24)
    for axis in axes:
        bars = np.moveaxis(luma, axis, 0)
        bars[:width] = bars[-width:] = 16
    assert score(luma) < 0.5
    marked, box = with_logo(luma, 280, 190, 0.5)
    assert overlap(watermark_evidence(marked), box) > 0.4


def test_black_and_white_frames_neither_hide_a_logo_nor_make_one() -> None:
    luma = scenes(24)
    marked, box = with_logo(luma, 520, 340, 0.5)
    for video in (luma, marked):
        video[::4] = 16
        video[1::4] = 235
    assert score(luma) < 0.5
    found = watermark_evidence(marked)
    assert found.score is not None and found.score > 0.5
    assert overlap(found, box) > 0.4


@pytest.mark.parametrize("samples", [0, 1])
def test_few_samples_are_no_evidence(samples: int) -> None:
    luma, _ = with_logo(scenes(3), 520, 340, 1.0)
    assert watermark_evidence(luma[:samples]) == Watermark(None, None)


def test_a_still_image_is_no_evidence() -> None:
    luma, _ = with_logo(scenes(1, hold=24), 520, 340, 1.0)
    assert watermark_evidence(luma) == Watermark(None, None)
    assert watermark_evidence(luma).or_clean() == Watermark(0.0, None)


def test_a_grey_logo_is_found_on_light_and_on_dark() -> None:
    """Its edges turn round from picture to picture."""
    luma, box = with_logo(scenes(12), 520, 340, 1.0)
    clean = scenes(12)
    grey = np.where(luma == clean, clean, 120).astype(np.uint8)
    assert overlap(watermark_evidence(grey), box) > 0.3


def test_a_logo_of_half_the_time_is_found() -> None:
    left, box = with_logo(scenes(40), 20, 40, 1.0)
    half = np.concatenate([left[:20], scenes(40)[20:]])
    assert overlap(watermark_evidence(half), box) > 0.4


def test_faint_text_tiled_over_the_picture_is_found() -> None:
    luma = scenes(12)
    for y in range(40, 360, 80):
        for x in range(10, 600, 160):
            luma, _ = with_logo(luma, x, y, 0.2)
    assert score(luma) > 0.5


def test_the_same_trees_in_other_light_are_one_view() -> None:
    """A shot that returns brighter is no third look: textures match others by chance."""
    rng = np.random.default_rng(0)
    trees, meadow = (
        cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.float32), (0, 0), 1.5)
        for _ in range(2)
    )
    views = [trees * 1.5 - 60, meadow * 1.5 - 60, trees * 1.5 - 20]
    luma = np.clip(np.stack(views).repeat(6, axis=0), 0, 255).astype(np.uint8)
    assert score(luma) < 0.5


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        watermark_evidence(np.zeros((4, 360, 640), np.float32))


def test_the_sample_with_a_logo_is_found_and_its_clean_twin_passes() -> None:
    found = watermark_evidence(decoded("meadow_logo.mp4"))
    assert found.score is not None and found.score > 0.5
    assert overlap(found, [1095 / 1280, 679 / 720, 1252 / 1280, 695 / 720]) > 0.25
    assert score(decoded("meadow.mp4", start_s=10.0)) < 0.5


@given(st.integers(1, 40), st.integers(0, 9))
def test_values_are_put_in_order(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-5, 6, (count, 7)).astype(np.int8)
    assert np.array_equal(np.stack(in_order(values)), np.sort(values, axis=0))


@given(st.tuples(*[st.floats(0, 1)] * 4), st.tuples(st.integers(16, 120), st.integers(16, 200)))
def test_what_is_near_a_box_holds_it_and_lies_in_the_picture(
    corners: tuple[float, ...], sides: tuple[int, int]
) -> None:
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    near = around((x0, y0, x1, y1), sides)
    for span, side, low, high in zip(near, sides, (y0, x0), (y1, x1), strict=True):
        assert 0 <= span.start < span.stop <= side
        assert span.start <= low * side + 1 and high * side - 1 <= span.stop
    left, top, right, bottom = whole((0, 0, 1, 1), near, sides)
    assert (left, right) == (near[1].start / sides[1], near[1].stop / sides[1])
    assert (top, bottom) == (near[0].start / sides[0], near[0].stop / sides[0])
