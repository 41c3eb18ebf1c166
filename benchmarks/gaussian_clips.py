"""Gaussian clips, whose least possible loss is known: learning.py holds training against it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from model.diffusion import alpha_sigma
from training.config import Config
from training.data.batches import Sample
from training.data.orders import draw
from training.learning.losses import Objective


class Scaled:
    """Pixels times 4, so that Gaussian clips of unit variance fit into bytes up to 4 sigma."""

    channels, factor = 3, 1

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return pixels * 4

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 4


ROUNDING = (4 / 127.5) ** 2 / 12  # variance that writing a latent as a byte adds to it


def covariance(frames: int) -> Tensor:
    """Covariance of the 3 channels and T frames of a pixel, [3T, 3T]; pixels are independent.

    Two channels agree, frames follow each other (correlation 0.9): what a model that mixes no
    channels, or no frames, cannot reach.
    """
    channels = torch.tensor([[1.0, 0.8, 0], [0.8, 1, 0], [0, 0, 0.5]], dtype=torch.float64)
    t = torch.arange(frames, dtype=torch.float64)
    return torch.kron(channels, 0.9 ** (t[:, None] - t).abs())


def optimum(eigenvalues: Tensor, alpha: Tensor, prediction_type: str) -> Tensor:
    """Least mean squared error of any prediction, for each alpha [B], sigma^2 = 1 - alpha^2.

    Along an eigenvector of x_0's covariance with eigenvalue l, x = alpha x_0 + sigma e has
    variance V = alpha^2 l + sigma^2. All is Gaussian, so the best prediction of a target y is
    linear, cov(y, x) / V times x, with error var(y) - cov(y, x)^2 / V.

    epsilon: var = 1, cov = sigma; error 1 - sigma^2 / V = alpha^2 l / V.
    v = alpha e - sigma x_0: var = alpha^2 + sigma^2 l, cov = alpha sigma (1 - l);
        V var = l (alpha^4 + sigma^4) + alpha^2 sigma^2 (1 + l^2), and without cov^2 there is left
        l (alpha^4 + 2 alpha^2 sigma^2 + sigma^4) = l; error l / V.
    """
    squared = alpha[:, None] ** 2
    error = eigenvalues / (squared * eigenvalues + 1 - squared)
    return (error if prediction_type == "v_prediction" else squared * error).mean(1)


class Optimal:
    """The best denoiser of v for Gaussian clips, called as a U-Net is."""

    def __init__(self, cov: Tensor, objective: Objective) -> None:
        self.config = {"fps_conditioning": False}
        self.values, self.vectors = torch.linalg.eigh(cov)
        self.schedule = objective.schedule

    def __call__(self, x: Tensor, steps: Tensor, text: Tensor) -> SimpleNamespace:
        alpha, sigma = (each.flatten().double() for each in alpha_sigma(self.schedule, steps, x))
        alpha, sigma, values = alpha[:, None], sigma[:, None], self.values
        gain = alpha * sigma * (1 - values) / (alpha**2 * values + sigma**2)
        parts = torch.einsum("bnhw,nk->bkhw", x.double().flatten(1, 2), self.vectors)
        found = torch.einsum("bkhw,nk->bnhw", parts * gain[..., None, None], self.vectors)
        return SimpleNamespace(sample=found.reshape(x.shape))


def gaussian_samples(numbers: range, root: Tensor, config: Config) -> list[Sample]:
    """Clips with covariance root root^T, as bytes."""
    out = []
    for n in numbers:
        random = torch.Generator().manual_seed(n)
        pixels = config.height * config.width
        z = root @ torch.randn(len(root), pixels, generator=random, dtype=torch.float64)
        z = z.view(3, config.num_frames, config.height, config.width).permute(1, 2, 3, 0)
        raw = ((z / 4 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        out.append(Sample("gaussian", str(n), 0, "", raw, draw(0, "gaussian", 0, str(n))))
    return out


def bins_of(error: Tensor, best: Tensor, known: Tensor, variance: Tensor, steps: Tensor,
            bins: int = 5) -> list[dict[str, float]]:  # fmt: skip
    """Per range of timesteps: the excess over the optimum with its standard error, as shares of
    what there is to learn: the target's variance, which the prediction 0 leaves, less the optimum.
    1 is to have learned nothing, at every timestep, however little the noise leaves to learn:
    less than 3% of the variance in the last of five ranges, at two frames.

    The excess is measured against the optimal denoiser on the same draws, which has the closed
    form for its mean and takes nearly all of the noise away; `formula` is its distance from
    the closed form in standard errors.
    """
    rows = []
    for n in range(bins):
        here = (steps * bins).div(1000, rounding_mode="floor") == n
        scale, root = (variance - known)[here].mean(), here.sum().sqrt()
        excess, off = (error - best)[here], (best - known)[here]
        rows.append(
            {
                "optimum": known[here].mean().item(),
                "variance": variance[here].mean().item(),
                "excess": (excess.mean() / scale).item(),
                "standard_error": (excess.std() / root / scale).item(),
                "formula": (off.mean() / (off.std() / root)).item(),
            }
        )
    return rows


@torch.no_grad()
def measured(
    unet: Any, cov: Tensor, objective: Objective, samples: list[Sample]
) -> tuple[Tensor, ...]:
    """Error of each clip, of the optimal denoiser there, the closed form, the target's variance,
    the timestep."""
    steps = objective.timesteps([sample.draws.timestep for sample in samples])
    kept = torch.zeros(len(samples), dtype=torch.bool)
    best: Any = Optimal(cov, objective)
    error, optimal = (objective.errors(each, samples, steps, kept) for each in (unet, best))
    alpha = objective.schedule.alphas_cumprod[steps].double().sqrt()
    variance = alpha**2 + (1 - alpha**2) * best.values.mean()
    known = optimum(best.values, alpha, "v_prediction")
    return error.double(), optimal.double(), known, variance, steps.double()
