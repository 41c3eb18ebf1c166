"""Frames -> shots, by the network of transitions; and hidden_cut, its score of any stretch."""

from __future__ import annotations

import bisect
from array import array
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from curation.decode.transitions import Judgement, TransitionFinder
from curation.media.frames import Timeline

if TYPE_CHECKING:
    import av


class TransitionTrack:
    """The score `hidden_cut`: the largest probability of a cut or transition inside a clip, 0..1.

    A track (tracks.py). The shots of a source are found from what it has seen.
    """

    def __init__(self) -> None:
        self.finder = TransitionFinder()
        self.times_s = array("d")

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray, gray: np.ndarray) -> None:
        self.times_s.append(now_s)
        self.finder.add(small)

    @cached_property
    def judgement(self) -> Judgement:
        """What was found of all frames; asked for when the last has come."""
        return self.finder.finish()

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        # Half a microsecond: times of stored clips went through a file.
        first, last = (bisect.bisect_left(self.times_s, t - 5e-7) for t in (start_s, end_s))
        score = self.judgement.hidden_cut(first, last) if first < last else None
        return {"hidden_cut": score}


class ShotFinder:
    """Finds shots while a video is decoded: frames [first, last) outside any transition.

    Shots need not touch. One is told as soon as what ends it is sure not to change, which is up to
    572 frames later. Those shorter than `min_scene_s` seconds are told of no more than the
    transitions beside them. `trim` as Judgement.shots has it.
    """

    def __init__(self, track: TransitionTrack, *, min_scene_s: float, trim: bool) -> None:
        self.track = track
        self.min_scene_s = min_scene_s
        self.trim = trim
        self.num_judged = 0  # of the frames that were looked at here
        self.settled = 0  # frame: all transitions before it are known
        self.open_from = 0  # the first frame of the shot whose end is not known
        self.num_shots = 0

    def add(self, timeline: Timeline, small: np.ndarray) -> list[tuple[int, int]]:
        """The shots that are known since the newest frame, which the track has seen."""
        judged = self.track.finder.num_judged
        if judged == self.num_judged:
            return []
        self.num_judged = judged
        quiet = self.track.finder.judged(self.settled).quiet()
        return self.settle(timeline, self.settled + quiet)

    def settle(self, timeline: Timeline, until: int) -> list[tuple[int, int]]:
        """The shots that end with a transition in the frames from `settled` to `until`."""
        shots = []
        for one in self.track.finder.judged(self.settled, until).transitions():
            end, begin = (self.settled + edge for edge in one.edges(trim=self.trim))
            shots += self.closed(timeline, end)
            self.open_from = begin
        self.settled = until
        return shots

    def closed(self, timeline: Timeline, end: int) -> list[tuple[int, int]]:
        """The shot that is open, ended before frame `end`; none where nothing is left of it."""
        first, last = self.open_from, end
        if self.trim and first < last:
            kept = self.track.finder.judged(first, last).trimmed(0, last - first)
            first, last = first + kept[0], first + kept[1]
        if first >= last or timeline.span_s(first, last) < self.min_scene_s - 1e-6:
            return []
        self.num_shots += 1
        return [(first, last)]

    def finish(self, timeline: Timeline) -> list[tuple[int, int]]:
        """The other shots; of a video without any the whole, for rules to judge."""
        count = len(self.track.judgement.cut)
        shots = self.settle(timeline, count)
        shots += self.closed(timeline, count)
        return shots or ([] if self.num_shots else [(0, count)])

    def settled_s(self, timeline: Timeline) -> float:
        """Seconds: no shot that is told later ends before this time."""
        return timeline.time_s(self.settled)
