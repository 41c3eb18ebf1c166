"""Sources -> a list with a row for each video, which every command reads as a source."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

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
    """Write sources as a .parquet list, whole or not at all; returns how many rows it has."""
    return write_rows(map(row_of, sources), path, SCHEMA)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, schema: pa.Schema) -> int:
    """Write rows as .parquet, .jsonl or .csv, whole or not at all; returns how many there are."""
    write = {".parquet": write_parquet, ".jsonl": write_jsonl, ".csv": write_csv}
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        num_rows = write[path.suffix.lower()](iter(rows), partial, schema)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return num_rows


Rows = Iterator[Mapping[str, Any]]


def write_parquet(rows: Rows, path: Path, schema: pa.Schema) -> int:
    num_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
            num_rows += len(group)
        if not num_rows:
            writer.write_table(schema.empty_table())
    return num_rows


def write_jsonl(rows: Rows, path: Path, schema: pa.Schema) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for num_rows, row in enumerate(rows, 1):  # noqa: B007
            said = {name: row[name] for name in schema.names if row.get(name) is not None}
            file.write(json.dumps(said, ensure_ascii=False) + "\n")
    return num_rows


def write_csv(rows: Rows, path: Path, schema: pa.Schema) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, schema.names, lineterminator="\n")
        writer.writeheader()
        for num_rows, row in enumerate(rows, 1):  # noqa: B007
            writer.writerow(row)
    return num_rows
