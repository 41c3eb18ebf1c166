"""The examples that the watermark network learns from say the truth about where a mark is."""

import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from PIL import ImageFont

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from watermark_examples import CELL_PX, SIDE_PX, Footage, example, marked, with_things
from watermark_marks import Fonts, Sheet, mark

LETTERS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def bank() -> list[Sheet]:
    rng = np.random.default_rng(0)
    return [mark(rng, Fonts.of(LETTERS)) for _ in range(30)]


def test_fonts_that_cannot_be_opened_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert Fonts.of(tmp_path) == Fonts([], [])
    found = Fonts.of(LETTERS)
    assert found.letters and all(ImageFont.truetype(path, 20) for path in found.letters)


@pytest.mark.parametrize("seed", range(12))
def test_a_cell_is_marked_if_and_only_if_a_mark_lies_there(seed: int, bank: list[Sheet]) -> None:
    rng = np.random.default_rng(seed)
    before = rng.uniform(60, 180, (8, SIDE_PX, SIDE_PX)).astype(np.float32)
    luma = before.copy()
    label = marked(rng, luma, np.arange(8), bank)
    changed = np.abs(luma - before).max(axis=0) > 0
    cells = changed.reshape(len(label), CELL_PX, len(label), CELL_PX).any(axis=(1, 3))
    assert (label == 1).any()
    assert cells[label == 1].all() and not cells[label == 0].any()


def test_no_mark_is_drawn_where_nobody_could_tell_it_from_a_sign(bank: list[Sheet]) -> None:
    still = np.full((8, SIDE_PX, SIDE_PX), 100, np.float32)
    luma = still.copy()
    for seed in range(10):
        assert not marked(np.random.default_rng(seed), luma, np.zeros(8, int), bank).any()
    assert np.array_equal(luma, still)


def test_a_mark_is_not_judged_where_nothing_changes_around_it(bank: list[Sheet]) -> None:
    half = SIDE_PX // 2
    for seed in range(20):
        rng = np.random.default_rng(seed)
        luma = np.full((8, SIDE_PX, SIDE_PX), 100, np.float32)
        luma[:, :, half:] = rng.uniform(0, 255, (8, SIDE_PX, half))
        label = marked(rng, luma, np.zeros(8, int), bank)
        assert not (label[:, : half // 2 // CELL_PX] == 1).any()


def test_things_move_over_a_shot_and_leave_the_rest_as_it_is() -> None:
    rng = np.random.default_rng(2)
    footage = Footage([rng.integers(150, 256, (200, 200)).astype(np.uint8)], [])
    shot = np.full((8, SIDE_PX, SIDE_PX), 60, np.float32)
    out = with_things(rng, footage, shot)
    covered = out != shot
    assert 0.02 < covered.mean() < 0.9
    assert covered.any(axis=0).mean() > 1.1 * covered.mean()  # not always at the same place
    assert (shot == 60).all()


def test_an_example_has_the_form_that_the_network_takes(bank: list[Sheet]) -> None:
    rng = np.random.default_rng(1)
    picture = cv2.resize(rng.integers(0, 256, (30, 40)).astype(np.uint8), (400, 300))
    footage = Footage([picture], [rng.integers(0, 256, (9, 360, 640)).astype(np.uint8)])
    labels = []
    for _ in range(20):
        luma, label = example(rng, footage, bank, 6)
        assert luma.shape == (6, SIDE_PX, SIDE_PX) and luma.dtype == np.uint8
        assert label.shape == (SIDE_PX // CELL_PX,) * 2 and set(np.unique(label)) <= {-1, 0, 1}
        labels.append((label == 1).any())
    assert 3 < sum(labels) < 20
