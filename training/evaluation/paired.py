"""Two ways of training beside each other, seed by seed: what their differences say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import fmean, stdev

# Student's t, two-sided 95%, for 1 to 30 degrees of freedom (any table of it). Beyond them the
# last one stays: at most 4% too wide.
STUDENT_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95% interval of the mean; None for fewer than two values.

    >>> low, high = interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = STUDENT_95[min(len(values) - 1, 30) - 1] * stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided exact p that the mean of differences is 0: the share of all 2^n ways to flip their
    signs that give a mean at least as far from 0. At least 2 / 2^n: six pairs give 0.03125.

    >>> sign_flip_p([1.0, 1.0, 1.0]), sign_flip_p([1.0, -1.0])
    (0.25, 1.0)
    """
    found = abs(math.fsum(differences))
    # A sum in another order may differ in its last digits.
    least = found - 1e-12 * math.fsum(map(abs, differences))
    flips = product((1, -1), repeat=len(differences))
    as_far = sum(
        abs(math.fsum(s * x for s, x in zip(signs, differences, strict=True))) >= least
        for signs in flips
    )
    return as_far / 2 ** len(differences)
