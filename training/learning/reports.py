"""What a run tells: metrics.jsonl, a logger, samples with their contact sheet, progress."""

from __future__ import annotations

import json
import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torchvision.utils import make_grid

from curation.commands import say
from model.mp4 import write_mp4
from training.checkpoints.folders import write_whole
from training.evaluation.compare import lines_of, shown
from training.learning.loggers import Logger
from training.learning.profiles import Profiles

SHEET_FRAMES = 8  # columns of a contact sheet
LINE_EVERY_S = 10.0  # between lines of a log, where there is no terminal


class Metrics:
    """RUN/metrics.jsonl: a line per optimiser step, and lines with other keys beside them.

    Opened at a step, it first drops what a killed run wrote after its last checkpoint, so that
    every step is there once.
    """

    def __init__(self, run: Path, step: int) -> None:
        path = run / "metrics.jsonl"
        kept = lines_up_to(path, step)
        written = path.with_name(".tmp-metrics.jsonl")
        written.write_text("".join(kept))
        written.replace(path)
        self.file = path.open("a")

    def write(self, **line: Any) -> None:
        """Floats are written so that reading them gives the same bits."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def lines_up_to(path: Path, step: int) -> list[str]:
    """The whole lines of steps up to and with `step`."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue  # torn by a kill
    return kept


def contact_sheet(clips: Tensor, path: Path) -> None:
    """A PNG of clips uint8 [B, T, H, W, 3]: a row per clip, its frames from left to right."""
    T = clips.shape[1]
    columns = torch.linspace(0, T - 1, min(T, SHEET_FRAMES)).round().long()
    frames = clips[:, columns].flatten(0, 1).permute(0, 3, 1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = make_grid(frames, nrow=len(columns), padding=2, pad_value=255)  # px
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)


def slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "empty"


class Display:
    """Progress: a bar on a terminal, a line every ten seconds in a log."""

    def __init__(self, console: Console, step: int, max_steps: int) -> None:
        self.console, self.max_steps, self.first = console, max_steps, step
        self.started = time.monotonic()
        self.told = 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=max_steps, completed=step)

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def step(self, step: int, loss: float, clips_per_s: float, data_wait_share: float) -> None:
        text = f"loss {loss:.4f}, {clips_per_s:.2f} clips/s, data wait {data_wait_share:.0%}"
        self.bar.update(self.task, completed=step, description=text)
        now = time.monotonic()
        due = now - self.told >= LINE_EVERY_S or step == self.max_steps
        if due and not self.console.is_terminal:
            self.told = now
            left_s = (now - self.started) / (step - self.first) * (self.max_steps - step)
            self.say(f"step {step}/{self.max_steps}: {text}, {left_s / 60:.1f} min left")

    def say(self, text: str) -> None:
        say(self.console, text)


@dataclass
class Reports:
    """All that a run tells, in one place; of a team's ranks the first alone has it."""

    folder: Path
    display: Display
    metrics: Metrics
    logger: Logger
    profiles: Profiles | None = None  # with profile_steps

    def __enter__(self) -> Reports:
        self.display.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.display.__exit__(kind, error, trace)
        if self.profiles:
            self.profiles.close()
        self.metrics.close()
        self.logger.close()

    def profiled(self, step: int) -> AbstractContextManager[None]:
        """Around an optimiser step."""
        return self.profiles.step(step) if self.profiles else nullcontext()

    def step(
        self, step: int, line: dict[str, float], datasets: dict[str, float], **more: Any
    ) -> None:
        """An optimiser step: numbers of its line, loss by dataset, and what is no scalar."""
        self.metrics.write(step=step, **line, **more, loss_by_dataset=datasets)
        by_bin = {f"loss_by_bin/{n}": x for n, x in enumerate(more["loss_by_bin"]) if x is not None}
        by_dataset = {f"loss/{name}": x for name, x in datasets.items()}
        self.logger.scalars(step, {**line, **by_dataset, **by_bin})
        self.display.step(step, line["loss"], line["clips_per_s"], line["data_wait_share"])

    def held_out(self, step: int, raw: dict[str, Any], ema: dict[str, Any]) -> None:
        """What `held_out_losses` gave for the weights and for their EMA."""
        self.metrics.write(step=step, held_out_loss=raw["all"], held_out_loss_ema=ema["all"],
                           held_out_by_bin=raw["bins"], held_out_by_bin_ema=ema["bins"],
                           held_out_by_dataset=raw["datasets"],
                           held_out_by_dataset_ema=ema["datasets"])  # fmt: skip
        self.logger.scalars(step, {"held_out": raw["all"], "held_out_ema": ema["all"]})
        bin_text = ", ".join(f"{x:.3f}" for x in raw["bins"])
        self.display.say(
            f"step {step}: held-out loss {raw['all']:.4f}, EMA {ema['all']:.4f} "
            f"({raw['clips']} clips; by timestep {bin_text})"
        )

    def protocol(self, step: int, result: dict[str, Any]) -> None:
        """What a protocol measured; its file is one that vf-eval --compare takes."""
        path = self.folder / "protocol" / f"step-{step:08d}.json"
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(result, indent=1))
        told = {f"protocol_{key}": result[key] for key in ("hash", "n", "scores")}
        file = str(path.relative_to(self.folder))
        self.metrics.write(step=step, protocol=result["name"], **told, protocol_file=file)
        scalars: dict[str, float] = {}
        for name, score in result["scores"].items():
            tag = (
                f"{result['protocol']['name']}-{result['n']}-{result['hash']}/{shown(name, score)}"
            )
            low, high = score["interval"]
            scalars |= {tag: score["value"], f"{tag} low": low, f"{tag} high": high}
        self.logger.scalars(step, scalars)
        self.display.say(f"step {step}: {result['name']}: {lines_of(result)[0]}")

    def samples(
        self, step: int, prompts: list[str], frames: Tensor, sheet: Tensor, fps: float
    ) -> None:
        """Sampled clips uint8 [B, T, H, W, 3] as mp4 files and moving pictures; a contact sheet of
        them, or of what stands beside them."""
        folder = self.folder / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{n}-{slug(p)}.mp4" for n, p in enumerate(prompts)]
        for clip, file in zip(frames, files, strict=True):
            write_mp4(clip, file, fps)
        contact_sheet(sheet, folder / "sheet.png")
        self.logger.clips(step, prompts, frames, fps)
        named = [str(file.relative_to(self.folder)) for file in files]
        self.metrics.write(step=step, samples=named, prompts=prompts)
        self.display.say(f"step {step}: {len(files)} samples in {folder}")
