"""Sources -> a Parquet list with a row for each video, which every command reads as a source."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curation.sources.source import FACTS, Source, storable_path

TEXTS = pa.list_(pa.string())
SPAN = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("captions", TEXTS)])
SCHEMA = pa.schema(
    [
        ("url", pa.string()),  # without secrets; of a file its whole path
        ("id", pa.string()),
        *((name, pa.string()) for name in FACTS),
        ("duration_s", pa.float64()),  # of the whole video, as a list said
        ("caption", TEXTS),  # of the whole video
        ("spans", pa.list_(SPAN)),  # the given cuts, by time
    ]
)
ROWS_PER_GROUP = 8192  # Ours: some MB, and a video may have thousands of cuts


def row_of(source: Source) -> dict[str, object]:
    spans = [
        {"start_s": s.start_s, "end_s": s.end_s, "captions": list(s.captions)} for s in source.spans
    ]
    facts = {name: getattr(source, name) for name in ("id", *FACTS, "duration_s")}
    url = source.url if source.path is None else storable_path(source.path)
    return {"url": url, **facts, "caption": list(source.captions), "spans": spans}


def write_list(sources: Iterable[Source], path: Path) -> int:
    """Write a list, whole or not at all; returns how many rows it has."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    num_rows = 0
    try:
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            rows: list[dict[str, object]] = []
            for source in sources:
                rows.append(row_of(source))
                num_rows += 1
                if len(rows) == ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return num_rows
