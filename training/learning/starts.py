"""What a run trains and with what: the U-Net from a preset or `--init`, codec, text, schedule."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from curation.settings import ConfigError
from model import SpaceTimeUNet
from model.diffusion import noise_schedule
from model.latents import Codec, SpaceToDepth, StableDiffusionLatents
from model.texts import OpenCLIPText, TextEncoder, TinyText, TransformersText
from model.unet import part_of
from model.upsampling import as_upsampler
from training.checkpoints.folders import card_of, latest
from training.checkpoints.saving import read_unet
from training.config import Config
from training.data.orders import digest
from training.learning.adapters import MARK, add_adapters

# Of the U-Net's weights; bf16 is autocast's, over weights of 32 bits.
DTYPES = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}
OTHER_STARTS = ("modelscope", "sd")


@dataclass(frozen=True)
class Start:
    """An untrained run: its U-Net, the arguments of its `noise_schedule`, and what came whence.

    report: source, and the keys that are copied, new (random) and zero.
    draw_seed: of order, noise and timesteps; another one where the weights have met those of
        config.seed.
    """

    unet: SpaceTimeUNet
    noise: dict[str, Any]
    report: dict[str, Any]
    draw_seed: int

    def __str__(self) -> str:
        told = ", ".join(
            f"{len(self.report[name])} tensors {name}" for name in ("copied", "new", "zero")
        )
        return f"started from {self.report['source']}: {told}; {self.noise['prediction_type']}"


def device_of(config: Config) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device is {config.device!r}: {str(error).splitlines()[0]}; "
            "use auto, cpu, or cuda where there is one"
        ) from None
    return device


def with_weights_of(config: Config, init: str | None) -> Config:
    """A config whose autoencoder and text encoder are those beside the U-Net of `--init`.

    Where `sd:PATH` or `modelscope:PATH` holds vae/ or text_encoder/, each stands in for the default
    of latents_path and text_path; what was set to something else stays.
    """
    kind, _, path = (init or "").partition(":")
    beside = {}
    if kind in OTHER_STARTS and config.latents == "stable_diffusion":
        beside["latents_path"] = Path(path) / "vae"
    if kind in OTHER_STARTS and config.text == "open_clip":
        beside["text_path"] = Path(path) / "text_encoder"
    own = {
        key: str(folder.absolute())
        for key, folder in beside.items()
        if getattr(config, key) == Config.model_fields[key].default
        and (folder / "config.json").is_file()
    }
    return config.model_copy(update=own)


def encoder_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What autoencoder and text encoder compute in."""
    bf16 = {"auto": device.type == "cuda", "float32": False, "bf16": True}
    return torch.bfloat16 if bf16[config.encoder_precision] else torch.float32


def make_codec(config: Config, device: torch.device, lazy: bool = False) -> Codec:
    """The codec of a config; lazy: its weights are read when it is first used."""
    if config.latents == "space_to_depth":
        return SpaceToDepth(4)
    dtype = encoder_dtype(config, device)
    codec = StableDiffusionLatents(config.latents_path, device=device, dtype=dtype)
    try:
        if not lazy:
            _ = codec.vae  # before any work, not in its middle
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"latents_path: {error}") from None
    return codec


def make_text(config: Config, device: torch.device, lazy: bool = False) -> TextEncoder:
    """The text encoder of a config; lazy: its weights are read when it is first used."""
    if config.text == "tiny":
        return TinyText()
    kind = TransformersText if Path(config.text_path).is_dir() else OpenCLIPText
    text = kind(config.text_path, device=device, dtype=encoder_dtype(config, device))
    try:
        _ = text.width if lazy else text.tower
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"text_path: {error}") from None
    return text


def make_start(config: Config, init: str | None) -> Start:
    """Build the U-Net as `--init` says, or at random from the seed; raises ConfigError."""
    try:
        if init is None:
            start = random_start(config)
        elif init.partition(":")[0] in OTHER_STARTS:
            start = start_from_source(config, *init.split(":", 1))
        else:
            start = start_from_run(config, Path(init))
        if config.stage == "upsampler" and not start.unet.config["low_res_channels"]:
            start = upsampler_from(start, config.seed)
    except (ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--init {init}: {error}" if init else str(error)) from None
    as_precise(start.unet, config)
    return start


def as_precise(unet: SpaceTimeUNet, config: Config) -> None:
    """Weights of 64 bits where config asks for them; of 32 bits, as they are made, otherwise."""
    if config.precision == "float64":
        unet.double()


def random_start(config: Config) -> Start:
    torch.manual_seed(config.seed)
    unet = SpaceTimeUNet.from_preset(config.model, **config.unet)
    if config.latents == "space_to_depth":
        pass_through(unet)
    report = {"source": f"random weights, preset {config.model}, seed {config.seed}"}
    keys = {"copied": [], "new": sorted(unet.state_dict()), "zero": []}
    # v for random starts is ours: its loss is of one size at every timestep.
    return Start(unet, noise_of(config, None, {}), {**report, **keys}, config.seed)


@torch.no_grad()
def pass_through(unet: SpaceTimeUNet) -> None:
    """Begin so that the input reaches the output: conv_in, the first skip and conv_out each hand
    on what they get, beside what the blocks make.

    Pixels as latents have many channels, and most of what a prediction of v is made of is the
    noise itself; three random layers first have to learn to let it pass. Ours, measured on one
    clip (2 frames, 28x16, 160 steps, same seed): loss at step 100 0.108 instead of 0.325.
    """
    torch.nn.init.dirac_(unet.conv_in.weight)
    unet.conv_in.weight.add_(0.01 * torch.randn_like(unet.conv_in.weight))
    last: Any = unet.up_blocks[-1]
    shortcut = last.resnets[-1].conv_shortcut  # of [what was made, the skip]
    width = len(shortcut.weight)
    shortcut.weight.mul_(0.3)
    shortcut.weight[:, -width:, 0, 0] = torch.eye(width)
    # SiLU is nearly linear around 1.5, and slopes by 0.8 or so at half the spread.
    unet.conv_norm_out.weight.fill_(0.5)
    unet.conv_norm_out.bias.fill_(1.5)
    torch.nn.init.dirac_(unet.conv_out.weight)
    unet.conv_out.weight.mul_(0.8)
    for layer in (unet.conv_in, unet.conv_out):
        layer.bias.zero_()  # type: ignore[union-attr]


def upsampler_from(start: Start, seed: int) -> Start:
    """An upsampler that begins equal to a base model."""
    torch.manual_seed(seed)  # for what is new
    unet, new, zero = as_upsampler(start.unet)
    report = start.report
    told = {**report, "new": [*report["new"], *new], "zero": [*report["zero"], *zero]}
    return replace(start, unet=unet, report=told)


def start_from_source(config: Config, kind: str, path: str) -> Start:
    """ModelScope T2V or Stable Diffusion 2.x; the prediction type is the source's."""
    load = {"sd": SpaceTimeUNet.from_stable_diffusion, "modelscope": SpaceTimeUNet.from_modelscope}
    torch.manual_seed(config.seed)  # for what is new
    unet, report = load[kind](path, **config.unet)
    if report.prediction_type is None and config.prediction_type is None:
        raise ConfigError(
            f"--init {kind}:{path} came without a scheduler, so what it predicts is not known: "
            "give its parent folder, or --set prediction_type=epsilon (or v_prediction)"
        )
    noise = noise_of(config, report.prediction_type, report.scheduler_config)
    facts = asdict(report)
    told = {name: facts[name] for name in ("source", "copied", "new", "zero")}
    return Start(unet, noise, told, config.seed)


def start_from_run(config: Config, run: Path) -> Start:
    """The EMA weights of an earlier run's latest checkpoint; fine-tuning begins here."""
    checkpoint = latest(run)
    if checkpoint is None:
        raise ConfigError(
            f"--init {run}: no run with a checkpoint there; give the --output of an earlier "
            "vf-train, sd:PATH or modelscope:PATH"
        )
    card = card_of(checkpoint)
    earlier = card["config"]
    if earlier.get("stage", "base") == "upsampler" != config.stage:
        raise ConfigError(f"--init {run} is an upsampler: give a base run, or --stage upsampler")
    for key in ("model", "unet", "latents", "text"):
        if getattr(config, key) != earlier[key]:
            raise ConfigError(
                f"--init {run}: {key} is {earlier[key]!r} there and {getattr(config, key)!r} "
                f"here; use --preset and --set so that they are the same"
            )
    unet = read_unet(checkpoint, "ema")
    noise = noise_of(config, card["noise"]["prediction_type"], card["noise"]["source"])
    report = {"source": f"{run}, {checkpoint.name}, EMA", "copied": sorted(unet.state_dict())}
    before = card.get("draw_seed", earlier["seed"])
    seed = int.from_bytes(digest(config.seed, "after", before, checkpoint.name)[:6])
    return Start(unet, noise, {**report, "new": [], "zero": []}, seed)


def noise_of(config: Config, predicted: str | None, source: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `noise_schedule`: the source's prediction type, which config may only repeat."""
    if config.prediction_type and predicted and config.prediction_type != predicted:
        raise ConfigError(
            f"prediction_type={config.prediction_type}, but the start predicts {predicted}: "
            "leave prediction_type out, or start from something else"
        )
    noise: dict[str, Any] = {
        "prediction_type": config.prediction_type or predicted or "v_prediction",
        "zero_terminal_snr": config.zero_terminal_snr,
        "source": source,
    }
    try:
        noise_schedule(**noise)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return noise


def schedule_of(noise: dict[str, Any]) -> DDPMScheduler:
    return noise_schedule(**noise)


def choose_trained(unet: SpaceTimeUNet, config: Config) -> int:
    """Freeze what `trainable` leaves out, and put adapters where it asks for them; returns how
    many parameters are trained."""
    trainable = config.trainable
    if trainable == "lora":
        add_adapters(unet, config.lora_rank, config.seed)
    parts = {
        "all": ("spatial", "temporal", "swap"),
        "temporal_and_swap": ("temporal", "swap"),
        "swap": ("swap",),
        "lora": ("swap",),
    }[trainable]
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(part_of(name) in parts or MARK in name)
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    if not trained:
        raise ConfigError(f"trainable={trainable}: this U-Net has no such parameters; use all")
    return trained
