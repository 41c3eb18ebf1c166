"""`vf-train --stages FILE`: several runs, each from where the one before it ended.

    preset: small
    data: [runs/web]
    init: sd:DIR                      # of the first stage; none: at random
    set: [batch_size=64]              # of all stages
    stages:
      images: {set: [num_frames=1, max_steps=10000], data: [runs/photos]}
      small:  {set: [num_frames=8, max_steps=5000]}
      whole:  {set: [width=344, height=192, max_steps=20000], data: [runs/clean]}

Each stage is an ordinary run in OUTPUT/NAME, which every command takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from rich.console import Console

from curation.commands import say
from curation.settings import ConfigError
from training import jobs
from training.checkpoints.folders import latest, write_whole
from training.config import FOLDER_NAME, from_yaml, load_config
from training.learning.starts import with_weights_of

RECORD = "stages.json"  # in the output: when each stage began and ended


class Stage(BaseModel):
    """What is a stage's own: its keys, and its data where they are not those of all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    set: list[str] = []
    data: list[str] = []


class Stages(BaseModel):
    """Runs in the order in which they are trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str
    data: list[str] = []
    init: str | None = None
    set: list[str] = []
    stages: dict[str, Stage] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def are_folders(cls, stages: dict[str, Stage]) -> dict[str, Stage]:
        for name in stages:
            if not FOLDER_NAME.fullmatch(name):
                raise ValueError(f"stage {name!r} is to be a folder: use letters, digits, _ . -")
        return stages


def load_stages(path: Path) -> Stages:
    """The stages of a YAML file; ConfigError with the first problem."""
    return from_yaml(path, Stages, "preset, data and stages (docs/training.md)")


def plan(stages: Stages, output: Path, allowed: list[str]) -> dict[str, jobs.Job]:
    """The job of each stage; ConfigError for one that vf-train would refuse."""
    found: dict[str, jobs.Job] = {}
    init = stages.init
    for name, stage in stages.stages.items():
        data = stage.data or stages.data
        if not data:
            raise ConfigError(f"stage {name} has no data: give it data, or all stages")
        try:
            config = load_config(stages.preset, [*stages.set, *stage.set])
        except ConfigError as error:
            raise ConfigError(f"stage {name}: {error}") from None
        # Autoencoder and text encoder are those that the first stage began with.
        config = with_weights_of(config, stages.init)
        found[name] = jobs.Job(config, data, output / name, init, allowed)
        init = str(output / name)
    return found


def is_done(job: jobs.Job) -> bool:
    checkpoint = latest(job.output)
    return checkpoint is not None and checkpoint.name == f"step-{job.config.max_steps:08d}"


def check(planned: dict[str, jobs.Job], workers: int) -> None:
    """What vf-train checks of data and folders, of every stage before the first one runs."""
    for name, job in planned.items():
        try:
            jobs.check_workers(job, workers)
            jobs.check_output(job.output)
            jobs.open_all(job.data, job.config, Console(quiet=True), workers)
        except ConfigError as error:
            raise ConfigError(f"stage {name}: {error}") from None


def tell(planned: dict[str, jobs.Job], console: Console, workers: int) -> None:
    """What each stage would be; the start of one that waits for another is not there yet."""
    for number, (name, job) in enumerate(planned.items()):
        say(console, f"stage {name}: to step {job.config.max_steps}", "bold")
        if number == 0 or latest(Path(str(job.init))):
            jobs.dry_run(job, console, workers)
        else:
            say(console, jobs.as_yaml(job.config))
            jobs.open_all(job.data, job.config, console, workers)
            say(console, f"starts from what {job.init} will be")


def do(
    planned: dict[str, jobs.Job], output: Path, run: Callable[[jobs.Job], None], console: Console
) -> None:
    """Train what is left, stage by stage; stages.json has when each began and ended."""
    record = read_record(output)
    for number, (name, job) in enumerate(planned.items(), start=1):
        if is_done(job):
            say(console, f"stage {number} of {len(planned)}, {name}: done before")
            continue
        say(console, f"stage {number} of {len(planned)}, {name}: to step {job.config.max_steps}")
        record.setdefault(name, {"init": job.init, "began": now()})
        write_record(output, record)
        run(job)
        record[name] |= {"ended": now(), "steps": job.config.max_steps}
        write_record(output, record)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_record(output: Path) -> dict[str, Any]:
    path = output / RECORD
    return json.loads(path.read_text()) if path.exists() else {}


def write_record(output: Path, record: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / RECORD, json.dumps(record, indent=1))
