"""What the workers of a run agree on: how far it is, who stands for a video, who is at a host."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from curation.downloads.hosts import Hosts
from curation.takedown.tombstones import NOTHING, Tombstones

# In the order a video goes through them.
STAGES = ("fetch", "decode", "cut", "caption", "commit")


Given = ParamSpec("Given")
T = TypeVar("T")


def alone(
    method: Callable[Concatenate[Tally, Given], T],
) -> Callable[Concatenate[Tally, Given], T]:
    """A method that one thread at a time is in."""

    @functools.wraps(method)
    def locked(self: Tally, *args: Given.args, **kwargs: Given.kwargs) -> T:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


class Tally:
    """Counts the videos that finished each stage, and knows where each one is now.

    It also knows which source stands for each video, and what was taken down: `held` are the URLs
    of those that earlier runs decided, by video id. And which hosts are being asked:
    `max_per_host` at once.
    """

    def __init__(
        self, held: dict[str, str], max_per_host: int = 8, stones: Tombstones = NOTHING
    ) -> None:
        self.lock = threading.Lock()
        self.hosts = Hosts(max_per_host)
        self.firsts = held
        self.stones = stones
        self.refused: set[str] = set()
        self.copies: set[str] = set()
        self.finished = dict.fromkeys(STAGES, 0)
        self.current: dict[str, tuple[str, float]] = {}
        self.starts: dict[tuple[str, str], int] = {}

    @alone
    def start(self, stage: str, video: str) -> int:
        """Count one more start of a video in a stage; returns how many there were with this one."""
        self.starts[stage, video] = self.starts.get((stage, video), 0) + 1
        return self.starts[stage, video]

    @alone
    def claim(self, video_id: str, url: str, uploader: str | None = None) -> str | None:
        """The URL of the source that stands for a video: this one, unless another came first.

        None where the video was taken down.
        """
        row = {"video_id": video_id, "source_url": url, "copy_of": None, "uploader": uploader}
        if self.stones.of_row(row):
            self.refused.add(url)
            return None
        first = self.firsts.setdefault(video_id, url)
        if first != url:
            self.copies.add(url)
        return first

    @alone
    def enter(self, url: str) -> tuple[float, str | None]:
        """As Hosts has it."""
        return self.hosts.enter(url)

    @alone
    def leave(self, url: str, error_class: str | None) -> None:
        """As Hosts has it."""
        self.hosts.leave(url, error_class)

    def num_copies(self) -> int:
        """How many sources turned out to be copies of others."""
        return len(self.copies)

    def refused_urls(self) -> set[str]:
        """The sources that turned out to be videos that were taken down."""
        return self.refused

    @alone
    def at(self, video: str, stage: str, position_s: float) -> None:
        """A video is in a stage now, and so has finished those before it.

        One that is tried again stays where it was: nothing is counted twice.
        """
        before = self.current.get(video, (STAGES[0], 0.0))[0]
        self.count(before, stage)
        stage = max(before, stage, key=STAGES.index)
        self.current[video] = (stage, position_s)

    @alone
    def left(self, video: str, stage: str) -> None:
        """A video has finished `stage` and every stage before it."""
        before = self.current.pop(video, (STAGES[0], 0.0))[0]
        self.count(before, STAGES[STAGES.index(stage) + 1])

    @alone
    def passed(self, stage: str, num_videos: int) -> None:
        self.finished[stage] += num_videos

    def count(self, before: str, after: str) -> None:
        for stage in STAGES[STAGES.index(before) : STAGES.index(after)]:
            self.finished[stage] += 1

    @alone
    def look(self) -> dict[str, Any]:
        return {"finished": dict(self.finished), "current": dict(self.current)}
