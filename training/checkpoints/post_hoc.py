"""Post-hoc EMA: two power-law averages that are kept, and any profile between them afterwards.

Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696,
section 3. The average at step T weighs the weights of step t with (gamma + 1) t^gamma /
T^(gamma + 1); sigma_rel is the spread of that profile over T.

RUN/snapshots/step-00000100/  both averages at a step, in float16 as theirs
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curation.settings import ConfigError
from model import SpaceTimeUNet
from training.checkpoints.folders import STEP, Ema
from training.checkpoints.saving import (
    files_of,
    own_of,
    read,
    read_unet,
    reader_of,
    together,
    write_shards,
)
from training.parallel import Team

SIGMAS = (0.05, 0.10)  # of the two that are kept: theirs
MOST = 0.28  # of a spread: a profile that does not grow, gamma = 0, has 1 / sqrt(12)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a profile: the largest root of (g + 2)^2 (g + 3) = (g + 1) / sigma_rel^2.

    >>> round(gamma_of(0.05), 2), round(gamma_of(0.10), 2)
    (16.97, 6.94)
    """
    square = sigma_rel**-2
    return float(max(np.roots([1, 7, 16 - square, 12 - square]).real))


def decay_of(gamma: float, step: int) -> float:
    """What an average keeps of itself at a step, counted from 1; at the first, nothing.

    So the average at step T weighs the weights of step t with the integral of the profile over
    [t - 1, t]: it is exactly that of weights which stay constant during a step.
    """
    return (1 - 1 / step) ** (gamma + 1)


class PowerAverages:
    """The two averages of the trained parameters, sharded as they: an Ema with another decay."""

    def __init__(self, unet: SpaceTimeUNet) -> None:
        self.both = [Ema(unet, 0.0) for _ in SIGMAS]

    @torch.no_grad()
    def update(self, unet: SpaceTimeUNet, step: int) -> None:
        """Take in the weights of a step, counted from 1."""
        for sigma, ema in zip(SIGMAS, self.both, strict=True):
            decay = decay_of(gamma_of(sigma), step)
            for average, parameter in ema.pairs(unet):
                average.lerp_(parameter, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """By the names that a checkpoint has for them."""
        return {
            f"power{n}.{name}": average
            for n, ema in enumerate(self.both)
            for name, average in ema.averages.items()
        }


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """The inner product of two profiles (step, gamma), the integral of their product."""
    (t, g), (u, h) = one, other
    logs = (g + h + 1) * math.log(min(t, u)) - (g + 1) * math.log(t) - (h + 1) * math.log(u)
    return (g + 1) * (h + 1) / (g + h + 1) * math.exp(logs)


def coefficients(
    kept: Sequence[tuple[float, float]], wanted: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Weights of kept profiles (step, gamma) whose sum is nearest to a wanted one, in the mean
    square over steps; and the distance that is left, over the wanted one's size."""
    gram = np.array([[overlap(a, b) for b in kept] for a in kept])
    right = np.array([overlap(a, wanted) for a in kept])
    weights = np.linalg.lstsq(gram, right, rcond=1e-13)[0]
    size = overlap(wanted, wanted)
    left = size - 2 * weights @ right + weights @ gram @ weights
    return weights, math.sqrt(max(0.0, float(left)) / size)


def reconstruct(checkpoint: Path, sigma_rel: float) -> tuple[SpaceTimeUNet, float]:
    """The U-Net of a checkpoint's step averaged with a profile of this spread, and how far the
    profile that could be made is from it. Uses the checkpoint's two averages and all snapshots
    before; raises ConfigError."""
    if not 0 < sigma_rel <= MOST:
        raise ConfigError(f"--ema {sigma_rel}: give a spread above 0 and up to {MOST}")
    there = reader_of(checkpoint).read_metadata().state_dict_metadata
    names = [name.removeprefix("power0.") for name in there if name.startswith("power0.")]
    run, last = checkpoint.parents[1], step_of(checkpoint)
    if not names:
        raise ConfigError(f"--ema: {run} was trained without --set post_hoc_ema=true")
    found = run / "snapshots"
    folders = (
        [path for path in found.iterdir() if STEP.fullmatch(path.name)] if found.is_dir() else []
    )
    folders = sorted((path for path in folders if step_of(path) < last), key=step_of)
    folders.append(checkpoint)
    gammas = [gamma_of(sigma) for sigma in SIGMAS]
    kept = [(step_of(path), gamma) for path in folders for gamma in gammas]
    weights, left = coefficients(kept, (last, gamma_of(sigma_rel)))
    unet = read_unet(checkpoint, "raw")
    own = dict(unet.named_parameters())
    sums = {name: torch.zeros(own[name].shape, dtype=torch.float64) for name in names}
    for n, folder in enumerate(folders):
        part = {f"power{k}.{name}": torch.empty(own[name].shape)
                for k in range(len(SIGMAS)) for name in names}  # fmt: skip
        read(reader_of(folder), part)
        for key, tensor in part.items():
            kind, _, name = key.partition(".")
            weight = weights[len(SIGMAS) * n + int(kind.removeprefix("power"))]
            sums[name].add_(tensor.double(), alpha=float(weight))
    with torch.no_grad():
        for name, tensor in sums.items():
            own[name].copy_(tensor)
    return unet, left


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def take_snapshot(averages: PowerAverages, team: Team) -> tuple[dict[str, Tensor], dict[str, int]]:
    """This rank's part of both averages in main memory, and the files of all ranks' parts."""
    every = averages.tensors()
    half = {
        name: tensor.contiguous().to("cpu", torch.float16, copy=True)
        for name, tensor in own_of(every, team).items()
    }
    return half, files_of(every)


def write_snapshot(
    run: Path, step: int, part: tuple[dict[str, Tensor], dict[str, int]], team: Team
) -> None:
    """Write one, in the place of what a killed run left of that step."""
    target = run / "snapshots" / f"step-{step:08d}"
    written = target.with_name(f".tmp-{target.name}")

    def make() -> None:
        shutil.rmtree(written, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        written.mkdir(parents=True)

    def rename() -> None:
        written.rename(target)

    failure = f"snapshot {target} was not written"
    together(make if team.first else None, failure, team)
    together(lambda: write_shards(written, *part, team), failure, team)
    together(rename if team.first else None, failure, team)
