"""Small clips out of large ones, spoilt as pictures on their way through the internet are.

Real-ESRGAN's high-order model (Wang et al. 2021, https://arxiv.org/abs/2107.10833, section 3): two
rounds of blur, resize, noise and JPEG, sinc filters; then H.264 over the frames, so that a network
sees what inter-frame coding leaves (RealBasicVSR, Chan et al. 2022,
https://arxiv.org/abs/2111.12704). Blur, sizes and strengths are the same in all frames of a clip,
noise is each frame's own.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.frame import VideoFrame
from PIL import Image
from torch import Tensor

from training.superresolution.config import Degradation, Resize, Round
from training.superresolution.kernels import SIZES, Dice, draw_kernel, draw_sinc

MODES: tuple[Resize, ...] = ("area", "bilinear", "bicubic")


def degrade(clip: Tensor, scale: int, how: Degradation, seed: int) -> Tensor:
    """A clip uint8 [T, 3, H, W] to uint8 [T, 3, H / scale, W / scale].

    Sides must divide by 2 scale. The same seed gives the same bits.
    """
    dice = Dice(seed)
    large = (clip.shape[2], clip.shape[3])
    small = (large[0] // scale, large[1] // scale)
    pixels = clip.float() / 255
    if how.rounds > 0:
        pixels = resized(blurred(pixels, dice, how.first), dice, how.first, large)
        pixels = jpeg(noisy(pixels, dice, how.first), dice.integer(*how.first.jpeg))
    if how.rounds > 1:
        pixels = resized(blurred(pixels, dice, how.second), dice, how.second, small)
        pixels = noisy(pixels, dice, how.second)
    pixels = finished(pixels, dice, how, small)
    out = quantized(pixels)
    return out if how.crf is None else h264(out, dice.integer(*how.crf))


def finished(pixels: Tensor, dice: Dice, how: Degradation, small: tuple[int, int]) -> Tensor:
    """The last resize and sinc, and the second JPEG before or after them (section 3.2)."""
    mode = how.final_resize[dice.integer(0, len(how.final_resize) - 1)]
    quality = dice.integer(*how.second.jpeg) if how.rounds > 1 else None
    jpeg_first = dice.chance(0.5)
    kernel = None
    if dice.chance(how.final_sinc):
        kernel = draw_sinc(dice, SIZES[dice.integer(0, len(SIZES) - 1)])
    if quality is not None and jpeg_first:
        pixels = jpeg(pixels, quality)
    pixels = scaled(pixels, small, mode)
    if kernel is not None:
        pixels = filtered(pixels, kernel).clamp(0, 1)
    if quality is not None and not jpeg_first:
        pixels = jpeg(pixels, quality)
    return pixels


def filtered(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of [T, 3, H, W] under a kernel [k, k]; edges are mirrored, as published."""
    pad = kernel.shape[0] // 2
    room = min(pixels.shape[2:]) - 1
    mode = "reflect" if pad <= room else "replicate"  # a mirror shows no more than there is
    padded = F.pad(pixels, (pad,) * 4, mode=mode)
    weight = kernel.to(pixels.dtype).expand(3, 1, *kernel.shape)
    return F.conv2d(padded, weight, groups=3)


def blurred(pixels: Tensor, dice: Dice, round_: Round) -> Tensor:
    if not dice.chance(round_.blur):
        return pixels
    return filtered(pixels, draw_kernel(dice, round_))


def scaled(pixels: Tensor, size: tuple[int, int], mode: Resize) -> Tensor:
    """[T, 3, H, W] to a size; bilinear and bicubic without antialiasing, as published."""
    if mode == "area":
        return F.interpolate(pixels, size, mode="area")
    return F.interpolate(pixels, size, mode=mode, align_corners=False)


def resized(pixels: Tensor, dice: Dice, round_: Round, base: tuple[int, int]) -> Tensor:
    """Up, down or kept, by a factor of a base size, with one of three interpolations."""
    up, down, _ = range(3)
    kind = dice.choice(round_.resize)
    low, high = round_.resize_range
    factor = 1.0
    if kind == up:
        factor = dice.uniform(1, high)
    elif kind == down:
        factor = dice.uniform(low, 1)
    size = (max(1, round(base[0] * factor)), max(1, round(base[1] * factor)))
    return scaled(pixels, size, MODES[dice.integer(0, len(MODES) - 1)])


def noisy(pixels: Tensor, dice: Dice, round_: Round) -> Tensor:
    """With Gaussian or Poisson noise, of each colour or grey, clipped to 0..1."""
    grey, T = dice.chance(round_.grey), len(pixels)
    shape = (T, 1 if grey else 3, *pixels.shape[2:])
    if dice.chance(round_.gaussian):
        sigma = dice.uniform(*round_.noise)
        return (pixels + dice.normal(shape) * (sigma / 255)).clamp(0, 1)
    return (pixels + dice.uniform(*round_.poisson) * poisson(pixels, grey, dice)).clamp(0, 1)


def poisson(pixels: Tensor, grey: bool, dice: Dice) -> Tensor:
    """Shot noise of pictures: Poisson(x n) / n - x, n the grey levels in use, a power of two."""
    signal = quantized(pixels).float() / 255
    if grey:  # BT.601, as published
        signal = (signal * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        signal = (signal * 255).round() / 255
    levels = [2.0 ** max(1, int(np.ceil(np.log2(len(frame.unique()))))) for frame in signal]
    counts = torch.tensor(levels).view(-1, 1, 1, 1)
    return torch.poisson(signal * counts, generator=dice.generator) / counts - signal


def quantized(pixels: Tensor) -> Tensor:
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def as_pictures(pixels: Tensor) -> list[np.ndarray]:
    """Frames uint8 [3, H, W] as contiguous [H, W, 3]."""
    return [np.ascontiguousarray(frame.permute(1, 2, 0).numpy()) for frame in pixels]


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    """Frames in 0..1 through JPEG (4:2:0, as Pillow and OpenCV have it)."""
    made = []
    for picture in as_pictures(quantized(pixels)):
        sink = io.BytesIO()
        Image.fromarray(picture).save(sink, "JPEG", quality=quality)
        made.append(torch.from_numpy(np.array(Image.open(sink))))
    return torch.stack(made).permute(0, 3, 1, 2).float() / 255


def h264(clip: Tensor, crf: int) -> Tensor:
    """A clip uint8 [T, 3, h, w] through H.264: the first frame intra, the others predicted.

    One thread and no assembly, so that a resumed run has the same bits: with it one small clip in
    25 came out otherwise in another process.
    """
    sink = io.BytesIO()
    with av.open(sink, "w", "mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[2:], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 24)
        stream.options = {
            "crf": str(crf),
            "threads": "1",
            "preset": "veryfast",
            "x264-params": "no-asm=1",
        }
        for n, picture in enumerate(as_pictures(clip)):
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sink.seek(0)
    with av.open(sink, "r", format="mp4") as container:
        container.streams.video[0].thread_type = "NONE"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
