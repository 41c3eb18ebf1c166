"""Contact sheets: which clips to look at, and their previews from the ledger."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.facts import Facts
from curation.shards import DROPPED, KEPT, SCORES, Dataset

SHEET_CLIPS = 12  # ours: two rows on a wide screen
ANY_CLIPS = 24
MAX_COMMITS = 64  # whose clips are shown; previews of a commit are read whole


@dataclass(frozen=True)
class Sheet:
    """Some clips of one kind, as ledger rows with `pictures`, data URIs of their previews."""

    title: str
    note: str
    clips: list[dict[str, Any]]


def sheets(dataset: Dataset, found: Facts) -> list[Sheet]:
    """Kept and dropped clips nearest to each rule's bound, then any kept ones and any dropped."""
    wanted: list[tuple[str, str, pa.Table]] = []
    for step in found.steps:
        bounds = [b for b in (step.min, step.max) if b is not None]
        if not bounds or not step.dropped or step.rule not in SCORES:  # `keep` has no column
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
    for decision in (KEPT, DROPPED):
        rows = found.clips.filter(pc.equal(found.clips["decision"], decision))
        wanted.append((f"any {decision}", f"by chance, of {len(rows)}", by_chance(rows, ANY_CLIPS)))
    pictures = previews(dataset, [i for *_, t in wanted for i in t["clip_id"].to_pylist()])
    return [
        Sheet(title, note, with_pictures(rows, pictures))
        for title, note, rows in wanted
        if len(rows)
    ]


def nearest(rows: pa.Table, score: str, bounds: Sequence[float]) -> pa.Table:
    """The clips whose score is closest to one of the bounds, closest first; unscored ones last."""
    values = rows[score].to_numpy(zero_copy_only=False)
    away = np.min([np.abs(values - bound) for bound in bounds], axis=0)
    return rows.take(np.argsort(away, kind="stable")[:SHEET_CLIPS])  # NaN sorts last


def by_chance(rows: pa.Table, most: int) -> pa.Table:
    """Some clips, the same ones each time: those whose ids have the smallest checksums."""
    sums = [zlib.crc32(clip_id.encode()) for clip_id in rows["clip_id"].to_pylist()]
    return rows.take(np.argsort(sums, kind="stable")[:most].astype(np.int64))


def previews(dataset: Dataset, clip_ids: Sequence[str]) -> dict[str, list[str]]:
    """The preview pictures of clips as data URIs, from the commits that hold most of them."""
    ids = pa.array(sorted(set(clip_ids)), pa.string())
    holding: list[tuple[int, str]] = []
    for commit in dataset.commits():
        there = read_ledger(dataset, commit["name"], ["clip_id"])["clip_id"]
        holding.append((pc.sum(pc.is_in(there, ids)).as_py() or 0, commit["name"]))
    out: dict[str, list[str]] = {}
    for number, name in sorted(holding, reverse=True)[:MAX_COMMITS]:
        if not number:
            break
        table = read_ledger(dataset, name, ["clip_id", "preview"])
        table = table.filter(pc.is_in(table["clip_id"], ids))
        for row in table.to_pylist():
            out[row["clip_id"]] = [data_uri(jpeg) for jpeg in row["preview"] or []]
    return out


def read_ledger(dataset: Dataset, name: str, columns: list[str]) -> pa.Table:
    path = dataset.path("ledger", f"{name}.parquet")
    with pq.ParquetFile(path, filesystem=dataset.filesystem) as file:
        there = [column for column in columns if column in file.schema_arrow.names]
        table = file.read(there)
    if "preview" in columns and "preview" not in there:  # written before there were any
        table = table.append_column("preview", pa.nulls(len(table), pa.list_(pa.binary())))
    return table


def data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def with_pictures(rows: pa.Table, pictures: dict[str, list[str]]) -> list[dict[str, Any]]:
    return [row | {"pictures": pictures.get(row["clip_id"], [])} for row in rows.to_pylist()]
