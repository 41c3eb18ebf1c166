"""What is known of a dataset's clips: the scores in its ledger and those stored beside it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.scores.table import columns_of
from curation.shards import KEPT, NUM_READERS, Dataset, conform
from curation.shards.train_signals import AVERAGE, RELATIVE_LOSS, read_signal
from curation.subsets.recipes import Recipe, score_folder, scorer_settings
from curation.takedown.tombstones import NOTHING, Tombstones, read
from curation.takedown.videos import taken_down_in

# What near copies are told by, and what the best of them is told by.
LOOKS = (
    *("clip_id", "perceptual_hash"),
    *("resolution", "aspect", "black_bars", "duration", "sharpness"),
)
CLIP = ("video_id", "clip_id", "duration")


@dataclass
class Clips:
    """The clips that a dataset keeps, with what is known of each; all arrays [number of clips]."""

    ids: pa.ChunkedArray
    duration_s: np.ndarray
    scores: dict[str, np.ndarray]  # by rule; NaN = null
    scored: dict[str, np.ndarray]  # by scorer key: there is an answer, be it null
    failed: dict[str, np.ndarray]  # by scorer key: the scorer raised, timed out or gave NaN
    commits: dict[str, slice]  # by name, where its clips are
    place: str = ""  # of the dataset
    looks: pa.Table | None = None  # of LOOKS, where near copies are looked for
    gone: dict[str, set[str]] = field(default_factory=dict)  # by commit, videos taken down
    untrained: int = 0  # clips that the training signal does not know

    def __len__(self) -> int:
        return len(self.ids)


def trusted(dataset: Dataset, recipe: Recipe) -> set[str]:
    """The keys whose scores in the dataset's ledger come from the scorer that the recipe names."""
    if not dataset.exists("run.json"):
        return set()
    run = json.loads(dataset.read_bytes("run.json"))
    theirs = run.get("scorers") or run.get("pipeline", {}).get("scorers") or {}
    ours = recipe.scorers.model_dump()
    return {
        key for key in recipe.keys if scorer_settings(theirs, key) == scorer_settings(ours, key)
    }


def gather(
    dataset: Dataset,
    recipe: Recipe,
    *,
    forget_failed: bool = False,
    others: Tombstones = NOTHING,
) -> Clips:
    """Every clip that a dataset keeps, with the scores that the recipe needs as far as stored.

    With `forget_failed` a clip that a scorer could not score counts as not scored yet. What has a
    tombstone in the dataset, where a vf-purge was killed, or among `others` is left out.
    """
    known, stones = trusted(dataset, recipe), read(dataset) | others
    named = recipe.train_signal if RELATIVE_LOSS in recipe.rules else None
    signal = read_signal(dataset, named) if named else None
    found = dataset.commits()
    names = [commit["name"] for commit in found]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        gone = [set(each) for each in pool.map(lambda c: taken_down_in(dataset, c, stones), found)]
        tables = list(
            pool.map(
                lambda n, out: gather_commit(dataset, n, recipe, known, out, signal), names, gone
            )
        )
    ends = np.cumsum([len(table) for table in tables]).tolist()
    commits = {n: slice(e - len(t), e) for n, e, t in zip(names, ends, tables, strict=True)}
    whole = pa.concat_tables(tables)
    clips = Clips(
        ids=whole["clip_id"],
        duration_s=floats(whole["duration"]),
        scores={rule: floats(whole[rule]) for rule in recipe.rules},
        scored={key: whole[f"{key} scored"].to_numpy() for key in recipe.keys},
        failed={key: whole[f"{key} failed"].to_numpy() for key in recipe.keys},
        commits=commits,
        place=dataset.root,
        gone=dict(zip(names, gone, strict=True)),
        looks=whole.select(LOOKS) if recipe.near_copies.min_distance is not None else None,
    )
    if signal is not None:
        # Videos held out of training are no worse than others, and must stay to be held out.
        known_losses = clips.scores[RELATIVE_LOSS]
        clips.untrained = int(np.isnan(known_losses).sum())
        clips.scores[RELATIVE_LOSS] = np.nan_to_num(known_losses, nan=AVERAGE)
    if forget_failed:
        clips.scored = {key: mask & ~clips.failed[key] for key, mask in clips.scored.items()}
        clips.failed = {key: np.zeros_like(mask) for key, mask in clips.failed.items()}
    return clips


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers as float64; null becomes NaN."""
    return column.to_numpy().astype(np.float64, copy=False)


def gather_commit(
    dataset: Dataset,
    name: str,
    recipe: Recipe,
    known: set[str],
    gone: set[str],
    signal: pa.Table | None = None,
) -> pa.Table:
    """clip_id, duration, a column per rule, and per scorer whether it has scored or failed.

    Of all clips that are kept but those of `gone`, ids of videos.
    """
    rules = [rule for rule in recipe.rules if rule != RELATIVE_LOSS]
    looks = LOOKS if recipe.near_copies.min_distance is not None else ()
    columns = list(dict.fromkeys(["level", "decision", *CLIP, *rules, *looks]))
    ledger = dataset.ledger_of(name, columns)
    is_clip, is_kept = pc.equal(ledger["level"], "clip"), pc.equal(ledger["decision"], KEPT)
    clips = without(ledger.filter(pc.and_(is_clip, is_kept)), gone)
    clips = clips.drop_columns(["level", "decision", "video_id"])
    for key in recipe.keys:
        needed = [rule for rule in rules if recipe.key_of(rule) == key]
        if key not in known:  # another implementation's, or of unknown origin
            for rule in needed:
                clips = put(clips, rule, pa.nulls(len(clips), pa.float64()))
        scored = pa.array(np.ones(len(clips), bool))
        for rule in needed:
            scored = pc.and_(scored, pc.is_valid(clips[rule]))
        failed = pa.array(np.zeros(len(clips), bool))
        stored = stored_scores(dataset, recipe, key, name, ["error", *needed])
        if stored is not None:
            found = stored.take(pc.index_in(clips["clip_id"], stored["clip_id"]))
            new = pc.and_(pc.invert(scored), pc.fill_null(found["scored"], False))
            failed = pc.and_(new, pc.is_valid(found["error"]))
            for rule in needed:
                clips = put(clips, rule, pc.coalesce(clips[rule], found[rule]))
            scored = pc.or_(scored, new)
        clips = put(put(clips, f"{key} scored", scored), f"{key} failed", failed)
    if signal is not None:
        at = pc.index_in(clips["clip_id"], signal["clip_id"])
        clips = put(clips, RELATIVE_LOSS, signal[RELATIVE_LOSS].take(at))
    return clips


def without(table: pa.Table, video_ids: set[str]) -> pa.Table:
    """The rows of a table but those of some videos."""
    if not video_ids:
        return table
    return table.filter(pc.invert(pc.is_in(table["video_id"], pa.array([*video_ids]))))


def put(table: pa.Table, name: str, column: Any) -> pa.Table:
    """A table with one column set."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


# -- the scores that are stored beside a dataset


def score_schema(key: str) -> pa.Schema:
    """The columns of scores/<key>-<fingerprint>/<commit>.parquet: a row per clip of the shard.

    A key that is not in the table is a user's own scorer, whose score has its name.
    """
    fields = [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("scored", pa.bool_(), nullable=False),  # false: nothing needed it yet
        pa.field("error", pa.string()),  # why the scorer could not score it
        *[pa.field(name, pa.float64()) for name in columns_of([key]) or [key]],
    ]
    if key == "text":
        fields.append(pa.field("text_boxes", pa.list_(pa.list_(pa.float32()))))
    return pa.schema(fields)


def stored_scores(
    dataset: Dataset, recipe: Recipe, key: str, name: str, columns: list[str] | None = None
) -> pa.Table | None:
    """What a scorer found of a commit's clips in earlier runs, or None."""
    schema = score_schema(key)
    if columns is not None:
        schema = pa.schema([schema.field(c) for c in ("clip_id", "scored", *columns)])
    path = dataset.path("scores", score_folder(recipe.scorers, key), f"{name}.parquet")
    try:
        with pq.ParquetFile(path, filesystem=dataset.filesystem) as file:
            there = [c for c in schema.names if c in file.schema_arrow.names]
            return conform(file.read(there), schema)
    except FileNotFoundError:
        return None
