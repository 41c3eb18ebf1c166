"""The cleaned subset of a dataset: score what is missing, decide, write what is kept.

vf-clean runs/demo --recipe hd-vg-clean --output runs/demo-clean
vf-clean runs/demo --output runs/demo-clean --set rules.text.max=0.05 --dry-run
vf-clean s3://bucket/mine --output s3://bucket/mine-index --index-only
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from curation.commands import (
    GOES_ON,
    JSON,
    QUIET,
    Command,
    command_app,
    examples,
    screen,
    tell_run,
    told_errors,
    without_stdin,
)
from curation.configs import default_config
from curation.places import check_temp
from curation.settings import ConfigError

app = command_app()


@app.command(cls=Command, epilog=examples(__doc__))
def clean(
    dataset: Annotated[str, typer.Argument(help="A dataset folder or URI.")],
    output: Annotated[
        str | None, typer.Option(help="Folder or URI of the subset; a dry run needs none.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe of the config.")] = "hd-vg-clean",
    config: Annotated[
        Path | None,
        typer.Option(help="Where recipes are; default: pipelines.yaml here, else ours."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value inside the recipe; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the funnel from stored scores and stop.")
    ] = False,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Write ids and HD-VG's json instead of media.")
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Score again what a scorer could not score before."),
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Another dataset that clips may be near copies of; may be repeated."),
    ] = None,
    quiet: Annotated[bool, QUIET] = False,
    as_json: Annotated[bool, JSON] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else a new one here."),
    ] = None,
) -> None:
    """Write the clips of a dataset that a recipe keeps. The same command again resumes."""
    from curation.subsets import asked

    started = time.time()
    order = asked.Order(
        *(dataset, output, recipe, config or default_config(), set_ or []),
        *(index_only, retry_failed),
        against=tuple(against or ()),
    )
    console = screen(quiet=quiet or as_json)
    with told_errors(GOES_ON):
        if dry_run and as_json:
            raise ConfigError("--dry-run has no result for --json; leave one of them out")
        plan = asked.make_plan(order, dry_run)
        if not index_only:  # an index from stored scores needs no Ray
            check_temp(ray_address)
        if dry_run:
            asked.show_plan(plan, console)
            return
        # Not above: a dry run is done before Ray is imported.
        from curation.subsets import cleaned

        cleaned.execute(plan, console, started, ray_address)
        if as_json and plan.subset:
            tell_run(plan.subset)


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
