"""Prove that a dataset folder is what its manifests say: every row decodes and adds up.

vf-validate runs/demo
vf-validate s3://bucket/mine --no-decode
vf-validate runs/mine --repair
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import track

from curation.commands import (
    JSON,
    QUIET,
    Command,
    command_app,
    examples,
    say,
    screen,
    told_errors,
    without_stdin,
)
from curation.places import dataset_at
from curation.settings import counted
from curation.shards import Dataset
from curation.takedown.tombstones import read
from curation.validation.commits import Problem, check_commit, check_dataset, read_manifests
from curation.validation.repairs import Repair
from curation.validation.repairs import repair as mend

app = command_app()
MAX_SHOWN = 20


@app.command(cls=Command, epilog=examples(__doc__))
def validate(
    dataset: Annotated[str, typer.Argument(help="A dataset folder or URI.")],
    decode: Annotated[bool, typer.Option(help="Decode every clip, not only count rows.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    quiet: Annotated[bool, QUIET] = False,
    as_json: Annotated[bool, JSON] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take out what is broken; a rerun does it again.")
    ] = False,
) -> None:
    """Prove that every row of a dataset decodes and adds up. Exit code 1 when one does not."""
    with told_errors(mistakes=(OSError, pa.ArrowException)):
        data = dataset_at(dataset).require(emptied=True)
        console = screen(quiet=quiet or as_json)
        manifests, problems = examine(data, decode, workers, quiet=quiet or as_json)
        num_gone = 0 if problems else read(data).number("video")
        tell(manifests, problems, decode, num_gone, console)
        if problems and repair:
            tell_repair(data, mend(data, problems), console)
        elif problems:
            say(console, f"to do it again: vf-validate {data.uri} --repair, then the same run")
        if as_json:
            typer.echo(json.dumps(facts_of(manifests, problems)))
    if problems and not repair:
        raise typer.Exit(1)


def facts_of(manifests: list[dict[str, Any]], problems: list[Problem]) -> dict[str, Any]:
    """What was found, for --json."""
    return {
        "commits": len(manifests),
        "videos": sum(len(each["video_ids"]) for each in manifests),
        "clips": sum(each["num_clips"] for each in manifests),
        "problems": [str(problem) for problem in problems],
    }


def examine(
    dataset: Dataset, decode: bool, workers: int, *, quiet: bool = False
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The manifests of a dataset that can be read, and everything that is wrong with it."""
    manifests, problems = read_manifests(dataset)
    problems += check_dataset(dataset, manifests)
    check = partial(check_commit, dataset, decode=decode)
    with ExitStack() as stack:
        found: Iterator[list[Problem]] = map(check, manifests)
        workers = min(workers, len(manifests))  # a process takes half a second to start
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            found = stack.enter_context(pool).map(check, manifests)
        bar = Console(stderr=True)
        for each in track(
            found, "validating", len(manifests), console=bar, transient=True, disable=quiet
        ):
            problems += each
    return manifests, problems


def tell(
    manifests: list[dict[str, Any]],
    problems: list[Problem],
    decode: bool,
    num_gone: int,
    console: Console,
) -> None:
    """Print the first problems, or what was found well; `num_gone` videos were taken down."""
    for problem in problems[:MAX_SHOWN]:
        say(console, str(problem), "red")
    if problems:
        say(
            console,
            f"{counted(len(problems), 'problems')} in {counted(len(manifests), 'commits')}",
            "bold red",
        )
        return
    clips, seconds = (sum(m.get(k, 0) for m in manifests) for k in ("num_clips", "duration_s"))
    verb = "decoded" if decode else "counted"
    say(
        console,
        f"{counted(len(manifests), 'commits')}, {counted(clips, 'clips')} ({seconds / 60:.1f} min) "
        f"{verb}, "
        f"{counted(sum(len(m['video_ids']) for m in manifests), 'videos')} add up"
        + (f"; taken down, and gone: {counted(num_gone, 'videos')}" if num_gone else ""),
        "bold green",
    )


def tell_repair(dataset: Dataset, done: Repair, console: Console) -> None:
    """Print what was taken out, and how it is done again."""
    parts = [
        counted(len(done.commits), "commits") * bool(done.commits),
        f"{counted(len(done.video_ids), 'videos')} of others" * bool(done.video_ids),
        f"{counted(len(done.files), 'files')} of none" * bool(done.files),
    ]
    say(console, f"taken out of {dataset.uri}: {', '.join(filter(None, parts)) or 'nothing'}")
    say(console, "the command that made it does them again; what is well stays as it is")


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
