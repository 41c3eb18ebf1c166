"""One commit of a dataset -> the same commit of its subset: outcomes anew, media as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.flow.holdings import decided, video_verdict
from curation.rules import Verdict
from curation.shards import (
    FAILED,
    LEDGER_SCHEMA,
    SHARD_SCHEMA,
    Dataset,
    DatasetError,
    conform,
    own_scores,
    with_own,
    write_tables,
)
from curation.shards.commits import MAX_GROUP_BYTES, MAX_GROUP_ROWS
from curation.subsets.decided import KEEP, NEAR_COPIES
from curation.subsets.gathered import put, score_schema, stored_scores
from curation.subsets.recipes import Recipe


def write_extract(
    dataset: Dataset,
    subset: Dataset,
    commit: dict[str, Any],
    decisions: pa.Table,
    recipe: Recipe,
    known: set[str],
    prints: dict[str, str],
) -> None:
    """Write one commit of a dataset as a commit of its subset; media are copied as they are.

    `commit` is its manifest, with the videos that may be written.
    """
    name = commit["name"]
    stored = {key: stored_scores(dataset, recipe, key, name) for key in recipe.keys}
    own = sorted({*own_scores(commit), *recipe.scorers.own})
    shard_schema, ledger_schema = with_own(SHARD_SCHEMA, own), with_own(LEDGER_SCHEMA, own)
    ledger = dataset.ledger_of(name, ledger_schema.names)
    ledger = ledger.filter(pc.is_in(ledger["video_id"], pa.array(commit["video_ids"])))
    ledger = fill(ledger, stored, known)
    ledger = conform(redecided(ledger, decisions, stored, recipe), ledger_schema)
    kept = decisions.filter(pc.is_null(decisions["rule"]))["clip_id"]
    rows = kept_rows(dataset, name, kept, stored, known, shard_schema)
    groups = rows if len(kept) else iter(())
    manifest = write_tables(subset, commit["video_ids"], groups, ledger, prints, own)
    if manifest["num_clips"] != len(kept):
        subset.delete_commit(manifest["name"])
        raise DatasetError(
            f"shards/{name} holds {manifest['num_clips']} of {len(kept)} clips that its ledger "
            f"keeps; look into it: vf-validate {dataset.uri}"
        )


def fill(table: pa.Table, stored: dict[str, pa.Table | None], known: set[str]) -> pa.Table:
    """A ledger or shard with the scores that were measured since; others' are not mixed in."""
    for key, found in stored.items():
        if found is not None:
            found = found.take(pc.index_in(table["clip_id"], found["clip_id"]))
        for column in set(score_schema(key).names) & set(table.column_names) - {"clip_id"}:
            old = table[column]
            if key not in known:
                old = pa.nulls(len(table), old.type)
            if found is not None:
                old = pc.if_else(pc.is_valid(old), old, found[column])
            table = put(table, column, old)
    return table


def redecided(
    ledger: pa.Table, decisions: pa.Table, stored: dict[str, pa.Table | None], recipe: Recipe
) -> pa.Table:
    """The ledger of a commit with new outcomes of the clips that were kept, and of their videos."""
    names = ["decision", "rule", "value", "threshold", "error_class", "message", "near_copy_of"]
    new = {row["clip_id"]: row for row in decisions.to_pylist()}
    errors = {
        (key, row["clip_id"]): row["error"]
        for key, table in stored.items()
        if table is not None
        for row in table.filter(pc.is_valid(table["error"]))
        .select(["clip_id", "error"])
        .to_pylist()
    }
    order = {**dict.fromkeys(recipe.rules), NEAR_COPIES: None, KEEP: None}
    out = ledger.select(["level", "video_id", "clip_id", *names]).to_pylist()
    verdicts: dict[str, list[Verdict | None]] = {}
    for row in out:
        outcome = new.get(row["clip_id"]) if row["level"] == "clip" else None
        if outcome is None:
            continue
        of_video = verdicts.setdefault(row["video_id"], [])
        if outcome["failed"]:
            key = recipe.key_of(outcome["rule"]) or ""
            message = f"{key}: {errors.get((key, row['clip_id']))}"
            row |= {"decision": FAILED, "error_class": "scorer", "message": message}
        elif outcome["rule"] is not None:
            of_video.append(Verdict(outcome["rule"], outcome["value"], outcome["threshold"]))
            row |= decided(of_video[-1]) | {"near_copy_of": outcome["near_copy_of"]}
        else:
            of_video.append(None)
    for row in out:
        if row["level"] == "video" and row["video_id"] in verdicts:
            row |= video_outcome(verdicts[row["video_id"]], order)
    for name in names:
        column = pa.array([row[name] for row in out], LEDGER_SCHEMA.field(name).type)
        ledger = put(ledger, name, column)
    return ledger


def video_outcome(verdicts: list[Verdict | None], order: dict[str, Any]) -> dict[str, Any]:
    """The outcome of a video that was kept, from the verdicts on its clips that did not fail."""
    if not verdicts:
        return {"decision": FAILED, "error_class": "scorer"}
    return decided(video_verdict(verdicts, order))


def kept_rows(
    dataset: Dataset,
    name: str,
    kept: pa.ChunkedArray,
    stored: dict[str, pa.Table | None],
    known: set[str],
    schema: pa.Schema,
) -> Iterator[pa.Table]:
    """The rows of a shard that stay, scores filled in, in row groups bounded as ever."""
    waiting: list[pa.Table] = []
    num_rows = num_bytes = 0
    with dataset.open_shard(name) as shard:
        for group in range(shard.num_row_groups):
            table = conform(shard.read_row_group(group), schema)
            table = table.filter(pc.is_in(table["clip_id"], kept))
            if not len(table):
                continue
            size = pc.sum(pc.binary_length(pc.struct_field(table["clip"], "bytes"))).as_py()
            if waiting and (
                num_rows + len(table) > MAX_GROUP_ROWS or num_bytes + size > MAX_GROUP_BYTES
            ):
                yield pa.concat_tables(waiting)
                waiting, num_rows, num_bytes = [], 0, 0
            waiting.append(conform(fill(table, stored, known), schema))
            num_rows, num_bytes = num_rows + len(table), num_bytes + size
    if waiting:
        yield pa.concat_tables(waiting)
