"""From prompts to video: text states, guided sampling in latents, pixels, an mp4."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from rich.progress import track
from torch import Tensor

from model.diffusion import SAMPLERS, Sampler, guide
from model.latents import Codec, to_raw
from model.texts import TextEncoder
from model.unet import SpaceTimeUNet


@dataclass(frozen=True)
class VideoOutput:
    """Sampled clips: raw pixels uint8 [B, T, H, W, 3] on the CPU, shown at fps."""

    frames: Tensor
    fps: float

    def save(self, path: str | Path, index: int = 0) -> Path:
        """Write one clip as an mp4 (H.264) and return its path."""
        write_mp4(self.frames[index], Path(path), self.fps)
        return Path(path)


class VideoFactoryPipeline:
    """Samples clips from prompts, called like a diffusers pipeline.

    schedule: the one the U-Net was trained with (`noise_schedule`); it says epsilon or v.
    """

    def __init__(
        self, unet: SpaceTimeUNet, codec: Codec, text: TextEncoder, schedule: DDPMScheduler
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

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_frames: int = 16,
        height: int = 192,
        width: int = 344,
        fps: float = 8.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 9.0,
        guidance_rescale: float = 0.0,
        negative_prompt: str = "",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sampler: Sampler = "dpm",
        progress: bool = True,
    ) -> VideoOutput:
        """One clip for each prompt.

        height, width: pixels, multiples of the codec's factor.
        fps: of the mp4, and told to the U-Net where it has `fps_conditioning`.
        guidance_scale: 1 is no guidance, and half the work; 9 is the usual one of ModelScope
            T2V. guidance_rescale: 0.7 with zero terminal SNR (`guide`).
        negative_prompt: what to steer away from; "" is the empty prompt of training.
        generator: one for each prompt makes a clip the same alone and in a batch; a single one
            is drawn from in order.
        sampler: dpm (DPM-Solver++ 2M) or ddim.

        Raises ValueError for a size the codec cannot make and for a wrong number of generators.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        self._check(prompts, height, width, generator, sampler)
        f, unet = self.codec.factor, self.unet
        shape = (self.codec.channels, num_frames, height // f, width // f)
        noise = draw_noise(shape, len(prompts), generator).to(unet.device)
        wanted = self.text.encode(prompts).to(unet.device, unet.dtype)
        unwanted = self.text.encode([negative_prompt]).to(wanted).expand_as(wanted)
        rate = {"fps": fps} if unet.config["fps_conditioning"] else {}

        def denoise(x: Tensor, steps: Tensor) -> Tensor:
            x = x.to(unet.dtype)
            if guidance_scale == 1:
                return unet(x, steps, wanted, **rate).sample.float()
            both = unet(x.repeat(2, 1, 1, 1, 1), steps.repeat(2), torch.cat([wanted, unwanted]),
                        **rate)  # fmt: skip
            conditional, unconditional = both.sample.float().chunk(2)
            return guide(conditional, unconditional, guidance_scale, guidance_rescale)

        def bar(steps: Iterable[int]) -> Iterable[int]:
            return track(list(steps), "sampling", transient=True, disable=not progress)

        was_training = unet.training
        unet.eval()
        latents = SAMPLERS[sampler](denoise, noise, self.schedule, num_inference_steps, bar)
        unet.train(was_training)
        return VideoOutput(to_raw(self.codec.decode(latents)).cpu(), fps)

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


def write_mp4(frames: Tensor, path: Path, fps: float) -> None:
    """Write frames uint8 [T, H, W, 3] as H.264, yuv420p, crf 18 (ours), into existing folders.

    Raises ValueError for odd sides, which yuv420p does not have.
    """
    import av

    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"{width}x{height} frames: an mp4 needs even sides. Crop or resize.")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
