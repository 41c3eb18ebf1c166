#!/usr/bin/env python3
"""Enlarge a video by super-resolution.

vf-upscale in.mp4 out.mp4 --weights RealESRGAN_x2plus.pth
vf-upscale in.mp4 out.mp4 --weights RealESRGAN_x4plus.pth --size 1376x768 --steady 0.5
vf-upscale in.mp4 out.mp4 --weights bicubic
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation.commands import Command, command_app, examples, say, without_stdin

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from model.superresolution import Upscaler

app = command_app()
WEIGHTS_HELP = (
    "Real-ESRGAN's weights: a file, a vf-train --stage sr, a folder or hub id that holds one; or "
    "bicubic, which makes no detail up."
)


@app.command(cls=Command, epilog=examples(__doc__))
def upscale(
    source: Annotated[Path, typer.Argument(help="Any video.")],
    output: Annotated[Path, typer.Argument(help="The mp4 to write.")],
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)],
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT, even; the middle is kept. Default: twice.")
    ] = None,
    steady: Annotated[
        float, typer.Option(min=0, max=1, help="How much of the frame before is kept where still.")
    ] = 0.0,
    tile: Annotated[int, typer.Option(min=16, help="Input pixels computed at once, a side.")] = 256,
    frames_at_once: Annotated[int, typer.Option(min=1, help="More needs more memory.")] = 1,
) -> None:
    """Enlarge a video: its frames, times and sound go to an mp4, one by one."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

    import torch

    from curation.settings import ConfigError
    from training.commands import guarded
    from training.data.videos import BadVideoError, header_of, rewrite

    def body(console: Console) -> None:
        if output.suffix != ".mp4" or output.resolve() == source.resolve():
            raise ConfigError(f"{output}: give another name than the source's, ending in .mp4")
        try:
            header = header_of(source)
            wanted = size_of(size) if size else (header.height * 2, header.width * 2)
            upscaler = ready(weights, steady=steady, tile_px=tile, frames_at_once=frames_at_once)
            output.parent.mkdir(parents=True, exist_ok=True)

            def change(frames: Iterable) -> Iterator:
                tensors = map(torch.from_numpy, frames)
                made = upscaler(tensors, wanted)
                yield from (f.numpy() for f in told(made, header.num_frames, console))

            count = rewrite(source, output, wanted, change)
        except BadVideoError as error:
            raise ConfigError(str(error)) from None
        except KeyboardInterrupt:
            raise SystemExit("stopped; nothing was written") from None
        lost = "" if header.audio is None else lost_sound(header.audio)
        say(
            console,
            f"{output}: {count} frames, {header.width}x{header.height} to {wanted[1]}x{wanted[0]} "
            f"by {upscaler.label}{lost}",
        )

    guarded(body)


def lost_sound(codec: str) -> str:
    from training.data.videos import COPIED_AUDIO

    return "" if codec in COPIED_AUDIO else f"; its {codec} sound does not fit an mp4, left out"


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of WIDTHxHEIGHT; ConfigError unless both are even."""
    from curation.settings import ConfigError

    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()) or int(width) * int(height) == 0:
        raise ConfigError(f"--size {text}: give WIDTHxHEIGHT, such as 1376x768")
    if int(width) % 2 or int(height) % 2:
        raise ConfigError(f"--size {text}: an mp4 needs even sides")
    return int(height), int(width)


def ready(weights: str, **options: float) -> Upscaler:
    """The upscaler of a command, on the GPU where there is one; raises ConfigError."""
    import torch

    from curation.settings import ConfigError
    from model.superresolution import load_upscaler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return load_upscaler(weights, device=device, **options)  # type: ignore[arg-type]
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from None


def told(frames: Iterable[Tensor], total: int, console: Console) -> Iterator[Tensor]:
    """The frames, with a bar on a terminal and a line every ten seconds in a log."""
    import time

    from rich.progress import track

    if console.is_terminal:
        yield from track(frames, "enlarging", total=total or None, console=console)
        return
    started = told_at = time.monotonic()
    for count, frame in enumerate(frames, 1):
        yield frame
        if (now := time.monotonic()) - told_at >= 10:
            told_at = now
            say(
                console, f"frame {count} of {total or '?'}: {(now - started) / count:.1f} s a frame"
            )


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
