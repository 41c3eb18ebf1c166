"""python benchmarks/train_step.py [--preset tiny] [--data runs/demo] [--device cuda] [--json]

What a step of vf-train costs on a dataset, with vf-train's own loader, objective and step:

clips_per_s      clips a second, waiting for data included
data_wait_share  share of the time in which the step waits for its batch; bar 0.02 where latents
                 are precomputed (`--set precomputed=true`)
peak_memory_mb   on a CPU the peak resident size of the whole process, libraries included; on
                 CUDA what torch had allocated at most
checkpoint_*_s   seconds that a run's second checkpoint holds training up, and those until it is on
                 the disk of the temporary folder (TMPDIR)
swap_share       1 - (forward and backward with Swap-CA off) / (with it on), which take turns on
                 one batch that is in memory

Encoders that a preset needs must be at hand, as for vf-train; without them a U-Net can be measured
on others: `--preset small --set latents=space_to_depth --set text=tiny --set unet.in_channels=48
--set unet.out_channels=48 --set unet.cross_attention_dim=64`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as vf-train

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from model import SpaceTimeUNet
from training.commands import guarded
from training.config import PRESETS, Config, load_config
from training.data.batches import Batches, Sample
from training.data.rows import Rows
from training.jobs import open_all
from training.learning.loop import timed
from training.learning.losses import Objective
from training.learning.starts import (
    DTYPES,
    Start,
    choose_trained,
    device_of,
    make_codec,
    make_start,
    make_text,
    schedule_of,
)
from training.learning.steps import State, make_state, train_step
from training.parallel import checkpoint_activations

DATA_WAIT_BAR = 0.02


def objective_of(config: Config, start: Start, datasets: list[Rows]) -> Objective:
    """As vf-train makes it."""
    device = device_of(config)
    lazy = bool(config.precomputed)
    codec, text = make_codec(config, device, lazy), make_text(config, device, lazy)
    empty = next((rows.latents.empty for rows in datasets if rows.latents), None)
    schedule, dtype = schedule_of(start.noise), DTYPES[config.precision]
    return Objective(config, schedule, codec, text, device, dtype, empty)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb(device: torch.device) -> float:
    """Peak memory in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_steps(
    config: Config, start: Start, objective: Objective, datasets: list[Rows], count: int
) -> tuple[dict[str, float], list[Sample]]:
    """Train `count` steps after two that warm up; what they took, and the last batch."""
    choose_trained(start.unet, config)
    state = make_state(start.unet, config, objective.device)
    batches = Batches(datasets, config).start_at(0)
    waits, steps, clips = [], [], 0
    for n, (batch, wait_s) in enumerate(islice(timed(batches), count + 2)):
        started = time.perf_counter()
        train_step(state, objective, batch.samples, config)
        synchronize(objective.device)
        if n >= 2:
            waits.append(wait_s)
            steps.append(time.perf_counter() - started)
            clips += len(batch.samples)
    batches.close()
    total_s = sum(waits) + sum(steps)
    found = {"clips_per_s": clips / total_s, "data_wait_share": sum(waits) / total_s,
             "step_s": statistics.median(steps)}  # fmt: skip
    found["peak_memory_mb"] = peak_mb(objective.device)
    return {**found, **time_checkpoint(state, config)}, batch.samples


def time_checkpoint(state: State, config: Config) -> dict[str, float]:
    """Write two and throw them away: the second has the memory of the first."""
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            state.save(Path(folder), {}, config)
            state.saver.wait()
    line = state.saver.finished()[1]
    return {name: line[name] for name in ("checkpoint_blocked_s", "checkpoint_written_s")}


def swap_share(
    config: Config, unet: SpaceTimeUNet, objective: Objective, samples: list[Sample], turns: int
) -> float:
    """Share of a forward and backward that is Swap-CA's; both U-Nets take turns."""
    size = config.micro_batch_size or len(samples)
    off = SpaceTimeUNet.from_config({**unet.config, "swap_attention": "off"})
    off.to(objective.device).train()  # type: ignore[arg-type]
    checkpoint_activations(off, config)

    def pass_of(model: SpaceTimeUNet) -> Callable[[], None]:
        def once() -> None:
            objective.losses(model, samples[:size]).sum().backward()
            model.zero_grad(set_to_none=True)
            synchronize(objective.device)

        return once

    passes = {"on": pass_of(unet), "off": pass_of(off)}
    times: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(turns + 1):
        for name, once in passes.items():
            started = time.perf_counter()
            once()
            if turn:  # the first is warm-up
                times[name].append(time.perf_counter() - started)
    return 1 - statistics.median(times["off"]) / statistics.median(times["on"])


def measure(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything of one preset on one machine."""
    precision = {"float32": "float32", "bfloat16": "bf16"}[given.dtype]
    own = [f"device={given.device}", f"precision={precision}"]
    config = load_config(given.preset, [*own, *given.set])
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    datasets = open_all([given.data], config, console, workers=1)
    start = make_start(config, None)
    objective = objective_of(config, start, datasets)
    found, samples = time_steps(config, start, objective, datasets, given.steps)
    share = swap_share(config, start.unet, objective, samples, given.turns)
    gpu = objective.device.type == "cuda"
    where = torch.cuda.get_device_name(objective.device) if gpu else "CPU"
    return {**found, "swap_share": share, "preset": given.preset, "dtype": given.dtype,
            "device": where, "threads": torch.get_num_threads(), "set": given.set,
            "batch_size": config.batch_size}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--data", default="runs/demo", help="a dataset of curation/run.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=8, help="timed ones, after two")
    parser.add_argument("--turns", type=int, default=5, help="timed ones of swap_share, after one")
    parser.add_argument("--set", action="append", default=[], help="path=value inside the preset")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()

    def body(console: Console) -> None:
        found = measure(given, console)
        machine = f"{found['dtype']}, {found['device']}, {found['threads']} threads"
        print(f"{given.preset}, {machine}, batches of {found['batch_size']}, {given.steps} steps")
        print(f"{'clips a second':36}{found['clips_per_s']:10.2f}")
        print(f"{'seconds a step, median':36}{found['step_s']:10.3f}")
        wait = f"{found['data_wait_share']:10.1%}"
        print(f"{'waiting for data':36}{wait}   bar {DATA_WAIT_BAR:.0%} with precomputed latents")
        print(f"{'peak memory, MiB':36}{found['peak_memory_mb']:10.0f}")
        blocked_s = found["checkpoint_blocked_s"]
        until = f"   on the disk after {found['checkpoint_written_s']:.2f}"
        print(f"{'a checkpoint, seconds blocked':36}{blocked_s:10.2f}{until}")
        print(f"{'Swap-CA, share of forward+backward':36}{found['swap_share']:10.1%}")
        if given.json:
            print(json.dumps(found))

    guarded(body)


if __name__ == "__main__":
    main()
