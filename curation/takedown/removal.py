"""What has a tombstone is taken out of a dataset: commit by commit, each whole or not at all.

Driven by the tombstones alone, so that a vf-purge that was killed is ended by the same command or
by the next curation run. Of every commit first its new form is written, which readers take in its
place from then on, then its scores are carried over, then what is left of the old one is deleted.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from curation.flow.holdings import ledger_rows, write_anew
from curation.funnels import FUNNEL_COLUMNS, count
from curation.shards import KEPT, Dataset, DatasetError, write_table
from curation.shards.folders import OUR_NAME
from curation.shards.manifests import replaced
from curation.subsets.indexed import INDEX
from curation.takedown.asked import indexed
from curation.takedown.tombstones import FOLDER, Tombstones
from curation.takedown.videos import taken_down, taken_down_in

PAGES = ("report.html", "comparison.html")  # they show clips
SCORES, LATENTS = "scores", "latents"  # a folder in each holds a file NAME.parquet of a commit
HALF_WRITTEN = re.compile(r"\.tmp-[0-9a-f]{32}-")  # a file that a kill left


@dataclass
class Amount:
    """What of a dataset has tombstones: videos, and their clips that were kept."""

    videos: int = 0
    clips: int = 0
    minutes: float = 0.0
    latents: int = 0  # files, which hold the other clips of their shard as well


def amount(dataset: Dataset, stones: Tombstones) -> Amount:
    """What would be removed."""
    total = Amount()
    folders = list(side_folders(dataset, LATENTS))
    for commit in dataset.commits():
        gone = pa.array([*taken_down_in(dataset, commit, stones)], pa.string())
        if not len(gone):
            continue
        columns = ["level", "decision", "video_id", "start_s", "end_s"]
        rows = dataset.ledger_of(commit["name"], columns)
        rows = rows.filter(
            pc.and_(pc.equal(rows["level"], "clip"), pc.equal(rows["decision"], KEPT))
        )
        rows = rows.filter(pc.is_in(rows["video_id"], gone))
        total.videos += len(gone)
        total.clips += len(rows)
        total.minutes += (pc.sum(pc.subtract(rows["end_s"], rows["start_s"])).as_py() or 0.0) / 60
        total.latents += sum(dataset.exists(each, f"{commit['name']}.parquet") for each in folders)
    total.videos += len(taken_down(indexed(dataset), stones))
    return total


def remove(dataset: Dataset, stones: Tombstones) -> set[str]:
    """Take every video that has a tombstone out of a dataset; returns their ids.

    Only the one run that writes a dataset may call this, and only in a folder that it has claimed.
    """
    if not stones:
        return set()
    commits = {commit["name"]: commit for commit in dataset.manifests()}
    gone = {name: set(taken_down_in(dataset, each, stones)) for name, each in commits.items()}
    in_index = taken_down(indexed(dataset), stones)
    if not any(gone.values()) and not in_index:
        return set()
    for page in PAGES:
        dataset.delete(page)
    # Those that a kill left beside their new form: deleted behind it they would count again.
    old = replaced(commits.values())
    for name in old:
        heir = next(each for each in commits.values() if each.get("replaces") == name)
        replace_commit(dataset, commits[name], heir)
    for name, ids in gone.items():
        if ids and name not in old:
            rows = ledger_rows(dataset, commits[name])
            left = [row for row in rows if row["video_id"] not in ids]
            replace_commit(dataset, commits[name], write_anew(dataset, commits[name], left, {}))
    if in_index:
        remove_from_index(dataset, stones)
    return set().union(in_index, *gone.values())


def replace_commit(dataset: Dataset, commit: dict[str, Any], heir: dict[str, Any] | None) -> None:
    """Delete a commit whose new form, if it has one, is there; scores of clips in it go on."""
    file = f"{commit['name']}.parquet"
    for folder in side_folders(dataset, SCORES):
        if heir is not None and heir["num_clips"] and dataset.exists(folder, file):
            carry_over(dataset, folder, commit["name"], heir["name"])
        dataset.delete(folder, file)
    for folder in side_folders(dataset, LATENTS):
        dataset.delete(folder, file)
    dataset.delete_commit(commit["name"])


def carry_over(dataset: Dataset, folder: str, name: str, heir: str) -> None:
    """Write the stored scores of one commit for those of its clips that another holds."""
    if dataset.exists(folder, f"{heir}.parquet"):
        return  # before a kill, or scored anew after it
    with dataset.open_shard(heir) as shard:
        clip_ids = shard.read(columns=["clip_id"])["clip_id"]
    table = pq.read_table(dataset.path(folder, f"{name}.parquet"), filesystem=dataset.filesystem)
    table = table.filter(pc.is_in(table["clip_id"], clip_ids.combine_chunks()))
    write_table(dataset, folder, heir, [table], table.schema)


def side_folders(dataset: Dataset, above: str) -> Iterator[str]:
    """The folders of scores or latents beside the shards; DatasetError where one is a link."""
    selector = pafs.FileSelector(dataset.path(above), allow_not_found=True)
    found = [
        f"{above}/{info.base_name}"
        for info in dataset.filesystem.get_file_info(selector)
        if info.type == pafs.FileType.Directory
    ]
    for part in (above, *found) if dataset.is_local else ():
        if Path(dataset.path(part)).is_symlink():
            raise DatasetError(
                f"{dataset.path(part)} is a link: files that are removed would be another "
                "folder's; put the files in its place, or mount that folder there"
            )
    yield from sorted(found)


def sweep(dataset: Dataset) -> int:
    """Delete what is of no commit any more, scores and latents among it; returns how many files."""
    num_files = len(dataset.sweep())
    live = {commit["name"] for commit in dataset.manifests()}
    for folder in [*side_folders(dataset, SCORES), *side_folders(dataset, LATENTS)]:
        for info in dataset.filesystem.get_file_info(pafs.FileSelector(dataset.path(folder))):
            name = OUR_NAME.fullmatch(info.base_name)
            if name and (name["tmp"] or name["name"] not in live):
                dataset.filesystem.delete_file(info.path)
                num_files += 1
    for folder in (dataset.root, dataset.path(FOLDER)):
        selector = pafs.FileSelector(folder, allow_not_found=True)
        for info in dataset.filesystem.get_file_info(selector):
            if HALF_WRITTEN.match(info.base_name):
                dataset.filesystem.delete_file(info.path)
                num_files += 1
    return num_files


def remove_from_index(dataset: Dataset, stones: Tombstones) -> None:
    """Write the files of a subset without media anew; the one that tells what is there last."""
    gone = taken_down(indexed(dataset), stones)
    for name in map("hdvg_{}.json".format, itertools.count()):
        if not dataset.exists(name):
            break
        videos = json.loads(dataset.read_bytes(name))
        left = {video_id: each for video_id, each in videos.items() if video_id not in gone}
        dataset.write_bytes(json.dumps(left).encode(), name)
    table = pq.read_table(dataset.path(INDEX), filesystem=dataset.filesystem)
    ids = pa.array([*gone], pa.string())
    with dataset.replacing(INDEX) as sink:
        pq.write_table(table.filter(pc.invert(pc.is_in(table["video_id"], ids))), sink)


def tell_run(dataset: Dataset, stones: Tombstones) -> None:
    """Bring run.json to what is left: its funnel, and the sources that it names."""
    if not dataset.exists("run.json"):
        return
    before = dataset.read_bytes("run.json")
    record = json.loads(before)
    pipeline: Mapping[str, Any] = record.get("pipeline") or {}
    if "funnel" in record:
        rules = [*(pipeline.get("rules") or {}), *(record.get("resolved") or {})]
        funnel = count(dataset.ledgers(FUNNEL_COLUMNS), list(dict.fromkeys(rules)))
        record["funnel"] = funnel.as_json()
    if pipeline.get("sources"):
        left = [url for url in pipeline["sources"] if not stones.date("source", url)]
        record["pipeline"] = {**pipeline, "sources": left}
    after = json.dumps(record, indent=1).encode()
    if after != before:
        dataset.write_bytes(after, "run.json")
