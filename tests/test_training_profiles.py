"""profile_steps: which steps are recorded, and what is written wherever a run begins and ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_training_steps import config
from training_media import TINY, small_dataset

from curation.settings import ConfigError
from training.learning.profiles import Profiles
from training.train import train as vf_train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


def test_the_steps_of_a_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    sets = [*TINY, "profile_steps=[2, 3]", "max_steps=3"]
    vf_train("tiny", [str(data)], run, set_=sets)
    assert "profiled steps 2 to 3" in " ".join(capsys.readouterr().out.split())
    events = json.loads((run / "profile" / "steps-2-3.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum(name.startswith("Optimizer.step") for name in names) == 2
    assert "aten::convolution" in names
    table = (run / "profile" / "steps-2-3.txt").read_text()
    assert "Self CPU" in table and "aten::" in table


@pytest.mark.parametrize(
    ("ran", "written"),
    [
        (range(1, 6), ["steps-2-4"]),
        (range(1, 4), ["steps-2-3"]),  # the run ends in the middle
        (range(3, 6), ["steps-3-4"]),  # it was gone on with there
        (range(5, 8), []),
    ],
)
def test_what_a_run_comes_to_is_written(ran: range, written: list[str], tmp_path: Path) -> None:
    told: list[str] = []
    profiles = Profiles(tmp_path, (2, 4), torch.device("cpu"), told.append)
    for number in ran:
        with profiles.step(number):
            torch.ones(1) * number
    profiles.close()
    assert sorted(path.stem for path in tmp_path.rglob("*.json")) == written
    assert len(told) == len(written)
    for path in tmp_path.rglob("*.json"):
        names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
        assert names.count("aten::mul") == len(set(ran) & {2, 3, 4})


@pytest.mark.parametrize("steps", ["[0, 2]", "[3, 2]", "[1]"])
def test_steps_that_are_none_are_refused(steps: str) -> None:
    with pytest.raises(ConfigError, match="profile_steps"):
        config(f"profile_steps={steps}")
