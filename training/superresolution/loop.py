"""The training loop of super-resolution, and what is measured on held-out clips."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.commands import StoppedError
from training.data.batches import BadRow, TooManyBadError
from training.data.rows import Rows
from training.evaluation.lpips import Lpips
from training.learning.reports import Display, Metrics, contact_sheet
from training.superresolution.config import Config
from training.superresolution.data import (
    Pair,
    PairBatch,
    Pairs,
    held_out_pairs,
    inner,
    psnr,
    stacked,
)
from training.superresolution.state import State, save, train_step

SHEET_CLIPS = 6


@dataclass
class Run:
    """A checked run: where it writes, what it reads, and everything that a step needs.

    measure: LPIPS, where its weights are cached.
    """

    folder: Path
    config: Config
    card: dict[str, Any]
    state: State
    datasets: list[Rows]
    measure: Lpips | None
    display: Display
    metrics: Metrics


def train(run: Run, stop: Callable[[], bool]) -> None:
    """Train to max_steps. Raises StoppedError when asked, RunError, TooManyBadError."""
    config, state = run.config, run.state
    if state.step >= config.max_steps:
        return
    held_out = read_held_out(run)
    if state.step == 0:
        evaluate(run, held_out)
    pairs = Pairs(run.datasets, config)
    batches = pairs.start_at(state.step)
    with ExitStack() as ending:
        ending.callback(batches.close)  # type: ignore[attr-defined]
        while state.step < config.max_steps:
            started = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - started
            note_bad_rows(run, batch, pairs.num_seen(batch.step))
            if batch.pairs:
                small = stacked([pair.small for pair in batch.pairs], state.device)
                true = stacked([pair.true for pair in batch.pairs], state.device)
                losses = train_step(state, small, true, config)
                report(run, losses, len(batch.pairs), waited, time.monotonic() - started)
            else:  # a batch may be one clip, and that one bad
                state.step += 1
            done, stopping = state.step == config.max_steps, stop()
            if done or state.step % config.evaluate_every == 0:
                evaluate(run, held_out)
            if done or stopping or state.step % config.checkpoint_every == 0:
                save(run.folder, state, run.card, config.keep_checkpoints)
            if stopping and not done:
                raise StoppedError(f"stopped and saved at step {state.step}")


def note_bad_rows(run: Run, batch: PairBatch, seen: int) -> None:
    """Name and count rows that gave no pair; TooManyBadError when the run must stop."""
    for bad in batch.bad:
        if run.state.bad.add(bad):
            tell_bad(run, bad, "skipped", batch.step + 1)
    run.state.bad.check(seen)
    if len(run.state.bad.reasons) == seen:
        raise TooManyBadError(
            f"step {batch.step + 1}: none of the {seen} rows so far could be read"
        )


def tell_bad(run: Run, bad: BadRow, what: str, step: int) -> None:
    run.display.say(f"{what} {bad.dataset}/{bad.clip_id}: {bad.reason}")
    run.metrics.write(step=step, bad_row=bad.clip_id, dataset=bad.dataset, reason=bad.reason)


def report(run: Run, losses: dict[str, float], count: int, waited: float, took: float) -> None:
    step = run.state.step
    line = {"clips_per_s": count / took, "data_wait_share": waited / took}
    run.metrics.write(step=step, **losses, **line)
    run.display.step(step, losses["loss"], **line)


def read_held_out(run: Run) -> list[Pair]:
    """The held-out pairs; what cannot be read is named."""
    found: list[Pair] = []
    for each in held_out_pairs(run.datasets, run.config):
        if isinstance(each, list):
            found += each
        else:
            tell_bad(run, each, "held-out clip that is not evaluated,", run.state.step)
    return found


def bicubic(small: Tensor, scale: int) -> Tensor:
    """What the network is compared with: [n, 3, h, w] enlarged, clipped to 0..1."""
    made = F.interpolate(small, scale_factor=scale, mode="bicubic", align_corners=False)
    return made.clamp(0, 1)


@torch.no_grad()
def enlarged(generator: nn.Module, small: Tensor) -> Tensor:
    return generator(small).float().clamp(0, 1)


@torch.no_grad()
def scores(made: Tensor, true: Tensor, scale: int, measure: Lpips | None) -> dict[str, float]:
    """Means over pictures: l1 in 0..1, psnr in dB, lpips where there is a measure."""
    made, true = inner(made, scale), inner(true, scale)
    found = {"l1": F.l1_loss(made, true).item(), "psnr": psnr(made, true).mean().item()}
    return found | ({"lpips": measure(made, true).mean().item()} if measure else {})


def evaluate(run: Run, held_out: list[Pair]) -> None:
    """The EMA and bicubic on the same degraded held-out clips, and a sheet to look at."""
    if not held_out:
        return
    state = run.state
    sums: dict[str, float] = {}
    rows: list[Tensor] = []
    with state.ema.swapped(state.generator):
        for n, pair in enumerate(held_out):
            small, true = (stacked([x], state.device) for x in (pair.small, pair.true))
            made = {"ours": enlarged(state.generator, small),
                    "bicubic": bicubic(small, run.config.scale)}  # fmt: skip
            for name, pixels in made.items():
                for key, value in scores(pixels, true, run.config.scale, run.measure).items():
                    sums[f"{name}_{key}"] = sums.get(f"{name}_{key}", 0.0) + value
            if n % max(1, len(held_out) // SHEET_CLIPS) == 0 and len(rows) < SHEET_CLIPS:
                plain = F.interpolate(small, scale_factor=run.config.scale, mode="nearest")
                rows.append(sheet_row([plain, made["bicubic"], made["ours"], true]))
    means = {key: total / len(held_out) for key, total in sums.items()}
    run.metrics.write(step=state.step, held_out=len(held_out), **means)
    contact_sheet(torch.stack(rows), run.folder / "sheets" / f"step-{state.step:08d}.png")
    told = [f"{key} {means[f'ours_{key}']:.4f} (bicubic {means[f'bicubic_{key}']:.4f})"
            for key in ("l1", "psnr", "lpips") if f"ours_{key}" in means]  # fmt: skip
    run.display.say(f"step {state.step}: {len(held_out)} held-out: {', '.join(told)}")


def sheet_row(kinds: list[Tensor]) -> Tensor:
    """The middle frame of input, bicubic, ours and truth: uint8 [4, H, W, 3]."""
    middle = [pixels[len(pixels) // 2] for pixels in kinds]
    return (torch.stack(middle) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
