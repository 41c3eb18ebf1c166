#!/usr/bin/env python3
"""Does FVD see what people see? Real clips against themselves and against others, spoilt.

    python benchmarks/fvd.py VIDEO... [--clips 24] [--i3d FILE] [--json]

Videos are cut into windows of 16 frames at 8 a second that do not overlap; of these, drawn at
random, `--clips` are A and as many others B. B is put under noise, blurred, its frames are put in
random order, or held still. Then FVD is measured twice: of B against B spoilt (the same clips), and
of A against B spoilt (other clips, as a model's are), each at several N with the line over 1/N.
Exit code 1: the distance to the same clips does not grow with noise, blur, disorder and stillness,
or that of a set to itself is not 0. What other clips say is printed and judged by nobody: with few
clips it is the distance of what they show (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from training.data.videos import REFERENCES, BadVideoError, SampleShape, header_of, read_frames
from training.evaluation.fvd import DRAWS, SHARES, Extrapolation, bootstrap, extrapolate, fvd
from training.evaluation.i3d import load_i3d, to_i3d

SAMPLING = SampleShape(num_frames=16, height=192, width=344, fps=8)
WINDOW_S = SAMPLING.num_frames / SAMPLING.fps


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
    "shuffled": shuffled,
    "still": still,
}
GROWS = [("as it is", "noise 10", "noise 40"), ("as it is", "blur 1.5", "blur 4"),
         ("as it is", "shuffled"), ("as it is", "still")]  # fmt: skip


def windows(video: Path) -> list[tuple[Path, float]]:
    """(video, start in [0, 1) as `read_frames` takes it) of every whole window, side by side."""
    import av

    header_of(video)
    with av.open(str(video)) as container:
        length_s = float(container.duration or 0) / av.time_base
    # Of the room that a start is a share of; a little less, as the last frame's time is a guess.
    room_s = length_s - (SAMPLING.num_frames - 1) / SAMPLING.fps - 0.05
    count = int((room_s - 1 / SAMPLING.fps) // WINDOW_S) + 1 if length_s > WINDOW_S else 0
    if not count:
        print(f"{video.name}: {length_s:.1f} s, shorter than a window")
    return [(video, n * WINDOW_S / room_s) for n in range(count)]


def paired(real: np.ndarray, made: np.ndarray) -> Extrapolation:
    """As `extrapolate`, but a subset holds the same clips of both sets."""
    rng = np.random.default_rng(0)
    counts = [max(2, round(share * len(real))) for share in SHARES]
    values = []
    for n in counts:
        chosen = [rng.choice(len(real), n, replace=False) for _ in range(DRAWS)]
        values.append(float(np.mean([fvd(real[rows], made[rows]) for rows in chosen])))
    slope, at_infinity = np.polyfit(1 / np.array(counts), values, 1)
    return Extrapolation(counts, values, float(at_infinity), float(slope))


def shown(found: Extrapolation) -> str:
    """At the fewest, half and all of the clips, and at infinity."""
    by_n = [f"{found.values[n]:.1f}".rjust(8) for n in (0, 2, -1)]
    return "".join(by_n) + f"{found.at_infinity:.1f}".rjust(8)


def drawn(videos: list[Path], count: int) -> list[Tensor]:
    """`count` clips uint8 [T, H, W, 3], at random (seed 0) among the windows of all videos."""
    every = [window for video in videos for window in windows(video)]
    clips: list[Tensor] = []
    used = dict.fromkeys(videos, 0)
    for n in np.random.default_rng(0).permutation(len(every)):
        video, start = every[n]
        if len(clips) == count:
            break
        try:
            frames = read_frames(video.read_bytes(), SAMPLING, start, REFERENCES)
        except BadVideoError as error:
            print(f"left out, a window of {video.name}: {error}")
            continue
        clips.append(torch.from_numpy(frames))
        used[video] += 1
    if len(clips) < count:
        sys.exit(f"{len(clips)} windows in these videos: give --clips {len(clips) // 2}, or more")
    told = ", ".join(f"{number} of {video.name}" for video, number in used.items())
    print(f"{count} of {len(every)} windows: {told}", flush=True)
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--clips", type=int, default=24, help="in each of the two sets")
    parser.add_argument("--i3d", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    network = load_i3d(given.i3d)
    started = time.process_time()
    clips = drawn(given.videos, 2 * given.clips)

    def features(chosen: list[Tensor]) -> np.ndarray:
        return torch.cat([network.network(to_i3d(clip[None])) for clip in chosen]).numpy()

    a, b = (features(half) for half in (clips[::2], clips[1::2]))
    ns = [paired(b, b).counts[n] for n in (0, 2, -1)]
    head = "".join(f"{n}".rjust(8) for n in [*ns, "inf"])
    print(f"{network.label} {network.sha256[:8]}, torch {torch.__version__}, N {len(a)}\n"
          f"{'':10}{'same clips, N':>16}{'other clips, N':>32}\n{'':10}{head}  {head}  95%",
          flush=True)  # fmt: skip
    table = {}
    for name, spoil in SPOILT.items():
        made = b if name == "as it is" else features([spoil(clip) for clip in clips[1::2]])
        same, other, interval = paired(b, made), extrapolate(a, made), bootstrap(a, made)
        table[name] = {"same": asdict(same), "other": asdict(other), "interval": interval}
        print(f"{name:10}{shown(same)}  {shown(other)}  [{interval[0]:.1f}, {interval[1]:.1f}]",
              flush=True)  # fmt: skip
    values = {name: each["same"]["values"][-1] for name, each in table.items()}
    missed = [chain for chain in GROWS if any(values[x] >= values[y] for x, y in pairwise(chain))]
    print(f"{time.process_time() - started:.0f} CPU s; bars missed: {missed or 'none'}")
    if given.json:
        print(json.dumps(table))
    sys.exit(bool(missed or abs(values["as it is"]) > 1e-6))


if __name__ == "__main__":
    main()
