"""Finds where shots end: hard cuts and gradual transitions, told by a small network.

The network sees every frame at 32x18. Its first layers are formulas (how much each of 12 cells
differs from itself 1 to 48 frames before, how it correlates, whether it is a blend of itself before
and after: in a dissolve it is); convolutions over time judge them. Its 83 000 weights come with the
package (transitions.onnx); they were trained on transitions made over real shots, by
benchmarks/transition_training.py. What it finds and misses is in docs/scenes.md.
"""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = (32, 18)  # px, width and height, of what the network sees. Of the network
CELLS = (3, 4)  # rows and columns that are compared one by one. Of the network
CONTEXT, AHEAD = 84, 60  # frames before and after that a judgement needs: 48 and 24 are compared,
# 34 convolved. Of the network
# Frames judged at once. Ours: with their context, which is judged again, 1.28x the least work.
CHUNK = 512
SURE = 0.5  # probability from which a frame is a cut, or inside a transition. Measured
INSIDE = 0.1  # a sure transition goes on while its frames are at least this. Measured
# Frames; gradual transitions nearer than this are one. Ours: what lies between is no shot, 0.1 s.
APART = 3
MARGIN = 3  # frames kept off a gradual transition, whose ends mix 2 to 10%. Measured
# Grey levels; a blank frame's mean is beyond. Ours: video's black is 16 and its white 235, and
# coding moves them by a few.
DARK, BRIGHT = 24.0, 232.0
# Grey levels; the standard deviation of a blank frame at 32x18 is below. Ours: noise of 10 levels
# leaves 0.3 there, a line of white text a sixteenth of the height on black 8 (measured on 720p).
FLAT = 6.0
# Grey levels, mean step between frozen frames at 32x18. Ours: the noise of a still camera is above.
FROZEN = 0.05
# Frozen frames at an end of a shot that are cut off: half a second. Fewer are drawn on twos or move
# too slowly to tell, and a clip that begins off a keyframe has to be encoded: for 7 of them the
# cuts of the sample video took 3.4 s of CPU instead of 0.2 s.
FREEZE = 12
# Frozen frames on both sides of a change that make it the next slide. Ours: half a second at 24
# fps, less than anybody shows a slide for.
STILL = 12
# Grey levels, mean step to the next slide. Ours: a new line of text on one stays below.
NEXT = 1.0


@dataclass(frozen=True)
class Transition:
    """Frames [first, last) mix two shots; a hard cut has none: both are its new shot's first.

    probability: the largest inside, 0..1.
    """

    first: int
    last: int
    probability: float

    def edges(self, *, trim: bool) -> tuple[int, int]:
        """The frames where the shot before it ends and the next one begins.

        With `trim` what is beside a gradual transition is in neither; without it they touch.
        """
        if not trim:
            middle = (self.first + self.last) // 2
            return middle, middle
        margin = MARGIN if self.last > self.first else 0
        return self.first - margin, self.last + margin


def shrunken(small: np.ndarray) -> np.ndarray:
    """A small BGR picture as the network sees it: uint8 [18, 32, 3]."""
    return cv2.resize(small, SIZE, interpolation=cv2.INTER_AREA)


class TransitionFinder:
    """Collects, while a video is decoded, how likely each frame is a cut or inside a transition.

    `add` each frame's small BGR picture (analysis size) in order; `finish` after the last. Up to
    CHUNK + AHEAD frames wait: `num_judged` says how many have their probabilities. Of a frame that
    waits no longer 20 bytes stay.
    """

    def __init__(self) -> None:
        self.waiting: list[np.ndarray] = []  # from CONTEXT before the first that is not judged
        self.probabilities = array("f")  # of a cut and of inside, frame by frame
        self.levels = array("f")  # mean, deviation, step; grey levels
        self.num_judged = 0

    def add(self, small: np.ndarray) -> bool:
        """Take the newest frame; whether more frames have been judged."""
        seen = shrunken(small)
        mean, deviation = cv2.meanStdDev(cv2.cvtColor(seen, cv2.COLOR_BGR2GRAY))
        if not self.waiting:
            self.waiting = [seen] * CONTEXT
        step = cv2.norm(seen, self.waiting[-1], cv2.NORM_L1) / seen.size
        self.levels.extend((float(mean[0, 0]), float(deviation[0, 0]), step))
        self.waiting.append(seen)
        if len(self.waiting) < CONTEXT + CHUNK + AHEAD:
            return False
        self.judge(CHUNK)
        return True

    def judge(self, count: int) -> None:
        """Judge the next `count` frames, whose context is there."""
        [judged] = network().run(None, {"frames": np.stack(self.waiting)})
        told = np.array(judged[CONTEXT : CONTEXT + count], np.float32)
        before = min(self.num_judged, STILL + 1)
        steps = rows_of(self.levels, 3, self.num_judged - before)[:, 2]
        told[next_slides(steps)[before : before + count], 0] = 1.0
        self.probabilities.frombytes(told.tobytes())
        self.num_judged += count
        del self.waiting[:count]

    def finish(self) -> Judgement:
        """Judge the rest as if the last frame went on, and return what was found of all."""
        count = len(self.levels) // 3 - self.num_judged
        if count:
            self.waiting += [self.waiting[-1]] * (CONTEXT + count + AHEAD - len(self.waiting))
            self.judge(count)
        return self.judged()

    def judged(self, first: int = 0, last: int | None = None) -> Judgement:
        """What was found of frames [first, last), at most of the `num_judged` first ones."""
        last = self.num_judged if last is None else last
        cut, inside = rows_of(self.probabilities, 2, first, last).T
        return Judgement(cut, inside, rows_of(self.levels, 3, first, last))


def rows_of(numbers: array[float], width: int, first: int, last: int | None = None) -> np.ndarray:
    """Rows [first, last) of numbers stored row by row, copied: float32 [T, width]."""
    # A view that lived on would keep the array from growing.
    return np.frombuffer(numbers, np.float32).reshape(-1, width)[first:last].copy()


@cache
def network() -> Any:
    """The network, once per process; one thread, as the decode beside it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(__file__).with_name("transitions.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@dataclass
class Judgement:
    """Per frame: the probability of a cut before it and of being inside a transition, and levels.

    cut, inside: float32 [T], 0..1. levels: [T, 3], mean and standard deviation of the brightness
    and mean step from the frame before, in grey levels at 32x18.
    """

    cut: np.ndarray
    inside: np.ndarray
    levels: np.ndarray

    def transitions(self) -> list[Transition]:
        """All transitions in order, apart from each other."""
        gradual = runs(self.inside >= INSIDE, APART)
        found = [
            Transition(first, last, float(self.inside[first:last].max()))
            for first, last in gradual
            if self.inside[first:last].max() >= SURE
        ]
        taken = np.zeros(len(self.cut) + 1, bool)
        for one in found:
            taken[one.first : one.last + 1] = True
        for first, last in runs(self.cut >= SURE, 1):
            at = first + int(self.cut[first:last].argmax())
            if at and not taken[at]:
                found.append(Transition(at, at, float(self.cut[at])))
        return sorted(found, key=lambda one: one.first)

    def shots(self, *, trim: bool = True) -> list[tuple[int, int]]:
        """Frames [first, last) of every shot, in order; what is in no shot is a transition.

        With `trim` the frames beside a gradual transition, and black, white and (from FREEZE on)
        frozen ones at both ends of a shot are left out too. A shot of black or white alone is none;
        one that is frozen for half its time or more stays whole, for the rule `static` to judge.
        Without it shots touch: they are divided in the middle of a transition.
        """
        edges = [one.edges(trim=trim) for one in self.transitions()]
        starts, ends = [0, *(begin for _, begin in edges)], [*(end for end, _ in edges)]
        touched = zip(starts, [*ends, len(self.cut)], strict=True)
        spans = [(first, last) for first, last in touched if first < last]
        trimmed = [self.trimmed(*span) for span in spans] if trim else spans
        return [span for span in trimmed if span[0] < span[1]]

    def trimmed(self, first: int, last: int) -> tuple[int, int]:
        """A shot without black, white and frozen frames, and second cuts, at its ends."""
        while first + 1 < last and self.cut[first + 1] >= SURE:
            first += 1
        while first + 1 < last and self.cut[last - 1] >= SURE:
            last -= 1
        mean, deviation = self.levels[first:last, :2].T
        blank = (deviation < FLAT) & ((mean < DARK) | (mean > BRIGHT))
        first, last = whole_inside(~blank, first)
        still = self.levels[first + 1 : last, 2] < FROZEN  # frame i + 1 repeats frame i
        begin, end = whole_inside(~still, first)
        if 2 * (end - begin) <= last - first:
            return first, last
        opens, closes = begin - first >= FREEZE, last - end - 1 >= FREEZE
        return begin if opens else first, end + 1 if closes else last

    def quiet(self) -> int:
        """The last frame that is no part of a transition, nor are the 4 before it; 0 for none.

        What ends before it and what begins behind it are found alone as they are together.
        """
        busy = (self.cut >= SURE) | (self.inside >= INSIDE)
        if len(busy) < APART + 2:
            return 0
        near = np.lib.stride_tricks.sliding_window_view(busy, APART + 2).any(axis=1)
        calm = np.flatnonzero(~near)
        return int(calm[-1]) + APART + 1 if len(calm) else 0

    def hidden_cut(self, first: int, last: int) -> float:
        """The largest probability of a cut or transition inside frames [first, last), 0..1."""
        cut, inside = self.cut[first + 1 : last], self.inside[first:last]
        return float(max(cut.max(initial=0), inside.max(initial=0)))


def next_slides(steps: np.ndarray) -> np.ndarray:
    """The changes among frozen frames, bool [T]: the network overlooks those of dim slides."""
    changed = np.concatenate([np.ones(STILL + 1), steps[1:] >= FROZEN, np.ones(STILL)])
    near = np.lib.stride_tricks.sliding_window_view(changed, 2 * STILL + 1)
    return (near.sum(axis=1) == 1)[: len(steps)] & (steps >= NEXT)


def whole_inside(wanted: np.ndarray, first: int) -> tuple[int, int]:
    """From the first to behind the last wanted frame, counted from `first`; empty if none is."""
    at = np.flatnonzero(wanted)
    return (first + int(at[0]), first + int(at[-1]) + 1) if len(at) else (first, first)


def runs(there: np.ndarray, apart: int) -> list[tuple[int, int]]:
    """Frames [first, last) of the runs of True; runs less than `apart` frames apart are one."""
    at = np.flatnonzero(there)
    if not len(at):
        return []
    breaks = np.flatnonzero(np.diff(at) > apart) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(at, breaks)]


def split_evenly(times_s: np.ndarray, first: int, last: int, max_s: float) -> list[tuple[int, int]]:
    """Frames [first, last) in as few parts of one length as are at most `max_s` seconds.

    times_s: [T + 1], seconds of every frame and of the end.
    """
    length_s = times_s[last] - times_s[first]
    parts = max(int(np.ceil(length_s / max_s - 1e-9)), 1)
    wanted = times_s[first] + length_s * np.arange(1, parts) / parts
    bounds = [first, *(int(i) for i in np.searchsorted(times_s, wanted - 5e-7)), last]
    return [(a, b) for a, b in itertools.pairwise(bounds) if a < b]
