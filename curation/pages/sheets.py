"""Contact sheets: which clips to look at, and their previews from the ledger."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.decode.jpegs import bgr_from_jpeg
from curation.pages.facts import Facts
from curation.shards import DROPPED, KEPT, LEDGER_SCHEMA, Dataset, conform

SHEET_CLIPS = 12  # ours: two rows on a wide screen
ANY_CLIPS = 24
MAX_COMMITS = 64  # whose clips are shown; previews of a commit are read whole
BOXES = {"watermark": "watermark_box", "text": "text_boxes"}  # what a rule found, where
RED = (60, 40, 220)  # BGR


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
    """The preview pictures of clips as data URIs, from the commits that hold most of them.

    What the rule that dropped a clip found in the picture has a frame.
    """
    ids = pa.array(sorted(set(clip_ids)), pa.string())
    holding: list[tuple[int, str]] = []
    for commit in dataset.commits():
        there = read_ledger(dataset, commit["name"], ["clip_id"])["clip_id"]
        holding.append((pc.sum(pc.is_in(there, ids)).as_py() or 0, commit["name"]))
    out: dict[str, list[str]] = {}
    for number, name in sorted(holding, reverse=True)[:MAX_COMMITS]:
        if not number:
            break
        table = read_ledger(dataset, name, ["clip_id", "rule", "preview", *BOXES.values()])
        table = table.filter(pc.is_in(table["clip_id"], ids))
        for row in table.to_pylist():
            boxes = boxes_of(row)
            out[row["clip_id"]] = [data_uri(framed(j, boxes)) for j in row["preview"] or []]
    return out


def read_ledger(dataset: Dataset, name: str, columns: list[str]) -> pa.Table:
    """Columns of a commit's ledger; null where it was written before there were any."""
    path = dataset.path("ledger", f"{name}.parquet")
    with pq.ParquetFile(path, filesystem=dataset.filesystem) as file:
        there = [column for column in columns if column in file.schema_arrow.names]
        return conform(file.read(there), pa.schema([LEDGER_SCHEMA.field(c) for c in columns]))


def boxes_of(row: dict[str, Any]) -> np.ndarray:
    """What the rule that dropped a clip found: [boxes, x0 y0 x1 y1], fractions of the picture."""
    return np.reshape(row.get(BOXES.get(row["rule"], "")) or [], (-1, 4))


def framed(jpeg: bytes, boxes: np.ndarray) -> bytes:
    """A small JPEG with a red frame around each box."""
    if not len(boxes):
        return jpeg
    picture = bgr_from_jpeg(jpeg)
    height, width = picture.shape[:2]
    for x0, y0, x1, y1 in boxes:
        first = (int(x0 * width) - 1, int(y0 * height) - 1)
        cv2.rectangle(picture, first, (round(x1 * width), round(y1 * height)), RED, 1)
    # A thin line keeps its colour only where colours are stored as densely as light.
    dense = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", picture, dense)[1].tobytes()


def data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def with_pictures(rows: pa.Table, pictures: dict[str, list[str]]) -> list[dict[str, Any]]:
    return [row | {"pictures": pictures.get(row["clip_id"], [])} for row in rows.to_pylist()]
