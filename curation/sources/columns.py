"""A row of a list -> a Source: which columns are read, and how their cells are."""

from __future__ import annotations

import ast
import datetime
import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from curation.settings import ConfigError
from curation.sources.notes import Notes
from curation.sources.source import (
    CONTROLS,
    FACTS,
    Source,
    Span,
    is_storable,
    is_url,
    join_spans,
    local,
    remote,
    span_of,
    storable,
    with_captions,
)

# `timestamp` is Panda-70M's: a list of [start, end], with a list of as many captions.
COLUMNS = ("url", "id", "caption", "start", "end", "timestamp", *FACTS)
# How near a name is to one of ours to be taken for a slip of the pen; difflib's ratio. Ours:
# captions (0.93), titel (0.8) and categories (0.78) are, captionscore (0.74) is not.
NEAR = 0.75
NULLS = {"nan", "NaN", "null", "NULL", "None"}  # what pandas and str() write for nothing
MAX_CELL_CHARS = 131_072  # of all texts of a cell that is read: what Python's csv allows a field
TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")


# -- names of columns


def squeezed(name: str) -> str:
    """A column's name without case, blanks and what stands for them.

    >>> squeezed(" Upload-Date")
    'uploaddate'
    """
    return re.sub(r"[\s_\-]", "", name).casefold()


OURS = {squeezed(name): name for name in COLUMNS}


@dataclass(frozen=True)
class Header:
    """The columns of a list: those that are read, by our names, and the others."""

    read: dict[str, str]  # our name: the list's
    unread: tuple[str, ...]


@lru_cache(maxsize=1024)  # rows of a .jsonl have headers of their own
def header_of(names: tuple[str, ...]) -> Header:
    """What is read of columns with these names.

    Raises ValueError for one that is near a name of ours which is not there.
    """
    read: dict[str, str] = {}
    unread: list[str] = []
    for name in names:
        ours = OURS.get(squeezed(name))
        if ours and ours not in read:
            read[ours] = name
        else:
            unread.append(name)
    for name in unread:
        if near := nearest_column(name, [c for c in COLUMNS if c not in read]):
            raise ValueError(
                f"the column {name!r} is not one that is read; did you mean {near!r}? "
                "Rename it, or remove it"
            )
    return Header(read, tuple(unread))


def nearest_column(name: str, absent: Iterable[str]) -> str | None:
    """The absent column that a name is a slip of; None where it is meant to be another."""
    words = [w.casefold() for w in re.findall(r"[A-Z]?[^\WA-Z_]+|[A-Z]+", name)]
    absent = list(absent)
    if len(words) > 1 and words[0] in ("start", "end"):  # start_time, end_s: cuts would be lost
        return words[0] if words[0] in absent else None
    if len(words) > 1 and set(words) & set(COLUMNS):  # category_id, license_url, caption_score
        return None
    plain = {squeezed(column): column for column in absent}
    if len(squeezed(name)) < 3:
        return None
    close = difflib.get_close_matches(squeezed(name), plain, n=1, cutoff=NEAR)
    return plain[close[0]] if close else None


# -- a row


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of one list, and notes what it does not use of them."""

    path: Path  # of the list; relative paths in it are below its folder
    notes: Notes

    def source(self, row: Mapping[str, Any], where: str) -> Source | None:
        """A row as a Source; None for one without a URL, which is noted.

        Raises ConfigError that names the row.
        """
        try:
            return self.read(row, where)
        except ValueError as error:
            raise ConfigError(f"{self.path}: {where}: {error}") from None

    def read(self, row: Mapping[str, Any], where: str) -> Source | None:
        header = header_of(tuple(map(str, row)))
        self.notes.unread |= dict.fromkeys(name or "one without a name" for name in header.unread)
        self.notes.read |= dict.fromkeys(header.read)
        if "url" not in header.read:
            raise ValueError(
                f"no 'url'; columns: {', '.join(map(str, row))}; needed: url "
                f"(also read: {', '.join(COLUMNS[1:])})"
            )
        cells = {ours: row[name] for ours, name in header.read.items()}
        for ours, cell in cells.items():
            if num_chars(cell) > MAX_CELL_CHARS:
                raise ValueError(f"{ours} holds more than {MAX_CELL_CHARS:,} characters")
        url = one_value(cells["url"], "url").strip()
        if not url or url in NULLS:
            self.notes.leave_out("rows without a url skipped", where)
            return None
        source = self.at(url, where)
        facts: dict[str, Any] = {
            name: self.text(cells.get(name), name, where) for name in ("id", *FACTS)
        }
        return self.with_cuts(replace(source, **facts), cells, where)

    def at(self, url: str, where: str) -> Source:
        """The source at a URL or a path of this list."""
        if "\0" in url:
            raise ValueError("url holds a zero byte")
        if is_url(url):
            return remote(url)
        path = self.as_on_disk(local_path(url))
        self.check_below(path)
        source = local(self.path.parent / path, Path.cwd())
        if not is_storable(path):
            self.notes.leave_out("names that are not UTF-8, recorded with \\xNN", where)
        assert source.path is not None
        if os.path.isdir(source.path):  # noqa: PTH112  once per row
            raise ValueError(f"{source.url} is a folder; a row names one video")
        if not os.path.exists(source.path):  # noqa: PTH110
            self.notes.count("missing files")
        return source

    def check_below(self, path: str) -> None:
        """Raise ValueError for a relative path that leads out of the list's folder."""
        folder = self.path.parent.absolute()
        named = Path(os.path.normpath(folder / path))
        if not Path(path).is_absolute() and not named.is_relative_to(os.path.normpath(folder)):
            raise ValueError(
                f"{storable(path)} leads out of the list's folder. If it is meant, write the "
                "whole path from / on, or put the list above its videos"
            )

    def as_on_disk(self, path: str) -> str:
        """A path of the list: with the bytes that it has in the list, where a file is named so.

        Names that `ls` wrote are in no encoding; those that people typed are in the list's.
        """
        if self.notes.encoding is None:
            return path
        data = path.encode(self.notes.encoding, "surrogateescape")
        as_is = os.fsdecode(data)
        return as_is if os.path.exists(self.path.parent / as_is) else path  # noqa: PTH110

    def text(self, cell: Any, name: str, where: str) -> str | None:
        """A cell as one line of text that can be stored; None when it holds nothing."""
        text = " ".join(one_value(cell, name).split())
        if text in NULLS:
            self.notes.leave_out("cells that say NaN, None or null read as empty", where)
            return None
        if not is_storable(text):
            self.notes.leave_out("texts with what is not UTF-8, read as U+FFFD", where)
        elif CONTROLS.search(text):
            self.notes.leave_out("texts with control characters, which are left out", where)
        return storable(text) or None

    def captions(self, cell: Any, where: str) -> list[str | None]:
        """The captions of a cell: one, or those of a list."""
        cells = list_in(cell)
        if cells is None or not all(c is None or isinstance(c, str | float) for c in cells):
            cells = [cell]
        return [self.text(each, "caption", where) for each in cells]

    def with_cuts(self, source: Source, cells: Mapping[str, Any], where: str) -> Source:
        """The source with its captions and spans."""
        captions = self.captions(cells.get("caption"), where)
        self.notes.count("captions", sum(c is not None for c in captions))
        spans = self.spans(cells, captions, where)
        self.notes.count("spans", len(spans))
        if spans:
            return replace(source, spans=join_spans(spans))
        return with_captions(source, filter(None, captions))

    def spans(self, cells: Mapping[str, Any], captions: list[str | None], where: str) -> list[Span]:
        """The cuts that a row gives; those of `timestamp` have a caption each."""
        pairs = list_in(cells.get("timestamp"))
        if pairs is not None:
            if captions != [None] and len(captions) != len(pairs):
                raise ValueError(f"timestamp has {len(pairs)} cuts and caption {len(captions)}")
            each = [[c] if c else [] for c in captions] if captions != [None] else [[]] * len(pairs)
            ends = [p if isinstance(p, list) and len(p) == 2 else [p, None] for p in pairs]
            return [checked_span(a, b, c) for (a, b), c in zip(ends, each, strict=True)]
        if one_value(cells.get("timestamp"), "timestamp"):
            self.notes.unread["timestamp"] = None  # when a row was made, not where a cut is
        start, end = cells.get("start"), cells.get("end")
        if all(is_nothing(each) for each in (start, end)):
            return []
        return [checked_span(start, end, [c for c in captions if c])]


def local_path(url: str) -> str:
    """The path that a row names: as it stands, or what a file:// URL says."""
    if not url.lower().startswith("file://"):
        return url
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{url} is on another machine")
    return os.fsdecode(unquote_to_bytes(parts.path))


# -- cells


def num_chars(cell: Any) -> int:
    """Characters or bytes of a cell and of what is in it."""
    if isinstance(cell, str | bytes):
        return len(cell)
    return sum(map(num_chars, cell)) + len(cell) if isinstance(cell, list | tuple) else 0


def is_nothing(cell: Any) -> bool:
    return cell is None or str(cell).strip() in ("", *NULLS)


def one_value(cell: Any, name: str) -> str:
    """A cell's value as text; "" for null and NaN.

    Raises ValueError for several values, and for a map of them.
    """
    if isinstance(cell, list | tuple) and len(cell) < 2:
        return one_value(cell[0] if cell else None, name)
    if isinstance(cell, list | tuple | dict):
        raise ValueError(f"{name} holds {len(cell)} values; one text is read")
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():  # ids, beside rows that have none
        return str(int(cell))
    if isinstance(cell, datetime.datetime):
        cell = cell.date()
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    return str(cell)


def list_in(cell: Any) -> list[Any] | None:
    """The list that a cell is, or is written in one of text: JSON or Python; None for others."""
    if isinstance(cell, list | tuple):
        return list(cell)
    text = cell.strip() if isinstance(cell, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) else None
    return None  # such as [music]


def checked_span(start: Any, end: Any, captions: Iterable[str]) -> Span:
    """A span of cells; ValueError unless it is one of seconds that go forward."""
    try:
        start_s, end_s = seconds(start), seconds(end)
    except (TypeError, ValueError):
        raise ValueError(
            f"start {start!r} and end {end!r} must both be seconds, or times such as 1:02:03.5"
        ) from None
    if not 0 <= start_s < end_s < math.inf:  # NaN is not
        raise ValueError(
            f"start {start_s} is not before end {end_s}; both are seconds from the first frame"
        )
    return span_of(start_s, end_s, captions)


def seconds(cell: Any) -> float:
    """Seconds that a cell says: a number, or a time as m:ss, h:mm:ss, with or without fraction.

    >>> seconds("1:02:03.5"), seconds("0:03"), seconds("7")
    (3723.5, 3.0, 7.0)
    """
    if isinstance(cell, datetime.timedelta):
        return cell.total_seconds()
    if isinstance(cell, datetime.time):
        return seconds(cell.isoformat())
    if isinstance(cell, str):
        if found := TIME.fullmatch(cell.strip()):
            hours, minutes, rest = found[1], int(found[2]), float(found[3].replace(",", "."))
            if rest >= 60 or (hours and minutes >= 60):
                raise ValueError(f"{cell} is no time")
            return int(hours or 0) * 3600 + minutes * 60 + rest
        return float(cell)
    if isinstance(cell, bool) or not isinstance(cell, int | float | Decimal):
        raise TypeError(f"{cell!r} is no time")
    return float(cell)
