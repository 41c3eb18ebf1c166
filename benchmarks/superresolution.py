"""Super-resolution of 688x384 to 1376x768: time, memory, tiles against the whole, flicker.

    python benchmarks/superresolution.py --weights FILE|bicubic [--frames 2] [--tiles] [--json]

The picture is a frame of examples/media/meadow.mp4. The still clip is that frame eight times under
noise of two grey levels, as coding and cameras leave; flicker is `training.evaluation.temporal`'s,
in grey levels, of the clip, of what is made of it and of what is made with --steady 0.5 and 0.8.
--tiles compares tiles of 64 px with the whole on 256x192 px, at several margins; slow for RRDBNet.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.superresolution import Upscaler, cover, load_upscaler
from training.data.videos import SampleShape, read_frames
from training.evaluation.temporal import flicker

ROOT = Path(__file__).parents[1]
LARGE, SMALL = (768, 1376), (384, 688)
NOISE_LEVELS = 2.0
STILL_CROP = (slice(100, 196), slice(200, 328))  # 128x96 of the picture: the clip need not be large


def picture() -> Tensor:
    """A frame at 688x384, uint8 [H, W, 3]."""
    media = (ROOT / "examples/media/meadow.mp4").read_bytes()
    (frame,) = read_frames(media, SampleShape(1, *SMALL, fps=8), 0.3)
    return torch.from_numpy(frame)


def cost(up: Upscaler, frame: Tensor, count: int) -> dict[str, float]:
    """CPU and wall seconds a frame, and how far memory rose."""
    wall, cpu = time.monotonic(), time.process_time()
    list(up([frame] * count, LARGE))
    return {
        "wall_s_per_frame": (time.monotonic() - wall) / count,
        "cpu_s_per_frame": (time.process_time() - cpu) / count,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def flickers(up: Upscaler, frame: Tensor) -> dict[str, float]:
    """Flicker of a still clip before and after, by how much is kept of the frame before."""
    rng = torch.Generator().manual_seed(0)
    part = frame[STILL_CROP].float()
    clip = [(part + NOISE_LEVELS * torch.randn(part.shape, generator=rng)).round().clamp(0, 255)
            .to(torch.uint8) for _ in range(8)]  # fmt: skip
    size = (2 * part.shape[0], 2 * part.shape[1])
    found = {"given": flicker(torch.stack(clip))}
    for steady in (0.0, 0.5, 0.8):
        made = torch.stack(list(replace(up, steady=steady)(clip, size)))
        found[f"steady {steady:g}"] = flicker(made)
    return found


def tile_errors(up: Upscaler, frame: Tensor) -> dict[str, list[float]]:
    """Largest and mean difference of tiles from the whole in grey levels, by margin in px."""
    pixels = frame[60:252, 100:356].permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        whole = up.padded(pixels)
        out = {}
        for margin in (8, 16, 32):
            difference = (replace(up, tile_px=64, margin_px=margin).tiled(pixels) - whole).abs()
            out[str(margin)] = [255 * difference.max().item(), 255 * difference.mean().item()]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--save", type=Path, help="where to write the enlarged picture")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    up, frame = load_upscaler(given.weights), picture()
    found: dict[str, Any] = {"network": up.label, "threads": torch.get_num_threads()}
    found |= cost(up, frame, given.frames)
    found["flicker"] = flickers(up, frame)
    if given.tiles:
        found["tile_errors"] = tile_errors(up, frame)
    if given.save:
        from PIL import Image

        (made,) = up([frame], LARGE)
        plain = cover(frame.permute(2, 0, 1)[None].float() / 255, LARGE)[0].permute(1, 2, 0)
        both = torch.cat([(plain.clamp(0, 1) * 255).round().to(torch.uint8), made], 1)
        Image.fromarray(both.numpy()).save(given.save)
    for name, value in found.items():
        print(f"{name:18} {value}")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
