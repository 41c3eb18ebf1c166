"""The body of vf-train: check what the user asked for, do it, tell what came."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from model import SpaceTimeUNet
from training import loops
from training.batches import Batches, TooManyBadError, sampling_of
from training.checkpoints import compare, latest, make_card, sweep
from training.configs import Config, ConfigError, load_config
from training.losses import Objective
from training.reports import Board, Display, Metrics
from training.rows import Rows, open_rows, parse_data
from training.starts import (
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

USAGE, FAILED_RUN = 2, 1


def guarded(body: Callable[[Console], None]) -> None:
    """Run a command's body; a user's mistake exits 2 and a run that failed 1, without traceback."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        body(Console(soft_wrap=not sys.stdout.isatty()))
    except ConfigError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise SystemExit(USAGE) from None
    except (loops.DivergedError, TooManyBadError) as error:
        errors.print(f"the run failed: {error}", style="red", markup=False, highlight=False)
        raise SystemExit(FAILED_RUN) from None
    except loops.StoppedError as error:
        errors.print(f"{error}; the same command goes on from there", markup=False)
        raise SystemExit(FAILED_RUN) from None
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from the last checkpoint")
        raise SystemExit(FAILED_RUN) from None


def train(
    preset: str,
    data: list[str],
    output: Path,
    init: str | None,
    overrides: list[str],
    allowed: list[str],
    dry_run: bool,
) -> None:
    """The body of `vf-train`."""

    def body(console: Console) -> None:
        config = load_config(preset, overrides)
        if dry_run:
            console.print(as_yaml(config), markup=False, highlight=False)
            return
        datasets = open_all(data, config, console)
        with only_trainer(output):
            run = prepare(config, datasets, output, init, allowed, console)
            try:
                loops.train(run)
            finally:
                run.metrics.close()
                run.board.close()
        console.print(
            f"{run.state.step} steps done; sample it: "
            f'vf-sample {output} --prompt "..." --output out.mp4',
            markup=False,
            highlight=False,
        )

    guarded(body)


def as_yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def open_all(data: list[str], config: Config, console: Console) -> list[Rows]:
    """Index every dataset and say what is trained on."""
    keep = 2 * config.shuffle_window
    out = []
    for location, name, weight in parse_data(data):
        rows = open_rows(location, name, weight, sampling_of(config), keep, config.held_out)
        short = f", {rows.too_short} too short" if rows.too_short else ""
        console.print(
            f"{name}: {rows.num_trained} clips, {len(rows.held_out)} held out{short}",
            markup=False,
            highlight=False,
        )
        out.append(rows)
    return out


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, perhaps one that has not begun."""
    begun = (folder / "card.json").exists()
    return folder.is_dir() and (begun or all(p.name == ".lock" for p in folder.iterdir()))


@contextmanager
def only_trainer(run: Path) -> Iterator[None]:
    """Hold the run folder; ConfigError if it is another thing, or another trainer has it."""
    if run.exists() and not is_run(run):
        raise ConfigError(f"--output {run} is not a run: give a new folder or an earlier run")
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--output {run}: another vf-train is writing there; wait for it or stop it"
            ) from None
        yield


def prepare(
    config: Config,
    datasets: list[Rows],
    folder: Path,
    init: str | None,
    allowed: list[str],
    console: Console,
) -> loops.Run:
    """Build everything, from the latest checkpoint if there is one."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = device_of(config)
    checkpoint = latest(folder)
    start = resumed_start(checkpoint, config) if checkpoint else make_start(config, init)
    card = make_card(config, facts_of(datasets), init, start.noise, device)
    if checkpoint:
        before = json.loads((checkpoint / "card.json").read_text())
        for change in compare(before, card, allowed):
            console.print(f"changed: {change}", style="yellow", markup=False)
    codec, text = make_codec(config, device), make_text(config, device)
    check_fit(start.unet, config, codec, text)
    trained = choose_trained(start.unet, config.trainable)
    state = loops.make_state(start.unet, config, device)
    if checkpoint:
        state.load(checkpoint)
    tell_start(start, state.step, trained, device, console)
    write_facts(folder, config, card, start)
    dtype, schedule = DTYPES[config.precision], schedule_of(start.noise)
    return loops.Run(
        folder=folder,
        config=config,
        card=card,
        state=state,
        objective=Objective(config, schedule, codec, text, device, dtype),
        batches=Batches(datasets, config),
        display=Display(console, state.step, config.max_steps),
        metrics=Metrics(folder, state.step if checkpoint else -1),
        board=Board(folder, state.step),
    )


def tell_start(
    start: Start, step: int, trained: int, device: torch.device, console: Console
) -> None:
    """Say where a run begins and how much of it is trained."""
    total = sum(p.numel() for p in start.unet.parameters())
    console.print(str(start), markup=False, highlight=False)
    if step:
        console.print(f"going on from step {step}", highlight=False)
    console.print(
        f"{total / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained, on {device}",
        highlight=False,
    )


def write_facts(folder: Path, config: Config, card: dict[str, Any], start: Start) -> None:
    """What a run is, beside what it makes; and away with what a killed save left."""
    sweep(folder)
    (folder / "start.json").write_text(json.dumps(start.report, indent=1))
    (folder / "card.json").write_text(json.dumps(card, indent=1))
    (folder / "config.yaml").write_text(as_yaml(config))


def resumed_start(checkpoint: Path, config: Config) -> Start:
    """The U-Net of a checkpoint; its weights come with its state."""
    card = json.loads((checkpoint / "card.json").read_text())
    unet = SpaceTimeUNet.from_config(SpaceTimeUNet.load_config(str(checkpoint / "unet")))
    report = json.loads((checkpoint.parents[1] / "start.json").read_text())
    as_precise(unet, config)
    return Start(unet, card["noise"], report)


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
            "held_out": len(rows.held_out),
        }
        for rows in datasets
    }
