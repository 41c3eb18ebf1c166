"""What an earlier run with another config still tells us, and what has to be done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from curation.pipelines import Pipeline, Rule
from curation.records import decided
from curation.rules import judge, judge_headers, video_verdict
from curation.shards import FAILED, KEPT, Dataset, own_scores, write_commit


@dataclass
class Holdings:
    """What a dataset already holds for a pipeline."""

    decided: set[str] = field(default_factory=set)  # video ids that need no more work
    urls: set[str] = field(default_factory=set)  # their source URLs
    redecided: int = 0  # videos whose decisions were derived anew from stored scores
    redo: int = 0  # videos whose commit no longer holds
    changed: set[str] = field(default_factory=set)  # stages whose config changed


def is_subset(commit: Mapping[str, Any]) -> bool:
    """Whether a commit was written by vf-clean from another dataset's, and not by curation."""
    return "decisions" in commit["fingerprints"]


def take_over(dataset: Dataset, pipeline: Pipeline, *, dry_run: bool = False) -> Holdings:
    """Bring every commit up to the pipeline: keep, re-decide from its scores, or give up.

    A commit made with the same config stays. Where only rules changed, decisions are derived from
    the stored scores; a video whose new decision needs media or scores that were never made is
    given up, as is every video of a commit with another change. With `dry_run` nothing is written.
    """
    holdings = Holdings()
    wanted = pipeline.fingerprints()
    commits = dataset.commits()
    for commit in commits:
        if commit["fingerprints"] == wanted:
            holdings.decided |= set(commit["video_ids"])
    for commit in commits:
        changed = {s for s in wanted if commit["fingerprints"].get(s) != wanted[s]}
        holdings.changed |= changed
        if not changed:
            continue
        # A run killed between writing the new form and deleting the old one left both.
        stale = [v for v in commit["video_ids"] if v not in holdings.decided]
        kept = redecide(dataset, commit, pipeline, stale, dry_run) if changed == {"rules"} else []
        holdings.decided |= set(kept)
        holdings.redecided += len(kept)
        holdings.redo += len(stale) - len(kept)
        if not dry_run:
            dataset.delete_commit(commit["name"])
    holdings.urls = {url for video_id, url in dataset.decided() if video_id in holdings.decided}
    return holdings


def redecide(
    dataset: Dataset, commit: dict[str, Any], pipeline: Pipeline, stale: list[str], dry_run: bool
) -> list[str]:
    """Write a commit anew under changed rules; returns the videos that could be carried over."""
    path = dataset.path("ledger", f"{commit['name']}.parquet")
    rows = pq.read_table(path, filesystem=dataset.filesystem).to_pylist()
    carried: list[dict[str, Any]] = []
    for video_id in stale:
        ours = [row for row in rows if row["video_id"] == video_id]
        video = next(row for row in ours if row["level"] == "video")
        clips = [row for row in ours if row["level"] == "clip"]
        carried += redecide_video(video, clips, pipeline.rules) or []
    if not carried or dry_run:
        return [row["video_id"] for row in carried if row["level"] == "video"]
    kept = {r["clip_id"] for r in carried if r["level"] == "clip" and r["decision"] == KEPT}
    media: list[dict[str, Any]] = []
    if kept:
        with dataset.open_shard(commit["name"]) as shard:
            for group in range(shard.num_row_groups):
                found = shard.read_row_group(group).to_pylist()
                media += [row for row in found if row["clip_id"] in kept]
    prints, own = pipeline.fingerprints(), own_scores(commit)
    return write_commit(dataset, media, carried, prints, own)["video_ids"]


def redecide_video(
    video: dict[str, Any], clips: list[dict[str, Any]], rules: Mapping[str, Rule]
) -> list[dict[str, Any]] | None:
    """A video's ledger rows under other rules, or None when its media must be worked on again."""
    if video["decision"] == FAILED:
        return [video]
    verdict = judge_headers(video, rules, video["duration"])
    if verdict:
        # The early reject now covers it: its clips would never have been looked at.
        return [video | decided(verdict)]
    judged = [row for row in clips if row["decision"] != FAILED]
    if not judged:
        return None
    verdicts = [judge(row, rules) for row in judged]
    new = [row | decided(v) for row, v in zip(judged, verdicts, strict=True)]
    pairs = list(zip(judged, new, strict=True))
    if any(b["decision"] == KEPT != a["decision"] for a, b in pairs):
        return None
    if any(b["rule"] and b["value"] is None and b["rule"] != a["rule"] for a, b in pairs):
        return None  # it was rejected before this score was made
    failed = [row for row in clips if row["decision"] == FAILED]
    return [video | decided(video_verdict(verdicts, rules)), *new, *failed]
