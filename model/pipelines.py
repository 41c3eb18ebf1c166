"""From prompts to video: text states, guided sampling in latents, pixels, an mp4."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from rich.progress import track
from torch import Tensor

from model.diffusion import SAMPLERS, Sampler, guide
from model.latents import Codec, SpaceToDepth, StableDiffusionLatents, to_raw
from model.mp4 import write_mp4
from model.texts import OpenCLIPText, TextEncoder, TinyText, TransformersText
from model.unet import SpaceTimeUNet
from model.upsampling import FACTOR, low_res_input

# What rebuilds each codec and text encoder. Large ones are saved as a reference to their weights.
CODECS: dict[type, tuple[str, ...]] = {
    SpaceToDepth: ("factor",),
    StableDiffusionLatents: ("path_or_id",),
}
TEXTS: dict[type, tuple[str, ...]] = {
    TinyText: ("width", "layers", "heads", "seed"),
    OpenCLIPText: ("weights", "model"),
    TransformersText: ("folder",),
}


@dataclass(frozen=True)
class Settings:
    """What a call of the pipeline takes where it is told nothing else.

    The defaults are those of the preset videofactory with ModelScope T2V's usual guidance.
    """

    num_frames: int = 16
    height: int = 192  # px
    width: int = 344  # px
    fps: float = 8.0
    num_inference_steps: int = 50
    guidance_scale: float = 9.0
    noise_level: int = 20  # of an upsampler; Stable Diffusion's x4 upscaler has this one


@dataclass(frozen=True)
class VideoOutput:
    """Sampled clips: raw pixels uint8 [B, T, H, W, 3] on the CPU, shown at fps.

    latents: [B, C, T, h, w] that the frames were decoded from, for an upsampler.
    """

    frames: Tensor
    fps: float
    latents: Tensor

    def save(self, path: str | Path, index: int = 0) -> Path:
        """Write one clip as an mp4 (H.264) and return its path."""
        write_mp4(self.frames[index], Path(path), self.fps)
        return Path(path)


class VideoFactoryPipeline:
    """Samples clips from prompts, called like a diffusers pipeline.

    schedule: the one the U-Net was trained with (`noise_schedule`); it says epsilon or v.
    settings: sizes, steps and guidance of a call that does not name them.
    """

    def __init__(
        self,
        unet: SpaceTimeUNet,
        codec: Codec,
        text: TextEncoder,
        schedule: DDPMScheduler,
        settings: Settings = Settings(),
    ) -> None:
        takes = (unet.config["in_channels"], unet.config["cross_attention_dim"])
        if takes != (codec.channels, text.width):
            raise ValueError(
                f"the U-Net takes {takes[0]} latent channels and text of width {takes[1]}; the "
                f"codec gives {codec.channels} and the text encoder {text.width}. Give those it "
                "was trained with."
            )
        self.unet = unet
        self.codec = codec
        self.text = text
        self.schedule = schedule
        self.settings = settings

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        low_res: Tensor | None = None,
        noise_level: int | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str = "",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sampler: Sampler = "dpm",
        progress: bool = True,
    ) -> VideoOutput:
        """One clip for each prompt; None stands for the pipeline's own settings.

        height, width: pixels, multiples of the codec's factor.
        fps: of the mp4, and told to the U-Net where it has `fps_conditioning`.
        low_res: for an upsampler, the latents [B, C, T, h, w] that the base made; the clip then has
            their frames and twice their size. noise_level: the step of the schedule whose noise
            they get, so that the upsampler makes up what it may: more hides more of them.
        guidance_scale: 1 is no guidance, and half the work; 9 is the usual one of ModelScope
            T2V. guidance_rescale: 0.7 with zero terminal SNR (`guide`).
        negative_prompt: what to steer away from; "" is the empty prompt of training.
        generator: one for each prompt makes a clip the same alone and in a batch; a single one
            is drawn from in order.
        sampler: dpm (DPM-Solver++ 2M) or ddim.

        Raises ValueError for a size the codec cannot make, for a wrong number of generators, and
        for an upsampler without low_res.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        named: dict[str, Any] = {
            **{"num_frames": num_frames, "height": height, "width": width, "fps": fps},
            **{"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale},
            "noise_level": noise_level,
        }
        if low_res is not None:
            named |= self._sizes_of(low_res)
        use = replace(self.settings, **{k: v for k, v in named.items() if v is not None})
        self._check(prompts, use.height, use.width, generator, sampler)
        self._check_low_res(low_res, len(prompts), use)
        f, unet = self.codec.factor, self.unet
        shape = (self.codec.channels, use.num_frames, use.height // f, use.width // f)
        noise = draw_noise(shape, len(prompts), generator).to(unet.device)
        # Under autocast the U-Net alone is: in training too, its encoders compute as they are.
        with torch.autocast(unet.device.type, enabled=False):
            wanted = self.text.encode(prompts).to(unet.device, unet.dtype)
            unwanted = self.text.encode([negative_prompt]).to(wanted).expand_as(wanted)
        told = self._told(use, low_res, generator)

        def denoise(x: Tensor, steps: Tensor) -> Tensor:
            x = x.to(unet.dtype)
            if use.guidance_scale == 1:
                return unet(x, steps, wanted, **told).sample.float()
            both = unet(twice(x), steps.repeat(2), torch.cat([wanted, unwanted]),
                        **{name: twice(value) for name, value in told.items()})  # fmt: skip
            conditional, unconditional = both.sample.float().chunk(2)
            return guide(conditional, unconditional, use.guidance_scale, guidance_rescale)

        def bar(steps: Iterable[int]) -> Iterable[int]:
            return track(list(steps), "sampling", transient=True, disable=not progress)

        was_training = unet.training
        unet.eval()
        count = use.num_inference_steps
        latents = SAMPLERS[sampler](denoise, noise, self.schedule, count, bar)
        unet.train(was_training)
        with torch.autocast(unet.device.type, enabled=False):
            pixels = self.codec.decode(latents)
        return VideoOutput(to_raw(pixels).cpu(), use.fps, latents.float().cpu())

    def _sizes_of(self, low_res: Tensor) -> dict[str, int]:
        """The clip that an upsampler makes of latents [B, C, T, h, w]."""
        _, _, T, h, w = low_res.shape
        side = FACTOR * self.codec.factor
        return {"num_frames": T, "height": h * side, "width": w * side}

    def _told(
        self,
        use: Settings,
        low_res: Tensor | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> dict[str, Any]:
        """What the U-Net is told beside text and timestep; the noise of each clip is its own."""
        told: dict[str, Any] = {"fps": use.fps} if self.unet.config["fps_conditioning"] else {}
        if low_res is None:
            return told
        low_res = low_res.to(self.unet.device)
        noise = draw_noise(tuple(low_res.shape[1:]), len(low_res), generator).to(low_res)
        levels = torch.full((len(low_res),), use.noise_level, device=low_res.device)
        seen = low_res_input(self.codec, self.schedule, low_res, noise, levels)
        return told | {"low_res": seen, "noise_level": use.noise_level}

    def save_pretrained(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write model_index.json, unet/, scheduler/, codec/ and text/, as diffusers lays them out.

        The U-Net is saved whole; a codec or text encoder with weights of its own as where those
        lie, one without as what rebuilds it to the bit.
        about: what else export.json, beside the settings, tells of this model.

        Raises ValueError for a codec or text encoder that is not one of `model`'s.
        """
        folder = Path(folder)
        codec, text = config_of(self.codec, CODECS), config_of(self.text, TEXTS)
        self.unet.save_pretrained(folder / "unet")
        self.schedule.save_pretrained(folder / "scheduler")
        write_json(folder / "codec" / "config.json", codec)
        write_json(folder / "text" / "config.json", text)
        write_json(folder / "export.json", {"sampling": asdict(self.settings), **(about or {})})
        index = {
            "_class_name": type(self).__name__,
            "unet": ["model", type(self.unet).__name__],
            "scheduler": ["diffusers", type(self.schedule).__name__],
            "codec": ["model", codec["_class_name"]],
            "text": ["model", text["_class_name"]],
        }
        write_json(folder / "model_index.json", index)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        codec: Codec | None = None,
        text: TextEncoder | None = None,
    ) -> "VideoFactoryPipeline":
        """What `save_pretrained` or vf-export wrote: the same model to the bit, in fp32.

        codec, text: instead of those it names, where their weights lie elsewhere now.

        Raises FileNotFoundError for a folder that is no export, ValueError for a text encoder
        that this torch does not rebuild as it was.
        """
        folder = Path(folder)
        if not is_export(folder):
            raise FileNotFoundError(
                f"{folder} holds no exported model (model_index.json of a {cls.__name__}): give "
                "the --output of vf-export, or the folder of save_pretrained."
            )
        unet = SpaceTimeUNet.from_pretrained(str(folder), subfolder="unet")
        schedule = DDPMScheduler.from_pretrained(str(folder), subfolder="scheduler")
        codec = codec or rebuild(folder / "codec" / "config.json", CODECS, device)
        text = text or rebuild(folder / "text" / "config.json", TEXTS, device)
        about = json.loads((folder / "export.json").read_text())
        unet.to(device).eval()
        return cls(unet, codec, text, schedule, Settings(**about["sampling"]))

    def _check(
        self,
        prompts: list[str],
        height: int,
        width: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        sampler: str,
    ) -> None:
        if height % self.codec.factor or width % self.codec.factor:
            raise ValueError(
                f"{width}x{height} does not divide by the codec's {self.codec.factor}: give "
                "multiples of it, such as 344x192."
            )
        if isinstance(generator, Sequence) and len(generator) != len(prompts):
            raise ValueError(
                f"{len(generator)} generators for {len(prompts)} prompts: give one for each."
            )
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler={sampler!r}: choose one of {', '.join(SAMPLERS)}.")

    def _check_low_res(self, low_res: Tensor | None, clips: int, use: Settings) -> None:
        channels = self.unet.config["low_res_channels"]
        if not channels and low_res is not None:
            raise ValueError("this model is no upsampler: leave out low_res.")
        if channels and low_res is None:
            raise ValueError(
                "this model is an upsampler: give low_res, the `latents` of what the base made."
            )
        if low_res is not None and low_res.shape[:2] != (clips, channels):
            raise ValueError(
                f"low_res has shape {list(low_res.shape)}: give latents [{clips}, {channels}, T, "
                "h, w], one clip for each prompt, of the codec that this model was trained with."
            )
        if low_res is not None and not 0 <= use.noise_level < len(self.schedule.alphas_cumprod):
            raise ValueError(f"noise_level={use.noise_level}: give a step of the schedule, from 0.")


def twice(value: Any) -> Any:
    """A batch of clips after itself; what is one number for all clips stays it."""
    return torch.cat([value, value]) if isinstance(value, Tensor) else value


def is_export(folder: Path) -> bool:
    """Whether a folder was written by `VideoFactoryPipeline.save_pretrained`."""
    index = folder / "model_index.json"
    try:
        found = json.loads(index.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("_class_name") == VideoFactoryPipeline.__name__


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def config_of(part: Any, known: Mapping[type, tuple[str, ...]]) -> dict[str, Any]:
    """Class and arguments of a codec or text encoder; a path that exists is made absolute."""
    if type(part) not in known:
        names = ", ".join(kind.__name__ for kind in known)
        raise ValueError(f"{type(part).__name__} cannot be saved: only {names} can.")
    config: dict[str, Any] = {"_class_name": type(part).__name__}
    for key in known[type(part)]:
        value = getattr(part, key)
        is_path = isinstance(value, str | Path) and Path(value).exists()
        config[key] = str(Path(value).resolve()) if is_path else value
    if isinstance(part, TinyText):
        config["fingerprint"] = part.fingerprint()
    return config


def rebuild(path: Path, known: Mapping[type, tuple[str, ...]], device: torch.device | str) -> Any:
    """The codec or text encoder of a config; those with weights load them on first use."""
    config = json.loads(path.read_text())
    kinds = {kind.__name__: kind for kind in known}
    if config["_class_name"] not in kinds:
        raise ValueError(f"{path}: {config['_class_name']} is none of {', '.join(kinds)}.")
    kind = kinds[config["_class_name"]]
    own = {} if kind in (SpaceToDepth, TinyText) else {"device": device}
    part = kind(**{key: config[key] for key in known[kind]}, **own)
    if isinstance(part, TinyText) and part.fingerprint() != config["fingerprint"]:
        raise ValueError(
            f"{path}: torch {torch.__version__} draws other random weights from seed "
            f"{config['seed']} than the torch that trained this model. Use that one."
        )
    return part


def draw_noise(
    shape: tuple[int, ...],
    clips: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Tensor:
    """Noise [clips, *shape] fp32, each clip drawn on its own from its generator."""
    sources = list(generator) if isinstance(generator, Sequence) else [generator] * clips
    return torch.stack(
        [
            torch.randn(shape, generator=source, device=source.device if source else None)
            for source in sources
        ]
    )
