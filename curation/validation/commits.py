"""Everything wrong with a dataset, commit by commit, as sentences that name the file."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.shards import (
    FAILED,
    KEPT,
    LEDGER_SCHEMA,
    NUM_READERS,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    Dataset,
    DatasetError,
    own_scores,
    with_own,
)
from curation.shards.folders import OUR_NAME
from curation.shards.manifests import replaced as replaced_in
from curation.shards.schema import ABOUT, has_columns
from curation.takedown import tombstones
from curation.takedown.videos import taken_down_in
from curation.validation.clips import check_clip

Row = dict[str, Any]
# What a kept clip's ledger row and its shard row both say.
SHARED = [n for n in SHARD_SCHEMA.names if n in LEDGER_SCHEMA.names and n not in ABOUT]


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    `commit` is what has to be done again; with `video_id` that video of it alone. Without either
    it is a file of no commit.
    """

    where: str
    says: str
    commit: str | None = None
    video_id: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.says}"


# -- the whole dataset


def read_manifests(dataset: Dataset) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The manifests that can be read, and what is wrong with those that cannot.

    Raises DatasetError for what is not ours to judge: a file whose name no commit has, and a commit
    of another schema.
    """
    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = list(pool.map(partial(read_manifest, dataset), dataset.names("manifest", ".json")))
    manifests = [each for each in found if not isinstance(each, Problem)]
    for manifest in manifests:
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise DatasetError(
                f"{dataset.uri}: the commit {manifest['name']} has schema "
                f"{manifest.get('schema_version')}, this version of the code reads {SCHEMA_VERSION}"
            )
    return manifests, [each for each in found if isinstance(each, Problem)]


def read_manifest(dataset: Dataset, name: str) -> dict[str, Any] | Problem:
    try:
        return dataset.manifest(name)
    except DatasetError as error:
        if not OUR_NAME.fullmatch(f"{name}.json"):
            raise
        says = str(error).partition("is broken or not of a dataset: ")[2].partition(";")[0]
        return Problem(f"manifest/{name}.json", f"it is broken: {says}", name)


def check_dataset(dataset: Dataset, manifests: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    """What no commit can see alone: a video in two commits or taken down, files of none."""
    replaced = replaced_in(manifests)
    seen: dict[str, str] = {}
    for manifest in manifests:
        name = manifest["name"]
        if name in replaced:
            says = "another commit has taken its place; the next run removes it"
            yield Problem(f"manifest/{name}.json", says, name)
            continue
        for video_id in manifest["video_ids"]:
            first = seen.setdefault(video_id, name)
            if first != name:
                says = f"the video {video_id} is in {first}, too"
                yield Problem(f"manifest/{name}.json", says, name, video_id)
    yield from check_taken_down(dataset, manifests)
    live = set(dataset.names("manifest", ".json"))
    for folder in ("shards", "ledger"):
        for name in dataset.names(folder, ".parquet"):
            if name not in live:
                says = "it belongs to no manifest; the next run removes it"
                yield Problem(f"{folder}/{name}.parquet", says)


def check_taken_down(dataset: Dataset, manifests: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    """Tombstones that cannot be read, and videos that are there although they have one."""
    try:
        stones = tombstones.read(dataset)
    except DatasetError as error:
        yield Problem(tombstones.FOLDER, str(error).removeprefix(f"{dataset.uri}: "))
        return
    for manifest in manifests if stones else ():
        name = manifest["name"]
        try:
            gone = taken_down_in(dataset, manifest, stones)
        except (pa.ArrowException, OSError):
            continue  # check_commit tells what is wrong with its files
        for video_id, date in sorted(gone.items()):
            says = f"the video {video_id} was taken down on {date}, and is there; vf-purge again"
            yield Problem(f"manifest/{name}.json", f"{says} removes it", name, video_id)


# -- one commit


def check_commit(dataset: Dataset, manifest: dict[str, Any], decode: bool) -> list[Problem]:
    """Everything wrong with one commit; [] when all is well."""
    name = manifest["name"]
    problems = list(check_files(dataset, manifest))
    if problems:
        return problems  # its rows cannot be trusted
    try:
        return list(check_rows(dataset, manifest, decode))
    except (pa.ArrowException, DatasetError, OSError) as error:
        return [Problem(f"manifest/{name}.json", f"its files cannot be read: {error}", name)]


def check_files(dataset: Dataset, manifest: dict[str, Any]) -> Iterator[Problem]:
    """Bytes and sha256 of a commit's files against its manifest, and the manifest itself."""
    name, files = manifest["name"], manifest["files"]
    if "ledger" not in files or ("shards" in files) != (manifest["num_clips"] > 0):
        says = f"it names {sorted(files)} and {manifest['num_clips']} clips"
        yield Problem(f"manifest/{name}.json", says, name)
    for folder, facts in files.items():
        where = f"{folder}/{name}.parquet"
        try:
            data = dataset.read_bytes(folder, f"{name}.parquet")
        except FileNotFoundError:
            yield Problem(where, "the file is missing", name)
            continue
        if len(data) != facts["bytes"]:
            says = f"{len(data)} bytes, the manifest says {facts['bytes']}"
            yield Problem(where, says, name)
        elif hashlib.sha256(data).hexdigest() != facts["sha256"]:
            yield Problem(where, "its content differs from the manifest's sha256", name)


def check_rows(dataset: Dataset, manifest: dict[str, Any], decode: bool) -> Iterator[Problem]:
    """The rows of a commit whose files are those that were written."""
    name = manifest["name"]
    schema = with_own(LEDGER_SCHEMA, own_scores(manifest))
    where = f"ledger/{name}.parquet"
    ledger = pq.read_table(dataset.path("ledger", f"{name}.parquet"), filesystem=dataset.filesystem)
    if not has_columns(ledger.schema.names, schema):
        says = f"its columns differ from schema {manifest['schema_version']}"
        yield Problem(where, says, name)
        return
    rows = dataset.ledger_of(name, schema.names).to_pylist()
    for video_id, says in check_ledger(rows, manifest):
        yield Problem(where, says, name, video_id)
    kept = {row["clip_id"]: row for row in rows if is_clip(row) and row["decision"] == KEPT}
    seen: Counter[str] = Counter()
    duration_s = 0.0
    where = f"shards/{name}.parquet"
    if "shards" in manifest["files"]:
        for row in shard_rows(dataset, name, with_own(SHARD_SCHEMA, own_scores(manifest))):
            seen[row["clip_id"]] += 1
            duration_s += row["duration_s"]
            told = check_clip_rows(row, kept.get(row["clip_id"]), decode)
            for says in told:
                yield Problem(where, f"{row['clip_id']}: {says}", name, row["video_id"])
    for clip_id, row in kept.items():
        if seen[clip_id] != 1:
            says = f"{clip_id} is kept and stored {seen[clip_id]} times"
            yield Problem(where, says, name, row["video_id"])
    totals = (seen.total(), manifest["num_clips"])
    if totals[0] != totals[1] or abs(duration_s - manifest.get("duration_s", 0.0)) > 1e-3:
        says = f"{totals[0]} clips of {duration_s:.3f} s, the manifest says {totals[1]}"
        yield Problem(where, f"{says} of {manifest['duration_s']:.3f}", name)


def is_clip(row: Row) -> bool:
    return row["level"] == "clip"


def check_ledger(rows: list[Row], manifest: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    """Outcomes and sums of a commit's ledger; each with the video that is wrong, if it is one."""
    videos = {row["video_id"]: row for row in rows if row["level"] == "video"}
    num_videos = sum(row["level"] == "video" for row in rows)
    if sorted(videos) != manifest["video_ids"] or len(rows) != manifest.get("num_ledger_rows", 0):
        yield None, "its rows are not those the manifest counts"
    if num_videos != len(videos):
        yield None, f"{num_videos} videos have {len(videos)} ids"
    ids = Counter(row["clip_id"] for row in rows if is_clip(row))
    for row in rows:
        video_id = row["video_id"]
        if video_id not in videos:
            yield None, f"{row['clip_id']} is of {video_id}, which has no row"
        if is_clip(row) and ids[row["clip_id"]] > 1:
            yield video_id, f"{row['clip_id']} is there {ids[row['clip_id']]} times"
        if row["decision"] == FAILED and not row["error_class"]:
            yield video_id, f"{row['clip_id'] or video_id} failed without an error class"
    kept_clips = Counter(
        row["video_id"] for row in rows if is_clip(row) and row["decision"] == KEPT
    )
    for video_id, row in videos.items():
        if (row["decision"] == KEPT) != (kept_clips[video_id] > 0):
            yield (
                video_id,
                f"{video_id} is {row['decision']} with {kept_clips[video_id]} kept clips",
            )


def shard_rows(dataset: Dataset, name: str, schema: pa.Schema) -> Iterator[Row]:
    with dataset.open_shard(name) as shard:
        if not has_columns(shard.schema_arrow.names, schema):
            raise DatasetError(f"shards/{name}: its columns are not those of docs/shards.md")
        for group in range(shard.num_row_groups):
            yield from shard.read_row_group(group).to_pylist()


def check_clip_rows(row: Row, told: Row | None, decode: bool) -> Iterator[str]:
    """A clip's shard row against its ledger row, None where that keeps no such clip."""
    if told is None:
        yield "the ledger does not keep it"
        return
    differ = [name for name in SHARED if name in row and row[name] != told[name]]
    if differ:
        name = differ[0]
        yield f"its {name} is {row[name]!r}, in the ledger {told[name]!r}"
    path = (row["clip"] or {}).get("path") or ""
    if re.search(r"[/\\\0]", path):
        yield f"its clip.path {path!r} leads out of a folder that clips are put into"
    if decode:
        yield from check_clip(row, told["preview"] or ())
