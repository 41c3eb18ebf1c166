"""Pairs of a degraded and a true clip out of curated shards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from curation.settings import ConfigError, counted
from training.data.batches import BadRow
from training.data.orders import Mixture, digest
from training.data.rows import Rows, open_rows, parse_data
from training.data.videos import BadVideoError, SampleShape, read_frames
from training.superresolution.config import Config
from training.superresolution.degradations import degrade
from training.superresolution.kernels import Dice

# Px of the small picture along its edges that are neither trained on nor judged: networks see black
# beyond an edge, and a cut has four where its picture has none. Ours: what bicubic sees on both
# sides. With it a tiny run lost 0.9 dB in 15 steps of unlearning what it does inside.
BORDER_PX = 4


@dataclass(frozen=True)
class Pair:
    """A small clip [T, 3, h, w] and the true one [T, 3, h s, w s], uint8; T is 1 for an image."""

    dataset: str
    clip_id: str
    small: Tensor
    true: Tensor


@dataclass(frozen=True)
class PairBatch:
    """The pairs of one step, and the rows that gave none."""

    step: int
    pairs: list[Pair]
    bad: list[BadRow]


def open_datasets(data: list[str], config: Config, told: list[str]) -> list[Rows]:
    """The rows of every dataset that are as large as a crop: none is enlarged; raises ConfigError.

    told: is given a line for each dataset.
    """
    wanted = SampleShape(config.num_frames, config.crop, config.crop, fps=1, stride=1)
    out = []
    for location, name, weight in parse_data(data):
        limits = config.shuffle_memory_gb * 1e9, config.held_out, 1 << 30
        rows = open_rows(location, name, weight, [wanted], *limits)
        index = rows.index
        large = np.minimum(index.width, index.height) >= config.crop
        fair = np.minimum(index.width, index.height) >= config.held_out_crop
        trained = rows.trained[large[rows.trained]]
        held_out = [row for row in rows.held_out if fair[row]]
        small = len(rows.trained) - len(trained), len(rows.held_out) - len(held_out)
        told.append(described(rows, len(trained), held_out[: config.held_out_clips], small))
        if not len(trained):
            raise ConfigError(
                f"--data {location}: no clip to train on has sides of {config.crop} px; use "
                "--set crop= or held_out="
            )
        out.append(replace(rows, trained=trained, held_out=held_out[: config.held_out_clips]))
    return out


def described(rows: Rows, trained: int, held_out: list[int], small: tuple[int, int]) -> str:
    """What becomes of a dataset's rows."""
    parts = [counted(trained, "clips")]
    parts.append(
        f"{len(held_out)} of held-out videos evaluated"
        if held_out
        else "no video held out, so nothing is evaluated (--set held_out= is the share of videos)"
    )
    parts += [f"{rows.too_short} too short"] * bool(rows.too_short)
    parts += [f"{sum(small)} smaller than a crop"] * bool(sum(small))
    return f"{rows.name}: {', '.join(parts)}"


def seed_of(*parts: str | int) -> int:
    return int.from_bytes(digest(*parts)[:8], "little") >> 1


def read_pairs(
    rows: Rows, row: int, config: Config, drawn_for: int | str, middle: bool = False
) -> list[Pair] | BadRow:
    """One row as pairs; what is drawn depends on (seed, dataset, epoch, clip id) alone.

    Decoding costs more than all the rest (a keyframe may be seconds away), so frames that are
    decoded are cut `crops` times, each cut degraded in its own way. middle: held-out pairs, all of
    the middle of the pictures, held_out_crop wide, `held_out_draws` of them.
    """
    clip_id = f"row {row}"
    try:
        found = rows.fetch(row)
        clip_id = found.clip_id
        dice = Dice(seed_of(config.seed, rows.name, drawn_for, clip_id, "cut"))
        whole = (int(rows.index.height[row]), int(rows.index.width[row]))
        shape = SampleShape(config.num_frames, *whole, fps=1, stride=1)
        frames = torch.from_numpy(read_frames(found.media, shape, dice.uniform(0, 1 - 1e-6)))
        pairs = []
        for n in range(config.held_out_draws if middle else config.crops):
            true = cut(frames, config, dice, middle)
            seed = seed_of(config.seed, rows.name, drawn_for, clip_id, "degradation", n)
            small = degrade(true, config.scale, config.degradation, seed)
            pairs.append(Pair(rows.name, clip_id, small, true))
        return pairs
    except (BadVideoError, pa.ArrowException, ValueError, OSError) as error:
        return BadRow(rows.name, clip_id, str(error))


def cut(frames: Tensor, config: Config, dice: Dice, middle: bool) -> Tensor:
    """A square of frames [T, H, W, 3], the same in all: [T, 3, side, side]."""
    side = config.held_out_crop if middle else config.crop
    H, W = frames.shape[1:3]
    y, x = (H - side) // 2, (W - side) // 2
    if not middle:
        y, x = dice.integer(0, H - side), dice.integer(0, W - side)
    return frames[:, y : y + side, x : x + side].permute(0, 3, 1, 2).contiguous()


class Pairs:
    """Every batch of a run by its step: which pairs are in it depends on nothing else."""

    def __init__(self, datasets: list[Rows], config: Config) -> None:
        self.datasets, self.config = datasets, config
        self.mixture = Mixture([rows.weight for rows in datasets])
        self.orders = [rows.order(config.seed) for rows in datasets]

    def read(self, n: int) -> list[Pair] | BadRow:
        """The pairs of the n-th clip of the run, or why there are none."""
        which, count = self.mixture.at(n)
        epoch, row = self.orders[which].at(count)
        return read_pairs(self.datasets[which], row, self.config, epoch)

    def num_seen(self, step: int) -> int:
        """Distinct rows that the steps up to and with this one asked for."""
        n = (step + 1) * self.config.batch_size
        return sum(
            min(self.mixture.count(which, n), order.size) for which, order in enumerate(self.orders)
        )

    def start_at(self, step: int) -> Iterator[PairBatch]:
        """Batches from a step on, for ever; `prefetch` of them are made ahead."""
        size = self.config.batch_size
        with ThreadPoolExecutor(self.config.loader_threads) as pool:
            coming: deque[tuple[int, list[Future[list[Pair] | BadRow]]]] = deque()
            try:
                while True:
                    while len(coming) <= self.config.prefetch:
                        numbers = range(step * size, (step + 1) * size)
                        coming.append((step, [pool.submit(self.read, n) for n in numbers]))
                        step += 1
                    now, futures = coming.popleft()
                    read = [future.result() for future in futures]
                    pairs = [pair for each in read if isinstance(each, list) for pair in each]
                    yield PairBatch(now, pairs, [each for each in read if isinstance(each, BadRow)])
            finally:
                pool.shutdown(cancel_futures=True)


def held_out_pairs(datasets: list[Rows], config: Config) -> Iterator[list[Pair] | BadRow]:
    """The held-out clips, always from the same place and degraded in the same ways."""
    for rows in datasets:
        for row in rows.held_out:
            yield read_pairs(rows, row, config, "held-out", middle=True)


def stacked(clips: list[Tensor], device: torch.device) -> Tensor:
    """The frames of clips uint8 [T, 3, h, w] of one size as pixels [n, 3, h, w] in 0..1."""
    return torch.cat(clips).to(device, torch.float32) / 255


def inner(pixels: Tensor, scale: int) -> Tensor:
    """Large pictures [n, 3, H, W] without their borders."""
    border = BORDER_PX * scale
    return pixels[:, :, border:-border, border:-border]


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """Of each of [n, 3, H, W] in 0..1, dB: -10 log10 of the mean squared error."""
    error = ((made - true) ** 2).mean((1, 2, 3))
    return -10 * torch.log10(error.clamp(min=1e-10))
