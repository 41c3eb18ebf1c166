"""Latents and text states of a dataset's clips, in Parquet files aligned with its shards.

    LATENTS/<fingerprint>/made_with.json     transform, codec, text encoder, dtype
    LATENTS/<fingerprint>/empty.parquet      the text states of the empty prompt
    LATENTS/<fingerprint>/<name>.parquet     a row for each of shards/<name>.parquet, in its order

LATENTS is DATASET/latents, or where vf-precompute was told to write. A file is there whole or not
at all, and its metadata name the shard by its sha256. Values are stored plain, a page per row
group, so that a row is a stretch of bytes: it is read, or mapped, without reading its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch
from torch import Tensor

from curation.settings import ConfigError
from curation.shards import NUM_READERS, Dataset
from training.config import Config
from training.data.reads import Kept, retried
from training.data.shapes import transform_of
from training.latents.fingerprints import differences, renewing, sources_of

MADE_WITH, EMPTY = "made_with.json", "empty"
OPEN_FILES = 256  # of a dataset, last used: 200 MB where each holds 5000 rows
# Rows of a row group. Readers that can take only whole groups then read four times what they need.
GROUP_ROWS = 4
SMALL = ("clip_id", "caption", "reason", "latents_column")
STATES = "states"
NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Stored:
    """How a value is stored: its shape, and the name of its dtype."""

    shape: tuple[int, ...]
    dtype: str

    @cached_property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def pack(self, value: Tensor) -> bytes:
        """A value's bytes; ValueError if it is of another shape, or too large for the dtype."""
        if tuple(value.shape) != self.shape:
            raise ValueError(f"{list(value.shape)} instead of {list(self.shape)}")
        stored = value.detach().cpu().to(DTYPES[self.dtype]).contiguous()
        if not stored.isfinite().all():
            raise ValueError(f"values that {self.dtype} does not hold; use stored_dtype=float32")
        return stored.reshape(-1).view(torch.uint8).numpy().tobytes()

    def unpack(self, data: np.ndarray) -> Tensor:
        return torch.from_numpy(data).view(DTYPES[self.dtype]).view(self.shape)


@dataclass(frozen=True)
class Encoded:
    """A clip as stored: latents [K, C, T, h, w] of its K windows and the text states [L, D] of
    its caption, or the reason why there are none."""

    clip_id: str
    caption: str | None
    reason: str | None = None
    latents: Tensor | None = None
    states: Tensor | None = None


# -- writing


def latents_column(shape: tuple[int, ...]) -> str:
    """The column of latents [K, C, T, h, w]; each shape has one of its own."""
    return "latents_" + "x".join(map(str, shape))


def write_file(
    folder: Dataset,
    name: str,
    rows: Iterable[Encoded],
    latents: Iterable[Stored],
    states: Stored,
    shard_sha256: str,
) -> int:
    """Write one file, whole or not at all; returns its bytes.

    latents: every way in which latents of the rows may be stored, each of another shape.
    """
    columns = {STATES: states} | {latents_column(each.shape): each for each in latents}
    layout = {name: [each.shape, each.dtype] for name, each in columns.items()}
    schema = pa.schema(
        [pa.field(name, pa.string()) for name in SMALL]
        + [pa.field(name, pa.binary(each.num_bytes)) for name, each in columns.items()],
        metadata={"layout": json.dumps(layout), "shard_sha256": shard_sha256},
    )
    small, rows = list(SMALL), iter(rows)
    with folder.replacing(f"{name}.parquet") as stream:
        with pq.ParquetWriter(
            stream,
            schema,
            compression={n: "zstd" if n in small else "none" for n in schema.names},
            use_dictionary=["latents_column"],
            write_statistics=small,
            data_page_size=1 << 30,  # one page a row group
        ) as writer:
            while group := list(islice(rows, GROUP_ROWS)):
                table = pa.Table.from_pylist([packed(row, columns) for row in group], schema)
                writer.write_table(table, row_group_size=GROUP_ROWS)
        return stream.tell()


def packed(row: Encoded, columns: dict[str, Stored]) -> dict[str, Any]:
    """A row of the file; one whose values cannot be stored becomes a row with a reason."""
    facts: dict[str, Any] = {"clip_id": row.clip_id, "caption": row.caption, "reason": row.reason}
    if row.latents is None or row.states is None:
        return facts
    column = latents_column(tuple(row.latents.shape))
    if column not in columns:
        return facts | {"reason": f"it gave latents {list(row.latents.shape)}, not as planned"}
    try:
        values = {
            column: columns[column].pack(row.latents),
            STATES: columns[STATES].pack(row.states),
        }
    except ValueError as error:
        return facts | {"reason": f"it was encoded to {error}"}
    return facts | {"latents_column": column, **values}


# -- reading


def problem_of(folder: Dataset, commit: dict[str, Any]) -> str | None:
    """Why the file of a commit cannot be used; None if it can."""
    try:
        metadata = retried(lambda: read_metadata(folder, commit["name"]))
    except FileNotFoundError:
        return "missing"
    except pa.ArrowInvalid:
        return "damaged"
    sha256 = (metadata.metadata or {}).get(b"shard_sha256", b"").decode()
    if sha256 != commit["files"]["shards"]["sha256"]:
        return "of another shard of that name"
    if metadata.num_rows != commit["num_clips"]:
        return f"of {metadata.num_rows} clips instead of {commit['num_clips']}"
    return None


def read_metadata(folder: Dataset, name: str) -> pq.FileMetaData:
    return pq.read_metadata(folder.path(f"{name}.parquet"), filesystem=folder.filesystem)


def problems_of(folder: Dataset, commits: list[dict[str, Any]]) -> dict[str, str]:
    """The names of the commits with clips whose files cannot be used, and why."""
    commits = [commit for commit in commits if commit["num_clips"]]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = pool.map(partial(problem_of, folder), commits)
        return {c["name"]: why for c, why in zip(commits, found, strict=True) if why}


class File:
    """One open file: any row for one read of each of its two values, from any thread."""

    def __init__(self, folder: Dataset, name: str) -> None:
        path = folder.path(f"{name}.parquet")
        with pq.ParquetFile(path, filesystem=folder.filesystem) as file:
            metadata = file.metadata
            # As Arrow keeps it: strings of Python would take four times the memory.
            self.small = file.read(columns=list(SMALL)).combine_chunks()
        self.stored_in = self.small["latents_column"].to_pylist()
        layout = json.loads(metadata.metadata[b"layout"])
        self.columns = {c: Stored(tuple(shape), dtype) for c, (shape, dtype) in layout.items()}
        self.offsets = {
            column: offsets_of(metadata, column, stored.num_bytes, self.filled(column))
            for column, stored in self.columns.items()
        }
        self.read = reader_of(folder, path)

    def filled(self, column: str) -> np.ndarray:
        """Which rows have a value in a column."""
        if column == STATES:
            return np.array([name is not None for name in self.stored_in], dtype=bool)
        return np.array([name == column for name in self.stored_in], dtype=bool)

    def value(self, column: str, row: int) -> Tensor:
        stored, offset = self.columns[column], int(self.offsets[column][row])
        return stored.unpack(self.read(offset, stored.num_bytes))

    def row(self, n: int) -> Encoded:
        clip_id, caption, reason = (self.small[name][n].as_py() for name in SMALL[:3])
        column = self.stored_in[n]
        if column is None:
            return Encoded(clip_id, caption, reason or "it was not precomputed")
        return Encoded(clip_id, caption, None, self.value(column, n), self.value(STATES, n))


def offsets_of(
    metadata: pq.FileMetaData, column: str, num_bytes: int, here: np.ndarray
) -> np.ndarray:
    """Where each value of a plain column of one page per row group begins; -1 where it is null.

    Parquet puts the values of such a page last, end to end, after its header and null marks.
    """
    index = metadata.schema.names.index(column)
    offsets = np.full(len(here), -1, np.int64)
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        chunk = rows.column(index)
        assert chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
        filled = first + np.flatnonzero(here[first : first + rows.num_rows])
        end = chunk.data_page_offset + chunk.total_compressed_size
        offsets[filled] = end - num_bytes * np.arange(len(filled), 0, -1)
        first += rows.num_rows
    return offsets


def reader_of(folder: Dataset, path: str) -> Callable[[int, int], np.ndarray]:
    """A function (offset, number of bytes) -> those bytes of a file, to keep and to change.

    The copy is made where this is called, in a loader's thread: a view into the map would be
    read from the disk where it is first used, in the training loop.
    """
    if folder.is_local:
        mapped = np.asarray(np.memmap(path, np.uint8, "r"))
        return lambda offset, size: mapped[offset : offset + size].copy()
    file = folder.filesystem.open_input_file(path)
    return lambda offset, size: np.frombuffer(
        bytearray(retried(lambda: file.read_at(size, offset))), np.uint8
    )


class Latents:
    """The stored values of one dataset."""

    def __init__(self, folder: Dataset, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.files: Kept[str, File] = Kept(partial(File, folder), OPEN_FILES)
        self.empty = File(folder, EMPTY).value(STATES, 0)[None]  # [1, L, D]

    def row(self, shard: str, n: int) -> Encoded:
        return self.files.get(shard).row(n)

    def caption(self, shard: str, n: int) -> str | None:
        return self.files.get(shard).small["caption"][n].as_py()


def location_of(dataset: Dataset, config: Config) -> str:
    """LATENTS of a dataset."""
    given = config.precomputed
    return given if isinstance(given, str) else f"{dataset.uri.rstrip('/')}/latents"


def made_here(location: str) -> Iterator[tuple[Dataset, dict[str, Any]]]:
    """Every folder of stored values at a location, and what it was made with."""
    root = Dataset.at(location)
    selector = pafs.FileSelector(root.root, allow_not_found=True)
    for info in root.filesystem.get_file_info(selector):
        if info.type == pafs.FileType.Directory:
            folder = Dataset.at(f"{location.rstrip('/')}/{info.base_name}")
            if folder.exists(MADE_WITH):
                yield folder, json.loads(folder.read_bytes(MADE_WITH))


def open_latents(dataset: Dataset, config: Config) -> Latents:
    """The stored values that a run needs; ConfigError unless they are all there and up to date."""
    location = location_of(dataset, config)
    renew = f"run: {renewing(dataset.uri, config)}"
    here = sources_of(config)
    try:
        found = [(folder, made, differences(made, transform_of(config), config, here))
                 for folder, made in made_here(location)]  # fmt: skip
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"precomputed={config.precomputed}: {error}") from None
    if not found:
        raise ConfigError(f"{dataset.uri}: nothing precomputed at {location}; {renew}")
    folder, made, told = min(found, key=lambda each: len(each[2]))
    if told:
        raise ConfigError(
            f"{dataset.uri}: what is precomputed at {location} is not for this run: "
            f"{'; '.join(told)}; {renew}"
        )
    commits = dataset.commits()
    problems = problems_of(folder, commits)
    if problems:
        some = ", ".join(f"{name} {why}" for name, why in list(problems.items())[:3])
        raise ConfigError(
            f"{dataset.uri}: of its {sum(c['num_clips'] > 0 for c in commits)} shards "
            f"{len(problems)} are not precomputed as they are now ({some}); {renew}"
        )
    return Latents(folder, made["fingerprint"])
