"""What a lab looks at: the gradient by part, shares of a step, utilisation, padding."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_steps import batches, config, fresh
from training_media import TINY, small_dataset

from model.costs import forward_flops, peak_tflops
from model.unet import PARTS, part_of
from training.learning import meters
from training.learning.meters import EncodeClock, Meter, peak_of
from training.learning.starts import make_start
from training.learning.steps import train_step
from training.train import train as vf_train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


def steps_of(run: Path) -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if "loss" in line]


def test_the_gradient_by_part(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config("precision=float64")
    state, objective = fresh(settings)
    seen: dict[str, float] = {}
    total: list[float] = []
    plain = torch.nn.utils.clip_grad_norm_

    def before_clipping(parameters: Any, most: float) -> Any:
        for part in PARTS:
            own = [p.grad for n, p in state.unet.named_parameters() if part_of(n) == part]
            seen[part] = math.sqrt(sum(float(grad.square().sum()) for grad in own))
        every = [p.grad for p in state.unet.parameters() if p.grad is not None]
        total.append(float(torch.nn.utils.get_total_norm(every)))
        return plain(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", before_clipping)
    for samples in batches(settings, data, 2):  # the second one reaches all of Swap-CA
        _, norm = train_step(state, objective, samples, settings)
        assert state.part_norms == pytest.approx(seen, rel=1e-12)
        assert math.hypot(*state.part_norms.values()) == pytest.approx(norm, rel=1e-12)
        assert norm == total[-1]  # to the bit what it is without the parts
    assert all(state.part_norms[part] > 0 for part in PARTS)


def test_parts_that_are_not_trained_have_no_gradient(data: Path) -> None:
    settings = config("trainable=swap")
    state, objective = fresh(settings)
    _, norm = train_step(state, objective, batches(settings, data, 1)[0], settings)
    assert state.part_norms == {"swap": norm}


def test_what_a_step_tells(data: Path, tmp_path: Path) -> None:
    vf_train("tiny", [str(data)], tmp_path / "run", set_=[*TINY, "max_steps=2"])
    for line in steps_of(tmp_path / "run"):
        shares = [line[f"{name}_share"] for name in ("data_wait", "encode", "compute")]
        assert all(0 <= share <= 1 for share in shares) and sum(shares) == pytest.approx(1)
        assert line["encode_share"] > 0
        parts = [line[f"gradient_norm_{part}"] for part in PARTS]
        assert math.hypot(*parts) == pytest.approx(line["gradient_norm"])
        assert line["padding_share"] == 0  # windows of 2x4x4 divide
        assert "mfu" not in line  # what this CPU could do is not known


def test_utilisation_is_a_share_of_the_peak_given(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    plain = Meter.shares

    def shares(meter: Meter, sizes: Any, seconds: float) -> dict[str, float]:
        seen.append(3 * 2 * forward_flops(meter.unet, (2, 4, 4)) / (seconds * 1e6))
        return plain(meter, sizes, seconds)

    monkeypatch.setattr(Meter, "shares", shares)
    sets = [*TINY, "max_steps=2", "peak_tflops=1e-6", "activation_checkpointing=true"]
    vf_train("tiny", [str(data)], tmp_path / "run", set_=sets)
    assert [line["mfu"] for line in steps_of(tmp_path / "run")] == pytest.approx(seen)


def test_a_step_of_several_shapes_and_devices() -> None:
    settings = config()
    unet = make_start(settings, None).unet.config
    large, small = (3, 5, 4), (1, 4, 4)
    flops = 2 * forward_flops(unet, large) + forward_flops(unet, small)
    found = Meter(settings, unet, peak=2.0, world=4).shares([large, small, large], 0.5)
    assert found["mfu"] == pytest.approx(3 * flops / (2e12 * 4 * 0.5))
    # With windows of at most (8, 6, 11): 5x4 and 3x2 are one each, nothing is padded.
    assert found["padding_share"] == 0
    part = config("trainable=swap")
    assert Meter(part, unet, 2.0).shares([small], 1.0)["mfu"] == pytest.approx(
        2 * forward_flops(unet, small) / 2e12
    )
    padded = make_start(config("unet.swap_window=[2, 3, 3]"), None).unet.config
    share = Meter(settings, padded, None).shares([large], 1.0)["padding_share"]
    # Sites at 5x4, 3x2, 3x2, 3x2, 5x4 of 3 frames, in windows of 2x3x2, 2x3x2, ...: 4x6x4, 4x3x2.
    assert share == pytest.approx(1 - (2 * 3 * 20 + 3 * 3 * 6) / (2 * 96 + 3 * 24))


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090", 71.2),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GB200", None),
        ("Tesla V100-SXM2-32GB", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_a_peak_is_known_for_bf16_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    cuda = torch.device("cuda")
    assert peak_of(config("precision=bf16"), cuda) == 989.4
    assert peak_of(config("precision=float32"), cuda) is None
    assert peak_of(config("precision=bf16"), CPU) is None
    assert peak_of(config("peak_tflops=7"), CPU) == 7


class Event:
    """A CUDA event of a device that is a count of what it was given to do."""

    now = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at: int | None = None

    def record(self, stream: str) -> None:
        assert stream == "stream"
        Event.now += 1
        self.at = Event.now

    def elapsed_time(self, other: Event) -> float:
        assert self.at is not None and other.at is not None
        return 1000.0 * (other.at - self.at)  # ms


def test_on_a_gpu_encoding_is_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    clock = EncodeClock(torch.device("cuda"))
    for _ in range(2):
        clock.restart()
        for work in (2, 3):
            with clock.running():
                Event.now += work
            Event.now += 10  # the U-Net
        assert clock.seconds() == 3 + 4


def test_on_a_cpu_encoding_is_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 1.5, 4.0, 4.25])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(ticks))
    clock = EncodeClock(CPU)
    for _ in range(2):
        with clock.running():
            pass
    assert clock.seconds() == 0.75
