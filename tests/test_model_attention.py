"""Swap-CA's windows against a plain dense reference, and what its output depends on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model import attention
from model.attention import (
    SwapAttention,
    attend,
    dense_window_attention,
    fit_window,
    key_mask,
    partition,
    unpartition,
    window_attention,
)

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
WINDOWS = st.tuples(st.integers(1, 7), st.integers(1, 10), st.integers(1, 10))


def random_qkv(size: tuple[int, int, int], width: int, clips: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(size) + width)
    return [
        torch.randn(clips, *size, width, dtype=torch.float64, generator=generator) for _ in range(3)
    ]


@given(size=SIZES, window=WINDOWS)
@settings(deadline=None)
def test_balanced_windows_cover_and_waste_less_than_one_token_per_window(size, window):
    for n, w, fitted in zip(size, window, fit_window(size, window), strict=True):
        assert 1 <= fitted <= min(n, w)
        count = -(-n // fitted)
        assert count * fitted - n < fitted  # the last window keeps a real token
        assert count <= -(-n // w)


def test_balanced_windows_at_the_sizes_of_344x192():
    assert fit_window((16, 24, 43), (8, 6, 11)) == (8, 6, 11)
    assert fit_window((16, 6, 11), (8, 6, 11)) == (8, 6, 11)
    assert fit_window((16, 3, 6), (8, 6, 11)) == (8, 3, 6)
    assert fit_window((9, 24, 43), (8, 8, 8)) == (5, 8, 8)
    assert fit_window((1, 8, 8), (8, 6, 11)) == (1, 4, 8)


@given(size=SIZES, window=WINDOWS)
@settings(deadline=None)
def test_partition_and_back_is_the_same_tensor(size, window):
    tokens, _, _ = random_qkv(size, 3)
    assert torch.equal(unpartition(partition(tokens, window), size, window), tokens)


@given(size=SIZES, window=WINDOWS, heads=st.integers(1, 3), balanced=st.booleans())
@settings(deadline=None, max_examples=60)
def test_windows_equal_the_dense_reference_forward_and_backward(size, window, heads, balanced):
    window = fit_window(size, window) if balanced else window
    q, k, v = (x.requires_grad_() for x in random_qkv(size, 4 * heads))
    fast = window_attention(q, k, v, window, heads)
    slow = dense_window_attention(q, k, v, window, heads)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    probe = torch.randn_like(slow)
    for a, b in zip(
        torch.autograd.grad(fast, (q, k, v), probe),
        torch.autograd.grad(slow, (q, k, v), probe),
        strict=True,
    ):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@given(size=SIZES, window=WINDOWS)
@settings(deadline=None)
def test_garbage_in_the_padding_changes_nothing(size, window):
    q, k, v = random_qkv(size, 4)
    mask = key_mask(size, window)
    clean = [partition(x, window) for x in (q, k, v)]
    real = partition(torch.ones_like(q), window).bool()
    dirty = [torch.where(real, x, torch.full_like(x, 1e4)) for x in clean]
    for x in dirty:
        x.requires_grad_()
    out = unpartition(attend(*dirty, 2, mask), size, window)
    assert torch.equal(out, unpartition(attend(*clean, 2, mask), size, window))
    grads = torch.autograd.grad(out.square().sum(), dirty)
    for grad in grads:
        assert torch.isfinite(grad).all()
        assert (grad[~real] == 0).all()


@given(size=SIZES, window=WINDOWS)
@settings(deadline=None)
def test_no_window_is_fully_masked(size, window):
    for w in (window, fit_window(size, window)):
        mask = key_mask(size, w)
        assert mask is None or mask.any(-1).all()


def test_window_attention_gradcheck():
    q, k, v = (x.requires_grad_() for x in random_qkv((3, 3, 5), 4, clips=1))
    assert torch.autograd.gradcheck(lambda *x: window_attention(*x, (2, 2, 3), 2), (q, k, v))


def swap(roles, window=(2, 2, 3), channels=8, **options) -> SwapAttention:
    """A Swap-CA in fp64 whose W_out is not zero."""
    torch.manual_seed(0)
    module = SwapAttention(
        channels, heads=2, window=window, roles=roles, norm_groups=4, **options
    ).double()
    nn.init.normal_(module.proj_out.weight)
    return module


def test_swap_attention_starts_as_identity_and_w_out_gets_a_gradient():
    module = SwapAttention(8, heads=2, window=(2, 2, 3), roles=("spatial",), norm_groups=4)
    x, y = torch.randn(2, 3, 8, 4, 5)
    assert torch.equal(module(x, y, num_frames=3), y)
    module(x, y, num_frames=3).square().sum().backward()
    assert module.proj_out.weight.grad.abs().sum() > 0


def dense_swap(module: SwapAttention, x, y, num_frames, ask, answer):
    """Swap-CA written out once more from its equations, with dense masked attention."""
    frames, channels, height, width = y.shape
    window = fit_window((num_frames, height, width), module.window)
    hat = {}
    for name, feature in (("x", x), ("y", y)):
        clip = feature.reshape(-1, num_frames, channels, height, width).transpose(1, 2)
        hat[name] = module.projections[name](module.norms[name](clip).permute(0, 2, 3, 4, 1))
    (branch,) = module.branches.values()
    q = branch.to_q(branch.norm_q(hat[ask]))
    k, v = branch.to_kv(branch.norm_kv(hat[answer])).chunk(2, -1)
    h = hat[ask] + branch.to_out(dense_window_attention(q, k, v, window, branch.heads))
    h = h + branch.ffn(branch.norm_ffn(h))
    return y + module.proj_out(h).reshape(frames, height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("role", "ask", "answer"), [("spatial", "x", "y"), ("temporal", "y", "x")])
def test_swap_attention_equals_its_equations(role, ask, answer):
    module = swap((role,))
    x, y = torch.randn(2, 6, 8, 5, 7, dtype=torch.float64)
    expected = dense_swap(module, x, y, 3, ask, answer)
    torch.testing.assert_close(module(x, y, num_frames=3), expected, rtol=0, atol=1e-10)


def test_padding_value_does_not_reach_the_output(monkeypatch):
    module = swap(("spatial",))
    x, y = torch.randn(2, 3, 8, 5, 7, dtype=torch.float64)
    expected = module(x, y, num_frames=3)
    clean_partition, dirtied = attention.partition, []

    def dirty_partition(tokens, window, shift):
        windows = clean_partition(tokens, window, shift)
        if tokens.dtype == torch.bool:  # the mask itself
            return windows
        real = clean_partition(torch.ones_like(tokens), window, shift).bool()
        dirtied.append((~real).sum())
        return torch.where(real, windows, 37.0)

    monkeypatch.setattr(attention, "partition", dirty_partition)
    assert torch.equal(module(x, y, num_frames=3), expected)
    assert [int(count) for count in dirtied] == [(4 * 6 * 9 - 3 * 5 * 7) * 8] * 2


def jacobian_support(module: SwapAttention, position: tuple[int, int, int], size=(4, 4, 6)):
    """Which input positions of x and of y one output position (less y itself) depends on."""
    for name in module.norms:  # the norm's statistics couple all positions, by design
        module.norms[name] = nn.Identity()
    x, y = torch.randn(2, size[0], 8, *size[1:], dtype=torch.float64).requires_grad_()
    t, h, w = position
    out = (module(x, y, num_frames=size[0]) - y)[t, :, h, w].sum()
    grads = torch.autograd.grad(out, (x, y))
    return [g.abs().sum(1) > 0 for g in grads]


@pytest.mark.parametrize("role", ["spatial", "temporal"])
def test_one_stream_asks_and_the_other_answers_inside_the_window_only(role):
    on_x, on_y = jacobian_support(swap((role,)), (1, 1, 4))
    window = torch.zeros(4, 4, 6, dtype=torch.bool)
    window[0:2, 0:2, 3:6] = True
    itself = torch.zeros_like(window)
    itself[1, 1, 4] = True
    ask, answer = (on_x, on_y) if role == "spatial" else (on_y, on_x)
    assert torch.equal(ask, itself)  # the query matters at its own position alone
    assert torch.equal(answer, window)  # keys and values in the whole window and nowhere else


def test_both_directions_depend_on_both_streams_in_one_window():
    on_x, on_y = jacobian_support(swap(("spatial", "temporal")), (1, 1, 4))
    assert on_x.sum() == on_y.sum() == 2 * 2 * 3
    assert torch.equal(on_x, on_y)


def test_self_attention_sees_the_temporal_stream_only():
    module = swap(("self",))
    x, y = torch.randn(2, 4, 8, 4, 6, dtype=torch.float64)
    assert list(module.norms) == ["y"]
    assert torch.equal(module(x, y, 4), module(torch.randn_like(x), y, 4))


def test_no_window_means_global():
    on_x, on_y = jacobian_support(swap(("spatial",), window=None), (1, 1, 4))
    assert on_x.sum() == 1
    assert on_y.all()


def test_without_ffn_the_branch_is_attention_alone():
    module = swap(("spatial",), ffn_ratio=0)
    assert not any("ffn" in name for name, _ in module.named_parameters())
    x, y = torch.randn(2, 3, 8, 5, 7, dtype=torch.float64)
    assert torch.isfinite(module(x, y, num_frames=3)).all()


def test_swap_attention_gradcheck():
    module = swap(("spatial", "temporal"), window=(2, 2, 2), channels=4)
    x, y = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: module(a, b, num_frames=2), (x.requires_grad_(), y.requires_grad_())
    )


def test_permuting_windows_permutes_outputs():
    q, k, v = (partition(x, (2, 2, 3)) for x in random_qkv((4, 4, 6), 4, clips=1))
    order = torch.randperm(q.shape[0])
    expected = attend(q, k, v, 2, None)[order]
    assert torch.equal(attend(q[order], k[order], v[order], 2, None), expected)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="swap_heads=3 does not divide the 8 channels"):
        SwapAttention(8, heads=3, window=(2, 2, 2), roles=("spatial",), norm_groups=4)
