#!/usr/bin/env python3
"""Write the model of a run as a folder of its own, laid out as diffusers does.

vf-export runs/tiny --output exported
vf-export runs/tiny --output exported --weights raw
vf-export runs/tiny --output exported --ema 0.08
vf-sample exported --prompt "a rabbit in a meadow" --output out.mp4
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation.commands import Command, command_app, examples, say, without_stdin
from curation.settings import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

app = command_app()


@app.command(cls=Command, epilog=examples(__doc__))
def export(
    run: Annotated[Path, typer.Argument(help="The --output of a vf-train.")],
    output: Annotated[
        Path, typer.Option(help="The folder to write; an earlier export is replaced.")
    ],
    weights: Annotated[str, typer.Option(help="ema, or raw as the last step left them.")] = "ema",
    ema: Annotated[
        float | None,
        typer.Option(help="Spread of an average that is made now, such as 0.08: of post_hoc_ema."),
    ] = None,
) -> None:
    """Export the latest checkpoint of a run, for VideoFactoryPipeline.from_pretrained."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    from training.commands import guarded

    guarded(lambda console: write_export(console, run, output, weights, ema))


def write_export(
    console: Console, run: Path, output: Path, weights: str, ema: float | None
) -> None:
    """Write a checkpoint as a folder: under another name, then renamed."""
    from training.checkpoints.folders import sync
    from training.checkpoints.post_hoc import reconstruct
    from training.commands import how_to_sample
    from training.sample import check_checkpoint, load_pipeline

    checkpoint = check_checkpoint(run, weights)
    check_output(output)
    config, pipe = load_pipeline(checkpoint, weights)
    if ema is not None:
        made, left = reconstruct(checkpoint, ema)
        pipe.unet.load_state_dict(made.state_dict())
        weights = f"ema {ema}"
        say(console, f"an average of spread {ema}: its profile is met but for {left:.2%}")
    about = {
        "checkpoint": checkpoint.name,
        "weights": weights,
        "card": json.loads((checkpoint / "card.json").read_text()),
    }
    written = output.with_name(f".tmp-{output.name}")
    shutil.rmtree(written, ignore_errors=True)
    pipe.save_pretrained(written, about)
    for path in [*written.rglob("*"), written]:
        sync(path)
    replace(written, output)
    sync(output.parent)
    say(
        console,
        f"{output}: {checkpoint.name}, {weights} weights; {how_to_sample(output, config.stage)}",
    )


def check_output(output: Path) -> None:
    """Refuse to write over what is not an earlier export."""
    from model.pipelines import is_export

    if output.is_dir() and (not any(output.iterdir()) or is_export(output)):
        return
    if output.exists():
        raise ConfigError(
            f"--output {output} is there and is no earlier export: give a new or an empty folder"
        )


def replace(written: Path, output: Path) -> None:
    """Put a complete folder where an earlier one, or none, is."""
    old = output.with_name(f".tmp-old-{output.name}")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    written.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
