"""Why a listed video is left out, before any byte of it is fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from curation.discovery.facts import LIVE, Video
from curation.downloads.fetches import id_in
from curation.places import open_dataset
from curation.settings import ConfigError
from curation.sources import is_url
from curation.sources.given import sources_of
from curation.sources.lists.rows import READERS
from curation.sources.notes import Notes
from curation.sources.signed import without_secrets
from curation.takedown.tombstones import NOTHING, Tombstones, read

LIVE_WORDS = dict(zip(LIVE, ("live", "upcoming", "live until just now, no video yet"), strict=True))


@dataclass(frozen=True)
class Bounds:
    """What a video must have. What the site does not say passes, but for the licence."""

    min_height_px: int = 720
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    licenses: tuple[str, ...] = ()  # texts, one of which a licence must contain; () for any

    def reason(self, video: Video) -> tuple[str, str] | None:
        """Why a video is left out, and the value that decided; None where it is not, so far.

        The licence is judged apart: lists seldom say it.
        """
        row = video.row
        if row["live_status"] in LIVE:
            return LIVE_WORDS[row["live_status"]], row["live_status"]
        if video.is_closed:
            return "private or removed", row["title"] or "no title"
        height, length = row["height"], row["duration_s"]
        if height is not None and height < self.min_height_px:
            return f"lower than --min-height {self.min_height_px}", f"{height} px"
        if length is not None and self.min_duration_s and length < self.min_duration_s:
            return f"shorter than --min-duration {self.min_duration_s:g}", f"{length:g} s"
        if length is not None and self.max_duration_s and length > self.max_duration_s:
            return f"longer than --max-duration {self.max_duration_s:g}", f"{length:g} s"
        return None

    def license_reason(self, video: Video) -> tuple[str, str] | None:
        """Likewise of the licence; one that is not told is not among those that are asked for."""
        said = video.row["license"]
        if not self.licenses:
            return None
        if said is None:
            return (
                "no licence told",
                "nor by its page" if video.is_page else "--probe asks its page",
            )
        if not any(each.casefold() in said.casefold() for each in self.licenses):
            return "another licence", said
        return None

    def unknown(self, video: Video) -> list[str]:
        """What was not told of a video that is kept, as far as it was asked for."""
        bounded = bool(self.min_duration_s or self.max_duration_s)
        asked = (("height", self.min_height_px > 0), ("duration_s", bounded))
        return [name for name, is_asked in asked if is_asked and video.row[name] is None]


def names_of(video_id: str | None, url: str) -> set[str]:
    """By which names a video is known again: its id, its address, the id in that."""
    return {name for name in (video_id, url, id_in(url)) if name}


def is_list(place: str) -> bool:
    return Path(place).suffix.lower() in READERS and not is_url(place)


def taken_down_in(places: Iterable[str]) -> Tombstones:
    """The tombstones of the datasets among `places`, which `seen_in` has read."""
    stones = NOTHING
    for place in places:
        if not is_list(place):
            stones |= read(open_dataset(place))
    return stones


def seen_in(places: Iterable[str]) -> Iterator[tuple[str | None, str]]:
    """(id, url) of every video of lists and of datasets' ledgers.

    Raises ConfigError or DatasetError for what is neither.
    """
    for place in places:
        if is_list(place):
            for source, _, _ in sources_of(place, Path.cwd(), list[Notes](), is_tolerant=True):
                yield source.id, source.url
        elif is_url(place):
            raise ConfigError(f"--seen {place}: give a list or a dataset, no video")
        else:
            for video_id, url in open_dataset(place).decided():
                yield video_id, without_secrets(url)
