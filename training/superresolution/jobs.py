"""What `vf-train --stage sr` was asked for: checked, made into a run, and done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from curation.commands import say
from curation.places import check_lasting
from curation.settings import ConfigError
from training.checkpoints.folders import code_version, compare, latest, sweep, write_whole
from training.commands import stop_on_signals
from training.data.rows import Rows
from training.evaluation.lpips import Lpips, load_lpips
from training.jobs import check_output, only_trainer
from training.learning.reports import Display, Metrics
from training.superresolution import loop
from training.superresolution.config import Config
from training.superresolution.data import open_datasets
from training.superresolution.losses import load_perceptual
from training.superresolution.networks import make_generator, start_from
from training.superresolution.state import State, load, make_state


@dataclass(frozen=True)
class Job:
    """What a `vf-train --stage sr` was asked for."""

    config: Config
    data: list[str]
    output: Path
    init: str | None
    allowed: list[str]


def do(job: Job, console: Console, workers: int | None, dry_run: bool) -> None:
    """Check a job, then tell what it would be or do it."""
    if workers:
        raise ConfigError("--workers trains the base model; --stage sr has one process: leave it")
    check_lasting(str(job.output))
    if dry_run:
        say(console, as_yaml(job.config))
        check_output(job.output)
        check(job, console)
        return
    with only_trainer(job.output):
        work(job, console)
    say(
        console,
        f"{job.config.max_steps} steps done; use it: "
        f"vf-upscale in.mp4 out.mp4 --weights {job.output}",
    )


def as_yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Parts:
    """What a run is made of, checked: nothing of it is written yet."""

    datasets: list[Rows]
    state: State
    measure: Lpips | None
    card: dict[str, Any]
    resumed: bool


def check(job: Job, console: Console) -> Parts:
    """Read and build everything, from the latest checkpoint if there is one; raises ConfigError."""
    config = job.config
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = device_of(config)
    lines: list[str] = []
    datasets = open_datasets(job.data, config, lines)
    for line in lines:
        say(console, line)
    card = make_card(job, datasets, device)
    checkpoint = latest(job.output)
    check_same(job, checkpoint, card, console)
    generator = make_generator(config)
    if job.init and not checkpoint:
        start_from(generator, job.init)
    state = make_state(generator, load_perceptual(config), config, device)
    if checkpoint:
        load(checkpoint, state)
        say(console, f"going on from step {state.step}")
    size = sum(p.numel() for p in generator.parameters()) / 1e6
    start = job.init or f"seed {config.seed}"
    say(console, f"{config.network} x{config.scale}, {size:.2f} M parameters, from {start}, "
                 f"on {device}")  # fmt: skip
    return Parts(datasets, state, find_measure(config, device, console), card, bool(checkpoint))


def check_same(job: Job, checkpoint: Path | None, card: dict[str, Any], console: Console) -> None:
    """Refuse the folder of another stage's run, and settings that a run did not have."""
    known = job.output / "card.json"
    if known.exists() and json.loads(known.read_text()).get("stage") != "sr":
        raise ConfigError(f"--output {job.output} is a run of another stage: give a new folder")
    if checkpoint:
        before = json.loads((checkpoint / "card.json").read_text())
        for change in compare(before, card, job.allowed):
            say(console, f"changed: {change}", "yellow")


def find_measure(config: Config, device: torch.device, console: Console) -> Lpips | None:
    """LPIPS where its weights are cached; what it shares with the loss is said."""
    try:
        measure = load_lpips()
    except ConfigError as error:
        say(console, f"LPIPS is not measured: {error}", "yellow")
        return None
    if config.perceptual == "squeezenet":
        say(console, "perceptual=squeezenet trains on the features that LPIPS measures by: its "
                     "LPIPS is no independent judgement", "yellow")  # fmt: skip
    return measure.to(device)


def device_of(config: Config) -> torch.device:
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_card(job: Job, datasets: list[Rows], device: torch.device) -> dict[str, Any]:
    """Everything that the losses depend on, as the cards of other stages have it."""
    data = {
        rows.name: {"location": rows.dataset.uri, "weight": rows.weight,
                    "fingerprint": rows.fingerprint, "clips": rows.num_trained}
        for rows in datasets
    }  # fmt: skip
    return {
        "stage": "sr",
        # The rate is constant, so where the end is changes no step before it.
        "config": job.config.model_dump(mode="json") | {"schedule": "constant"},
        "data": data,
        "init": job.init,
        "code": code_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "workers": 1,
    }


def work(job: Job, console: Console) -> None:
    """Train to the end, or until a signal asks for one."""
    parts = check(job, console)
    folder, config, state = job.output, job.config, parts.state
    sweep(folder)
    write_whole(folder / "card.json", json.dumps(parts.card, indent=1))  # it makes this a run
    write_whole(folder / "config.yaml", as_yaml(config))
    metrics = Metrics(folder, state.step if parts.resumed else -1)
    display = Display(console, state.step, config.max_steps)
    run = loop.Run(folder, config, parts.card, state, parts.datasets, parts.measure, display,
                   metrics)  # fmt: skip
    try:
        with display, stop_on_signals() as asked:
            loop.train(run, asked.is_set)
    finally:
        metrics.close()
