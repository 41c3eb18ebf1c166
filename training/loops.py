"""The training loop, one screen, and `train_step`, one optimiser step as a function."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import SpaceTimeUNet, VideoFactoryPipeline
from training import checkpoints
from training.batches import BadRows, Batch, Batches, Sample, TooManyBadError, held_out_samples
from training.checkpoints import Ema
from training.configs import Config
from training.losses import Objective, held_out_losses, micro_batches
from training.orders import digest
from training.reports import Board, Display, Metrics, contact_sheet, slug


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer a number."""


class StoppedError(RuntimeError):
    """The run was asked to stop and has saved."""


@dataclass
class State:
    """What a step changes and a checkpoint holds."""

    unet: SpaceTimeUNet
    optimizer: torch.optim.Optimizer
    ema: Ema
    step: int = 0
    bad: BadRows = field(default_factory=BadRows)

    def save(self, run: Path, card: dict[str, Any], keep: int) -> None:
        facts = {"step": self.step, "bad_rows": self.bad.reasons}
        checkpoints.save(run, self.unet, self.ema, self.optimizer, facts, card, keep)

    def load(self, checkpoint: Path) -> None:
        facts = checkpoints.load(checkpoint, self.unet, self.ema, self.optimizer)
        self.step, self.bad = facts["step"], BadRows(facts["bad_rows"])


def make_state(unet: SpaceTimeUNet, config: Config, device: torch.device) -> State:
    """Optimiser and EMA of a U-Net whose trained parameters are chosen already."""
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    if config.activation_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    unet.to(device)  # type: ignore[arg-type]
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    return State(unet, optimizer, Ema(unet, config.ema_decay))


def learning_rate(config: Config, step: int) -> float:
    """Linear warmup, then constant, or half a cosine down to 0 at max_steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * (1 + math.cos(math.pi * min(1.0, done))) / 2


def train_step(
    state: State, objective: Objective, samples: list[Sample], config: Config
) -> tuple[Tensor, float]:
    """One optimiser step; returns the loss of each sample (fp64, in the order given) and the
    gradient's norm before clipping. Raises DivergedError, with the weights as they were.

    The gradient is that of the mean over all samples, however they are split.
    """
    state.optimizer.zero_grad(set_to_none=True)
    losses: dict[str, Tensor] = {}
    for n, part in enumerate(micro_batches(samples, config.micro_batch_size)):
        # Dropout inside the U-Net is the only random number that is not the sample's own.
        torch.manual_seed(int.from_bytes(digest(config.seed, "dropout", state.step, n)[:7]))
        loss = objective.losses(state.unet, part)
        (loss.sum() / len(samples)).backward()
        losses |= {key_of(s): x for s, x in zip(part, loss.detach().double().cpu(), strict=True)}
    trained = [p for p in state.unet.parameters() if p.requires_grad]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, config.clip_norm))
    every = torch.stack([losses[key_of(sample)] for sample in samples])
    if not (math.isfinite(norm) and bool(every.isfinite().all())):
        culprits = [s.clip_id for s, x in zip(samples, every, strict=True) if not x.isfinite()]
        raise DivergedError(
            f"step {state.step + 1}: loss {every.mean().item()}, gradient norm {norm}"
            + (f"; clips {', '.join(culprits)}" if culprits else "")
            + "; the last checkpoint is as it was. Lower learning_rate, or use precision=float32"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step)
    state.optimizer.step()
    state.ema.update(state.unet, state.step)
    state.step += 1
    return every, norm


def key_of(sample: Sample) -> str:
    return f"{sample.dataset}/{sample.epoch}/{sample.clip_id}"


@dataclass
class Run:
    """A checked run: where it writes, what it reads, and everything that a step needs."""

    folder: Path
    config: Config
    card: dict[str, Any]
    state: State
    objective: Objective
    batches: Batches
    display: Display
    metrics: Metrics
    board: Board


def train(run: Run) -> None:
    """Train to max_steps. Raises StoppedError on a signal, DivergedError, TooManyBadError."""
    config, state = run.config, run.state
    held_out = [s for s in held_out_samples(run.batches.datasets, config) if isinstance(s, Sample)]
    with stop_on_signals() as stop, run.display:
        if held_out and state.step == 0:
            evaluate(run, held_out)  # what training has to beat
        for batch, wait_s in timed(run.batches.start_at(state.step)):
            # Rows that could not be read.
            note_bad_rows(run, batch)

            # One optimiser step.
            started = time.monotonic()
            losses, norm = train_step(state, run.objective, batch.samples, config)
            report_step(run, batch, losses, norm, wait_s, time.monotonic() - started)
            done = state.step == config.max_steps

            # Look at it: held-out loss, samples.
            if held_out and (done or state.step % config.evaluate_every == 0):
                evaluate(run, held_out)
            if config.num_samples and (done or state.step % config.sample_every == 0):
                sample(run, held_out)

            # Keep it.
            if done or stop.is_set() or state.step % config.checkpoint_every == 0:
                state.save(run.folder, run.card, config.keep_checkpoints)
            if done:
                return
            if stop.is_set():
                raise StoppedError(f"stopped and saved at step {state.step}")


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds it was waited for."""
    while True:
        started = time.monotonic()
        batch = next(batches)
        yield batch, time.monotonic() - started


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; a second one acts at once."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is threading.main_thread():
        for number in before:
            signal.signal(number, ask)
    try:
        yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def note_bad_rows(run: Run, batch: Batch) -> None:
    """Name and count the rows that were skipped; TooManyBadError when the run must stop."""
    for bad in batch.bad:
        if run.state.bad.add(bad):
            run.display.say(f"skipped {bad.dataset}/{bad.clip_id}: {bad.reason}")
            run.metrics.write(
                step=batch.step + 1, bad_row=bad.clip_id, dataset=bad.dataset, reason=bad.reason
            )
    run.state.bad.check(run.batches.num_seen(batch.step))
    if not batch.samples:
        raise TooManyBadError(f"step {batch.step + 1}: no row of the whole batch could be read")


def report_step(
    run: Run, batch: Batch, losses: Tensor, norm: float, wait_s: float, step_s: float
) -> None:
    """One line of metrics.jsonl, its scalars, and the progress."""
    by_dataset: dict[str, list[float]] = defaultdict(list)
    for each, loss in zip(batch.samples, losses.tolist(), strict=True):
        by_dataset[each.dataset].append(loss)
    line = {
        "loss": losses.mean().item(),
        "epoch": min(batch.epochs.values()),
        "clips_per_s": len(batch.samples) / (wait_s + step_s),
        "data_wait_share": wait_s / (wait_s + step_s),
        "learning_rate": learning_rate(run.config, run.state.step - 1),
        "gradient_norm": norm,
    }
    step = run.state.step
    datasets = {name: sum(each) / len(each) for name, each in by_dataset.items()}
    run.metrics.write(step=step, **line, epochs=batch.epochs, loss_by_dataset=datasets)
    run.board.scalars(step, {**line, **{f"loss/{name}": x for name, x in datasets.items()}})
    run.display.step(step, line["loss"], line["clips_per_s"], line["data_wait_share"])


def evaluate(run: Run, held_out: list[Sample]) -> None:
    """Held-out loss with fixed noise, raw and EMA, on lines of their own."""
    state, bins = run.state, run.config.timestep_bins
    raw = held_out_losses(run.objective, state.unet, held_out, bins)
    with state.ema.swapped(state.unet):
        ema = held_out_losses(run.objective, state.unet, held_out, bins)
    run.metrics.write(step=state.step, held_out_loss=raw["all"], held_out_loss_ema=ema["all"],
                      held_out_by_bin=raw["bins"], held_out_by_bin_ema=ema["bins"],
                      held_out_by_dataset=raw["datasets"],
                      held_out_by_dataset_ema=ema["datasets"])  # fmt: skip
    run.board.scalars(state.step, {"held_out": raw["all"], "held_out_ema": ema["all"]})
    bin_text = ", ".join(f"{x:.3f}" for x in raw["bins"])
    run.display.say(
        f"step {state.step}: held-out loss {raw['all']:.4f}, EMA {ema['all']:.4f} "
        f"({len(held_out)} clips; by timestep {bin_text})"
    )


def sample(run: Run, held_out: list[Sample]) -> None:
    """Samples of the EMA weights as mp4 files and a contact sheet."""
    config, state, objective = run.config, run.state, run.objective
    prompts = config.sample_prompts or captions(run, held_out)
    prompts = prompts[: config.num_samples]
    generators = [torch.Generator().manual_seed(config.seed + n) for n in range(len(prompts))]
    pipe = VideoFactoryPipeline(state.unet, objective.codec, objective.text, objective.schedule)
    autocast = torch.autocast(
        objective.device.type, torch.bfloat16, enabled=config.precision == "bf16"
    )
    try:
        with state.ema.swapped(state.unet), autocast:
            clips = pipe(
                prompts,
                num_frames=config.num_frames,
                height=config.height,
                width=config.width,
                fps=config.fps,
                num_inference_steps=config.sample_steps,
                guidance_scale=config.guidance,
                generator=generators,
                progress=False,
            )
    except FileNotFoundError as error:  # precomputed, training itself needs no such weights
        run.display.say(
            f"step {state.step}: no samples (--set num_samples=0 asks for none): {error}"
        )
        return
    folder = run.folder / "samples" / f"step-{state.step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [clips.save(folder / f"{n}-{slug(p)}.mp4", n) for n, p in enumerate(prompts)]
    contact_sheet(clips.frames, folder / "sheet.png")
    run.board.clips(state.step, prompts, clips.frames, clips.fps)
    named = [str(file.relative_to(run.folder)) for file in files]
    run.metrics.write(step=state.step, samples=named, prompts=prompts)
    run.display.say(f"step {state.step}: {len(files)} samples in {folder}")


def captions(run: Run, held_out: list[Sample]) -> list[str]:
    """Captions to sample by when none are given: of trained clips, then of held-out ones."""
    first = run.batches.first_captions(run.config.num_samples)
    return list(dict.fromkeys([*first, *(each.caption for each in held_out)]))
