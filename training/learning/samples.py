"""Samples of a run while it trains: of prompts, or of held-out clips that an upsampler enlarges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model import VideoFactoryPipeline
from model.latents import to_raw
from training.data.batches import Sample
from training.parallel import uncompiled

if TYPE_CHECKING:
    from training.learning.loop import Run


@dataclass(frozen=True)
class Wanted:
    """What one rank samples: prompts, numbers of their seeds, and what else the pipeline is told.

    own: how many of them count; with FSDP a rank without any computes one along.
    """

    prompts: list[str]
    numbers: list[int]
    told: dict[str, Any]
    own: int


def make(run: Run, held_out: list[Sample]) -> None:
    """Samples of the EMA weights as mp4 files and a contact sheet; each rank makes its part."""
    config, state, objective, team = run.config, run.state, run.objective, run.state.team
    wanted = (to_enlarge if config.stage == "upsampler" else to_draw)(run, held_out)
    if not team.any(bool(wanted.own)):
        return
    pipe = VideoFactoryPipeline(state.unet, objective.codec, objective.text, objective.schedule)
    autocast = torch.autocast(
        objective.device.type, torch.bfloat16, enabled=config.precision == "bf16"
    )
    try:
        with state.ema.swapped(state.unet), autocast, uncompiled(config):
            clips = pipe(
                wanted.prompts,
                **wanted.told,
                fps=config.fps,
                num_inference_steps=config.sample_steps,
                guidance_scale=config.guidance,
                generator=[torch.Generator().manual_seed(config.seed + n) for n in wanted.numbers],
                progress=False,
            )
    except FileNotFoundError as error:  # precomputed, training itself needs no such weights
        if run.reports:
            run.reports.display.say(
                f"step {state.step}: no samples (--set num_samples=0 asks for none): {error}"
            )
        return
    rows = clips.frames[:, None]  # of the contact sheet
    if config.stage == "upsampler":
        rows = beside(clips.frames, wanted, run, held_out)
    frames = team.join(list(clips.frames[: wanted.own]))
    sheet = team.join(list(rows[: wanted.own]))
    prompts = team.join(wanted.prompts[: wanted.own])
    if run.reports:
        run.reports.samples(state.step, prompts, torch.stack(frames), torch.cat(sheet), config.fps)


def to_draw(run: Run, held_out: list[Sample]) -> Wanted:
    """This rank's part of the prompts."""
    config, team = run.config, run.state.team
    prompts = config.sample_prompts or captions(run, held_out)
    every = list(enumerate(prompts[: config.num_samples]))
    own = team.share(every)
    numbers, mine = zip(*(own or every[:1]), strict=True) if every else ((), ())
    sizes = {"num_frames": config.num_frames, "height": config.height, "width": config.width}
    return Wanted(list(mine), list(numbers), sizes, len(own))


def to_enlarge(run: Run, held_out: list[Sample]) -> Wanted:
    """This rank's first held-out clips of the config's own shape, by their own captions."""
    config, team = run.config, run.state.team
    own = of_own_shape(run, held_out)
    mine = own or [run.objective.blank()]
    low_res = torch.stack([s.low_res for s in mine if s.low_res is not None])
    told = {"low_res": low_res, "noise_level": config.noise_level}
    numbers = [team.rank * config.num_samples + n for n in range(len(mine))]
    return Wanted([s.caption for s in mine], numbers, told, len(own))


def of_own_shape(run: Run, held_out: list[Sample]) -> list[Sample]:
    config, codec = run.config, run.objective.codec
    shape = (codec.channels, config.num_frames,
             config.height // codec.factor, config.width // codec.factor)  # fmt: skip
    most = -(-config.num_samples // run.state.team.world)
    return [sample for sample in held_out if sample.shape == shape][:most]


def beside(made: Tensor, wanted: Wanted, run: Run, held_out: list[Sample]) -> Tensor:
    """Frames [B, 3, T, H, W, 3]: what the upsampler was given, interpolated; what it made; and the
    clip itself."""
    codec, device = run.objective.codec, run.objective.device
    true = [s.latents for s in of_own_shape(run, held_out) if s.latents is not None]
    if not true:
        return made[:, None].repeat(1, 3, 1, 1, 1, 1)
    both = [codec.enlarge(wanted.told["low_res"].to(device)), torch.stack(true).to(device)]
    given, whole = (to_raw(codec.decode(latents)).cpu() for latents in both)
    return torch.stack([given, made, whole], dim=1)


def captions(run: Run, held_out: list[Sample]) -> list[str]:
    """Captions to sample by when none are given: of trained clips, then of held-out ones."""
    first = run.batches.first_captions(run.config.num_samples)
    return list(dict.fromkeys([*first, *run.state.team.join([s.caption for s in held_out])]))
