"""The body of vf-export: a checkpoint as a folder for VideoFactoryPipeline.from_pretrained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.console import Console

from curation.settings import ConfigError
from model.pipelines import is_export
from training.checkpoints import sync
from training.jobs import guarded
from training.samples import check_checkpoint, load_pipeline


def export(run: Path, output: Path, weights: str) -> None:
    """The body of `vf-export`: written under another name, then renamed."""

    def body(console: Console) -> None:
        checkpoint = check_checkpoint(run, weights)
        check_output(output)
        _, pipe = load_pipeline(checkpoint, weights)
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
        console.print(
            f"{output}: {checkpoint.name}, {weights} weights; sample it: "
            f'vf-sample {output} --prompt "..." --output out.mp4',
            markup=False,
            highlight=False,
        )

    guarded(body)


def check_output(output: Path) -> None:
    """Refuse to write over what is not an earlier export."""
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
    sync(output.parent)
