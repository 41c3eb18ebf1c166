"""THE SCHEMA of a dataset folder, and how it is written and read. docs/shards.md tells it in prose.

    run.json                  config, fingerprints, funnel, cost of the last run
    shards/<name>.parquet     kept clips
    ledger/<name>.parquet     every video and candidate clip decided in this commit
    manifest/<name>.json      written last: the commit exists if and only if this does

A folder is a local path or any pyarrow filesystem URI. Needs pyarrow alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

SCHEMA_VERSION = "2"  # 2: scores of text, motion and look

# A column for every measured value, in both tables; null = not scored.
SCORES = (
    *("resolution", "aspect", "duration", "hdr", "black_bars", "static", "watermark", "text"),
    *("motion", "camera_motion", "zoom", "slideshow", "flicker"),
    *("sharpness", "exposure", "colourfulness", "blockiness", "aesthetic"),
    "caption_score",
)

KEPT, DROPPED, FAILED = "kept", "dropped", "failed"

SHARD_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("source_url", pa.string(), nullable=False),
        *[pa.field(n, pa.string()) for n in ("title", "category", "uploader", "license")],
        pa.field("upload_date", pa.string()),  # ISO 8601 date
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("scene_index", pa.int32(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("caption_model", pa.string()),
        pa.field("caption_frame_s", pa.list_(pa.float64())),
        *[pa.field(name, pa.float64()) for name in SCORES],
        pa.field("clip", pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])),
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("level", pa.string(), nullable=False),  # video | clip
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("clip_id", pa.string()),
        pa.field("source_url", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("caption", pa.string()),
        pa.field("decision", pa.string(), nullable=False),  # kept | dropped | failed
        pa.field("rule", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        *[pa.field(name, pa.float64()) for name in SCORES],
        pa.field("watermark_box", pa.list_(pa.float32())),  # x0 y0 x1 y1, fractions of the picture
        pa.field("text_boxes", pa.list_(pa.list_(pa.float32()))),  # each x0 y0 x1 y1, as above
        pa.field("preview", pa.list_(pa.binary())),  # small JPEGs of a clip, in order
        pa.field("stage_s", pa.map_(pa.string(), pa.float64())),  # CPU seconds by stage
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)

# A reader that wants one row should not have to read hundreds: groups are bounded both ways.
MAX_GROUP_ROWS = 64
MAX_GROUP_BYTES = 32 << 20
NUM_READERS = 16  # small files read at once: an object store answers each in tens of ms


def held_out_hash(video_id: str) -> int:
    """A hash of a video's id, in [0, 2**64). With a share s the videos below s * 2**64 are held
    out: for evaluation alone, all their clips, in whatever dataset or subset they are."""
    digest = hashlib.blake2b(video_id.encode(), digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "big")


def is_held_out(video_id: str, share: float) -> bool:
    """Whether a video is one of the share in [0, 1] that nothing is trained on."""
    return held_out_hash(video_id) < share * 2**64


class DatasetError(ValueError):
    """A dataset folder that cannot be used, told in one sentence for the user."""


@dataclass(frozen=True)
class Dataset:
    """A dataset folder on any filesystem that pyarrow knows."""

    filesystem: pafs.FileSystem
    root: str
    uri: str  # as the user gave it

    @staticmethod
    def at(location: str | Path) -> Dataset:
        """The dataset at a local path or a URI such as s3://bucket/folder; need not exist yet."""
        text = str(location)
        if "://" in text:
            filesystem, root = pafs.FileSystem.from_uri(text)
        else:
            filesystem, root = pafs.LocalFileSystem(), str(Path(text).absolute())
        return Dataset(filesystem, root.rstrip("/"), text)

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def names(self, folder: str, suffix: str) -> list[str]:
        """Sorted base names, without the suffix, of the files of one folder; [] without it."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(
            i.base_name.removesuffix(suffix) for i in infos if i.base_name.endswith(suffix)
        )

    def commits(self) -> list[dict[str, Any]]:
        """The manifests of every commit, by name."""
        files = [f"{name}.json" for name in self.names("manifest", ".json")]
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return [json.loads(b) for b in pool.map(partial(self.read_bytes, "manifest"), files)]

    def require(self) -> Dataset:
        """Itself, if it is a dataset with at least one commit; DatasetError otherwise."""
        if not self.names("manifest", ".json"):
            raise DatasetError(
                f"{self.uri} is not a dataset folder: it holds no manifest/*.json; "
                "give the --output of a curation run"
            )
        return self

    def read_bytes(self, *parts: str) -> bytes:
        with self.filesystem.open_input_stream(self.path(*parts)) as stream:
            return stream.read()

    def shards(self) -> list[str]:
        """Names of the committed shards that hold clips."""
        return [c["name"] for c in self.commits() if c["num_clips"]]

    def open_shard(self, name: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.path("shards", f"{name}.parquet"), filesystem=self.filesystem)

    def ledgers(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The ledger of every commit, one after another."""
        with ThreadPoolExecutor(NUM_READERS) as pool:
            names = [commit["name"] for commit in self.commits()]
            yield from pool.map(partial(self.ledger_of, columns=columns), names)

    def ledger_of(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The ledger of one commit; a column younger than the file comes back null."""
        schema = pa.schema(
            [LEDGER_SCHEMA.field(name) for name in columns or LEDGER_SCHEMA.names],
            metadata=LEDGER_SCHEMA.metadata,
        )
        path = self.path("ledger", f"{name}.parquet")
        with pq.ParquetFile(path, filesystem=self.filesystem) as file:
            there = [name for name in schema.names if name in file.schema_arrow.names]
            return conform(file.read(there), schema)

    def ledger(self, columns: list[str] | None = None) -> pa.Table:
        """Every committed ledger row, in commit order."""
        tables = list(self.ledgers(columns))
        return pa.concat_tables(tables) if tables else LEDGER_SCHEMA.empty_table()

    def decided(self) -> list[tuple[str, str]]:
        """(video_id, source_url) of every video that has an outcome."""
        pairs: list[tuple[str, str]] = []
        for table in self.ledgers(["level", "video_id", "source_url"]):
            videos = table.filter(pc.equal(table["level"], "video"))
            ids, urls = videos["video_id"].to_pylist(), videos["source_url"].to_pylist()
            pairs += zip(ids, urls, strict=True)
        return pairs

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Every kept clip as a dict, shard by shard, a row group in memory at a time."""
        for name in self.shards():
            with self.open_shard(name) as shard:
                for group in range(shard.num_row_groups):
                    yield from shard.read_row_group(group, columns=columns).to_pylist()

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a whole file so that it is either there complete or not there."""
        with self.replacing(*parts) as sink:
            sink.write(data)

    def replacing(self, *parts: str) -> AtomicFile:
        self.filesystem.create_dir(self.path(*parts[:-1]), recursive=True)
        return AtomicFile(self, self.path(*parts))

    def exists(self, *parts: str) -> bool:
        return self.filesystem.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound

    def delete(self, *parts: str) -> None:
        if self.exists(*parts):
            self.filesystem.delete_file(self.path(*parts))

    def delete_commit(self, name: str) -> None:
        """Remove a commit, its manifest first, so that a kill leaves orphans and never a lie."""
        self.delete("manifest", f"{name}.json")
        self.delete("shards", f"{name}.parquet")
        self.delete("ledger", f"{name}.parquet")

    def sweep(self) -> list[str]:
        """Delete what killed runs left: files of no commit. Returns their paths.

        Only the one run that writes a dataset may call this.
        """
        live = set(self.names("manifest", ".json"))
        removed = []
        for folder in ("shards", "ledger", "manifest"):
            selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
            for info in self.filesystem.get_file_info(selector):
                if info.base_name.startswith(".tmp-") or Path(info.base_name).stem not in live:
                    self.filesystem.delete_file(info.path)
                    removed.append(info.path)
        return removed


class AtomicFile:
    """A file that appears under its name only when it is whole and on the disk."""

    def __init__(self, dataset: Dataset, path: str) -> None:
        self.dataset = dataset
        self.path = path
        # Object stores show an object only when its upload ends; folders need a rename.
        folder, name = path.rsplit("/", 1)
        self.written = f"{folder}/.tmp-{uuid.uuid4().hex}-{name}" if dataset.is_local else path

    def __enter__(self) -> pa.NativeFile:
        self.stream = self.dataset.filesystem.open_output_stream(self.written)
        return self.stream

    def __exit__(self, error_type: type | None, *_: object) -> None:
        self.stream.close()
        if error_type is not None:
            # Closing completes an upload, half as it is: nothing may be found under its name.
            self.dataset.filesystem.delete_file(self.written)
            return
        if not self.dataset.is_local:
            return
        for path in (self.written, str(Path(self.written).parent)):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        Path(self.written).replace(self.path)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of `schema`, in its order; those it lacks are null."""
    empty = pa.nulls(len(table))
    columns = [
        table[field.name] if field.name in table.column_names else empty.cast(field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def has_columns(names: list[str], schema: pa.Schema) -> bool:
    """Whether a file has the columns of a schema, in order, but for scores younger than it."""
    younger = set(SCORES) - set(names)
    return names == [name for name in schema.names if name not in younger]


def write_commit(
    dataset: Dataset,
    clips: list[dict[str, Any]],
    ledger: list[dict[str, Any]],
    fingerprints: dict[str, str],
) -> dict[str, Any]:
    """Write kept clips and ledger rows as one commit and return its manifest.

    `clips` are dicts of SHARD_SCHEMA, `ledger` of LEDGER_SCHEMA; whole videos only. The name is a
    hash of the videos and fingerprints, so the same commit written twice is one commit.
    """
    videos = [row["video_id"] for row in ledger if row["level"] == "video"]
    table = pa.Table.from_pylist(ledger, schema=LEDGER_SCHEMA)
    clips = sorted(clips, key=lambda row: (row["video_id"], row["start_s"]))
    return write_tables(dataset, videos, row_groups(clips), table, fingerprints)


def commit_name(videos: list[str], fingerprints: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([sorted(videos), fingerprints]).encode()).hexdigest()[:16]


def write_tables(
    dataset: Dataset,
    videos: list[str],
    clips: Iterable[pa.Table],
    ledger: pa.Table,
    fingerprints: dict[str, str],
) -> dict[str, Any]:
    """Write tables of kept clips, a row group each, and a ledger as one commit.

    Returns its manifest.
    """
    name = commit_name(videos, fingerprints)
    if dataset.exists("manifest", f"{name}.json"):
        return json.loads(dataset.read_bytes("manifest", f"{name}.json"))  # a task that ran twice
    groups = iter(clips)
    first = next(groups, None)
    num_clips, duration_s = 0, 0.0

    def counted() -> Iterator[pa.Table]:
        nonlocal num_clips, duration_s
        for group in chain([first], groups):
            num_clips += len(group)
            duration_s += pc.sum(group["duration_s"]).as_py()
            yield group

    files = {}
    if first is not None:
        files["shards"] = write_table(dataset, "shards", name, counted(), SHARD_SCHEMA)
    files["ledger"] = write_table(dataset, "ledger", name, [ledger], LEDGER_SCHEMA)
    manifest: dict[str, Any] = {
        "name": name,
        "schema_version": SCHEMA_VERSION,
        "fingerprints": fingerprints,
        "video_ids": sorted(videos),
        "num_clips": num_clips,
        "num_ledger_rows": len(ledger),
        "duration_s": duration_s,
        "files": files,
    }
    dataset.write_bytes(json.dumps(manifest, indent=1).encode(), "manifest", f"{name}.json")
    return manifest


def row_groups(clips: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """Rows of kept clips as tables bounded by rows and bytes of media."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in clips:
        size += len(row["clip"]["bytes"])
        if group and (len(group) >= MAX_GROUP_ROWS or size > MAX_GROUP_BYTES):
            yield pa.Table.from_pylist(group, schema=SHARD_SCHEMA)
            group, size = [], len(row["clip"]["bytes"])
        group.append(row)
    if group:
        yield pa.Table.from_pylist(group, schema=SHARD_SCHEMA)


def write_table(
    dataset: Dataset, folder: str, name: str, groups: Iterable[pa.Table], schema: pa.Schema
) -> dict[str, Any]:
    """Write one Parquet file, a row group per table; returns its bytes and sha256."""
    # Video does not compress, so its column is stored plain and can be memory-mapped.
    compression = {c: "zstd" for c in leaf_columns(schema)} | {"clip.bytes": "none"}
    with (
        dataset.replacing(folder, f"{name}.parquet") as stream,
        HashingSink(stream) as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression=compression,
            use_dictionary=[c for c in compression if c != "clip.bytes"],
            write_statistics=[c for c in compression if c != "clip.bytes"],
            write_page_index=True,
        ) as writer,
    ):
        for table in groups:
            writer.write_table(table, row_group_size=max(1, len(table)))
    return {"bytes": sink.num_bytes, "sha256": sink.sha256.hexdigest()}


def leaf_columns(schema: pa.Schema) -> list[str]:
    """Dotted names of the Parquet columns of a schema."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(i).path for i in range(len(parquet.names))]


class HashingSink:
    """A write-only file object that counts and hashes what passes through."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream = stream
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.sha256.update(view)
        self.num_bytes += view.nbytes
        self.stream.write(view)
        return view.nbytes

    def tell(self) -> int:
        return self.num_bytes

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def __enter__(self) -> HashingSink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
