"""A dataset folder on any filesystem: what is in it, whole files, and what is not ours to touch."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from curation.shards import manifests
from curation.shards.schema import LEDGER_SCHEMA, SCHEMA_VERSION, conform, schema_of

MARKER = "videofactory.json"  # only in a folder that has it are files removed
LOCK = ".lock"
# Tells the `datasets` library where the rows are; vf-report --card writes another in its place.
CARD = "README.md"
CARD_TEXT = """---
configs:
- config_name: default
  data_files: shards/*.parquet
---
Clips of VideoFactory: a row of shards/*.parquet holds a clip's mp4 and what is known of it, ledger/
what became of every video. `vf-report FOLDER --card` puts the statistics of this dataset here.
"""
# What a commit's files are called, and those that were being written when a run was killed.
OUR_NAME = re.compile(r"(?P<tmp>\.tmp-[0-9a-f]{32}-)?(?P<name>[0-9a-f]{16})\.(?P<suffix>\w+)")
NUM_READERS = 16  # small files read at once: an object store answers each in tens of ms


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
        """The manifests of every commit, by name; DatasetError where a file is not one.

        Of a commit and another form of it that has taken its place, the new one alone.
        """
        found = self.manifests()
        old = manifests.replaced(found)
        return [each for each in found if each["name"] not in old]

    def manifests(self) -> list[dict[str, Any]]:
        """The manifests of `commits` and of those replaced that are about to be deleted."""
        # One that is being written, or was when a run was killed, is none yet.
        names = [n for n in self.names("manifest", ".json") if not n.startswith(".tmp-")]
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return list(pool.map(self.manifest, names))

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of one commit; DatasetError where its file holds something else."""
        text = self.read_bytes("manifest", f"{name}.json")
        try:
            return manifests.parse(text, name)
        except ValueError as error:
            raise DatasetError(
                f"{self.uri}: manifest/{name}.json is broken or not of a dataset: {error}; "
                "give another folder, or move that file away"
            ) from None

    def own_scores(self) -> list[str]:
        """The scores of users' own scorers that some commit has."""
        return sorted({name for commit in self.commits() for name in own_scores(commit)})

    def require(self, *, emptied: bool = False) -> Dataset:
        """Itself, if it is a dataset with at least one commit; DatasetError otherwise.

        With `emptied` one will do of which everything was taken down.
        """
        there = self.names("manifest", ".json") or (emptied and self.names("tombstones", ".json"))
        if not there:
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

        Ours has the marker, or a manifest: datasets older than the marker have none. Files are
        removed from its folders, so those have to be its own, and no links to others.
        """
        for part in ("shards", "ledger", "manifest") if self.is_local else ():
            if Path(self.path(part)).is_symlink():
                raise DatasetError(
                    f"{self.path(part)} is a link: files that are removed would be another "
                    "folder's; put the files in its place, or mount that folder there"
                )
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
        if not self.exists(CARD):
            self.write_bytes(CARD_TEXT.encode(), CARD)

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
