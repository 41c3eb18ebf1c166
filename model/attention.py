"""Swap-CA: swapped cross-attention between the spatial and the temporal stream, in 3D windows.

Legend of shapes: B clips, T frames, H x W latent pixels, C channels, D width of a head,
S windows in all (B times the windows of one clip), N tokens in a window.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

Size = tuple[int, int, int]  # (T, H, W)
Role = Literal["spatial", "temporal", "self"]

# Which stream asks and which one answers; x is the spatial stream, y the temporal one.
STREAMS: dict[Role, tuple[str, str]] = {
    "spatial": ("x", "y"),
    "temporal": ("y", "x"),
    "self": ("y", "y"),
}


def fit_window(size: Size, window: Size) -> Size:
    """Balance a window on each axis: as many windows as asked for, all as equal as they can be.

    w = ceil(n / ceil(n / w)) (ours): 43 columns in windows of at most 8 give six windows of 8
    with 5 padded columns; of at most 11, four of 11 with one. An axis shorter than its window
    is one window. Every window then holds at least one real token.
    """
    return tuple(-(-n // -(-n // w)) for n, w in zip(size, window, strict=True))  # type: ignore[return-value]


def count_windows(size: Size, window: Size) -> Size:
    """Windows along each axis, the last one padded where the axis does not divide."""
    return tuple(-(-n // w) for n, w in zip(size, window, strict=True))  # type: ignore[return-value]


def partition(tokens: Tensor, window: Size) -> Tensor:
    """Cut [B, T, H, W, C] into windows [S, N, C], zeros where a border window is padded."""
    for axis, w in enumerate(window, start=1):
        if short := -tokens.shape[axis] % w:
            # Not F.pad: that writes everything twice forward and copies once more backward.
            slab = [*tokens.shape[:axis], short, *tokens.shape[axis + 1 :]]
            tokens = torch.cat([tokens, tokens.new_zeros(slab)], dim=axis)
    B, T, H, W, C = tokens.shape
    wt, wh, ww = window
    tokens = tokens.reshape(B, T // wt, wt, H // wh, wh, W // ww, ww, C)
    return tokens.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wt * wh * ww, C)


def unpartition(windows: Tensor, size: Size, window: Size) -> Tensor:
    """Put windows [S, N, C] back as [B, T, H, W, C] and drop the padding."""
    (T, H, W), (nt, nh, nw), (wt, wh, ww) = size, count_windows(size, window), window
    tokens = windows.reshape(-1, nt, nh, nw, wt, wh, ww, windows.shape[-1])
    tokens = tokens.permute(0, 1, 4, 2, 5, 3, 6, 7)
    return tokens.reshape(-1, nt * wt, nh * wh, nw * ww, windows.shape[-1])[:, :T, :H, :W]


def key_mask(size: Size, window: Size, device: torch.device | None = None) -> Tensor | None:
    """True where a key is real: [windows of one clip, 1, 1, N], or None where nothing is padded.

    One row a window, shared by heads and queries: on CPU it costs nothing over no mask
    (docs/decisions.md), and no row is ever all False.
    """
    if all(n % w == 0 for n, w in zip(size, window, strict=True)):
        return None
    real = torch.ones(1, *size, 1, dtype=torch.bool, device=device)
    return partition(real, window)[:, None, None, :, 0]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Multi-head attention inside each window; q, k, v and the result are [S, N, C].

    mask is `key_mask`'s; its windows repeat for each clip of the batch.
    """
    S, N, C = q.shape
    q, k, v = (x.reshape(S, -1, heads, C // heads).transpose(1, 2) for x in (q, k, v))
    if mask is not None:
        mask = mask.repeat(S // mask.shape[0], 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).reshape(S, N, C)


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: Size, heads: int) -> Tensor:
    """Attention of [B, T, H, W, C] tokens, each to the tokens of its own window only."""
    size: Size = (q.shape[1], q.shape[2], q.shape[3])
    q, k, v = (partition(x, window) for x in (q, k, v))
    return unpartition(attend(q, k, v, heads, key_mask(size, window, q.device)), size, window)


def dense_window_attention(q: Tensor, k: Tensor, v: Tensor, window: Size, heads: int) -> Tensor:
    """The same as `window_attention`, plainly: all tokens against all, under an explicit mask.

    For tests and benchmarks: it needs memory in the square of T*H*W.
    """
    B, T, H, W, C = q.shape
    grid = torch.meshgrid(*(torch.arange(n, device=q.device) for n in (T, H, W)), indexing="ij")
    home = torch.stack([axis // w for axis, w in zip(grid, window, strict=True)], -1).flatten(0, 2)
    same = (home[:, None] == home[None]).all(-1)
    q, k, v = (x.reshape(B, T * H * W, heads, C // heads).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (C // heads) ** -0.5
    weights = scores.masked_fill(~same, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, T, H, W, C)


class SwapBranch(nn.Module):
    """One direction of Swap-CA: h + FFN(LN h) with h = q + MCA(LN q, LN kv), on windows [S, N, C].

    ffn_ratio is the hidden width of the GEGLU FFN over C; 0 leaves the FFN out.
    """

    def __init__(self, channels: int, heads: int, ffn_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q = nn.LayerNorm(channels)
        self.norm_kv = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(channels, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.has_ffn = ffn_ratio > 0
        if self.has_ffn:
            self.norm_ffn = nn.LayerNorm(channels)
            self.ffn = FeedForward(channels, mult=ffn_ratio)

    def forward(self, q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
        keys, values = self.to_kv(self.norm_kv(kv)).chunk(2, dim=-1)
        h = q + self.to_out(attend(self.to_q(self.norm_q(q)), keys, values, self.heads, mask))
        return h + self.ffn(self.norm_ffn(h)) if self.has_ffn else h


class SwapAttention(nn.Module):
    """z = y + W_out(sum of branches) over the streams W_x(GN x) and W_y(GN y).

    x is the feature after the spatial layer, y after the temporal one, both [B*T, C, H, W]; z
    replaces y. W_out starts at zero, so z = y at the start; it is the only factor that does, so
    its own gradient is not zero and all others follow one step later.

    channels: C, a multiple of `heads` and of `norm_groups`.
    window: at most so many (T, H, W) latent pixels; None is one window over the whole clip.
    roles: which stream asks, one branch each (`STREAMS`); two branches share streams and windows.

    The form follows what is recalled of VideoFactory's equations (arXiv 2305.10874). Not the
    paper's: GroupNorm over the whole clip, as diffusers' temporal transformers have it, and the
    zero start of W_out alone, for the reason above.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        window: Size | None,
        roles: tuple[Role, ...],
        ffn_ratio: int = 4,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"swap_heads={heads} does not divide the {channels} channels of its level: "
                "give a divisor, or None for heads as wide as attention_head_dim."
            )
        self.window = window
        self.roles = roles
        self.norms = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        for stream in sorted({name for role in roles for name in STREAMS[role]}):
            self.norms[stream] = nn.GroupNorm(norm_groups, channels, eps=1e-6)
            self.projections[stream] = nn.Linear(channels, channels)
        self.branches = nn.ModuleDict({r: SwapBranch(channels, heads, ffn_ratio) for r in roles})
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, y: Tensor, num_frames: int) -> Tensor:
        size: Size = (num_frames, y.shape[-2], y.shape[-1])
        window = size if self.window is None else fit_window(size, self.window)
        features = {"x": x, "y": y}
        streams = {
            name: project(partition(normed_tokens(features[name], num_frames, norm), window))
            for (name, norm), project in zip(
                self.norms.items(), self.projections.values(), strict=True
            )
        }
        mask = key_mask(size, window, y.device)
        mixed = [
            self.branches[role](streams[STREAMS[role][0]], streams[STREAMS[role][1]], mask)
            for role in self.roles
        ]
        update = unpartition(self.proj_out(sum(mixed[1:], mixed[0])), size, window)
        return y + update.flatten(0, 1).permute(0, 3, 1, 2)


def normed_tokens(feature: Tensor, num_frames: int, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """[B*T, C, H, W] to [B, T, H, W, C], normalised over the whole clip as [B, C, T, H, W]."""
    clip = feature.unflatten(0, (-1, num_frames)).transpose(1, 2)
    return norm(clip).permute(0, 2, 3, 4, 1)
