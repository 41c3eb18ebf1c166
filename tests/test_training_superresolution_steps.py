"""One step of super-resolution, what is measured, and what of a degradation reaches a pair."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from test_training_superresolution_runs import SIZE, SMALL
from training_media import clip, mp4, write_dataset

from training.superresolution import jobs, loop, state
from training.superresolution.config import Config, load_config
from training.superresolution.data import (
    cut,
    held_out_pairs,
    inner,
    open_datasets,
    read_pairs,
    stacked,
)
from training.superresolution.degradations import degrade
from training.superresolution.kernels import Dice
from training.superresolution.networks import make_generator, start_from

CPU = torch.device("cpu")
NOTHING = {"rounds": 0, "final_sinc": 0.0, "final_resize": ["area"], "crf": None}


def config(**changes: Any) -> Config:
    return load_config("tiny", SMALL).model_copy(update=changes)


def degradation(**changes: Any) -> Any:
    from training.superresolution.config import Degradation

    return Degradation(**{**NOTHING, **changes})


def picture(side: int = 128) -> torch.Tensor:
    x = torch.arange(side).float()
    waves = 127 + 60 * torch.sin(x / 3)[None] + 60 * torch.cos(x[:, None] / 5)
    return waves.expand(2, 3, side, side).to(torch.uint8).contiguous()


def test_the_losses_of_the_gan_are_those_of_its_two_sides() -> None:
    given = config(pretrain_steps=0)
    run = state.make_state(make_generator(given), None, given, CPU)
    small, true = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        made = inner(run.generator(small), 2)
        asked = run.discriminator(made)
    told = state.train_step(run, small, true, given)
    # -log sigmoid(x) is softplus(-x): the generator wants its pictures called real.
    assert told["gan"] == pytest.approx(0.1 * F.softplus(-asked).mean().item(), rel=1e-4)
    assert told["l1"] == pytest.approx((made - inner(true, 2)).abs().mean().item(), rel=1e-4)


def test_the_discriminator_learns_to_tell_real_from_made() -> None:
    given = config(learning_rate=1e-2)
    run = state.make_state(make_generator(given), None, given, CPU)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=False)
    dark, bright = torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)
    for _ in range(20):
        told = state.train_discriminator(run, dark, bright, autocast)
    assert told["real_logit"] > told["made_logit"]
    assert told["discriminator"] < 2 * 0.6931 - 0.01


def test_a_crop_may_lie_anywhere() -> None:
    frames = torch.zeros(2, 72, 96, 3, dtype=torch.uint8)
    frames[..., 0], frames[..., 1] = torch.arange(72)[:, None], torch.arange(96)
    places = set()
    for seed in range(60):
        found = cut(frames, config(crop=64), Dice(seed), middle=False)
        assert found.shape == (2, 3, 64, 64) and torch.equal(found[0], found[1])
        places.add((int(found[0, 0, 0, 0]), int(found[0, 1, 0, 0])))
    rows, columns = ({place[n] for place in places} for n in range(2))
    assert max(rows) <= 8 and max(columns) <= 32 and len(rows) > 5 and len(columns) > 15
    middle = cut(frames, config(held_out_crop=64), Dice(0), middle=True)
    assert (int(middle[0, 0, 0, 0]), int(middle[0, 1, 0, 0])) == (4, 16)


def test_each_part_of_a_degradation_is_done() -> None:
    true = picture()
    plain = degrade(true, 2, degradation(), 0).float()

    def error(**changes: Any) -> float:
        return (degrade(true, 2, degradation(**changes), 0).float() - plain).abs().mean().item()

    assert error() == 0
    assert error(crf=(40, 40)) > error(crf=(20, 20)) > 0
    silent: dict[str, Any] = {"blur": 0, "resize": (0, 0, 1), "gaussian": 1, "noise": (0, 0)}
    for name, rounds in (("first", 1), ("second", 2)):
        first = {"first": {**silent, "jpeg": (100, 100)}, "second": {**silent, "jpeg": (100, 100)}}

        def coded(quality: int, name: str = name, rounds: int = rounds, rest: Any = first) -> float:
            return error(rounds=rounds, **{**rest, name: {**silent, "jpeg": (quality, quality)}})

        assert coded(5) > 2 * coded(90), name
        noisy = {**first, name: {**first[name], "noise": (20, 20)}}
        assert error(rounds=rounds, **noisy) > error(rounds=rounds, **first) + 2, name
        blurred = {**first, name: {**first[name], "blur": 1, "sinc": 0, "sigma": (3, 3)}}
        assert error(rounds=rounds, **blurred) > error(rounds=rounds, **first) + 2, name


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = (SIZE["width"], SIZE["height"])
    rows = [clip(f"s{n}", mp4(3, size), 3, **SIZE) for n in range(6)]
    return write_dataset(tmp_path_factory.mktemp("sr") / "data", rows)


def test_a_held_out_clip_is_degraded_in_several_ways(dataset: Path) -> None:
    given = config(held_out_draws=3)
    (rows,) = open_datasets([str(dataset)], given, [])
    pairs = read_pairs(rows, rows.held_out[0], given, "held-out", middle=True)
    assert isinstance(pairs, list) and len(pairs) == 3
    assert all(torch.equal(pairs[0].true, each.true) for each in pairs)
    assert not any(torch.equal(pairs[0].small, each.small) for each in pairs[1:])


def test_what_is_measured_is_the_ema_that_is_published(dataset: Path, tmp_path: Path) -> None:
    given, run = config(learning_rate=1e-2), tmp_path / "run"
    with (console := Console(width=200)).capture():
        jobs.do(jobs.Job(given, [str(dataset)], run, None, []), console, None, False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "ours_psnr" in line][-1]
    generator = make_generator(given)
    start_from(generator, str(run))
    pairs = [pair for each in held_out_pairs(open_datasets([str(dataset)], given, []), given)
             if isinstance(each, list) for pair in each]  # fmt: skip
    found = []
    for pair in pairs:
        small, true = (stacked([x], CPU) for x in (pair.small, pair.true))
        found.append(loop.scores(loop.enlarged(generator, small), true, 2, None)["psnr"])
    assert told["ours_psnr"] == pytest.approx(mean(found), rel=1e-5)
