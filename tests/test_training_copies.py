"""checkpoint_to: whole checkpoints at a URI, and a run that goes on from there elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Store
from training_media import TINY, small_dataset

from curation.places import dataset_at
from training.checkpoints import copies
from training.checkpoints.folders import latest
from training.train import train as vf_train


def train(data: Path, run: Path, *overrides: str) -> None:
    vf_train("tiny", [str(data)], run, set_=[*TINY, "checkpoint_every=1", *overrides])


def losses(run: Path) -> list[tuple[int, float]]:
    every: list[dict[str, Any]] = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return [(line["step"], line["loss"]) for line in every if "loss" in line]


def test_a_run_goes_on_elsewhere_from_what_is_whole(
    s3: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, to = small_dataset(tmp_path / "a"), f"checkpoint_to={s3.uri('deep/run')}"
    train(data, tmp_path / "here", "max_steps=3", "keep_checkpoints=1", "milestone_every=2", to)
    place = dataset_at(s3.uri("deep/run"))
    assert copies.names_at(place) == ["step-00000002", "step-00000003"]
    # Another is being copied: its files are there and what makes it a checkpoint is not.
    kept = latest(tmp_path / "here")
    assert kept
    s3.put("deep/run/step-00000009/state.json", kept / "state.json")
    assert copies.names_at(place)[-1] == "step-00000003"

    capsys.readouterr()
    train(data, tmp_path / "there", "max_steps=4", to)
    told = capsys.readouterr().out
    assert "fetched step-00000003" in told and "going on from step 3" in told
    train(data, tmp_path / "here", "max_steps=4")
    assert losses(tmp_path / "there") == losses(tmp_path / "here")
    assert [step for step, _ in losses(tmp_path / "there")] == [1, 2, 3, 4]
    assert copies.names_at(place)[-1] == "step-00000004"
    for file in ("card.json", "config.yaml"):
        assert "test:test" not in (tmp_path / "there" / file).read_text()  # the store's key


def test_places_that_are_none_are_refused(
    s3: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small_dataset(tmp_path / "a", 3)
    for uri, told in (
        ("nowhere://bucket/run", "nowhere://bucket/run: "),
        (s3.uri("run", bucket="no-such-bucket"), "was not copied: "),
    ):
        with pytest.raises(SystemExit):
            train(data, tmp_path / "run", "max_steps=1", f"checkpoint_to={uri}")
        error = capsys.readouterr().err
        assert told in error and "Traceback" not in error
