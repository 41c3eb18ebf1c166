#!/usr/bin/env python3
"""Write the latents and text states of a dataset, so that training needs neither encoder.

vf-precompute runs/demo --preset tiny
vf-precompute runs/demo --preset tiny --dry-run
vf-precompute s3://bucket/hd --preset videofactory --set windows=4 --workers 8
"""

from __future__ import annotations

from typing import Annotated

import typer

from curation.commands import Command, command_app, examples, without_stdin

app = command_app()


@app.command(cls=Command, epilog=examples(__doc__))
def precompute(
    dataset: Annotated[str, typer.Argument(help="A dataset folder or URI.")],
    preset: Annotated[str, typer.Option(help="tiny, small or videofactory.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value inside the preset; may be repeated."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder or URI to write to; default DATASET/latents.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Default: one per GPU, without any one per CPU.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else a new one here."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Precompute latents and text states on Ray. The same command again does what is left."""
    from training.latents import driver

    driver.precompute(dataset, preset, set_ or [], output, workers, ray_address, dry_run)


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
