"""benchmarks/gpu.py runs on a CPU with few packages, and what fails in a row stays in it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import TINY, Bench, Trainee

ROOT = Path(__file__).parents[1]
# What the trainer, curation and the encoders need and a bare machine lacks.
LACKING = [
    *("open_clip", "transformers", "peft", "accelerate", "ray", "pyarrow", "av", "pydantic"),
    *("rich", "typer", "cv2", "torchvision", "tensorboard"),
]
BARE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
sys.path.insert(0, ".")
from benchmarks import gpu
gpu.main(sys.argv[2:])
"""


def bench(left_s: float = 1000, peak: float | None = None) -> Bench:
    return Bench(torch.device("cpu"), True, time.monotonic() + left_s, peak)


def raises(error: Exception) -> Any:
    def measure() -> dict[str, Any]:
        raise error

    return measure


def test_the_quick_form_on_a_bare_machine(tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    command = [sys.executable, "-c", BARE, ",".join(LACKING), "--quick", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--peak-tflops", "1", "--data", "nowhere", "--json", str(file)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "These are CPU numbers" in done.stdout and "a tiny net" in done.stdout
    found = json.loads(file.read_text())
    assert found["device"] == "CPU" and found["quick"]
    rows = found["rows"]
    kinds = [row["kind"] for row in rows]
    assert kinds == ["exactness", "windows", "windows", "build", "train", "swap_share", "sampler",
                     "train", "data_wait"]  # fmt: skip
    assert not [row for row in rows if "failed" in row], rows
    # bf16 keeps 8 bits: a relative error of about 2^-9.
    assert rows[0]["relative_l2"] < 0.01 and rows[0]["max_difference"] < 0.1
    assert rows[1]["padding"] > 0 and rows[2]["over_global"] > 0
    for row in rows:
        if row["kind"] == "train":
            assert 0 < row["mfu"] < 1 and row["clips_per_s"] > 0
    assert rows[-1]["skipped"] == "needs rich"  # the trainer's packages


def test_a_row_that_fails_is_told_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    here = bench()
    here.row("train", "large", raises(torch.OutOfMemoryError("12 GiB")))
    here.row("train", "odd", raises(ValueError("no such thing\nand more")))
    here.row("train", "lacking", raises(ModuleNotFoundError("no", name="flash")))
    here.row("train", "fine", lambda: {"mfu": 0.5, "steps": 3})
    assert [row.get("failed", row.get("skipped")) for row in here.rows] == [
        "out of memory", "ValueError: no such thing", "needs flash", None
    ]  # fmt: skip
    out = capsys.readouterr().out.splitlines()
    assert "out of memory" in out[0] and "mfu 0.5 (goal >= 0.4), steps 3" in out[3]


def test_what_no_time_is_left_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    late = bench(left_s=-1)
    gpu.attention_rows(late)
    assert {row["skipped"] for row in late.rows} == {"no time left"}
    gpu.net_rows(bench(left_s=1000), TINY, until_left_s=2000)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "a tiny net, 1 at once" in last and "no time left" in last


def test_a_step_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured step moves every weight that has a gradient, and its average after it."""
    trainee = Trainee(bench(), TINY)
    before = [p.detach().clone() for p in trainee.parameters]
    inputs = trainee.inputs(2)
    assert all(math.isfinite(trainee.step(inputs)) for _ in range(2))
    moved = [not torch.equal(a, b) for a, b in zip(before, trainee.parameters, strict=True)]
    assert all(moved)
    followed = [
        torch.equal(a, b) for a, b in zip(before, trainee.average, strict=True) if a.dim() > 1
    ]
    assert not all(followed)


def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as error:
        gpu.main([])
    assert error.value.code == 2
    assert "--quick --device cpu" in capsys.readouterr().err
