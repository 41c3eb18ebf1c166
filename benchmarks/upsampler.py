"""Does the upsampler use what it is given? Trained on one dataset, asked on another.

    python benchmarks/upsampler.py TRAINED HELD_OUT --work DIR [--steps 400] [--json]

TRAINED and HELD_OUT are dataset folders of different videos. The tiny preset is trained as
vf-train would, at two frames of 56x32, and an upsampler to 112x64 from it: what two cores can do
in half an hour. Then, on clips of HELD_OUT at the upsampler's size:

loss      of the upsampler's EMA weights with each clip's own low resolution, with another clip's,
          and with the least and the most noise on its own; by timestep
picture   what it samples from the true low resolution against the interpolation of it: PSNR, and
          the share of the true picture's fine detail (its difference from that interpolation) that
          has the right sign and size (1: all of it, 0: none, below: wrong detail)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from model import SpaceTimeUNet, VideoFactoryPipeline
from model.latents import to_raw
from training.checkpoints.folders import latest
from training.checkpoints.saving import read_unet
from training.config import Config, validated
from training.data.batches import Sample, read_sample
from training.data.rows import open_rows
from training.data.shapes import shapes_of
from training.learning.losses import Objective
from training.learning.reports import contact_sheet
from training.learning.starts import make_codec, make_text, schedule_of
from training.train import train

BINS = 4
NUM_CLIPS = 8  # of HELD_OUT
SIZE = ("num_frames=2", "width=56", "height=32", "batch_size=4")
TWICE = ("num_frames=2", "width=112", "height=64", "batch_size=4")
# One thread: tensors this small gain nothing from two.
ALL = ("num_samples=0", "held_out=0", "schedule=cosine", "num_threads=1", "warmup_steps=20")


def trained(stage: str, data: Path, run: Path, sets: list[str], init: Path | None) -> float:
    """CPU seconds of a run; one that is done already costs nothing."""
    before = time.process_time()
    train("tiny", [str(data)], run, init and str(init), sets, stage=stage)
    return time.process_time() - before


def read(run: Path) -> tuple[Config, SpaceTimeUNet, Objective]:
    """The EMA weights of an upsampler, and what tells their loss."""
    checkpoint = latest(run)
    assert checkpoint
    card = json.loads((checkpoint / "card.json").read_text())
    config, device = validated(card["config"], str(run)), torch.device("cpu")
    unet = read_unet(checkpoint, "ema")
    codec, text = make_codec(config, device), make_text(config, device)
    return config, unet, Objective(config, schedule_of(card["noise"]), codec, text, device,
                                   torch.float32)  # fmt: skip


def clips_of(data: Path, config: Config, objective: Objective) -> list[Sample]:
    """Clips spread over a dataset, encoded."""
    rows = open_rows(str(data), "held-out", 1.0, shapes_of(config), 1e9, 0.0)
    chosen = rows.trained[:: max(1, rows.num_trained // NUM_CLIPS)][:NUM_CLIPS]
    read = [read_sample(rows, int(row), config, config.seed, "held-out", 0) for row in chosen]
    return [objective.encoded(sample) for sample in read if isinstance(sample, Sample)]


@torch.no_grad()
def by_timestep(objective: Objective, unet: SpaceTimeUNet, samples: list[Sample]) -> list[float]:
    """Mean loss in each of BINS equal ranges of timesteps."""
    out = []
    for n in range(BINS):
        steps = [objective.timesteps([(n + s.draws.timestep) / BINS]) for s in samples]
        errors = [float(objective.errors(unet, [s], step, torch.tensor([False])))
                  for s, step in zip(samples, steps, strict=True)]  # fmt: skip
        out.append(sum(errors) / len(errors))
    return out


def losses(objective: Objective, unet: SpaceTimeUNet, samples: list[Sample]) -> dict[str, Any]:
    at = lambda level: [replace(s, draws=replace(s.draws, level=level)) for s in samples]  # noqa: E731
    others = [replace(s, low_res=samples[n - 1].low_res) for n, s in enumerate(samples)]
    asked = {"own": samples, "another clip's": others, "own, level 0": at(0.0),
             "own, highest level": at(1 - 2**-48)}  # fmt: skip
    return {name: by_timestep(objective, unet, each) for name, each in asked.items()}


def psnr(made: Tensor, true: Tensor) -> float:
    """Of pixels in -1..1, so against a range of 2."""
    return float(10 * torch.log10(4 / (made.clamp(-1, 1) - true).square().mean()))


def pictures(
    objective: Objective, unet: SpaceTimeUNet, samples: list[Sample], config: Config, sheet: Path
) -> dict[str, Any]:
    """Sampled from the true low resolution, guidance 1, against interpolation."""
    codec = objective.codec
    pipe = VideoFactoryPipeline(unet, codec, objective.text, objective.schedule)
    rows, found = [], []
    for n, sample in enumerate(samples):
        assert sample.low_res is not None and sample.latents is not None
        low_res, true = sample.low_res[None], codec.decode(sample.latents[None])
        plain = codec.decode(codec.enlarge(low_res))
        made = pipe(sample.caption, low_res=low_res, guidance_scale=1.0, progress=False,
                    num_inference_steps=config.sample_steps,
                    generator=torch.Generator().manual_seed(n))  # fmt: skip
        pixels = codec.decode(made.latents)
        detail, guess = true - plain, pixels - plain
        found.append({"interpolated": psnr(plain, true), "made": psnr(pixels, true),
                      "detail": float((detail * guess).sum() / detail.square().sum())})  # fmt: skip
        rows += [to_raw(plain)[0], made.frames[0], to_raw(true)[0]]
    contact_sheet(torch.stack(rows), sheet)
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trained", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--set", action="append", default=[], help="of the upsampler's run")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    every = [*ALL, f"max_steps={args.steps}"]
    base, run = args.work / "base", args.work / "upsampler"
    cpu_s = {"base": trained("base", args.trained, base, [*every, *SIZE], None)}
    sets = [*every, *TWICE, *args.set]
    cpu_s["upsampler"] = trained("upsampler", args.trained, run, sets, base)
    config, unet, objective = read(run)
    samples = clips_of(args.held_out, config, objective)
    result: dict[str, Any] = {"clips": len(samples), "steps": args.steps, "cpu_s": cpu_s,
                              "loss": losses(objective, unet, samples),
                              "picture": pictures(objective, unet, samples, config,
                                                  args.work / "sheet.png")}  # fmt: skip
    if args.json:
        print(json.dumps(result))
        return
    print(f"{len(samples)} clips of {args.held_out}, {args.steps} steps")
    for name, each in result["loss"].items():
        print(f"loss, {name + ':':24}" + "".join(f"{x:8.4f}" for x in [*each, sum(each) / BINS]))
    for name, x in result["picture"].items():
        print(f"{name}: {x:.2f}")
    print(f"CPU s: {cpu_s}; pictures: {args.work / 'sheet.png'}")


if __name__ == "__main__":
    main()
