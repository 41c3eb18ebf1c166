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
Position = Literal["none", "rotary", "learned"]
UNSHIFTED: Size = (0, 0, 0)
ROTARY_BASE = 100.0  # of axes of tens of tokens, not thousands: as arXiv 2403.13298, section 3

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


def count_windows(size: Size, window: Size, shift: Size = UNSHIFTED) -> Size:
    """Windows along each axis, the last one padded where the axis does not divide."""
    axes = zip(size, window, shift, strict=True)
    return tuple(-(-(n + s) // w) for n, w, s in axes)  # type: ignore[return-value]


def half_shift(size: Size, window: Size) -> Size:
    """How far windows are moved back on each axis: half a window where there is more than one.

    Swin's idea (arXiv 2103.14030): what one site cuts apart, the next holds together. Not its
    cyclic roll: the first and the last window are cut short instead, so that opposite borders of
    a clip never meet. T = 16 in windows of 8 becomes 4, 8 and 4 frames.
    """
    return tuple(w // 2 if n > w else 0 for n, w in zip(size, window, strict=True))  # type: ignore[return-value]


def partition(tokens: Tensor, window: Size, shift: Size = UNSHIFTED) -> Tensor:
    """Cut [B, T, H, W, C] into windows [S, N, C], zeros where a border window is padded.

    shift: padding before the first token of each axis, less than a window.
    """
    for axis, (w, before) in enumerate(zip(window, shift, strict=True), start=1):
        after = -(tokens.shape[axis] + before) % w
        if before or after:
            # Not F.pad: that writes everything twice forward and copies once more backward.
            first, last = (
                tokens.new_zeros(*tokens.shape[:axis], pad, *tokens.shape[axis + 1 :])
                for pad in (before, after)
            )
            tokens = torch.cat([first, tokens, last], dim=axis)
    B, T, H, W, C = tokens.shape
    wt, wh, ww = window
    tokens = tokens.reshape(B, T // wt, wt, H // wh, wh, W // ww, ww, C)
    return tokens.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wt * wh * ww, C)


def unpartition(windows: Tensor, size: Size, window: Size, shift: Size = UNSHIFTED) -> Tensor:
    """Put windows [S, N, C] back as [B, T, H, W, C] and drop the padding."""
    (nt, nh, nw), (wt, wh, ww) = count_windows(size, window, shift), window
    tokens = windows.reshape(-1, nt, nh, nw, wt, wh, ww, windows.shape[-1])
    tokens = tokens.permute(0, 1, 4, 2, 5, 3, 6, 7)
    tokens = tokens.reshape(-1, nt * wt, nh * wh, nw * ww, windows.shape[-1])
    t, h, w = (slice(s, s + n) for n, s in zip(size, shift, strict=True))
    return tokens[:, t, h, w]


def key_mask(
    size: Size, window: Size, device: torch.device | None = None, shift: Size = UNSHIFTED
) -> Tensor | None:
    """True where a key is real: [windows of one clip, 1, 1, N], or None where nothing is padded.

    One row a window, shared by heads and queries: on CPU it costs nothing over no mask
    (docs/decisions.md), and no row is ever all False.
    """
    if not any(shift) and all(n % w == 0 for n, w in zip(size, window, strict=True)):
        return None
    real = torch.ones(1, *size, 1, dtype=torch.bool, device=device)
    return partition(real, window, shift)[:, None, None, :, 0]


def rotary_angles(window: Size, head_width: int, like: Tensor) -> Tensor:
    """Angles of axial rotary position [N, head_width / 2] of the tokens of a window, in fp32 or
    wider, on the device of `like`.

    Each axis turns its own pairs of channels (arXiv 2104.09864 for one axis): a third to H, a
    third to W and what is left to T, the i-th of n pairs by position * ROTARY_BASE^(-i / n).
    """
    pairs = head_width // 2
    shares = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    dtype = torch.promote_types(like.dtype, torch.float32)
    angles = []
    for axis, (n, share) in enumerate(zip(window, shares, strict=True)):
        place = torch.arange(n, dtype=dtype, device=like.device)
        rate = ROTARY_BASE ** (-torch.arange(share, dtype=dtype, device=like.device) / share)
        shape = [n if other == axis else 1 for other in range(3)]
        angles.append((place[:, None] * rate).reshape(*shape, share).expand(*window, share))
    return torch.cat(angles, -1).flatten(0, 2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of [..., N, D] by its angle [N, D / 2]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, angles: Tensor | None = None
) -> Tensor:
    """Multi-head attention inside each window; q, k, v and the result are [S, N, C].

    mask is `key_mask`'s; its windows repeat for each clip of the batch. angles are
    `rotary_angles`': q and k of every head are turned by them.
    """
    S, N, C = q.shape
    q, k, v = (x.reshape(S, -1, heads, C // heads).transpose(1, 2) for x in (q, k, v))
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    if mask is not None:
        mask = mask.repeat(S // mask.shape[0], 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).reshape(S, N, C)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: Size, heads: int, shift: Size = UNSHIFTED
) -> Tensor:
    """Attention of [B, T, H, W, C] tokens, each to the tokens of its own window only."""
    size: Size = (q.shape[1], q.shape[2], q.shape[3])
    mask = key_mask(size, window, q.device, shift)
    q, k, v = (partition(x, window, shift) for x in (q, k, v))
    return unpartition(attend(q, k, v, heads, mask), size, window, shift)


def dense_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: Size, heads: int, shift: Size = UNSHIFTED
) -> Tensor:
    """The same as `window_attention`, plainly: all tokens against all, under an explicit mask.

    For tests and benchmarks: it needs memory in the square of T*H*W.
    """
    B, T, H, W, C = q.shape
    grid = torch.meshgrid(*(torch.arange(n, device=q.device) for n in (T, H, W)), indexing="ij")
    axes = zip(grid, window, shift, strict=True)
    home = torch.stack([(axis + s) // w for axis, w, s in axes], -1).flatten(0, 2)
    same = (home[:, None] == home[None]).all(-1)
    q, k, v = (x.reshape(B, T * H * W, heads, C // heads).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (C // heads) ** -0.5
    weights = scores.masked_fill(~same, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, T, H, W, C)


class SwapBranch(nn.Module):
    """One direction of Swap-CA: h + FFN(LN h) with h = q + MCA(LN q, LN kv), on windows [S, N, C].

    ffn_ratio is the hidden width of the GEGLU FFN over C; 0 leaves the FFN out.
    places: at most so many (T, H, W) tokens of a window get a learned embedding, a sum of one for
        each axis, added to LN q and LN kv as ViT adds its own (arXiv 2010.11929; 0.02 is its
        spread at the start); None for none.
    """

    def __init__(
        self, channels: int, heads: int, ffn_ratio: int, places: Size | None = None
    ) -> None:
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
        self.places = None
        if places is not None:
            self.places = nn.ParameterList(0.02 * torch.randn(n, channels) for n in places)

    def embed_places(self, window: Size) -> Tensor:
        """The embedding [N, C] of the tokens of a window, which may be smaller than the most."""
        assert self.places is not None
        t, h, w = (table[:n] for table, n in zip(self.places, window, strict=True))
        return (t[:, None, None] + h[:, None] + w).flatten(0, 2)

    def forward(
        self, q: Tensor, kv: Tensor, mask: Tensor | None, window: Size, angles: Tensor | None
    ) -> Tensor:
        # kv first: with q = kv, gradients are then summed in the order of earlier versions.
        answer, ask = self.norm_kv(kv), self.norm_q(q)
        if self.places is not None:
            place = self.embed_places(window)
            ask, answer = ask + place, answer + place
        keys, values = self.to_kv(answer).chunk(2, dim=-1)
        h = q + self.to_out(attend(self.to_q(ask), keys, values, self.heads, mask, angles))
        return h + self.ffn(self.norm_ffn(h)) if self.has_ffn else h


class SwapAttention(nn.Module):
    """z = y + W_out(sum of branches) over the streams W_x(GN x) and W_y(GN y).

    x is the feature after the spatial layer, y after the temporal one, both [B*T, C, H, W]; z
    replaces y. W_out starts at zero, so z = y at the start; it is the only factor that does, so
    its own gradient is not zero and all others follow one step later.

    channels: C, a multiple of `heads` and of `norm_groups`.
    window: at most so many (T, H, W) latent pixels; None is one window over the whole clip.
    roles: which stream asks, one branch each (`STREAMS`); two branches share streams and windows.
    position: what tells tokens of a window where they are: nothing, so that frames in another
        order give the same in that order; `rotary` (`rotary_angles`, how far q is from k; heads
        of an even width of 6 or more); `learned` (`SwapBranch`'s places; not without a window).
    shifted: whether windows lie half a window further back (`half_shift`).

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
        position: Position = "none",
        shifted: bool = False,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"swap_heads={heads} does not divide the {channels} channels of its level: "
                "give a divisor, or None for heads as wide as attention_head_dim."
            )
        check_position(position, channels // heads, window)
        self.window = window
        self.roles = roles
        self.head_width = channels // heads
        self.position = position
        self.shifted = shifted
        places = window if position == "learned" else None
        self.norms = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        for stream in sorted({name for role in roles for name in STREAMS[role]}):
            self.norms[stream] = nn.GroupNorm(norm_groups, channels, eps=1e-6)
            self.projections[stream] = nn.Linear(channels, channels)
        self.branches = nn.ModuleDict(
            {role: SwapBranch(channels, heads, ffn_ratio, places) for role in roles}
        )
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, y: Tensor, num_frames: int) -> Tensor:
        size: Size = (num_frames, y.shape[-2], y.shape[-1])
        window = size if self.window is None else fit_window(size, self.window)
        shift = half_shift(size, window) if self.shifted else UNSHIFTED
        angles = rotary_angles(window, self.head_width, y) if self.position == "rotary" else None
        features = {"x": x, "y": y}
        streams = {
            name: project(partition(normed_tokens(features[name], num_frames, norm), window, shift))
            for (name, norm), project in zip(
                self.norms.items(), self.projections.values(), strict=True
            )
        }
        mask = key_mask(size, window, y.device, shift)
        asked = [tuple(streams[name] for name in STREAMS[role]) for role in self.roles]
        mixed = [
            self.branches[role](*pair, mask, window, angles)
            for role, pair in zip(self.roles, asked, strict=True)
        ]
        update = unpartition(self.proj_out(sum(mixed[1:], mixed[0])), size, window, shift)
        return y + update.flatten(0, 1).permute(0, 3, 1, 2)


def check_position(position: Position, head_width: int, window: Size | None) -> None:
    """Refuse a position that these heads or windows cannot have."""
    if position == "rotary" and (head_width < 6 or head_width % 2):
        raise ValueError(
            f"swap_position=rotary turns pairs of channels along three axes, and heads are "
            f"{head_width} wide: give swap_heads that leave an even width of 6 or more."
        )
    if position == "learned" and window is None:
        raise ValueError(
            "swap_position=learned has an embedding for each place of a window, and a global "
            "window has no size: use rotary, or swap_attention=window."
        )


def normed_tokens(feature: Tensor, num_frames: int, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """[B*T, C, H, W] to [B, T, H, W, C], normalised over the whole clip as [B, C, T, H, W]."""
    clip = feature.unflatten(0, (-1, num_frames)).transpose(1, 2)
    return norm(clip).permute(0, 2, 3, 4, 1)
