"""How a clip moves, measured without weights. All take raw pixels uint8 [T, H, W, 3]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LUMA = torch.tensor([0.299, 0.587, 0.114])  # BT.601
FOREGROUND_LEVELS = 30  # from the median colour; as benchmarks/learning.py found by trying


def luma(clip: Tensor) -> Tensor:
    """Grey levels 0..255 [T, H, W], fp32."""
    return clip.float() @ LUMA


def frame_difference(clip: Tensor) -> float:
    """Mean absolute difference of successive frames in grey levels; 0 for a still or one frame."""
    grey = luma(clip)
    return float((grey[1:] - grey[:-1]).abs().mean()) if len(grey) > 1 else 0.0


def flicker(clip: Tensor) -> float:
    """Mean absolute difference of a frame from the mean of its neighbours, in grey levels.

    Ours, because it is 0 for what changes at an even rate, as a fade; a pixel that alternates
    between two levels gives their difference. NaN for fewer than three frames.
    """
    grey = luma(clip)
    if len(grey) < 3:
        return float("nan")
    return float((grey[1:-1] - (grey[:-2] + grey[2:]) / 2).abs().mean())


def motion_slope(clip: Tensor) -> tuple[float, float]:
    """Speed (x, y) in px a frame of what differs from the clip's median colour by 30 levels.

    The least-squares slope of the path of its centroid; (0, 0) where a frame shows nothing. For
    clips of one moving thing before a flat background.
    """
    pixels = clip.double()
    T, H, W, _ = clip.shape
    background = pixels.flatten(0, 2).median(0).values
    weight = ((pixels - background).abs().amax(-1) - FOREGROUND_LEVELS).clamp(min=0)
    mass = weight.sum((1, 2))
    if T < 2 or bool((mass == 0).any()):
        return 0.0, 0.0
    t = torch.arange(T, dtype=torch.float64) - (T - 1) / 2
    speed = []
    for axis, size in ((1, W), (2, H)):
        path = (weight.sum(axis) * torch.arange(size, dtype=torch.float64)).sum(1) / mass
        speed.append(float((path * t).sum() / t.square().sum()))
    return speed[0], speed[1]


def measures(clip: Tensor) -> dict[str, float]:
    """The measures above of one clip by name."""
    x, y = motion_slope(clip)
    return {
        "frame_difference": frame_difference(clip),
        "flicker": flicker(clip),
        "motion_px": float(np.hypot(x, y)),
    }
