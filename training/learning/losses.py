"""From samples to losses: latents, noise, timesteps and text of a batch, and held-out losses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from model import SpaceTimeUNet
from model.diffusion import (
    add_noise,
    diffusion_loss,
    drop_captions,
    min_snr_weight,
    signal_to_noise,
    training_target,
)
from model.latents import Codec, to_pixels
from model.texts import TextEncoder
from model.upsampling import halved, low_res_input
from training.config import Config
from training.data.batches import Sample, most_at_once
from training.data.orders import draw
from training.data.shapes import shapes_of
from training.learning.meters import EncodeClock
from training.parallel import ALONE, Team


@dataclass
class Objective:
    """What the U-Net learns. B samples of T frames at once; latents are [B, C, T, h, w]."""

    config: Config
    schedule: DDPMScheduler
    codec: Codec
    text: TextEncoder
    device: torch.device
    dtype: torch.dtype
    stored_empty: Tensor | None = None  # where text states are precomputed

    def __post_init__(self) -> None:
        self.encode_clock = EncodeClock(self.device)
        # [1, L, D], what guidance subtracts
        empty = self.text.encode([""]) if self.stored_empty is None else self.stored_empty
        self.empty = self.moved(empty)
        # Its tables are looked into at every micro-batch.
        self.schedule.alphas_cumprod = self.moved(self.schedule.alphas_cumprod)
        self.num_timesteps = int(self.schedule.config["num_train_timesteps"])

    def losses(self, unet: SpaceTimeUNet, samples: list[Sample]) -> Tensor:
        """The training loss of each sample [B], of samples with equally many frames."""
        steps = self.moved(self.timesteps([sample.draws.timestep for sample in samples]))
        weight = None
        if self.config.min_snr_gamma is not None:
            snr = signal_to_noise(self.schedule, steps)
            kind = self.schedule.config["prediction_type"]
            weight = min_snr_weight(snr, kind, self.config.min_snr_gamma)
        dropped = [sample.draws.caption < self.config.caption_dropout for sample in samples]
        return self.errors(unet, samples, steps, torch.tensor(dropped), weight)

    def errors(
        self,
        unet: SpaceTimeUNet,
        samples: list[Sample],
        steps: Tensor,
        dropped: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the prediction at steps [B], times weight [B]."""
        latents = self.latents_of(samples).to(self.device, self.dtype)
        noise = self.here([s.draws.noise(tuple(latents.shape[1:])) for s in samples]).to(latents)
        states = self.states_of(samples)
        text = drop_captions(states, self.empty, self.moved(dropped)).to(latents)
        steps = self.moved(steps)
        told: dict[str, Any] = {}
        if unet.config["fps_conditioning"]:
            told["fps"] = self.moved(torch.tensor([float(sample.fps) for sample in samples]))
        if self.config.stage == "upsampler":
            told |= self.low_res_of(samples)
        x = add_noise(self.schedule, latents, noise, steps).to(self.dtype)
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            prediction = unet(x, steps, text, **told).sample
        target = training_target(self.schedule, latents, noise, steps)
        return diffusion_loss(prediction, target, weight)

    def latents_of(self, samples: list[Sample]) -> Tensor:
        """[B, C, T, h, w], as stored or from the pixels."""
        stored = [sample.latents for sample in samples if sample.latents is not None]
        if stored:
            return self.here(stored)
        raw = self.here([sample.raw for sample in samples if sample.raw is not None])
        with self.encode_clock.running():
            return self.codec.encode(to_pixels(raw))  # bytes travel, floats are made on the device

    def low_res_of(self, samples: list[Sample]) -> dict[str, Tensor]:
        """What an upsampler is told: low_res [B, C, T, h, w] as it sees them, and their level."""
        low_res = self.small_latents_of(samples).to(self.device, self.dtype)
        shape = tuple(low_res.shape[1:])
        noise = self.here([s.draws.level_noise(shape) for s in samples]).to(low_res)
        drawn = [int(s.draws.level * (self.config.max_noise_level + 1)) for s in samples]
        levels = self.moved(torch.tensor(drawn))
        seen = low_res_input(self.codec, self.schedule, low_res, noise, levels)
        return {"low_res": seen.to(self.dtype), "noise_level": levels}

    def small_latents_of(self, samples: list[Sample]) -> Tensor:
        """Latents of clips at half the sides [B, C, T, h/2, w/2], as stored or from the pixels."""
        stored = [sample.low_res for sample in samples if sample.low_res is not None]
        if stored:
            return self.here(stored)
        raw = self.here([sample.raw for sample in samples if sample.raw is not None])
        with self.encode_clock.running():
            return self.codec.encode(halved(to_pixels(raw)))

    def states_of(self, samples: list[Sample]) -> Tensor:
        """Text states [B, L, D], as stored or of the captions."""
        stored = [sample.states for sample in samples if sample.states is not None]
        if stored:
            return self.here(stored)
        with self.encode_clock.running():
            return self.moved(self.text.encode([sample.caption for sample in samples]))

    def encoded(self, sample: Sample) -> Sample:
        """The sample with its latents and text states, so that neither is made again."""
        latents, states = self.latents_of([sample])[0].cpu(), self.states_of([sample])[0].cpu()
        low_res = None
        if self.config.stage == "upsampler":
            low_res = self.small_latents_of([sample])[0].cpu()
        return replace(sample, raw=None, latents=latents, states=states, low_res=low_res)

    def moved(self, tensor: Tensor) -> Tensor:
        """On the device; from pinned memory, as a copy from any other waits for the device."""
        if self.device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()  # at once where it is pinned already
        return tensor.to(self.device, non_blocking=True)

    def here(self, tensors: list[Tensor]) -> Tensor:
        """Tensors of one shape, on the device as a batch."""
        return torch.stack([self.moved(tensor) for tensor in tensors])

    def blank(self) -> Sample:
        """Nothing, in the smallest shape: what a rank computes while it has no sample left."""
        T, H, W = min(
            ((s.num_frames, s.height, s.width) for s in shapes_of(self.config)), key=math.prod
        )
        f = self.codec.factor
        latents = torch.zeros(self.codec.channels, T, H // f, W // f)
        low_res = latents[:, :, : H // f // 2, : W // f // 2]
        draws = draw(self.config.seed, "", "blank", "")
        return Sample("", "", 0, "", None, draws, 0, latents, self.empty[0], low_res)

    def timesteps(self, uniform: list[float]) -> Tensor:
        return torch.tensor([int(each * self.num_timesteps) for each in uniform])


def micro_batches(samples: list[Sample], config: Config, factor: int) -> Iterator[list[Sample]]:
    """Parts of a batch, each of one shape and of at most so many pixels, the largest shapes first.

    factor: of the codec, pixels to a latent's side.

    Ranks that shard the U-Net wait for each other in every block: equal costs meet this way.
    """
    by_shape: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_shape[sample.shape].append(sample)
    for same in sorted(by_shape.values(), key=lambda each: -math.prod(each[0].shape)):
        step = most_at_once(config, same[0].num_px(factor)) or len(same)
        for n in range(0, len(same), step):
            yield same[n : n + step]


@torch.no_grad()
def held_out_losses(
    objective: Objective,
    unet: SpaceTimeUNet,
    samples: list[Sample],
    bins: int,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Mean squared error on held-out clips with fixed noise: over all, per bin, per dataset.

    Each clip is seen once in each of `bins` equal ranges of timesteps, with its caption. Each
    rank of a team gives its share of the clips and gets the means over all of them.
    """
    was_training = unet.training
    unet.eval()
    own: list[tuple[str, list[float]]] = []
    # Ranks that shard the U-Net compute equally often; what a rank repeats is not counted.
    for n in range(max(team.gather(len(samples)))):
        sample = samples[n] if n < len(samples) else objective.blank()
        steps = objective.timesteps([(n + sample.draws.timestep) / bins for n in range(bins)])
        # One at a time: memory does not grow with the number of bins.
        errors = [
            objective.errors(unet, [sample], step[None], torch.tensor([False])) for step in steps
        ]
        if n < len(samples):
            own.append((sample.dataset, torch.cat(errors).tolist()))
    unet.train(was_training)
    rows = team.join(own)
    every = torch.tensor([errors for _, errors in rows], dtype=torch.float64)
    names = sorted({name for name, _ in rows})
    return {
        "clips": len(rows),
        "all": every.mean().item(),
        "bins": every.mean(0).tolist(),
        "datasets": {
            name: every[[n for n, row in enumerate(rows) if row[0] == name]].mean().item()
            for name in names
        },
    }
