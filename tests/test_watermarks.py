"""The watermark detector: known overlays, what only looks like one, and the samples."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from curation.watermarks import Watermark, watermark_evidence

SAMPLES = Path(__file__).parent.parent / "examples" / "media"
HEIGHT, WIDTH = 360, 640


def scenes(count: int, hold: int = 1, seed: int = 0) -> np.ndarray:
    """Random soft-edged pictures, each held for `hold` samples: uint8 [count * hold, 360, 640]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 220, (count, 18, 32), dtype=np.uint8)
    size = (WIDTH, HEIGHT)
    return np.stack([cv2.resize(c, size, interpolation=cv2.INTER_CUBIC) for c in coarse]).repeat(
        hold, axis=0
    )


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


@pytest.mark.parametrize("alpha", [0.35, 1.0])
@pytest.mark.parametrize("x,y", [(20, 40), (520, 40), (20, 340), (520, 340), (280, 190)])
def test_a_logo_over_changing_scenes_is_found_where_it_is(x: int, y: int, alpha: float) -> None:
    luma, box = with_logo(scenes(12), x, y, alpha)
    found = watermark_evidence(luma)
    assert found.score > 0.5
    assert overlap(found, box) > 0.5


def test_changing_scenes_without_a_logo_pass() -> None:
    assert watermark_evidence(scenes(24)).score < 0.5


def test_a_still_camera_gives_no_evidence() -> None:
    luma, _ = with_logo(scenes(1, hold=24), 520, 340, 1.0)  # a sign on the wall, not an overlay
    for i, sample in enumerate(luma):
        cv2.circle(sample, (20 + 25 * i, 325), 12, 255, -1)  # passes in front of it
    assert watermark_evidence(luma).score < 0.5


def test_a_camera_that_returns_is_one_look() -> None:
    sign, _ = with_logo(scenes(1, hold=20), 520, 340, 1.0)
    other = scenes(5, seed=1)
    luma = np.concatenate([np.concatenate([sign[:4], shot[None]]) for shot in other])
    assert watermark_evidence(luma).score < 0.5


def test_a_fade_of_a_still_title_is_no_new_look() -> None:
    title, _ = with_logo(scenes(1, hold=24), 280, 190, 1.0)
    gain = np.linspace(0.2, 1.0, len(title))[:, None, None]
    assert watermark_evidence((title * gain).astype(np.uint8)).score < 0.5


@pytest.mark.parametrize("axes,width", [((1,), 50), ((2,), 50), ((1, 2), 8)])
def test_black_bars_are_no_overlay(axes: tuple[int, ...], width: int) -> None:
    luma = scenes(24)
    for axis in axes:
        bars = np.moveaxis(luma, axis, 0)
        bars[:width] = bars[-width:] = 16
    assert watermark_evidence(luma).score < 0.5
    marked, box = with_logo(luma, 280, 190, 0.5)
    assert overlap(watermark_evidence(marked), box) > 0.5


def test_black_and_white_frames_neither_hide_a_logo_nor_make_one() -> None:
    luma = scenes(24)
    marked, box = with_logo(luma, 520, 340, 0.5)
    for video in (luma, marked):
        video[::4] = 16
        video[1::4] = 235
    assert watermark_evidence(luma).score < 0.5
    found = watermark_evidence(marked)
    assert found.score > 0.5
    assert overlap(found, box) > 0.5


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_few_samples_are_no_evidence(samples: int) -> None:
    luma, _ = with_logo(scenes(3), 520, 340, 1.0)
    assert watermark_evidence(luma[:samples]) == Watermark(0.0, None)


def test_a_still_image_is_no_evidence() -> None:
    luma, _ = with_logo(scenes(1, hold=24), 520, 340, 1.0)
    assert watermark_evidence(luma) == Watermark(0.0, None)


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        watermark_evidence(np.zeros((4, 360, 640), np.float32))


def test_the_sample_with_a_logo_is_found_and_its_clean_twin_passes() -> None:
    found = watermark_evidence(decoded("meadow_logo.mp4"))
    assert found.score > 0.5
    assert overlap(found, [1095 / 1280, 679 / 720, 1252 / 1280, 695 / 720]) > 0.5
    assert watermark_evidence(decoded("meadow.mp4", start_s=10.0)).score < 0.5
