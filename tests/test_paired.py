"""Statistics of paired seeds by known answers; what benchmarks/ablation.py says with them."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import ablation
from training.evaluation.paired import STUDENT_95, interval, sign_flip_p


def test_students_interval() -> None:
    # A textbook's: n = 10, mean 10, s = 2, t(9) = 2.262: half width 1.4306.
    values = np.array([-1, 1] * 5) * 2 * math.sqrt(0.9) + 10
    assert interval(list(values)) == pytest.approx((10 - 1.4306, 10 + 1.4306), abs=1e-3)
    assert interval([1.0]) is None and interval([2.0, 2.0]) == (2.0, 2.0)
    assert all(a > b for a, b in pairwise(STUDENT_95))
    # Cauchy's distribution is t of one degree, known in closed form; two degrees likewise.
    assert STUDENT_95[0] == pytest.approx(math.tan(math.pi * 0.475), abs=1e-3)
    assert STUDENT_95[1] == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), abs=1e-3)


def test_the_interval_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(3, 2, (4000, 6))
    bounds = [interval(list(each)) for each in draws]
    covered = np.mean([low <= 3 <= high for low, high in bounds if (low, high)])  # type: ignore[misc]
    assert covered == pytest.approx(0.95, abs=0.01)


def test_sign_flips() -> None:
    assert sign_flip_p([0.1] * 6) == sign_flip_p([1, 2, 3, 4, 5, 6]) == 2 / 64
    assert sign_flip_p([-1, -2, -3]) == 2 / 8
    # |sum| = 4 of 1, 2, 3 with one sign turned: 6 and 4 are as far, both ways, of eight.
    assert sign_flip_p([-1, 2, 3]) == 4 / 8
    assert sign_flip_p([1, -1]) == 1.0 and sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]) == sign_flip_p([0.3, 0.2, 0.1] * 2)


def test_textures_are_white_and_move_as_they_should() -> None:
    random = torch.Generator().manual_seed(0)
    clips = ablation.textures(64, ablation.Size(), True, random)
    assert clips.shape == (64, 16, 4, 8, 8)
    assert clips.var().item() == pytest.approx(1, abs=0.01)
    seen = set()
    for clip in clips:
        found = [
            d for d in ablation.DIRECTIONS if torch.equal(clip[:, 1], clip[:, 0].roll(d, (1, 2)))
        ]
        assert len(found) == 1
        dy, dx = found[0]
        assert torch.equal(clip[:, 3], clip[:, 0].roll((3 * dy, 3 * dx), (1, 2)))
        seen.add(found[0])
    assert len(seen) == 8
    still = ablation.textures(2, ablation.Size(), False, random)
    assert torch.equal(still, still[:, :, :1].expand_as(still))


def best_linear_loss(moving: bool, known: bool) -> float:
    """The error of v by least squares from a texel's frame alone, or from all along the motion."""
    random, size = torch.Generator().manual_seed(0), ablation.Size()
    first = torch.randn(100_000, 1, dtype=torch.float64, generator=random)
    noise = torch.randn(100_000, size.frames, dtype=torch.float64, generator=random)
    step = torch.tensor([400])
    alpha2 = ablation.SCHEDULE.alphas_cumprod[step].double()
    seen = alpha2.sqrt() * first + (1 - alpha2).sqrt() * noise
    target = (alpha2.sqrt() * noise - (1 - alpha2).sqrt() * first)[:, :1]
    x = seen if known else seen[:, :1]
    return float((target - x @ torch.linalg.lstsq(x, target).solution).square().mean())


def test_the_bounds_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ablation.known_motion_loss(ablation.Size()) == pytest.approx(0.444, abs=1e-3)
    monkeypatch.setattr(ablation, "TIMESTEPS", (400, 401))
    known = ablation.known_motion_loss(ablation.Size())
    assert best_linear_loss(True, True) == pytest.approx(known, rel=0.02)
    assert best_linear_loss(True, False) == pytest.approx(1, rel=0.02)


def made(arm: str, losses: list[float], velocity: int = 1) -> list[dict[str, Any]]:
    more = {"velocity": velocity, "size": {}, "cpu_ms_a_step": 1.0, "parameters": 1000}
    return [{"arm": arm, "seed": n, "loss": loss, **more} for n, loss in enumerate(losses)]


def test_the_primary_outcome_and_its_bar() -> None:
    off = made("off", [1.0, 1.1, 1.2, 1.0, 1.1, 1.2])
    clear = off + made("alternate", [0.9, 1.0, 1.1, 0.9, 1.0, 1.1])
    found = ablation.gap(clear, "alternate", 1)
    assert found is not None and found["mean"] == pytest.approx(0.1)
    assert found["sign_flip_p"] == 2 / 64 and ablation.met(found)
    small = off + made("alternate", [0.96, 1.06, 1.16, 0.96, 1.06, 1.16])
    assert not ablation.met(ablation.gap(small, "alternate", 1))  # 0.04 < 0.05
    wide = off + made("alternate", [0.2, 1.4, 1.0, 1.4, 0.4, 1.2])
    found = ablation.gap(wide, "alternate", 1)
    assert found is not None and found["mean"] > 0.05 and not ablation.met(found)
    assert not ablation.met(None) and ablation.gap(clear, "off", 1) is None
    assert ablation.gap(clear, "alternate", 0) is None
    # A seed that one of the two lacks is no pair.
    assert len(ablation.gap(clear[:-1], "alternate", 1)["differences"]) == 5  # type: ignore[index]
    text = ablation.table(ablation.rows_of(clear))
    assert (
        "| alternate | 1 | 6 | 1.0000 [0.9061, 1.0939] | +0.1000 [+0.1000, +0.1000] | 0.031" in text
    )


@pytest.mark.parametrize("arm", ablation.ARMS)
def test_every_arm_is_built_as_it_says(arm: str) -> None:
    unet = ablation.make_unet(arm, ablation.QUICK, 0)
    config = {key: unet.config[key] for key in ablation.ARMS[arm]}
    assert config == ablation.ARMS[arm]
    clips = torch.randn(1, 16, 4, 8, 8)
    loss = ablation.losses(unet, clips, torch.Generator().manual_seed(0)).item()
    assert 0.8 < loss < 1.2  # it starts by predicting v = 0


def test_the_quick_form_runs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs.jsonl"
    given = ["--quick", "--seeds", "2", "--json", "--arms", "off", "alternate", "--runs", str(runs)]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *given])

    def answer() -> tuple[dict[str, Any], list[str]]:
        with pytest.raises(SystemExit) as end:
            ablation.main()
        assert end.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        return json.loads(lines[-1]), [line for line in lines if ", seed " in line]

    first, told = answer()
    assert len(told) == 8 and told[-1].startswith("8/8 alternate, seed 1, velocity 0")
    assert first["met"] is None
    text = runs.read_text()
    assert text.count("\n{") == 8
    runs.write_text(text[:-10])  # killed while it wrote its last line: that run is done again
    again, told = answer()
    assert len(told) == 1 and runs.read_text().count("\n{") == 9
    losses = [[run["loss"] for run in each["runs"]] for each in (first, again)]
    assert losses[0] == losses[1]
    assert answer()[1] == []
