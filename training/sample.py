#!/usr/bin/env python3
"""Sample a clip from a trained run.

python -m training.sample runs/tiny --prompt "a rabbit in a meadow" --output out.mp4
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from training.upscale import WEIGHTS_HELP

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
EXAMPLE = 'Example: vf-sample runs/tiny --prompt "a rabbit in a meadow" --output out.mp4'


@app.command(epilog=EXAMPLE)
def sample(
    run: Annotated[Path, typer.Argument(help="The --output of a vf-train or vf-export.")],
    prompt: Annotated[str, typer.Option(help='What to show; "" is the empty prompt.')],
    output: Annotated[Path, typer.Option(help="The mp4 to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another clip.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the run's.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="1 is no guidance. Default: the run's.")
    ] = None,
    weights: Annotated[str, typer.Option(help="ema, or raw as the last step left them.")] = "ema",
    upscale: Annotated[str | None, typer.Option(help=f"Enlarge it. {WEIGHTS_HELP}")] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT to enlarge to.")] = "1376x768",
) -> None:
    """Sample one clip from the latest checkpoint of a run, or from what was exported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

    from training import samples

    samples.sample(run, prompt, output, seed, steps, guidance, weights, upscale, size)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
