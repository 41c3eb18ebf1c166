"""How far a run is, as its tally counts it: shown as bars or as lines in a log."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from curation.commands import say, visible
from curation.flow.tally import STAGES

REFRESH_S = 0.5
LOG_EVERY_S = 15.0


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
                look = self.tally.look()
                for stage, task in tasks.items():
                    if look:
                        done = look["finished"][stage]
                        bars.update(task, completed=done, now="" if last else now(look, stage))
                if last:
                    return

    def log_lines(self) -> None:
        while not self.stopped.wait(LOG_EVERY_S):
            look = self.tally.look()
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
