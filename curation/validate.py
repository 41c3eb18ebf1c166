"""Prove that a dataset folder is what its manifests say: every row decodes and adds up.

vf-validate runs/demo
vf-validate s3://bucket/mine --no-decode
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import track

from curation.commands import say, screen, told_errors, without_stdin
from curation.media.files import MediaError, open_clip, readable
from curation.places import open_dataset
from curation.shards import (
    FAILED,
    KEPT,
    LEDGER_SCHEMA,
    SHARD_SCHEMA,
    Dataset,
    DatasetError,
    own_scores,
    with_own,
)
from curation.shards.schema import has_columns

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
MAX_SHOWN = 20


def check_commit(dataset: Dataset, manifest: dict[str, Any], decode: bool) -> list[str]:
    """Everything wrong with one commit, as sentences; [] when all is well."""
    name = manifest["name"]
    problems = list(check_files(dataset, manifest))
    if problems:
        return problems  # its rows cannot be trusted
    ledger_path = dataset.path("ledger", f"{name}.parquet")
    ledger = pq.read_table(ledger_path, filesystem=dataset.filesystem)
    if not has_columns(ledger.schema.names, with_own(LEDGER_SCHEMA, own_scores(manifest))):
        problems.append(f"ledger/{name}: columns differ from schema {manifest['schema_version']}")
        return problems
    rows = ledger.to_pylist()
    problems += [f"ledger/{name}: {p}" for p in check_ledger(rows, manifest)]
    kept = {r["clip_id"] for r in rows if r["level"] == "clip" and r["decision"] == KEPT}
    seen: Counter[str] = Counter()
    if "shards" in manifest["files"]:
        for row in shard_rows(dataset, name, with_own(SHARD_SCHEMA, own_scores(manifest))):
            seen[row["clip_id"]] += 1
            if decode:
                problems += [f"shards/{name}: {row['clip_id']}: {p}" for p in check_clip(row)]
    if seen != Counter(kept):
        problems.append(f"shards/{name}: {seen.total()} clips, but the ledger kept {len(kept)}")
    return problems


def check_files(dataset: Dataset, manifest: dict[str, Any]) -> Iterator[str]:
    """Bytes and sha256 of a commit's files against its manifest."""
    for folder, facts in manifest["files"].items():
        where = f"{folder}/{manifest['name']}"
        try:
            data = dataset.read_bytes(folder, f"{manifest['name']}.parquet")
        except FileNotFoundError:
            yield f"{where}: the file is missing"
            continue
        if len(data) != facts["bytes"]:
            yield f"{where}: {len(data)} bytes, the manifest says {facts['bytes']}"
        elif hashlib.sha256(data).hexdigest() != facts["sha256"]:
            yield f"{where}: its content differs from the manifest's sha256"


def check_ledger(rows: list[dict[str, Any]], manifest: dict[str, Any]) -> Iterator[str]:
    """Outcomes and sums of a commit's ledger."""
    videos = {row["video_id"]: row for row in rows if row["level"] == "video"}
    if sorted(videos) != manifest["video_ids"] or len(rows) != manifest["num_ledger_rows"]:
        yield "its rows are not those the manifest counts"
    kept_clips = Counter(
        row["video_id"] for row in rows if row["level"] == "clip" and row["decision"] == KEPT
    )
    for video_id, row in videos.items():
        if (row["decision"] == KEPT) != (kept_clips[video_id] > 0):
            yield f"{video_id} is {row['decision']} with {kept_clips[video_id]} kept clips"
    for row in rows:
        if row["decision"] == FAILED and not row["error_class"]:
            yield f"{row['clip_id'] or row['video_id']} failed without an error class"


def shard_rows(dataset: Dataset, name: str, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    with dataset.open_shard(name) as shard:
        if not has_columns(shard.schema_arrow.names, schema):
            raise DatasetError(f"shards/{name}: its columns are not those of docs/shards.md")
        for group in range(shard.num_row_groups):
            yield from shard.read_row_group(group).to_pylist()


def check_clip(row: dict[str, Any]) -> Iterator[str]:
    """A clip's media against its row: packets, frames, size, times, and no sound."""
    data = row["clip"]["bytes"]
    try:
        with open_clip(data, ignore_edits=True) as container:
            stored = sum(1 for p in readable(container.demux(video=0)) if p.size)
        with open_clip(data) as container:
            if container.streams.audio:
                yield "it has an audio stream"
            frames = [(f.time, f.width, f.height) for f in readable(container.decode(video=0))]
    except (MediaError, IndexError) as error:
        yield f"it does not decode: {error}"
        return
    if not stored == len(frames) == row["num_frames"]:
        yield f"{stored} packets, {len(frames)} frames, num_frames {row['num_frames']}"
        return
    sizes = {(width, height) for _, width, height in frames}
    if sizes != {(row["width"], row["height"])}:
        yield f"pictures of {sizes}, the row says {row['width']}x{row['height']}"
    frame_s = row["duration_s"] / row["num_frames"]
    if abs(frames[0][0]) > 1e-3 or frames[-1][0] >= row["duration_s"] + frame_s / 2:
        yield f"frames from {frames[0][0]:.3f} to {frames[-1][0]:.3f} s of {row['duration_s']:.3f}"


def check_dataset(dataset: Dataset, manifests: list[dict[str, Any]]) -> Iterator[str]:
    """What no commit can see alone: the same video or file twice, files of no commit."""
    videos = Counter(v for m in manifests for v in m["video_ids"])
    for video_id in [v for v, n in videos.items() if n > 1]:
        yield f"video {video_id} is in {videos[video_id]} commits"
    live = {m["name"] for m in manifests}
    for folder in ("shards", "ledger"):
        for name in dataset.names(folder, ".parquet"):
            if name not in live:
                yield f"{folder}/{name}.parquet belongs to no manifest; the next run removes it"


@app.command(epilog="Example: vf-validate runs/demo")
def validate(
    dataset: Annotated[str, typer.Argument(help="A dataset folder or URI.")],
    decode: Annotated[bool, typer.Option(help="Decode every clip, not only count rows.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
) -> None:
    """Prove that every row of a dataset decodes and adds up. Exit code 1 when one does not."""
    with told_errors(mistakes=(OSError, pa.ArrowException)):
        data = open_dataset(dataset)
        manifests = data.commits()
        problems = list(check_dataset(data, manifests))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            checks = [pool.submit(check_commit, data, m, decode) for m in manifests]
            bar = Console(stderr=True)
            for check in track(checks, "validating", console=bar, transient=True):
                problems += check.result()
    tell(manifests, problems, decode)
    if problems:
        raise typer.Exit(1)


def tell(manifests: list[dict[str, Any]], problems: list[str], decode: bool) -> None:
    """Print the first problems, or what was found well."""
    console = screen()
    for problem in problems[:MAX_SHOWN]:
        say(console, problem, "red")
    if problems:
        say(console, f"{len(problems)} problems in {len(manifests)} commits", "bold red")
        return
    clips, seconds = (sum(m[k] for m in manifests) for k in ("num_clips", "duration_s"))
    verb = "decode" if decode else "are counted"
    say(
        console,
        f"{len(manifests)} commits: {clips} clips ({seconds / 60:.1f} min) {verb}, "
        f"{sum(len(m['video_ids']) for m in manifests)} videos add up",
        "bold green",
    )


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
