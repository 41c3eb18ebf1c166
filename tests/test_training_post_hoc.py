"""Post-hoc EMA against averages that are tracked, and against the paper's own numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training_media import TINY, small_dataset

from training.checkpoints.folders import latest
from training.checkpoints.post_hoc import (
    SIGMAS,
    coefficients,
    decay_of,
    gamma_of,
    overlap,
    reconstruct,
)
from training.checkpoints.saving import read, read_unet, reader_of
from training.export import export as vf_export
from training.train import train as vf_train


@pytest.mark.parametrize("sigma", [0.03, 0.05, 0.08, 0.10, 0.25])
def test_the_spread_of_a_profile_is_what_was_asked_for(sigma: float) -> None:
    """Of density (g + 1) t^g on [0, 1]: mean (g+1)/(g+2), mean square (g+1)/(g+3)."""
    g = gamma_of(sigma)
    spread = math.sqrt((g + 1) / (g + 3) - ((g + 1) / (g + 2)) ** 2)
    assert spread == pytest.approx(sigma, rel=1e-9)
    assert overlap((1, g), (1, 0)) == pytest.approx(1)  # with the constant: its integral


def tracked(values: np.ndarray, gamma: float) -> np.ndarray:
    """The average at each step, as training keeps it."""
    out, average = [], 0.0
    for step, value in enumerate(values, 1):
        average += (1 - decay_of(gamma, step)) * (value - average)
        out.append(average)
    return np.array(out)


def test_an_average_weighs_steps_by_the_integral_of_its_profile() -> None:
    gamma, T = gamma_of(0.1), 40
    edges = (np.arange(T + 1) / T) ** (gamma + 1)
    for step in (1, 20, 40):
        values = np.zeros(T)
        values[step - 1] = 1
        assert tracked(values, gamma)[-1] == pytest.approx(edges[step] - edges[step - 1], rel=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_profile_that_was_kept_comes_out_as_it_is(sigma: float) -> None:
    kept = [(t, gamma_of(each)) for t in range(100, 1001, 100) for each in SIGMAS]
    weights, left = coefficients(kept, (1000, gamma_of(sigma)))
    known = [float(each == (1000, gamma_of(sigma))) for each in kept]
    assert weights == pytest.approx(known, abs=1e-6) and left < 1e-6


@pytest.mark.parametrize("sigma", [0.06, 0.08, 0.15])
def test_what_is_made_afterwards_is_what_would_have_been_tracked(sigma: float) -> None:
    """A parameter that wanders: no further off than the profile that is left over allows."""
    rng, T = np.random.default_rng(0), 1000
    values = np.cumsum(rng.standard_normal(T))
    kept = [(t, gamma_of(each)) for t in range(100, T + 1, 100) for each in SIGMAS]
    averages = {each: tracked(values, gamma_of(each)) for each in SIGMAS}
    weights, left = coefficients(kept, (T, gamma_of(sigma)))
    made = sum(w * averages[SIGMAS[n % 2]][t - 1]
               for n, (w, (t, _)) in enumerate(zip(weights, kept, strict=True)))  # fmt: skip
    wanted = tracked(values, gamma_of(sigma))[-1]
    size = math.sqrt(overlap((T, gamma_of(sigma)), (T, gamma_of(sigma))))
    # Cauchy-Schwarz over the steps, each of length 1.
    assert abs(made - wanted) <= left * size * np.linalg.norm(values)
    assert left < (0.01 if sigma <= 0.10 else 0.05)
    between = [averages[each][-1] for each in SIGMAS]
    assert abs(made - wanted) < 0.1 * abs(between[0] - between[1])


def test_a_run_is_averaged_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped in the middle and gone on with; of spread 0.1 it is the average that was kept."""
    data, run = small_dataset(tmp_path / "a", 3), tmp_path / "run"
    sets = [*TINY, "post_hoc_ema=true", "post_hoc_every=2", "learning_rate=1e-2"]
    for end in (3, 5):
        vf_train("tiny", [str(data)], run, set_=[*sets, f"max_steps={end}"])
    assert [path.name for path in sorted((run / "snapshots").iterdir())] == [
        "step-00000002",
        "step-00000004",
    ]
    checkpoint = latest(run)
    assert checkpoint
    unet, left = reconstruct(checkpoint, 0.10)
    assert left < 1e-6
    own = dict(unet.named_parameters())
    kept = {name: torch.empty_like(p) for name, p in own.items()}
    read(reader_of(checkpoint), {f"power1.{name}": tensor for name, tensor in kept.items()})
    raw = dict(read_unet(checkpoint, "raw").named_parameters())
    assert all(torch.allclose(own[name], kept[name], rtol=0, atol=1e-6) for name in own)
    assert not torch.allclose(own["conv_in.weight"], raw["conv_in.weight"], rtol=0, atol=1e-4)
    out = tmp_path / "out"
    vf_export(run, out, ema=0.08)
    assert "an average of spread 0.08" in capsys.readouterr().out
    assert json.loads((out / "export.json").read_text())["weights"] == "ema 0.08"
    with pytest.raises(SystemExit):
        vf_export(run, out, ema=0.5)
    assert "give a spread above 0" in capsys.readouterr().err
