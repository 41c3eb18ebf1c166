#!/usr/bin/env python3
"""Measure a run with FVD and CLIPSIM by a named protocol, or compare two results.

vf-eval --protocol dataset --reference runs/demo --run runs/tiny --output eval
vf-eval --protocol dataset --reference runs/demo --run runs/tiny --output eval --clip none
vf-eval --compare eval/result.json other/result.json
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation.commands import Command, command_app, examples, say, without_stdin

if TYPE_CHECKING:
    from rich.console import Console

app = command_app()
Paths = tuple[Path, Path]


@app.command(cls=Command, epilog=examples(__doc__))
def evaluate(
    protocol: Annotated[
        str | None, typer.Option(help="ucf101, msrvtt, webvid-val or dataset.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The real clips: a release's folder, or a dataset.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="What vf-train or vf-export wrote.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="A folder; the same command goes on there.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A setting=value of the protocol.")
    ] = None,
    i3d: Annotated[
        str | None, typer.Option(help="I3D's weights: a file, or untrained. Default: as fetched.")
    ] = None,
    clip: Annotated[
        str, typer.Option(help="CLIP's weights: a file, openai, untrained, or none.")
    ] = "openai",
    weights: Annotated[str, typer.Option(help="ema, or raw as the last step left them.")] = "ema",
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the run's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Default: the run's.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on Ray. Default: this one.")
    ] = None,
    keep_clips: Annotated[
        bool, typer.Option("--keep-clips", help="Write each generated clip as mp4.")
    ] = False,
    compare: Annotated[
        Paths | None, typer.Option(help="Two result.json, instead of measuring.")
    ] = None,
) -> None:
    """FVD, CLIPSIM and temporal measures of a run, by a protocol that is hashed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

    from curation.settings import ConfigError
    from training.commands import guarded

    def body(console: Console) -> None:
        if compare:
            from training.evaluation import compare as comparing

            for text in comparing.compare(*compare):
                say(console, text)
            return
        if protocol is None or reference is None or run is None or output is None:
            raise ConfigError("give --protocol, --reference, --run and --output, or --compare A B")
        from training.evaluation import scoring
        from training.evaluation.protocols import load_protocol

        named = load_protocol(protocol, overrides or [])
        say(console, str(named))
        asked = scoring.Asked(
            named, reference, run, output, weights, steps, guidance, i3d, clip, keep_clips
        )
        result = scoring.evaluate(
            asked,
            workers,
            lambda text: say(console, text),
            lambda parts, total: shown(parts, total, console),
        )
        tell(result, output, console)

    guarded(body)


def shown(parts: Iterator[int], total: int, console: Console) -> Iterator[int]:
    """The parts as they are done, with a bar on a terminal and lines in a log."""
    from rich.progress import track

    if console.is_terminal:
        yield from track(parts, "measuring", total=total, console=console)
        return
    for count, part in enumerate(parts, 1):
        say(console, f"part {count} of {total} measured")
        yield part


def tell(result: dict, output: Path, console: Console) -> None:
    """The scores with intervals, as lines."""
    from training.evaluation.compare import lines_of

    for text in lines_of(result):
        say(console, text)
    say(console, f"{output / 'result.json'}")


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
