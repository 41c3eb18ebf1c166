#!/usr/bin/env python3
"""Train a grid of arms and seeds on equal budgets, and write the table of them.

vf-ablate examples/swap_grid.yaml --data runs/demo --output runs/swap
vf-ablate examples/swap_grid.yaml --data runs/demo --output runs/swap --dry-run
vf-ablate grid.yaml --data hd:0.7 --data webvid:0.3 --output DIR --workers 0
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation.commands import Command, command_app, examples, say, without_stdin

if TYPE_CHECKING:
    from rich.console import Console

    from training.evaluation.ablations import Grid, Planned
    from training.jobs import Job

app = command_app()
GRID = "resolved-grid.yaml"  # in the output: what it was asked for


@app.command(cls=Command, epilog=examples(__doc__))
def ablate(
    grid: Annotated[Path, typer.Argument(help="YAML: base, arms and seeds (docs/ablation.md).")],
    data: Annotated[
        list[str],
        typer.Option(help="DATASET or DATASET:WEIGHT, a folder or URI; may be repeated."),
    ],
    output: Annotated[
        Path, typer.Option(help="A folder for ARM/seed-N, runs of vf-train, and ablation.json.")
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Runs at once through Ray, a CPU or GPU each. Default: all; 0: no Ray."
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else a new one here."),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(help="A key of card.json that may differ from the runs so far."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every run, print what is left, and stop.")
    ] = False,
) -> None:
    """Train every arm with every seed. The same command again does what is left."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as vf-train
    from training.commands import guarded
    from training.evaluation.ablations import load_grid, plan

    def body(console: Console) -> None:
        found = load_grid(grid)
        planned = plan(found, output.absolute())
        jobs = [as_job(run, data, allow_change or []) for run in planned]
        check(planned, jobs, output)
        left = [job for run, job in zip(planned, jobs, strict=True) if not run.done]
        say(console, f"{len(found.arms)} arms x {len(found.seeds)} seeds: {len(left)} runs left")
        if dry_run:
            return
        do(found, planned, left, data, output, workers, ray_address, console)

    guarded(body)


def as_job(run: Planned, data: list[str], allowed: list[str]) -> Job:
    from training.jobs import Job

    return Job(run.config, data, run.folder, None, allowed)


def check(planned: list[Planned], runs: list[Job], output: Path) -> None:
    """What vf-train checks, of every arm and every run that has begun, before the first one runs;
    raises ConfigError."""
    from rich.console import Console

    from curation.places import check_lasting
    from curation.settings import ConfigError
    from training import jobs
    from training.checkpoints.folders import latest
    from training.learning.starts import choose_trained, device_of

    check_lasting(str(output))
    if output.exists() and not (output / GRID).exists() and any(output.iterdir()):
        raise ConfigError(f"--output {output} holds something else: give a new folder")
    quiet, seen = Console(quiet=True), set()
    for run, job in zip(planned, runs, strict=True):
        if run.arm in seen and latest(run.folder) is None:
            continue
        seen.add(run.arm)
        try:
            jobs.check_output(run.folder)
            datasets = jobs.open_all(job.data, job.config, quiet, 1)
            parts = jobs.check(job, datasets, quiet, device_of(job.config), 1)
            choose_trained(parts.start.unet, job.config)
        except ConfigError as error:
            raise ConfigError(f"{run}: {error}") from None
        if not any(rows.held_out for rows in datasets):
            raise ConfigError("no clip is held out, so there is no loss to compare: set held_out")


def do(
    grid: Grid,
    planned: list[Planned],
    left: list[Job],
    data: list[str],
    output: Path,
    workers: int | None,
    ray_address: str | None,
    console: Console,
) -> None:
    """Do the runs that are left, then write and print the table."""
    import json

    import yaml

    from curation.places import held
    from training.checkpoints.folders import write_whole
    from training.evaluation import ablations

    with held(output, f"--output {output}: another vf-ablate is writing there"):
        write_whole(output / GRID, yaml.safe_dump(grid.model_dump(), sort_keys=False))
        if left and workers == 0:
            run_here(left, console)
        elif left:
            from training.ray_grids import run_on_ray

            run_on_ray(left, workers, ray_address, console)
        outcomes = [ablations.read(run) for run in planned]
        result = ablations.as_json(grid, data, outcomes)
        table = ablations.markdown(result["arms"], planned[0].config.max_steps)
        write_whole(output / "ablation.json", json.dumps(result, indent=1))
        write_whole(output / "ablation.md", table)
    say(console, f"\n{table}\n{output / 'ablation.json'}")


def run_here(left: list[Job], console: Console) -> None:
    """One run after the other, in this process."""
    from training import jobs

    for n, job in enumerate(left, start=1):
        say(console, f"run {n} of {len(left)}: {job.output}")
        with jobs.only_trainer(job.output):
            jobs.work(job, console)


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
