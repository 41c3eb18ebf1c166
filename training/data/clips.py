"""The trainer's reader for any other training: a dataset of torch's over a curated folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from training.data.orders import draw, pick_caption
from training.data.rows import Rows, open_rows
from training.data.videos import BadVideoError, SampleShape, read_frames

log = logging.getLogger(__name__)


class VideoClips(IterableDataset[dict[str, Any]]):
    """Decoded clips of a dataset folder or URI, one epoch an iteration, shuffled as in vf-train.

    Each is {"clip_id", "caption", "pixels", "fps"}: pixels uint8 [T, H, W, 3], scaled to cover the
    size with the middle kept; T frames at fps (as displayed) from a place drawn anew each epoch; no
    caption is "". Clips too short for that are left out. A DataLoader's workers and the ranks of
    a job take parts of an epoch, so that every clip comes once.

    held_out: the share of videos, by a hash of their ids, that are never in it.
    epoch: to be set before each iteration, as a DistributedSampler's.
    memory_gb: of media whose clips are shuffled together, in each worker.

    A clip that does not decode is logged as a warning and left out. Raises ConfigError where there
    is no dataset, or none of its clips fits.
    """

    def __init__(
        self,
        location: str,
        *,
        num_frames: int = 16,
        height: int = 192,
        width: int = 344,
        fps: float = 8.0,
        held_out: float = 0.01,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        memory_gb: float = 1.0,
    ) -> None:
        self.location, self.held_out, self.memory_bytes = location, held_out, memory_gb * 1e9
        self.shape = SampleShape(num_frames, height, width, fps)
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0
        _ = self.rows  # what is wrong with the dataset is told here

    @cached_property
    def rows(self) -> Rows:
        shapes, memory_bytes = [self.shape], self.memory_bytes
        return open_rows(self.location, "clips", 1.0, shapes, memory_bytes, self.held_out)

    def __getstate__(self) -> dict[str, Any]:
        """A worker that is not a fork opens the dataset itself."""
        return {name: value for name, value in vars(self).items() if name != "rows"}

    def __len__(self) -> int:
        """Clips in an epoch of this rank."""
        return len(self.part(self.rank, self.world_size))

    def part(self, n: int, parts: int) -> range:
        """Places in an epoch's permutation: one stretch each, so that each file is read once."""
        size = self.rows.num_trained
        return range(size * n // parts, size * (n + 1) // parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        n, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        order = self.rows.order(self.seed)
        for place in self.part(self.rank * workers + n, self.world_size * workers):
            _, row = order.at(self.epoch * self.rows.num_trained + place)
            try:
                yield self.read(row)
            except (BadVideoError, pa.ArrowException, ValueError, OSError) as error:
                log.warning("row %d of %s left out: %s", row, self.rows.dataset.uri, error)

    def read(self, row: int) -> dict[str, Any]:
        found = self.rows.fetch(row)
        start = draw(self.seed, self.rows.name, self.epoch, found.clip_id).start
        several = found.captions or (found.caption,)
        caption = pick_caption(several, self.seed, self.rows.name, self.epoch, found.clip_id)
        pixels = torch.from_numpy(read_frames(found.media, self.shape, start))
        told = {"clip_id": found.clip_id, "caption": caption, "fps": self.shape.fps}
        return {**told, "pixels": pixels}
