"""What the losses of a run say of its clips: how well each is learned (curation.shards)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.shards import Dataset
from curation.shards.train_signals import SIGNAL_SCHEMA, write_signal
from training.checkpoints.folders import steps_of

BINS = 20  # of the timesteps: in a twentieth of them the mean loss is nearly one number. Ours
# Of a bin's running mean: a mean over about the last hundred losses, as training changes them.
DECAY = 0.99
WARM = 5  # losses of a bin before its mean is used. Ours: short runs say something, too

Loss = tuple[str, str, float, float]  # dataset, clip id, timestep 0..1, loss


class Signals:
    """Running means of the loss by timestep, and of each clip's loss relative to them.

    Held by the first rank alone. A clip costs about 200 bytes.
    """

    def __init__(self) -> None:
        self.sums = [0.0] * BINS  # of losses, older ones weighing less
        self.weights = [0.0] * BINS
        self.counts = [0] * BINS
        self.clips: dict[str, dict[str, tuple[int, float, float]]] = {}  # n, mean, sum of squares

    def add(self, losses: Iterable[Loss]) -> None:
        """Take in the losses of one step, each held against the means before it."""
        losses = list(losses)
        for dataset, clip_id, timestep, loss in losses:
            n = bin_of(timestep)
            if self.counts[n] >= WARM and self.sums[n] > 0:  # 0: nothing is left to learn
                self.note(dataset, clip_id, loss * self.weights[n] / self.sums[n])
        for _, _, timestep, loss in losses:
            n = bin_of(timestep)
            self.sums[n] = DECAY * self.sums[n] + loss
            self.weights[n] = DECAY * self.weights[n] + 1
            self.counts[n] += 1

    def note(self, dataset: str, clip_id: str, ratio: float) -> None:
        """One more ratio of a clip (Welford's running mean and squares)."""
        clips = self.clips.setdefault(dataset, {})
        n, mean, squares = clips.get(clip_id, (0, 0.0, 0.0))
        step = ratio - mean
        mean += step / (n + 1)
        clips[clip_id] = n + 1, mean, squares + step * (ratio - mean)

    def rows(self, dataset: str) -> pa.Table:
        """SIGNAL_SCHEMA, by clip id.

        Over all losses of the run the ratios have the mean 1: while the loss falls, the running
        means lag behind it, and all ratios are too small alike.
        """
        clips = sorted(self.clips.get(dataset, {}).items())
        every = [each for some in self.clips.values() for each in some.values()]
        num = sum(n for n, _, _ in every)
        lag = math.fsum(n * mean for n, mean, _ in every) / num if num else 1.0
        lag = lag or 1.0  # all losses were 0
        columns: Sequence[list[Any]] = (
            [clip_id for clip_id, _ in clips],
            [n for _, (n, _, _) in clips],
            [mean / lag for _, (_, mean, _) in clips],
            [math.sqrt(squares / n) / lag for _, (n, _, squares) in clips],
        )
        return pa.table(dict(zip(SIGNAL_SCHEMA.names, columns, strict=True)), schema=SIGNAL_SCHEMA)

    def publish(self, places: Iterable[tuple[str, Dataset]], run: Path, step: int) -> list[str]:
        """Write beside each dataset what was found of its clips; returns the places."""
        out = []
        for name, dataset in places:
            rows = self.rows(name)
            if len(rows):
                write_signal(dataset, run.name, rows, {"run": run.name, "step": str(step)})
                out.append(f"{dataset.uri}/train_signal/{run.name}.parquet")
        return out

    # -- beside a checkpoint, so that a resume goes on exactly

    def save(self, run: Path, step: int) -> None:
        """Before the checkpoint of a step; what is older than the oldest checkpoint goes."""
        path = place(run, step)
        for oldest in steps_of(run)[:1]:
            for old in path.parent.glob("step-*.json"):
                if old.stem < oldest.name:
                    old.unlink()
        state = {
            "sums": self.sums, "weights": self.weights, "counts": self.counts, "clips": self.clips,
        }  # fmt: skip
        written = path.with_name(f".tmp-{path.name}")
        written.parent.mkdir(exist_ok=True)
        written.write_text(json.dumps(state))
        written.replace(path)

    @staticmethod
    def load(run: Path, step: int) -> Signals:
        """What was saved at a step; nothing known where nothing was, as before the first one."""
        found, path = Signals(), place(run, step)
        if path.exists():
            state = json.loads(path.read_text())
            found.sums, found.weights = state["sums"], state["weights"]
            found.counts = state["counts"]
            found.clips = {
                name: {clip_id: (n, mean, squares) for clip_id, (n, mean, squares) in clips.items()}
                for name, clips in state["clips"].items()
            }
        return found


def place(run: Path, step: int) -> Path:
    return run / "train_signal" / f"step-{step:08d}.json"


def bin_of(timestep: float) -> int:
    """
    >>> bin_of(0.0), bin_of(0.999), bin_of(1.0)
    (0, 19, 19)
    """
    return min(int(timestep * BINS), BINS - 1)
