"""A row of a list -> a Source: which columns are read, and how their cells are."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from curation.settings import ConfigError, nearest
from curation.sources.lists.cells import (
    NULLS,
    RowError,
    checked_span,
    duration_s,
    is_nothing,
    list_in,
    num_chars,
    one_value,
)
from curation.sources.lists.layouts import Layout, layout_of, squeezed
from curation.sources.notes import Notes
from curation.sources.source import (
    CONTROLS,
    FACTS,
    Source,
    Span,
    changed,
    is_storable,
    is_url,
    join_spans,
    local,
    remote,
    storable,
)
from curation.sources.uris import below, is_object, parts_of, recorded

# `timestamp` is Panda-70M's: a list of [start, end], with a list of as many captions.
COLUMNS = ("url", "id", "caption", "start", "end", "timestamp", *FACTS, "duration_s")
# How near a name is to one of ours to be taken for a slip of the pen; difflib's ratio. Ours:
# captions (0.93), titel (0.8) and categories (0.78) are, captionscore (0.74) is not.
NEAR = 0.75
MAX_CELL_CHARS = 131_072  # of all texts of a cell that is read: what Python's csv allows a field


# -- names of columns


OURS = {squeezed(name): name for name in COLUMNS} | {"duration": "duration_s"}


def columns_of(text: str | None) -> dict[str, str]:
    """What `--columns url=link,caption=text` says: our name -> the list's.

    Raises ConfigError for what is no pair and for a name on its left that is none of ours.
    """
    found: dict[str, str] = {}
    for each in filter(None, (text or "").split(",")):
        ours, mark, theirs = (part.strip() for part in each.partition("="))
        if not (ours and mark and theirs):
            raise ConfigError(f"--columns {each}: write OURS=THEIRS, such as url=link,caption=text")
        if ours not in COLUMNS:
            raise ConfigError(f"--columns {each}: {ours} is no column{nearest(ours, COLUMNS)}")
        if ours in found:
            raise ConfigError(f"--columns names {ours} twice")
        found[ours] = theirs
    return found


@dataclass(frozen=True)
class Header:
    """The columns of a list: those that are read, by our names, and the others."""

    read: dict[str, str]  # our name: the list's
    unread: tuple[str, ...]
    layout: Layout | None = None


@lru_cache(maxsize=1024)  # rows of a .jsonl have headers of their own
def header_of(names: tuple[str, ...], given: tuple[tuple[str, str], ...] = ()) -> Header:
    """What is read of columns with these names; `given` are pairs of ours and theirs.

    Raises ConfigError for one that is near a name of ours which is not there.
    """
    layout = layout_of(names)
    theirs = {squeezed(name): name for name in reversed(names)}
    read = {
        ours: theirs[squeezed(name)]
        for ours, name in {**(layout.columns if layout else {}), **dict(given)}.items()
        if squeezed(name) in theirs
    }
    used = {squeezed(name) for name in (*read.values(), *(layout.uses if layout else ()))}
    other = {squeezed(name) for name in layout.other} if layout else set()
    unread: list[str] = []
    for name in names:
        ours = OURS.get(squeezed(name)) if squeezed(name) not in other else None
        if ours and ours not in read and squeezed(name) not in used:
            read[ours] = name
        elif squeezed(name) not in used:
            unread.append(name)
    for name in [] if layout else unread:
        if near := nearest_column(name, [c for c in COLUMNS[:-1] if c not in read]):
            raise ConfigError(
                f"the column {name!r} is not one that is read; did you mean {near!r}? "
                f"Rename it, remove it, or say --columns {near}={name}"
            )
    return Header(read, tuple(unread), layout)


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
    columns: dict[str, str] = field(default_factory=dict)  # our name: the list's, as --columns says
    is_tolerant: bool = False  # a row that cannot be used is noted, and the next one read
    store: str | None = None  # of a list in an object store: the URI of its folder

    def source(self, row: Mapping[str, Any] | RowError, where: str) -> Source | None:
        """A row as a Source; None for one without a URL, which is noted.

        Raises ConfigError that names the row.
        """
        try:
            if isinstance(row, RowError):
                raise row
            return self.read(row, where)
        except RowError as error:
            if not self.is_tolerant:
                raise ConfigError(f"{self.path}: {where}: {error}") from None
            self.notes.refuse(error.reason, f"{where}: {error}")
            return None
        except ValueError as error:
            raise ConfigError(f"{self.path}: {where}: {error}") from None

    def read(self, row: Mapping[str, Any], where: str) -> Source | None:
        header = self.header(tuple(map(str, row)))
        cells = {ours: row[name] for ours, name in header.read.items()}
        if header.layout and header.layout.cells:
            given = {ours: cells[ours] for ours in self.columns if ours in cells}
            cells |= header.layout.cells(row) | given
        if "url" not in cells:
            raise RowError(
                "rows without a column for the url",
                f"no 'url'; columns: {', '.join(map(str, row))}; needed: url (also read: "
                f"{', '.join(COLUMNS[1:])}). Where it has another name, say --columns url=NAME",
            )
        for ours, cell in cells.items():
            if num_chars(cell) > MAX_CELL_CHARS:
                says = f"{ours} holds more than {MAX_CELL_CHARS:,} characters"
                raise RowError("cells that are too long", says)
        url = one_value(cells["url"], "url").strip()
        if not url or url in NULLS:
            self.notes.leave_out("rows without a url skipped", where)
            return None
        found: dict[str, Any] = {
            name: self.text(cells[name], name, where) for name in ("id", *FACTS) if name in cells
        }
        found |= self.cuts(cells, where)
        # Beside a cut a duration is the cut's.
        if not is_nothing(cells.get("duration_s")) and ("spans" in cells or not found["spans"]):
            found["duration_s"] = duration_s(cells["duration_s"])
            if found["duration_s"] is None:
                self.notes.leave_out("durations that are no times", where)
        return changed(self.at(url, where), **found)

    def header(self, names: tuple[str, ...]) -> Header:
        """What is read of a row with these columns, noted."""
        header = header_of(names, tuple(self.columns.items()))
        if not self.notes.read:  # rows of a .jsonl may lack some later on
            for ours, name in self.columns.items():
                if squeezed(name) not in map(squeezed, names):
                    says = f"no column {name!r}{nearest(name, names)}"
                    raise ConfigError(f"--columns {ours}={name}: {says}")
        self.notes.unread |= dict.fromkeys(name or "one without a name" for name in header.unread)
        self.notes.read |= dict.fromkeys(header.read)
        if header.layout and not self.notes.layout:
            self.notes.layout = header.layout.name
            there = dict.fromkeys((*header.read.values(), *header.layout.uses))
            self.notes.layout_columns = [name for name in names if name in there]
        return header

    def at(self, url: str, where: str) -> Source:
        """The source at a URL or a path of this list."""
        if "\0" in url:
            raise RowError("urls with a zero byte", "url holds a zero byte")
        if is_url(url):
            return remote(url)
        if is_object(url):
            return object_at(url)
        if self.store:
            return self.in_store(local_path(url), self.store)
        path = self.as_on_disk(local_path(url))
        self.check_below(path)
        source = local(self.path.parent / path, Path.cwd())
        if not is_storable(path):
            self.notes.leave_out("names that are not UTF-8, recorded with \\xNN", where)
        assert source.path is not None
        if os.path.isdir(source.path):  # noqa: PTH112  once per row
            says = f"{source.url} is a folder; a row names one video"
            raise RowError("rows that name a folder", says)
        if not os.path.exists(source.path):  # noqa: PTH110
            self.notes.count("missing files")
        return source

    def check_below(self, path: str) -> None:
        """Raise ValueError for a relative path that leads out of the list's folder."""
        folder = self.path.parent.absolute()
        named = Path(os.path.normpath(folder / path))
        if not Path(path).is_absolute() and not named.is_relative_to(os.path.normpath(folder)):
            raise RowError(
                "paths that lead out of the list's folder",
                f"{storable(path)} leads out of the list's folder. If it is meant, write the "
                "whole path from / on, or put the list above its videos",
            )

    def in_store(self, path: str, store: str) -> Source:
        """The object at a relative path of a list in an object store: below the list's folder."""
        if path.startswith("/"):
            says = "is a path of this machine; a list in an object store names objects and URLs"
            raise RowError("paths of this machine", f"{storable(path)} {says}")
        self.check_below(path)
        return remote(below(store, os.path.normpath(path)))

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
        if cell is None:
            return None
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

    def cuts(self, cells: Mapping[str, Any], where: str) -> dict[str, Any]:
        """What a row gives of cuts and captions, as fields of its source."""
        captions = self.captions(cells.get("caption"), where)
        num_captions = sum(c is not None for c in captions)
        if "spans" in cells:  # a list that vf-sources wrote has captions of the whole video, too
            spans = [checked_span(*span) for span in cells["spans"]]
            num_captions += sum(len(span.captions) for span in spans)
        else:
            spans = self.spans(cells, captions, where)
        self.notes.count("captions", num_captions)
        self.notes.count("spans", len(spans))
        found: dict[str, Any] = {"spans": join_spans(spans) if spans else ()}
        if "spans" in cells or not spans:
            first, *others = dict.fromkeys(filter(None, captions)) or (None,)
            found |= {"caption": first, "other_captions": tuple(others)}
        return found

    def spans(self, cells: Mapping[str, Any], captions: list[str | None], where: str) -> list[Span]:
        """The cuts that a row gives; those of `timestamp` have a caption each."""
        pairs = list_in(cells.get("timestamp"))
        if pairs is not None:
            if captions != [None] and len(captions) != len(pairs):
                says = f"timestamp has {len(pairs)} cuts and caption {len(captions)}"
                raise RowError("cuts without as many captions", says)
            each = [[c] if c else [] for c in captions] if captions != [None] else [[]] * len(pairs)
            ends = [p if isinstance(p, list) and len(p) == 2 else [p, None] for p in pairs]
            return [checked_span(a, b, c) for (a, b), c in zip(ends, each, strict=True)]
        if one_value(cells.get("timestamp"), "timestamp"):
            self.notes.unread["timestamp"] = None  # when a row was made, not where a cut is
        start, end = cells.get("start"), cells.get("end")
        if all(is_nothing(each) for each in (start, end)):
            return []
        return [checked_span(start, end, [c for c in captions if c])]


def object_at(uri: str) -> Source:
    """The object that a row names; RowError where the row says how it is reached, or who asks.

    Requests carry what proves who the user is, so where they go is not for a list to say.
    """
    if parts_of(uri).names_its_way:
        raise RowError(
            "objects with a server or credentials of their own",
            f"{recorded(uri)}: a list names objects alone. Endpoint, region and credentials are "
            "set in the environment (AWS_ENDPOINT_URL and so on); a ? in a name is written %3F",
        )
    return remote(uri)


def local_path(url: str) -> str:
    """The path that a row names: as it stands, or what a file:// URL says."""
    if not url.lower().startswith("file://"):
        return url
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise RowError("files on another machine", f"{url} is on another machine")
    return os.fsdecode(unquote_to_bytes(parts.path))
