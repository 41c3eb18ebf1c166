"""python benchmarks/gpu.py [--json FILE] [--data DATASET]   under nine minutes on one H100
python benchmarks/gpu.py --quick --device cpu              that it runs, in seconds

What the model does on a GPU, with torch, diffusers, numpy and this repository alone. Rows:

exactness    windows in bf16 against plain attention under a mask in fp32, the same inputs
windows      padding and mask against a size that divides; global attention against windows
train        a step of `small` and `videofactory` as vf-train takes it: forward, backward, clipping,
             AdamW and EMA in bf16 autocast, on latents and text states in memory, as with
             precomputed ones; clips a second, MFU (three forwards a clip over the peak of the
             device), peak memory
swap_share   1 - (forward and backward with Swap-CA off) / (with it on), which take turns
sampler      seconds for the latents of one clip: 50 steps of DDIM with guidance
data_wait    with --data, a dataset with precomputed latents: benchmarks/train_step.py on it; it
             needs the trainer's packages

A row that does not fit into memory or lacks a package says so, and the others go on; rows that no
time is left for are named. Weights are random, which no time depends on.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # nothing of it need be installed

import torch

from benchmarks import window_attention as windows
from benchmarks.gpu_rows import Bench
from model import SpaceTimeUNet
from model.attention import count_windows, dense_window_attention, fit_window
from model.attention import window_attention as attend_windows
from model.costs import example_inputs, forward_flops, peak_tflops
from model.diffusion import (
    add_noise,
    diffusion_loss,
    guide,
    noise_schedule,
    sample_ddim,
    training_target,
)

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Net:
    """A U-Net to be measured, and the latents (T, H, W) of its clips."""

    name: str
    preset: str
    size: Size
    changes: dict[str, Any] = field(default_factory=dict)


NETS = [Net("videofactory", "videofactory", (16, 24, 43)), Net("small", "small", (16, 16, 28))]
TINY = Net("a tiny net", "tiny", (2, 8, 8), {
    "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 8), "attention_head_dim": 4,
    "norm_num_groups": 4, "cross_attention_dim": 12,
})  # fmt: skip
# (micro-batch, checkpointing, compile), what matters most first; compiling costs minutes.
STEPS = [
    *[(4, True, False), (1, False, False), (2, False, False), (4, False, False), (8, True, False)],
    *[(4, True, True), (4, False, True), (8, False, False), (1, True, False), (2, True, False)],
    (8, True, True),
]
COMPILE_S = 90.0  # to be left before a row that compiles; a guess until it is measured
RESERVE_S = 60.0  # of the budget for rows that come after the train rows


# -- attention


def exactness(bench: Bench, size: Size, channels: int, heads: int) -> dict[str, Any]:
    """Windows in bf16 against the dense reference in fp32, on what bf16 holds of the inputs."""
    torch.manual_seed(0)
    made = (torch.randn(1, *size, channels, device=bench.device) for _ in range(3))
    q, k, v = (x.bfloat16() for x in made)
    window = fit_window(size, windows.WINDOW)
    with torch.no_grad():
        ours = attend_windows(q, k, v, window, heads).float()
        dense = dense_window_attention(q.float(), k.float(), v.float(), window, heads)
    error = ours - dense
    return {"max_difference": error.abs().max().item(), "largest": dense.abs().max().item(),
            "relative_l2": (error.norm() / dense.norm()).item()}  # fmt: skip


def timed_forms(
    bench: Bench, sides: dict[str, tuple[str, Size]], channels: int, repeats: int
) -> dict[str, float]:
    """Median milliseconds of forms of attention, forward and backward; they take turns."""
    runs = {
        name: windows.run_of(form, size, channels, windows.WINDOW, windows.BOTH,
                             str(bench.device), torch.bfloat16)
        for name, (form, size) in sides.items()
    }  # fmt: skip
    return windows.medians(runs, repeats)


def padding(bench: Bench, size: Size, channels: int) -> dict[str, Any]:
    window = fit_window(size, windows.WINDOW)
    even = tuple(n * w for n, w in zip(count_windows(size, window), window, strict=True))
    sides: dict[str, tuple[str, Size]] = {"padded": ("windows", size), "even": ("windows", even)}  # type: ignore[dict-item]
    found = timed_forms(bench, sides, channels, 3 if bench.quick else 30)
    return {"padded_ms": found["padded"], "even_ms": found["even"],
            "padding": found["padded"] / found["even"]}  # fmt: skip


def over_global(bench: Bench, size: Size, channels: int) -> dict[str, Any]:
    sides = {form: (form, size) for form in ("windows", "global")}
    found = timed_forms(bench, sides, channels, 3 if bench.quick else 10)
    return {"windows_ms": found["windows"], "global_ms": found["global"],
            "over_global": found["global"] / found["windows"]}  # fmt: skip


def attention_rows(bench: Bench) -> None:
    size, channels = ((2, 6, 9), 128) if bench.quick else windows.LEVELS[0]
    name = f"{windows.x(size)}, C={channels}, bf16"
    heads = channels // windows.HEAD
    bench.row("exactness", name, lambda: exactness(bench, size, channels, heads))
    padded = (2, 6, 13) if bench.quick else size
    bench.row("windows", f"{windows.x(padded)}: padding and mask",
              lambda: padding(bench, padded, channels))  # fmt: skip
    bench.row("windows", f"{name}: global", lambda: over_global(bench, size, channels))


# -- a training step


class Trainee:
    """A U-Net with AdamW and an EMA, and a step of it as training/learning/steps.py has it."""

    def __init__(self, bench: Bench, net: Net) -> None:
        self.bench, self.net = bench, net
        torch.manual_seed(0)
        self.unet = SpaceTimeUNet.from_preset(net.preset, **net.changes).to(bench.device).train()
        for module in self.unet.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.parameters = list(self.unet.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        self.schedule = noise_schedule("v_prediction")
        self.schedule.alphas_cumprod = self.schedule.alphas_cumprod.to(bench.device)

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        with torch.device(self.bench.device):
            return example_inputs(self.unet.config, batch, self.net.size)

    def loss(self, inputs: dict[str, torch.Tensor], unet: Any = None) -> torch.Tensor:
        latents = inputs["sample"]
        noise, steps = torch.randn_like(latents), inputs["timestep"]
        noisy = add_noise(self.schedule, latents, noise, steps)
        with torch.autocast(self.bench.device.type, torch.bfloat16):
            out = (unet or self.unet)(noisy, steps, inputs["encoder_hidden_states"]).sample
        target = training_target(self.schedule, latents, noise, steps)
        return diffusion_loss(out, target).mean()

    def step(self, inputs: dict[str, torch.Tensor]) -> float:
        """One optimiser step of one micro-batch; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        found = loss.item()
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average, self.parameters, strict=True):
                average.lerp_(parameter, 1e-4)
        return found

    def prepare(self, checkpointing: bool, compiled: bool) -> None:
        # Blocks of one class count together, once for every size of a micro-batch.
        torch._dynamo.config.recompile_limit = 1024
        torch._dynamo.config.accumulated_recompile_limit = 4096
        self.unet.disable_gradient_checkpointing()
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        for block in (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks):
            block.forward = type(block).forward.__get__(block)
            if compiled:
                block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)

    def measure(self, batch: int, checkpointing: bool, compiled: bool) -> dict[str, Any]:
        if compiled and self.bench.left_s < COMPILE_S and not self.bench.quick:
            return {"skipped": "no time left to compile"}
        self.prepare(checkpointing, compiled)
        inputs, gpu = self.inputs(batch), self.bench.device.type == "cuda"
        started = time.monotonic()
        self.step(inputs)
        first_s = time.monotonic() - started
        if gpu:
            torch.cuda.reset_peak_memory_stats(self.bench.device)
        repeats = 2 if self.bench.quick else 5
        step_s = self.bench.median_s(lambda: self.step(inputs), repeats, warm=1)
        found: dict[str, Any] = {"clips_per_s": batch / step_s, "step_s": step_s}
        if self.bench.peak:
            flops = 3 * batch * forward_flops(self.unet.config, self.net.size)
            found["mfu"] = flops / step_s / (self.bench.peak * 1e12)
        if gpu:
            found["peak_gb"] = torch.cuda.max_memory_allocated(self.bench.device) / 1e9
        return {**found, "first_step_s": first_s}

    def swap_share(self, batch: int, checkpointing: bool) -> dict[str, Any]:
        """Both take turns, forward and backward alone."""
        self.prepare(checkpointing, False)
        self.optimizer.zero_grad(set_to_none=True)
        off = SpaceTimeUNet.from_config({**self.unet.config, "swap_attention": "off"})
        off.to(self.bench.device).train()
        if checkpointing:
            off.enable_gradient_checkpointing()
        inputs = self.inputs(batch)

        def once(unet: SpaceTimeUNet) -> None:
            self.loss(inputs, unet).backward()
            unet.zero_grad(set_to_none=True)

        times: dict[str, list[float]] = {"on": [], "off": []}
        for turn in range(3 if self.bench.quick else 6):
            for name, unet in (("on", self.unet), ("off", off)):
                took = self.bench.median_s(partial(once, unet), 1, warm=0)
                if turn:
                    times[name].append(took)
        on, without = (statistics.median(times[name]) for name in ("on", "off"))
        return {"swap_share": 1 - without / on, "on_s": on, "off_s": without}

    def sampler(self, steps: int) -> dict[str, Any]:
        """Latents of one clip with classifier-free guidance: two clips a step."""
        self.prepare(False, False)
        self.unet.eval()
        text = self.inputs(2)["encoder_hidden_states"]
        noise = self.inputs(1)["sample"]

        def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.bench.device.type, torch.bfloat16):
                both = self.unet(torch.cat([x, x]), torch.cat([t, t]), text).sample
            told, empty = both.float().chunk(2)
            return guide(told, empty, 9.0)

        def once() -> None:
            sample_ddim(denoise, noise, self.schedule, steps)

        took = self.bench.median_s(once, repeats=1, warm=0 if steps > 10 else 1)
        self.unet.train()
        return {"sampler_s": took, "steps": steps}


def net_rows(bench: Bench, net: Net, until_left_s: float) -> None:
    """Every row of a U-Net; train rows stop when only `until_left_s` of the budget are left."""
    kept: list[Trainee] = []

    def build() -> dict[str, Any]:
        kept.append(Trainee(bench, net))
        return {"millions": sum(p.numel() for p in kept[0].parameters) / 1e6}

    bench.row("build", net.name, build)
    if not kept:
        return
    trainee = kept[0]
    size = (1, False) if bench.quick else (4, True)
    steps = 3 if bench.quick else 50
    chosen = STEPS[:2] if bench.quick else STEPS
    bench.row("train", label(net, *chosen[0]), lambda: trainee.measure(*chosen[0]))
    bench.row("swap_share", label(net, *size, False), lambda: trainee.swap_share(*size))
    bench.row("sampler", f"{net.name}, {steps} steps", lambda: trainee.sampler(steps))
    for how in chosen[1:]:
        if bench.left_s < until_left_s:
            row = {"kind": "train", "name": label(net, *how), "skipped": "no time left"}
            bench.rows.append(row)
            print(f"{'train':12}{row['name']:44}skipped: no time left")
            continue
        bench.row("train", label(net, *how), partial(trainee.measure, *how))


def label(net: Net, batch: int, checkpointing: bool, compiled: bool) -> str:
    also = ", checkpointing" * checkpointing + ", compiled" * compiled
    return f"{net.name}, {batch} at once{also}"


def data_wait(bench: Bench, data: str | None) -> dict[str, Any]:
    if data is None:
        return {"skipped": "no --data: a dataset with latents of vf-precompute"}
    from rich.console import Console

    from benchmarks import train_step

    asked = Namespace(preset="videofactory", data=data, device=str(bench.device), dtype="bfloat16",
                      steps=3, turns=1, set=["precomputed=true", "batch_size=16"])  # fmt: skip
    found = train_step.measure(asked, Console())
    return {"data_wait": found["data_wait_share"], "clips_per_s": found["clips_per_s"]}


def header(bench: Bench) -> dict[str, Any]:
    gpu = bench.device.type == "cuda"
    name = torch.cuda.get_device_name(bench.device) if gpu else "CPU"
    facts = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda,
             "peak_tflops": bench.peak, "quick": bench.quick}  # fmt: skip
    peak = f"peak {bench.peak:g} TFLOP/s of dense bf16" if bench.peak else "peak not known: no MFU"
    print(f"{name}, torch {torch.__version__}, {peak}")
    if not gpu:
        print("These are CPU numbers: they show that the benchmark runs and say nothing of a GPU.")
    if bench.quick:
        print("--quick: a tiny net; nothing here is to be compared with the goals.")
    return facts


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny net, in seconds")
    parser.add_argument("--budget-s", type=float, default=520, help="no row begins after it")
    parser.add_argument("--peak-tflops", type=float, help="of the device; default: by its name")
    parser.add_argument("--data", help="a dataset with precomputed latents, for data_wait")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    args = parser.parse_args(given)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here: give --quick --device cpu")
    peak = args.peak_tflops
    if peak is None and device.type == "cuda":
        peak = peak_tflops(torch.cuda.get_device_name(device))
    bench = Bench(device, args.quick, time.monotonic() + args.budget_s, peak)
    facts = header(bench)
    attention_rows(bench)
    nets = [TINY] if args.quick else NETS
    for n, net in enumerate(nets):
        # The first one leaves a third of what is left to the second.
        last = n == len(nets) - 1
        net_rows(bench, net, RESERVE_S / 4 if last else max(RESERVE_S, bench.left_s / 3))
        gc.collect()
    bench.row("data_wait", "videofactory, 16 clips a step", lambda: data_wait(bench, args.data))
    if args.json:
        args.json.write_text(json.dumps({**facts, "rows": bench.rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
