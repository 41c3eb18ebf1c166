"""Previews of clips, from the ledger: as they were stored, and as a page shows them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.shards import LEDGER_SCHEMA, Dataset, conform

MAX_COMMITS = 64  # whose clips are shown; previews of a commit are read whole
BOXES = {"watermark": "watermark_box", "text": "text_boxes"}  # what a rule found, where
RED = (60, 40, 220)  # BGR
LIT = 24.0  # grey levels of 255 on average; ours: a fade is under it, most nights are not


def stored(
    dataset: Dataset, clip_ids: Sequence[str], most: int | None = MAX_COMMITS
) -> Iterator[dict[str, Any]]:
    """Ledger rows of clips, from the `most` commits that hold most of them: clip_id, rule, boxes,
    and `preview`, their JPEGs in order."""
    ids = pa.array(sorted(set(clip_ids)), pa.string())
    holding: list[tuple[int, str]] = []
    for commit in dataset.commits():
        there = read_ledger(dataset, commit["name"], ["clip_id"])["clip_id"]
        holding.append((pc.sum(pc.is_in(there, ids)).as_py() or 0, commit["name"]))
    for number, name in sorted(holding, reverse=True)[:most]:
        if not number:
            break
        table = read_ledger(dataset, name, ["clip_id", "rule", "preview", *BOXES.values()])
        for row in table.filter(pc.is_in(table["clip_id"], ids)).to_pylist():
            yield row | {"preview": row["preview"] or []}


class Shown(NamedTuple):
    """The preview pictures of a clip as data URIs, and which of them stands there at rest."""

    uris: list[str]
    rest: int


def previews(dataset: Dataset, clip_ids: Sequence[str]) -> dict[str, Shown]:
    """The previews of those of these clips that have some.

    What the rule that dropped a clip found in the picture has a frame.
    """
    out = {}
    for row in stored(dataset, clip_ids):
        if row["preview"]:
            boxes = boxes_of(row)
            uris = [data_uri(framed(jpeg, boxes)) for jpeg in row["preview"]]
            out[row["clip_id"]] = Shown(uris, lit(row["preview"]))
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


def decoded(jpeg: bytes) -> np.ndarray | None:
    """uint8 BGR [H, W, 3]; None for what is no picture, which vf-validate finds and the browser
    shows as broken."""
    data = np.frombuffer(jpeg, np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None


def lit(jpegs: Sequence[bytes]) -> int:
    """Which of some pictures to show alone: the first that is not black, else the brightest."""
    light: list[float] = []
    for jpeg in jpegs:
        picture = decoded(jpeg)
        light.append(-1.0 if picture is None else picture.mean())
        if light[-1] >= LIT:
            return len(light) - 1
    return int(np.argmax(light))


def framed(jpeg: bytes, boxes: np.ndarray) -> bytes:
    """A small JPEG with a red frame around each box."""
    picture = decoded(jpeg) if len(boxes) else None
    if picture is None:
        return jpeg
    height, width = picture.shape[:2]
    for x0, y0, x1, y1 in boxes:
        first = (int(x0 * width) - 1, int(y0 * height) - 1)
        cv2.rectangle(picture, first, (round(x1 * width), round(y1 * height)), RED, 1)
    # A thin line keeps its colour only where colours are stored as densely as light.
    dense = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", picture, dense)[1].tobytes()


def data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
