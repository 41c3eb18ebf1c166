"""Shots of pictures whose transitions are known to the frame, and what is trimmed off them."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.decode import transitions
from curation.decode.transitions import (
    CHUNK,
    MARGIN,
    Judgement,
    Transition,
    TransitionFinder,
    next_slides,
    runs,
    split_evenly,
)

WIDTH, HEIGHT = 256, 144


def discs(seed: int, count: int, step_px: float = 0.25) -> np.ndarray:
    """A camera that pans over discs that hide one another: uint8 [count, 144, 256, 3].

    Discs of every size are the simplest model with the edges of natural pictures (Lee, Mumford and
    Huang 2001, "dead leaves").
    """
    rng = np.random.default_rng(seed)
    picture = np.zeros((HEIGHT + 20, WIDTH + count, 3), np.uint8)
    for radius in np.sort(5 / rng.uniform(0.05, 1, 200))[::-1]:
        at = (int(rng.integers(picture.shape[1])), int(rng.integers(picture.shape[0])))
        colour = rng.uniform(0, 255, 3).tolist()
        cv2.circle(picture, at, int(radius), colour, -1, cv2.LINE_AA)
    moves = [np.array([[1, 0, -step_px * i], [0, 1, 0]]) for i in range(count)]
    return np.stack([cv2.warpAffine(picture, move, (WIDTH, HEIGHT)) for move in moves])


def mixed(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """A dissolve from the first to the second, both moving on."""
    share = ((np.arange(len(one)) + 1) / (len(one) + 1))[:, None, None, None]
    return (one * (1 - share) + two * share).astype(np.uint8)


def judged(frames: np.ndarray) -> Judgement:
    finder = TransitionFinder()
    for frame in frames:
        finder.add(frame)
    return finder.finish()


def test_a_hard_cut_is_found_at_its_frame() -> None:
    found = judged(np.concatenate([discs(1, 50), discs(2, 61), discs(3, 40)]))
    assert [(one.first, one.last) for one in found.transitions()] == [(50, 50), (111, 111)]
    assert found.shots() == [(0, 50), (50, 111), (111, 151)]
    assert found.hidden_cut(0, 151) > 0.5
    assert found.hidden_cut(50, 111) < 0.5


@pytest.mark.parametrize("length", [6, 12, 24, 48])
def test_no_shot_holds_a_frame_of_a_dissolve(length: int) -> None:
    one, two = discs(4, 60 + length), discs(5, 60 + length)
    frames = np.concatenate([one[:60], mixed(one[60:], two[:length]), two[length:]])
    (first, end), (begin, last) = judged(frames).shots()
    assert first == 0 and last == len(frames)
    assert 48 <= end <= 61 and 59 + length <= begin <= 72 + length


def test_a_fade_through_black_leaves_two_shots() -> None:
    one, two = discs(6, 70), discs(7, 70)
    share = np.linspace(1, 0, 12)[:, None, None, None]
    out, back = (one[58:] * share).astype(np.uint8), (two[:12] * share[::-1]).astype(np.uint8)
    frames = np.concatenate([one[:58], out, np.zeros_like(out[:5]), back, two[12:]])
    (first, end), (begin, last) = judged(frames).shots()
    assert (first, last) == (0, len(frames))
    assert 48 <= end <= 60 and 85 <= begin <= 97


def test_a_photographers_flash_is_no_cut() -> None:
    frames = discs(8, 90)
    frames[40:42] = np.clip(frames[40:42] * 0.4 + 150, 0, 255).astype(np.uint8)
    assert judged(frames).transitions() == []


def test_a_long_video_is_judged_as_it_comes() -> None:
    """Across the bounds of what is judged at once nothing is lost, doubled or moved."""
    bounds = [0, 130, CHUNK - 2, CHUNK + 1, CHUNK + 150, 2 * CHUNK + 90]
    shots = [discs(10 + i, b - a) for i, (a, b) in enumerate(itertools.pairwise(bounds))]
    finder = TransitionFinder()
    news = [finder.add(frame) for frame in np.concatenate(shots)]
    # A chunk is judged when the 60 frames behind it are there, and two are.
    assert sum(news) == 2 and finder.num_judged == 2 * CHUNK
    assert [one.first for one in finder.judged().transitions()][:1] == [130]
    found = finder.finish()
    assert len(found.cut) == len(found.levels) == bounds[-1]
    assert {130, CHUNK + 1, CHUNK + 150} <= {one.first for one in found.transitions()}


def test_a_video_of_one_frame_is_one_shot() -> None:
    assert judged(discs(0, 1)).shots() == [(0, 1)]
    assert TransitionFinder().finish().shots() == []


def told(cut: dict[int, float], inside: dict[int, float], count: int = 100) -> Judgement:
    """A judgement of moving pictures, with probabilities at some frames."""
    found = Judgement(np.zeros(count), np.zeros(count), np.tile([100.0, 50.0, 5.0], (count, 1)))
    for at, probability in cut.items():
        found.cut[at] = probability
    for at, probability in inside.items():
        found.inside[at] = probability
    return found


def test_a_transition_is_as_long_as_it_may_be() -> None:
    inside = {30: 0.05, 31: 0.3, 32: 0.9, 33: 0.05, 34: 0.4, 60: 0.4}
    found = told({10: 0.7, 11: 0.6, 33: 0.9, 80: 0.45}, inside)
    assert found.transitions() == [Transition(10, 10, 0.7), Transition(31, 35, 0.9)]
    # Of two sure cuts side by side the shots keep off both.
    assert found.shots() == [(0, 10), (11, 31 - MARGIN), (35 + MARGIN, 100)]
    assert found.shots(trim=False) == [(0, 10), (10, 33), (33, 100)]
    assert found.hidden_cut(10, 31) == pytest.approx(0.6)  # a cut before the first frame is outside
    assert found.hidden_cut(40, 100) == pytest.approx(0.45)


def test_black_white_and_frozen_ends_are_trimmed() -> None:
    found = told({50: 1.0, 130: 1.0}, {}, 180)
    found.levels[:7, :2] = (16.0, 1.0)  # black
    found.levels[44:50, :2] = (250.0, 2.0)  # white
    found.levels[51:63, 2] = 0.0  # frames 50 to 62 are one picture
    found.levels[118:130, 2] = 0.0  # 117 to 129 too
    found.levels[80:95, 2] = 0.0  # a pause amid a shot stays
    found.levels[131:142, 2] = 0.0  # and so do 11 repeated frames at an end
    found.levels[169:, 2] = 0.0
    assert found.shots() == [(7, 44), (62, 118), (130, 180)]


def test_a_still_shot_stays_and_a_black_one_goes() -> None:
    found = told({40: 1.0}, {})
    found.levels[1:40, 2] = 0.0
    found.levels[40:] = (16.0, 1.0, 0.0)
    assert found.shots() == [(0, 40)]


def test_the_next_dim_slide_is_a_cut_and_a_stutter_is_none() -> None:
    steps = np.zeros(100)
    steps[40] = 1.5
    assert np.flatnonzero(next_slides(steps)).tolist() == [40]
    steps[30] = 0.2  # something moves
    assert not next_slides(steps).any()
    steps[:] = np.tile([1.5, 0.0, 0.0, 0.0, 0.0], 20)
    assert not next_slides(steps).any()
    assert not next_slides(np.full(3, 9.0)).any()


@pytest.mark.parametrize("chunk", [5, 40, CHUNK])
def test_a_dim_slide_is_found_in_any_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "CHUNK", chunk)
    slides = np.full((120, HEIGHT, WIDTH, 3), 20, np.uint8)
    slides[50:, 40:60, 40:200] = 40  # a line of text
    assert [one.first for one in judged(slides).transitions()] == [50]


def test_runs_close_together_are_one() -> None:
    there = np.zeros(20, bool)
    there[[2, 3, 6, 11]] = True
    assert runs(there, 3) == [(2, 7), (11, 12)]
    assert runs(there, 1) == [(2, 4), (6, 7), (11, 12)]
    assert runs(there[:2], 1) == []


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 0.2), min_size=1, max_size=200), st.floats(0.5, 20), st.integers(0, 50)
)
def test_long_takes_are_split_evenly(steps_s: list[float], max_s: float, first: int) -> None:
    times_s = np.concatenate([[0], np.cumsum(steps_s)])
    first, last = min(first, len(steps_s) - 1), len(steps_s)
    parts = split_evenly(times_s, first, last, max_s)
    assert [a for a, _ in parts] == [first, *(b for _, b in parts[:-1])] and parts[-1][1] == last
    length_s = times_s[last] - times_s[first]
    assert len(parts) <= int(np.ceil(length_s / max_s)) + 1
    longest = max(times_s[b] - times_s[a] for a, b in parts)
    assert longest <= length_s / max(int(np.ceil(length_s / max_s - 1e-9)), 1) + 0.2 + 1e-6


def test_a_fade_at_both_ends_leaves_the_shot_between() -> None:
    found = told({}, {at: 0.9 for at in (1, 2, 3, 4, 96, 97, 98)})
    assert found.shots() == [(5 + MARGIN, 96 - MARGIN)]
