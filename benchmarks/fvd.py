"""Does FVD see what people see? Real clips against themselves, spoilt in known ways.

    python benchmarks/fvd.py VIDEO... [--clips 32] [--i3d FILE] [--json]

Windows of 16 frames at 8 a second are spread over the videos. Their FVD to themselves is 0; then
they are put under noise, blurred, their frames put in random order, and held still. Bars: the
distance grows with noise, with blur and with disorder, and stillness costs. Exit code 1: a bar is
missed. --halves measures one half of the clips against the other half instead, spoilt likewise,
without bars: with few clips that is the distance of what they show (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from training.data.videos import SampleShape, read_frames
from training.evaluation.fvd import fvd
from training.evaluation.i3d import load_i3d, to_i3d
from training.evaluation.temporal import measures

SAMPLING = SampleShape(num_frames=16, height=192, width=344, fps=8)


def noise(levels: float) -> Callable[[Tensor], Tensor]:
    def spoil(clip: Tensor) -> Tensor:
        drawn = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
        return (clip + levels * drawn).round().clamp(0, 255).to(torch.uint8)

    return spoil


def blur(sigma_px: float) -> Callable[[Tensor], Tensor]:
    def spoil(clip: Tensor) -> Tensor:
        size = 2 * round(3 * sigma_px) + 1
        return gaussian_blur(clip.permute(0, 3, 1, 2), [size, size], [sigma_px] * 2).permute(
            0, 2, 3, 1
        )

    return spoil


def shuffled(clip: Tensor) -> Tensor:
    return clip[torch.randperm(len(clip), generator=torch.Generator().manual_seed(0))]


def still(clip: Tensor) -> Tensor:
    return clip[:1].expand_as(clip)


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda clip: clip,
    "noise 10": noise(10),
    "noise 40": noise(40),
    "blur 1.5": blur(1.5),
    "blur 4": blur(4),
    "frames shuffled": shuffled,
    "still": still,
}
GROWS = [("itself", "noise 10", "noise 40"), ("itself", "blur 1.5", "blur 4"),
         ("itself", "frames shuffled"), ("itself", "still")]  # fmt: skip


def windows(videos: list[Path], count: int) -> list[Tensor]:
    """Clips uint8 [T, H, W, 3], as many of each video as of the others."""
    each = -(-count // len(videos))
    clips = []
    for video in videos:
        media = video.read_bytes()
        for n in range(each):
            clips.append(torch.from_numpy(read_frames(media, SAMPLING, (n + 0.5) / each)))
    return clips[:count]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--halves", action="store_true")
    parser.add_argument("--i3d", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    network = load_i3d(given.i3d)
    clips = windows(given.videos, given.clips)

    def features(chosen: list[Tensor]) -> np.ndarray:
        return torch.cat([network.network(to_i3d(clip[None])) for clip in chosen]).numpy()

    started = time.process_time()
    chosen, other = (clips[::2], clips[1::2]) if given.halves else (clips, clips)
    real = features(chosen)
    print(f"{network.label}, {len(chosen)} real clips against {len(other)}", flush=True)
    found: dict[str, float] = {"itself": fvd(real, real)}
    print(f"{'itself':16} {found['itself']:.2e}", flush=True)
    for name, spoil in SPOILT.items():
        if name == "as it is" and not given.halves:
            continue
        made = [spoil(clip) for clip in other]
        found[name] = fvd(real, features(made))
        moves = [measures(clip) for clip in made]
        told = ", ".join(f"{k} {np.mean([m[k] for m in moves]):.2f}" for k in moves[0])
        print(f"{name:16} {found[name]:8.1f}   {told}", flush=True)
    missed = [] if given.halves else [chain for chain in GROWS
              if any(found[a] >= found[b] for a, b in pairwise(chain))]  # fmt: skip
    print(f"{time.process_time() - started:.0f} CPU s; bars missed: {missed or 'none'}")
    if given.json:
        print(json.dumps(found))
    sys.exit(bool(missed or found["itself"] > 1e-6))


if __name__ == "__main__":
    main()
