#!/usr/bin/env python3
"""Curate videos into a dataset folder.

python curation/run.py                                   the sample videos of this repository
vf-curate FOLDER --pipeline web --output runs/mine
vf-curate urls.txt --pipeline web --set rules.resolution.min=1080 --dry-run
vf-curate --list                                         pipelines, recipes, rules, keys
ray job submit --working-dir . -- python curation/run.py --output s3://bucket/mine
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

if not __package__:
    # Run by path, Python puts curation/ first on sys.path; what belongs there is its parent.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from curation.commands import (
    JSON,
    QUIET,
    Command,
    command_app,
    examples,
    screen,
    told_errors,
    without_stdin,
)
from curation.configs import default_config

app = command_app()


@app.command(cls=Command, epilog=examples(__doc__))
def curate(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, lists (.txt .csv .jsonl .json .parquet), URLs; also in object "
            "stores: s3://bucket/folder."
        ),
    ] = None,
    pipeline: Annotated[str, typer.Option(help="A pipeline of the config.")] = "demo",
    config: Annotated[
        Path | None,
        typer.Option(help="Where pipelines are; default: pipelines.yaml here, else ours."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Dataset folder or URI; default runs/PIPELINE.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value inside the pipeline; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N sources.")] = None,
    retry: Annotated[
        list[str] | None,
        typer.Option(help="Try again what failed so, such as encode, or all; may be repeated."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of lists under other names: url=link,caption=text."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")
    ] = False,
    quiet: Annotated[bool, QUIET] = False,
    as_json: Annotated[bool, JSON] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Print pipelines, recipes, rules and keys, and stop.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to join, or local: a new one here. Default: RAY_ADDRESS; else none "
            "for a few videos, a new one for more."
        ),
    ] = None,
) -> None:
    """Curate videos into captioned clips in Parquet shards. The same command again resumes."""
    if list_:
        show_list(config)
        return
    from curation.flow import plans

    plans.curate(
        sources or [],
        pipeline,
        config or default_config(),
        output,
        set_ or [],
        limit,
        retry or [],
        dry_run,
        ray_address,
        time.time(),
        columns,
        quiet=quiet,
        as_json=as_json,
    )


def show_list(config: Path | None) -> None:
    from curation.offered import show_offered

    with told_errors():
        show_offered(config or default_config(), screen())


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
