"""What the user gave -> Source records: files, folders, lists and URLs."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from curation.settings import ConfigError

# Files of a folder that are taken for videos. A file named outright is always taken.
VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"),
    *(".m2ts", ".mts", ".flv", ".wmv", ".ogv", ".3gp"),
}
LIST_SUFFIXES = {".txt", ".csv", ".jsonl", ".parquet"}
TEXT_COLUMNS = ("title", "caption", "category", "uploader", "license", "upload_date")


@dataclass(frozen=True)
class Span:
    """A cut that came with the source, in seconds, with its caption if it has one."""

    start_s: float
    end_s: float
    caption: str | None = None


@dataclass(frozen=True)
class Source:
    """One video to curate: where it is and what is already known of it; None = not given."""

    url: str  # as recorded: the URL, or the path as it was given
    path: str | None = None  # absolute, for a local file
    id: str | None = None  # given by a list, or found from the content
    title: str | None = None
    caption: str | None = None
    category: str | None = None
    uploader: str | None = None
    license: str | None = None
    upload_date: str | None = None
    spans: tuple[Span, ...] = ()  # empty: find the scenes


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def expand(given: Iterable[str], folder: Path) -> list[Source]:
    """Every distinct source that the given files, folders, lists and URLs name, in order.

    Relative paths are below `folder`. Rows of a list that share a URL become one source with
    their spans. Raises ConfigError for a path that does not exist and a list without URLs.
    """
    found: dict[str, Source] = {}
    for text in given:
        for source in expand_one(text, folder):
            known = found.get(source.url)
            found[source.url] = join(known, source) if known else source
    return list(found.values())


def expand_one(text: str, folder: Path) -> Iterator[Source]:
    if is_url(text):
        yield Source(url=text)
        return
    path = folder / text
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES):
            if not any(part.startswith(".") for part in file.relative_to(path).parts):
                yield local(Path(text) / file.relative_to(path), folder)
    elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        for row in read_list(path):
            yield from_row(row, path)
    elif path.is_file():
        yield local(Path(text), folder)
    else:
        raise ConfigError(
            f"no such file or folder: {text}; a source is a file, folder, list or URL"
        )


def local(given: Path, folder: Path) -> Source:
    return Source(url=str(given), path=str((folder / given).absolute()))


def read_list(path: Path) -> list[dict[str, Any]]:
    """The rows of a .txt (a URL per line, # comments), .csv, .jsonl or .parquet list."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return pq.read_table(path).to_pylist()
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if suffix == ".csv":
            return list(csv.DictReader(lines))
        lines = [line.strip() for line in lines if line.strip()]
        if suffix == ".jsonl":
            rows = [json.loads(line) for line in lines]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is not an object of columns")
            return rows
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not a readable {suffix} list: {error}") from None
    return [{"url": line} for line in lines if not line.startswith("#")]


def from_row(row: dict[str, Any], path: Path) -> Source:
    """A list's row as a Source; a relative path in it is below the list's folder."""
    url = str(row.get("url") or "").strip()
    if not url:
        raise ConfigError(
            f"{path}: a row has no 'url'; columns: {', '.join(map(str, row))}; "
            "needed: url (also read: id, title, caption, start, end, "
            "category, uploader, license, upload_date)"
        )
    source = Source(url=url) if is_url(url) else local(path.parent / url, Path.cwd())
    text: dict[str, Any] = {
        name: str(row[name]) for name in TEXT_COLUMNS if row.get(name) not in (None, "")
    }
    source = replace(source, id=str(row["id"]) if row.get("id") else None, **text)
    if row.get("start") in (None, "") and row.get("end") in (None, ""):
        return source
    try:
        span = Span(float(row["start"]), float(row["end"]), source.caption)
    except (TypeError, ValueError, KeyError):
        raise ConfigError(
            f"{path}: {url}: start {row.get('start')!r} and end {row.get('end')!r} "
            "must both be seconds"
        ) from None
    if not 0 <= span.start_s < span.end_s:  # NaN is not
        raise ConfigError(
            f"{path}: {url}: start {span.start_s} is not before end {span.end_s}; "
            "both are seconds from the first frame"
        )
    return replace(source, caption=None, spans=(span,))


def join(known: Source, other: Source) -> Source:
    """Two mentions of one URL: the first one's text, the spans of both."""
    spans = sorted({*known.spans, *other.spans}, key=lambda s: (s.start_s, s.end_s))
    return replace(known, spans=tuple(spans))


def content_id(path: str) -> str:
    """The video id of a file: the first 20 hex digits of its content's SHA-256."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]
