"""The training loop, one screen; one step of it is steps.py."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.commands import StoppedError
from training.config import Config
from training.data.batches import Batch, Batches, Sample, TooManyBadError, held_out_samples
from training.data.orders import digest
from training.evaluation.in_training import Watch
from training.learning import samples
from training.learning.losses import Objective, held_out_losses
from training.learning.meters import Meter
from training.learning.reports import Reports
from training.learning.signals import Signals
from training.learning.steps import DivergedError, State, key_of, learning_rate, train_step
from training.parallel import uncompiled


@dataclass
class Run:
    """A checked run: where it writes, what it reads, and everything that a step needs."""

    folder: Path
    config: Config
    card: dict[str, Any]
    state: State
    objective: Objective
    batches: Batches
    reports: Reports | None  # of the first rank
    meter: Meter
    watch: Watch | None = None  # with protocol_every
    signals: Signals | None = None  # with train_signal, of the first rank


def train(run: Run, stop: Callable[[], bool]) -> None:
    """Train to max_steps. Raises StoppedError when asked, DivergedError, TooManyBadError."""
    config, state, team = run.config, run.state, run.state.team
    held_out = read_held_out(run)
    if run.watch and state.step < config.max_steps:
        run.watch.measure_real(state, run.objective, stop)
    if team.any(stop()):
        raise StoppedError(f"stopped before step {state.step + 1}")
    if state.step >= config.max_steps:
        return
    if state.step == 0:
        evaluate(run, held_out)  # what training has to beat
    saved_at = time.monotonic()
    for batch, wait_s in timed(run.batches.start_at(state.step)):
        # Rows that could not be read.
        note_bad_rows(run, batch)

        # One optimiser step.
        started = time.monotonic()
        try:
            with run.reports.profiled(state.step + 1) if run.reports else nullcontext():
                losses, norm = train_step(state, run.objective, batch.samples, config)
            report_step(run, batch, losses, norm, wait_s, time.monotonic() - started)
        except DivergedError as error:
            skip_step(run, error)
        done = state.step == config.max_steps
        late = time.monotonic() - saved_at >= (config.checkpoint_every_s or math.inf)
        asked = stop(), late, state.saver.failed()
        stopping, due, unsaved = map(any, zip(*team.gather(asked), strict=True))

        # Look at it: held-out loss, samples, FVD.
        if done or state.step % config.evaluate_every == 0:
            evaluate(run, held_out)
        if config.num_samples and (done or state.step % config.sample_every == 0):
            samples.make(run, held_out)
        if run.watch and (done or state.step % run.watch.every == 0):
            result = run.watch.measure(state, run.objective, stop)
            if run.reports and result:
                run.reports.protocol(state.step, result)

        # Keep it.
        if config.post_hoc_ema and state.step % config.post_hoc_every == 0:
            state.save_powers(run.folder)
        if done or stopping or due or state.step % config.checkpoint_every == 0:
            keep(run)
            saved_at = time.monotonic()
        if done or stopping or unsaved:
            state.saver.wait()
        if run.reports:
            for line in state.saver.finished():
                run.reports.metrics.write(**line)
        if done:
            return
        if stopping:
            raise StoppedError(f"stopped and saved at step {state.step}")


def keep(run: Run) -> None:
    """A checkpoint, and what it says of the clips."""
    if run.signals:  # before it: no checkpoint is without
        run.signals.save(run.folder, run.state.step)
    run.state.save(run.folder, run.card, run.config)
    if run.signals:
        places = [(rows.name, rows.dataset) for rows in run.batches.datasets]
        run.signals.publish(places, run.folder, run.state.step)


def read_held_out(run: Run) -> list[Sample]:
    """This rank's held-out clips, encoded; those of all ranks that cannot be read are named."""
    samples, bad = [], []
    for each in held_out_samples(run.batches.datasets, run.config, run.state.team):
        if isinstance(each, Sample):
            samples.append(run.objective.encoded(each))
        else:
            bad.append(each)
    every = run.state.team.gather_lists(bad)
    for row in every if run.reports else []:
        assert run.reports is not None
        named = f"{row.dataset}/{row.clip_id}: {row.reason}"
        run.reports.display.say(f"held-out clip that is not evaluated, {named}")
        run.reports.metrics.write(
            step=run.state.step, bad_row=row.clip_id, dataset=row.dataset, held_out=True,
            reason=row.reason,
        )  # fmt: skip
    return samples


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds it was waited for."""
    while True:
        started = time.monotonic()
        batch = next(batches)
        yield batch, time.monotonic() - started


def skip_step(run: Run, error: DivergedError) -> None:
    """Go on without a step whose loss is no number: one bad clip must not end a run, and would be
    met again at every resume. DivergedError after max_skipped_steps of them."""
    state, most = run.state, run.config.max_skipped_steps
    if state.num_skipped >= most:
        raise DivergedError(
            f"{error}; {state.num_skipped} steps were skipped before (max_skipped_steps={most}). "
            "The last checkpoint is as it was. Lower learning_rate, or use precision=float32"
        )
    state.num_skipped += 1
    state.step += 1
    if run.reports:
        run.reports.display.say(f"skipped: {error} ({state.num_skipped} of at most {most})")
        run.reports.metrics.write(step=state.step, skipped_step=str(error))


def note_bad_rows(run: Run, batch: Batch) -> None:
    """Name and count the rows that were skipped; TooManyBadError when the run must stop."""
    team, bad_rows = run.state.team, run.state.bad
    for bad in team.gather_lists(batch.bad):
        if bad_rows.add(bad) and run.reports:
            run.reports.display.say(f"skipped {bad.dataset}/{bad.clip_id}: {bad.reason}")
            run.reports.metrics.write(
                step=batch.step + 1, bad_row=bad.clip_id, dataset=bad.dataset, reason=bad.reason
            )
    bad_rows.check(run.batches.num_seen(batch.step))
    if not team.any(bool(batch.samples)):
        raise TooManyBadError(f"step {batch.step + 1}: no row of the whole batch could be read")


def report_step(
    run: Run, batch: Batch, losses: Tensor, norm: float, wait_s: float, step_s: float
) -> None:
    """One line of metrics.jsonl, its scalars, and the progress."""
    team, step = run.state.team, run.state.step
    factor = run.objective.codec.factor
    own = [
        (s.dataset, s.clip_id, key_of(s), s.draws.timestep, s.latent_size(factor), x)
        for s, x in zip(batch.samples, losses.tolist(), strict=True)
    ]
    every = team.gather_lists(own)
    times = wait_s, run.objective.encode_clock.seconds(), step_s
    wait_s, encode_s, step_s = map(max, zip(*team.gather(times), strict=True))
    total_s = wait_s + step_s
    if run.reports is None:
        return
    bins = run.config.timestep_bins
    by_dataset: dict[str, list[float]] = defaultdict(list)
    by_bin: dict[int, list[float]] = defaultdict(list)
    for dataset, _, _, timestep, _, loss in every:
        by_dataset[dataset].append(loss)
        by_bin[int(timestep * bins)].append(loss)
    line = {
        "loss": math.fsum(loss for *_, loss in every) / len(every),
        "epoch": min(batch.epochs.values()),
        "clips_per_s": len(every) / total_s,
        "data_wait_share": wait_s / total_s,
        "encode_share": encode_s / total_s,
        "compute_share": (step_s - encode_s) / total_s,
        "learning_rate": learning_rate(run.config, step - 1),
        "gradient_norm": norm,
    }
    line |= {f"gradient_norm_{part}": each for part, each in run.state.part_norms.items()}
    line |= run.meter.shares([size for *_, size, _ in every], total_s)
    if run.objective.device.type == "cuda":
        line["gpu_memory_gb"] = torch.cuda.max_memory_allocated(run.objective.device) / 1e9
    # The noisier a step the larger its loss, so the mean of a small batch says little.
    by_timestep = [mean(by_bin[n]) if n in by_bin else None for n in range(bins)]
    datasets = {name: mean(each) for name, each in by_dataset.items()}
    seen = digest(*sorted(key for _, _, key, *_ in every)).hex()[:16]
    told = {"epochs": batch.epochs, "clips_digest": seen, "loss_by_bin": by_timestep}
    run.reports.step(step, line, datasets, **told)
    if run.signals:
        run.signals.add((name, clip_id, t, x) for name, clip_id, _, t, _, x in every)


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def evaluate(run: Run, held_out: list[Sample]) -> None:
    """Held-out loss with fixed noise, raw and EMA, on lines of their own."""
    state, bins = run.state, run.config.timestep_bins
    if not state.team.any(bool(held_out)):
        return
    with uncompiled(run.config):
        raw = held_out_losses(run.objective, state.unet, held_out, bins, state.team)
        with state.ema.swapped(state.unet):
            ema = held_out_losses(run.objective, state.unet, held_out, bins, state.team)
    if run.reports:
        run.reports.held_out(state.step, raw, ema)
