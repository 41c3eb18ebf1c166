"""Clips of one thing that goes left or right, which of them are held out, which way a clip goes."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from training.config import Config
from training.evaluation.temporal import motion_slope

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230),
          "yellow": (230, 210, 40)}  # fmt: skip
SHAPES = ("square", "disc")
# Every shape and every colour is trained on, these never together: three of four colours a shape.
HELD_OUT = (("square", "yellow"), ("disc", "green"))
TRAINED = tuple(each for each in product(SHAPES, COLORS) if each not in HELD_OUT)
SPEED_PX = 3  # a frame
BACKGROUND = 110


def caption(shape: str, color: str, direction: int) -> str:
    """The direction first: the text tower is causal, and random, so that what comes late in a
    caption changes few of its 77 states."""
    return f"{'left' if direction < 0 else 'right'} goes a {color} {shape}"


def moving(shape: str, color: str, direction: int, config: Config) -> Tensor:
    """A clip uint8 [T, H, W, 3] of a thing that starts in the middle and goes left at -1."""
    T, H, W = config.num_frames, config.height, config.width
    clip = np.full((T, H, W, 3), BACKGROUND, np.uint8)
    y, x = np.mgrid[0:H, 0:W] + 0.5
    for t in range(T):
        dx, dy = x - W / 2 - direction * SPEED_PX * t, y - H / 2
        inside = dx**2 + dy**2 < 4.6**2 if shape == "disc" else np.maximum(abs(dx), abs(dy)) < 4
        clip[t][inside] = COLORS[color]
    return torch.from_numpy(clip)


def speed_px(clip: Tensor) -> float:
    """Horizontal speed in px a frame, left negative."""
    return motion_slope(clip)[0]


def share_right(clips: Tensor, directions: list[int]) -> float:
    """Share of clips that move as they should, at half the true speed or more."""
    right = [speed_px(c) * d >= SPEED_PX / 2 for c, d in zip(clips, directions, strict=True)]
    return sum(right) / len(right)


def color_of(clip: Tensor) -> str | None:
    """The name of the colour nearest to what differs from the background by 40 or more in any
    channel; None where nothing does."""
    pixels = clip.double().flatten(0, 2)
    thing = pixels[(pixels - BACKGROUND).abs().amax(1) >= 40]
    if not len(thing):
        return None
    mean = thing.mean(0)
    return min(COLORS, key=lambda name: (mean - mean.new_tensor(COLORS[name])).norm().item())
