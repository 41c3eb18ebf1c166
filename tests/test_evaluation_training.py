"""FVD while a run trains: the same number as vf-eval's, and nothing else of the run changes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_evaluation_run import IDS, cheap_network, invoke
from training_media import TINY, clip, mp4, write_dataset

from curation.shards import is_held_out
from training import evaluate, jobs, train
from training.checkpoints.folders import latest
from training.commands import StoppedError
from training.config import load_config
from training.evaluation import scoring
from training.evaluation.i3d import Features
from training.learning import loop

OUT = [i for i in IDS if is_held_out(i, 0.5)][:6]
KEPT = [i for i in IDS if not is_held_out(i, 0.5)][:3]
PROTOCOL = ["num_frames=10", "height=16", "width=32"]
# Ten frames of the protocol are more than the two that the run trains on.
RUN = [*TINY, "held_out=0.5", "dropout=0.1", "checkpoint_every=4"]
WATCH = [*("protocol_every=2", "protocol_samples=5", "protocol_i3d=untrained"),
         f"protocol_set=[{','.join(PROTOCOL)}]"]  # fmt: skip


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    features = Features(cheap_network, "untrained-features", "seed 0")
    monkeypatch.setattr(scoring, "untrained_i3d", lambda device: features)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips to train on; six held out, of which one is too short for the protocol."""
    rows = [clip(name, mp4(8 + n), 8 + n) for n, name in enumerate(OUT, 1)]
    rows += [clip(name, mp4(12), 12) for name in KEPT]
    return write_dataset(tmp_path_factory.mktemp("data") / "a", rows)


def trained(data: Path, run: Path, *sets: str, more: tuple[str, ...] = ()) -> Any:
    given = [part for each in (*RUN, *sets) for part in ("--set", each)]
    return invoke(train.app, "--preset", "tiny", "--data", data, "--output", run, *given, *more)


def lines(run: Path, key: str) -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if key in line]


def test_the_number_is_the_one_of_vf_eval(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    frames = scoring.read_frames
    monkeypatch.setattr(scoring, "read_frames", lambda *a: read.append(1) or frames(*a))
    run = tmp_path / "run"
    done = trained(data, run, *WATCH)
    assert done.exit_code == 0, done.output
    assert len(read) == 5  # each real clip once, for two measurements
    found = lines(run, "protocol")
    assert [line["step"] for line in found] == [2, 4]
    assert found[0]["protocol_scores"] != found[1]["protocol_scores"]

    sets = [part for each in (*PROTOCOL, "num_samples=5") for part in ("--set", each)]
    asked = ["--protocol", "dataset", "--reference", data, "--run", run, "--i3d", "untrained",
             "--clip", "none", *sets]  # fmt: skip
    done = invoke(evaluate.app, *asked, "--output", tmp_path / "eval")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "eval" / "result.json").read_text())
    own = json.loads((run / found[1]["protocol_file"]).read_text())
    assert own["model"]["checkpoint"] == result["model"]["checkpoint"] == latest(run).name  # type: ignore[union-attr]
    assert own.keys() == result.keys()
    for key in own.keys() - {"model", "code"}:
        assert own[key] == result[key], key
    assert found[1]["protocol_hash"] == result["hash"] and found[1]["protocol_n"] == 5
    assert result["too_short"] == 1
    assert found[1]["protocol_scores"]["fvd"]["features"] == "untrained-features"
    compared = invoke(evaluate.app, "--compare", run / found[0]["protocol_file"],
                      tmp_path / "eval" / "result.json")  # fmt: skip
    assert compared.exit_code == 0 and "fvd (untrained-features): A " in compared.output

    board = EventAccumulator(str(run / "tb"))
    board.Reload()
    tag = f"dataset-5-{result['hash']}/fvd (untrained-features)"
    shown = {x: [e.value for e in board.Scalars(f"{tag}{x}")] for x in ("", " low", " high")}
    score = result["scores"]["fvd"]
    assert shown[""][1] == pytest.approx(score["value"])
    assert [shown[" low"][1], shown[" high"][1]] == pytest.approx(score["interval"])


def test_the_run_is_the_same_with_and_without(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []

    def state() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]

    def noted(name: str) -> None:
        call = getattr(loop.Watch, name)

        def around(*arguments: Any) -> Any:
            before = state()
            result = call(*arguments)
            states.append(before == state())
            return result

        monkeypatch.setattr(loop.Watch, name, around)

    noted("measure_real")
    noted("measure")
    traces = {}
    for name, sets in (("with", WATCH), ("without", [])):
        done = trained(data, tmp_path / name, *sets, "evaluate_every=2")
        assert done.exit_code == 0, done.output
        keys = ("step", "loss", "gradient_norm", "held_out_loss", "held_out_loss_ema")
        wanted = [*lines(tmp_path / name, "loss"), *lines(tmp_path / name, "held_out_loss")]
        traces[name] = [{k: line[k] for k in keys if k in line} for line in wanted]
    assert traces["with"] == traces["without"] and len(traces["with"]) == 7
    assert states == [True, True, True]
    # A run may begin to measure, and stop: nothing that was trained depends on it.
    again = trained(data, tmp_path / "without", *WATCH, "max_steps=6")
    assert again.exit_code == 0, again.output
    assert [line["step"] for line in lines(tmp_path / "without", "protocol")] == [6]


def test_a_stop_does_not_wait_for_all_clips(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    generated = scoring.Measurer.generated

    def noted(measurer: scoring.Measurer, part: int) -> dict[str, np.ndarray]:
        begun.append(part)
        return generated(measurer, part)

    monkeypatch.setattr(scoring.Measurer, "generated", noted)
    job = jobs.Job(load_config("tiny", [*RUN, *WATCH]), [str(data)], tmp_path, None, [])
    with pytest.raises(StoppedError, match="at step 3"):
        jobs.work(job, Console(quiet=True), stop=lambda: bool(begun))
    assert begun == [0] and not lines(tmp_path, "protocol")  # the first of two parts, of step 2
    begun.clear()
    jobs.work(job, Console(quiet=True), stop=lambda: False)
    assert begun == [0, 1] and [each["step"] for each in lines(tmp_path, "protocol")] == [4]


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_is_missing_is_told_at_the_start(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VIDEOFACTORY_HOME", str(tmp_path))
    for changes, told in {
        "protocol_i3d=null": "package_weights.py i3d",
        "protocol_i3d=nowhere.pt": "nowhere.pt",
        "protocol_samples=6": "(1 are too short) and dataset/6x10@8fps",
        "protocol_set=[num_frame=10]": "did you mean num_frames",
        "protocol_set=[fps=4]": "makes 8 frames a second",
    }.items():
        run = tmp_path / "run"
        done = trained(data, run, *WATCH, changes, more=more)
        assert done.exit_code == 2 and told in " ".join(done.output.split()), (changes, done.output)
        assert "protocol_every" in done.output and not (run / "metrics.jsonl").exists()
        if "samples" in changes:
            assert "--set protocol_samples=5" in " ".join(done.output.split())
    few = trained(data, tmp_path / "few", *WATCH, "protocol_set=[num_frames=12]", more=more)
    assert few.exit_code == 2 and "no fewer than 4 will do" in " ".join(few.output.split())
    good = trained(data, tmp_path / "dry", *WATCH, more=("--dry-run",))
    assert good.exit_code == 0 and "features untrained-features" in good.output


def test_a_held_out_clip_that_does_not_decode_ends_the_run_before_its_first_step(
    tmp_path: Path,
) -> None:
    good = mp4(12)
    start = good.index(b"mdat") + 4
    bad = good[:start] + bytes(len(good) - start)  # it opens, and no frame of it decodes
    if good.index(b"moov") > start:
        bad = bad[: good.index(b"moov") - 4] + good[good.index(b"moov") - 4 :]
    rows = [clip(name, bad if n == 2 else good, 12) for n, name in enumerate(OUT)]
    rows += [clip(name, mp4(12), 12) for name in KEPT]
    done = trained(write_dataset(tmp_path / "a", rows), tmp_path / "run", *WATCH,
                   "protocol_samples=6")  # fmt: skip
    assert done.exit_code == 2 and "protocol_every: a clip of" in done.output, done.output
    assert not lines(tmp_path / "run", "loss")
