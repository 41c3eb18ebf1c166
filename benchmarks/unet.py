"""python benchmarks/unet.py [--device cuda --dtype bfloat16] [--json]

One training step (forward and backward) of our U-Net against diffusers' UNet3DConditionModel of
the same config, interleaved, medians. The bar: with Swap-CA on at most 1.25 times theirs.
Memory is the peak of one step above what is held before it; on a CPU each side is measured in a
fresh process.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from diffusers import UNet3DConditionModel

from model import SpaceTimeUNet
from model.configs import PRESETS

SIDES = THEIRS, OURS = "diffusers UNet3D", "ours, Swap-CA per block"


def build(side: str, preset: str, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """One of the two models with random weights, in training mode."""
    config = {k: v for k, v in PRESETS[preset].items() if not k.startswith("swap")}
    torch.manual_seed(0)
    model = UNet3DConditionModel(**config) if side == THEIRS else SpaceTimeUNet(**config)
    model = model.to(device).train()
    return model if dtype == torch.float32 else model.to(dtype)


def step_of(
    model: torch.nn.Module, frames: int, height: int, width: int, batch: int
) -> Callable[[], None]:
    """A function that runs one forward and backward on fixed random inputs."""
    weight = next(model.parameters())
    like = {"device": weight.device, "dtype": weight.dtype}
    sample = torch.randn(batch, model.config.in_channels, frames, height, width, **like)
    text = torch.randn(batch, 77, model.config.cross_attention_dim, **like)
    steps = torch.full((batch,), 500, device=weight.device)

    def step() -> None:
        model(sample, steps, text).sample.float().square().mean().backward()
        if weight.is_cuda:
            torch.cuda.synchronize()
        model.zero_grad(set_to_none=True)  # the other sides' gradients are not held meanwhile

    return step


def resident_mib(key: str) -> float:
    """VmRSS or VmHWM of this process, Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise AssertionError(key)


def peak_mib(side: str, args: argparse.Namespace) -> float:
    """Peak memory of one step above what the process holds before it (weights included there)."""
    dtype = getattr(torch, args.dtype)
    model = build(side, args.preset, args.device, dtype)
    step = step_of(model, args.frames, *args.latent, args.batch)
    if args.device.startswith("cuda"):
        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    torch.set_num_threads(args.threads)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_mib("VmRSS")
    step()
    return resident_mib("VmHWM") - before


def peak_in_child(side: str, args: argparse.Namespace) -> float:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_mib, (side, args))


def step_seconds(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step of each side; the sides take turns."""
    dtype = getattr(torch, args.dtype)
    steps = {
        side: step_of(build(side, args.preset, args.device, dtype), args.frames, *args.latent,
                      args.batch)
        for side in SIDES
    }  # fmt: skip
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(args.repeats + 1):
        for side, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first is warm-up
                times[side].append(time.perf_counter() - start)
    return {side: statistics.median(found) for side, found in times.items()}


def latent_size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--frames", type=int, default=8, help="8 keeps a CPU below 6 GiB")
    parser.add_argument("--latent", type=latent_size, default=None, help="HxW; the preset's own")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.latent = args.latent or PRESETS[args.preset]["sample_size"]
    measure = peak_mib if args.device.startswith("cuda") else peak_in_child
    memory = {side: None if args.no_memory else round(measure(side, args)) for side in SIDES}
    seconds = step_seconds(args)

    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    size = f"{args.frames}x{args.latent[0]}x{args.latent[1]}"
    print(f"{args.preset}, latents {size}, batch {args.batch}, {args.dtype}, {where}, "
          f"{args.threads} threads, {args.repeats} repeats")  # fmt: skip
    print(f"{'one step':26}{'seconds':>10}{'ratio':>8}{'peak MiB':>10}")
    for side in SIDES:
        ratio = seconds[side] / seconds[THEIRS]
        print(f"{side:26}{seconds[side]:10.3f}{ratio:8.3f}{memory[side] or '-':>10}")
    if args.json:
        result = {
            "step_ratio_to_unet3d": seconds[OURS] / seconds[THEIRS],
            "seconds": seconds,
            "peak_mib": memory,
            "preset": args.preset,
            "latents": size,
            "batch": args.batch,
            "device": where,
            "dtype": args.dtype,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
