"""Rows of benchmarks/gpu.py: measured, told beside their goals, and kept, whatever fails in one."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

# Printed beside what is measured: a bound, and whether it is one from above.
GOALS = {
    "mfu": (0.40, False),
    "padding": (1.05, True),
    "over_global": (20.0, False),
    "data_wait": (0.02, True),
}


@dataclass
class Bench:
    """What every row needs, and the rows so far."""

    device: torch.device
    quick: bool
    deadline: float
    peak: float | None  # TFLOP/s
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def row(self, kind: str, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure one row, print it and keep it, whatever happens in it."""
        started = time.monotonic()
        try:
            found = measure() if self.left_s > 0 else {"skipped": "no time left"}
        except torch.OutOfMemoryError:
            found = {"failed": "out of memory"}
        except ImportError as error:
            found = {"skipped": f"needs {(error.name or str(error)).partition('.')[0]}"}
        except Exception as error:  # one row must not end the others: it is told
            found = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        row = {"kind": kind, "name": name, **found, "row_s": time.monotonic() - started}
        self.rows.append(row)
        print(f"{kind:12}{name:44}{told(found)}", flush=True)
        return row

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median_s(self, once: Callable[[], Any], repeats: int, warm: int = 2) -> float:
        times = []
        for n in range(warm + repeats):
            self.wait()
            started = time.perf_counter()
            once()
            self.wait()
            if n >= warm:
                times.append(time.perf_counter() - started)
        return statistics.median(times)


def told(found: dict[str, Any]) -> str:
    """A row's numbers in a line, each beside its goal where it has one."""
    parts = []
    for key, value in found.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        goal = GOALS.get(key)
        if goal and isinstance(value, float):
            text += f" (goal {'<=' if goal[1] else '>='} {goal[0]:g})"
        parts.append(f"{key} {text}")
    return ", ".join(parts)
