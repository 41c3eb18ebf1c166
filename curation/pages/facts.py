"""A dataset folder in numbers: what the report and the card show. Columns, never rows: there may
be millions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.funnels import FUNNEL_COLUMNS, Funnel, count, length
from curation.scores.table import SCORES
from curation.shards import FAILED, KEPT, SHARD_SCHEMA, Dataset, conform
from curation.takedown import tombstones

LEDGER_COLUMNS = list(
    dict.fromkeys(
        [
            *FUNNEL_COLUMNS,
            *("video_id", "clip_id", "source_url", "start_s", "end_s", "caption"),
            *("value", "threshold", "message", *SCORES),
        ]
    )
)
SHARD_COLUMNS = ["clip_id", "category", "license", "uploader", "upload_date", "fps"]
SHARD_COLUMNS += ["duration_s", "width", "height", "num_frames", "caption", "caption_model"]

# Caption integrity; all ours. A model that loops says a phrase of up to six words three
# times in a row; a caption over this many clips of different videos tells nothing of any of them.
LOOP_WORDS, LOOP_TIMES = 6, 3
REPEATED_OVER_VIDEOS = 5


@dataclass(frozen=True)
class Step:
    """One rule of the funnel: clips before it, those it dropped, those after it."""

    rule: str
    before: int
    dropped: int
    min: float | None
    max: float | None

    @property
    def after(self) -> int:
        return self.before - self.dropped


@dataclass(frozen=True)
class Facts:
    """What is known of a dataset without looking at a picture.

    clips: ledger rows of candidate clips; kept: shard columns of kept ones.
    record: run.json, {} where a run has not ended yet; own: scores of users' own scorers.
    """

    funnel: Funnel
    steps: list[Step]
    clips: pa.Table
    kept: pa.Table
    record: dict[str, Any]
    own: list[str]
    taken_down: int = 0  # videos that vf-purge took out

    @property
    def score_names(self) -> list[str]:
        """Every score that there is a column for, users' own behind ours."""
        return [*SCORES, *self.own]

    @property
    def rules(self) -> dict[str, dict[str, Any]]:
        return rules_of(self.record)

    @property
    def code(self) -> str:
        """The version of the code that made it, "" where that is not known."""
        return self.record.get("code", "")

    @property
    def kept_hours(self) -> float:
        return (pc.sum(self.kept["duration_s"]).as_py() or 0.0) / 3600

    @property
    def kept_length(self) -> str:
        """The same in the unit that fits it."""
        return length(self.kept_hours * 3600)

    def scores(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The scored values of one column over all candidate clips, and which of them are kept."""
        values = self.clips[name].to_numpy(zero_copy_only=False)
        kept = pc.equal(self.clips["decision"], KEPT).to_numpy(zero_copy_only=False)
        known = np.isfinite(values)
        return values[known], kept[known].astype(bool)


def rules_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rules of a run.json in the order they were tried: a pipeline's, and behind them those
    of the recipe that made a subset of it, quantiles as they were resolved."""
    rules = (record.get("pipeline") or {}).get("rules") or {}
    resolved = record.get("resolved") or {}
    return {name: rule for name, rule in rules.items() if name not in resolved} | resolved


def facts_of(dataset: Dataset) -> Facts:
    """Read the ledger and the light shard columns of a dataset folder."""
    record = json.loads(dataset.read_bytes("run.json")) if dataset.exists("run.json") else {}
    own = dataset.own_scores()
    ledger = dataset.ledger([*LEDGER_COLUMNS, *own])
    funnel = count([ledger.select(FUNNEL_COLUMNS)], list(rules_of(record)))
    clips = ledger.filter(pc.equal(ledger["level"], "clip"))
    gone = tombstones.read(dataset).number("video")
    kept = kept_columns(dataset)
    return Facts(funnel, steps(funnel, record), clips, kept, record, own, gone)


def steps(funnel: Funnel, record: dict[str, Any]) -> list[Step]:
    """Every rule in config order with the clips before and after it; unused ones too."""
    rules = rules_of(record)
    left = funnel.clips.total - sum(funnel.clips.failed.values())
    out = []
    for name in dict.fromkeys([*rules, *funnel.clips.dropped]):
        bounds = rules.get(name, {})
        dropped = funnel.clips.dropped.get(name, 0)
        out.append(Step(name, left, dropped, bounds.get("min"), bounds.get("max")))
        left -= dropped
    return out


def kept_columns(dataset: Dataset) -> pa.Table:
    schema = pa.schema([SHARD_SCHEMA.field(name) for name in SHARD_COLUMNS])
    tables = [schema.empty_table()]
    for name in dataset.shards():
        path = dataset.path("shards", f"{name}.parquet")
        with pq.ParquetFile(path, filesystem=dataset.filesystem) as file:
            tables.append(conform(file.read(SHARD_COLUMNS), schema))
    return pa.concat_tables(tables)


def shares(column: pa.ChunkedArray, most: int = 12) -> list[tuple[str, int]]:
    """The most frequent values with their counts; the rest as "other", null as "not given"."""
    counts = sorted(
        ((row["values"], row["counts"]) for row in column.value_counts().to_pylist()),
        key=lambda pair: (-pair[1], str(pair[0])),
    )
    named = [(str(value), n) for value, n in counts if value is not None]
    rest = sum(n for _, n in named[most:])
    missing = sum(n for value, n in counts if value is None)
    tail = [("other", rest)] * (rest > 0) + [("not given", missing)] * (missing > 0)
    return named[:most] + tail


def caption_words(captions: pa.ChunkedArray) -> np.ndarray:
    """Words of every caption that is there."""
    texts = captions.drop_null()
    words = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts)))
    return words.to_numpy()


FAILURE_COLUMNS = ["level", "decision", "error_class", "message", "clip_id", "source_url"]


def failures(ledger: pa.Table) -> list[dict[str, Any]]:
    """Every class of failure: level, error_class, count, and one example of it, its first row's
    message, clip_id and source_url."""
    failed = ledger.filter(pc.equal(ledger["decision"], FAILED))
    failed = failed.append_column("place", pa.array(np.arange(len(failed))))
    groups = failed.group_by(["level", "error_class"]).aggregate(
        [("place", "count"), ("place", "min")]
    )
    examples = failed.take(groups["place_min"]).to_pylist()
    counts = groups["place_count"].to_pylist()
    return sorted(
        (row | {"count": count} for row, count in zip(examples, counts, strict=True)),
        key=lambda row: (row["level"], row["error_class"] or ""),
    )


# -- captions


@dataclass(frozen=True)
class Integrity:
    """What is wrong with captions: counts of kept clips, and the worst examples."""

    total: int
    missing: int
    looping: list[tuple[str, str]]  # clip id, caption
    repeated: list[tuple[str, int]]  # caption, videos it is over

    @property
    def dead(self) -> int:
        return self.missing + len(self.looping)


@dataclass(frozen=True)
class Fit:
    """How captions fit their pictures, by caption_score."""

    kept: int  # clips kept with a score
    median: float | None  # of theirs
    scored: int  # candidate clips with a score
    bound: float | None  # rules.caption_score.min
    below: int  # of the scored, under the bound


def fit(found: Facts) -> Fit:
    values, kept = found.scores("caption_score")
    bound = found.rules.get("caption_score", {}).get("min")
    return Fit(
        kept=int(kept.sum()),
        median=float(np.median(values[kept])) if kept.any() else None,
        scored=len(values),
        bound=bound,
        below=0 if bound is None else int((values < bound).sum()),
    )


def loops(caption: str) -> bool:
    """Whether a phrase of one to LOOP_WORDS words is said LOOP_TIMES times in a row or more.

    >>> loops("a hat on top of a hat on top of a hat on top of a hat")
    True
    """
    words = caption.lower().split()
    for size in range(1, LOOP_WORDS + 1):
        run = 0
        for n in range(size, len(words)):
            run = run + 1 if words[n] == words[n - size] else 0
            if run >= size * (LOOP_TIMES - 1):
                return True
    return False


def integrity(kept: pa.Table, clips: pa.Table) -> Integrity:
    """The captions of kept clips that a trainer should not see.

    kept: shard columns; clips: ledger rows, for the video of each clip.
    """
    texts = kept["caption"]
    video = dict(zip(clips["clip_id"].to_pylist(), clips["video_id"].to_pylist(), strict=True))
    by_caption: dict[str, set[str]] = {}
    looping = []
    for clip_id, text in zip(kept["clip_id"].to_pylist(), texts.to_pylist(), strict=True):
        if text and text.strip():
            by_caption.setdefault(text, set()).add(video.get(clip_id, clip_id))
            if loops(text):
                looping.append((clip_id, text))
    over = [(t, len(v)) for t, v in by_caption.items() if len(v) >= REPEATED_OVER_VIDEOS]
    present = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    return Integrity(
        total=len(kept),
        missing=len(kept) - (pc.sum(present).as_py() or 0),
        looping=looping,
        repeated=sorted(over, key=lambda pair: -pair[1]),
    )


def kept_share(values: np.ndarray, thresholds: np.ndarray, keep_above: bool) -> np.ndarray:
    """Share of values that each threshold keeps, bounds included."""
    ordered = np.sort(values)
    if keep_above:
        return 1 - np.searchsorted(ordered, thresholds, side="left") / len(ordered)
    return np.searchsorted(ordered, thresholds, side="right") / len(ordered)


def changed_decisions(a: pa.Table, b: pa.Table) -> pa.Table:
    """Clips that two ledgers decide differently: clip_id, decision, rule and value of each."""
    columns = ["clip_id", "decision", "rule", "value"]
    joined = a.select(columns).join(
        b.select(columns), keys="clip_id", right_suffix="_b", join_type="inner"
    )
    return joined.filter(pc.not_equal(joined["decision"], joined["decision_b"]))
