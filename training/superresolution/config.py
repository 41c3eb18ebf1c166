"""Presets of `vf-train --stage sr`, and one validated Config from a preset and `--set`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curation.settings import ConfigError, explain, nearest, set_path

Range = tuple[float, float]
Resize = Literal["area", "bilinear", "bicubic"]
KERNELS = ("isotropic", "anisotropic", "generalized", "generalized_anisotropic", "plateau",
           "plateau_anisotropic")  # fmt: skip

# "paper": Real-ESRGAN (Wang et al. 2021, https://arxiv.org/abs/2107.10833), section 4.1 and the
# published options of its x2plus; what has no source is ours, for the reason beside it.
PRESETS: dict[str, dict[str, Any]] = {
    # Two CPU cores, minutes: a small SRVGGNetCompact. Measured: docs/cascade.md.
    "tiny": {
        "network": "srvgg",
        "num_features": 36,  # from 27 on it begins as bicubic
        "num_blocks": 4,
        "scale": 2,
        "num_frames": 3,  # the fewest with frames of all of H.264's kinds
        "crop": 64,
        "crops": 8,
        "held_out_crop": 192,
        "batch_size": 1,
        "max_steps": 450,  # minutes
        "pretrain_steps": 350,  # L1 takes the noise away; the rest is for the other losses
        # In 400 steps of L1 LPIPS fell by 14%; with 5e-5 by 2% in 250, with 1e-3 not in 100.
        "learning_rate": 5e-4,
        "ema_decay": 0.98,  # a mean over about 50 steps
        "perceptual": "none",  # needs no weights
        "discriminator_features": 8,
        "checkpoint_every": 50,
        "evaluate_every": 50,
        "held_out": 0.1,  # small datasets have few videos
        "held_out_draws": 4,
        "num_threads": 2,
        "loader_threads": 1,
    },
    # One GPU: RealESRGAN_x2plus' own network, --init takes its weights.
    "x2plus": {
        "network": "rrdb",
        "num_features": 64,
        "num_blocks": 23,
        "scale": 2,
        "num_frames": 5,
        "crop": 256,  # paper
        "batch_size": 10,  # 50 pictures; the paper has 48
        "max_steps": 400_000,  # paper, with GAN
        "precision": "bf16",
        "loader_threads": 12,  # degrading is CPU work
    },
}


class Round(BaseModel):
    """One round of blur, resize, noise and JPEG. Defaults: the paper's first round.

    sigma: of blur kernels, px. kernels: probabilities of KERNELS. sinc: of a sinc filter instead.
    generalized_beta, plateau_beta: of the shapes. resize: probabilities of up, down, keep.
    noise: standard deviation in grey levels; poisson: scale; grey: probability of grey noise.
    jpeg: quality in 1..100.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    blur: float = Field(1.0, ge=0, le=1)
    sigma: Range = (0.2, 3.0)
    kernels: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    sinc: float = Field(0.1, ge=0, le=1)
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    gaussian: float = Field(0.5, ge=0, le=1)  # else Poisson
    noise: Range = (1.0, 30.0)
    poisson: Range = (0.05, 3.0)
    grey: float = Field(0.4, ge=0, le=1)
    jpeg: tuple[int, int] = (30, 95)


class SecondRound(Round):
    """The paper's second round: weaker. Its JPEG is the last one, before or after the sinc."""

    blur: float = Field(0.8, ge=0, le=1)
    sigma: Range = (0.2, 1.5)
    resize: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize_range: Range = (0.3, 1.2)
    noise: Range = (1.0, 25.0)
    poisson: Range = (0.05, 2.5)


class Degradation(BaseModel):
    """How a small clip is made of a large one.

    rounds: how many of the two are done.
    final_sinc: probability of the last sinc filter. final_resize: what brings it to its size.
    crf: of H.264 (null: none), the last thing that happens to a clip. RealBasicVSR (Chan et al.
        2022) compresses clips by a random bitrate; crf and its range are ours: x264 calls 18 nearly
        lossless to the eye, and above 35 little is left of a small picture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: Literal[0, 1, 2] = 2  # the paper's
    first: Round = Round()
    second: SecondRound = SecondRound()
    final_sinc: float = Field(0.8, ge=0, le=1)
    final_resize: list[Resize] = Field(["area", "bilinear", "bicubic"], min_length=1)
    crf: tuple[int, int] | None = (18, 35)


class Config(BaseModel):
    """Everything that a run depends on besides its data and its start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # What is trained.
    network: Literal["srvgg", "rrdb"]
    num_features: int = Field(64, gt=0)
    num_blocks: int = Field(gt=0)  # convolutions of srvgg's body, or blocks of rrdb
    scale: Literal[2, 4] = 2
    discriminator_features: int = Field(64, gt=0)  # paper

    # What a sample is: consecutive frames, of which a square is cut at their own size.
    num_frames: int = Field(5, gt=0)
    crop: int = Field(256, gt=0)  # px of a large picture
    crops: int = Field(1, ge=1)  # of a clip that is decoded, each degraded in its own way
    degradation: Degradation = Degradation()
    shuffle_memory_gb: float = Field(4, gt=0)  # of row groups
    held_out: float = Field(0.01, ge=0, lt=1)  # share of videos, by a hash of their ids
    held_out_clips: int = Field(16, ge=0)
    held_out_crop: int = Field(256, gt=0)  # px, the middle of a picture
    # Ways in which each of them is degraded. Ours: few clips alone would say little.
    held_out_draws: int = Field(1, ge=1)

    # The losses. Weights are the paper's (section 4.1: 1, 1, 0.1).
    l1_weight: float = Field(1.0, ge=0)
    perceptual: Literal["vgg19", "squeezenet", "none"] = "vgg19"
    perceptual_path: str | None = None  # of vgg19: a file of torchvision's; None: fetched
    perceptual_weight: float = Field(1.0, ge=0)
    gan_weight: float = Field(0.1, ge=0)
    # Steps of L1 alone before the other losses: the paper trains such a network first (1M steps).
    pretrain_steps: int = Field(0, ge=0)

    # The optimisers: Adam.
    seed: int = Field(0, ge=0)
    batch_size: int = Field(gt=0)  # clips
    max_steps: int = Field(gt=0)
    learning_rate: float = Field(1e-4, gt=0)  # paper
    # None: as the generator's (paper).
    discriminator_learning_rate: float | None = Field(None, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)  # the published options'
    ema_decay: float = Field(0.999, ge=0, lt=1)  # paper: EMA; the published options' decay

    # The machine.
    precision: Literal["float32", "bf16"] = "float32"
    device: str = "auto"  # auto: cuda where there is one, else cpu
    num_threads: int | None = Field(None, ge=1)  # of torch on a CPU; the loss depends on it
    loader_threads: int = Field(4, ge=1)
    prefetch: int = Field(2, ge=1)  # batches made ahead

    # What is written.
    checkpoint_every: int = Field(1000, gt=0)  # steps
    keep_checkpoints: int = Field(2, ge=1)
    evaluate_every: int = Field(1000, gt=0)

    @model_validator(mode="after")
    def fits_together(self) -> Config:
        factor = 8  # of the discriminator; and H.264 needs even sides of small pictures
        for key in ("crop", "held_out_crop"):
            size = getattr(self, key)
            if size % factor or size < 32 * self.scale:
                raise ValueError(
                    f"{key} is {size}: give a multiple of {factor} from {32 * self.scale} on"
                )
        return self


def load_config(preset: str, overrides: list[str]) -> Config:
    """A preset with `path=value` overrides; ConfigError for what is unknown or out of range."""
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r} of --stage sr{nearest(preset, PRESETS)}")
    tree = dict(PRESETS[preset])
    for override in overrides:
        set_path(tree, override)
    try:
        return Config(**tree)
    except ValidationError as error:
        raise ConfigError(f"preset {preset}: {explain(error, Config)}") from None
