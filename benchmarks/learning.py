"""Does it learn? Three answers that can be wrong, each from the trainer's own pieces.

    python benchmarks/learning.py [--part overfit|motion|gaussian] [--quick] [--json]

overfit   the tiny preset, with a smaller picture and more steps, learns one window of one real,
          curated clip by heart: what it samples must have at most half the squared error of the
          best still picture, so that it moves as the clip does.
motion    a square and a disc in four colours, moving left and right; the caption alone says
          which. Two of the eight combinations are held out: shape and colour are each trained on,
          never together. Samples of these must go the way of their caption; a model that ignores
          it is right half the time at most. Several seeds; the interval of their mean must lie
          above that half. Trained on captions whose direction is drawn at random, the same test
          must fail.
gaussian  on Gaussian clips the least possible loss is known (`optimum`). In every timestep bin
          the trained loss must go most of the way there from what the prediction 0 leaves, and
          must not go below it.

--quick takes two minutes: overfit and gaussian on smaller problems, with bars of their own (of
overfit: half the squared error of one colour); in two minutes no caption is learned. The jobs run
two at a time, on one thread each: tensors this small gain nothing from two. Exit code 1: a bar is
missed. The bars are in learning_bars.py.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch; and threads that wait do not spin
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests import this as benchmarks.learning

import numpy as np
import torch
from torch import Tensor

from benchmarks import gaussian_clips, moving_clips
from benchmarks.learning_bars import shares, verdicts
from model import VideoFactoryPipeline
from model.latents import Codec
from training.config import Config, load_config
from training.data.batches import Batches, Sample
from training.data.orders import draw
from training.data.rows import open_rows
from training.data.shapes import shapes_of
from training.learning.losses import Objective
from training.learning.reports import contact_sheet
from training.learning.starts import (
    DTYPES,
    choose_trained,
    device_of,
    make_codec,
    make_start,
    make_text,
    schedule_of,
)
from training.learning.steps import State, make_state, train_step

ROOT = Path(__file__).parents[1]
JOBS = {"overfit": ("overfit",), "motion": ("motion", "shuffled"), "gaussian": ("gaussian",)}
ALL = ("num_threads=1", "device=cpu", "schedule=cosine", "held_out=0")
# One level, for problems that need no more.
FLAT = (
    'unet.down_block_types=["CrossAttnDownBlock3D"]',
    'unet.up_block_types=["CrossAttnUpBlock3D"]',
)
THIN = ("unet.block_out_channels=[32]", "unet.norm_num_groups=8", "unet.attention_head_dim=8")
LATENTS_3 = ("unet.in_channels=3", "unet.out_channels=3")
# The preset's 112x64 costs 2.8 CPU s a step, this 0.3; all else of overfit is the preset's.
SMALL_PICTURE = ("width=28", "height=16")
# Overrides of the preset tiny, found by trying. The first key: whether it is the quick form.
OVERRIDES: dict[bool, dict[str, tuple[str, ...]]] = {
    False: {
        "overfit": (*SMALL_PICTURE, "max_steps=1000"),
        # At zero terminal SNR nothing but the caption says the direction in the first step.
        "motion": (*FLAT, "unet.block_out_channels=[48]", "num_frames=3", "width=24",
                   "height=16", "batch_size=8", "max_steps=900", "learning_rate=2e-3",
                   "caption_dropout=0.05", "zero_terminal_snr=true"),
        "gaussian": (*LATENTS_3, "unet.block_out_channels=[32, 32]", "unet.norm_num_groups=8",
                     "num_frames=4", "width=8", "height=8", "batch_size=16", "max_steps=320",
                     "learning_rate=3e-3", "caption_dropout=0"),
    },
    True: {
        "overfit": (*SMALL_PICTURE, "max_steps=240"),
        "gaussian": (*LATENTS_3, *FLAT, *THIN, "num_frames=2", "width=8", "height=8",
                     "batch_size=16", "max_steps=200", "learning_rate=4e-3", "caption_dropout=0"),
    },
}  # fmt: skip
NOISES = 4  # that each held-out combination is sampled from


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# -- training with the trainer's pieces


def config_of(part: str, quick: bool, seed: int = 0) -> Config:
    return load_config("tiny", [*ALL, f"seed={seed}", *OVERRIDES[quick][part]])


def trainer(config: Config, codec: Codec | None = None) -> tuple[State, Objective]:
    """What vf-train makes of a config before its first step."""
    torch.set_num_threads(config.num_threads or 1)
    start, device = make_start(config, None), device_of(config)
    choose_trained(start.unet, config)
    codec, text = codec or make_codec(config, device), make_text(config, device)
    schedule, dtype = schedule_of(start.noise), DTYPES[config.precision]
    objective = Objective(config, schedule, codec, text, device, dtype)
    return make_state(start.unet, config, device), objective


def fit(
    name: str,
    state: State,
    objective: Objective,
    config: Config,
    batch: Callable[[int], list[Sample]],
) -> None:
    """Train on batch(step) to the last step; tells the mean loss of every eighth of the way."""
    started, losses, every = time.monotonic(), [], max(1, config.max_steps // 8)
    for step in range(config.max_steps):
        losses.append(train_step(state, objective, batch(step), config)[0].mean().item())
        if len(losses) == every or step == config.max_steps - 1:
            print(
                f"{name}: step {step + 1}/{config.max_steps}, loss {np.mean(losses):.4f}, "
                f"{time.monotonic() - started:.0f} s, {cpu_s():.0f} CPU s",
                flush=True,
            )
            losses = []


def sampled(
    state: State, objective: Objective, config: Config, prompts: list[str], seeds: list[int],
    guidance: float,
) -> Tensor:  # fmt: skip
    """Clips of the EMA weights, uint8 [B, T, H, W, 3]."""
    pipe = VideoFactoryPipeline(state.unet, objective.codec, objective.text, objective.schedule)
    with state.ema.swapped(state.unet):
        return pipe(
            prompts,
            num_frames=config.num_frames,
            height=config.height,
            width=config.width,
            num_inference_steps=config.sample_steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            progress=False,
        ).frames


# -- overfit


def curate(video: Path, folder: Path) -> None:
    """A dataset folder of a video's clips, by curation's own worker and writer."""
    from curation.flow.media_processes import MediaWorker
    from curation.pipelines import load_pipeline
    from curation.shards import Dataset, write_commit
    from curation.sources import Source, content_id

    pipeline = load_pipeline(ROOT / "pipelines.yaml", "demo", [])
    source = Source(url=str(video), path=str(video), id=content_id(str(video)))
    with MediaWorker(pipeline.media) as worker:
        found = worker.curate(source, pipeline, lambda stage, at_s: None)
    clips = [clip.shard_row() for clip in found.clips]
    write_commit(Dataset.at(folder), clips, found.ledger, pipeline.fingerprints())


def psnr_db(clip: Tensor, other: Tensor) -> float:
    """Peak signal to noise ratio of two clips uint8 of one shape; infinite when equal."""
    error = (clip.double() - other.double()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf


def run_overfit(quick: bool, sheets: Path | None) -> dict[str, Any]:
    """Learn the first sample of a run by heart: one window of one clip, read as vf-train does."""
    config = config_of("overfit", quick)
    with tempfile.TemporaryDirectory() as folder:
        curate(ROOT / "examples/media/meadow.mp4", Path(folder))
        rows = open_rows(folder, "meadow", 1.0, shapes_of(config), 1, 0)
        target = Batches([rows], config).read(0)
    assert isinstance(target, Sample) and target.raw is not None, target
    state, objective = trainer(config)

    def batch(step: int) -> list[Sample]:
        # The window stays that of the first draw; noise and timestep are new each time.
        numbers = range(step * config.batch_size, (step + 1) * config.batch_size)
        return [
            replace(target, epoch=n, draws=draw(0, "overfit", n, target.clip_id)) for n in numbers
        ]

    fit("overfit", state, objective, config, batch)
    prompts, seeds = [target.caption] * 2, [1, 2]
    clips = sampled(state, objective, config, prompts, seeds, guidance=1.0)
    if sheets:
        contact_sheet(torch.cat([clips, target.raw[None]]), sheets / "overfit.png")
    return {"psnr_db": min(psnr_db(clip, target.raw) for clip in clips), **stills(target.raw)}


def stills(clip: Tensor) -> dict[str, float]:
    """PSNR of the best single colour and of the best still picture for a clip: its means."""

    def of_mean(*axes: int) -> float:
        mean = clip.double().mean(axes, keepdim=True).round().to(torch.uint8)
        return psnr_db(mean.expand_as(clip), clip)

    return {"flat_psnr_db": of_mean(0, 1, 2), "still_psnr_db": of_mean(0)}


# -- motion


def run_motion(quick: bool, seed: int, shuffled: bool, sheets: Path | None) -> dict[str, Any]:
    """Train on moving_clips.TRAINED in both directions; sample both captions of each held-out
    combination from one noise, from NOISES noises."""
    config = config_of("motion", quick, seed)
    name = f"{'shuffled' if shuffled else 'motion'}, seed {seed}"
    state, objective = trainer(config)
    rows = [(*each, way) for each in moving_clips.TRAINED for way in (-1, 1)]
    clips = [moving_clips.moving(*row, config) for row in rows]
    random = np.random.default_rng(seed)

    def batch(step: int) -> list[Sample]:
        out = []
        for n in range(step * config.batch_size, (step + 1) * config.batch_size):
            which = n % len(rows)
            shape, color, way = rows[which]
            told = moving_clips.caption(
                shape, color, int(random.choice((-1, 1))) if shuffled else way
            )
            draws = draw(seed, "motion", n, str(which))
            out.append(Sample("motion", str(which), n, told, clips[which], draws))
        return out

    fit(name, state, objective, config, batch)
    asked = [
        (*each, way) for each in moving_clips.HELD_OUT for _ in range(NOISES) for way in (-1, 1)
    ]
    prompts, seeds = (
        [moving_clips.caption(*row) for row in asked],
        [n // 2 for n in range(len(asked))],
    )
    made = sampled(state, objective, config, prompts, seeds, config.guidance)
    if sheets:
        contact_sheet(made, sheets / f"{name.replace(', seed ', '-')}.png")
    colors = [moving_clips.color_of(clip) == row[1] for clip, row in zip(made, asked, strict=True)]
    right = moving_clips.share_right(made, [row[2] for row in asked])
    return {"seed": seed, "share_right": right, "share_color": sum(colors) / len(colors)}


# -- gaussian


def run_gaussian(quick: bool, sheets: Path | None) -> dict[str, Any]:
    """Train on fresh Gaussian clips at every step; then the loss per bin on other ones."""
    config = config_of("gaussian", quick)
    state, objective = trainer(config, gaussian_clips.Scaled())
    cov = gaussian_clips.covariance(config.num_frames)
    root, size = torch.linalg.cholesky(cov), config.batch_size
    fit(
        "gaussian",
        state,
        objective,
        config,
        lambda step: gaussian_clips.gaussian_samples(
            range(step * size, (step + 1) * size), root, config
        ),
    )
    cov = cov + gaussian_clips.ROUNDING * torch.eye(len(cov), dtype=cov.dtype)
    state.unet.eval()
    found = []
    with state.ema.swapped(state.unet):
        for n in range(10**9, 10**9 + (256 if quick else 768), 32):
            samples = gaussian_clips.gaussian_samples(range(n, n + 32), root, config)
            found.append(torch.stack(gaussian_clips.measured(state.unet, cov, objective, samples)))
    return {"bins": gaussian_clips.bins_of(*torch.cat(found, 1))}


# -- all of it


def run(job: str, seed: int, quick: bool, sheets: Path | None) -> dict[str, Any]:
    """One job with its seconds."""
    started, before = time.monotonic(), cpu_s()
    if job in ("motion", "shuffled"):
        found = run_motion(quick, seed, job == "shuffled", sheets)
    else:
        found = {"overfit": run_overfit, "gaussian": run_gaussian}[job](quick, sheets)
    return {**found, "wall_s": time.monotonic() - started, "cpu_s": cpu_s() - before}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=JOBS, help="default: all three")
    parser.add_argument(
        "--quick", action="store_true", help="two minutes on two cores, without motion"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of motion; the other parts take one")
    parser.add_argument("--sheets", type=Path, help="a folder for contact sheets of the samples")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    parts = [p for p in OVERRIDES[given.quick] if given.part in (None, p)]
    if not parts:
        parser.error(f"--part {given.part} has no quick form; leave --quick out")
    if given.seeds < 1:
        parser.error(f"--seeds {given.seeds}: 1 or more")
    jobs = [
        (job, seed)
        for part in parts
        for seed in range(given.seeds if part == "motion" else 1)
        for job in JOBS[part]
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *job, given.quick, given.sheets) for job in jobs]
        for (job, _), future in zip(jobs, futures, strict=True):
            found.setdefault(job, []).append(future.result())
    rows = verdicts(found, given.quick)
    print(f"\n{'what':62}{'measured':>34}{'bar':>18}")
    for what, measured, bar, met in rows:
        print(f"{what:62}{measured:>34}{bar:>18}{'' if met else '   MISSED'}")
    if "motion" in found:
        told = shares(found["motion"], "share_color")[2]
        print(f"motion: samples of the caption's colour (no bar; chance 25%): {told}")
    for job, runs in found.items():
        for each in runs:
            print(f"{job}: {each['wall_s']:.0f} s, {each['cpu_s']:.0f} CPU s")
    if given.json:
        print(json.dumps({"quick": given.quick, "met": all(row[3] for row in rows), **found}))
    sys.exit(not all(met for *_, met in rows))


if __name__ == "__main__":
    main()
