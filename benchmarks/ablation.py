"""Does attention over space and time help? White textures that move, one attention beside another.

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/ablation.py [--runs FILE] [--arms off alternate]
        [--seeds N] [--steps N] [--quick] [--json]

Clips are 16-channel Gaussian noise on a torus that moves one pixel a frame in one of eight
directions; the model predicts v at the middle timesteps. Every frame by itself is white, so
without matching frames along the motion the least loss is 1; with the motion known it is 0.44
(`known_motion_loss`). docs/ablation.md says what was fixed beforehand and what the task favours.

primary   loss(off) - loss(alternate) over paired seeds: exact sign-flip test and 95% interval. Bar:
          mean at least 0.05 and the interval above 0.
control   the same at velocity 0, where each layer in time finds the match by itself: no gap.

A finished run is a line of --runs and is not repeated: stop it whenever you like, the same command
goes on. Every arm is printed with its interval; those without a bar are told and not judged. Exit
code 1: the bar is missed. --quick is a form in seconds that shows that it runs, with no bar.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests import this as benchmarks.ablation

import torch
from torch import Tensor

from model import SpaceTimeUNet
from model.diffusion import add_noise, noise_schedule, training_target
from training.evaluation.paired import interval, sign_flip_p

CHANNELS = 16
DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
TIMESTEPS = (300, 500)  # alpha^2 0.59 to 0.28: a clip is neither plain to see nor lost
SCHEDULE = noise_schedule("v_prediction")
# What an arm changes of `UNET`. A third layer pair in each block costs about what Swap-CA does.
ARMS: dict[str, dict[str, Any]] = {
    "off": {"swap_attention": "off", "layers_per_block": 2},
    "alternate": {},
    "spatial_query": {"swap_direction": "spatial_query"},
    "temporal_query": {"swap_direction": "temporal_query"},
    "both": {"swap_direction": "both"},
    "self": {"swap_attention": "self"},
    "global": {"swap_attention": "global"},
    "rotary": {"swap_position": "rotary"},
    "shift": {"swap_shift": "odd"},
    "rotary_shift": {"swap_position": "rotary", "swap_shift": "odd"},
}
PRIMARY = ("off", "alternate")
BAR = 0.05


@dataclass(frozen=True)
class Size:
    """How large a run is. Steps: 72 runs of them at 0.18 CPU s each are the 40 minutes that two
    shared cores could give; pilots say that it is too few to tell arms apart (docs/ablation.md)."""

    width: int = 16  # channels: those of a texel
    frames: int = 4
    side: int = 8  # px of the torus
    window: tuple[int, int, int] = (4, 4, 4)
    batch: int = 8
    steps: int = 180
    learning_rate: float = 4e-3  # of 4e-3 and 1.2e-2 the one that learned faster at velocity 0
    held_out: int = 256  # clips


QUICK = Size(width=16, batch=2, steps=2, held_out=4)


def textures(count: int, size: Size, moving: bool, random: torch.Generator) -> Tensor:
    """Clips [B, C, T, H, W]: white noise that goes one pixel a frame around a torus, or stands."""
    shape = (count, CHANNELS, size.side, size.side)
    clips = []
    for first in torch.randn(shape, generator=random):
        dy, dx = DIRECTIONS[int(torch.randint(8, (), generator=random))]
        steps = range(size.frames) if moving else [0] * size.frames
        clips.append(torch.stack([first.roll((t * dy, t * dx), (1, 2)) for t in steps], 1))
    return torch.stack(clips)


def known_motion_loss(size: Size) -> float:
    """The least mean error of v when the motion is known.

    A texel is then seen T times: x_t = alpha x_0 + sigma eps with x_0 ~ N(0, 1). v is
    (alpha x_t - x_0) / sigma, so its error is Var(x_0 | x) / sigma^2 = 1 / (sigma^2 + T alpha^2).
    """
    alpha2 = SCHEDULE.alphas_cumprod[slice(*TIMESTEPS)].double()
    return float((1 / (1 - alpha2 + size.frames * alpha2)).mean())


def make_unet(arm: str, size: Size, seed: int) -> SpaceTimeUNet:
    """One level of the project's own blocks, told nothing by text, begun as vf-train does."""
    torch.manual_seed(seed)
    unet = SpaceTimeUNet(
        **{
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "down_block_types": ("CrossAttnDownBlock3D",),
            "up_block_types": ("CrossAttnUpBlock3D",),
            "block_out_channels": (size.width,),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": 8,
            "attention_head_dim": 8,
            "swap_window": size.window,
            "swap_heads": 1,  # as wide as a texel, or no head can tell matches from others
            **ARMS[arm],
        }
    )
    torch.nn.init.dirac_(unet.conv_in.weight)
    torch.nn.init.zeros_(unet.conv_out.weight)
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return unet


def losses(unet: SpaceTimeUNet, clips: Tensor, random: torch.Generator) -> Tensor:
    """Mean squared error of v of each clip [B], at timesteps and noise drawn from `random`."""
    steps = torch.randint(*TIMESTEPS, (len(clips),), generator=random)
    noise = torch.randn(clips.shape, generator=random)
    found = unet(
        add_noise(SCHEDULE, clips, noise, steps), steps, clips.new_zeros(len(clips), 1, 8)
    ).sample
    error = found - training_target(SCHEDULE, clips, noise, steps)
    return error.square().mean((1, 2, 3, 4))


def run(arm: str, seed: int, moving: bool, size: Size) -> dict[str, Any]:
    """Train one arm; its loss on clips that are the same for all arms and seeds."""
    unet, random = make_unet(arm, size, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=size.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, size.learning_rate, total_steps=size.steps + 1, pct_start=0.1
    )
    started = time.process_time()
    for _ in range(size.steps):
        loss = losses(unet, textures(size.batch, size, moving, random), random).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    cpu_s = time.process_time() - started
    return {
        **{"arm": arm, "seed": seed, "velocity": int(moving), "size": asdict(size)},
        "loss": held_out_loss(unet, moving, size),
        "cpu_ms_a_step": 1000 * cpu_s / size.steps,
        "parameters": sum(p.numel() for p in unet.parameters()),
    }


@torch.no_grad()
def held_out_loss(unet: SpaceTimeUNet, moving: bool, size: Size) -> float:
    unet.eval()
    random = torch.Generator().manual_seed(10**9)
    parts = [min(32, size.held_out - n) for n in range(0, size.held_out, 32)]
    found = [losses(unet, textures(n, size, moving, random), random) for n in parts]
    return float(torch.cat(found).double().mean())


# -- all of it


def planned(arms: list[str], seeds: int) -> list[tuple[str, int, bool]]:
    """(arm, seed, moving) of every run, seed by seed: stopped early, what is there is paired."""
    runs = [(arm, seed, True) for seed in range(seeds) for arm in arms]
    return runs + [(arm, seed, False) for seed in range(seeds) for arm in PRIMARY if arm in arms]


def key_of(each: dict[str, Any]) -> str:
    """What makes a run another one: all but its results."""
    return json.dumps([each[name] for name in ("arm", "seed", "velocity", "size")])


def read_runs(path: Path) -> dict[str, dict[str, Any]]:
    """The finished runs of a file, a JSON object a line; a line torn by a kill is none."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            each = json.loads(line)
            found[key_of(each)] = each
    return found


def do_all(todo: list[tuple[str, int, bool]], size: Size, path: Path) -> list[dict[str, Any]]:
    """Every run, each from the file or else run and appended to it."""
    done, results = read_runs(path), []
    for n, (arm, seed, moving) in enumerate(todo, start=1):
        asked = {"arm": arm, "seed": seed, "velocity": int(moving), "size": asdict(size)}
        # As JSON has it: a tuple is a list there.
        key = key_of(json.loads(json.dumps(asked)))
        if key not in done:
            done[key] = json.loads(json.dumps(run(arm, seed, moving, size)))
            with path.open("a") as file:
                file.write("\n" + json.dumps(done[key]))  # a torn line before it ends here
            print(f"{n}/{len(todo)} {arm}, seed {seed}, velocity {int(moving)}: "
                  f"{done[key]['loss']:.4f}", flush=True)  # fmt: skip
        results.append(done[key])
    return results


def gap(results: list[dict[str, Any]], arm: str, velocity: int) -> dict[str, Any] | None:
    """loss(off) - loss(arm) over the seeds that both have; None without any."""
    by = {(r["arm"], r["seed"]): r["loss"] for r in results if r["velocity"] == velocity}
    seeds = sorted(seed for name, seed in by if name == arm and (PRIMARY[0], seed) in by)
    if not seeds or arm == PRIMARY[0]:
        return None
    differences = [by[PRIMARY[0], seed] - by[arm, seed] for seed in seeds]
    return {
        "mean": fmean(differences),
        "interval": interval(differences),
        "sign_flip_p": sign_flip_p(differences),
        "differences": differences,
    }


def rows_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm and velocity."""
    rows = []
    for arm, velocity in dict.fromkeys((r["arm"], r["velocity"]) for r in results):
        own = [r for r in results if (r["arm"], r["velocity"]) == (arm, velocity)]
        losses = [r["loss"] for r in own]
        rows.append(
            {
                **{"arm": arm, "velocity": velocity, "seeds": len(own)},
                **{"loss": fmean(losses), "loss_interval": interval(losses)},
                "gap": gap(results, arm, velocity),
                "cpu_ms_a_step": fmean(r["cpu_ms_a_step"] for r in own),
                "parameters": own[0]["parameters"],
            }
        )
    return rows


def met(primary: dict[str, Any] | None) -> bool:
    """Whether the mean is at least the bar and the whole interval above 0."""
    if primary is None or primary["interval"] is None:
        return False
    return primary["mean"] >= BAR and primary["interval"][0] > 0


def told(value: float, between: tuple[float, float] | None) -> str:
    return f"{value:+.4f}" + (f" [{between[0]:+.4f}, {between[1]:+.4f}]" if between else "")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| arm | velocity | seeds | loss | off's less it | sign-flip p | CPU ms a step | "
        "thousand parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row["gap"]
        gap_told = told(found["mean"], found["interval"]) if found else ""
        p = f"{found['sign_flip_p']:.3f}" if found else ""
        lines.append(
            f"| {row['arm']} | {row['velocity']} | {row['seeds']} | "
            f"{told(row['loss'], row['loss_interval']).replace('+', '')} | {gap_told} | {p} | "
            f"{row['cpu_ms_a_step']:.0f} | {row['parameters'] / 1e3:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, help=f"default: {Size().steps}")
    parser.add_argument("--runs", type=Path, default=Path("ablation.jsonl"))
    parser.add_argument("--quick", action="store_true", help="that it runs, in seconds; no bar")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if given.quick else Size()
    size = replace(size, steps=given.steps or size.steps)
    results = do_all(planned(given.arms, given.seeds), size, given.runs)
    rows = rows_of(results)
    primary = gap(results, PRIMARY[1], 1)
    print(f"\n{size}\nleast loss: 1 without matching frames, {known_motion_loss(size):.2f} with "
          f"the motion known\n\n{table(rows)}\n")  # fmt: skip
    verdict = None if given.quick or not set(PRIMARY) <= set(given.arms) else met(primary)
    if verdict is not None:
        assert primary is not None
        print(f"primary, off - alternate: {told(primary['mean'], primary['interval'])}, bar {BAR} "
              f"and the interval above 0: {'met' if verdict else 'MISSED'}")  # fmt: skip
    if given.json:
        print(json.dumps({"met": verdict, "size": asdict(size), "rows": rows, "runs": results}))
    sys.exit(verdict is False)


if __name__ == "__main__":
    main()
