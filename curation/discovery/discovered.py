"""Queries -> rows of videos that pass, with a count of everything that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from curation.discovery.facts import Video, joined, video_of
from curation.discovery.filters import Bounds, names_of
from curation.discovery.listing import MAX_LISTED, Failure, Lister
from curation.discovery.queries import Query
from curation.downloads.hosts import MAX_REFUSALS, REFUSALS
from curation.downloads.runtimes import lacking
from curation.media.files import MediaError
from curation.sources.signed import told_without
from curation.sources.source import storable
from curation.takedown.tombstones import NOTHING, Tombstones


@dataclass
class Tally:
    """What became of the queries of one category."""

    queries: int = 0
    listed: int = 0
    found: int = 0
    pages_asked: int = 0
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)  # reason: number, first
    not_told: dict[str, tuple[int, str]] = field(default_factory=dict)  # of found ones, likewise
    failed: dict[str, str] = field(default_factory=dict)  # query: class and message

    def leave_out(self, reason: str, first: str) -> None:
        count(self.left_out, reason, first)


def count(counts: dict[str, tuple[int, str]], reason: str, first: str) -> None:
    number, example = counts.get(reason, (0, first))
    counts[reason] = number + 1, example


class Discovery:
    """Asks queries one after another; a video that was seen, here or before, is found once."""

    def __init__(
        self,
        lister: Lister,
        bounds: Bounds,
        seen: set[str],
        *,
        limit: int,
        probes: bool = False,
        max_listed: int = MAX_LISTED,
        stones: Tombstones = NOTHING,
    ) -> None:
        self.lister = lister
        self.bounds = bounds
        self.seen = seen
        self.stones = stones  # what was taken down
        self.judged: set[str] = set()  # by this run
        self.limit = limit  # of videos found by one query
        self.probes = probes  # each video's page is asked
        self.max_listed = max_listed  # entries of one query that are looked at
        self.tallies: dict[str | None, Tally] = {}  # by category
        self.lacking: str | None = None  # what has to be installed for pages to tell all

    def rows(self, query: Query) -> Iterator[dict[str, Any]]:
        """The rows of a query's videos as they are found; its failure is told in the tally."""
        tally = self.tallies.setdefault(query.category, Tally())
        tally.queries += 1
        found = 0
        try:
            for video in self.videos(query, tally):
                tally.found += 1
                for name in self.bounds.unknown(video):
                    count(tally.not_told, name, video.row["url"])
                yield video.row
                found += 1
                if found == self.limit:
                    return
            if self.lister.num_left <= 0:
                says = f"queries that ended after {self.max_listed:,} entries, whatever came behind"
                tally.leave_out(says, query.text)
        except MediaError as error:
            message = told_without(error.message, query.target)
            tally.failed[query.text] = f"{error.error_class}: {message}"

    def videos(self, query: Query, tally: Tally) -> Iterator[Video]:
        """The videos of a query that pass."""
        refused = 0
        for entry in self.lister.entries(query.target, self.max_listed):
            tally.listed += 1
            if isinstance(entry, Failure):
                says = f"{told_without(entry.url, entry.url)}: {entry.error.message}"
                tally.leave_out(f"lists in it that fail: {entry.error.error_class}", says)
                continue
            try:
                video = video_of(entry, self.lister.site_of, query.text, query.category)
            except ValueError as error:
                says = entry.get("title") or entry.get("id") or "nothing is said of it"
                tally.leave_out(str(error), storable(f"{query.text}: {says}"))
                continue
            reason = self.known(video) or self.reason(video)
            if not reason and self.probes and not video.is_page:
                tally.pages_asked += 1
                try:
                    video = self.asked(video, query)
                    refused = 0
                    reason = self.reason(video)
                except MediaError as error:
                    reason = f"page failed: {error.error_class}", error.message
                    refused = refused + 1 if error.error_class in REFUSALS else 0
            reason = reason or self.bounds.license_reason(video)
            if not reason:
                if video.url != video.row["url"]:
                    count(tally.not_told, "secrets of its url", video.row["url"])
                yield video
                continue
            url = video.row["url"]
            tally.leave_out(reason[0], told_without(f"{url}: {reason[1]}", url))
            if refused == MAX_REFUSALS:
                says = f"{refused} pages in a row were refused, so the rest was not asked"
                raise MediaError(reason[0].rpartition(" ")[2], f"{says}: {reason[1]}")

    def reason(self, video: Video) -> tuple[str, str] | None:
        """Why a video is left out, as far as is told of it yet."""
        row = {"video_id": video.row["id"], "source_url": video.row["url"], "copy_of": None}
        if self.stones.of_row(row | {"uploader": video.row["uploader"]}):
            return "taken down", "by vf-purge"
        return self.bounds.reason(video)

    def known(self, video: Video) -> tuple[str, str] | None:
        """Whether a video was seen; from now on it was."""
        names = names_of(video.row["id"], video.row["url"])
        if names & self.seen:
            return "seen before", video.row["title"] or ""
        if names & self.judged:
            return "listed by this run already", video.row["title"] or ""
        self.judged |= names
        return None

    def asked(self, video: Video, query: Query) -> Video:
        """A video with what its own page says."""
        self.lacking = self.lacking or lacking([video.url])
        # Where a page holds a file, the page is the address all the same.
        page = self.lister.page(video.url) | {"webpage_url": video.url, "_type": "video"}
        return joined(video, video_of(page, self.lister.site_of, query.text, query.category))
