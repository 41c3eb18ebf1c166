"""vf-ablate: a grid of real tiny trainings, its resumption, its table, and mistakes in a grid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_media import TINY, small_dataset
from typer.testing import CliRunner

from training import jobs
from training.ablate import app
from training.evaluation import ablations
from training.evaluation.ablations import Outcome, compared, load_grid, markdown, plan

ROOT = Path(__file__).parents[1]
BASE = {"preset": "tiny", "set": [*TINY, "max_steps=2", "held_out=0.3"]}
GRID: dict[str, Any] = {
    "base": BASE,
    "arms": {False: ["unet.swap_attention=off"], "alternate": None},
    "seeds": [0, 1],
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changes}))
    return path


def invoke(grid: Path, data: Path, output: Path, *more: str) -> Any:
    given = [str(grid), "--data", str(data), "--output", str(output), *more]
    return CliRunner().invoke(app, given)


def test_a_grid_in_this_process_stopped_and_gone_on_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, output = written(tmp_path), tmp_path / "out"
    real, worked = jobs.work, []

    def work(job: jobs.Job, *rest: Any) -> None:
        worked.append(str(job.output.relative_to(output)))
        if len(worked) == 3:
            raise KeyboardInterrupt
        real(job, *rest)

    monkeypatch.setattr(jobs, "work", work)
    assert invoke(grid, data, output, "--workers", "0").exit_code == 1
    assert worked == ["off/seed-0", "alternate/seed-0", "off/seed-1"]
    assert not (output / "ablation.json").exists()
    assert "2 runs left" in invoke(grid, data, output, "--dry-run").output

    done = invoke(grid, data, output, "--workers", "0")
    assert done.exit_code == 0, done.output
    assert worked[3:] == ["off/seed-1", "alternate/seed-1"]
    found = json.loads((output / "ablation.json").read_text())
    off, alternate = found["arms"]
    assert off["parameters"] < alternate["parameters"] and off["seeds"] == 2
    runs = {(each["arm"], each["seed"]): each for each in found["runs"]}
    for (arm, seed), each in runs.items():
        lines = (output / arm / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()
        last = [x for x in map(json.loads, lines) if "held_out_loss" in x][-1]
        assert (last["step"], last["held_out_loss"]) == (2, each["loss"])
    gaps = [runs["alternate", seed]["loss"] - runs["off", seed]["loss"] for seed in (0, 1)]
    assert alternate["loss_gap"]["mean"] == pytest.approx(sum(gaps) / 2)
    assert alternate["fvd"] is None and "not measured" in done.output
    assert (output / "ablation.md").read_text() in done.output

    # Nothing is left; a run that was made otherwise is refused.
    assert invoke(grid, data, output).exit_code == 0 and len(worked) == 5
    other = written(tmp_path, base={**BASE, "set": [*BASE["set"], "learning_rate=0.5"]})
    told = invoke(other, data, output)
    assert told.exit_code == 2 and "off, seed 0" in told.output and "learning_rate" in told.output
    longer = written(tmp_path, base={**BASE, "set": [*BASE["set"], "max_steps=1"]})
    told = invoke(longer, data, output, "--workers", "0")
    assert told.exit_code == 2 and "no held-out loss of step 1" in told.output


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": {"a": ["unet.swap_atention=off"]}}, "arm a: unknown key 'unet.swap_atention'"),
        ({"arms": {"a": ["max_steps=3"]}}, "arm a sets max_steps, which all arms share"),
        ({"arms": {"a/b": []}}, "arm 'a/b' is to be a folder"),
        ({"arms": {}}, "arms is {}"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]"),
        ({"base": {"preset": "tny"}}, "did you mean 'tiny'?"),
        ({"bases": 1}, "unknown key 'bases'"),
        ({"arms": {"ok": [], "b": ["unet.swap_position=some"]}}, "b, seed 0: swap_position='some'"),
        ({"base": {**BASE, "set": [*TINY, "held_out=0"]}}, "no clip is held out"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    changes: dict[str, Any], told: str, data: Path, tmp_path: Path
) -> None:
    done = invoke(written(tmp_path, **changes), data, tmp_path / "out")
    assert done.exit_code == 2 and told in " ".join(done.output.split()), done.output
    assert not (tmp_path / "out").exists()


def test_an_output_of_another_kind_is_refused(data: Path, tmp_path: Path) -> None:
    done = invoke(written(tmp_path), data, tmp_path)  # the folder of the grid itself
    assert done.exit_code == 2 and "holds something else" in done.output
    done = invoke(tmp_path / "none.yaml", data, tmp_path / "out")
    assert done.exit_code == 2 and "none.yaml" in done.output


@pytest.mark.slow  # a Ray and two processes that import torch
def test_a_grid_through_ray_goes_on_past_a_run_that_fails(data: Path, tmp_path: Path) -> None:
    output, off = tmp_path / "out", GRID["arms"][False]
    bad = ["learning_rate=1e30", "max_skipped_steps=0"]
    grid = written(tmp_path, seeds=[3], arms={"bad": bad, False: off})
    done = invoke(grid, data, output, "--workers", "2")
    told = " ".join(done.output.split())
    assert done.exit_code == 1, told
    assert "2 runs left" in told and "1 of 2 runs failed" in told and "bad/seed-3: step 2" in told
    assert "held-out loss" in (output / "off" / "seed-3.log").read_text()
    assert not (output / "ablation.json").exists()
    # Without the arm that cannot be trained nothing is left to do, and the table is written.
    done = invoke(written(tmp_path, seeds=[3], arms={False: off}), data, output)
    assert done.exit_code == 0 and "0 runs left" in done.output
    found = json.loads((output / "ablation.json").read_text())
    assert [row["arm"] for row in found["arms"]] == ["off"]


def outcome(arm: str, seed: int, loss: float, fvd: float | None = None) -> Outcome:
    return Outcome(arm, seed, loss, 2 * loss, 0.5, 1_000_000, fvd)


def test_the_table_of_known_numbers() -> None:
    found = [outcome("a", s, 1.0 + s) for s in (0, 1, 2)]
    # By seed 0.1, 0.2, 0.3 below: mean 0.2, Student's t 4.303 * 0.1 / sqrt(3) = 0.2484.
    found += [outcome("b", s, 1.0 + s - 0.1 * (s + 1), fvd=s) for s in (2, 0, 1)]
    first, second = compared(found)
    assert "loss_gap" not in first and first["loss"] == 2.0 and second["fvd"] == 1.0
    gap = second["loss_gap"]
    assert gap["mean"] == pytest.approx(-0.2) and gap["sign_flip_p"] == 0.25
    assert gap["interval"] == pytest.approx((-0.4484, 0.0484), abs=1e-4)
    assert second["loss_ema_gap"]["mean"] == pytest.approx(-0.4)
    lines = markdown([first, second], 7).splitlines()
    assert "after 7 steps, mean over 3 seeds" in lines[0]
    assert lines[-1] == (
        "| b | 1.8000 | -0.2000 [-0.4484, +0.0484] | 3.6000 | -0.4000 [-0.8969, +0.0969] | 0.5 | "
        "1.00 | 1 |"
    )
    alone = compared([outcome("a", 0, 1.0), outcome("b", 0, 0.5)])
    assert "-0.5000, one seed" in markdown(alone, 1)


def test_the_example_is_a_grid_that_vf_train_takes() -> None:
    grid = load_grid(ROOT / "examples/swap_grid.yaml")
    runs = plan(grid, Path("out"))
    assert list(grid.arms)[:2] == ["off", "alternate"]
    assert len(runs) == len(grid.arms) * len(grid.seeds)
    assert runs[0].config.unet["swap_attention"] == "off" and not runs[0].done
    assert {run.config.seed for run in runs} == set(grid.seeds)
    assert ablations.SHARED[0] == "seed"
