"""Blur kernels of Real-ESRGAN's degradations (Wang et al. 2021, section 3.1 and 3.2).

All are [size, size], odd, of sum 1. Ranges are in config.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.superresolution.config import KERNELS, Range, Round

# Published options: odd sizes from 7 to 21 px.
SIZES = range(7, 22, 2)


class Dice:
    """Random numbers of one sample, from one generator in one order."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def chance(self, probability: float) -> bool:
        return torch.rand((), generator=self.generator).item() < probability

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator).item())

    def choice(self, probabilities: tuple[float, ...]) -> int:
        weights = torch.tensor(probabilities)
        return int(torch.multinomial(weights, 1, generator=self.generator).item())

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def coordinates(size: int) -> tuple[Tensor, Tensor]:
    """x and y of every pixel from the middle, px, [size, size]."""
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    return axis.expand(size, size), axis[:, None].expand(size, size)


def gaussian(
    size: int,
    sigma_x: float,
    sigma_y: float,
    angle: float = 0.0,
    beta: float = 1.0,
    plateau: bool = False,
) -> Tensor:
    """exp(-q^beta / 2), or with a plateau 1 / (1 + q^beta), q = c' S^-1 c; sigmas in px.

    Equations 2 and 3 of section 3.1: beta 1 is a Gaussian; S has the squared sigmas along axes
    that are turned by `angle` (radians).
    """
    x, y = coordinates(size)
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigma_x
    across = (-x * math.sin(angle) + y * math.cos(angle)) / sigma_y
    q = (along**2 + across**2) ** beta
    kernel = 1 / (1 + q) if plateau else torch.exp(-q / 2)
    return (kernel / kernel.sum()).float()


def sinc(size: int, cutoff: float) -> Tensor:
    """A circular low-pass, cutoff J1(cutoff r) / (2 pi r), which makes rings; section 3.2, eq. 6.

    cutoff: radians a px, at most pi. In the middle its limit, cutoff^2 / (4 pi).
    """
    x, y = coordinates(size)
    r = torch.sqrt(x**2 + y**2)
    r[size // 2, size // 2] = 1
    kernel = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return (kernel / kernel.sum()).float()


def draw_sinc(dice: Dice, size: int) -> Tensor:
    """Cutoffs as published: from pi/3 for kernels below 13 px, else from pi/5."""
    return sinc(size, dice.uniform(math.pi / (3 if size < 13 else 5), math.pi))


def draw_beta(dice: Dice, range_: Range) -> float:
    """As often below 1 as above, as published."""
    low, high = range_
    return dice.uniform(low, 1) if dice.chance(0.5) else dice.uniform(1, high)


def draw_kernel(dice: Dice, round_: Round) -> Tensor:
    """One kernel of a round's kinds."""
    size = SIZES[dice.integer(0, len(SIZES) - 1)]
    if dice.chance(round_.sinc):
        return draw_sinc(dice, size)
    kind = KERNELS[dice.choice(round_.kernels)]
    sigma_x = sigma_y = dice.uniform(*round_.sigma)
    angle = 0.0
    if kind.endswith("anisotropic"):
        sigma_y, angle = dice.uniform(*round_.sigma), dice.uniform(-math.pi, math.pi)
    beta = 1.0
    if kind.startswith("generalized"):
        beta = draw_beta(dice, round_.generalized_beta)
    elif kind.startswith("plateau"):
        beta = draw_beta(dice, round_.plateau_beta)
    return gaussian(size, sigma_x, sigma_y, angle, beta, plateau=kind.startswith("plateau"))
