"""Files, folders, lists and URLs that a user gave -> every distinct source, and what is told."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from curation.settings import ConfigError
from curation.sources.folders import videos
from curation.sources.lists.columns import RowReader, local_path
from curation.sources.lists.rows import READERS, read_rows
from curation.sources.notes import Notes
from curation.sources.source import Source, contradicts, is_url, join, local, place, remote
from curation.sources.subtitles import is_subtitle

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
    source = local(local_path(text), folder)
    assert source.path is not None
    path = Path(source.path)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        raise ConfigError(
            f"no such file or folder: {text}; a source is a file, folder, list or URL"
        ) from None
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
    elif path.suffix.lower() in UNREAD:
        raise ConfigError(
            f"{text} is no list that is read: those are {', '.join(READERS)}. "
            f"Save it as .csv or .jsonl, {UNREAD[path.suffix.lower()]}"
        )
    elif is_subtitle(path.name):
        raise ConfigError(f"{text} is the text of a video; name the video, and it is found")
    else:
        yield source, None, ""
