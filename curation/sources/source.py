"""One video to curate and what is said of it, before any of it is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from curation.sources.signed import without_secrets
from curation.sources.uris import is_object, parts_of

READ_BYTES = 1 << 22  # of a file at once
ID_DIGITS = 20  # of a hash, where it is an id
# What lists and sites may say of a video, beside captions and cuts.
FACTS = ("title", "category", "uploader", "channel", "license", "upload_date")
# Code points that are no characters. Python writes a byte that is not UTF-8 as U+DC80..U+DCFF.
SURROGATES = re.compile("[\ud800-\udfff]")
# Sequences that steer a terminal, and control characters but for tabs and ends of lines.
CONTROLS = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # those that stand for no byte


@dataclass(frozen=True, slots=True)  # slots: a list has millions
class Span:
    """A cut that came with the source, in seconds, with its captions in list order."""

    start_s: float
    end_s: float
    caption: str | None = None  # the first one
    other_captions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        return all_of(self.caption, self.other_captions)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return Span, (self.start_s, self.end_s, self.caption, self.other_captions)


class Subtitles(NamedTuple):
    """A file of timed text beside a video."""

    path: str  # absolute
    digest: str  # of its bytes


@dataclass(frozen=True, slots=True)
class Source:
    """One video to curate: where it is and what is already known of it; None = not given.

    Every text can be stored as UTF-8, but for `path`, which is as the system gives it.
    """

    url: str  # as recorded: the URL without what is secret in it, or the path as it was given
    path: str | None = None  # absolute, for a local file
    id: str | None = None  # given by a list, or found from the content
    title: str | None = None
    caption: str | None = None  # of the whole video; the first one
    category: str | None = None
    uploader: str | None = None
    channel: str | None = None
    license: str | None = None
    upload_date: str | None = None
    duration_s: float | None = None  # of the whole video, as a list says
    spans: tuple[Span, ...] = ()  # sorted, none twice; empty: find the scenes
    other_captions: tuple[str, ...] = ()
    subtitles: Subtitles | None = None  # beside the file, where clips may need them
    fingerprint: str | None = None  # of what was said of it; None: not taken yet
    stamp: tuple[int, int] | None = None  # of its file when the id was taken; see stamp_of
    downloaded_at: str | None = None  # of a URL: when its file was whole, ISO 8601 in UTC
    format: str | None = None  # which of a site's formats that file is
    sha256: str | None = None  # of its file, in hex
    note: str | None = None  # of its download, where it is not plainly the whole file
    signed_url: str | None = field(default=None, repr=False)  # where a URL has secrets: with them

    @property
    def captions(self) -> tuple[str, ...]:
        return all_of(self.caption, self.other_captions)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        # What a dataclass with slots has of itself takes three times as long.
        return Source, VALUES(self)

    def captions_at(self, start_s: float, end_s: float) -> tuple[str, ...]:
        """What was said of [start_s, end_s): the captions of its span, else the video's own."""
        touching = [s for s in self.spans if s.start_s < end_s and s.end_s > start_s]
        if touching:  # given spans may overlap: a clip's own is the one with its ends
            own = min(touching, key=lambda s: abs(s.start_s - start_s) + abs(s.end_s - end_s))
            return own.captions or self.captions
        return self.captions


FIELDS = tuple(each.name for each in fields(Source))
VALUES = attrgetter(*FIELDS)


def changed(source: Source, **changes: Any) -> Source:
    """dataclasses.replace for a source, in a third of its time: it is called for every row."""
    return Source(**dict(zip(FIELDS, VALUES(source), strict=True)) | changes)


def all_of(first: str | None, others: tuple[str, ...]) -> tuple[str, ...]:
    return others if first is None else (first, *others)


def with_captions(source: Source, captions: Iterable[str]) -> Source:
    """A source with these captions of the whole video, each once."""
    first, *others = dict.fromkeys(captions) or (None,)
    return changed(source, caption=first, other_captions=tuple(filter(None, others)))


def span_of(start_s: float, end_s: float, captions: Iterable[str] = ()) -> Span:
    """A span with its captions, each once."""
    first, *others = dict.fromkeys(captions) or (None,)
    return Span(start_s, end_s, first, tuple(filter(None, others)))


# -- what can be stored


def is_storable(text: str) -> bool:
    """Whether a text is Unicode throughout, as UTF-8 needs it."""
    return SURROGATES.search(text) is None


def storable(text: str) -> str:
    r"""A text without control characters, and with U+FFFD for what is no character at all.

    That is bytes that are not UTF-8, and half characters.

    >>> storable("\x1b[31mcat\x1b[m \ud83d")
    'cat \ufffd'
    """
    return CONTROLS.sub("", SURROGATES.sub("\ufffd", text))


def storable_path(path: str) -> str:
    r"""A path as it is recorded: bytes that are not UTF-8 as \xNN, so that two stay two.

    >>> storable_path("caf\udce9.mp4")
    'caf\\xe9.mp4'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


RECORDED = re.compile(rb"\\x([89a-f][0-9a-f])")


def recorded_path(path: str) -> str:
    r"""The path that `storable_path` recorded as this one, so that it can be given again.

    >>> recorded_path(r"caf\xe9.mp4") == "caf\udce9.mp4"
    True
    """
    data = RECORDED.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(path))
    return os.fsdecode(data)


# -- where it is


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def is_remote(text: str) -> bool:
    """Whether a text is a URL or the URI of an object, and no path."""
    return is_url(text) or is_object(text)


def shown(given: str) -> str:
    """What a user gave as a source, without secrets."""
    return without_secrets(given) if is_remote(given) else given


def remote(url: str) -> Source:
    """The source at a URL or an object's URI.

    Bytes in it that are not UTF-8 are percent-encoded, as in RFC 3986.
    """
    escaped = SURROGATES.sub(lambda found: quote(os.fsencode(found[0])), HALVES.sub("\ufffd", url))
    url = without_secrets(escaped)
    has_secrets = parts_of(escaped).names_its_way if is_object(escaped) else escaped != url
    return Source(url=url, signed_url=escaped if has_secrets else None)


def local(given: str | Path, folder: Path) -> Source:
    """The source at a path below `folder`, recorded as it was given."""
    path = HALVES.sub("\ufffd", str(given))  # no file's name has them
    if "\\x" in path and not (folder / path).exists():
        path = recorded_path(path)
    return Source(url=storable_path(path), path=str((folder / path).absolute()))


def place(source: Source) -> str:
    """Where a source is, whatever way it was spelled: a file's real path, or the URL."""
    return os.path.realpath(source.path) if source.path else source.url


def place_id(source: Source) -> str:
    """The video id of a source whose content is not known, or not whole: a hash of where it is."""
    return hashlib.sha256(source.url.encode()).hexdigest()[:20]


def content_id(path: str, beat: Callable[[], None] = lambda: None) -> str:
    """The video id of a file: the first 20 hex digits of its content's SHA-256."""
    return sha256_of(path, beat)[:ID_DIGITS]


def sha256_of(path: str, beat: Callable[[], None] = lambda: None) -> str:
    """The SHA-256 of a file's content, in hex; `beat` is called as it is read."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
            beat()
    return digest.hexdigest()


def stamp_of(path: str) -> tuple[int, int]:
    """A file's size in bytes and when it was written, ns: they change while it is being written."""
    facts = os.stat(path)  # noqa: PTH116  once per source
    return facts.st_size, facts.st_mtime_ns


# -- one source from several


def join(known: Source, other: Source) -> Source:
    """Two mentions of one video: the first one's facts, what it lacks from the other, all spans.

    Captions of one span, and those of the whole video, are put behind one another.
    """
    names = ("id", "subtitles", "duration_s", *FACTS)
    facts = {name: getattr(known, name) or getattr(other, name) for name in names}
    if known.spans or other.spans:
        facts["spans"] = join_spans([*known.spans, *other.spans])
    if other.captions:
        known = with_captions(known, [*known.captions, *other.captions])
    return changed(known, **facts)


def join_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans by time; those that are the same to the millisecond, as clip ids are, become one."""
    found: dict[tuple[int, int], Span] = {}
    for span in spans:
        ends = round(span.start_s * 1000), round(span.end_s * 1000)
        known = found.setdefault(ends, span)
        if known is not span:
            found[ends] = span_of(known.start_s, known.end_s, [*known.captions, *span.captions])
    return tuple(sorted(found.values(), key=lambda s: (s.start_s, s.end_s)))


def contradicts(known: Source, other: Source) -> bool:
    """Whether two mentions of one video give it another id, title and so on."""
    pairs = [(getattr(known, name), getattr(other, name)) for name in ("id", *FACTS)]
    return any(a is not None and b is not None and a != b for a, b in pairs)


# -- what a decision was made from


def fingerprint(source: Source) -> str:
    """Hashes of what was said of a source: its cuts, its facts and its captions, joined by "-".

    The timed text beside it counts among its captions.
    """
    cuts = [[span.start_s, span.end_s] for span in source.spans]
    # A channel counts where one is given: fingerprints of before there were channels still hold.
    names = [name for name in FACTS if name != "channel" or source.channel]
    facts = [getattr(source, name) for name in names]
    captions = [source.captions, *[span.captions for span in source.spans]]
    captions += [(source.subtitles.digest,)] if source.subtitles else []
    return "-".join(short_hash(each) for each in (cuts, facts, captions))


def short_hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


# Of a source of which nothing was said. Datasets older than fingerprints have none: likewise.
NOTHING_SAID = fingerprint(Source(url=""))


def differ(before: str | None, after: str | None) -> bool:
    return (before or NOTHING_SAID) != (after or NOTHING_SAID)


def differ_in_captions_alone(before: str | None, after: str | None) -> bool:
    """Whether of what was said the captions alone are others, so that the pictures hold."""
    old, new = ((each or NOTHING_SAID).rsplit("-", 1) for each in (before, after))
    return old[0] == new[0] and old[1] != new[1]


def fingerprinted(sources: Iterable[Source]) -> Iterator[Source]:
    for source in sources:
        yield changed(source, fingerprint=fingerprint(source))
