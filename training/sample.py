#!/usr/bin/env python3
"""Sample a clip from a trained run.

vf-sample runs/tiny --prompt "a rabbit in a meadow" --output out.mp4
vf-sample exported --prompt "a rabbit" --negative "text" --seed 7 --steps 30 --output other.mp4
vf-sample runs/tiny --prompt "a rabbit" --output large.mp4 --upsampler runs/larger --upscale bicubic
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curation.commands import Command, command_app, examples, say, without_stdin
from curation.settings import ConfigError
from training.upscale import WEIGHTS_HELP

if TYPE_CHECKING:  # a command line that is wrong, or --help, needs no torch
    import torch
    from rich.console import Console

    from model import VideoFactoryPipeline
    from model.pipelines import Settings, VideoOutput
    from training.config import Config

app = command_app()


@app.command(cls=Command, epilog=examples(__doc__))
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
    upsampler: Annotated[
        Path | None, typer.Option(help="A vf-train --stage upsampler: doubles the sides.")
    ] = None,
    upsampler_steps: Annotated[
        int | None, typer.Option(min=1, help="Default: the upsampler's own.")
    ] = None,
    noise_level: Annotated[
        int | None, typer.Option(min=0, help="Of the upsampler: more makes more up.")
    ] = None,
    upscale: Annotated[str | None, typer.Option(help=f"Enlarge it. {WEIGHTS_HELP}")] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT to enlarge to.")] = "1376x768",
    negative: Annotated[str, typer.Option(help="What to steer away from.")] = "",
    guidance_rescale: Annotated[
        float, typer.Option(min=0, max=1, help="0.7 with zero_terminal_snr.")
    ] = 0.0,
    sampler: Annotated[str, typer.Option(help="dpm or ddim.")] = "dpm",
    frames: Annotated[int | None, typer.Option(min=1, help="Default: the run's.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="px. Default: the run's.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="px. Default: the run's.")] = None,
    fps: Annotated[float | None, typer.Option(help="Default: the run's.")] = None,
) -> None:
    """Sample one clip from the latest checkpoint of a run, or from what was exported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    from training.commands import guarded

    enlarge = Enlarge(upsampler, upsampler_steps, noise_level, upscale, size)
    asked = {
        "prompt": prompt,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "guidance_rescale": guidance_rescale,
        "sampler": sampler,
        "num_frames": frames,
        "width": width,
        "height": height,
        "fps": fps,
    }
    guarded(lambda console: write_sample(console, run, output, weights, seed, asked, enlarge))


def write_sample(
    console: Console,
    run: Path,
    output: Path,
    weights: str,
    seed: int,
    asked: dict[str, Any],
    enlarge: Enlarge,
) -> None:
    """Sample as asked of the pipeline, and write the clip and its contact sheet."""
    import torch

    from training.learning.reports import contact_sheet
    from training.upscale import ready, size_of, told

    started = time.monotonic()
    check_mp4(output)
    upscaler = ready(enlarge.weights) if enlarge.weights else None
    size = size_of(enlarge.size)
    origin, config, pipe = load(run, weights)
    if config.stage == "upsampler":
        raise ConfigError(
            f"{run} is an upsampler: give it as --upsampler, and the run whose clips it enlarges"
        )
    generator = torch.Generator().manual_seed(seed)
    shown = console.is_terminal
    clips = drawn(pipe, config, {**asked, "generator": generator, "progress": shown})
    larger = ""
    if enlarge.upsampler:
        begun = clips.frames.shape[2:4]
        clips, larger = doubled(clips, enlarge, weights, seed, asked, shown)
        larger = f" from {begun[1]}x{begun[0]}{larger}"
    contact_sheet(clips.frames, output.with_suffix(".png"))
    _, num_frames, height, width, _ = clips.frames.shape
    enlarged = ""
    if upscaler:
        frames = told(upscaler(iter(clips.frames[0]), size), num_frames, console)
        clips = replace(clips, frames=torch.stack(list(frames))[None])
        enlarged = f", enlarged to {enlarge.size} by {upscaler.label}"
    clips.save(output)
    count = asked["num_inference_steps"] or config.sample_steps
    say(
        console,
        f"{output}: {num_frames} frames of {width}x{height}{larger}, "
        f"{origin.name}, {weights} weights, {count} steps{enlarged} "
        f"({time.monotonic() - started:.0f} s); {output.with_suffix('.png')} shows them",
    )


@dataclass(frozen=True)
class Enlarge:
    """How a sampled clip is made larger: by an upsampler's run, then by super-resolution."""

    upsampler: Path | None
    steps: int | None  # of the upsampler
    noise_level: int | None
    weights: str | None  # of super-resolution
    size: str  # WIDTHxHEIGHT that it enlarges to


def drawn(pipe: VideoFactoryPipeline, config: Config, asked: dict[str, Any]) -> VideoOutput:
    """What a pipeline makes, in the precision it was trained in; raises ConfigError."""
    import torch

    bf16 = config.precision == "bf16"
    try:
        with torch.autocast(pipe.unet.device.type, torch.bfloat16, enabled=bf16):
            return pipe(**asked)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def doubled(
    clips: VideoOutput,
    enlarge: Enlarge,
    weights: str,
    seed: int,
    asked: dict[str, Any],
    shown: bool,
) -> tuple[VideoOutput, str]:
    """A clip at twice its sides, with the upsampler's own steps and guidance; and by what."""
    import torch

    assert enlarge.upsampler
    origin, config, pipe = load(enlarge.upsampler, weights)
    if config.stage != "upsampler":
        raise ConfigError(
            f"--upsampler {enlarge.upsampler} is a {config.stage} run: give the --output of a "
            "vf-train --stage upsampler"
        )
    same = {key: asked[key] for key in ("prompt", "negative_prompt", "guidance_rescale", "sampler")}
    made = drawn(pipe, config, {
        **same, "low_res": clips.latents, "noise_level": enlarge.noise_level, "fps": clips.fps,
        "num_inference_steps": enlarge.steps,
        "generator": torch.Generator().manual_seed(seed), "progress": shown,
    })  # fmt: skip
    return made, f" by {enlarge.upsampler.name}, {origin.name}"


# -- how a run or an export becomes a pipeline


def load(run: Path, weights: str) -> tuple[Path, Config, VideoFactoryPipeline]:
    """The checkpoint or export that a folder stands for, its config, and its pipeline."""
    from model.pipelines import is_export

    if is_export(run):
        return run, *load_export(run)
    checkpoint = check_checkpoint(run, weights)
    return checkpoint, *load_pipeline(checkpoint, weights)


def load_pipeline(checkpoint: Path, weights: str) -> tuple[Config, VideoFactoryPipeline]:
    """The config of a run and the pipeline that samples one of its checkpoints."""
    from model import VideoFactoryPipeline
    from training.checkpoints.folders import card_of
    from training.checkpoints.saving import read_unet
    from training.learning.starts import make_codec, make_text, schedule_of

    card = card_of(checkpoint)
    config, device = trained_config(card, checkpoint)
    unet: Any = read_unet(checkpoint, weights)
    codec, text = make_codec(config, device), make_text(config, device)
    unet.to(device).eval()
    schedule, settings = schedule_of(card["noise"]), settings_of(config)
    return config, VideoFactoryPipeline(unet, codec, text, schedule, settings)


def load_export(folder: Path) -> tuple[Config, VideoFactoryPipeline]:
    """The same of what vf-export wrote."""
    from model import VideoFactoryPipeline

    about = json.loads((folder / "export.json").read_text())
    if "card" not in about:
        raise ConfigError(
            f"{folder} was not written by vf-export; load it with VideoFactoryPipeline"
        )
    config, device = trained_config(about["card"], folder)
    try:
        return config, VideoFactoryPipeline.from_pretrained(folder, device=device)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None


def trained_config(card: dict[str, Any], where: Path) -> tuple[Config, torch.device]:
    """The config that a model was trained with, and where it runs now."""
    import torch

    from training.config import validated
    from training.learning.starts import device_of

    config = validated(card["config"], str(where))
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    return config, device_of(config)


def settings_of(config: Config) -> Settings:
    """How clips of a run are sampled unless a command says otherwise."""
    from model.pipelines import Settings

    return Settings(
        num_frames=config.num_frames,
        height=config.height,
        width=config.width,
        fps=config.fps,
        num_inference_steps=config.sample_steps,
        guidance_scale=config.guidance,
        noise_level=config.noise_level,
    )


# -- what is refused


def check_checkpoint(run: Path, weights: str) -> Path:
    """The checkpoint to take; ConfigError where there is none."""
    from training.checkpoints.folders import latest

    if weights not in ("ema", "raw"):
        raise ConfigError(f"--weights {weights}: choose ema or raw")
    checkpoint = latest(run)
    if checkpoint is None:
        raise ConfigError(f"{run} holds no checkpoint: give the --output of a vf-train")
    return checkpoint


def check_mp4(output: Path) -> None:
    if output.suffix != ".mp4":
        raise ConfigError(f"--output {output}: give a name that ends in .mp4")
    output.parent.mkdir(parents=True, exist_ok=True)


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
