"""Runs of `vf-train --stage sr`: resumed to the bit, what they write, mistakes told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import THREE_SHOTS, MakeVideo
from rich.console import Console
from safetensors.torch import load_file
from training_media import clip, mp4, write_dataset
from typer.testing import CliRunner

from training.checkpoints.folders import steps_of
from training.commands import StoppedError
from training.sample import app as sample
from training.superresolution import jobs, loop
from training.superresolution.config import load_config
from training.superresolution.data import Pair, Pairs, open_datasets, read_pairs
from training.superresolution.jobs import Job
from training.superresolution.networks import make_generator
from training.superresolution.state import make_state
from training.train import app
from training.upscale import app as upscale

SMALL = [
    *("num_features=4", "num_blocks=1", "discriminator_features=2", "crop=64", "held_out_crop=64"),
    *("num_frames=2", "crops=2", "held_out_draws=1", "num_threads=1", "held_out=0.4"),
    *("max_steps=4", "pretrain_steps=1", "checkpoint_every=2", "evaluate_every=4"),
]
SIZE = {"width": 96, "height": 72}


def rows(count: int = 6, **changes: Any) -> list[dict[str, Any]]:
    size = (SIZE["width"], SIZE["height"])
    return [clip(f"s{n}", mp4(3 + n % 2, size), 3 + n % 2, **SIZE, **changes)
            for n in range(count)]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("sr") / "data", rows())


def job(data: Path, output: Path, *sets: str) -> Job:
    return Job(load_config("tiny", [*SMALL, *sets]), [str(data)], output, None, [])


def train(given: Job) -> str:
    console = Console(width=400, force_terminal=False)
    with console.capture() as told:
        jobs.do(given, console, None, False)
    return told.get()


def trace(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("clips_per_s", "data_wait_share")}
            for line in lines]  # fmt: skip


def test_a_stopped_run_goes_on_to_the_bit(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by a signal's flag after step 3, killed without a save after step 2."""
    train(job(dataset, tmp_path / "straight"))
    plain = loop.train

    def stopped(run: loop.Run, stop: Any) -> None:
        plain(run, lambda: run.state.step == 3)

    def killed(run: loop.Run, stop: Any) -> None:
        def die() -> bool:
            if run.state.step == 3:
                raise KeyboardInterrupt
            return False

        plain(run, die)

    for name, way, error in (("stopped", stopped, StoppedError),
                             ("killed", killed, KeyboardInterrupt)):  # fmt: skip
        monkeypatch.setattr(loop, "train", way)
        with pytest.raises(error):
            train(job(dataset, tmp_path / name))
        monkeypatch.setattr(loop, "train", plain)
        assert "going on from step" in train(job(dataset, tmp_path / name))
        assert trace(tmp_path / name) == trace(tmp_path / "straight")
        ends = [steps_of(tmp_path / n)[-1] for n in ("straight", name)]
        for file in ("generator", "ema", "discriminator"):
            a, b = (load_file(end / f"{file}.safetensors") for end in ends)
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), file


def test_what_a_run_writes_is_used(dataset: Path, tmp_path: Path, make_video: MakeVideo) -> None:
    told = train(job(dataset, tmp_path / "run"))
    assert "held-out: l1" in told and "(bicubic" in told
    lines = trace(tmp_path / "run")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert "gan" not in steps[0] and steps[1]["discriminator"] > 0
    assert [line["step"] for line in lines if "ours_psnr" in line] == [0, 4]
    assert (tmp_path / "run/sheets/step-00000004.png").exists()
    written, made = tmp_path / "run", tmp_path / "out.mp4"
    done = CliRunner().invoke(
        upscale, [str(make_video("a.mp4", THREE_SHOTS[:1])), str(made), "--weights", str(written)]
    )
    assert done.exit_code == 0 and "by weights.safetensors (RealESRGAN Compact x2)" in done.output
    with pytest.raises(ValueError, match=r"not the run that was started: .*crop"):
        train(job(dataset, tmp_path / "run", "crop=72"))
    for command, arguments in (
        (app, ["--preset", "tiny", "--data", str(dataset), "--output", str(written)]),
        (app, ["--preset", "tiny", "--data", str(dataset), "--output", str(tmp_path / "x"),
               "--init", str(written)]),
        (sample, [str(written), "--prompt", "a ball", "--output", str(made)]),
    ):  # fmt: skip
        small = ["--set", "num_frames=2", "--set", "stride=1"] if command is app else []
        refused = CliRunner().invoke(command, [*arguments, *small])
        assert refused.exit_code == 2 and "is a run of --stage sr" in refused.output
    (tmp_path / "run/card.json").write_text("{}")
    with pytest.raises(ValueError, match="run of another stage"):
        train(job(dataset, tmp_path / "run"))


def test_the_discriminator_may_have_a_rate_of_its_own() -> None:
    def rates(*sets: str) -> list[float]:
        config = load_config("tiny", [*SMALL, "learning_rate=1e-4", *sets])
        state = make_state(make_generator(config), None, config, torch.device("cpu"))
        return [state.optimizers[name].param_groups[0]["lr"]
                for name in ("generator", "discriminator")]  # fmt: skip

    assert rates() == [1e-4, 1e-4]
    assert rates("discriminator_learning_rate=2e-3") == [1e-4, 2e-3]


def test_pairs_are_drawn_by_seed_epoch_and_clip_alone(dataset: Path) -> None:
    config = load_config("tiny", SMALL)
    told: list[str] = []
    (found,) = open_datasets([str(dataset)], config, told)
    held_out = {found.fetch(row).clip_id for row in found.held_out}
    trained = {found.fetch(row).clip_id for row in found.trained.tolist()}
    assert held_out and trained and not held_out & trained and len(held_out | trained) == 6
    one, again, other = (read_pairs(found, 0, config, epoch) for epoch in (0, 0, 1))
    assert isinstance(one, list) and isinstance(again, list) and isinstance(other, list)
    assert all(torch.equal(a.small, b.small) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a.small, b.small) for a, b in zip(one, other, strict=True))
    assert [(p.small.shape, p.true.shape) for p in one] == [((2, 3, 32, 32), (2, 3, 64, 64))] * 2
    first = next(Pairs([found], config).start_at(1)).pairs
    ahead = Pairs([found], config).start_at(0)
    next(ahead)
    assert torch.equal(first[0].small, next(ahead).pairs[0].small)


def test_bad_rows_are_named_and_small_ones_counted(tmp_path: Path) -> None:
    given = rows()
    given[5]["clip"] = {"bytes": b"no mp4", "path": None}
    small = [clip("low", mp4(4), 4)]
    data = write_dataset(tmp_path / "data", [*given, *small])
    told = train(job(data, tmp_path / "run", "held_out=0", "max_steps=6"))
    assert "1 smaller than a crop" in told and "nothing is evaluated" in told
    assert "skipped data/s5: does not decode" in told
    bad = [line["bad_row"] for line in trace(tmp_path / "run") if "bad_row" in line]
    assert bad == ["s5"]
    assert len([line for line in trace(tmp_path / "run") if "loss" in line]) == 5
    bad_alone = write_dataset(tmp_path / "bad", given[5:])
    with pytest.raises(RuntimeError, match="none of the 1 rows so far"):
        train(job(bad_alone, tmp_path / "gone", "held_out=0"))
    with pytest.raises(ValueError, match="no clip to train on has sides of 96 px"):
        train(job(data, tmp_path / "new", "crop=96"))


@pytest.mark.parametrize(("arguments", "told"), [
    (["--stage", "sir"], "did you mean 'sr'"),
    (["--stage", "sr", "--workers", "2"], "has one process"),
    (["--stage", "sr", "--init", "nowhere.pth"], "no file nowhere.pth"),
    (["--stage", "sr", "--set", "crop=70"], "multiple of 8"),
])  # fmt: skip
def test_mistakes_are_told(dataset: Path, tmp_path: Path, arguments, told) -> None:
    sets = [word for each in SMALL for word in ("--set", each)] if "sr" in arguments else []
    done = CliRunner().invoke(
        app, ["--preset", "tiny", "--data", str(dataset), "--output", str(tmp_path / "run"),
              *sets, *arguments])  # fmt: skip
    assert done.exit_code == 2 and told in done.output.replace("\n", " ")
    assert "Traceback" not in done.output


def test_a_dry_run_writes_nothing(dataset: Path, tmp_path: Path) -> None:
    sets = [word for each in SMALL for word in ("--set", each)]
    done = CliRunner().invoke(
        app, ["--stage", "sr", "--preset", "tiny", "--data", str(dataset), "--dry-run",
              "--output", str(tmp_path / "run"), *sets])  # fmt: skip
    assert done.exit_code == 0 and "num_features: 4" in done.output and "srvgg x2" in done.output
    assert not (tmp_path / "run").exists()


def test_a_row_that_gives_pairs_gives_what_was_asked(dataset: Path) -> None:
    (found,) = open_datasets([str(dataset)], load_config("tiny", SMALL), [])
    config = load_config("tiny", [*SMALL, "degradation.rounds=0", "degradation.final_sinc=0",
                                  "degradation.crf=null"])  # fmt: skip
    pairs = read_pairs(found, int(found.trained[0]), config, 0)
    assert isinstance(pairs, list) and isinstance(pairs[0], Pair)
    pair = pairs[0]
    assert (pair.small[..., 0, 0].float() - pair.true[..., 0, 0].float()).abs().max() <= 3
