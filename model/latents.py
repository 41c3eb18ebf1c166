"""Raw pixels, pixels and latents, and the two codecs between the last two.

raw pixels  uint8 [B, T, H, W, 3], 0..255, as decoded from video and as written to it
pixels      float [B, 3, T, H, W], -1..1
latents     float [B, C, T, H/f, W/f], about unit variance, what the diffusion model sees
"""

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from model.weights import how_to_get, variant_of


def to_pixels(raw: Tensor) -> Tensor:
    """Raw pixels uint8 [B, T, H, W, 3] to pixels fp32 [B, 3, T, H, W] in -1..1."""
    if raw.dtype != torch.uint8 or raw.ndim != 5 or raw.shape[-1] != 3:
        raise ValueError(
            f"raw pixels are uint8 [B, T, H, W, 3], not {raw.dtype} {list(raw.shape)}; "
            "pixels that are floats already need no conversion."
        )
    return raw.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_raw(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, T, H, W] to raw pixels uint8 [B, T, H, W, 3], clipped and rounded."""
    scaled = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def twice(clips: Tensor, mode: str) -> Tensor:
    """[B, C, T, h, w] at twice the height and width."""
    frames = clips.transpose(1, 2).flatten(0, 1)
    larger = F.interpolate(frames, scale_factor=2, mode=mode)
    return larger.unflatten(0, (len(clips), -1)).transpose(1, 2)


class Codec(Protocol):
    """What training and sampling need of a codec: C, f and the two directions."""

    channels: int
    factor: int

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels [B, 3, T, H, W] in -1..1 to latents [B, C, T, H/f, W/f]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] to pixels [B, 3, T, h f, w f], about -1..1."""

    def enlarge(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] to [B, C, T, 2h, 2w] of the same picture, nothing added."""


def check_pixels(pixels: Tensor, factor: int) -> None:
    """Refuse what is not a clip of floats whose sides divide by the codec's factor."""
    if not pixels.is_floating_point() or pixels.ndim != 5 or pixels.shape[1] != 3:
        raise ValueError(
            f"pixels are float [B, 3, T, H, W] in -1..1, not {pixels.dtype} {list(pixels.shape)}; "
            "convert raw pixels with to_pixels."
        )
    if pixels.shape[-2] % factor or pixels.shape[-1] % factor:
        raise ValueError(
            f"pixels of {pixels.shape[-1]}x{pixels.shape[-2]} do not divide by {factor}: "
            "resize or crop them, as 344x192 does."
        )


class SpaceToDepth:
    """Exact and weightless: each f x f patch becomes 3 f f channels.

    For machines without weights: a small model can train and sample on them. Scaled by 2
    (ours): natural pixels in -1..1 have a standard deviation of about a half, and a power of
    two keeps the round trip exact to the bit. generator is not used.
    """

    scale = 2.0

    def __init__(self, factor: int = 4) -> None:
        self.factor = factor
        self.channels = 3 * factor * factor

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        check_pixels(pixels, self.factor)
        return F.pixel_unshuffle(pixels.transpose(1, 2), self.factor).transpose(1, 2) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents.transpose(1, 2) / self.scale, self.factor).transpose(1, 2)

    def enlarge(self, latents: Tensor) -> Tensor:
        """Bilinear, between the pixels themselves."""
        return self.encode(twice(self.decode(latents), "bilinear"))


class StableDiffusionLatents:
    """Stable Diffusion's autoencoder, frame by frame: f = 8, C = 4, scale 0.18215.

    path_or_id: a folder in diffusers' format holding the autoencoder, or its parent with
        `vae/`, or a hub id. Loaded on first use.
    chunk_frames: frames at once through the network; memory grows with it, results do not
        depend on it. 8 is ours: the decoder's widest feature, 256 channels of full size, is
        then 0.5 GB in fp32 at 344x192.

    Raises FileNotFoundError on first use where nothing is found, ValueError where it is not an
    autoencoder with f = 8 and C = 4.
    """

    channels = 4
    factor = 8

    def __init__(
        self,
        path_or_id: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        chunk_frames: int = 8,
    ) -> None:
        self.path_or_id = path_or_id
        self.device = torch.device(device)
        self.dtype = dtype
        self.chunk_frames = chunk_frames
        self._vae: Any = None

    @property
    def vae(self) -> Any:
        """diffusers' AutoencoderKL, frozen, loaded on first use."""
        if self._vae is None:
            self._vae = load_vae(self.path_or_id).to(self.device, self.dtype)
        return self._vae

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As `Codec.encode`: a draw from the posterior with generator, else its mean."""
        check_pixels(pixels, self.factor)
        posteriors = [self.vae.encode(x).latent_dist for x in self._chunks(pixels)]
        latents = torch.cat([p.mean for p in posteriors])
        if generator is not None:
            noise = torch.randn(latents.shape, generator=generator, device=generator.device)
            latents = latents + torch.cat([p.std for p in posteriors]) * noise.to(latents)
        latents = latents * self.vae.config.scaling_factor
        return latents.unflatten(0, (len(pixels), -1)).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        scaled = latents / self.vae.config.scaling_factor
        frames = torch.cat([self.vae.decode(x).sample for x in self._chunks(scaled)])
        return frames.unflatten(0, (len(latents), -1)).transpose(1, 2)

    def enlarge(self, latents: Tensor) -> Tensor:
        """Each latent four times: a mean of two would be the code of neither patch."""
        return twice(latents, "nearest")

    def _chunks(self, clips: Tensor) -> tuple[Tensor, ...]:
        frames = clips.transpose(1, 2).flatten(0, 1).to(self.device, self.dtype)
        return frames.split(self.chunk_frames)


def load_vae(path_or_id: str | Path) -> Any:
    """Read an AutoencoderKL of Stable Diffusion's kind, frozen."""
    root = Path(path_or_id)
    own_folder = (root / "config.json").is_file()
    try:
        if root.is_absolute() and not root.is_dir():
            raise FileNotFoundError(root)
        vae, info = AutoencoderKL.from_pretrained(
            str(path_or_id),
            subfolder=None if own_folder else "vae",
            torch_dtype=torch.float32,
            variant=variant_of(root if own_folder else root / "vae"),
            output_loading_info=True,
            low_cpu_mem_usage=False,  # else diffusers advises to install accelerate
        )
    except OSError as error:
        raise FileNotFoundError(
            f"no autoencoder at {str(path_or_id)!r}: neither a folder with config.json or "
            "vae/config.json and its weights nor a hub id that can be reached. "
            f"{how_to_get('autoencoder')}, and give DIR; or use SpaceToDepth, which needs none."
        ) from error
    config = vae.config
    found = (config.latent_channels, 2 ** (len(config.block_out_channels) - 1))
    if found != (4, 8) or config.shift_factor is not None or info["missing_keys"]:
        raise ValueError(
            f"{path_or_id}: C={found[0]}, f={found[1]}, shift_factor={config.shift_factor}, "
            f"{len(info['missing_keys'])} weights missing; need Stable Diffusion 1 or 2's "
            "autoencoder, C=4, f=8, no shift, complete."
        )
    return vae.eval().requires_grad_(False)
