"""Clips of a dataset as the files that other people's trainers load.

vf-export-clips runs/mine --to folder --output exports/mine
vf-export-clips runs/mine --to jsonl --output wan --frames 4k+1 --multiple-of 16 --fps 16
vf-export-clips s3://bucket/mine --to webdataset --output s3://bucket/tars --dry-run
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import Progress

from curation.commands import (
    GOES_ON,
    JSON,
    QUIET,
    Command,
    command_app,
    examples,
    interruptible,
    say,
    screen,
    told_errors,
    without_stdin,
)
from curation.settings import counted

app = command_app()
LOG_EVERY_S = 30.0


@app.command(cls=Command, epilog=examples(__doc__))
def export_clips(
    dataset: Annotated[str, typer.Argument(help="A dataset folder or URI.")],
    to: Annotated[
        str,
        typer.Option(
            help="folder, jsonl, finetrainers, fastvideo, ltx, videox-fun, webdataset or hf."
        ),
    ],
    output: Annotated[
        str | None, typer.Option(help="A new folder or URI; a dry run needs none.")
    ] = None,
    caption_column: Annotated[str, typer.Option(help="The column of captions.")] = "caption",
    captioned_only: Annotated[
        bool | None,
        typer.Option(
            "--captioned-only/--uncaptioned-too",
            help="Leave out clips without a caption, or keep them with an empty one; "
            "default: keep, but for fastvideo.",
        ),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            help="Trim to the most frames of a form: 4k+1, 8k+1, any; default: any, ltx 8k+1."
        ),
    ] = None,
    min_frames: Annotated[
        int | None, typer.Option(min=1, help="Leave out clips of fewer frames, once trimmed.")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Trim longer clips to so many frames.")
    ] = None,
    multiple_of: Annotated[
        int | None, typer.Option(min=2, help="px: keep the middle of a picture, in such sides.")
    ] = None,
    fps: Annotated[
        str | None, typer.Option(help="A constant rate; slower clips are left out.")
    ] = None,
    shard_mb: Annotated[
        int | None, typer.Option(min=1, help="webdataset: the most MB of a tar; default: 512.")
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(help="jsonl: where the trainer finds the folder; default: --output."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Clips at once.", show_default="the CPUs")
    ] = os.cpu_count() or 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be exported and stop.")
    ] = False,
    quiet: Annotated[bool, QUIET] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Export clips for another trainer. The same command again goes on where one was killed."""
    from curation.exports import asked

    order = asked.Order(
        *(dataset, to, output, caption_column, captioned_only, frames, min_frames, max_frames),
        *(multiple_of, fps, shard_mb, root),
    )
    console = screen(quiet=quiet or as_json)
    with told_errors(GOES_ON, mistakes=(pa.ArrowException,)), interruptible():
        plan = asked.make_plan(order, dry_run)
        from curation.exports import clips, written

        if dry_run:
            found = clips.foresee(plan).counts()
            tell(plan, found, console, f"would be in {output}" if output else "would be exported")
        else:
            assert plan.out is not None
            if plan.is_done:
                written.tidy(plan.out)
            else:
                with progress(console) as told:
                    written.export(plan, workers, told)
            found = json.loads(plan.out.read_bytes(asked.DONE))["clips"]
            verb = "were there already, in" if plan.is_done else "are in"
            tell(plan, found, console, f"{verb} {plan.out.uri}")
        if as_json:
            typer.echo(json.dumps({"output": output, "layout": to, "clips": found}))


@contextmanager
def progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Takes how far it has come: a bar on a terminal, a line now and then in a log."""
    told_at = time.monotonic()
    bar = Console(stderr=True)
    with Progress(console=bar, transient=True, disable=console.quiet or not bar.is_terminal) as on:
        task = on.add_task("exporting")

        def told(done: int, total: int) -> None:
            nonlocal told_at
            on.update(task, completed=done, total=total)
            now = time.monotonic()
            if not bar.is_terminal and now - told_at >= LOG_EVERY_S:
                told_at = now
                say(console, f"{done:,} of {counted(total, 'clips')}")

        yield told


def tell(plan: Any, clips: dict[str, Any], console: Console, where: str) -> None:
    """Print what was exported, what of it was changed, and what was left out."""
    say(
        console,
        f"{counted(clips['exported'], 'clips')} of {clips['total']:,} "
        f"({clips['frames']:,} frames, {clips['duration_s'] / 60:.1f} min) {where}, "
        f"for {plan.layout.trainers}",
        "bold",
    )
    for why, number in clips["dropped"].items():
        say(console, f"  left out, {why}: {number:,}", "yellow")
    if clips["trimmed"]:
        say(console, f"  trimmed at the end: {clips['trimmed']:,}")
    if clips["without_caption"]:
        say(console, f"  with an empty caption: {clips['without_caption']:,}", "yellow")
    if clips["made"]:
        parts = ", ".join(f"{name} {number:,}" for name, number in clips["made"].items())
        encoder = plan.begun["encoder"]
        told = ", ".join(f"{key} {value}" for key, value in encoder.items())
        encodes = "encoded" in clips["made"] or "joined" in clips["made"]
        say(console, f"  mp4s: {parts}" + (f" ({told})" if encodes else ""))


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
