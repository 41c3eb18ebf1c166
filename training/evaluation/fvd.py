"""Fréchet Video Distance from features: the distance, its bias with N, and its spread.

FVD (Unterthiner et al. 2018, https://arxiv.org/abs/1812.01717) is the Fréchet distance of two
Gaussians fitted to the features of real and of generated clips. All of it is in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Covariance = Literal["N", "N-1"]
# Of N, for the fit over 1/N. Ours: even steps, from where a quarter of the clips are left.
SHARES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
DRAWS = 8  # subsets at each share, averaged. Ours: about a third of the noise of one
RESAMPLES = 100  # of the bootstrap. Ours: 100 of 400 features take about 20 s on one core
LEVEL = 0.95


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D]."""

    mean: np.ndarray
    covariance: np.ndarray


def checked(features: np.ndarray) -> np.ndarray:
    """Features [N, D] as float64; ValueError for fewer than two clips, NaN or infinity."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features are [N, D] with N >= 2, not {list(features.shape)}")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity")
    return features.astype(np.float64)


def fit(features: np.ndarray, divisor: Covariance = "N") -> Gaussian:
    """The Gaussian of features [N, D].

    divisor: of the covariance; StyleGAN-V and cd-fvd divide by N, np.cov by N-1.
    """
    features = checked(features)
    mean = features.mean(0)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / (len(features) - (divisor == "N-1")))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and Landau 1982).

    With symmetric roots R1, R2 from eigenvalues, (S1 S2)^(1/2) has the trace of
    (R1 S2 R1)^(1/2), the sum of the singular values of R1 R2. Neither rank nor rounding makes
    these complex, no root is taken of a small eigenvalue's rounding error, and no matrix root of
    SciPy is needed. Fewer clips than features are no trouble: FVD(x, x) stays under 1e-6.
    """
    crossed = np.linalg.svd(root(a.covariance) @ root(b.covariance), compute_uv=False).sum()
    shift = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(shift @ shift + traces - 2 * crossed)


def root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a covariance [D, D]."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def fvd(real: np.ndarray, generated: np.ndarray, divisor: Covariance = "N") -> float:
    """The distance of features [N, D] of real clips to those [M, D] of generated ones.

    `frechet_distance` of both fits without forming covariances: with centred features
    X = Q R / sqrt(N) the roots' product has the singular values of R1 R2^T, which is small where
    there are fewer clips than features, and keeps twice the digits.
    """
    (m1, R1), (m2, R2) = factor(real, divisor), factor(generated, divisor)
    crossed = np.linalg.svd(R1 @ R2.T, compute_uv=False).sum()
    shift = m1 - m2
    return float(shift @ shift + (R1**2).sum() + (R2**2).sum() - 2 * crossed)


def factor(features: np.ndarray, divisor: Covariance) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and R [min(N, D), D] with covariance R^T R."""
    features = checked(features)
    mean = features.mean(0)
    R = np.linalg.qr(features - mean, mode="r")
    return mean, R / np.sqrt(len(features) - (divisor == "N-1"))


@dataclass(frozen=True)
class Extrapolation:
    """FVD against the number of clips, and where the line over 1/N meets N = infinity.

    `at_infinity` can be negative where two sets hardly differ: it is an estimate.
    """

    counts: list[int]
    values: list[float]
    at_infinity: float
    slope: float


def extrapolate(
    real: np.ndarray, generated: np.ndarray, divisor: Covariance = "N", seed: int = 0
) -> Extrapolation:
    """FVD at several numbers of clips, fitted by a + b / N.

    The bias of a Fréchet distance falls as 1/N (Chong and Forsyth 2020,
    https://arxiv.org/abs/1911.07023: FID at infinity). Both sets are cut to the same share; with
    sets of two sizes N is their harmonic mean.
    """
    rng = np.random.default_rng(seed)
    counts: list[int] = []
    values: list[float] = []
    for share in SHARES:
        n, m = (max(2, round(share * len(features))) for features in (real, generated))
        drawn = [
            fvd(
                real[rng.choice(len(real), n, replace=False)],
                generated[rng.choice(len(generated), m, replace=False)],
                divisor,
            )
            for _ in range(DRAWS if share < 1 else 1)
        ]
        counts.append(round(2 * n * m / (n + m)))
        values.append(float(np.mean(drawn)))
    slope, at_infinity = np.polyfit(1 / np.array(counts), values, 1)
    return Extrapolation(counts, values, float(at_infinity), float(slope))


def bootstrap(
    real: np.ndarray, generated: np.ndarray, divisor: Covariance = "N", seed: int = 0
) -> tuple[float, float]:
    """A 95% interval around the FVD of these N: what other clips of the same kind would give.

    A resample repeats clips, so that its own bias is about twice as large; the spread of the
    resamples is therefore laid around the value, not around their mean.
    """
    rng = np.random.default_rng(seed)
    value = fvd(real, generated, divisor)
    resampled = [
        fvd(real[rng.integers(0, len(real), len(real))],
            generated[rng.integers(0, len(generated), len(generated))], divisor)
        for _ in range(RESAMPLES)
    ]  # fmt: skip
    return around(value, resampled)


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """A bootstrapped 95% interval of a mean, as for the CLIPSIM of prompts."""
    rng = np.random.default_rng(seed)
    array = np.asarray(values, dtype=np.float64)
    drawn = rng.integers(0, len(array), (1000, len(array)))
    return around(float(array.mean()), array[drawn].mean(1))


def around(value: float, resampled: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The quantiles of resamples about their mean, laid about a value."""
    spread = np.asarray(resampled) - np.mean(resampled)
    low, high = np.quantile(spread, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(value + low), float(value + high)
