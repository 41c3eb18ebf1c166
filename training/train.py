#!/usr/bin/env python3
"""Train the video model on a dataset folder.

vf-train --preset tiny --data runs/demo --output runs/tiny
vf-train --preset videofactory --data hd:0.7 --data webvid:0.3 --output RUN
vf-train --preset small --data clean --output tuned --init RUN
vf-train --stage upsampler --preset small --data clean --output larger --init RUN
vf-train --stage sr --preset tiny --data runs/demo --output runs/sr
vf-train --stages examples/stages.yaml --output runs/staged
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation.commands import Command, command_app, examples, say, without_stdin

if TYPE_CHECKING:
    from rich.console import Console

    from training.jobs import Job

app = command_app()
STAGES = ("base", "upsampler", "sr")


@app.command(cls=Command, epilog=examples(__doc__))
def train(
    preset: Annotated[
        str | None, typer.Option(help="tiny, small or videofactory; of sr: tiny, x2plus.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="DATASET or DATASET:WEIGHT, a folder or URI; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The RUN folder; made, or gone on with.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from an earlier RUN, sd:PATH or modelscope:PATH; of sr: RUN or a file."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value inside the preset; may be repeated."),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(help="A key of card.json that may differ from the run so far."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Train in N processes through Ray. Default: this one, no Ray."),
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(min=0, help="With --workers: times to begin again when one is lost."),
    ] = 3,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else a new one here."),
    ] = None,
    stage: Annotated[
        str,
        typer.Option(
            help="base: the video model. upsampler: doubles the sides of what it makes. sr: "
            "super-resolution (docs/cascade.md)."
        ),
    ] = "base",
    stages: Annotated[
        Path | None,
        typer.Option(
            help="YAML of several runs, each from where the last ended, in the place of --preset, "
            "--data, --init and --set (docs/training.md)."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check all that a run checks, print its config and shapes, and stop."
        ),
    ] = False,
) -> None:
    """Train a model on curated shards. The same command again resumes."""
    # On a shared machine threads that spin while they wait cost four times the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    from curation.settings import ConfigError
    from training import jobs
    from training.commands import guarded
    from training.config import load_config
    from training.learning.starts import with_weights_of

    def body(console: Console) -> None:
        if output is None:
            raise ConfigError("--output is missing: the RUN folder")
        run = partial(do, console, workers, ray_address, restarts)
        if stages:
            check_alone(stages, preset, data, init, set_, stage)
            do_stages(stages, output, allow_change or [], console, workers, run, dry_run)
            return
        if preset is None or not data:
            raise ConfigError("give --preset and --data, or --stages FILE")
        check_stage(stage)
        if stage == "sr":
            from training.superresolution import jobs as sr
            from training.superresolution.config import load_config as load_sr_config

            settings = load_sr_config(preset, set_ or [])
            sr.do(
                sr.Job(settings, data, output, init, allow_change or []), console, workers, dry_run
            )
            return
        config = with_weights_of(load_config(preset, set_ or [], stage), init)
        job = jobs.Job(config, data, output, init, allow_change or [])
        if dry_run:
            jobs.check_workers(job, workers)
            jobs.dry_run(job, console, workers or 1)
        else:
            run(job)

    guarded(body)


def check_stage(stage: str) -> None:
    from curation.settings import ConfigError, nearest

    if stage not in STAGES:
        raise ConfigError(f"unknown --stage {stage!r}{nearest(stage, STAGES)}")


def check_alone(stages: Path, *others: object) -> None:
    """Refuse what --stages has in its file."""
    from curation.settings import ConfigError

    if any(each not in (None, [], "base") for each in others):
        raise ConfigError(
            f"--stages {stages} has preset, data, init and set of every stage in it; leave "
            "--preset, --data, --init, --set and --stage out"
        )


def do_stages(
    file: Path,
    output: Path,
    allowed: list[str],
    console: Console,
    workers: int | None,
    run: Callable[[Job], None],
    is_dry: bool,
) -> None:
    """Check all stages, then tell what they would be or do what is left of them."""
    from training.learning import stages

    planned = stages.plan(stages.load_stages(file), output, allowed)
    stages.check(planned, workers or 1)
    if is_dry:
        stages.tell(planned, console, workers or 1)
        return
    stages.do(planned, output, run, console)


def do(
    console: Console, workers: int | None, ray_address: str | None, restarts: int, job: Job
) -> None:
    """Check a job and do it, here or in workers."""
    from training import jobs
    from training.commands import how_to_sample, interrupt_on_signals

    jobs.check_workers(job, workers)
    with jobs.only_trainer(job.output), interrupt_on_signals():
        if workers:
            from training.ray_workers import launch

            launch(job, workers, ray_address, console, restarts)
        else:
            jobs.work(job, console)
    say(
        console, f"{job.config.max_steps} steps done; {how_to_sample(job.output, job.config.stage)}"
    )


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
