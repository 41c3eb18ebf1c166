"""Presets of training, and one validated Config from a preset and `--set path=value`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from curation.settings import ConfigError, explain, nearest, set_path
from model.weights import STABLE_DIFFUSION

# What no line gives a source for is ours, for the reason beside it. Times: docs/training.md.
PRESETS: dict[str, dict[str, Any]] = {
    # Two CPU cores, minutes: pixels as latents, a random text tower, a 3.5 M U-Net.
    "tiny": {
        "model": "tiny",
        "latents": "space_to_depth",
        "text": "tiny",
        "num_frames": 8,
        "width": 112,
        "height": 64,
        "fps": 8,
        "batch_size": 2,
        "max_steps": 80,  # minutes
        "learning_rate": 1e-3,  # AdamW's own default
        "warmup_steps": 10,  # an eighth of the run
        "ema_decay": 0.98,  # a mean over about 50 steps
        "checkpoint_every": 20,
        "evaluate_every": 40,
        "sample_every": 80,
        "sample_steps": 12,
        "guidance": 3.0,  # 9 is for models that were trained to the end
        "num_samples": 2,
        "held_out": 0.1,  # small datasets have few videos
        "num_threads": 2,
        "loader_threads": 1,
    },
    # One GPU: Stable Diffusion latents, OpenCLIP text, 224x128.
    "small": {
        "model": "small",
        "latents": "stable_diffusion",
        "text": "open_clip",
        "num_frames": 16,
        "width": 224,
        "height": 128,
        "fps": 8,
        "batch_size": 32,  # a quarter of the paper's, for one GPU; half its steps
        "micro_batch_size": 8,
        "max_steps": 20_000,
        "learning_rate": 1e-4,  # Stable Diffusion 2's own
        "warmup_steps": 1000,
        "precision": "bf16",
        "held_out_clips": 64,
    },
    # The paper's: batch 128, about 40k steps, 344x192, 16 frames.
    "videofactory": {
        "model": "videofactory",
        "latents": "stable_diffusion",
        "text": "open_clip",
        "num_frames": 16,
        "width": 344,
        "height": 192,
        "fps": 8,
        "batch_size": 128,
        "micro_batch_size": 4,
        "max_steps": 40_000,
        "learning_rate": 5e-5,  # half of Stable Diffusion 2's: most of it is trained already
        "warmup_steps": 1000,  # in which Swap-CA's random parts find their size
        "precision": "bf16",
        "activation_checkpointing": True,
    },
}


# What the upsampler changes of a preset: twice the sides, so four times the latents of a clip.
UPSAMPLER: dict[str, dict[str, Any]] = {
    "tiny": {"width": 224, "height": 128, "batch_size": 1},
    "small": {"width": 448, "height": 256, "micro_batch_size": 2, "activation_checkpointing": True},
    "videofactory": {"width": 688, "height": 384, "micro_batch_size": 1},
}


class Config(BaseModel):
    """Everything that a run depends on besides its data and its start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # By --stage: the model itself, or the U-Net that doubles the sides of what it makes.
    stage: Literal["base", "upsampler"] = "base"
    # The upsampler sees low-resolution latents with the noise of a step drawn from 0 to this one,
    # and is told which; samples take the step noise_level. Stable Diffusion's x4 upscaler's.
    max_noise_level: int = Field(350, ge=0, lt=1000)
    noise_level: int = Field(20, ge=0, lt=1000)

    # What is trained. `unet` changes keys of the model's preset, such as unet.swap_window.
    model: Literal["tiny", "small", "videofactory"]
    unet: dict[str, Any] = {}
    latents: Literal["space_to_depth", "stable_diffusion"]
    latents_path: str = STABLE_DIFFUSION  # of the autoencoder: a folder, or an id of the hub
    text: Literal["tiny", "open_clip"]
    # OpenCLIP weights: a file, a tag to fetch, or a folder text_encoder of transformers.
    text_path: str = "laion2b_s32b_b79k"
    # lora: adapters of spatial and temporal attention, and Swap-CA.
    trainable: Literal["all", "temporal_and_swap", "swap", "lora"] = "all"
    lora_rank: int = Field(16, gt=0)  # ours: diffusers' trainers take 4 to 64

    # What a sample is. fps: frames taken per second; with stride, every stride-th instead.
    num_frames: int = Field(gt=0)
    height: int = Field(gt=0)  # px
    width: int = Field(gt=0)  # px
    fps: float = Field(8, gt=0)
    stride: int | None = Field(None, ge=1)
    # With unet.fps_conditioning: a sample's rate is drawn from those that its clip has frames for.
    fps_choices: list[float] = []
    # Shapes [num_frames, height, width] that clips are trained in; []: the one above alone.
    buckets: list[tuple[int, int, int]] = []
    # Of each dataset's row groups that a worker holds; the more, the more videos in a batch. Ours:
    # 8 workers then fit beside their models in 64 GB. Precomputed rows need none.
    shuffle_memory_gb: float = Field(4, gt=0)
    # Share of videos that are never trained on, by a hash of their ids: the same in every subset.
    held_out: float = Field(0.01, ge=0, lt=1)
    held_out_clips: int = Field(128, ge=0)  # clips of them that are evaluated, of each dataset
    # Places of a clip where a sample may begin. None: anywhere; precomputed, the middle alone.
    windows: int | None = Field(None, ge=1)
    # Train on what vf-precompute wrote: true (DATASET/latents), or its --output.
    precomputed: bool | str = False
    stored_dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of what it writes

    # Diffusion. prediction_type: None follows --init; without one it is v_prediction.
    # Ours: its loss is of one size at every timestep.
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    zero_terminal_snr: bool = False
    min_snr_gamma: float | None = Field(None, gt=0)
    caption_dropout: float = Field(0.1, ge=0, le=1)  # share trained on the empty prompt
    # Of the temporal convolutions. ModelScope's 0.1 would tie the loss to how a batch is split.
    dropout: float = Field(0.0, ge=0, lt=1)

    # The optimiser: AdamW.
    seed: int = Field(0, ge=0)
    batch_size: int = Field(gt=0)
    # Clips of the shape below at once, as many pixels of others; None: all of a shape.
    micro_batch_size: int | None = Field(None, gt=0)
    max_steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    # Of one part's rate over learning_rate: {swap: 5} for Swap-CA, which is random at the start.
    learning_rate_factors: dict[Literal["spatial", "temporal", "swap"], float] = {}
    betas: tuple[float, float] = (0.9, 0.999)  # these and eps: torch's
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)  # of matrices and kernels; norms and biases have none
    clip_norm: float = Field(1.0, gt=0)
    max_skipped_steps: int = Field(10, ge=0)  # with a loss that is no number, before a run ends
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    # Two more averages, of which vf-export --ema makes any other (checkpoints/post_hoc.py), and the
    # steps between snapshots of them. Ours: at most 40 snapshots of the presets' 40,000 steps.
    post_hoc_ema: bool = False
    post_hoc_every: int = Field(1000, gt=0)

    # The machine.
    precision: Literal["float32", "bf16", "float64"] = "float32"
    # Of autoencoder and text encoder; auto: bf16 on a GPU, where they are 30% of a step in fp32.
    encoder_precision: Literal["auto", "float32", "bf16"] = "auto"
    # Blocks are computed again in the backward; selective: but for what is dear (parallel.KEPT).
    activation_checkpointing: bool | Literal["selective"] = False
    compile: bool = False  # each block of the U-Net, once for every shape
    # With --workers: a copy each, a share each, or a share each of several copies.
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    shard_workers: int | None = Field(None, ge=1)  # of hsdp: workers that share one copy
    device: str = "auto"  # auto: cuda where there is one, else cpu
    num_threads: int | None = Field(None, ge=1)  # of torch on a CPU; the loss depends on it
    loader_threads: int = Field(4, ge=1)
    prefetch: int = Field(2, ge=1)  # batches decoded ahead
    # TFLOP/s of the device, of which metrics.jsonl tells the share. None: as known by its name.
    peak_tflops: float | None = Field(None, gt=0)

    # What is written. logger: where scalars and samples go besides RUN; the middle two are extras.
    logger: Literal["tensorboard", "trackio", "wandb", "none"] = "tensorboard"
    # [from, to], both with it: torch.profiler's trace of these steps in RUN/profile.
    profile_steps: tuple[int, int] | None = None
    checkpoint_every: int = Field(1000, gt=0)  # steps
    checkpoint_every_s: float | None = Field(None, gt=0)  # and after so long: what a loss may cost
    keep_checkpoints: int = Field(2, ge=1)
    milestone_every: int | None = Field(None, gt=0)  # steps whose checkpoints stay for ever
    # A folder or URI that each checkpoint is copied to, and that a RUN without any starts from. It
    # may hold a key to a store, so it is no part of what is written.
    checkpoint_to: str | None = Field(None, exclude=True)
    evaluate_every: int = Field(1000, gt=0)
    timestep_bins: int = Field(4, ge=1)
    sample_every: int = Field(1000, gt=0)
    sample_prompts: list[str] = []  # []: captions of the data
    num_samples: int = Field(4, ge=0)
    sample_steps: int = Field(50, ge=1)
    guidance: float = 9.0
    # DATASET/train_signal/RUN.parquet: how well each clip is learned, for vf-clean and vf-report.
    train_signal: bool = False
    # FVD of the EMA weights by vf-eval's protocol `dataset` every so many steps; None: never.
    protocol_every: int | None = Field(None, gt=0)
    protocol_samples: int = Field(128, ge=4)  # held-out clips, and as many generated ones
    protocol_set: list[str] = []  # other key=value settings of the protocol
    protocol_i3d: str | None = None  # I3D's weights: a file, or untrained. None: as fetched

    @property
    def num_windows(self) -> int | None:
        return self.windows or (1 if self.precomputed else None)

    @field_validator("unet", mode="before")
    @classmethod
    def off_is_a_word(cls, unet: Any) -> Any:
        """YAML reads `swap_attention=off` as False."""
        if isinstance(unet, dict) and unet.get("swap_attention") is False:
            return unet | {"swap_attention": "off"}
        return unet

    @model_validator(mode="after")
    def fits_together(self) -> Config:
        if (self.parallel == "hsdp") != bool(self.shard_workers):
            raise ValueError("parallel=hsdp and shard_workers (of one copy) need each other")
        if self.activation_checkpointing == "selective" and self.compile:
            raise ValueError(
                "activation_checkpointing=selective does not see what compiled blocks do: use "
                "true or false, or leave out compile"
            )
        if self.fps_choices and not self.unet.get("fps_conditioning"):
            raise ValueError("fps_choices needs unet.fps_conditioning=true; leave one out")
        if self.fps_choices and (self.stride or self.precomputed):
            raise ValueError("fps_choices needs raw clips read by fps: no stride, no precomputed")
        if self.profile_steps and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(
                "profile_steps: give [from, to], the first step is 1; such as [11, 12]"
            )
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError("zero_terminal_snr needs prediction_type=v_prediction; change one")
        if self.stage == "upsampler" and self.precomputed:
            raise ValueError("stage=upsampler needs raw clips, of two sizes: leave out precomputed")
        if self.stage == "upsampler" and self.trainable != "all":
            raise ValueError(
                "stage=upsampler trains conv_in, which sees the low resolution: leave out trainable"
            )
        if self.post_hoc_ema and self.trainable == "lora":
            raise ValueError("post_hoc_ema averages whole weights: not with trainable=lora")
        if self.stage == "upsampler" and self.protocol_every:
            raise ValueError("protocol_every measures what prompts give: not with stage=upsampler")
        if "low_res_channels" in self.unet:
            raise ValueError("unet.low_res_channels is the upsampler's: use --stage upsampler")
        factor = 8 if self.latents == "stable_diffusion" else 4
        factor *= 2 if self.stage == "upsampler" else 1
        sizes = [("height", self.height), ("width", self.width)]
        for bucket in self.buckets:
            if min(bucket) < 1 or self.buckets.count(bucket) > 1:
                raise ValueError(
                    f"buckets holds {list(bucket)}: give [num_frames, height, width] of at least "
                    "1, each shape once"
                )
            _, height, width = bucket
            sizes += [("a bucket's height", height), ("a bucket's width", width)]
        for key, size in sizes:
            if size % factor:
                raise ValueError(
                    f"{key} is {size}: give a multiple of {factor}, such as "
                    f"{max(1, round(size / factor)) * factor}"
                )
        return self


# What may change between one part of a run and the next without touching the loss trace.
FREE_KEYS = (
    *("loader_threads", "prefetch", "checkpoint_every", "keep_checkpoints", "evaluate_every"),
    *("checkpoint_every_s", "milestone_every", "post_hoc_every"),
    *("timestep_bins", "sample_every", "sample_prompts", "num_samples", "sample_steps"),
    "max_skipped_steps",
    *("protocol_every", "protocol_samples", "protocol_set", "protocol_i3d"),
    *("peak_tflops", "logger", "profile_steps"),
    *("guidance", "noise_level", "train_signal"),
    *("parallel", "shard_workers"),  # ddp and fsdp agree as two numbers of workers do
)


def load_config(preset: str, overrides: list[str], stage: str = "base") -> Config:
    """A preset with `path=value` overrides; ConfigError for what is unknown or out of range."""
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}")
    tree = {**PRESETS[preset], "stage": stage}
    if stage == "upsampler":
        tree |= UPSAMPLER[preset]
    for override in overrides:
        set_path(tree, override)
    if tree["stage"] != stage:
        raise ConfigError(
            "stage is no key of --set: use --stage, which sets the sizes that go with it"
        )
    return validated(tree, f"preset {preset}")


def validated(tree: dict[str, Any], where: str) -> Config:
    """A Config from plain data; ConfigError with the first problem."""
    try:
        config = Config(**tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, Config)}") from None
    check_unet_keys(config)
    return config


Asked = TypeVar("Asked", bound=BaseModel)
# Of what is to be a folder: an arm of a grid, a stage.
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def from_yaml(path: Path, kind: type[Asked], needs: str) -> Asked:
    """A checked model from a YAML file of a user; `needs` says what one holds.

    Raises ConfigError with the first problem.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).splitlines())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is none: give {needs}")
    try:
        return kind(**tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, kind)}") from None


def check_unet_keys(config: Config) -> None:
    import inspect

    from model import SpaceTimeUNet

    known = set(inspect.signature(SpaceTimeUNet.__init__).parameters) - {"self"}
    for key in config.unet:
        if key not in known:
            raise ConfigError(f"unknown key {'unet.' + key!r}{nearest(key, known)}")
