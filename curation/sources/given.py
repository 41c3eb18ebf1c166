"""Files, folders, lists, URLs and objects that a user gave -> the distinct sources, and notes."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from curation.places import Scratch
from curation.settings import ConfigError
from curation.sources.folders import videos
from curation.sources.lists.columns import RowReader, local_path
from curation.sources.lists.rows import READERS, read_rows
from curation.sources.notes import Notes
from curation.sources.source import Source, contradicts, is_url, join, local, place, remote
from curation.sources.stores import copy_list, look, videos_below
from curation.sources.subtitles import is_subtitle
from curation.sources.uris import SCHEMES, below, folder, is_object, recorded

# Tables that are taken for lists, and what to do to have them read.
UNREAD = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods", ".numbers"), "as UTF-8 if you are asked"),
    **dict.fromkeys((".yaml", ".yml", ".toml", ".xml"), "with a row for each video"),
    **dict.fromkeys((".feather", ".arrow", ".h5", ".pkl", ".sqlite", ".db"), "or as .parquet"),
    **dict.fromkeys((".gz", ".zip", ".zst"), "unpacked"),
}


@dataclass
class Given:
    """The distinct sources in order, and a line for each folder and list they come from."""

    sources: list[Source] = field(default_factory=list)
    notes: list[Notes] = field(default_factory=list)

    def ignored(self) -> list[str]:
        """What was not used of folders and lists, a line each; [] when everything was."""
        return [line for each in self.notes if (line := each.ignored())]

    def recognised(self) -> list[str]:
        """Of which published data sets the lists have the columns, a line each."""
        return [line for each in self.notes if (line := each.recognised())]

    def summary(self) -> list[str]:
        """What was found in folders and lists, a line each, for a dry run."""
        return [each.summary() for each in self.notes]


def expand(given: Iterable[str], folder: Path) -> list[Source]:
    """The sources of `read_given`."""
    return read_given(given, folder).sources


def read_given(
    given: Iterable[str], folder: Path, columns: Mapping[str, str] | None = None
) -> Given:
    """Every distinct source that files, folders, lists and URLs name, in order.

    Relative paths are below `folder`, those in a list below the list's own. Mentions of one place,
    however it is spelled, become one source with all their spans and captions. Raises ConfigError
    for a path that does not exist and for a list that cannot be used. `columns` says under which
    name lists have a column of ours.
    """
    result = Given()
    found: dict[str, Source] = {}
    for text in given:
        for source, notes, where in sources_of(text, folder, result.notes, columns):
            at = place(source)
            known = found.setdefault(at, source)
            if known is source:
                continue
            if notes and contradicts(known, source):
                notes.leave_out("rows that name a video again with other facts, not used", where)
            found[at] = join(known, source)
    result.sources = list(found.values())
    return result


Found = tuple[Source, Notes | None, str]  # a source, whose notes, and where in it


def sources_of(
    text: str,
    folder: Path,
    notes: list[Notes],
    columns: Mapping[str, str] | None = None,
    *,
    is_tolerant: bool = False,
) -> Iterator[Found]:
    """What one given text names; the notes of a folder or list are added to `notes`.

    `is_tolerant`: rows that cannot be used are noted, and end nothing.
    """
    if is_url(text):
        yield remote(text), None, ""
        return
    if is_object(text):
        yield from objects_of(text, notes, columns, is_tolerant=is_tolerant)
        return
    source = local(local_path(text), folder)
    assert source.path is not None
    path = Path(source.path)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        raise ConfigError(no_source(text)) from None
    if is_folder:
        notes.append(about := Notes(source.url))
        for name in videos(source.path, about):
            about.count("videos")
            yield local(Path(local_path(text)) / name, folder), about, name
    elif path.suffix.lower() in READERS:
        notes.append(about := Notes(source.url))
        reader = RowReader(path, about, dict(columns or {}), is_tolerant)
        for where, row in read_rows(path, about):
            if found := reader.source(row, where):
                yield found, about, where
    else:
        check_no_other(text, path.name)
        yield source, None, ""


def no_source(text: str) -> str:
    """Why a text that names nothing here is no source."""
    scheme, mark, _ = text.partition("://")
    if mark and scheme.isalnum():
        read = ", ".join(f"{each}://" for each in ("http", "https", "file", *SCHEMES))
        return f"{scheme}:// is not read; URLs begin with {read}"
    return f"no such file or folder: {text}; a source is a file, folder, list or URL"


def check_no_other(given: str, name: str) -> None:
    """Raise ConfigError for a table of a kind that is not read, and for timed text."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in UNREAD:
        raise ConfigError(
            f"{given} is no list that is read: those are {', '.join(READERS)}. "
            f"Save it as .csv or .jsonl, {UNREAD[suffix]}"
        )
    if is_subtitle(name):
        raise ConfigError(f"{given} is the text of a video; name the video, and it is found")


def objects_of(
    uri: str, notes: list[Notes], columns: Mapping[str, str] | None, *, is_tolerant: bool
) -> Iterator[Found]:
    """What an object's URI names: the objects below it, the rows of a list, or itself."""
    info, name = look(uri), recorded(uri)
    suffix = PurePosixPath(info.base_name).suffix.lower()
    if not info.is_file:
        notes.append(about := Notes(name))
        for inside in videos_below(uri, about):
            about.count("videos")
            yield remote(below(uri, inside)), about, inside
    elif suffix in READERS:
        notes.append(about := Notes(name))
        yield from rows_of(uri, suffix, about, dict(columns or {}), is_tolerant)
    else:
        check_no_other(name, info.base_name)
        yield remote(uri), None, ""


def rows_of(
    uri: str, suffix: str, notes: Notes, columns: dict[str, str], is_tolerant: bool
) -> Iterator[Found]:
    """The rows of a list in an object store, read from a copy that goes with them."""
    scratch = Scratch()
    copy = scratch.folder / f"list{suffix}"
    try:
        copy_list(uri, copy)
        reader = RowReader(copy, notes, columns, is_tolerant, store=folder(uri))
        for where, row in read_rows(copy, notes):
            if found := reader.source(row, where):
                yield found, notes, where
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(copy), recorded(uri))) from None
    finally:
        scratch.remove()
