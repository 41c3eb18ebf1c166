"""Batches of a run: samples decoded ahead by threads, bad rows skipped, counted and named."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from curation.settings import RunError
from training.config import Config
from training.data.orders import Draws, Mixture, deal, draw, pick_caption
from training.data.rows import Rows
from training.data.shapes import shapes_of
from training.data.videos import BadVideoError, read_frames
from training.parallel import ALONE, Team

PLANNED_STEPS = 50  # that the mean of micro-batches a step is taken over
VARIETY_STEPS = 4  # that the mean of distinct videos in a batch is taken over
HANDFUL = 5  # bad rows never stop a run
MAX_BAD_SHARE = 0.01  # of the rows seen; more than that is a broken dataset, not an accident


class TooManyBadError(RunError):
    """More rows are bad than a dataset can have by accident."""


@dataclass(frozen=True)
class Sample:
    """One clip as it is trained on in one epoch.

    It has raw, uint8 [T, H, W, 3], or what was computed from it before: latents [C, T, h, w], for
    an upsampler those of half the sides too, and the text states [L, D] of its caption.
    """

    dataset: str
    clip_id: str
    epoch: int
    caption: str
    raw: Tensor | None
    draws: Draws
    fps: float = 0  # frames a second; 0 for an image
    latents: Tensor | None = None
    states: Tensor | None = None
    low_res: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples of one shape can be in one micro-batch."""
        pixels_or_latents = self.raw if self.latents is None else self.latents
        assert pixels_or_latents is not None
        return tuple(pixels_or_latents.shape)

    def latent_size(self, factor: int) -> tuple[int, int, int]:
        """(T, h, w) of its latents; factor: of the codec, pixels to a latent's side."""
        if self.latents is None:
            T, H, W = self.shape[:3]
            return T, H // factor, W // factor
        _, T, h, w = self.shape
        return T, h, w

    def num_px(self, factor: int) -> int:
        """Pixels over all frames; factor: of the codec that latents were made by."""
        return math.prod(self.latent_size(factor)) * factor**2

    def pin(self) -> Sample:
        """The same in pinned memory."""
        named = {"raw": self.raw, "latents": self.latents, "states": self.states}
        pinned: dict[str, Any] = {k: x.pin_memory() for k, x in named.items() if x is not None}
        return replace(self, **pinned)


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
    """The samples of one step that this rank could read, and those rows that it could not."""

    step: int
    samples: list[Sample]
    bad: list[BadRow]
    epochs: dict[str, int]  # of each dataset


class Batches:
    """Every batch of a run by its step: which samples are in it depends on nothing else.

    Each rank of a team reads its own part of a batch; the whole is the same for every team.
    pinned: tensors of samples are put into pinned memory, for a GPU.
    seed: of order and draws; the config's unless the run continues another one's weights.
    """

    def __init__(
        self,
        datasets: list[Rows],
        config: Config,
        team: Team = ALONE,
        *,
        pinned: bool = False,
        seed: int | None = None,
    ) -> None:
        self.datasets, self.config, self.team, self.pinned = datasets, config, team, pinned
        self.seed = config.seed if seed is None else seed
        self.mixture = Mixture([rows.weight for rows in datasets])
        self.orders = [rows.order(self.seed) for rows in datasets]

    def place(self, n: int) -> tuple[Rows, int, int]:
        """Dataset, epoch and row of the n-th sample of the run."""
        which, count = self.mixture.at(n)
        return self.datasets[which], *self.orders[which].at(count)

    def shape(self, n: int) -> tuple[int, int, int]:
        """(T, H, W) of the n-th sample, from columns alone."""
        rows, _, row = self.place(n)
        shape = rows.shape(row)
        return shape.num_frames, shape.height, shape.width

    def dealt(self, step: int, world: int) -> list[list[int]]:
        """The samples of a step that fall to each rank of a team."""
        first = step * self.config.batch_size
        shapes = [self.shape(first + n) for n in range(self.config.batch_size)]
        return [[first + n for n in places] for places in deal(shapes, world)]

    def num_parts(self, step: int, world: int) -> int:
        """Micro-batches of a step on the rank that has most of them."""
        return max(
            sum(
                -(-count // (most_at_once(self.config, math.prod(shape)) or count))
                for shape, count in Counter(map(self.shape, numbers)).items()
            )
            for numbers in self.dealt(step, world)
        )

    def read(self, n: int) -> Sample | BadRow:
        """The n-th sample of the run, or why there is none."""
        rows, epoch, row = self.place(n)
        sample = read_sample(rows, row, self.config, self.seed, epoch, epoch)
        # In a thread of the loader: from pinned memory a GPU takes what it needs without a wait.
        return sample.pin() if self.pinned and isinstance(sample, Sample) else sample

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

    def num_videos(self, num_steps: int) -> float:
        """Distinct videos in a batch, the mean over the first steps; no media are read."""
        found = 0
        for step in range(num_steps):
            numbers = range(step * self.config.batch_size, (step + 1) * self.config.batch_size)
            places = [self.place(n) for n in numbers]
            found += len({(rows.name, int(rows.index.video[row])) for rows, _, row in places})
        return found / num_steps

    def first_captions(self, count: int) -> list[str]:
        """The captions of the first samples of a run, without those that have none."""
        found: list[str] = []
        for n in range(4 * count):
            rows, _, row = self.place(n)
            caption = rows.caption(row)
            if caption and caption not in found:
                found.append(caption)
        return found[:count]

    def start_at(self, step: int) -> Iterator[Batch]:
        """Batches from a step on, for ever; `prefetch` of them are decoded ahead."""
        with ThreadPoolExecutor(self.config.loader_threads) as pool:
            coming: deque[tuple[int, list[Future[Sample | BadRow]]]] = deque()
            try:
                while True:
                    while len(coming) <= self.config.prefetch:
                        numbers = self.dealt(step, self.team.world)[self.team.rank]
                        coming.append((step, [pool.submit(self.read, n) for n in numbers]))
                        step += 1
                    now, futures = coming.popleft()
                    read = [future.result() for future in futures]
                    samples = [each for each in read if isinstance(each, Sample)]
                    bad = [each for each in read if isinstance(each, BadRow)]
                    yield Batch(now, samples, bad, self.epochs(now))
            finally:
                pool.shutdown(cancel_futures=True)


def most_at_once(config: Config, num_px: int) -> int | None:
    """Clips of so many pixels, over all frames, in a micro-batch: as many pixels as
    micro_batch_size clips of the config's own shape have, one clip at least; None: no bound."""
    if config.micro_batch_size is None:
        return None
    own_px = config.num_frames * config.height * config.width
    return max(1, config.micro_batch_size * own_px // num_px)


def bucket_table(datasets: list[Rows], config: Config, workers: int) -> list[str]:
    """How many clips each shape has, the empty ones of the preset named; what shapes cost; how
    varied a batch is."""
    counts = [sum(each) for each in zip(*(rows.num_in_buckets() for rows in datasets), strict=True)]
    told = len(config.buckets) or 1  # what follows them is for images, where there are any
    lines = [
        f"{shape}: {count or 'no'} clip{'s' * (count != 1)}"
        for n, (shape, count) in enumerate(zip(shapes_of(config), counts, strict=True))
        if count or n < told
    ]
    batches = Batches(datasets, config)
    lines.append(
        f"{batches.num_videos(VARIETY_STEPS):g} distinct videos in a batch of {config.batch_size}"
    )
    if sum(count > 0 for count in counts) > 1:
        mean = sum(batches.num_parts(step, workers) for step in range(PLANNED_STEPS))
        most, share = config.micro_batch_size, -(-config.batch_size // workers)
        lines.append(
            f"{mean / PLANNED_STEPS:g} micro-batches a step and worker; "
            f"{-(-share // (most or share))} if all clips had one shape"
        )
    return lines


def read_sample(
    rows: Rows, row: int, config: Config, seed: int, drawn_for: int | str, epoch: int
) -> Sample | BadRow:
    """One row as a sample with the draws of an epoch, or of what else it is drawn for; or why it
    is none."""
    clip_id = f"row {row}"
    try:
        if rows.latents:
            return encoded_sample(rows, row, config, seed, drawn_for, epoch)
        found = rows.fetch(row)
        clip_id = found.clip_id
        draws = draw(seed, rows.name, drawn_for, clip_id)
        shape = rows.shape_at(row, config.fps_choices, draws.rate)
        frames = read_frames(found.media, shape, draws.start)
    except (BadVideoError, pa.ArrowException, ValueError, OSError) as error:
        return BadRow(rows.name, clip_id, str(error))
    raw, fps = torch.from_numpy(frames), shape.fps if len(frames) > 1 else 0
    several = found.captions or (found.caption,)
    caption = pick_caption(several, seed, rows.name, drawn_for, clip_id)
    return Sample(rows.name, clip_id, epoch, caption, raw, draws, fps)


def encoded_sample(
    rows: Rows, row: int, config: Config, seed: int, drawn_for: int | str, epoch: int
) -> Sample | BadRow:
    """A sample that was precomputed, in the window of the clip that its own draw falls into."""
    found = rows.encoded(row)
    if found.latents is None or found.states is None:
        return BadRow(rows.name, found.clip_id, found.reason or "it was not precomputed")
    draws = draw(seed, rows.name, drawn_for, found.clip_id)
    latents = found.latents[int(draws.start * len(found.latents))]
    fps = config.fps if latents.shape[1] > 1 else 0
    return Sample(rows.name, found.clip_id, epoch, found.caption or "", None, draws, fps, latents,
                  found.states)  # fmt: skip


def held_out_samples(
    datasets: list[Rows], config: Config, team: Team = ALONE
) -> Iterator[Sample | BadRow]:
    """This rank's part of the held-out clips of every dataset, their draws always the same."""
    every = [(rows, row) for rows in datasets for row in rows.held_out]
    for rows, row in team.share(every):
        yield read_sample(rows, row, config, config.seed, "held-out", 0)
