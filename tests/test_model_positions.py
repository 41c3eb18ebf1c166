"""Where and when a token is: rotary and learned positions in Swap-CA's windows, shifted windows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model_attention import SIZES, WINDOWS, jacobian_support, random_qkv, swap
from test_model_unet import TWO_LEVELS, inputs, make, sites
from torch import Tensor

from model import SpaceTimeUNet
from model.attention import (
    SwapAttention,
    attend,
    count_windows,
    dense_window_attention,
    fit_window,
    half_shift,
    key_mask,
    partition,
    rotary_angles,
    rotate,
    unpartition,
    window_attention,
)

Size = tuple[int, int, int]
POSITIONS = ("rotary", "learned")


# -- shifted windows


def test_half_a_window_back_where_there_is_more_than_one() -> None:
    assert half_shift((16, 24, 43), (8, 6, 11)) == (4, 3, 5)
    assert half_shift((16, 3, 6), (8, 3, 6)) == (4, 0, 0)
    assert count_windows((16, 3, 6), (8, 3, 6), (4, 0, 0)) == (3, 1, 1)
    frames = torch.arange(1.0, 17).reshape(1, 16, 1, 1, 1)
    cut = partition(frames, (8, 1, 1), (4, 0, 0)).squeeze(-1).tolist()
    assert cut == [[0] * 4 + [1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15, 16] + [0] * 4]


@given(size=SIZES, window=WINDOWS)
@settings(deadline=None)
def test_shifted_and_back_is_the_same_tensor_and_no_window_is_empty(
    size: Size, window: Size
) -> None:
    window = fit_window(size, window)
    shift = half_shift(size, window)
    tokens, _, _ = random_qkv(size, 3)
    assert torch.equal(unpartition(partition(tokens, window, shift), size, window, shift), tokens)
    mask = key_mask(size, window, shift=shift)
    assert mask is None or (mask.any(-1).all() and mask.sum() == math.prod(size))


@given(size=SIZES, window=WINDOWS, heads=st.integers(1, 2))
@settings(deadline=None, max_examples=40)
def test_shifted_windows_equal_the_dense_reference(size: Size, window: Size, heads: int) -> None:
    window = fit_window(size, window)
    shift = half_shift(size, window)
    q, k, v = (x.requires_grad_() for x in random_qkv(size, 4 * heads))
    fast = window_attention(q, k, v, window, heads, shift)
    slow = dense_window_attention(q, k, v, window, heads, shift)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    probe = torch.randn_like(slow)
    both = (torch.autograd.grad(out, (q, k, v), probe) for out in (fast, slow))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_opposite_borders_never_meet_and_neighbours_across_the_cut_do() -> None:
    module = swap(("spatial",), shifted=True)  # windows (2, 2, 3) on (4, 4, 6): shift (1, 1, 1)
    _, corner = jacobian_support(module, (0, 0, 0))
    home = torch.zeros(4, 4, 6, dtype=torch.bool)
    home[:1, :1, :2] = True
    assert torch.equal(corner, home)
    _, middle = jacobian_support(swap(("spatial",), shifted=True), (1, 1, 2))
    home = torch.zeros(4, 4, 6, dtype=torch.bool)
    home[1:3, 1:3, 2:5] = True
    assert torch.equal(middle, home)


# -- rotary


def turned(x: Tensor, size: Size, heads: int) -> Tensor:
    """[B, T, H, W, C] with each pair of channels of each head turned, written out one by one."""
    out, width = x.clone(), x.shape[-1] // heads
    third = width // 2 // 3
    for place in torch.cartesian_prod(*map(torch.arange, size)).tolist():
        for head in range(heads):
            pair = head * width
            for axis, share in enumerate((width // 2 - 2 * third, third, third)):
                for i in range(share):
                    angle = torch.tensor(place[axis] * 100 ** (-i / share), dtype=x.dtype)
                    at = (slice(None), *place)
                    a, b = x[at][..., pair], x[at][..., pair + 1]
                    out[at][..., pair] = a * angle.cos() - b * angle.sin()
                    out[at][..., pair + 1] = a * angle.sin() + b * angle.cos()
                    pair += 2
    return out


@pytest.mark.parametrize(("size", "window"), [((3, 3, 5), (2, 2, 3)), ((4, 2, 3), (4, 2, 3))])
@pytest.mark.parametrize("width", [6, 8, 16])
def test_rotary_equals_the_dense_reference_with_explicit_turns(
    size: Size, window: Size, width: int
) -> None:
    """Places counted over the whole clip: only how far apart two tokens are can matter."""
    q, k, v = random_qkv(size, 2 * width)
    angles = rotary_angles(window, width, q)
    mask = key_mask(size, window)
    cut = [partition(x, window) for x in (q, k, v)]
    fast = unpartition(attend(*cut, 2, mask, angles), size, window)
    slow = dense_window_attention(turned(q, size, 2), turned(k, size, 2), v, window, 2)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    assert not torch.allclose(fast, unpartition(attend(*cut, 2, mask), size, window))


def test_a_turn_keeps_lengths_in_the_dtype_given() -> None:
    x = torch.randn(2, 2, 12, 8)
    angles = rotary_angles((2, 2, 3), 8, x)
    assert angles.shape == (12, 4) and angles[0].abs().sum() == 0
    torch.testing.assert_close(rotate(x, angles).norm(dim=-1), x.norm(dim=-1))
    half = x.bfloat16()
    assert rotate(half, rotary_angles((2, 2, 3), 8, half)).dtype == torch.bfloat16


# -- what a Swap-CA makes of it


def outputs(module: SwapAttention, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to y, and the same with the frames of the only window shuffled."""
    order = torch.tensor([2, 0, 3, 1])
    out = (module(x, y, 4) - y, module(x[order], y[order], 4) - y[order])
    return out[0][order], out[1]


@pytest.mark.parametrize("roles", [("spatial",), ("temporal",), ("self",), ("spatial", "temporal")])
@pytest.mark.parametrize("position", ["none", *POSITIONS])
def test_the_order_of_frames_matters_with_a_position_alone(
    roles: tuple[Any, ...], position: str
) -> None:
    module = swap(roles, window=(4, 4, 6), channels=16, position=position)
    with torch.no_grad():
        expected, found = outputs(module, *torch.randn(2, 4, 16, 4, 6, dtype=torch.float64))
    same = torch.allclose(expected, found, rtol=0, atol=1e-10)
    assert same == (position == "none")


@given(size=SIZES, window=WINDOWS, shifted=st.booleans())
@settings(deadline=None, max_examples=30)
def test_any_size_is_finite_and_starts_as_identity(size: Size, window: Size, shifted: bool) -> None:
    x, y = torch.randn(2, size[0], 16, *size[1:])
    for position in POSITIONS:
        module = SwapAttention(
            16, heads=2, window=window, roles=("spatial", "temporal"), norm_groups=4,
            position=position, shifted=shifted,
        )  # fmt: skip
        assert torch.equal(module(x, y, size[0]), y)
        torch.nn.init.normal_(module.proj_out.weight)
        module(x, y, size[0]).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("position", ["none", *POSITIONS])
def test_padding_does_not_reach_the_output_of_shifted_windows(position: str) -> None:
    """A clip alone, and the same clip as what is left of a larger one's border window."""
    module = swap(("spatial",), window=(4, 2, 3), channels=16, shifted=True, position=position)
    for name in module.norms:
        module.norms[name] = torch.nn.Identity()
    x, y = torch.randn(2, 8, 16, 2, 3, dtype=torch.float64)
    out = module(x, y, 8)
    # Windows of frames 0-1, 2-5, 6-7: the middle one is a whole window of its own.
    unshifted = swap(("spatial",), window=(4, 2, 3), channels=16, position=position)
    unshifted.load_state_dict(module.state_dict(), strict=False)
    for name in unshifted.norms:
        unshifted.norms[name] = torch.nn.Identity()
    torch.testing.assert_close(out[2:6], unshifted(x[2:6], y[2:6], 4), rtol=0, atol=1e-10)
    if position == "rotary":  # relative: where in its window a token lies does not matter
        torch.testing.assert_close(out[:2], unshifted(x[:2], y[:2], 2), rtol=0, atol=1e-10)


def test_a_global_window_is_rotary_and_not_learned() -> None:
    module = swap(("spatial",), window=None, channels=16, position="rotary", shifted=True)
    with torch.no_grad():
        expected, found = outputs(module, *torch.randn(2, 4, 16, 4, 6, dtype=torch.float64))
    assert not torch.allclose(expected, found)
    with pytest.raises(ValueError, match="use rotary, or swap_attention=window"):
        swap(("spatial",), window=None, position="learned")
    with pytest.raises(ValueError, match="heads are 4 wide"):
        swap(("spatial",), position="rotary")


# -- in the U-Net


@pytest.mark.parametrize("attention", ["window", "global", "self"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_unet_with_positions_runs_saves_and_loads(
    attention: str, position: str, tmp_path: Path
) -> None:
    if (attention, position) == ("global", "learned"):
        return
    keys = {"swap_attention": attention, "swap_position": position, "swap_shift": "odd"}
    model = make(**keys)
    with torch.no_grad():
        out = model(*inputs()).sample
        assert not torch.equal(out, make(swap_attention=attention)(*inputs()).sample)
        model.save_pretrained(tmp_path)
        again = SpaceTimeUNet.from_pretrained(tmp_path).eval()
        assert torch.equal(again(*inputs()).sample, out)
    tables = [key for key in model.state_dict() if ".places." in key]
    assert len(tables) == (3 * 5 if position == "learned" else 0)


def test_odd_sites_shift_and_defaults_are_those_of_earlier_checkpoints() -> None:
    def shifts(**keys: Any) -> list[bool]:
        model = make(**keys)
        blocks = [*model.down_blocks, model.mid_block, *model.up_blocks]
        return [swap.shifted for block in blocks for swap in block.swap_attentions]

    assert shifts(swap_shift="odd") == [False, True, False, True, False]
    assert shifts() == [False] * 5
    earlier = {k: v for k, v in dict(make().config).items() if not k.startswith("swap_")}
    loaded = SpaceTimeUNet.from_config({**earlier, "swap_window": TWO_LEVELS["swap_window"]})
    assert (loaded.config.swap_position, loaded.config.swap_shift) == ("none", "none")
    assert loaded.state_dict().keys() == make().state_dict().keys() and sites(loaded)
    for key in ("swap_position", "swap_shift"):
        with pytest.raises(ValueError, match=f"{key}='some': choose one of none"):
            make(**{key: "some"})


@pytest.mark.parametrize("position", POSITIONS)
def test_checkpointing_and_bf16_with_positions(position: str) -> None:
    model = make(swap_position=position, swap_shift="odd").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(*inputs()).sample.square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(*inputs()).sample.float()
    with torch.no_grad():
        exact = model(*inputs()).sample
    assert (found - exact).norm() / exact.norm() < 0.03
