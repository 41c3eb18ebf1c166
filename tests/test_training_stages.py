"""`vf-train --stages`: several runs in one file, each from where the last one ended."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_media import TINY, small_dataset
from typer.testing import CliRunner

from curation.settings import ConfigError
from training import train
from training.checkpoints.folders import latest
from training.checkpoints.saving import read_unet
from training.learning.stages import is_done, load_stages, plan

TWO = {
    "first": {"set": ["num_frames=1", "max_steps=2"]},
    "second": {"set": ["max_steps=3", "seed=4"]},
}


def file_of(folder: Path, **tree: Any) -> Path:
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump({"preset": "tiny", "stages": TWO} | tree, sort_keys=False))
    return path


def vf_train(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(train.app, [*map(str, arguments)], env={"COLUMNS": "400"})
    return done.exit_code, done.output


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = latest(run)
    assert checkpoint is not None
    return read_unet(checkpoint, "raw").state_dict()


def test_a_stage_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    data, output = small_dataset(tmp_path / "data"), tmp_path / "out"
    how = [*TINY, "num_samples=0", "held_out=0"]
    file = file_of(tmp_path, data=[str(data)], set=how)
    code, said = vf_train("--stages", file, "--output", output, "--dry-run")
    assert code == 0 and not output.exists(), said
    assert "stage second: to step 3" in said and f"starts from what {output}/first" in said
    code, said = vf_train("--stages", file, "--output", output)
    assert code == 0, said
    assert "stage 1 of 2, first: to step 2" in said and "stage 2 of 2, second: to step 3" in said
    start = json.loads((output / "second/start.json").read_text())
    assert start["source"] == f"{output}/first, step-00000002, EMA" and not start["new"]
    assert [json.loads((output / n / "card.json").read_text())["config"]["num_frames"]
            for n in ("first", "second")] == [1, 2]  # fmt: skip
    record = json.loads((output / "stages.json").read_text())
    assert [(name, each["steps"]) for name, each in record.items()] == [("first", 2), ("second", 3)]
    assert record["second"]["init"] == f"{output}/first"
    assert record["first"]["began"] <= record["first"]["ended"] <= record["second"]["began"]
    code, said = vf_train("--stages", file, "--output", output)
    assert code == 0 and said.count("done before") == 2, said
    assert json.loads((output / "stages.json").read_text()) == record


def test_a_longer_last_stage_goes_on(tmp_path: Path) -> None:
    data, output = small_dataset(tmp_path / "data"), tmp_path / "out"
    how = [*TINY, "num_samples=0", "held_out=0", "max_steps=2"]
    one = {"only": {}}
    file = file_of(tmp_path, data=[str(data)], set=how, stages=one)
    assert vf_train("--stages", file, "--output", output)[0] == 0
    first = weights(output / "only")
    file = file_of(tmp_path, data=[str(data)], set=[*how[:-1], "max_steps=3"], stages=one)
    planned = plan(load_stages(file), output, [])
    assert not is_done(planned["only"])
    code, said = vf_train("--stages", file, "--output", output)
    assert code == 0 and "going on from step 2" in said and is_done(planned["only"]), said
    last = weights(output / "only")
    assert any(not first[name].equal(last[name]) for name in first)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"stages": {}}, "stages"),
        ({"stages": {"a/b": {}}}, "'a/b' is to be a folder"),
        ({"stages": {"a": {"sets": []}}}, "sets"),
        ({"preset": None}, "preset"),
        ({"more": 1}, "more"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, tree: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_stages(file_of(tmp_path, **tree))


def test_every_stage_is_checked_before_the_first_runs(tmp_path: Path) -> None:
    data, output = small_dataset(tmp_path / "data"), tmp_path / "out"
    for stages, says in (
        ({"a": {}, "b": {"set": ["widht=16"]}}, "stage b: .*'widht'.*did you mean"),
        ({"a": {}, "b": {"data": [f"{tmp_path}/none"]}}, "stage b: .*none is not a dataset"),
        ({"a": {}, "b": {"set": ["num_frames=500"]}}, "stage b: "),
    ):
        file = file_of(tmp_path, data=[str(data)], set=TINY, stages=stages)
        code, said = vf_train("--stages", file, "--output", output)
        assert code == 2 and not output.exists(), said
        assert re.search(says, said), said
    code, said = vf_train("--stages", file_of(tmp_path), "--output", output)
    assert code == 2 and "stage first has no data" in said


def test_what_the_file_has_is_given_nowhere_else(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    code, said = vf_train("--stages", file, "--output", tmp_path / "out", "--preset", "tiny")
    assert code == 2 and "leave --preset" in said
    code, said = vf_train("--output", tmp_path / "out", "--preset", "tiny")
    assert code == 2 and "give --preset and --data, or --stages FILE" in said


def test_the_example_is_one() -> None:
    path = Path(__file__).parents[1] / "examples/stages.yaml"
    assert list(plan(load_stages(path), Path("runs/x"), [])) == ["images", "short", "whole"]
