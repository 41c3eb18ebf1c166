"""black_bars: measured to the line at the stored size: what is dark, straight, and stays."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import MakeVideo, Shot
from test_scores import clip_scores

from curation.scores.bars import Bars

H, W = 720, 1280
RNG = np.random.default_rng(0)


def picture(top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    """Lit noise of limited range inside bars of so many lines, with the noise of coding on them."""
    out = RNG.integers(16, 19, (H, W), dtype=np.uint8)
    inside = out[top : H - bottom, left : W - right]
    inside[:] = RNG.integers(60, 200, inside.shape, dtype=np.uint8)
    return out


def score(*pictures: np.ndarray, is_full_range: bool = False) -> float | None:
    bars = Bars()
    for second, one in enumerate(pictures):
        bars.add(float(second), one, is_full_range=is_full_range)
    return bars.between(0.0, float(len(pictures)))


@pytest.mark.parametrize(
    ("sides", "share"),
    [
        ({}, 0.0),
        ({"top": 14, "bottom": 14}, 28 / 720),  # 1.85:1 in 16:9, the faintest that is common
        ({"top": 1}, 1 / 720),
        ({"bottom": 92, "top": 92}, 184 / 720),  # 2.39:1
        ({"left": 160, "right": 160}, 320 / 1280),  # 4:3
        ({"right": 3}, 3 / 1280),
        ({"top": 72, "bottom": 72, "left": 128, "right": 128}, 1 - 0.8 * 0.8),
    ],
)
def test_bars_are_measured_to_the_line(sides: dict[str, int], share: float) -> None:
    assert score(picture(**sides)) == pytest.approx(share, abs=1e-9)


def test_bars_of_full_range_are_black_at_0() -> None:
    boxed = picture(top=72, bottom=72)
    assert score(boxed - 16, is_full_range=True) == pytest.approx(0.2)


def test_a_bar_stays_for_the_whole_clip() -> None:
    assert score(picture(top=72), picture(top=72)) == pytest.approx(0.1)
    assert score(picture(top=72), picture()) == 0.0
    assert score(picture(top=72), picture(bottom=72)) == 0.0
    assert score(picture(top=72), picture(top=36)) == pytest.approx(0.05)


def test_each_stretch_has_its_own() -> None:
    bars = Bars()
    for second, one in enumerate([picture(top=72), picture(top=72), picture()]):
        bars.add(float(second), one, is_full_range=False)
    stretches = [(0.0, 2.0), (0.5, 3.0), (2.0, 3.0), (7.0, 8.0)]
    assert [bars.between(*one) for one in stretches] == [pytest.approx(0.1), 0.0, 0.0, None]


def test_black_all_over_is_all_bars() -> None:
    assert score(np.full((H, W), 16, np.uint8)) == 1.0


def test_darkness_that_fades_in_is_no_bar() -> None:
    """The night above a street: black at the edge, brighter line by line."""
    night = np.repeat(np.linspace(16, 120, H)[:, None], W, axis=1).astype(np.uint8)
    assert score(night) == 0.0


def test_darkness_that_ends_here_and_there_is_no_bar() -> None:
    """Roofs before a black sky: no line is the edge of it."""
    roofs = picture()
    for place, depth in enumerate(RNG.integers(20, 200, 64)):
        roofs[:depth, place * 20 : place * 20 + 20] = 16
    roofs[:20] = 16
    assert score(roofs) == 0.0


def test_a_dark_theme_is_no_bar() -> None:
    """#1e1e1e and #121212 above and below a window."""
    for grey in (0x1E, 0x12):
        window = np.full((H, W), grey, np.uint8)
        window[200:500, 300:900] = 220
        assert score(window, is_full_range=True) == 0.0


def test_a_small_window_on_black_has_no_bars() -> None:
    """Its edges are straight, but along less than half of the picture."""
    desktop = np.zeros((H, W), np.uint8)
    desktop[200:500, 500:800] = 220
    assert score(desktop, is_full_range=True) == 0.0


def test_portrait_and_tiny_pictures() -> None:
    tall = np.full((320, 180), 120, np.uint8)
    tall[:32] = 16
    assert score(tall) == pytest.approx(0.1)
    assert score(np.full((2, 2), 120, np.uint8)) == 0.0


@pytest.mark.parametrize(
    ("boxed", "share"),
    [
        ("crop=320:134,pad=320:180:0:23:black", 46 / 180),
        ("crop=240:180,pad=320:180:40:0:black", 80 / 320),
        ("crop=320:164,pad=320:180:0:8:black", 16 / 180),
    ],
)
def test_bars_of_encoded_video(make_video: MakeVideo, boxed: str, share: float) -> None:
    """Coding smears an edge by a line or two."""
    path = make_video("boxed.mp4", [Shot("test", 1.0)], filters=boxed)
    assert clip_scores(path)["black_bars"] == pytest.approx(share, abs=3.01 / 180)


def test_bars_of_ten_bits(make_video: MakeVideo) -> None:
    options = ("-pix_fmt", "yuv420p10le")
    path = make_video(
        "ten.mp4", [Shot("test", 1.0)], options=options, filters="drawbox=h=18:c=black:t=fill"
    )
    assert clip_scores(path)["black_bars"] == pytest.approx(0.1)
