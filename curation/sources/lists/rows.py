"""A list file -> its rows, one after another: .txt, .csv, .tsv, .jsonl, .json, .parquet."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from curation.settings import ConfigError
from curation.sources.charsets import CHARSETS, encoding_of
from curation.sources.lists.cells import RowError
from curation.sources.lists.json_pieces import Buffer, items
from curation.sources.lists.layouts import VIDEO_KEY, squeezed
from curation.sources.notes import Notes

# Where it is, as a user would look for it; cells by column name, or why there are none.
Row = tuple[str, dict[str, Any] | RowError]

DELIMITERS = ",;\t|"
BATCH_ROWS = 64  # of a Parquet list in memory
# Of those rows: a file of 1 MB may hold a text of 1 MB a million times. Ours: 16 MB a row, for
# pictures and embeddings beside what is read.
MAX_BATCH_BYTES = 1 << 30
MAX_LINE_CHARS = 16 << 20  # of a .txt or .jsonl. Ours: a caption for every second of a day has 5
COMMENT_SIGNS = ("#", ";", "]")  # yt-dlp's, for files of URLs
INLINE_COMMENT = re.compile(r"\s#")  # likewise: a # without a blank before it is a URL's


def read_rows(path: Path, notes: Notes) -> Iterator[Row]:
    """The rows of a list; those that are blank are counted and left out.

    Raises ConfigError, with the row, for a list that cannot be read.
    """
    suffix = path.suffix.lower()
    try:
        for where, row in READERS[suffix](path, notes):
            notes.count("rows")
            if isinstance(row, dict) and all(is_blank(cell) for cell in row.values()):
                notes.leave_out("blank rows skipped", where)
            else:
                yield where, row
    except (csv.Error, ValueError, OSError, RecursionError, pa.ArrowException) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not a readable {suffix} list: {error}") from None


def is_blank(cell: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, or white space."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and not cell.strip())


def open_text(path: Path, notes: Notes) -> TextIO:
    """A text file in its encoding, which is noted unless it is UTF-8 or has a mark.

    Bytes that are none of the encoding come as lone surrogates, so that file names with them stay
    what they are. Lines end where they do in the file.
    """
    with path.open("rb") as file:
        encoding = encoding_of(file)
    notes.encoding = encoding if encoding in CHARSETS else None
    has_bytes = encoding in CHARSETS or encoding.startswith("utf-8")
    errors = "surrogateescape" if has_bytes else "replace"
    return path.open(encoding=encoding, errors=errors, newline="")


def text_rows(path: Path, notes: Notes) -> Iterator[Row]:
    """A URL or path a line. Comments as in yt-dlp, unless a file has the whole line as its name."""
    with open_text(path, notes) as file:
        for number, line in enumerate(lines(file), 1):
            url = line.strip()
            if (url.startswith(COMMENT_SIGNS) or INLINE_COMMENT.search(url)) and not (
                "\0" not in url and (path.parent / url).is_file()
            ):
                if url.startswith(COMMENT_SIGNS):
                    continue
                url = INLINE_COMMENT.split(url, maxsplit=1)[0].rstrip()
            if url:
                yield f"line {number}", {"url": url}


def lines(file: TextIO) -> Iterator[str]:
    """Lines that end in \\n, \\r\\n or \\r, and in no other character."""
    while line := file.readline(MAX_LINE_CHARS + 1):
        if len(line) > MAX_LINE_CHARS:
            raise ValueError(f"a line has more than {MAX_LINE_CHARS:,} characters")
        yield line.rstrip("\r\n")


def csv_rows(path: Path, notes: Notes) -> Iterator[Row]:
    """Rows of a .csv or .tsv, numbered as a spreadsheet shows them: the header is row 1."""
    with open_text(path, notes) as file:
        first = file.readline()
        if found := re.match(r'"?sep=(.)"?\s*$', first):  # what Excel writes before the header
            delimiter, first = found[1], file.readline()
        else:
            delimiter = delimiter_of(first, path)
        rest = csv.reader(chain_lines(first, file), delimiter=delimiter, **DIALECT)
        names = [name.strip() for name in next(rest, [])]
        if not any(names):
            raise ValueError("it has no header")
        check_header(names)
        for where, cells in numbered(rest):
            surplus = [cell for cell in cells[len(names) :] if cell.strip()]
            if surplus:
                says = (
                    f"{len(cells)} cells, and the header names {len(names)} columns "
                    f"({', '.join(names)}); the surplus is {surplus[0][:60]!r}. Put text "
                    f"that holds {delimiter!r} between double quotes"
                )
                yield where, RowError("rows with more cells than the header", says)
                continue
            row = dict(zip(names, cells, strict=False))
            yield where, {name: cell for name, cell in row.items() if name or cell.strip()}


def numbered(rows: Iterator[list[str]]) -> Iterator[tuple[str, list[str]]]:
    """The rows after a header, each with its number; ValueError with it for one that is broken."""
    for number in count(2):
        try:
            yield f"row {number}", next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            hint = "; is a quote left open?" if "limit" in str(error) else ""
            raise ValueError(f"row {number}: {error}{hint}") from None


# Strict: a quote that is never closed would take the rest of the file into one cell.
DIALECT: dict[str, Any] = {"strict": True, "skipinitialspace": True}


def chain_lines(first: str, file: TextIO) -> Iterator[str]:
    yield first
    yield from file


def delimiter_of(header: str, path: Path) -> str:
    """What stands between the cells: that which makes a name `url`, else that with most names."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    cut = {
        mark: next(csv.reader([header], delimiter=mark, skipinitialspace=True), [])
        for mark in DELIMITERS
    }
    for mark, names in cut.items():
        if "url" in map(squeezed, names):
            return mark
    return max(DELIMITERS, key=lambda mark: len(cut[mark]))


def check_header(names: list[str]) -> None:
    """Raise ValueError where two columns have one name."""
    seen: dict[str, str] = {}
    for name in filter(None, names):
        if squeezed(name) in seen:
            raise ValueError(f"two columns are named {name!r}; rename one")
        seen[squeezed(name)] = name


def jsonl_rows(path: Path, notes: Notes) -> Iterator[Row]:
    with open_text(path, notes) as file:
        for number, line in enumerate(lines(file), 1):
            where = f"line {number}"
            if not line.strip():
                continue
            try:
                row = checked_row(json.loads(line), "line")
            except ValueError as error:
                row = RowError("lines that are no JSON", f"{error}; an object a line is read")
            yield where, row


def json_rows(path: Path, notes: Notes) -> Iterator[Row]:
    """The rows of an array of objects, of one object of videos or columns, or of an object a line.

    An array or object is read item by item (json_pieces). Of objects there are HD-VG's, a video
    each under its id, and MSR-VTT's, with `videos` and `sentences`.
    """
    with open_text(path, notes) as file:
        if Buffer(file).mark() == "[":
            file.seek(0)
            for number, (_, row) in enumerate(items(file), 1):
                yield f"item {number}", checked_row(row, "item")
            return
        file.seek(0)
        is_lines = begins_with_row(file)
        file.seek(0)
        yield from jsonl_rows(path, notes) if is_lines else keyed_rows(file)


def begins_with_row(file: TextIO) -> bool:
    """Whether a file begins with a line that is an object of columns: not one of videos."""
    try:
        if any(is_keyed(value) for _, value in islice(items(file), 1)):
            return False
        file.seek(0)
        found = json.loads(next(filter(str.strip, lines(file)), ""))
    except ValueError:
        return False
    return isinstance(found, dict) and not {"videos", "sentences"} <= set(found)


def is_keyed(value: Any) -> bool:
    return isinstance(value, dict) and "clip" in value


def keyed_rows(file: TextIO) -> Iterator[Row]:
    """The rows of an object: its videos by their ids (HD-VG), or those in `videos` (MSR-VTT)."""
    tables: dict[str, Any] = {}
    for key, value in items(file):
        if is_keyed(value):
            yield f"video {key}", {VIDEO_KEY: key, **value}
        else:
            tables[key] = value
    if tables and not {"videos", "sentences"} <= set(tables):
        raise ValueError(
            f"it is one object with {', '.join(list(tables)[:5])}: an array of objects is read, "
            "an object a line, HD-VG's object of videos and MSR-VTT's"
        )
    captions: dict[Any, list[Any]] = {}
    for each in tables.get("sentences", []):
        captions.setdefault(each.get("video_id"), []).append(each.get("caption"))
    for number, each in enumerate(tables.get("videos", []), 1):
        row = checked_row(each, "item")
        if isinstance(row, dict):
            row = {**row, "caption": captions.get(row.get("video_id"), [])}
        yield f"item {number}", row


def checked_row(row: Any, what: str) -> dict[str, Any] | RowError:
    if isinstance(row, dict):
        return row
    return RowError(f"{what}s that are no objects", "it is not an object of columns")


def parquet_rows(path: Path, notes: Notes) -> Iterator[Row]:
    number = 0
    with pq.ParquetFile(path) as file:
        check_header(file.schema_arrow.names)
        for batch in file.iter_batches(BATCH_ROWS):
            if batch.nbytes > MAX_BATCH_BYTES:
                says = f"{len(batch)} rows from row {number + 1} on hold {batch.nbytes:,} bytes"
                raise ValueError(f"{says}; at most {MAX_BATCH_BYTES:,} are read")
            columns = [cells(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                number += 1
                yield f"row {number}", dict(zip(batch.schema.names, values, strict=True))


def cells(column: pa.Array) -> list[Any]:
    """A Parquet column as Python values; text that is not UTF-8 as `open_text` has it."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return cells(column.dictionary_decode())
    if is_text(kind):
        return [None if each is None else unicode_of(each) for each in as_bytes(column)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        values = cells(column.flatten())
        lengths = column.value_lengths().to_pylist()
        found, at = [], 0
        for length in lengths:
            found.append(None if length is None else values[at : at + length])
            at += length or 0
        return found
    return column.to_pylist()


def is_text(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    others = (pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in (*kinds, *others))


def as_bytes(column: pa.Array) -> list[bytes | None]:
    return column.cast(pa.large_binary()).to_pylist()


def unicode_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


READERS: dict[str, Callable[[Path, Notes], Iterator[Row]]] = {
    ".txt": text_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".parquet": parquet_rows,
}
