"""What a playlist, channel, feed or search lists, by yt-dlp: a page at a time, and no media.

Nothing is resolved that was not asked for: extractors are called, and what they return is read as
it comes. Every connection is one of curation.downloads.connections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import yt_dlp
from yt_dlp.extractor.common import InfoExtractor
from yt_dlp.utils import unsmuggle_url

from curation.downloads.connections import Guard, GuardedYoutubeDL, Refused
from curation.downloads.fetches import BROKEN, SilentLogger, in_words
from curation.downloads.refusals import refusal_of
from curation.media.files import MediaError

Info = dict[str, Any]  # what an extractor says of a video or a list
LISTS = ("playlist", "multi_video", "compat_list")
LINKS = ("url", "url_transparent")
# Of links from one to the next, and of lists in lists. Ours: a channel has tabs, a tab playlists.
MAX_LINKS = MAX_DEPTH = 4
# Entries of one query, lists in it included; one may be endless. Ours: a search of YouTube ends
# after some hundreds, a channel of 10,000 videos is a hundred pages.
MAX_LISTED = 10_000
# Of one query. Ours: the pages of 10,000 videos have 1 MB each. A file that is larger than this is
# not looked at, for what a server says that it will send counts.
MAX_QUERY_BYTES = 16 << 30
# Of a server that sends a page. Ours: a page of 1 MB has a quarter of an hour.
MIN_BYTES_PER_S, TIMEOUT_S = 1_000, 30.0
# Of a link; the link counts, not what is behind it.
OF_THE_LINK = {"_type", "url", "ie_key", "id", "extractor", "extractor_key"}
END = object()


class Failure(NamedTuple):
    """A list in a list that cannot be had; what is beside it goes on."""

    url: str
    error: MediaError


class ListingYoutubeDL(GuardedYoutubeDL):
    """The guarded yt-dlp, which asks further extractors before its own."""

    def __init__(
        self, options: dict[str, Any], guard: Guard, extractors: Sequence[type[InfoExtractor]]
    ) -> None:
        self.extractors = extractors
        super().__init__(options, guard)

    def add_default_info_extractors(self) -> None:
        for each in self.extractors:
            self.add_info_extractor(each())
        super().add_default_info_extractors()


class Lister:
    """Asks sites for lists and pages: one request at a time, `sleep_s` seconds apart at least."""

    def __init__(
        self,
        *,
        sleep_s: float,
        allow_private: bool = False,
        extractors: Sequence[type[InfoExtractor]] = (),
    ) -> None:
        self.guard = Guard(
            allow_private=allow_private,
            max_bytes=MAX_QUERY_BYTES,
            min_bytes_per_s=MIN_BYTES_PER_S,
            window_s=TIMEOUT_S,
            interval_s=sleep_s,
            allowed_by="--allow-private",
            size_hint=f"a query may have {MAX_QUERY_BYTES:,}",
        )
        self.num_left = 0  # entries of a query that may still be looked at
        options = {
            "socket_timeout": TIMEOUT_S,
            "skip_download": True,
            "cachedir": False,
            "quiet": True,
            "noprogress": True,
            "logger": SilentLogger(),
        }
        self.downloader = ListingYoutubeDL(options, self.guard, extractors)

    def search_keys(self) -> set[str]:
        """The prefixes of searches that yt-dlp knows, such as ytsearch."""
        return {each.SEARCH_KEY for each in self.downloader._ies.values() if each.SEARCH_KEY}

    def entries(self, target: str, max_listed: int = MAX_LISTED) -> Iterator[Info | Failure]:
        """What a target lists, as extractors give it; lists in it are opened, and counted.

        A video is an entry by itself. Raises MediaError, also after some entries: the next page
        may be refused.
        """
        self.guard.renew()
        self.num_left = max_listed
        yield from self.opened(self.ask(target), 0)

    def opened(self, found: Any, depth: int) -> Iterator[Info | Failure]:
        if not isinstance(found, dict):
            yield {}
        elif found.get("_type") in LISTS:
            for entry in self.items(found):
                yield from self.opened(entry, depth + 1)
        elif found.get("_type") in LINKS and depth < MAX_DEPTH and self.is_list(found):
            try:
                inside = self.ask(str(found.get("url")), found.get("ie_key"))
            except MediaError as error:
                yield Failure(str(found.get("url")), error)
                return
            yield from self.opened(inside, depth + 1)
        else:
            yield found

    def items(self, found: Info) -> Iterator[Any]:
        """The entries of a list; a page is fetched when the first entry of it is asked for."""
        with self.told():
            entries = iter(found.get("entries") or ())
        while self.num_left > 0:
            with self.told():
                entry = next(entries, END)
            if entry is END:
                return
            self.num_left -= 1
            yield entry

    def is_list(self, link: Info) -> bool:
        """Whether a link in a list leads to another list, as its extractor says.

        One that may lead to either is followed unless the list itself says how long it is.
        """
        extractor = self.extractor_of(str(link.get("url")), link.get("ie_key"))
        if extractor is None or extractor.ie_key() == "Generic":
            return False
        is_video = extractor.is_single_video(link["url"])
        return is_video is False or (is_video is None and not link.get("duration"))

    def extractor_of(self, url: str, key: str | None = None) -> Any:
        """The extractor that takes a URL; Generic takes what no other does."""
        named = self.downloader._ies.get(key) if key else None
        if named is not None and named.suitable(url):
            return named
        return next((e for e in self.downloader._ies.values() if e.suitable(url)), None)

    def site_of(self, url: str, key: str | None = None) -> str | None:
        """The key of the site that a URL is of, such as Youtube; None where yt-dlp knows none."""
        extractor = self.extractor_of(url, key)
        key = extractor.ie_key() if extractor is not None else "Generic"
        return None if key in ("Generic", "UnsupportedURL") else key

    def page(self, url: str) -> Info:
        """What the page of one video says; MediaError where it is none, or of several."""
        found = self.ask(url)
        if found.get("_type") in LISTS:
            # Not counted: these are no entries of the query.
            with self.told():
                first = [
                    each for each, _ in zip(found.get("entries") or (), range(2), strict=False)
                ]
            if len(first) != 1 or not isinstance(first[0], dict):
                says = "is a page or playlist of several videos, or of none"
                raise MediaError("not_a_video", says)
            return first[0]
        return found

    def ask(self, url: str, key: str | None = None) -> Info:
        """What an extractor finds at a URL or for a search, links from one to the next followed."""
        facts: Info = {}
        for _ in range(MAX_LINKS):
            with self.told():
                found = self.downloader.extract_info(url, download=False, process=False, ie_key=key)
            if not isinstance(found, dict):
                raise MediaError("download_failed", "yt-dlp finds nothing there")
            if found.get("_type") not in LINKS:
                return found | facts
            if found["_type"] == "url_transparent":
                known = {k: v for k, v in found.items() if v is not None and k not in OF_THE_LINK}
                facts = known | facts
            url, key = str(found.get("url")), found.get("ie_key")
        raise MediaError("download_failed", f"leads on and on, to {unsmuggle_url(url)[0]}")

    @contextmanager
    def told(self) -> Iterator[None]:
        """Inside, whatever yt-dlp raises becomes a MediaError with its class."""
        self.guard.refused = None
        try:
            yield
        except Refused as refused:
            raise refused.error from None
        except yt_dlp.utils.YoutubeDLError as error:
            if self.guard.refused:
                raise self.guard.refused.error from error
            raise MediaError(refusal_of(error).error_class, in_words(error)) from error
        except (*BROKEN, AssertionError) as error:
            says = f"yt-dlp cannot read what the server sent: {type(error).__name__}: {error}"
            raise MediaError("download_failed", says) from error
        if self.guard.refused:
            raise self.guard.refused.error
