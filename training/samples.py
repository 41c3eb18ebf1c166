"""The body of vf-sample, and how a run or an export becomes a pipeline."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from model import SpaceTimeUNet, VideoFactoryPipeline
from model.pipelines import Settings, is_export
from training.checkpoints import latest
from training.commands import guarded
from training.configs import Config, ConfigError, validated
from training.reports import contact_sheet
from training.starts import device_of, make_codec, make_text, schedule_of
from training.upscale import ready, size_of, told


def sample(
    run: Path,
    prompt: str,
    output: Path,
    seed: int,
    steps: int | None,
    guidance: float | None,
    weights: str,
    upscale: str | None = None,
    size: str = "1376x768",
) -> None:
    """The body of `vf-sample`."""

    def body(console: Console) -> None:
        started = time.monotonic()
        check_mp4(output)
        upscaler, wanted = (ready(upscale), size_of(size)) if upscale else (None, (0, 0))
        if is_export(run):
            checkpoint = run
            config, pipe = load_export(run)
        else:
            checkpoint = check_checkpoint(run, weights)
            config, pipe = load_pipeline(checkpoint, weights)
        count = steps or config.sample_steps
        bf16 = config.precision == "bf16"
        try:
            with torch.autocast(pipe.unet.device.type, torch.bfloat16, enabled=bf16):
                clips = pipe(
                    prompt,
                    num_inference_steps=count,
                    guidance_scale=guidance,
                    generator=torch.Generator().manual_seed(seed),
                    progress=console.is_terminal,
                )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        contact_sheet(clips.frames, output.with_suffix(".png"))
        enlarged = ""
        if upscaler:
            frames = told(upscaler(iter(clips.frames[0]), wanted), config.num_frames, console)
            clips = replace(clips, frames=torch.stack(list(frames))[None])
            enlarged = f", enlarged to {size} by {upscaler.label}"
        clips.save(output)
        console.print(
            f"{output}: {config.num_frames} frames of {config.width}x{config.height} from "
            f"{checkpoint.name}, {weights} weights, {count} steps{enlarged} "
            f"({time.monotonic() - started:.0f} s); {output.with_suffix('.png')} shows them",
            markup=False,
            highlight=False,
        )

    guarded(body)


def load_pipeline(checkpoint: Path, weights: str) -> tuple[Config, VideoFactoryPipeline]:
    """The config of a run and the pipeline that samples one of its checkpoints."""
    card = json.loads((checkpoint / "card.json").read_text())
    config, device = trained_config(card, checkpoint)
    unet = SpaceTimeUNet.from_pretrained(
        str(checkpoint / {"ema": "unet_ema", "raw": "unet"}[weights])
    )
    codec, text = make_codec(config, device), make_text(config, device)
    unet.to(device).eval()
    schedule, settings = schedule_of(card["noise"]), settings_of(config)
    return config, VideoFactoryPipeline(unet, codec, text, schedule, settings)


def load_export(folder: Path) -> tuple[Config, VideoFactoryPipeline]:
    """The same of what vf-export wrote."""
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
    config = validated(card["config"], str(where))
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    return config, device_of(config)


def settings_of(config: Config) -> Settings:
    """How clips of a run are sampled unless a command says otherwise."""
    return Settings(
        num_frames=config.num_frames,
        height=config.height,
        width=config.width,
        fps=config.fps,
        num_inference_steps=config.sample_steps,
        guidance_scale=config.guidance,
    )


def check_checkpoint(run: Path, weights: str) -> Path:
    """The checkpoint to take; ConfigError where there is none."""
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
