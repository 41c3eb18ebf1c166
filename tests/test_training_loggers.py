"""Where a run's scalars and samples go: each logger by what it kept, over a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from training_media import TINY, small_dataset

from training.learning import loggers
from training.train import train as vf_train

ROOT = Path(__file__).parents[1]
SAMPLED = ["num_samples=1", 'sample_prompts=["a dog"]', "sample_every=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


def needs(package: str) -> pytest.MarkDecorator:
    missing = find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is an extra: pip install {package}")


def train_apart(data: Path, run: Path, logger: str, steps: int, **env: str) -> str:
    """vf-train in a process of its own, as these packages read their settings at import."""
    sets = [*TINY, *SAMPLED, f"logger={logger}", f"max_steps={steps}"]
    done = subprocess.run(
        [sys.executable, "-m", "training.train", "--preset", "tiny", "--data", str(data),
         "--output", str(run), *(part for each in sets for part in ("--set", each))],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_none_writes_metrics_alone(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sets = [*TINY, *SAMPLED, "logger=none", "max_steps=1"]
    vf_train("tiny", [str(data)], run, set_=sets)
    names = {path.name for path in run.iterdir()}
    assert "metrics.jsonl" in names and "samples" in names
    assert not names & {"tb", "logger.json", "wandb"}


def test_the_logger_may_change_between_parts_of_a_run(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for steps, logger in ((1, "none"), (2, "tensorboard")):
        vf_train("tiny", [str(data)], run, set_=[*TINY, f"logger={logger}", f"max_steps={steps}"])
    assert any((run / "tb").iterdir())


@pytest.mark.parametrize("logger", ["trackio", "wandb"])
@pytest.mark.parametrize("dry", [True, False])
def test_a_missing_package_is_told_before_any_work(
    logger: str,
    dry: bool,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        sets = [*TINY, f"logger={logger}"]
        vf_train("tiny", [str(data)], tmp_path / "run", set_=sets, dry_run=dry)
    told = capsys.readouterr().err
    assert error.value.code == 2 and "Traceback" not in told
    assert f"logger={logger} needs the package {logger}: pip install {logger}" in told
    assert not (tmp_path / "run" / "card.json").exists()


def test_an_id_lasts_and_is_of_one_run(tmp_path: Path) -> None:
    runs = [tmp_path / name / "run" for name in "ab"]
    for run in runs:
        run.mkdir(parents=True)
    first = loggers.lasting_id(runs[0], "wandb")
    assert first.startswith("run-") and first == loggers.lasting_id(runs[0], "wandb")
    assert (
        len({first, loggers.lasting_id(runs[0], "trackio"), loggers.lasting_id(runs[1], "wandb")})
        == 3
    )


@needs("trackio")
def test_trackio_has_one_run_over_a_resume(data: Path, tmp_path: Path) -> None:
    import sqlite3

    run, kept = tmp_path / "run", tmp_path / "trackio"
    for steps in (1, 3):
        train_apart(data, run, "trackio", steps, TRACKIO_DIR=str(kept))
    (name,) = json.loads((run / "logger.json").read_text()).values()
    with sqlite3.connect(kept / "videofactory.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    told = [(run_name, step, json.loads(text)) for run_name, step, text in rows]
    assert {run_name for run_name, *_ in told} == {name}
    losses = {step: values["loss"] for _, step, values in told if "loss" in values}
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert losses == {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert sorted(losses) == [1, 2, 3]
    videos = [step for _, step, values in told if "samples/0" in values]
    assert sorted(set(videos)) == [1, 2, 3]
    assert len(list((kept / "media").rglob("*.gif"))) == len(videos)


@needs("wandb")
def test_wandb_has_one_run_over_a_resume(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for steps in (1, 2):
        train_apart(data, run, "wandb", steps, WANDB_MODE="offline", WANDB_SILENT="true")
    (name,) = json.loads((run / "logger.json").read_text()).values()
    kept = list((run / "wandb").glob(f"offline-run-*-{name}"))
    assert len(kept) == 2
    for folder in kept:
        assert (folder / f"run-{name}.wandb").stat().st_size > 1000
        assert list((folder / "files" / "media").rglob("*.gif"))
