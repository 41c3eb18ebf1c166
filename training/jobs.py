"""A job is what vf-train was asked for: checked, made into a run, and done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from curation.commands import say
from curation.places import check_lasting, check_writable, dataset_at, held
from curation.settings import ConfigError, counted
from model import SpaceTimeUNet
from model.latents import Codec
from model.texts import TextEncoder
from training.checkpoints import copies
from training.checkpoints.folders import card_of, compare, latest, make_card, sweep, write_whole
from training.commands import stop_on_signals
from training.config import Config
from training.data.batches import Batches, bucket_table
from training.data.rows import Rows, open_rows, parse_data
from training.data.shapes import shapes_of
from training.evaluation.in_training import Watch, watch
from training.latents.files import open_latents
from training.learning import loop
from training.learning.loggers import check_logger, make_logger
from training.learning.losses import Objective
from training.learning.meters import Meter, peak_of
from training.learning.profiles import Profiles
from training.learning.reports import Display, Metrics, Reports
from training.learning.signals import Signals
from training.learning.starts import (
    DTYPES,
    Start,
    as_precise,
    choose_trained,
    device_of,
    make_codec,
    make_start,
    make_text,
    schedule_of,
)
from training.learning.steps import State, make_state
from training.parallel import ALONE, Team


@dataclass(frozen=True)
class Job:
    """What a `vf-train` was asked for; every worker is given the same."""

    config: Config
    data: list[str]
    output: Path
    init: str | None
    allowed: list[str]


def dry_run(job: Job, console: Console, workers: int) -> None:
    """Tell what a run would be and check all that it checks; its folder stays as it is."""
    say(console, as_yaml(job.config))
    check_output(job.output)
    if job.config.checkpoint_to:
        dataset_at(job.config.checkpoint_to)
    datasets = open_all(job.data, job.config, console, workers)
    parts = check(job, datasets, console, device_of(job.config), workers)
    choose_trained(parts.start.unet, job.config)
    say(console, str(parts.start))


def check_workers(job: Job, workers: int | None) -> None:
    """Refuse what cannot be split, and an output that would be lost."""
    if workers and job.config.batch_size < workers:
        raise ConfigError(
            f"--workers {workers}: a batch of {job.config.batch_size} gives some of them nothing "
            f"to do; use --workers {job.config.batch_size}, or --set batch_size="
        )
    shared = job.config.shard_workers
    if shared and workers and workers % shared:
        raise ConfigError(
            f"--workers {workers}: shard_workers={shared} share a copy; give a multiple of it"
        )
    check_lasting(str(job.output))


def work(
    job: Job,
    console: Console,
    team: Team = ALONE,
    stop: Callable[[], bool] | None = None,
    device: torch.device | None = None,
) -> None:
    """Train: all of it in this process, or the part of one rank of a team."""
    fetch(job, console, team)
    datasets = open_all(job.data, job.config, console, team.world, job.output, team)
    run = prepare(job, datasets, console, team, device or device_of(job.config))
    with run.reports or nullcontext(), stop_on_signals() as asked, run.state.saver:
        loop.train(run, stop or asked.is_set)


def fetch(job: Job, console: Console, team: Team) -> None:
    """Get the latest checkpoint of checkpoint_to for a run that has none; the first rank does."""
    if job.config.checkpoint_to and team.first:
        try:
            name = copies.fetch(job.output, job.config.checkpoint_to)
        except OSError as error:
            raise ConfigError(f"checkpoint_to: {error}; give a place that can be read") from None
        if name:
            say(console, f"fetched {name} from checkpoint_to")
    team.gather(None)


def as_yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def open_all(
    data: list[str],
    config: Config,
    console: Console,
    workers: int,
    run: Path | None = None,
    team: Team = ALONE,
) -> list[Rows]:
    """Index every dataset and say what is trained on, in which shapes.

    run: where an index may be kept; None for a look alone.
    """
    memory_bytes = config.shuffle_memory_gb * 1e9
    shapes = shapes_of(config)
    out = []
    for location, name, weight in parse_data(data):
        out_of = config.held_out, config.held_out_clips
        rows = open_rows(location, name, weight, shapes, memory_bytes, *out_of, run=run, team=team)
        if config.precomputed:
            rows.use(open_latents(rows.dataset, config))
        say(console, described(rows))
        out.append(rows)
    for line in bucket_table(out, config, workers):
        say(console, line)
    return out


def described(rows: Rows) -> str:
    """How many rows of a dataset are trained on, and what becomes of the others."""
    told = [counted(rows.num_trained, "clips")]
    only = f", {len(rows.held_out)} of them evaluated"
    told.append(
        f"{rows.num_held_out} of held-out videos" + only * (len(rows.held_out) < rows.num_held_out)
        if rows.num_held_out
        else "no video held out, so no held-out loss"
    )
    bare = int(rows.index.group_uncaptioned.sum())
    if bare:
        told.append(f"{bare} of all {rows.index.num_rows} without caption: the empty prompt")
    told += [f"{rows.too_short} too short"] * bool(rows.too_short)
    told += [f"{rows.num_enlarged} enlarged"] * bool(rows.num_enlarged)
    return f"{rows.name}: {', '.join(told)}"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, perhaps one that has not begun."""
    begun = (folder / "card.json").exists()
    return folder.is_dir() and (begun or all(p.name.startswith(".") for p in folder.iterdir()))


def check_output(run: Path) -> None:
    """Refuse an output that is another thing than a run."""
    if run.exists() and not is_run(run):
        raise ConfigError(f"--output {run} is not a run: give a new folder or an earlier run")


@contextmanager
def only_trainer(run: Path) -> Iterator[None]:
    """Hold the run folder; ConfigError if it is another thing, or another trainer has it."""
    check_output(run)
    with held(run, f"--output {run}: another vf-train is writing there"):
        yield


@dataclass(frozen=True)
class Parts:
    """What a run is made of, checked: none of it has changed the folder of the run."""

    start: Start
    card: dict[str, Any]
    codec: Codec
    text: TextEncoder
    checkpoint: Path | None
    watch: Watch | None


def check(
    job: Job, datasets: list[Rows], console: Console, device: torch.device, workers: int
) -> Parts:
    """Read and build everything, from the latest checkpoint if there is one; raises ConfigError."""
    config, folder = job.config, job.output
    check_logger(config)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    checkpoint = latest(folder)
    start = resumed_start(checkpoint, config) if checkpoint else make_start(config, job.init)
    facts = facts_of(datasets)
    card = make_card(config, facts, job.init, start.noise, start.draw_seed, device, workers)
    if checkpoint:
        for change in compare(card_of(checkpoint), card, job.allowed):
            say(console, f"changed: {change}", "yellow")
    watched = watch(config, datasets[0], folder, device)
    if watched:
        say(console, str(watched))
    lazy = bool(config.precomputed) and not watched
    codec, text = make_codec(config, device, lazy), make_text(config, device, lazy)
    check_fit(start.unet, config, codec, text)
    for rows in datasets if config.train_signal else []:
        check_writable(rows.dataset)
    return Parts(start, card, codec, text, checkpoint, watched)


def prepare(
    job: Job, datasets: list[Rows], console: Console, team: Team, device: torch.device
) -> loop.Run:
    """Check a job and make it into a run."""
    config, folder = job.config, job.output
    parts = check(job, datasets, console, device, team.world)
    start, card, checkpoint = parts.start, parts.card, parts.checkpoint
    trained = choose_trained(start.unet, config)
    sizes = sum(p.numel() for p in start.unet.parameters()), trained
    state = make_state(start.unet, config, device, team)
    if checkpoint:
        state.load(checkpoint)
    tell_start(start, state, sizes, device, console)
    team.gather(None)  # all have read what the first one now writes
    if team.first:
        write_facts(folder, config, card, start)
    dtype, schedule = DTYPES[config.precision], schedule_of(start.noise)
    empty = next((rows.latents.empty for rows in datasets if rows.latents), None)
    return loop.Run(
        folder=folder,
        config=config,
        card=card,
        state=state,
        objective=Objective(config, schedule, parts.codec, parts.text, device, dtype, empty),
        batches=Batches(datasets, config, team, pinned=device.type == "cuda", seed=start.draw_seed),
        reports=reports_of(job, state, bool(checkpoint), device, console) if team.first else None,
        meter=Meter(config, start.unet.config, peak_of(config, device), team.world),
        watch=parts.watch,
        signals=Signals.load(folder, state.step) if config.train_signal and team.first else None,
    )


def reports_of(
    job: Job, state: State, resumed: bool, device: torch.device, console: Console
) -> Reports:
    """All that a run tells, from the step on where it begins."""
    config, folder, step = job.config, job.output, state.step
    display = Display(console, step, config.max_steps)
    profiles = None
    if config.profile_steps:
        profiles = Profiles(folder, config.profile_steps, device, display.say)
    metrics = Metrics(folder, step if resumed else -1)
    return Reports(folder, display, metrics, make_logger(config, folder, step), profiles)


def tell_start(
    start: Start,
    state: State,
    sizes: tuple[int, int],
    device: torch.device,
    console: Console,
) -> None:
    """Say where a run begins, how much of it is trained, and by whom."""
    say(console, str(start))
    if state.step:
        say(console, f"going on from step {state.step}")
    total, trained = (size / 1e6 for size in sizes)
    team = f" with {state.team.world} workers" if state.team.world > 1 else ""
    say(console, f"{total:.1f} M parameters, {trained:.1f} M trained, on {device}{team}")


def write_facts(folder: Path, config: Config, card: dict[str, Any], start: Start) -> None:
    """What a run is, beside what it makes; and away with what a killed save left."""
    sweep(folder)
    write_whole(folder / "card.json", json.dumps(card, indent=1))  # first: it makes this a run
    write_whole(folder / "start.json", json.dumps(start.report, indent=1))
    write_whole(folder / "config.yaml", as_yaml(config))


def resumed_start(checkpoint: Path, config: Config) -> Start:
    """The U-Net of a checkpoint; its weights come with its state."""
    card = card_of(checkpoint)
    unet = SpaceTimeUNet.from_config(SpaceTimeUNet.load_config(str(checkpoint / "unet")))
    report = json.loads((checkpoint.parents[1] / "start.json").read_text())
    as_precise(unet, config)
    return Start(unet, card["noise"], report, card.get("draw_seed", config.seed))


def check_fit(unet: SpaceTimeUNet, config: Config, codec: Any, text: Any) -> None:
    """Refuse a U-Net that was made for other latents or another text encoder."""
    takes = {"latents": unet.config["in_channels"], "text": unet.config["cross_attention_dim"]}
    gives = {"latents": codec.channels, "text": text.width}
    for key in takes:
        if takes[key] != gives[key]:
            raise ConfigError(
                f"{key}={getattr(config, key)} has {gives[key]} channels and the U-Net takes "
                f"{takes[key]}; use --set {key}= or another start"
            )
    if unet.config["fps_conditioning"] and config.stride:
        raise ConfigError("unet.fps_conditioning needs one frame rate: use fps, leave out stride")


def facts_of(datasets: list[Rows]) -> dict[str, Any]:
    """What the card says of the data; where it lies is told and not compared."""
    return {
        rows.name: {
            "location": rows.dataset.uri,
            "weight": rows.weight,
            "fingerprint": rows.fingerprint,
            "clips": rows.num_trained,
            "held_out": rows.num_held_out,
        }
        for rows in datasets
    }
