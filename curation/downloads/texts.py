"""What a site says of a video's words: its subtitles in one of the languages asked for.

They are fetched behind the video and never fail it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from yt_dlp.utils import YoutubeDLError

from curation.downloads.sections import SectionsYoutubeDL
from curation.sources import Source
from curation.sources.signed import told_without
from curation.sources.source import Subtitles, short_hash, storable
from curation.sources.subtitles import read_cues

# Those that are read, the best first: sites make the others of WebVTT.
KINDS = ("vtt", "srt", "ass", "ssa")
# What yt-dlp fetches itself, as of videos.
PROTOCOLS = {"http", "https", "m3u8", "m3u8_native", "http_dash_segments"}
# Ours: YouTube's automatic captions of an hour, which say each word three times, are 1 MB.
MAX_TEXT_BYTES = 16 << 20


class Offer(NamedTuple):
    """Subtitles that a site has; `facts` are yt-dlp's, with `ext` and `url` or `data`."""

    language: str
    is_automatic: bool
    facts: dict[str, Any]

    def __str__(self) -> str:
        return f"{storable(self.language)}{' (automatic)' * self.is_automatic}"


def with_site_subtitles(
    source: Source,
    info: dict[str, Any],
    languages: Sequence[str],
    downloader: SectionsYoutubeDL,
    folder: Path,
) -> Source:
    """A fetched source with the first of its site's subtitles that can be read.

    `info` is yt-dlp's of the video. The source's note tells which they are, or what was wrong, and
    how the video came. Whatever a site does ends in no subtitles; raises OSError of the disk alone.
    """
    notes = [downloader.note] if downloader.note else []
    found = None
    for number, offer in enumerate(offers(info, languages), start=1):
        # None goes on with what is left of another one, as yt-dlp does under one name.
        path = folder / f"subtitles_{number}.{offer.facts['ext']}"  # one of KINDS
        failed = fetch_text(offer, info, downloader, path)
        if not failed and read_cues(str(path)):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found = Subtitles(str(path), short_hash(digest))
            notes.append(f"subtitles: {offer}")
            break
        notes.append(f"subtitles {offer} are not used: {failed or 'they say nothing'}")
        for left in folder.glob(f"{path.stem}.*"):
            left.unlink()
    if languages and len(notes) == bool(downloader.note):
        notes.append(f"the site has no subtitles in {', '.join(languages)}")
    return replace(source, subtitles=found, note="; ".join(notes) or None)


def offers(info: dict[str, Any], languages: Sequence[str]) -> Iterator[Offer]:
    """What a site has in these languages, the best first; people's before what machines heard.

    en is also en-GB, and en-orig, which is what YouTube heard and did not translate.
    """
    for key, is_automatic in (("subtitles", False), ("automatic_captions", True)):
        offered = info.get(key) or {}
        for language in languages:
            known = [each for each in offered if is_in(each, language)]
            original = f"{language}-orig".casefold()
            known.sort(
                key=lambda e: (e.casefold() != original, e.casefold() != language.casefold())
            )
            for name in known:
                by_kind = {facts.get("ext"): facts for facts in offered[name] or ()}
                best = next((by_kind[kind] for kind in KINDS if kind in by_kind), None)
                if best:
                    yield Offer(name, is_automatic, best)


def is_in(name: str, language: str) -> bool:
    """Whether a site's name for subtitles is a language, or one of its regions or scripts.

    >>> is_in("en-GB", "en"), is_in("EN", "en"), is_in("eng", "en"), is_in("de-en", "en")
    (True, True, False, False)
    """
    tag = name.casefold().replace("_", "-")
    return tag == language.casefold() or tag.startswith(f"{language.casefold()}-")


def fetch_text(
    offer: Offer, info: dict[str, Any], downloader: SectionsYoutubeDL, path: Path
) -> str | None:
    """Write what is offered to `path`; returns why that cannot be, or None."""
    facts = {"http_headers": info.get("http_headers"), **offer.facts}
    text = facts.get("data")
    guard = downloader.guard
    guard.renew()
    guard.max_bytes, guard.refused = MAX_TEXT_BYTES, None
    guard.size_hint = f"subtitles have at most {MAX_TEXT_BYTES:,}"
    try:
        if text is not None:
            data = str(text).encode("utf-8", "replace")
            path.write_bytes(data[:MAX_TEXT_BYTES])
            return None
        if facts.get("protocol", "https") not in PROTOCOLS:
            return f"they come by {facts['protocol']}"
        downloader.dl(str(path), facts, subtitle=True)
    except (YoutubeDLError, ValueError, TypeError, LookupError, AttributeError) as error:
        refused = guard.refused
        says = str(refused.error if refused else error).removeprefix("ERROR: ").strip()
        return storable(told_without(says, str(facts.get("url")))) or type(error).__name__
    if guard.refused:
        return str(guard.refused.error)
    return None if path.is_file() else "nothing came"
