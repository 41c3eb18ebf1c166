"""How far a run is: counted by one small Ray actor, shown as bars or as lines in a log."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from curation.commands import say, visible
from curation.downloads.hosts import Hosts
from curation.takedown.tombstones import NOTHING, Tombstones

# A bar for each, in the order a video goes through them.
STAGES = ("fetch", "decode", "cut", "caption", "commit")
REFRESH_S = 0.5
LOG_EVERY_S = 15.0


@ray.remote(num_cpus=0)
class Tally:
    """Counts the videos that finished each stage, and knows where each one is now.

    It also knows which source stands for each video, and what was taken down: `held` are the URLs
    of those that earlier runs decided, by video id. And which hosts are being asked:
    `max_per_host` at once.
    """

    def __init__(
        self, held: dict[str, str], max_per_host: int = 8, stones: Tombstones = NOTHING
    ) -> None:
        self.hosts = Hosts(max_per_host)
        self.firsts = held
        self.stones = stones
        self.refused: set[str] = set()
        self.copies: set[str] = set()
        self.finished = dict.fromkeys(STAGES, 0)
        self.current: dict[str, tuple[str, float]] = {}
        self.starts: dict[tuple[str, str], int] = {}

    def start(self, stage: str, video: str) -> int:
        """Count one more start of a video in a stage; returns how many there were with this one."""
        self.starts[stage, video] = self.starts.get((stage, video), 0) + 1
        return self.starts[stage, video]

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

    def enter(self, url: str) -> tuple[float, str | None]:
        """As Hosts has it."""
        return self.hosts.enter(url)

    def leave(self, url: str, error_class: str | None) -> None:
        """As Hosts has it."""
        self.hosts.leave(url, error_class)

    def num_copies(self) -> int:
        """How many sources turned out to be copies of others."""
        return len(self.copies)

    def refused_urls(self) -> set[str]:
        """The sources that turned out to be videos that were taken down."""
        return self.refused

    def at(self, video: str, stage: str, position_s: float) -> None:
        """A video is in a stage now, and so has finished those before it.

        One that is tried again stays where it was: nothing is counted twice.
        """
        before = self.current.get(video, (STAGES[0], 0.0))[0]
        self.count(before, stage)
        stage = max(before, stage, key=STAGES.index)
        self.current[video] = (stage, position_s)

    def left(self, video: str, stage: str) -> None:
        """A video has finished `stage` and every stage before it."""
        before = self.current.pop(video, (STAGES[0], 0.0))[0]
        self.count(before, STAGES[STAGES.index(stage) + 1])

    def passed(self, stage: str, num_videos: int) -> None:
        self.finished[stage] += num_videos

    def count(self, before: str, after: str) -> None:
        for stage in STAGES[STAGES.index(before) : STAGES.index(after)]:
            self.finished[stage] += 1

    def look(self) -> dict[str, Any]:
        return {"finished": dict(self.finished), "current": dict(self.current)}


class Display:
    """Shows a Tally while a `with` block runs: bars on a terminal, plain lines in a log."""

    def __init__(self, tally: Any, num_videos: int, console: Console) -> None:
        self.tally = tally
        self.num_videos = num_videos
        self.console = console
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> Display:
        self.started = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()

    def run(self) -> None:
        if self.console.is_terminal:
            self.show_bars()
        else:
            self.log_lines()

    def look(self) -> dict[str, Any] | None:
        """The tally, or None when Ray is going down under us."""
        try:
            return ray.get(self.tally.look.remote(), timeout=5)
        except (ray.exceptions.RayError, RuntimeError):
            return None

    def show_bars(self) -> None:
        bars = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}", style="dim", markup=False),
            console=self.console,
        )
        tasks = {s: bars.add_task(s, total=self.num_videos, now="") for s in STAGES}
        with Live(bars, console=self.console, refresh_per_second=4):
            while True:
                last = self.stopped.wait(REFRESH_S)
                look = self.look()
                for stage, task in tasks.items():
                    if look:
                        done = look["finished"][stage]
                        bars.update(task, completed=done, now="" if last else now(look, stage))
                if last:
                    return

    def log_lines(self) -> None:
        while not self.stopped.wait(LOG_EVERY_S):
            look = self.look()
            if look:
                counts = ", ".join(f"{s} {n}" for s, n in look["finished"].items())
                elapsed_s = time.monotonic() - self.started
                say(self.console, f"{elapsed_s:.0f} s: of {self.num_videos} videos: {counts}")


def now(look: dict[str, Any], stage: str) -> str:
    """Which videos are in a stage, and how far: 'meadow.mp4 12 s'."""
    inside = [(video, s) for video, (at, s) in look["current"].items() if at == stage]
    shown = [f"{visible(video.rsplit('/', 1)[-1])} {s:.0f} s" for video, s in inside[:2]]
    return ", ".join(shown) + (f" and {len(inside) - 2} more" if len(inside) > 2 else "")


class Count:
    """How much of some work is done, as its driver counts it: a bar, or plain lines in a log."""

    def __init__(self, title: str, total: int, console: Console) -> None:
        self.title = title
        self.total = total
        self.console = console
        self.done = 0
        columns = (TextColumn("{task.description:>8}"), BarColumn(bar_width=30))
        self.bar = Progress(
            *columns,
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total)

    def __enter__(self) -> Count:
        self.started = self.told = time.monotonic()
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def add(self, number: int) -> None:
        self.done += number
        self.bar.update(self.task, completed=self.done)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.told >= LOG_EVERY_S:
            self.told = now
            elapsed_s = now - self.started
            say(self.console, f"{elapsed_s:.0f} s: {self.title}: {self.done} of {self.total}")
