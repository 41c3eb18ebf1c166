"""Whole runs: the RUN folder, kill and resume, the run card, starts, samples."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_media import TINY, clip, mp4, small_dataset, write_dataset

from training import jobs
from training.checkpoints.folders import latest, steps_of
from training.sample import sample as vf_sample
from training.train import train as vf_train

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


def train(
    data: Path | list[str],
    run: Path,
    *overrides: str,
    init: str | None = None,
    allow: tuple[str, ...] = (),
) -> None:
    given = data if isinstance(data, list) else [str(data)]
    vf_train("tiny", given, run, init, [*TINY, *overrides], list(allow))


def lines(run: Path, key: str = "loss") -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if key in line]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in lines(run)]


def tensors(run: Path) -> dict[str, Tensor]:
    """All of a run's latest checkpoint, read as files."""
    files = (latest(run) / "shards").glob("*.safetensors")  # type: ignore[operator]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def refused(capsys: pytest.CaptureFixture[str], call: Callable[[], None], code: int = 2) -> str:
    """The message of a command that must exit with `code`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        call()
    assert error.value.code == code
    return capsys.readouterr().err


def start(data: Path, run: Path, *overrides: str) -> subprocess.Popen[str]:
    sets = [part for each in (*TINY, *overrides) for part in ("--set", each)]
    command = [sys.executable, "-m", "training.train", "--preset", "tiny", "--data", str(data)]
    return subprocess.Popen(
        [*command, "--output", str(run), *sets],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Until metrics.jsonl tells of a step and a checkpoint is there; the process must still run."""
    path = run / "metrics.jsonl"
    while not path.exists() or path.read_text().count('"loss"') < step or not latest(run):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_anywhere_a_run_ends_with_the_same_trace(data: Path, tmp_path: Path) -> None:
    """SIGKILL, then SIGTERM, then to the end: bitwise the losses of a run left alone."""
    # The end is free with a constant schedule: the kills have to come before it.
    settings = ("checkpoint_every=3", "batch_size=3", "dropout=0.1", "num_threads=1")
    where = random.Random(os.urandom(4)).randint(4, 9)
    run = tmp_path / "run"
    killed = start(data, run, *settings, "max_steps=1000")
    wait_for_step(killed, run, where)
    killed.kill()
    killed.wait()
    saved = int(latest(run).name.removeprefix("step-"))  # type: ignore[union-attr]
    assert saved >= 3
    told = (run / "metrics.jsonl").read_text().count('"loss"')

    stopped = start(data, run, *settings, "max_steps=1000")
    wait_for_step(stopped, run, told + 2)
    stopped.send_signal(signal.SIGTERM)
    out, _ = stopped.communicate()
    assert stopped.returncode == 1 and f"going on from step {saved}" in out
    last = losses(run)[-1][0]
    assert f"stopped and saved at step {last}" in out
    assert latest(run).name == f"step-{last:08d}"  # type: ignore[union-attr]

    train(data, run, *settings, f"max_steps={last + 4}")
    train(data, tmp_path / "whole", *settings, f"max_steps={last + 4}")
    assert [step for step, _ in losses(run)] == list(range(1, last + 5)), where
    assert losses(run) == losses(tmp_path / "whole"), where
    ends = [tensors(r) for r in (run, tmp_path / "whole")]
    assert ends[0].keys() == ends[1].keys()
    for name, one in ends[0].items():
        assert torch.equal(one, ends[1][name]), name


def test_the_run_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(data, run, "max_steps=3", "checkpoint_every=1", "keep_checkpoints=2", "evaluate_every=2",
          "sample_every=2", "num_samples=1", 'sample_prompts=["a dog", "a cat"]')  # fmt: skip
    out = capsys.readouterr().out
    assert "held-out loss" in out and "6 clips, 1 of held-out videos" in out
    names = {"config.yaml", "card.json", "metrics.jsonl", "samples", "checkpoints", "tb"}
    assert names <= {path.name for path in run.iterdir()}
    assert [path.name for path in steps_of(run)] == ["step-00000002", "step-00000003"]
    for line in lines(run):
        keys = {"step", "loss", "epoch", "clips_per_s", "data_wait_share"}
        assert keys <= line.keys() and 0 <= line["data_wait_share"] <= 1 < 1e9 * line["clips_per_s"]
        parts = [each for each in line["loss_by_bin"] if each is not None]
        assert len(line["loss_by_bin"]) == 2 and sum(parts) / len(parts) == pytest.approx(
            line["loss"]
        )  # two clips: one in each bin, or both in one
    assert {len([x for x in line["loss_by_bin"] if x]) for line in lines(run)} == {1, 2}
    assert [line["step"] for line in lines(run)] == [1, 2, 3]
    assert [line["epoch"] for line in lines(run)] == [0, 0, 0]
    held_out = lines(run, "held_out_loss")
    # Before the first step, every second step, and after the last.
    assert [line["step"] for line in held_out] == [0, 2, 3]
    assert len(held_out[0]["held_out_by_bin"]) == 2 and "loss" not in held_out[0]
    assert held_out[0]["held_out_loss"] == held_out[0]["held_out_loss_ema"]
    assert held_out[1]["held_out_loss"] != held_out[1]["held_out_loss_ema"]
    assert [line["prompts"] for line in lines(run, "samples")] == [["a dog"], ["a dog"]]
    assert (run / "samples" / "step-00000002" / "0-a-dog.mp4").exists()
    assert (run / "samples" / "step-00000003" / "sheet.png").exists()
    assert any((run / "tb").iterdir())


def test_what_a_killed_run_left_is_swept(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(data, run, "max_steps=2")
    half = run / "checkpoints" / ".tmp-step-00000004"
    half.mkdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 9.9}\n{"step": 4, "lo')
    train(data, run, "max_steps=4")
    assert not half.exists() and [step for step, _ in losses(run)] == [1, 2, 3, 4]
    assert losses(run)[2][1] != 9.9
    train(data, run, "max_steps=4")  # at its end it has nothing to do
    assert len(losses(run)) == 4


def test_sigterm_before_the_first_step_loses_nothing(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prepare(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "prepare", prepare)
        told = refused(capsys, lambda: train(data, tmp_path / "run"), code=1)
    assert "stopped; the same command goes on" in told and "Traceback" not in told
    assert signal.getsignal(signal.SIGTERM) == before
    train(data, tmp_path / "run", "max_steps=1")
    assert len(losses(tmp_path / "run")) == 1


def test_a_changed_key_is_refused_unless_allowed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(data, run, "max_steps=2")
    told = refused(capsys, lambda: train(data, run, "learning_rate=0.5", "seed=3"))
    assert "learning_rate was 0.001, is 0.5; seed was 0, is 3" in told
    assert "--allow-change learning_rate --allow-change seed" in told and "Traceback" not in told
    told = refused(capsys, lambda: train(data, run, "learning_rate=0.5", "seed=3", allow=("seed",)))
    assert "learning_rate" in told and "seed was" not in told
    train(data, run, "learning_rate=0.5", "max_steps=3", allow=("learning_rate",))
    assert [line["learning_rate"] for line in lines(run)] == [0.001, 0.001, 0.5]
    free = ("checkpoint_every=1", "evaluate_every=1", "loader_threads=2", "sample_steps=3")
    train(data, run, "learning_rate=0.5", "max_steps=4", *free)
    assert len(lines(run)) == 4
    other = small_dataset(tmp_path / "other" / "a", 5)
    told = refused(capsys, lambda: train(other, run, "learning_rate=0.5", "max_steps=5"))
    assert "data.a.fingerprint" in told


def test_a_cosine_schedule_has_one_end(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(data, run, "schedule=cosine", "max_steps=2")
    assert "max_steps was 2" in refused(
        capsys, lambda: train(data, run, "schedule=cosine", "max_steps=3")
    )


def test_a_mixture_is_told_by_dataset(data: Path, tmp_path: Path) -> None:
    other = small_dataset(tmp_path / "b", 3, "d")
    train([f"{data}:0.5", f"{other}:0.5"], tmp_path / "run", "max_steps=3", "evaluate_every=3",
          "held_out=0.5")  # fmt: skip
    for line in lines(tmp_path / "run"):
        assert set(line["loss_by_dataset"]) == {"a", "b"}
        assert line["loss"] == pytest.approx(sum(line["loss_by_dataset"].values()) / 2)
    assert lines(tmp_path / "run")[-1]["epochs"] == {"a": 0, "b": 1}
    assert lines(tmp_path / "run")[-1]["epoch"] == 0
    assert set(lines(tmp_path / "run", "held_out_loss")[0]["held_out_by_dataset"]) == {"a", "b"}


def test_bad_rows_are_counted_named_and_stop_a_run_of_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [clip(f"c{n}", mp4(4), 4) for n in range(4)]
    one = write_dataset(tmp_path / "one", [*rows, clip("broken", b"junk", 4)])
    train(one, tmp_path / "run", "held_out=0", "max_steps=5", "batch_size=3")
    named = lines(tmp_path / "run", "bad_row")
    assert [line["bad_row"] for line in named] == ["broken"]  # once, over three epochs
    state = json.loads((latest(tmp_path / "run") / "state.json").read_text())  # type: ignore[operator]
    assert list(state["bad_rows"]) == ["one/broken"]
    many = [clip(f"b{n}", b"junk", 4) for n in range(9)]
    folder = write_dataset(tmp_path / "many", [*rows, *many])
    settings = ("held_out=0", "max_steps=9", "batch_size=6")
    told = refused(capsys, lambda: train(folder, tmp_path / "stop", *settings), code=1)
    assert "rows seen are bad" in told and "vf-validate" in told and "Traceback" not in told


def test_a_run_that_diverges_stops_before_its_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = ("learning_rate=1e30", "checkpoint_every=1", "max_steps=5", "max_skipped_steps=0")
    told = refused(capsys, lambda: train(data, run, *settings), code=1)
    assert "Lower learning_rate" in told and "Traceback" not in told
    assert latest(run).name == f"step-{len(lines(run)):08d}"  # type: ignore[union-attr]
    assert all(line["loss"] < float("inf") for line in lines(run))


def test_sampling_a_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(data, run, "learning_rate=1e-2", "max_steps=3")

    def sampled(**changes: Any) -> bytes:
        wanted = {"prompt": "clip c1", "seed": 0, "steps": 2, "guidance": 3.0, "weights": "ema"}
        out = tmp_path / "out.mp4"
        vf_sample(run, output=out, **{**wanted, **changes})
        with av.open(str(out)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 2 and frames[0].shape == (16, 16, 3)
        return b"".join(frame.tobytes() for frame in frames)

    first = sampled()
    assert first == sampled() and (tmp_path / "out.png").exists()
    assert first == sampled(steps=None, guidance=None)  # the run's own
    assert "step-00000003" in capsys.readouterr().out
    for change in ({"seed": 1}, {"steps": 5}, {"guidance": 1.0}, {"weights": "raw"}):
        assert sampled(**change) != first, change
    for wrong, told in (
        ({"run": tmp_path}, "holds no checkpoint"),
        ({"output": tmp_path / "out.gif"}, "ends in .mp4"),
        ({"weights": "old"}, "choose ema or raw"),
        ({"steps": 2000}, "give 1 to 1000"),
    ):
        given: dict[str, Any] = {"run": run, "output": tmp_path / "o.mp4", "weights": "ema",
                                 "prompt": "", "seed": 0, "steps": 2, "guidance": 1.0}  # fmt: skip
        call = lambda given={**given, **wrong}: vf_sample(**given)  # noqa: E731
        assert told in refused(capsys, call)


def test_a_run_starts_from_another(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path / "first", "learning_rate=1e-2", "prediction_type=epsilon")
    cleaned = small_dataset(tmp_path / "clean", 3)
    train(cleaned, tmp_path / "tuned", "learning_rate=1e-30", "max_steps=1",
          "weight_decay=0", init=str(tmp_path / "first"))  # fmt: skip
    out = capsys.readouterr().out
    assert "740 tensors copied" in out and out.count("epsilon") == 2  # the source's, followed
    was, now = (tensors(tmp_path / run) for run in ("first", "tuned"))
    averaged = [key.removeprefix("ema.") for key in was if key.startswith("ema.")]
    assert len(averaged) == 740
    assert all(torch.equal(was[f"ema.{key}"], now[f"unet.{key}"]) for key in averaged)
    report = json.loads((tmp_path / "tuned" / "start.json").read_text())
    assert "step-00000004, EMA" in report["source"] and len(report["copied"]) == 740
    first = str(tmp_path / "first")
    call = lambda: train(data, tmp_path / "x", "unet.swap_ffn_ratio=2", init=first)  # noqa: E731
    assert "unet is" in refused(capsys, call)
    call = lambda: train(data, tmp_path / "y", "prediction_type=v_prediction", init=first)  # noqa: E731
    assert "the start predicts epsilon" in refused(capsys, call)
    call = lambda: train(data, tmp_path / "z", init=str(tmp_path))  # noqa: E731
    assert "no run with a checkpoint there" in refused(capsys, call)


@pytest.mark.parametrize("kind", ["sd", "modelscope"])
def test_a_run_starts_from_a_published_model(
    kind: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import DDPMScheduler, UNet2DConditionModel, UNet3DConditionModel

    shape = {"in_channels": 48, "out_channels": 48, "layers_per_block": 1, "norm_num_groups": 4,
             "block_out_channels": (8, 8), "cross_attention_dim": 64}  # fmt: skip
    source = tmp_path / "source"
    if kind == "sd":
        blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * 2,
                  "up_block_types": ("CrossAttnUpBlock2D",) * 2}  # fmt: skip
        image = UNet2DConditionModel(
            **shape, **blocks, attention_head_dim=(2, 2), use_linear_projection=True
        )
        image.save_pretrained(source / "unet")
    else:
        blocks = {"down_block_types": ("CrossAttnDownBlock3D",) * 2,
                  "up_block_types": ("CrossAttnUpBlock3D",) * 2}  # fmt: skip
        UNet3DConditionModel(**shape, **blocks, attention_head_dim=4).save_pretrained(
            source / "unet"
        )
    DDPMScheduler(prediction_type="epsilon", beta_start=0.001).save_pretrained(source / "scheduler")
    run = tmp_path / "run"
    train(data, run, "max_steps=1", "unet={}", init=f"{kind}:{source}")
    out = capsys.readouterr().out
    assert "tensors copied" in out and "zero; epsilon" in out
    report = json.loads((run / "start.json").read_text())
    assert report["copied"] and report["zero"]
    card = json.loads((run / "card.json").read_text())
    assert card["noise"]["prediction_type"] == "epsilon"
    assert card["noise"]["source"]["beta_start"] == 0.001  # the source's schedule, not ours
    missing = refused(capsys, lambda: train(data, tmp_path / "x", init=f"{kind}:{tmp_path / 'no'}"))
    assert "no U-Net at" in missing


def test_stable_diffusion_latents_are_trained_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    vae.save_pretrained(tmp_path / "vae")
    sd = ("latents=stable_diffusion", "unet.in_channels=4", "unet.out_channels=4")
    train(data, tmp_path / "run", *sd, f"latents_path={tmp_path / 'vae'}", "max_steps=1")
    assert len(lines(tmp_path / "run")) == 1
    call = lambda: train(data, tmp_path / "x", *sd, f"latents_path={tmp_path / 'no'}")  # noqa: E731
    assert "no autoencoder at" in refused(capsys, call)
    call = lambda: train(data, tmp_path / "y", "latents=stable_diffusion")  # noqa: E731
    assert "latents" in refused(capsys, call)
    call = lambda: train(data, tmp_path / "z", "text=open_clip", "text_path=/no/weights")  # noqa: E731
    assert "no OpenCLIP weights" in refused(capsys, call)


def test_other_folders_and_second_trainers_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "is not a run" in refused(capsys, lambda: train(data, tmp_path))
    with jobs.only_trainer(tmp_path / "run"):
        told = refused(capsys, lambda: train(data, tmp_path / "run"))
    assert "another vf-train is writing there" in told


def test_help_is_there_at_once() -> None:
    for command in ("train", "sample", "precompute"):
        told = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", f"training.{command}", "--help"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert told.returncode == 0 and "Examples:\n  vf-" in told.stdout
        assert "torch" not in told.stderr


def test_a_dry_run_prints_the_config_and_does_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vf_train("tiny", [str(data)], tmp_path / "run", set_=["seed=7"], dry_run=True)
    assert "seed: 7" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_threads_are_those_of_the_config(data: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        run = tmp_path / str(count)
        train(data, run, "max_steps=1", f"num_threads={count}")
        assert json.loads((run / "card.json").read_text())["threads"] == count


def test_samples_are_of_captions_of_the_data(data: Path, tmp_path: Path) -> None:
    """Without prompts, samples are asked for by captions."""
    train(data, tmp_path / "run", "max_steps=1", "num_samples=2")
    prompts = lines(tmp_path / "run", "samples")[0]["prompts"]
    assert len(prompts) == 2 and all(prompt.startswith("clip c") for prompt in prompts)
