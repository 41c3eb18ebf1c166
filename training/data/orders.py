"""What is trained on when, and with which draws: pure functions, so that a resume needs no state.

Sample n of a run (n = step * batch_size + place in the batch) belongs to one dataset of the
mixture; it is that dataset's c-th sample, in epoch c // size, at a place of that epoch's
permutation. What is drawn for it depends on (seed, dataset, epoch, sample id) alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def digest(*parts: str | int) -> bytes:
    """32 bytes that depend on every part and on where one ends and the next begins."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=32).digest()


@dataclass(frozen=True)
class Draws:
    """The random numbers of one sample in one epoch; all but the seed are in [0, 1)."""

    rate: float
    start: float
    timestep: float
    caption: float
    noise_seed: int
    level: float  # and level_seed: of the noise on an upsampler's low-resolution latents
    level_seed: int

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Noise fp32, drawn on the CPU so that every device trains on the same."""
        return randn(shape, self.noise_seed)

    def level_noise(self, shape: tuple[int, ...]) -> Tensor:
        return randn(shape, self.level_seed)


def randn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(seed: int, dataset: str, epoch: int | str, sample_id: str) -> Draws:
    """The draws of one sample in one epoch."""
    words = np.frombuffer(digest(seed, dataset, epoch, sample_id), dtype="<u8")
    start, timestep, caption = (float(word >> np.uint64(11)) / 2**53 for word in words[:3])
    rate = int.from_bytes(digest(seed, dataset, epoch, sample_id, "rate")[:6]) / 2**48
    low_res = digest(seed, dataset, epoch, sample_id, "low_res")
    return Draws(
        *(rate, start, timestep, caption, int(words[3] >> np.uint64(1))),
        level=int.from_bytes(low_res[:6]) / 2**48,
        level_seed=int.from_bytes(low_res[8:16]) >> 1,
    )


def pick_caption(
    captions: Sequence[str], seed: int, dataset: str, epoch: int | str, sample_id: str
) -> str:
    """Which of a clip's captions an epoch trains on, each as likely; a draw of its own, so that
    clips with one caption are trained as ever."""
    word = int.from_bytes(digest(seed, dataset, epoch, sample_id, "which caption")[:6])
    return captions[word * len(captions) >> 48]


MAX_PERIOD = 10_000  # samples after which a mixture repeats; a table of them is made at the start


def exact_counts(weights: Sequence[float]) -> list[int]:
    """How many samples of each dataset a period has; its length is their sum.

    The shares as fractions where their common denominator is a period; else the nearest counts of
    MAX_PERIOD samples (largest remainders), at least one of each: shares within 1 / MAX_PERIOD.
    """
    parts = [Fraction(weight).limit_denominator(1000) for weight in weights]
    shares = [part / sum(parts) for part in parts]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= MAX_PERIOD:
        return [int(share * period) for share in shares]
    wanted = [weight / sum(weights) * MAX_PERIOD for weight in weights]
    counts = [max(1, int(each)) for each in wanted]
    order = sorted(range(len(counts)), key=lambda n: counts[n] - wanted[n])
    for n in order[: max(0, MAX_PERIOD - sum(counts))]:
        counts[n] += 1
    return counts


class Mixture:
    """Which dataset each sample of a run comes from: exact shares, spread as evenly as can be.

    weights: relative, one per dataset. The sequence repeats after a period (`exact_counts`), in
    which every dataset has exactly its share. Each next sample goes to the dataset furthest behind.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts = tuple(exact_counts(weights))
        period = sum(self.counts)
        counts = [0] * len(self.counts)
        self.sequence: list[int] = []
        self.before: list[tuple[int, ...]] = []
        for n in range(period):
            self.before.append(tuple(counts))
            behind = [
                share * (n + 1) - count * period
                for share, count in zip(self.counts, counts, strict=True)
            ]
            self.sequence.append(max(range(len(counts)), key=behind.__getitem__))
            counts[self.sequence[-1]] += 1

    def count(self, dataset: int, n: int) -> int:
        """How many of the first n samples of a run are of a dataset."""
        rounds, place = divmod(n, len(self.sequence))
        return rounds * self.counts[dataset] + self.before[place][dataset]

    def at(self, n: int) -> tuple[int, int]:
        """(dataset, how many samples of it came before) of the n-th sample of a run."""
        dataset = self.sequence[n % len(self.sequence)]
        return dataset, self.count(dataset, n)


class Order:
    """One permutation per epoch: row groups are shuffled, then rows inside windows of groups.

    A reader therefore holds `window` row groups at a time, whatever the size of the dataset.

    rows: those that are trained on, ascending. group_first: the row that each group begins with,
    and the number of all rows.
    """

    def __init__(
        self, seed: int, dataset: str, rows: np.ndarray, group_first: np.ndarray, window: int
    ) -> None:
        self.seed, self.dataset, self.rows, self.window = seed, dataset, rows, window
        self.size = len(rows)
        # Where in `rows` each group begins and ends.
        self.bounds = np.searchsorted(rows, group_first)
        # Two epochs meet in a batch, and the reader is a few batches ahead.
        self.groups = lru_cache(2)(self._groups)
        self.window_rows = lru_cache(4)(self._window_rows)

    def random(self, *parts: str | int) -> np.random.Generator:
        key = digest(self.seed, self.dataset, "order", *parts)
        return np.random.Generator(np.random.Philox(int.from_bytes(key[:8], "little")))

    def _groups(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Row groups of an epoch in order, and the place where each window of them begins."""
        order = self.random(epoch).permutation(len(self.bounds) - 1)
        ends = np.cumsum(np.diff(self.bounds)[order])
        return order, np.r_[0, ends[self.window - 1 :: self.window]]

    def _window_rows(self, epoch: int, number: int) -> np.ndarray:
        order, _ = self.groups(epoch)
        groups = order[number * self.window : (number + 1) * self.window]
        rows = [self.rows[self.bounds[group] : self.bounds[group + 1]] for group in groups]
        return self.random(epoch, number).permutation(np.concatenate(rows))

    def at(self, count: int) -> tuple[int, int]:
        """(epoch, row) of the dataset's count-th sample."""
        epoch, n = divmod(count, self.size)
        _, starts = self.groups(epoch)
        number = int(np.searchsorted(starts, n, side="right")) - 1
        return epoch, int(self.window_rows(epoch, number)[n - starts[number]])


def deal(shapes: Sequence[tuple[int, ...]], world: int) -> list[list[int]]:
    """Which samples of a step each of `world` ranks trains on, by their places in the step.

    From the costliest sample on, each goes to the rank that has least to do so far; what a sample
    costs is the product of its shape. Samples of one shape are thus spread as evenly as can be.
    """
    ranks: list[list[int]] = [[] for _ in range(world)]
    load = [0] * world
    for place in sorted(range(len(shapes)), key=lambda n: (-math.prod(shapes[n]), shapes[n])):
        rank = load.index(min(load))
        ranks[rank].append(place)
        load[rank] += math.prod(shapes[place])
    return [sorted(places) for places in ranks]
