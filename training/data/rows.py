"""The rows of a dataset folder that a run trains on and holds out, and how one is read."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.settings import ConfigError
from curation.shards import Dataset, DatasetError
from training.data.orders import Order, Place, digest
from training.data.reads import Kept, retried
from training.data.shapes import best_fit, enlarges
from training.data.videos import SampleShape

if TYPE_CHECKING:  # latents/ reads rows; here its words are types alone
    from training.latents.files import Encoded, Latents

COLUMNS = ["clip_id", "caption", "clip"]
FACTS = ["num_frames", "duration_s", "width", "height"]  # what a row's shape depends on


@dataclass(frozen=True)
class Row:
    """One kept clip: its id, its caption (null is the empty prompt) and its mp4."""

    clip_id: str
    caption: str
    media: memoryview


class Group(NamedTuple):
    """A row group: its shard, its number there, and the row of the shard that it begins with."""

    shard: str
    number: int
    first_row: int


@dataclass
class Rows:
    """The rows of one dataset. Nothing of the media is in memory but a few row groups.

    name: what the draws of its samples depend on; the folder may move.
    fingerprint: of the bytes of every shard, and of what was precomputed from them.
    buckets: for each row group, which of `shapes` each row is trained in; -1 where too short.
    latents: what was precomputed, where a run trains on that.
    """

    name: str
    dataset: Dataset
    weight: float
    fingerprint: str
    groups: list[Group]
    trained: list[list[int]]  # rows of each group
    held_out: list[Place]
    shapes: Sequence[SampleShape]
    buckets: list[np.ndarray]
    too_short: int
    too_small: int  # trained enlarged
    keep: int  # row groups in memory
    latents: Latents | None = None

    def __post_init__(self) -> None:
        self.tables: Kept[int, pa.Table] = Kept(self.read_group, self.keep)

    def use(self, latents: Latents) -> None:
        """Train on these values instead of the media."""
        self.latents = latents
        self.fingerprint = f"{self.fingerprint}+{latents.fingerprint}"

    @property
    def num_trained(self) -> int:
        return sum(len(rows) for rows in self.trained)

    def bucket(self, place: Place) -> int:
        return int(self.buckets[place.group][place.row])

    def shape(self, place: Place) -> SampleShape:
        return self.shapes[self.bucket(place)]

    def num_in_buckets(self) -> list[int]:
        """How many trained rows each shape has."""
        counts = np.zeros(len(self.shapes), dtype=int)
        for rows, buckets in zip(self.trained, self.buckets, strict=True):
            counts += np.bincount(buckets[rows], minlength=len(counts))
        return counts.tolist()

    def order(self, seed: int, window: int) -> Order:
        return Order(seed, self.name, self.trained, window)

    def fetch(self, place: Place) -> Row:
        """One row; its media is a view into its row group."""
        table = self.tables.get(place.group)
        clip = table["clip"].chunk(0)
        media = clip.field("bytes")[place.row].as_buffer()
        if media is None:
            raise DatasetError(f"{self.dataset.uri}: a row without media")
        caption = table["caption"][place.row].as_py()
        return Row(table["clip_id"][place.row].as_py(), caption or "", memoryview(media))

    def encoded(self, place: Place) -> Encoded:
        """One row as it was precomputed; nothing else of the dataset is read."""
        assert self.latents is not None
        group = self.groups[place.group]
        return self.latents.row(group.shard, group.first_row + place.row)

    def caption(self, place: Place) -> str:
        """The caption of one row."""
        if self.latents is None:
            return self.fetch(place).caption
        group = self.groups[place.group]
        return self.latents.caption(group.shard, group.first_row + place.row) or ""

    def read_group(self, number: int) -> pa.Table:
        group = self.groups[number]

        def read() -> pa.Table:
            with open_shard(self.dataset, group.shard) as file:
                return file.read_row_group(group.number, columns=COLUMNS).combine_chunks()

        return retried(read)


def open_shard(dataset: Dataset, name: str) -> pq.ParquetFile:
    # Mapped, a row group costs no copy: the media column is stored uncompressed.
    path = dataset.path("shards", f"{name}.parquet")
    return pq.ParquetFile(path, filesystem=dataset.filesystem, memory_map=dataset.is_local)


def open_rows(location: str, name: str, weight: float, shapes: Sequence[SampleShape], keep: int,
              held_out: int) -> Rows:  # fmt: skip
    """Index a dataset: which rows are long enough, in which shape, and which are held out.

    Held out are the `held_out` clips with the smallest hash of their id: the same ones after
    the dataset moved or was put into other shards. Raises ConfigError.
    """
    try:
        dataset = Dataset.at(location).require()
        commits = dataset.commits()
    except (DatasetError, pa.ArrowException, OSError) as error:
        raise ConfigError(f"--data {location}: {error}") from None
    groups, fits, buckets, too_short, too_small = index(dataset, commits, shapes)
    kept = smallest_hashes(fits, held_out)
    trained = [
        [row for row in rows if Place(group, row) not in kept] for group, rows in enumerate(fits)
    ]
    if not any(trained):
        raise ConfigError(
            f"--data {location}: no clip to train on: {sum(map(len, fits))} are long enough, "
            f"{too_short} too short for {shapes[0].num_frames} frames, {held_out} held out; "
            "use --set num_frames=, buckets=, fps= or held_out="
        )
    return Rows(name, dataset, weight, fingerprint(commits), groups, trained, sorted_places(kept),
                shapes, buckets, too_short, too_small, keep)  # fmt: skip


def index(
    dataset: Dataset, commits: list[dict[str, Any]], shapes: Sequence[SampleShape]
) -> tuple[list[Group], list[dict[int, str]], list[np.ndarray], int, int]:
    """Every row group, the clip ids of its rows that are long enough, the shape of every row,
    and how many are too short and too small; no media are read."""
    groups: list[Group] = []
    fits: list[dict[int, str]] = []  # clip ids of the rows of each group
    buckets: list[np.ndarray] = []
    too_short = too_small = 0
    for commit in commits:
        if not commit["num_clips"]:
            continue
        first_row = 0
        with open_shard(dataset, commit["name"]) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, ["clip_id", *FACTS]).to_pylist()
                fit = [best_fit(shapes, *(row[name] for name in FACTS)) for row in rows]
                long = {n: row["clip_id"] for n, row in enumerate(rows) if fit[n] is not None}
                too_short += len(rows) - len(long)
                too_small += sum(
                    enlarges(shapes[k], row["width"], row["height"])
                    for row, k in zip(rows, fit, strict=True)
                    if k is not None
                )
                groups.append(Group(commit["name"], group, first_row))
                first_row += len(rows)
                fits.append(long)
                buckets.append(np.array([-1 if k is None else k for k in fit], dtype=np.int16))
    return groups, fits, buckets, too_short, too_small


def smallest_hashes(fits: list[dict[int, str]], count: int) -> set[Place]:
    """The places of the `count` rows whose ids have the smallest hashes."""
    every = (
        (digest("held-out", clip_id), group, row)
        for group, rows in enumerate(fits)
        for row, clip_id in rows.items()
    )
    return {Place(group, row) for _, group, row in heapq.nsmallest(count, every)}


def sorted_places(places: set[Place]) -> list[Place]:
    return sorted(places, key=lambda place: (place.group, place.row))


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
