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
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
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

from curation.scores.table import SCORES

SCHEMA_VERSION = "2"  # 2: scores of text, motion and look

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
        pa.field("captions", pa.list_(pa.string())),  # where lists gave several
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
        pa.field("source_fingerprint", pa.string()),  # of what lists said of the video
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("caption", pa.string()),
        pa.field("decision", pa.string(), nullable=False),  # kept | dropped | failed
        pa.field("rule", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string()),
        pa.field("partial", pa.string()),  # why only the video's beginning was curated
        pa.field("attempts", pa.int32(), nullable=False),
        *[pa.field(name, pa.float64()) for name in SCORES],
        pa.field("watermark_box", pa.list_(pa.float32())),  # x0 y0 x1 y1, fractions of the picture
        pa.field("text_boxes", pa.list_(pa.list_(pa.float32()))),  # each x0 y0 x1 y1, as above
        pa.field("preview", pa.list_(pa.binary())),  # small JPEGs of a clip, in order
        pa.field("stage_s", pa.map_(pa.string(), pa.float64())),  # CPU seconds by stage
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)


def with_own(schema: pa.Schema, own: Iterable[str]) -> pa.Schema:
    """A schema with the scores of a user's own scorers behind the others."""
    place = schema.get_field_index(SCORES[-1]) + 1
    for name in own:
        schema = schema.insert(place, pa.field(name, pa.float64()))
        place += 1
    return schema


def schema_of(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Some columns of a schema; a name that it lacks is a user's own score."""
    fields = [
        schema.field(name) if name in schema.names else pa.field(name, pa.float64())
        for name in names
    ]
    return pa.schema(fields, metadata=schema.metadata)


MARKER = "videofactory.json"  # only in a folder that has it are files removed
LOCK = ".lock"
# What a commit's files are called, and those that were being written when a run was killed.
OUR_NAME = re.compile(r"(?P<tmp>\.tmp-[0-9a-f]{32}-)?(?P<name>[0-9a-f]{16})\.(?P<suffix>\w+)")

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

    def own_scores(self) -> list[str]:
        """The scores of users' own scorers that some commit has."""
        return sorted({name for commit in self.commits() for name in own_scores(commit)})

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
        schema = schema_of(LEDGER_SCHEMA, columns or LEDGER_SCHEMA.names)
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

    def check_ours(self) -> None:
        """Raise DatasetError for a folder that holds something and is no dataset of ours.

        Ours has the marker, or a manifest: datasets older than the marker have none.
        """
        if self.exists(MARKER) or any(map(OUR_NAME.fullmatch, self.names("manifest", ""))):
            return
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        strange = [info.base_name for info in self.filesystem.get_file_info(selector)]
        # A run may have been killed while it wrote the marker.
        strange = sorted(n for n in strange if n != LOCK and not n.endswith(f"-{MARKER}"))
        if strange:
            raise DatasetError(
                f"{self.uri} is not empty and no dataset of ours: it holds {strange[0]!r}; "
                "give a new folder, so that no file of yours is ever taken for one of ours"
            )

    def claim(self) -> None:
        """Mark a folder as a dataset of ours before anything is written; see check_ours."""
        self.check_ours()
        if not self.exists(MARKER):
            self.write_bytes(json.dumps({"schema_version": SCHEMA_VERSION}).encode(), MARKER)

    def sweep(self) -> list[str]:
        """Delete what killed runs left: files of no commit, by names that only we write.

        Returns their paths. Only the one run that writes a dataset may call this, and only in a
        folder that it has claimed.
        """
        live = set(self.names("manifest", ".json"))
        removed = []
        for folder, suffix in (("shards", "parquet"), ("ledger", "parquet"), ("manifest", "json")):
            selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
            for info in self.filesystem.get_file_info(selector):
                name = OUR_NAME.fullmatch(info.base_name)
                if name and name["suffix"] == suffix and (name["tmp"] or name["name"] not in live):
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


def own_scores(manifest: dict[str, Any]) -> list[str]:
    """The scores of users' own scorers that a commit has columns for."""
    return manifest.get("own_scores", [])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of `schema`, in its order; those it lacks are null."""
    empty = pa.nulls(len(table))
    columns = [
        table[field.name] if field.name in table.column_names else empty.cast(field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


YOUNGER = {
    "captions",
    "source_fingerprint",
    "partial",
}  # columns that files of this version may lack


def has_columns(names: list[str], schema: pa.Schema) -> bool:
    """Whether a file has the columns of a schema, in order, but for those younger than it."""
    younger = {*SCORES, *YOUNGER} - set(names)
    return names == [name for name in schema.names if name not in younger]


def write_commit(
    dataset: Dataset,
    clips: list[dict[str, Any]],
    ledger: list[dict[str, Any]],
    fingerprints: dict[str, str],
    own: Sequence[str] = (),
    replaces: str | None = None,
) -> dict[str, Any]:
    """Write kept clips and ledger rows as one commit and return its manifest.

    `clips` are dicts of SHARD_SCHEMA, `ledger` of LEDGER_SCHEMA; whole videos only. `own` are the
    scores of the user's own scorers among them. The name is a hash of the videos and fingerprints,
    so the same commit written twice is one commit. `replaces` names the commit that this one is
    another form of, to be deleted once this one is there.
    """
    videos = [row["video_id"] for row in ledger if row["level"] == "video"]
    table = pa.Table.from_pylist(ledger, schema=with_own(LEDGER_SCHEMA, own))
    clips = sorted(clips, key=lambda row: (row["video_id"], row["start_s"]))
    groups = row_groups(clips, with_own(SHARD_SCHEMA, own))
    said = [row.get("source_fingerprint") or "" for row in ledger if row["level"] == "video"]
    name = commit_name(videos, fingerprints, sorted(said) if any(said) else ())
    return write_tables(dataset, videos, groups, table, fingerprints, own, name, replaces)


def commit_name(videos: list[str], fingerprints: dict[str, str], said: Sequence[str] = ()) -> str:
    """The name of a commit; `said` are the fingerprints of what lists said of its videos."""
    known = [sorted(videos), fingerprints, *said]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def write_tables(
    dataset: Dataset,
    videos: list[str],
    clips: Iterable[pa.Table],
    ledger: pa.Table,
    fingerprints: dict[str, str],
    own: Sequence[str] = (),
    name: str | None = None,
    replaces: str | None = None,
) -> dict[str, Any]:
    """Write tables of kept clips, a row group each, and a ledger as one commit.

    `own`, `replaces`: as write_commit has them; `name`: of videos and fingerprints by default.
    Returns its manifest.
    """
    name = name or commit_name(videos, fingerprints)
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
        files["shards"] = write_table(
            dataset, "shards", name, counted(), with_own(SHARD_SCHEMA, own)
        )
    files["ledger"] = write_table(dataset, "ledger", name, [ledger], with_own(LEDGER_SCHEMA, own))
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
    if own:
        manifest["own_scores"] = list(own)
    if replaces:
        manifest["replaces"] = replaces
    dataset.write_bytes(json.dumps(manifest, indent=1).encode(), "manifest", f"{name}.json")
    return manifest


def row_groups(clips: list[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows of kept clips as tables bounded by rows and bytes of media."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in clips:
        size += len(row["clip"]["bytes"])
        if group and (len(group) >= MAX_GROUP_ROWS or size > MAX_GROUP_BYTES):
            yield pa.Table.from_pylist(group, schema=schema)
            group, size = [], len(row["clip"]["bytes"])
        group.append(row)
    if group:
        yield pa.Table.from_pylist(group, schema=schema)


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
