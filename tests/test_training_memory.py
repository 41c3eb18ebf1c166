"""Activation checkpointing: what is computed again, and that gradients do not change by it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_media import TINY

from curation.settings import ConfigError
from training.config import load_config
from training.learning.starts import make_start
from training.parallel import checkpoint_activations


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def passed(asked: str) -> tuple[Counter[str], dict[str, torch.Tensor]]:
    """Operations of a forward and a backward, and its gradients."""
    config = load_config("tiny", [*TINY, f"activation_checkpointing={asked}"])
    unet = make_start(config, None).unet.train()
    checkpoint_activations(unet, config)
    generator = torch.Generator().manual_seed(0)
    noise, text = (
        torch.randn(size, generator=generator) for size in ((1, 48, 2, 4, 4), (1, 7, 64))
    )
    with Counted() as counted:
        unet(noise, torch.tensor([500]), text).sample.square().sum().backward()
    return counted.calls, {n: p.grad for n, p in unet.named_parameters() if p.grad is not None}


def test_selective_computes_again_what_is_cheap_alone() -> None:
    """Convolutions and products as often as without, norms as often as with all of it."""
    (none, known), (whole, _), (some, found) = map(passed, ("false", "true", "selective"))
    dear = ("convolution", "addmm", "mm", "bmm")
    assert all(none[op] > 0 for op in dear[:2])
    assert [some[op] for op in dear] == [none[op] for op in dear]
    assert whole["convolution"] > 1.5 * none["convolution"]
    assert some["native_group_norm"] == whole["native_group_norm"] > none["native_group_norm"]
    assert found.keys() == known.keys()
    assert all(torch.equal(found[name], known[name]) for name in known)


def test_what_does_not_go_together_is_refused() -> None:
    for given, told in (
        (["activation_checkpointing=selective", "compile=true"], "leave out compile"),
        (["post_hoc_ema=true", "trainable=lora"], "not with trainable=lora"),
        (["parallel=hsdp"], "need each other"),
        (["shard_workers=2"], "need each other"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_config("tiny", given)
