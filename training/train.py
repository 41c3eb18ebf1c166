#!/usr/bin/env python3
"""Train the video model on a dataset folder.

python -m training.train --preset tiny --data runs/demo --output runs/tiny
python -m training.train --preset videofactory --data hd:0.7 --data webvid:0.3 --output RUN
python -m training.train --preset small --data clean --output tuned --init RUN
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from curation.commands import without_stdin

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
EXAMPLE = "Example: vf-train --preset tiny --data runs/demo --output runs/tiny"


@app.command(epilog=EXAMPLE)
def train(
    preset: Annotated[str, typer.Option(help="tiny, small or videofactory.")],
    data: Annotated[
        list[str],
        typer.Option(help="DATASET or DATASET:WEIGHT, a folder or URI; may be repeated."),
    ],
    output: Annotated[Path, typer.Option(help="The RUN folder; made, or gone on with.")],
    init: Annotated[
        str | None,
        typer.Option(help="Start from an earlier RUN, sd:PATH or modelscope:PATH."),
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
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else a new one here."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the resolved config and the shape of each clip, and stop.")
    ] = False,
) -> None:
    """Train a model on curated shards. The same command again resumes."""
    # On a shared machine threads that spin while they wait cost four times the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

    from training import jobs

    jobs.train(
        preset, data, output, init, set_ or [], allow_change or [], dry_run, workers, ray_address
    )


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
