"""`profile_steps`: what some steps of a run do, as torch.profiler sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

TOP_ROWS = 40  # of the table


class Profiles:
    """Records the steps from `first` to `last`, both with it, of those that a run comes to.

    Writes RUN/profile/steps-A-B.json, a trace as Chrome has them, and .txt, a table of the
    operations that took longest by themselves. Outside of these steps it costs nothing.
    """

    def __init__(
        self, run: Path, steps: tuple[int, int], device: torch.device, say: Callable[[str], None]
    ) -> None:
        self.folder, self.steps, self.say = run / "profile", range(steps[0], steps[1] + 1), say
        self.gpu = device.type == "cuda"
        self.running: profile | None = None
        self.seen: list[int] = []

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step, the number-th."""
        if number in self.steps:
            if not self.running:
                kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.gpu
                self.running = profile(activities=kinds)
                self.running.start()
            self.seen.append(number)
        yield
        if number == self.steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what was recorded; also where a run ends in the middle of it."""
        if not self.running:
            return
        self.running.stop()
        self.folder.mkdir(exist_ok=True)
        trace = self.folder / f"steps-{self.seen[0]}-{self.seen[-1]}.json"
        self.running.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if self.gpu else "self_cpu_time_total"
        table = self.running.key_averages().table(sort_by=order, row_limit=TOP_ROWS)
        trace.with_suffix(".txt").write_text(table)
        self.running = None
        self.say(
            f"profiled steps {self.seen[0]} to {self.seen[-1]}: {trace} (for chrome://tracing or "
            f"ui.perfetto.dev), and the longest operations in {trace.with_suffix('.txt').name}"
        )
