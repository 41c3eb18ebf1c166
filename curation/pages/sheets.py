"""Contact sheets: which clips to look at, and their previews from the ledger."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.pages.facts import Facts
from curation.pages.pictures import Shown, previews
from curation.shards import DROPPED, KEPT, Dataset
from curation.shards.train_signals import RELATIVE_LOSS, read_signal, signal_names

SHEET_CLIPS = 12  # ours: two rows on a wide screen
ANY_CLIPS = 24


@dataclass(frozen=True)
class Sheet:
    """Some clips of one kind, as ledger rows with `pictures`, data URIs of their previews,
    and `rest`, the one that is seen when none moves."""

    title: str
    note: str
    clips: list[dict[str, Any]]


def sheets(dataset: Dataset, found: Facts) -> list[Sheet]:
    """Kept and dropped clips nearest to each rule's bound, those that training learned worst and
    best, then any kept ones and any dropped."""
    wanted: list[tuple[str, str, pa.Table]] = []
    for step in found.steps:
        bounds = [b for b in (step.min, step.max) if b is not None]
        has_column = step.rule in found.score_names  # `keep` has none
        if not (bounds and step.dropped and has_column):
            continue
        dropped = pc.and_(
            pc.equal(found.clips["decision"], DROPPED), pc.equal(found.clips["rule"], step.rule)
        )
        kept = pc.equal(found.clips["decision"], KEPT)
        for name, mask in (("just dropped", dropped), ("just kept", kept)):
            rows = nearest(found.clips.filter(mask), step.rule, bounds)
            told = " or ".join(f"{bound:g}" for bound in bounds)
            note = f"nearest to the bound {told}, of {pc.sum(mask).as_py() or 0}"
            wanted.append((f"{step.rule}: {name}", note, rows))
    for name in signal_names(dataset):
        wanted += learned(read_signal(dataset, name), name, found)
    for decision in (KEPT, DROPPED):
        rows = found.clips.filter(pc.equal(found.clips["decision"], decision))
        wanted.append((f"any {decision}", f"by chance, of {len(rows)}", by_chance(rows, ANY_CLIPS)))
    pictures = previews(dataset, [i for *_, t in wanted for i in t["clip_id"].to_pylist()])
    return [
        Sheet(title, note, with_pictures(rows, pictures))
        for title, note, rows in wanted
        if len(rows)
    ]


def learned(signal: pa.Table, name: str, found: Facts) -> list[tuple[str, str, pa.Table]]:
    """The clips that a run of vf-train learned worst and best (docs/training.md)."""
    kept = found.clips.filter(pc.equal(found.clips["decision"], KEPT))
    signal = signal.filter(pc.is_in(signal["clip_id"], kept["clip_id"].combine_chunks()))
    order = np.argsort(-signal[RELATIVE_LOSS].to_numpy(), kind="stable")
    out = []
    for title, some in (("worst", order[:SHEET_CLIPS]), ("best", order[::-1][:SHEET_CLIPS])):
        rows = kept.take(pc.index_in(signal["clip_id"].take(some), kept["clip_id"]))
        values = signal[RELATIVE_LOSS].take(some).to_numpy()
        told = f"{values.min():.2f} to {values.max():.2f} times the mean" if len(values) else ""
        note = f"{told}, of {len(signal)} that it trained on"
        out.append((f"learned {title} by {name}", note, rows))
    return out


def nearest(rows: pa.Table, score: str, bounds: Sequence[float]) -> pa.Table:
    """The clips whose score is closest to one of the bounds, closest first; unscored ones last."""
    values = rows[score].to_numpy(zero_copy_only=False)
    away = np.min([np.abs(values - bound) for bound in bounds], axis=0)
    return rows.take(np.argsort(away, kind="stable")[:SHEET_CLIPS])  # NaN sorts last


def by_chance(rows: pa.Table, most: int) -> pa.Table:
    """Some clips, the same ones each time: those whose ids have the smallest checksums."""
    sums = [zlib.crc32(clip_id.encode()) for clip_id in rows["clip_id"].to_pylist()]
    return rows.take(np.argsort(sums, kind="stable")[:most].astype(np.int64))


def with_pictures(rows: pa.Table, pictures: dict[str, Shown]) -> list[dict[str, Any]]:
    none = Shown([], 0)
    shown = [(row, pictures.get(row["clip_id"], none)) for row in rows.to_pylist()]
    return [row | {"pictures": each.uris, "rest": each.rest} for row, each in shown]
