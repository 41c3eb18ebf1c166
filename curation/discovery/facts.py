"""What a site says of a video -> a row of a source list; whatever it says is text to be cleaned."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
from yt_dlp.utils import unsmuggle_url

from curation.downloads.fetches import id_in
from curation.sources import is_url
from curation.sources.lists.cells import duration_s
from curation.sources.source import FACTS, remote, storable

SCHEMA = pa.schema(
    [
        ("url", pa.string()),  # without secrets
        ("id", pa.string()),  # as a run would find it; null for what is of no known site
        *((name, pa.string()) for name in FACTS),
        ("duration_s", pa.float64()),
        ("height", pa.int32()),  # px, the largest that is offered, as the site says
        ("live_status", pa.string()),  # yt-dlp's words: not_live, was_live ...
        ("query", pa.string()),  # what found it
    ]
)
# Of a text. Ours: YouTube's titles have 100; a list with a longer cell than 131,072 is not read.
MAX_TEXT_CHARS = 1_000
MAX_URL_CHARS = 8_000  # ours: more than browsers and servers take
MAX_HEIGHT_PX = 1 << 16  # ours: beyond any video; what is larger is no height
LIVE = ("is_live", "is_upcoming", "post_live")  # the last has ended, and is not a video yet
# Titles that YouTube's playlists have for videos that nobody can see.
GONE = {"[private video]", "[deleted video]", "[unavailable]"}
CLOSED = {"private", "needs_auth", "premium_only", "subscriber_only"}  # yt-dlp's availability


# The key of the site that a URL is of, such as Youtube, and None where none is known; the second
# is the key that a list gives.
SiteOf = Callable[[str, str | None], str | None]


class Video(NamedTuple):
    """A video that was listed: its row, and what decides about it beside that."""

    row: dict[str, Any]  # of SCHEMA
    url: str  # with its secrets, which the row has not
    is_closed: bool  # private or removed, as far as the list says
    is_page: bool  # what is said of it is all that its page says


def video_of(info: Mapping[str, Any], site_of: SiteOf, query: str, category: str | None) -> Video:
    """The video of an entry or page; ValueError, with why, for one without a usable address."""
    url = url_of(info)
    title = text_of(info.get("title"))
    row = {
        "url": remote(url).url,
        "id": id_of(info.get("id"), site_of(url, info.get("ie_key")), url),
        "title": title,
        "category": category or text_of(first_of(info.get("categories"))),
        "uploader": text_of(info.get("uploader")),
        "channel": text_of(info.get("channel")),
        "license": text_of(info.get("license")),
        "upload_date": date_of(info),
        "duration_s": duration_s(info.get("duration")),
        "height": height_of(info),
        "live_status": live_status_of(info),
        "query": text_of(query),
    }
    is_closed = info.get("availability") in CLOSED or (title or "").casefold() in GONE
    return Video(row, url, is_closed, is_page=bool(info.get("formats")))


def joined(listed: Video, page: Video) -> Video:
    """A listed video with what its page says, which knows better."""
    said = {name: value for name, value in page.row.items() if value is not None}
    return Video(listed.row | said, listed.url, page.is_closed, is_page=True)


def url_of(info: Mapping[str, Any]) -> str:
    """Where a video is. Of one that has no page of its own it is the media's address."""
    is_link = info.get("_type") in ("url", "url_transparent")
    names = ("url",) if is_link else ("webpage_url", "original_url", "url")
    found = [info.get(name) for name in names]
    formats = info.get("formats")
    if isinstance(formats, list) and formats and isinstance(formats[-1], dict):  # the best is last
        found += [formats[-1].get("manifest_url"), formats[-1].get("url")]
    for each in found:
        if not isinstance(each, str):
            continue
        url = unsmuggle_url(each)[0]
        if len(url) > MAX_URL_CHARS:
            raise ValueError("addresses that are too long")
        if is_url(url) and has_host(url):
            return url
    raise ValueError("entries without an address")


def has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:
        return False


def id_of(said: Any, site: str | None, url: str) -> str | None:
    """The video_id that a run gives a video: YouTube's own; of others with the site's name."""
    if of_youtube := id_in(url):
        return of_youtube
    own = text_of(said)
    return f"{site.lower()}-{own}" if site and own else None


def text_of(value: Any) -> str | None:
    """A text as one line that can be stored and shown; None where there is none."""
    if value is None or isinstance(value, dict | list | bool):
        return None
    return " ".join(storable(str(value)).split())[:MAX_TEXT_CHARS].strip() or None


def first_of(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else None


def date_of(info: Mapping[str, Any]) -> str | None:
    """When a video was published, as YYYY-MM-DD in UTC."""
    date, time_s = info.get("upload_date"), info.get("timestamp")
    if isinstance(date, str) and re.fullmatch(r"\d{8}", date):
        return f"{date[:4]}-{date[4:6]}-{date[6:]}"
    if not isinstance(time_s, int | float):
        return None
    try:
        return datetime.datetime.fromtimestamp(time_s, datetime.UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def height_of(info: Mapping[str, Any]) -> int | None:
    """The largest height that is offered, px; None where the site does not say.

    A format without pictures has the codec "none".
    """
    formats = info.get("formats")
    each = formats if isinstance(formats, list) else []
    pictures = [f for f in each if isinstance(f, dict) and f.get("vcodec") != "none"]
    heights = [f.get("height") for f in pictures] + [info.get("height")]
    return max((h for h in heights if isinstance(h, int) and 0 < h < MAX_HEIGHT_PX), default=None)


def live_status_of(info: Mapping[str, Any]) -> str | None:
    if info.get("is_live"):
        return "is_live"
    return text_of(info.get("live_status")) or ("was_live" if info.get("was_live") else None)
