"""The rows of a dataset folder that a run trains on and holds out, and how one is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curation.settings import ConfigError
from curation.shards import Dataset, DatasetError
from training.data.indexes import (
    Index,
    open_index,
    open_shard,
    shapes_of_rows,
    spread_over_videos,
)
from training.data.orders import Order
from training.data.reads import Kept, retried
from training.data.videos import SampleShape
from training.parallel import ALONE, Team

if TYPE_CHECKING:  # latents/ reads rows; here its words are types alone
    from training.latents.files import Encoded, Latents

COLUMNS = ["clip_id", "caption", "captions", "clip"]


@dataclass(frozen=True)
class Row:
    """One kept clip: its id, its caption (null is the empty prompt) and its mp4.

    captions: where lists gave it several, all of them, `caption` first; else none.
    """

    clip_id: str
    caption: str
    media: memoryview
    captions: tuple[str, ...] = ()


@dataclass
class Rows:
    """The rows of one dataset. Nothing of the media is in memory but a few row groups.

    A row is its number over all shards. name: what the draws of its samples depend on; the folder
    may move. fingerprint: of the bytes of every shard, and of what was precomputed from them.
    trained: rows to train on. held_out: rows to evaluate on, of videos that are never trained on.
    fits: which of `shapes` each row is trained in; -1 where none fits.
    latents: what was precomputed, where a run trains on that.
    """

    name: str
    dataset: Dataset
    weight: float
    fingerprint: str
    index: Index
    trained: np.ndarray
    held_out: list[int]
    num_held_out: int  # rows of held-out videos, evaluated or not
    shapes: Sequence[SampleShape]
    fits: np.ndarray
    num_enlarged: int
    window: int  # row groups whose rows are shuffled together, where media are read
    latents: Latents | None = None

    def __post_init__(self) -> None:
        # Two windows: while the last rows of one are read, the next one has begun.
        self.tables: Kept[int, pa.Table] = Kept(self.read_group, 2 * self.window)

    def use(self, latents: Latents) -> None:
        """Train on these values instead of the media."""
        self.latents = latents
        self.fingerprint = f"{self.fingerprint}+{latents.fingerprint}"

    @property
    def num_trained(self) -> int:
        return len(self.trained)

    @property
    def too_short(self) -> int:
        return int((self.fits < 0).sum())

    def shape(self, row: int) -> SampleShape:
        return self.shapes[int(self.fits[row])]

    def shape_at(self, row: int, fps_choices: Sequence[float], rate: float) -> SampleShape:
        """The shape of a row at a frame rate drawn from those that its clip has the frames for.

        rate: in [0, 1), which of them; without any it is the shape's own.
        """
        shape = self.shape(row)
        facts = self.index.num_frames[row], self.index.duration_s[row]
        paced = [replace(shape, fps=fps) for fps in fps_choices]
        fitting = [each for each in paced if each.fits(*facts)]
        return fitting[int(rate * len(fitting))] if fitting else shape

    def num_in_buckets(self) -> list[int]:
        """How many trained rows each shape has."""
        return np.bincount(self.fits[self.trained], minlength=len(self.shapes)).tolist()

    def order(self, seed: int) -> Order:
        """Any row that was precomputed costs one read, so all of them are shuffled together."""
        window = len(self.index.group_shard) if self.latents else self.window
        return Order(seed, self.name, self.trained, self.index.group_first, window)

    def fetch(self, row: int) -> Row:
        """One row; its media is a view into its row group."""
        group, n = self.index.place(row)
        table = self.tables.get(group)
        media = table["clip"].chunk(0).field("bytes")[n].as_buffer()
        if media is None:
            raise DatasetError(f"{self.dataset.uri}: a row without media")
        # Shards of before there were several have no such column.
        several = table["captions"][n].as_py() if "captions" in table.column_names else None
        caption, clip_id = table["caption"][n].as_py(), table["clip_id"][n].as_py()
        return Row(clip_id, caption or "", memoryview(media), tuple(several or ()))

    def encoded(self, row: int) -> Encoded:
        """One row as it was precomputed; nothing else of the dataset is read."""
        assert self.latents is not None
        return self.latents.row(*self.index.place_in_shard(row))

    def caption(self, row: int) -> str:
        """The caption of one row."""
        if self.latents is None:
            return self.fetch(row).caption
        return self.latents.caption(*self.index.place_in_shard(row)) or ""

    def read_group(self, number: int) -> pa.Table:
        shard, group = self.index.group_in_shard(number)

        def read() -> pa.Table:
            with open_shard(self.dataset, shard) as file:
                return file.read_row_group(group, columns=COLUMNS).combine_chunks()

        return retried(read)


def open_rows(
    location: str,
    name: str,
    weight: float,
    shapes: Sequence[SampleShape],
    memory_bytes: float,
    held_out: float,
    held_out_clips: int = 128,
    *,
    run: Path | None = None,
    team: Team = ALONE,
) -> Rows:
    """Index a dataset: in which shape each row is trained, and which ones are held out.

    memory_bytes: of row groups in memory, which the window of the shuffle follows.
    held_out: the share of videos that are (curation.shards.held_out_hash), the same ones in every
        dataset; held_out_clips: at most so many of their clips are evaluated.
    run, team: as `open_index` takes them. Raises ConfigError.
    """
    try:
        dataset = Dataset.at(location).require()
        commits = dataset.commits()
    except (DatasetError, pa.ArrowException, OSError) as error:
        raise ConfigError(f"--data {location}: {error}") from None
    index = open_index(dataset, commits, fingerprint(commits), run, team)
    fits, num_enlarged = shapes_of_rows(index, shapes)
    out = of_held_out_videos(index, held_out)
    rows = np.arange(index.num_rows, dtype=np.uint32)
    trained, kept = rows[~out & (fits >= 0)], rows[out & (fits >= 0)]
    if not len(trained):
        raise ConfigError(
            f"--data {location}: no clip to train on: {int((fits >= 0).sum())} are long enough, "
            f"{int((fits < 0).sum())} too short for {shapes[0].num_frames} frames, {len(kept)} of "
            "held-out videos; use --set num_frames=, buckets=, fps= or held_out="
        )
    evaluated = kept[spread_over_videos(index.video[kept], held_out_clips)].tolist()
    window = window_of(index, commits, memory_bytes)
    return Rows(name, dataset, weight, fingerprint(commits), index, trained, evaluated, len(kept),
                shapes, fits, num_enlarged, window)  # fmt: skip


def of_held_out_videos(index: Index, share: float) -> np.ndarray:
    """Which rows are never trained on when this share of videos is held out."""
    return index.video < np.uint64(min(share * 2**64, 2**64 - 1))


def held_out_long(
    rows: Rows, share: float, sampling: SampleShape, most: int
) -> tuple[list[int], int, int]:
    """Rows of held-out videos that are long enough for a sample, whatever the run trains on.

    Returns at most so many of them, spread over videos and in the order of rows; how many there
    are; and how many are too short. An image is.
    """
    index = rows.index
    out = np.flatnonzero(of_held_out_videos(index, share))
    facts = index.num_frames[out], index.duration_s[out]
    long = out[sampling.fits(*facts) & (facts[0] > 1)]
    chosen = sorted(long[spread_over_videos(index.video[long], most)].tolist())
    return chosen, len(long), len(out) - len(long)


def window_of(index: Index, commits: list[dict[str, Any]], memory_bytes: float) -> int:
    """Row groups in a window, of which two are in memory at a time; at least one."""
    shard_bytes = sum(c["files"]["shards"]["bytes"] for c in commits if c["num_clips"])
    fitting = int(memory_bytes * len(index.group_shard) / (2 * shard_bytes))
    return max(1, min(fitting, len(index.group_shard)))


def fingerprint(commits: list[dict[str, Any]]) -> str:
    """A hash of the bytes of every shard, as the manifests tell them."""
    shards = sorted(
        [commit["name"], commit["files"]["shards"]["sha256"]]
        for commit in commits
        if commit["num_clips"]
    )
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]


def parse_data(given: list[str]) -> list[tuple[str, str, float]]:
    """(location, name, weight) of each `--data DATASET[:WEIGHT]`; ConfigError if it is neither."""
    if not given:
        raise ConfigError("no data: give --data DATASET, the --output of a curation run")
    parsed: list[tuple[str, str, float]] = []
    for text in given:
        location, colon, last = text.rpartition(":")
        try:
            weight = float(last) if colon else 1.0
        except ValueError:  # the colon of s3://
            location, weight = text, 1.0
        location = location if colon and location else text
        if not 0.001 <= weight < 1e6:
            raise ConfigError(f"--data {text}: the weight {weight:g} is not between 0.001 and 1e6")
        name = location.rstrip("/").rsplit("/", 1)[-1]
        taken = sum(other == name or other.startswith(f"{name}#") for _, other, _ in parsed)
        parsed.append((location, f"{name}#{taken + 1}" if taken else name, weight))
    return parsed
