"""Motion scores on scenes whose answers are known, at several rates and sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from curation.media.pictures import shrink
from curation.scores.motions import MotionTrack

SIZES = [(640, 360), (1280, 720)]
RATES = [12, 24, 60]
SCORES = ("motion", "camera_motion", "zoom", "slideshow", "flicker")
# Root mean square distance to the centre of a 16:9 picture, in widths.
REACH = np.sqrt((1 + (9 / 16) ** 2) / 12)

Scene = Callable[[float, tuple[int, int]], np.ndarray]


@functools.cache
def texture(seed: int) -> np.ndarray:
    """Soft random detail at several scales, uint8 [1152, 2048]."""
    rng = np.random.default_rng(seed)
    out = np.zeros((1152, 2048), np.float32)
    for step in (8, 16, 32, 128):
        coarse = rng.normal(0, 1, (1152 // step, 2048 // step)).astype(np.float32)
        out += cv2.resize(coarse, (2048, 1152), interpolation=cv2.INTER_CUBIC) * step**0.3
    return np.clip(128 + 22 * out, 20, 235).astype(np.uint8)


def view(seed: int, size: tuple[int, int], x: float = 0.0, zoom: float = 1.0) -> np.ndarray:
    """The middle of a texture, moved by x widths to the right and enlarged."""
    width, height = size
    scale = width / 1600 * zoom
    left, top = width / 2 - scale * 1024 + x * width, height / 2 - scale * 576
    step = np.array([[scale, 0, left], [0, scale, top]])
    return cv2.warpAffine(texture(seed), step, size, flags=cv2.INTER_AREA)


def square(time_s: float, size: tuple[int, int], speed: float = 0.2) -> np.ndarray:
    """A square of 0.3 widths crosses a still picture."""
    out = view(0, size)
    side = round(0.3 * size[0])
    patch = view(1, size)[:side, :side]
    x = (0.1 + speed * time_s) * size[0]
    left = int(x)
    box = np.ones((side, side), np.float32)
    step = np.array([[1.0, 0, x - left], [0, 1, 0]])
    moved, mask = (cv2.warpAffine(p, step, (side + 1, side)) for p in (patch, box))
    top = round(0.1 * size[0])
    place = out[top : top + side, left : left + side + 1]
    place[:] = place * (1 - mask) + moved * mask
    return out


def pan(time_s: float, size: tuple[int, int]) -> np.ndarray:
    return view(0, size, x=0.1 * (time_s - 1))


def zoom(time_s: float, size: tuple[int, int]) -> np.ndarray:
    return view(0, size, zoom=np.exp(0.1 * time_s))


def still(time_s: float, size: tuple[int, int]) -> np.ndarray:
    return view(0, size)


def lamp(time_s: float, size: tuple[int, int]) -> np.ndarray:
    """8 grey levels up and down, 5 times a second."""
    swing = 8 * np.sin(2 * np.pi * 5 * time_s)
    return np.clip(view(0, size) + swing, 0, 255).astype(np.uint8)


def cuts(time_s: float, size: tuple[int, int]) -> np.ndarray:
    return view(int(time_s / 0.8), size)


def dissolves(time_s: float, size: tuple[int, int]) -> np.ndarray:
    share = float(np.clip((time_s - 0.9) / 0.6, 0, 1))
    return cv2.addWeighted(view(0, size), 1 - share, view(1, size), share, 0)


def shake(time_s: float, size: tuple[int, int]) -> np.ndarray:
    return view(0, size, x=0.01 * np.sin(2 * np.pi * 2.3 * time_s))


def track_of(
    scene: Scene, fps: float = 24, size: tuple[int, int] = SIZES[0], seconds: float = 2.4
) -> MotionTrack:
    track = MotionTrack()
    for index in range(round(seconds * fps)):
        track.add(index / fps, None, None, shrink(scene(index / fps, size), (256, 144)))
    return track


def scores_of(scene: Scene, *given: object, **named: object) -> dict[str, float]:
    found = track_of(scene, *given, **named).between(0.0, 99.0)  # type: ignore[arg-type]
    assert tuple(found) == SCORES
    return {name: value for name, value in found.items() if value is not None}


# -- known answers


def test_a_square_has_its_own_speed_and_no_camera() -> None:
    for speed in (0.1, 0.3):
        found = scores_of(lambda t, size, v=speed: square(t, size, v), seconds=1.6)
        # Its smooth parts show nothing: up to a fifth is missing.
        assert 0.8 * speed <= found["motion"] <= 1.02 * speed
        assert found["camera_motion"] < 0.01
        assert found["zoom"] == found["slideshow"] == 0
        assert found["flicker"] < 0.2


def test_a_pan_over_a_still_is_all_camera() -> None:
    found = scores_of(pan)
    assert found["camera_motion"] == pytest.approx(0.1, rel=0.05)
    assert found["motion"] < 0.002
    assert (found["zoom"], found["slideshow"]) == (1, 0)


def test_a_zoom_over_a_still_is_all_camera() -> None:
    found = scores_of(zoom)
    assert found["camera_motion"] == pytest.approx(0.1 * REACH, rel=0.05)
    assert found["motion"] < 0.002
    assert (found["zoom"], found["slideshow"]) == (1, 0)


def test_a_square_before_a_pan_keeps_its_own_speed() -> None:
    def scene(time_s: float, size: tuple[int, int]) -> np.ndarray:
        back, front = view(2, size, x=-0.1 * time_s), square(time_s, size, 0.1)
        top, side = round(0.1 * size[0]), round(0.3 * size[0])
        left = int((0.1 + 0.1 * time_s) * size[0]) + 1
        back[top : top + side, left : left + side - 2] = front[top : top + side, left:][
            :, : side - 2
        ]
        return back

    found = scores_of(scene, seconds=1.6)
    assert found["camera_motion"] == pytest.approx(0.1, rel=0.1)
    assert found["motion"] == pytest.approx(0.2, rel=0.15)
    assert found["zoom"] == 0


def test_a_still_has_no_motion_at_all() -> None:
    assert scores_of(still) == dict.fromkeys(SCORES, 0)


def test_a_shaking_camera_is_no_steady_zoom() -> None:
    found = scores_of(shake)
    assert found["zoom"] < 0.5
    assert found["camera_motion"] > 0.03
    assert found["motion"] < 0.008


@pytest.mark.parametrize("scene", [cuts, dissolves])
def test_slides_are_a_slideshow_and_no_motion(scene: Scene) -> None:
    found = scores_of(scene)
    assert found["slideshow"] == 1
    assert found["motion"] < 0.002 and found["camera_motion"] < 0.002


def test_a_cut_to_something_that_moves_is_no_slideshow() -> None:
    def scene(time_s: float, size: tuple[int, int]) -> np.ndarray:
        return view(3, size) if time_s < 1.2 else square(time_s - 1.2, size)

    assert scores_of(scene)["slideshow"] == 0


def test_flicker_is_its_standard_deviation() -> None:
    found = scores_of(lamp)
    assert found["flicker"] == pytest.approx(8 / np.sqrt(2), rel=0.1)
    assert found["motion"] < 0.002 and found["slideshow"] == 0


def test_a_slow_fade_is_no_flicker() -> None:
    def fade(time_s: float, size: tuple[int, int]) -> np.ndarray:
        return cv2.convertScaleAbs(view(0, size), alpha=1 - 0.3 * time_s)

    assert scores_of(fade)["flicker"] < 0.5


# -- the same at any rate and size


@pytest.mark.parametrize(
    ("scene", "name"),
    [(square, "motion"), (pan, "camera_motion"), (zoom, "camera_motion"), (lamp, "flicker")],
)
def test_neither_rate_nor_size_matters(scene: Scene, name: str) -> None:
    values = [scores_of(scene, fps, SIZES[0], 1.6)[name] for fps in RATES]
    values.append(scores_of(scene, 24, SIZES[1], 1.6)[name])
    assert max(values) <= 1.1 * min(values)


def test_irregular_times_do_not_matter() -> None:
    track = MotionTrack()
    times_s = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, 60))
    for time_s in times_s:
        track.add(time_s, None, None, shrink(pan(time_s, SIZES[0]), (256, 144)))
    assert track.between(0.0, 99.0)["camera_motion"] == pytest.approx(0.1, rel=0.05)


# -- stretches


def test_a_stretch_is_told_by_its_own_frames_only() -> None:
    def scene(time_s: float, size: tuple[int, int]) -> np.ndarray:
        return still(time_s, size) if time_s < 1.2 else pan(time_s, size)

    track = track_of(scene)
    assert track.between(0.0, 1.2)["camera_motion"] == 0
    assert track.between(1.2, 2.4)["camera_motion"] == pytest.approx(0.1, rel=0.05)


def test_a_stretch_without_a_pair_has_no_scores() -> None:
    track = track_of(pan)
    assert track.between(0.0, 0.04) == dict.fromkeys(SCORES)
    assert track.between(50.0, 60.0) == dict.fromkeys(SCORES)
    assert MotionTrack().between(0.0, 1.0) == dict.fromkeys(SCORES)
    assert None not in track.between(0.9, 1.5).values()  # STEP_S + SHORT_S always hold one


def test_blank_frames_are_still() -> None:
    found = scores_of(lambda time_s, size: np.full(size[::-1], 16, np.uint8))
    assert found == dict.fromkeys(SCORES, 0)


def test_what_is_kept_of_a_second_is_bounded() -> None:
    track = track_of(pan, fps=60, seconds=2.0)
    assert len(track.pairs) <= 2 * 4 * 8
    assert len(track.turns) <= 2 * 2 * 4
    assert len(track.times_s) == len(track.light) == 120
