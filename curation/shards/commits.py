"""A commit: kept clips and ledger rows as Parquet, and the manifest that is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.shards.folders import Dataset
from curation.shards.schema import LEDGER_SCHEMA, SCHEMA_VERSION, SHARD_SCHEMA, with_own

# A reader that wants one row should not have to read hundreds: groups are bounded both ways.
MAX_GROUP_ROWS = 64
MAX_GROUP_BYTES = 32 << 20


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
