"""Checkpoints: written beside the training, whole or not at all, and those of before."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_media import TINY, small_dataset

from curation.settings import RunError
from model import SpaceTimeUNet
from training.checkpoints.folders import latest
from training.checkpoints.savers import Saver
from training.checkpoints.saving import read, read_unet, reader_of, take, tensors_of, write
from training.config import load_config
from training.learning.starts import make_start
from training.learning.steps import State, make_state
from training.train import train as vf_train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


def train(data: Path, run: Path, *overrides: str) -> None:
    vf_train("tiny", [str(data)], run, set_=[*TINY, *overrides])


def lines(run: Path, key: str = "loss") -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if key in line]


def fresh() -> State:
    config = load_config("tiny", TINY)
    return make_state(make_start(config, None).unet, config, torch.device("cpu"))


def stepped(state: State) -> State:
    """One step of the optimiser, towards zero."""
    sum(p.square().sum() for p in state.unet.parameters()).backward()  # type: ignore[union-attr]
    state.optimizer.step()
    state.ema.update(state.unet, 0)
    state.step += 1
    return state


def in_old_form(checkpoint: Path) -> None:
    """Make of a checkpoint what was written before there were shards."""
    state = fresh()
    state.load(checkpoint)
    state.unet.save_pretrained(checkpoint / "unet")
    with state.ema.swapped(state.unet):
        state.unet.save_pretrained(checkpoint / "unet_ema")
    every = {name: state.optimizer.state[p] for name, p in state.unet.named_parameters()}
    names = {p: name for name, p in state.unet.named_parameters()}
    groups = [g | {"params": [names[p] for p in g["params"]]} for g in state.optimizer.param_groups]
    torch.save({"state": every, "param_groups": groups}, checkpoint / "optimizer.pt")
    for file in (checkpoint / "shards").iterdir():
        file.unlink()


def test_training_goes_on_while_a_checkpoint_is_written() -> None:
    saver, go, done = Saver(), threading.Event(), list[int]()

    def write() -> None:
        assert go.wait(60)
        done.append(len(done))

    saver.begin(1, time.monotonic(), write)
    assert not done and not saver.failed() and not saver.finished()
    go.set()
    saver.begin(2, time.monotonic(), write)  # after the one before
    assert done[0] == 0
    with saver:
        pass
    assert done == [0, 1]
    told = saver.finished()
    assert [line["step"] for line in told] == [1, 2] and not saver.finished()
    assert all(0 <= line["checkpoint_blocked_s"] <= line["checkpoint_written_s"] for line in told)


def test_what_is_written_is_what_was_at_its_step(tmp_path: Path) -> None:
    """Not what training has made of it meanwhile; weights, averages and moments to the bit."""
    state = stepped(fresh())
    known = {name: tensor.clone() for name, tensor in tensors_of(
        state.unet, state.ema, state.optimizer, {}).items()}  # fmt: skip
    facts = {"step": 1, "bad_rows": {}}
    none, room = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    parts = state.unet, state.ema, state.optimizer, none
    take(*parts, facts, {}, state.team, room).tensors["unet.conv_in.bias"].zero_()
    snapshot = take(*parts, facts, {}, state.team, room)  # into memory that is there
    stepped(state)
    write(tmp_path, snapshot, 1, None, state.team)
    again = fresh()
    again.load(latest(tmp_path))  # type: ignore[arg-type]
    found = tensors_of(again.unet, again.ema, again.optimizer, {})
    assert found.keys() == known.keys() and len(known) == 740 * 4 + 1
    assert all(torch.equal(found[name], known[name]) for name in known)
    assert known["step"].eq(1).all() and again.step == 1
    for weights, kind in (("raw", "unet"), ("ema", "ema")):
        for name, one in read_unet(latest(tmp_path), weights).named_parameters():  # type: ignore[arg-type]
            assert torch.equal(one, known[f"{kind}.{name}"])
    part = {"unet.conv_in.bias": torch.empty_like(known["unet.conv_in.bias"])}
    read(reader_of(latest(tmp_path)), part)  # type: ignore[arg-type]
    assert torch.equal(part["unet.conv_in.bias"], known["unet.conv_in.bias"])


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    run = tmp_path / "run"
    train(data, run, "max_steps=1")
    kept = latest(run)
    monkeypatch.setattr("training.checkpoints.saving.sync", full)
    with pytest.raises(SystemExit) as end:
        train(data, run, "max_steps=500", "checkpoint_every=2")
    told = capsys.readouterr().err
    assert end.value.code == 1 and "Traceback" not in told
    assert "step-00000002 was not written: [Errno 28] No space left" in told and latest(run) == kept
    assert lines(run)[-1]["step"] < 500  # not found out at the end


def test_a_failure_is_met_once_and_by_the_next_wait() -> None:
    def fail() -> None:
        raise RunError("the disk is full")

    saver = Saver()
    with pytest.raises(RunError, match="disk is full"), saver:
        saver.begin(1, time.monotonic(), fail)
    saver.begin(2, time.monotonic(), fail)
    while not saver.failed():
        time.sleep(0.001)
    with pytest.raises(RunError, match="disk is full"):
        saver.wait()
    assert not saver.failed() and not saver.finished()


def test_a_checkpoint_of_before_goes_on_to_the_bit(data: Path, tmp_path: Path) -> None:
    settings = ("checkpoint_every=2", "learning_rate=1e-2")
    train(data, tmp_path / "new", *settings, "max_steps=2")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    checkpoint = latest(tmp_path / "old")
    assert checkpoint
    known = {weights: read_unet(checkpoint, weights).state_dict() for weights in ("raw", "ema")}
    in_old_form(checkpoint)
    for weights, tensors in known.items():
        found = read_unet(checkpoint, weights)
        assert isinstance(found, SpaceTimeUNet)
        assert all(torch.equal(tensors[n], x) for n, x in found.state_dict().items())
    for name in ("new", "old"):
        train(data, tmp_path / name, *settings, "max_steps=3")
    some, others = ([line["loss"] for line in lines(tmp_path / name)] for name in ("new", "old"))
    assert some == others and len(some) == 3
    assert lines(tmp_path / "new", "checkpoint_written_s")[0]["step"] == 2
