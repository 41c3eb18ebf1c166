"""Batches of a run: samples decoded ahead by threads, bad rows skipped, counted and named."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torch import Tensor

from training.configs import Config
from training.orders import Draws, Mixture, Place, draw
from training.rows import Rows
from training.videos import BadVideoError, Sampling, read_frames

HANDFUL = 5  # bad rows that never stop a run
MAX_BAD_SHARE = 0.01


class TooManyBadError(RuntimeError):
    """More rows are bad than a dataset can have by accident."""


@dataclass(frozen=True)
class Sample:
    """One clip as it is trained on in one epoch.

    It has raw, uint8 [T, H, W, 3], or what was computed from it before: latents [C, T, h, w] and
    the text states [L, D] of its caption.
    """

    dataset: str
    clip_id: str
    epoch: int
    caption: str
    raw: Tensor | None
    draws: Draws
    latents: Tensor | None = None
    states: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples of one shape can be in one batch."""
        pixels_or_latents = self.raw if self.latents is None else self.latents
        assert pixels_or_latents is not None
        return tuple(pixels_or_latents.shape)


@dataclass(frozen=True)
class BadRow:
    """A row that gave no sample, and why."""

    dataset: str
    clip_id: str
    reason: str


@dataclass
class BadRows:
    """The bad rows of a run so far; a row is counted once, however many epochs meet it."""

    reasons: dict[str, str] = field(default_factory=dict)  # "dataset/clip_id" -> why

    def add(self, bad: BadRow) -> bool:
        """Note one; whether it is new."""
        key = f"{bad.dataset}/{bad.clip_id}"
        new = key not in self.reasons
        self.reasons[key] = bad.reason
        return new

    def check(self, num_seen: int) -> None:
        """Raise TooManyBadError when more than a handful, and 1% of the rows seen, are bad."""
        if len(self.reasons) > max(HANDFUL, MAX_BAD_SHARE * num_seen):
            last = list(self.reasons.items())[-3:]
            named = "; ".join(f"{key}: {reason}" for key, reason in last)
            raise TooManyBadError(
                f"{len(self.reasons)} of {num_seen} rows seen are bad, more than "
                f"{MAX_BAD_SHARE:.0%}: {named}. Look into the dataset with vf-validate"
            )


@dataclass(frozen=True)
class Batch:
    """The samples of one step that could be read, and those rows that could not."""

    step: int
    samples: list[Sample]
    bad: list[BadRow]
    epochs: dict[str, int]  # of each dataset


def sampling_of(config: Config) -> Sampling:
    return Sampling(config.num_frames, config.height, config.width, config.fps, config.stride,
                    config.num_windows)  # fmt: skip


class Batches:
    """Every batch of a run by its step: which samples are in it depends on nothing else."""

    def __init__(self, datasets: list[Rows], config: Config) -> None:
        self.datasets, self.config = datasets, config
        self.sampling = sampling_of(config)
        self.mixture = Mixture([rows.weight for rows in datasets])
        self.orders = [rows.order(config.seed, config.shuffle_window) for rows in datasets]

    def read(self, n: int) -> Sample | BadRow:
        """The n-th sample of the run, or why there is none."""
        which, count = self.mixture.at(n)
        epoch, place = self.orders[which].at(count)
        rows, clip_id = self.datasets[which], f"row {place.row} of group {place.group}"
        try:
            if rows.latents:
                return encoded_sample(rows, place, self.config.seed, epoch, epoch)
            row = rows.fetch(place)
            clip_id = row.clip_id
            draws = draw(self.config.seed, rows.name, epoch, clip_id)
            frames = read_frames(row.media, self.sampling, draws.start)
        except (BadVideoError, pa.ArrowException, ValueError, OSError) as error:
            return BadRow(rows.name, clip_id, str(error))
        return Sample(rows.name, clip_id, epoch, row.caption, torch.from_numpy(frames), draws)

    def epochs(self, step: int) -> dict[str, int]:
        """The epoch that the last sample of each dataset up to and with a step belongs to."""
        n = (step + 1) * self.config.batch_size
        return {
            rows.name: max(0, self.mixture.count(which, n) - 1) // self.orders[which].size
            for which, rows in enumerate(self.datasets)
        }

    def num_seen(self, step: int) -> int:
        """Distinct rows that the steps up to and with this one asked for."""
        n = (step + 1) * self.config.batch_size
        return sum(
            min(self.mixture.count(which, n), order.size) for which, order in enumerate(self.orders)
        )

    def first_captions(self, count: int) -> list[str]:
        """The captions of the first samples of a run, without those that have none."""
        found: list[str] = []
        for n in range(4 * count):
            which, number = self.mixture.at(n)
            _, place = self.orders[which].at(number)
            caption = self.datasets[which].caption(place)
            if caption and caption not in found:
                found.append(caption)
        return found[:count]

    def start_at(self, step: int) -> Iterator[Batch]:
        """Batches from a step on, for ever; `prefetch` of them are decoded ahead."""
        size = self.config.batch_size
        with ThreadPoolExecutor(self.config.loader_threads) as pool:
            coming: deque[tuple[int, list[Future[Sample | BadRow]]]] = deque()
            try:
                while True:
                    while len(coming) <= self.config.prefetch:
                        futures = [pool.submit(self.read, step * size + n) for n in range(size)]
                        coming.append((step, futures))
                        step += 1
                    now, futures = coming.popleft()
                    read = [future.result() for future in futures]
                    samples = [each for each in read if isinstance(each, Sample)]
                    bad = [each for each in read if isinstance(each, BadRow)]
                    yield Batch(now, samples, bad, self.epochs(now))
            finally:
                pool.shutdown(cancel_futures=True)


def encoded_sample(
    rows: Rows, place: Place, seed: int, drawn_for: int | str, epoch: int
) -> Sample | BadRow:
    """A sample that was precomputed, in the window of the clip that its own draw falls into."""
    row = rows.encoded(place)
    if row.latents is None or row.states is None:
        return BadRow(rows.name, row.clip_id, row.reason or "it was not precomputed")
    draws = draw(seed, rows.name, drawn_for, row.clip_id)
    latents = row.latents[int(draws.start * len(row.latents))]
    return Sample(rows.name, row.clip_id, epoch, row.caption or "", None, draws, latents,
                  row.states)  # fmt: skip


def held_out_samples(datasets: list[Rows], config: Config) -> Iterator[Sample | BadRow]:
    """The held-out clips of every dataset, their draws the same at every step."""
    for rows in datasets:
        for place in rows.held_out:
            if rows.latents:
                yield encoded_sample(rows, place, config.seed, "held-out", 0)
                continue
            row = rows.fetch(place)
            draws = draw(config.seed, rows.name, "held-out", row.clip_id)
            try:
                frames = read_frames(row.media, sampling_of(config), draws.start)
            except BadVideoError as error:
                yield BadRow(rows.name, row.clip_id, str(error))
                continue
            yield Sample(rows.name, row.clip_id, 0, row.caption, torch.from_numpy(frames), draws)
