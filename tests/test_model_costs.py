"""Operations and padding by shapes alone, against what a real forward does."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from test_model_unet import TWO_LEVELS, make
from torch import Tensor, nn

from model import SpaceTimeUNet, attention
from model.costs import example_inputs, forward_flops, window_tokens

SIZES = [(3, 9, 8), (5, 7, 11), (1, 8, 8)]


def products_of(unet: SpaceTimeUNet, size: tuple[int, int, int]) -> int:
    """2 for each multiplication of a convolution, a linear layer and an attention, layer by layer
    of a forward that is computed."""
    found: list[int] = []

    def convolution(layer: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
        found.append(2 * out.numel() * prod(layer.kernel_size) * layer.in_channels)

    def linear(layer: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
        found.append(2 * out.numel() * layer.in_features)

    def attended(layer: Any, given: tuple[Any, ...], named: dict[str, Any], out: Tensor) -> None:
        asked = given[0]
        keys = (
            asked if named.get("encoder_hidden_states") is None else named["encoder_hidden_states"]
        )
        width = layer.heads * layer.to_q.out_features // layer.heads
        # Queries with keys, and weights with values.
        found.append(4 * len(asked) * asked.shape[1] * keys.shape[1] * width)

    def swapped(layer: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
        S, N, C = given[0].shape
        found.append(4 * S * N * N * C)

    for module in unet.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(convolution)
        if isinstance(module, nn.Linear):
            module.register_forward_hook(linear)
        if isinstance(module, Attention):
            module.register_forward_hook(attended, with_kwargs=True)
        if isinstance(module, attention.SwapBranch):
            module.register_forward_hook(swapped)
    with torch.no_grad():
        unet(**example_inputs(unet.config, 1, size))
    return sum(found)


@pytest.mark.parametrize("size", SIZES)
def test_operations_are_those_of_the_layers(size: tuple[int, int, int]) -> None:
    unet = make()
    assert forward_flops(unet.config, size) == products_of(unet, size)


def test_the_operations_of_one_convolution_by_hand() -> None:
    """conv_out reads 16 channels and writes 4, 3x3, on 3 frames of 9x8; more channels out cost
    as many more of them."""
    with torch.device("meta"):
        wider = SpaceTimeUNet(**{**TWO_LEVELS, "out_channels": 5}).config
        plain = SpaceTimeUNet(**TWO_LEVELS).config
    one = 2 * 16 * 3 * 3 * (3 * 9 * 8)
    assert forward_flops(wider, (3, 9, 8)) - forward_flops(plain, (3, 9, 8)) == one


@pytest.mark.parametrize("changes", [{"fps_conditioning": True}, {"low_res_channels": 4}])
def test_whatever_a_unet_is_told_is_counted(changes: dict[str, Any]) -> None:
    unet = make(**changes)
    assert forward_flops(unet.config, (2, 8, 8)) == products_of(unet, (2, 8, 8))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"swap_placement": "layer"},
        {"swap_direction": "both"},
        {"swap_attention": "global"},
        {"swap_window": (2, 4, 5)},
        {"swap_window": (2, 4, 5), "swap_shift": "odd"},
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_window_tokens_are_those_that_are_cut(
    size: tuple[int, int, int], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[tuple[int, int]] = []
    plain = attention.unpartition

    def watched(windows: Tensor, here: Any, window: Any, shift: Any) -> Tensor:
        every = windows.shape[0] * windows.shape[1]
        cut.append((every, every - prod(here)))
        return plain(windows, here, window, shift)

    monkeypatch.setattr(attention, "unpartition", watched)
    unet = make(**changes)
    with torch.no_grad():
        unet(**example_inputs(unet.config, 1, size))
    assert window_tokens(unet.config, size) == tuple(map(sum, zip(*cut, strict=True)))


def test_padding_at_known_sizes() -> None:
    """One column in 44 at the first level of 344x192; nothing where windows divide."""
    with torch.device("meta"):
        large = SpaceTimeUNet.from_preset("videofactory").config
        off = SpaceTimeUNet.from_preset("tiny", swap_attention="off").config
    every, padding = window_tokens(large, (16, 24, 43))
    sites = [44 * 24 * 16, 22 * 12 * 16, 11 * 6 * 16, 6 * 3 * 16]
    assert every == 2 * sum(sites) + sites[-1] and padding == 2 * 24 * 16
    assert window_tokens(large, (16, 24, 44))[1] == 0
    assert window_tokens(off, (8, 16, 28)) == (0, 0)
