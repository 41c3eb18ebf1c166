"""What makes a device wait, and the optimiser's groups."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_steps import batches, config, fresh, weights
from training_media import small_dataset

from model.latents import SpaceToDepth
from model.texts import TinyText
from model.unet import part_of
from training.learning.starts import encoder_dtype
from training.learning.steps import train_step
from training.train import train as vf_train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


def test_a_step_waits_for_the_device_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many micro-batches it has: what would synchronise a GPU is counted on a CPU."""
    settings = config("batch_size=6", "micro_batch_size=1", "held_out=0")
    state, objective = fresh(settings)
    samples = batches(settings, data, 1)[0]
    train_step(state, objective, samples, settings)  # AdamW's state is made
    met: Counter[str] = Counter()
    for name in ("cpu", "item", "tolist", "numpy", "__float__", "__bool__", "__int__"):
        plain = getattr(torch.Tensor, name)

        def counted(tensor: Any, *given: Any, name: str = name, plain: Any = plain) -> Any:
            # Words of the loop itself, such as timesteps, are made on the CPU and do not wait.
            if tensor.requires_grad or tensor.dtype == torch.float64:
                met[name] += 1
            return plain(tensor, *given)

        monkeypatch.setattr(torch.Tensor, name, counted)
    _, norm = train_step(state, objective, samples, settings)
    assert norm > 0
    del met["__float__"]  # of the sum over losses, which are on the CPU by then
    assert met == {"tolist": 1}


def test_held_out_clips_are_encoded_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    for kind, key in ((SpaceToDepth, "latents"), (TinyText, "states")):
        plain = kind.encode

        def encode(self: Any, *given: Any, plain: Any = plain, key: str = key) -> Any:
            calls[key] += 1
            return plain(self, *given)

        monkeypatch.setattr(kind, "encode", encode)
    from training_media import TINY

    sets = [*TINY, "max_steps=3", "evaluate_every=1", "timestep_bins=4"]
    vf_train("tiny", [str(data)], tmp_path / "run", set_=sets)
    # Three steps of one micro-batch, one held-out clip; and the empty prompt.
    assert calls == {"latents": 4, "states": 5}


def test_norms_and_biases_do_not_decay(data: Path) -> None:
    settings = config("weight_decay=0.5", "learning_rate=0.1")
    state, _ = fresh(settings)
    before = weights(state)
    for parameter in state.unet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    for name, parameter in state.unet.named_parameters():
        expected = before[name] * (1 - 0.05 * (parameter.ndim > 1))
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_a_part_has_a_rate_of_its_own(data: Path) -> None:
    settings = config("learning_rate_factors.swap=0", "weight_decay=0", "learning_rate=1e-2")
    state, objective = fresh(settings)
    before = weights(state)
    for samples in batches(settings, data, 2):  # the second one reaches all parts
        train_step(state, objective, samples, settings)
    moved = {part_of(n) for n, p in state.unet.named_parameters() if not p.equal(before[n])}
    assert moved == {"spatial", "temporal"}


def test_encoders_are_narrow_on_a_gpu_alone() -> None:
    found = {
        (device, asked): encoder_dtype(
            config(f"encoder_precision={asked}"), torch.device(device)
        )
        for device in ("cpu", "cuda")
        for asked in ("auto", "float32", "bf16")
    }  # fmt: skip
    wide = {key for key, dtype in found.items() if dtype == torch.float32}
    assert wide == {("cpu", "auto"), ("cpu", "float32"), ("cuda", "float32")}
