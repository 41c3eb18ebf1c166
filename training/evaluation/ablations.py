"""A grid of trainings that differ in an arm's settings and in the seed, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.settings import ConfigError
from model import SpaceTimeUNet
from model.unet import count_parameters
from training.checkpoints.folders import latest
from training.config import FOLDER_NAME, Config, from_yaml, load_config
from training.evaluation.paired import interval, sign_flip_p

# What all arms share: the seed is the grid's; the rest is the budget and what is evaluated.
SHARED = ("seed", "max_steps", "batch_size", "held_out", "held_out_clips", "timestep_bins")


class Base(BaseModel):
    """What every run of a grid begins with: a preset of vf-train and its `--set`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str
    set: list[str] = []


class Grid(BaseModel):
    """Arms, each a list of `key=value` beyond the base, by seeds. The first arm is the one that
    the others are held against."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Base
    arms: dict[str, list[str]] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)

    @field_validator("arms", mode="before")
    @classmethod
    def names_and_none(cls, arms: Any) -> Any:
        """YAML reads an arm called `off` as False, and an arm of no keys as null."""
        if not isinstance(arms, dict):
            return arms
        words = {False: "off", True: "on"}
        return {words.get(name, str(name)): sets or [] for name, sets in arms.items()}

    @field_validator("arms")
    @classmethod
    def differ_in_what_they_may(cls, arms: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, sets in arms.items():
            if not FOLDER_NAME.fullmatch(name):
                raise ValueError(f"arm {name!r} is to be a folder: use letters, digits, _ . and -")
            for each in sets:
                if (key := each.partition("=")[0]) in SHARED:
                    raise ValueError(
                        f"arm {name} sets {key}, which all arms share: set it in base, seeds in "
                        "seeds"
                    )
        return arms

    @field_validator("seeds")
    @classmethod
    def each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds is {seeds}: give whole numbers from 0, each once")
        return seeds


@dataclass(frozen=True)
class Planned:
    """One run of a grid: an ordinary RUN folder of vf-train."""

    arm: str
    seed: int
    config: Config
    folder: Path

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether its last checkpoint is that of the last step."""
        found = latest(self.folder)
        return bool(found) and found.name == f"step-{self.config.max_steps:08d}"  # type: ignore[union-attr]


def load_grid(path: Path) -> Grid:
    """A grid from its YAML; ConfigError with the first problem."""
    return from_yaml(path, Grid, "base, arms and seeds (docs/ablation.md)")


def plan(grid: Grid, output: Path) -> list[Planned]:
    """Every run, seed by seed, so that a grid that is stopped has pairs; ConfigError for an arm
    that vf-train would refuse."""
    planned = []
    for seed in grid.seeds:
        for arm, sets in grid.arms.items():
            try:
                config = load_config(grid.base.preset, [*grid.base.set, *sets, f"seed={seed}"])
            except ConfigError as error:
                raise ConfigError(f"arm {arm}: {error}") from None
            planned.append(Planned(arm, seed, config, output / arm / f"seed-{seed}"))
    return planned


@dataclass(frozen=True)
class Outcome:
    """What a finished run says of itself. loss: held out, after the last step."""

    arm: str
    seed: int
    loss: float
    loss_ema: float
    s_per_step: float  # median of all steps, waiting for data included
    parameters: int
    fvd: float | None


def read(run: Planned) -> Outcome:
    """The numbers of a finished run; ConfigError for one without a held-out loss."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "held_out_loss" in line]
    if not evaluated or evaluated[-1]["step"] != run.config.max_steps:
        raise ConfigError(
            f"{run.folder} has no held-out loss of step {run.config.max_steps}: give another "
            "--output"
        )
    steps = [run.config.batch_size / line["clips_per_s"] for line in lines if "clips_per_s" in line]
    scores = [line["protocol_scores"] for line in lines if "protocol_scores" in line]
    found = latest(run.folder)
    assert found is not None
    with torch.device("meta"):
        unet = SpaceTimeUNet.from_config(SpaceTimeUNet.load_config(str(found / "unet")))
    return Outcome(
        run.arm,
        run.seed,
        evaluated[-1]["held_out_loss"],
        evaluated[-1]["held_out_loss_ema"],
        median(steps),
        count_parameters(unet)["total"],
        scores[-1]["fvd"]["value"] if scores and "fvd" in scores[-1] else None,
    )


def compared(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """A row for each arm: means over seeds, and its difference from the first arm by seed."""
    arms = list(dict.fromkeys(each.arm for each in outcomes))
    by_arm = {arm: sorted_by_seed(outcomes, arm) for arm in arms}
    rows = []
    for arm, found in by_arm.items():
        fvds = [each.fvd for each in found if each.fvd is not None]
        row: dict[str, Any] = {
            "arm": arm,
            "seeds": len(found),
            "s_per_step": median(each.s_per_step for each in found),
            "parameters": found[0].parameters,
            "fvd": fmean(fvds) if len(fvds) == len(found) else None,
        }
        for key in ("loss", "loss_ema"):
            values, first = ([getattr(o, key) for o in each] for each in (found, by_arm[arms[0]]))
            row[key] = fmean(values)
            if arm != arms[0]:
                gaps = [a - b for a, b in zip(values, first, strict=True)]
                row[f"{key}_gap"] = {"mean": fmean(gaps), "interval": interval(gaps),
                                     "sign_flip_p": sign_flip_p(gaps)}  # fmt: skip
        rows.append(row)
    return rows


def sorted_by_seed(outcomes: Iterable[Outcome], arm: str) -> list[Outcome]:
    return sorted((each for each in outcomes if each.arm == arm), key=lambda each: each.seed)


def markdown(rows: list[dict[str, Any]], steps: int) -> str:
    """The table of an ablation: losses, what an arm's differ by from the first one's, its cost."""
    first = rows[0]["arm"]
    lines = [
        f"Held-out loss after {steps} steps, mean over {rows[0]['seeds']} seeds; differences from "
        f"{first} by seed, below 0 is better, with Student's 95% interval.",
        "",
        f"| arm | loss | less {first}'s | EMA loss | less {first}'s | s a step | "
        "M parameters | FVD |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["arm"]]
        for key in ("loss", "loss_ema"):
            cells += [f"{row[key]:.4f}", told_gap(row.get(f"{key}_gap"))]
        cells += [f"{row['s_per_step']:.3g}", f"{row['parameters'] / 1e6:.2f}"]
        cells.append("not measured" if row["fvd"] is None else f"{row['fvd']:.4g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def told_gap(gap: dict[str, Any] | None) -> str:
    if gap is None:
        return ""
    if gap["interval"] is None:
        return f"{gap['mean']:+.4f}, one seed"
    low, high = gap["interval"]
    return f"{gap['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"


def as_json(grid: Grid, data: list[str], outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "grid": grid.model_dump(mode="json"),
        "data": data,
        "arms": compared(outcomes),
        "runs": [asdict(each) for each in outcomes],
    }
