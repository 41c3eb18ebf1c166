"""What is known of every row of a dataset without its media, as columns: 28 bytes a row."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.settings import ConfigError
from curation.shards import NUM_READERS, Dataset, held_out_hash
from training.data.reads import retried
from training.data.shapes import best_fits, enlarges
from training.data.videos import SampleShape
from training.parallel import ALONE, Team

FORMAT = 2  # 2: rows without captions. of the files; another one is written beside it
FACTS = ["num_frames", "duration_s", "width", "height"]  # what a row's shape depends on


@dataclass(frozen=True)
class Index:
    """N rows in G row groups, in the order of the commits. Rows are counted over all shards.

    shards: names. group_shard: which of them each group is in, [G].
    group_first: the row that each group begins with, [G + 1], the last entry being N.
    group_uncaptioned: rows of each group that have no caption, [G].
    video: `held_out_hash` of each row's video, [N]. The other columns are those of the shards.
    """

    shards: list[str]
    group_shard: np.ndarray
    group_first: np.ndarray
    group_uncaptioned: np.ndarray
    video: np.ndarray
    num_frames: np.ndarray
    duration_s: np.ndarray
    width: np.ndarray
    height: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.video)

    def place(self, row: int) -> tuple[int, int]:
        """(row group, row in it) of a row."""
        group = int(np.searchsorted(self.group_first, row, side="right")) - 1
        return group, row - int(self.group_first[group])

    def place_in_shard(self, row: int) -> tuple[str, int]:
        """(shard, row in it) of a row."""
        group, _ = self.place(row)
        shard = int(self.group_shard[group])
        return self.shards[shard], row - int(self.group_first[self.first_group(shard)])

    def group_in_shard(self, group: int) -> tuple[str, int]:
        """(shard, row group in it) of a row group."""
        shard = int(self.group_shard[group])
        return self.shards[shard], group - self.first_group(shard)

    def first_group(self, shard: int) -> int:
        return int(np.searchsorted(self.group_shard, shard))


def open_shard(dataset: Dataset, name: str) -> pq.ParquetFile:
    # Mapped, a row group costs no copy: the media column is stored uncompressed.
    path = dataset.path("shards", f"{name}.parquet")
    return pq.ParquetFile(path, filesystem=dataset.filesystem, memory_map=dataset.is_local)


def open_index(
    dataset: Dataset,
    commits: list[dict[str, Any]],
    fingerprint: str,
    run: Path | None = None,
    team: Team = ALONE,
) -> Index:
    """The index of a dataset: read from its shards by one rank, once, and mapped by all after.

    It is kept in DATASET/index, or where that cannot be written to, as on an object store, in
    RUN/.index. Every rank calls it. run: None where nothing is to be kept.
    """
    folder = folder_of(dataset, run)
    if folder is None:
        return read_index(dataset, commits)
    kept = folder / f"{fingerprint}-{FORMAT}"
    problem = None
    if team.first and not kept.is_dir():
        try:
            write_index(read_index(dataset, commits), kept)
        except (OSError, pa.ArrowException) as error:
            problem = str(error)
    # All ranks hear of it: they would wait for ever for one that has raised.
    if problem := team.gather(problem)[0]:
        raise ConfigError(f"--data {dataset.uri}: {problem}")
    return map_index(kept)


def folder_of(dataset: Dataset, run: Path | None) -> Path | None:
    """Where an index is kept; None: nowhere."""
    if run is None:
        return None
    if dataset.is_local and os.access(dataset.root, os.W_OK):
        return Path(dataset.root) / "index"
    return run / ".index"  # of a hidden name: the run may not have begun


def write_index(index: Index, folder: Path) -> None:
    """A file for each column, the whole there or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = folder.with_name(f".tmp-{uuid4().hex}")
    written.mkdir()
    for each in fields(Index):
        np.save(written / f"{each.name}.npy", np.asarray(getattr(index, each.name)))
    try:
        written.rename(folder)
    except OSError:  # another run was faster
        shutil.rmtree(written)


def map_index(folder: Path) -> Index:
    """Columns of rows stay on the disk until they are looked at, once for all ranks there."""
    columns = {
        each.name: np.load(folder / f"{each.name}.npy", mmap_mode="r") for each in fields(Index)
    }
    return Index(**columns | {"shards": columns["shards"].tolist()})


def read_index(dataset: Dataset, commits: list[dict[str, Any]]) -> Index:
    """The index of the commits that hold clips, from the small columns of their shards."""
    shards = [commit["name"] for commit in commits if commit["num_clips"]]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        parts = list(pool.map(lambda name: retried(partial(read_shard, dataset, name)), shards))
    sizes = [size for part in parts for size in part["sizes"]]
    return Index(
        shards,
        np.repeat(np.arange(len(parts), dtype=np.int32), [len(part["sizes"]) for part in parts]),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.array([number for part in parts for number in part["uncaptioned"]], np.int32),
        *(joined([part[key] for part in parts]) for key in ("video", *FACTS)),
    )


def joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def read_shard(dataset: Dataset, name: str) -> dict[str, Any]:
    """The columns of one shard, and the rows of each of its row groups."""
    with open_shard(dataset, name) as file:
        table = file.read(["video_id", *FACTS])
        groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
        sizes = [group.num_rows for group in groups]
        uncaptioned = [num_uncaptioned(file, n) for n in range(file.num_row_groups)]
    ids = pc.dictionary_encode(table["video_id"].combine_chunks())
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    hashes = np.array([held_out_hash(each) for each in ids.dictionary.to_pylist()], np.uint64)
    facts = {key: table[key].to_numpy() for key in FACTS}
    return {
        "sizes": sizes,
        "uncaptioned": uncaptioned,
        "video": hashes[ids.indices.to_numpy()],
        **facts,
    }


def num_uncaptioned(file: pq.ParquetFile, group: int) -> int:
    """Rows of a row group that have no caption: told by the file's footer, if it counts them.

    The captions themselves would be most of what is read here.
    """
    facts = file.metadata.row_group(group)
    columns = [facts.column(n) for n in range(facts.num_columns)]
    captions = [each.statistics for each in columns if each.path_in_schema == "caption"]
    if not captions:
        return facts.num_rows
    counts = captions[0]
    if counts is not None and counts.has_null_count:
        return counts.null_count
    return file.read_row_group(group, ["caption"])["caption"].null_count


def shapes_of_rows(
    index: Index, shapes: Sequence[SampleShape], chunk: int = 1 << 20
) -> tuple[np.ndarray, int]:
    """Which shape each row is trained in, int16 [N], -1 where none fits; and how many rows are
    enlarged. chunk: rows at once, so that memory does not grow with the dataset."""
    fits = np.empty(index.num_rows, np.int16)
    num_enlarged = 0
    for n in range(0, index.num_rows, chunk):
        width, height = index.width[n : n + chunk], index.height[n : n + chunk]
        pace = index.num_frames[n : n + chunk], index.duration_s[n : n + chunk]
        fit = fits[n : n + chunk] = best_fits(shapes, *pace, width, height)
        for k, shape in enumerate(shapes):
            num_enlarged += int((enlarges(shape, width, height) & (fit == k)).sum())
    return fits, num_enlarged


def spread_over_videos(video: np.ndarray, count: int) -> np.ndarray:
    """At most `count` places among rows of these videos: the first of each, then the second ...

    So they are of as many videos as can be, and, as a video's rows stay in order, the same ones
    however its dataset is cut into shards.
    """
    order = np.argsort(video, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(video[order].view(np.int64)) != 0][: len(order)])
    number = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
    return np.sort(order[np.lexsort((video[order], number))][:count])
