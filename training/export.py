#!/usr/bin/env python3
"""Write the model of a run as a folder of its own, laid out as diffusers does.

python -m training.export runs/tiny --output exported
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from curation.commands import without_stdin

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
EXAMPLE = "Example: vf-export runs/tiny --output exported"


@app.command(epilog=EXAMPLE)
def export(
    run: Annotated[Path, typer.Argument(help="The --output of a vf-train.")],
    output: Annotated[
        Path, typer.Option(help="The folder to write; an earlier export is replaced.")
    ],
    weights: Annotated[str, typer.Option(help="ema, or raw as the last step left them.")] = "ema",
) -> None:
    """Export the latest checkpoint of a run, for VideoFactoryPipeline.from_pretrained."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

    from training import exports

    exports.export(run, output, weights)


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
