"""What an earlier run with another config still tells us, and what has to be done again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.captions import SOURCE_TEXT
from curation.pipelines import Pipeline, Rule
from curation.records import TRIED_AGAIN, decided
from curation.rules import judge, judge_headers, video_verdict
from curation.scores.table import keys_where
from curation.shards import (
    FAILED,
    KEPT,
    LEDGER_SCHEMA,
    Dataset,
    own_scores,
    with_own,
    write_commit,
)
from curation.shards.manifests import replaced as replaced_in
from curation.sources import Source
from curation.sources.source import differ, differ_in_captions_alone


@dataclass
class Holdings:
    """What a dataset already holds for a pipeline."""

    decided: set[str] = field(default_factory=set)  # video ids that need no more work
    urls: dict[str, str] = field(default_factory=dict)  # their ids by source URL, copies' too
    copies: dict[str, str] = field(default_factory=dict)  # ids of the rows of copies, by URL
    fingerprints: dict[str, str | None] = field(default_factory=dict)  # of their sources, by id
    redecided: int = 0  # videos whose decisions were derived anew from stored scores
    redo: int = 0  # videos whose commit no longer holds
    changed: set[str] = field(default_factory=set)  # stages whose config changed
    again: set[str] = field(default_factory=set)  # ids of failed videos that are tried again

    def take_in(self, ledger: pa.Table, tried_again: frozenset[str]) -> None:
        """Note the videos of a commit, and of them those with a failure that is tried again."""
        failed = ledger.filter(pc.is_in(ledger["error_class"], pa.array(sorted(tried_again))))
        again = set(failed["video_id"].to_pylist()) & self.decided
        self.again |= again
        self.decided -= again
        for row in ledger.filter(pc.equal(ledger["level"], "video")).to_pylist():
            if row["video_id"] in self.decided and row["copy_of"]:
                self.copies[row["source_url"]] = row["video_id"]
                self.urls[row["source_url"]] = row["copy_of"]
            elif row["video_id"] in self.decided:
                self.urls[row["source_url"]] = row["video_id"]
                self.fingerprints[row["video_id"]] = row["source_fingerprint"]

    def holds(self, source: Source) -> bool:
        """Whether a source is decided, from what its lists say of it now.

        What was decided of a file that cannot be read any more stands.
        """
        video_id = source.id or self.urls.get(source.url)
        if video_id not in self.decided:
            return False
        gone = source.path is not None and source.id is None
        return gone or not differ(self.fingerprints.get(video_id), source.fingerprint)

    def recorded(self) -> dict[str, str]:
        """The URLs that decided videos are recorded from, by video id."""
        return {
            video_id: url
            for url, video_id in self.urls.items()
            if url not in self.copies and video_id in self.decided
        }

    def outdated(self, sources: Iterable[Source]) -> set[str]:
        """Ids of decided videos whose place those take that are not held.

        They were decided from another list, or at the same URL from other bytes or none.
        """
        sources = list(sources)
        ids = {s.id or self.urls.get(s.url) for s in sources if self.holds(s)}
        left = [s for s in sources if not self.holds(s)]
        found = {each for s in left for each in self.names(s)}
        return (found & self.decided) - ids

    def unnamed(self, sources: Iterable[Source]) -> set[str]:
        """Ids of decided videos that no source names any more."""
        named = {each for s in sources for each in self.names(s)}
        return self.decided - named - set(self.copies.values())

    def names(self, source: Source) -> set[str]:
        """The ids of what was decided of a source: its own, its URL's, that of its copy's row."""
        found = (source.id, self.urls.get(source.url), self.copies.get(source.url))
        return {each for each in found if each}


def is_subset(commit: Mapping[str, Any]) -> bool:
    """Whether a commit was written by vf-clean from another dataset's, and not by curation."""
    return "decisions" in commit["fingerprints"]


def take_over(
    dataset: Dataset,
    pipeline: Pipeline,
    *,
    retry: frozenset[str] = frozenset(),
    dry_run: bool = False,
) -> Holdings:
    """Bring every commit up to the pipeline: keep, re-decide from its scores, or give up.

    A commit made with the same config stays. Where only rules changed, decisions are derived from
    the stored scores; a video whose new decision needs media or scores that were never made is
    given up, as is every video of a commit with another change. Videos that failed by the machine,
    or that failed or lost a clip in a class of `retry`, are tried again. With `dry_run` nothing is
    written.
    """
    holdings = Holdings()
    wanted = pipeline.fingerprints()
    commits = dataset.manifests()
    # A run killed between writing a commit and deleting the one it replaces left both.
    replaced = replaced_in(commits)
    for commit in [c for c in commits if c["name"] in replaced]:
        commits.remove(commit)
        if not dry_run:
            dataset.delete_commit(commit["name"])
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
    columns = ["level", "video_id", "source_url", "source_fingerprint", "error_class", "copy_of"]
    for table in dataset.ledgers(columns):
        holdings.take_in(table, TRIED_AGAIN | retry)
    return holdings


def forget(
    dataset: Dataset, video_ids: set[str], commits: Iterable[dict[str, Any]] | None = None
) -> None:
    """Take videos out of some commits, all by default, so that they can be decided anew.

    Their neighbours stay.
    """
    for commit in dataset.commits() if commits is None else commits:
        if not video_ids.isdisjoint(commit["video_ids"]):
            rows = ledger_rows(dataset, commit)
            rewrite(dataset, commit, [row for row in rows if row["video_id"] not in video_ids], {})


def retell(
    dataset: Dataset, pipeline: Pipeline, holdings: Holdings, sources: Iterable[Source]
) -> set[str]:
    """Give decided videos the captions that their lists say now, where nothing else changed.

    Only where captions are the lists' and nothing was decided by them. Returns the ids; a video
    with a clip whose caption comes from elsewhere is not among them, and has to be redone.
    """
    if pipeline.captions.model != SOURCE_TEXT or keys_where("needs_caption") & {
        *pipeline.scorers.models
    }:
        return set()
    edited = {
        source.id: source
        for source in sources
        if source.id is not None
        and source.id in holdings.decided
        and differ_in_captions_alone(holdings.fingerprints[source.id], source.fingerprint)
    }
    done: set[str] = set()
    for commit in dataset.commits():
        if edited.keys().isdisjoint(commit["video_ids"]):
            continue
        rows = ledger_rows(dataset, commit)
        silent = {r["video_id"] for r in rows if r["video_id"] in edited and is_silent(r, edited)}
        able = (edited.keys() & set(commit["video_ids"])) - silent
        if able:
            told = [
                retold(row, edited[row["video_id"]]) if row["video_id"] in able else row
                for row in rows
            ]
            captions = {
                row["clip_id"]: captions_of(row, edited[row["video_id"]])
                for row in told
                if row["video_id"] in able and row["level"] == "clip"
            }
            rewrite(dataset, commit, told, captions)
            done |= able
    holdings.fingerprints |= {video_id: edited[video_id].fingerprint for video_id in done}
    return done


def is_silent(row: Mapping[str, Any], edited: Mapping[str, Source]) -> bool:
    """Whether a ledger row is of a clip of which lists say nothing."""
    if row["level"] != "clip" or row["error_class"] == "outside":
        return False
    return not edited[row["video_id"]].captions_at(row["start_s"], row["end_s"])


def retold(row: dict[str, Any], source: Source) -> dict[str, Any]:
    """A ledger row with the caption that lists say now."""
    row = row | {"source_fingerprint": source.fingerprint}
    if row["level"] != "clip" or row["error_class"] == "outside":
        return row
    return row | {"caption": source.captions_at(row["start_s"], row["end_s"])[0]}


def captions_of(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """The caption columns of a clip in its shard."""
    given = list(source.captions_at(row["start_s"], row["end_s"]))
    several = given if len(given) > 1 else None
    return {"caption": row["caption"], "captions": several, "caption_model": SOURCE_TEXT}


def ledger_rows(dataset: Dataset, commit: dict[str, Any]) -> list[dict[str, Any]]:
    schema = with_own(LEDGER_SCHEMA, own_scores(commit))
    return dataset.ledger_of(commit["name"], schema.names).to_pylist()


def rewrite(
    dataset: Dataset,
    commit: dict[str, Any],
    ledger: list[dict[str, Any]],
    columns: Mapping[str, Mapping[str, Any]],
) -> None:
    """Put a commit of other ledger rows in the place of one; `columns` change its clips, by id."""
    write_anew(dataset, commit, ledger, columns)
    dataset.delete_commit(commit["name"])


def write_anew(
    dataset: Dataset,
    commit: dict[str, Any],
    ledger: list[dict[str, Any]],
    columns: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | None:
    """What takes the place of a commit, its manifest; None where no ledger row is left.

    The commit itself stays to be deleted; readers take it for gone.
    """
    if not ledger:
        return None
    media = media_of(dataset, commit, kept_ids(ledger))
    media = [row | dict(columns.get(row["clip_id"], {})) for row in media]
    own, name = own_scores(commit), commit["name"]
    return write_commit(dataset, media, ledger, commit["fingerprints"], own, replaces=name)


def kept_ids(ledger: list[dict[str, Any]]) -> set[str]:
    return {r["clip_id"] for r in ledger if r["level"] == "clip" and r["decision"] == KEPT}


def media_of(dataset: Dataset, commit: dict[str, Any], clip_ids: set[str]) -> list[dict[str, Any]]:
    """The shard rows of some clips of a commit, with their media."""
    media: list[dict[str, Any]] = []
    if clip_ids:
        with dataset.open_shard(commit["name"]) as shard:
            for group in range(shard.num_row_groups):
                found = shard.read_row_group(group).to_pylist()
                media += [row for row in found if row["clip_id"] in clip_ids]
    return media


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
        carried += redecide_video(video, clips, pipeline.bounds) or []
    if not carried or dry_run:
        return [row["video_id"] for row in carried if row["level"] == "video"]
    media = media_of(dataset, commit, kept_ids(carried))
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
