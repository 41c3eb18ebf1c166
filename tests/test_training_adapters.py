"""trainable=lora: adapters change nothing at the start, are all that is trained beside Swap-CA,
and are part of the weights for whoever reads the run."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_media import TINY, small_dataset

from curation.settings import ConfigError
from model import SpaceTimeUNet
from model.costs import example_inputs
from model.unet import part_of
from training.checkpoints.folders import latest, steps_of
from training.checkpoints.saving import read_unet
from training.config import load_config
from training.learning.adapters import MARK, add_adapters, merge_adapters
from training.learning.starts import choose_trained, make_start
from training.train import train as vf_train

pytest.importorskip("peft", reason="the extra lora is not installed")
LORA = load_config("tiny", [*TINY, "trainable=lora", "lora_rank=3"])


def predict(unet: SpaceTimeUNet) -> torch.Tensor:
    torch.manual_seed(0)
    inputs = example_inputs(unet.config, 1, (2, 4, 4))
    with torch.no_grad():
        return unet.eval()(**inputs).sample


@pytest.fixture
def unet() -> SpaceTimeUNet:
    """With an output of Swap-CA and of all attention that is not 0."""
    unet = make_start(LORA, None).unet
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return unet


def test_adapters_change_nothing_at_first_and_are_merged_exactly(unet: SpaceTimeUNet) -> None:
    names, before = list(unet.state_dict()), predict(unet)
    add_adapters(unet, 3, seed=0)
    assert torch.allclose(predict(unet), before, atol=1e-6)  # the sum of parts, rounded
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if f"{MARK}B" in name:
                parameter.normal_(std=0.3)
    adapted = predict(unet)
    assert (adapted - before).abs().max() > 1e-3
    merge_adapters(unet)
    assert list(unet.state_dict()) == names
    assert torch.allclose(predict(unet), adapted, atol=1e-5)


def test_spatial_and_temporal_attention_have_adapters_and_swap_ca_is_whole() -> None:
    unet = make_start(LORA, None).unet
    total = sum(p.numel() for p in unet.parameters())
    trained = choose_trained(unet, LORA)
    found = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trained == sum(p.numel() for p in unet.parameters() if p.requires_grad) < total
    adapters = {name for name in found if MARK in name}
    assert {part_of(name) for name in adapters} == {"spatial", "temporal"}
    assert {part_of(name) for name in found - adapters} == {"swap"}
    assert {name.rpartition(MARK)[0].rpartition("to_")[2] for name in adapters} == {
        *("q", "k", "v", "out.0")
    }
    assert all(p.shape[0 if f"{MARK}A" in n else 1] == 3
               for n, p in unet.named_parameters() if n in adapters)  # fmt: skip
    assert not any(p.requires_grad for n, p in unet.named_parameters() if "base_layer" in n)


def test_a_run_goes_on_and_is_read_merged(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "data")
    how = [*TINY, "trainable=lora", "lora_rank=2", "num_samples=0", "held_out=0"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    vf_train("tiny", [str(data)], whole, set_=[*how, "max_steps=4"])
    for steps in (2, 4):
        vf_train("tiny", [str(data)], halves, set_=[*how, f"max_steps={steps}"])
    losses = [
        [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in line]
        for run in (whole, halves)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    first, last = read_unet(steps_of(halves)[0], "raw"), read_unet(steps_of(halves)[-1], "raw")
    assert not any(MARK in name or "base_layer" in name for name in last.state_dict())
    changed = {
        name for name, p in last.state_dict().items() if not p.equal(first.state_dict()[name])
    }
    assert {part_of(name) for name in changed} == {"spatial", "temporal", "swap"}
    assert not any("conv" in name for name in changed if part_of(name) != "swap")
    # Another run starts from what it was read as.
    vf_train("tiny", [str(data)], tmp_path / "next", str(halves), [*TINY, "max_steps=1"])
    assert latest(tmp_path / "next")


def test_without_peft_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, real = make_start(LORA, None).unet, builtins.__import__

    def none(name: str, *args: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(ConfigError, match=r"pip install 'videofactory\[lora\]'"):
        choose_trained(unet, LORA)
