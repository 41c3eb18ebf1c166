"""Configs of the space-time U-Net: presets, the shapes of its blocks, and what is refused."""

from typing import Any, cast

from torch import Tensor

from model.attention import Role, Size
from model.blocks import BlockShape, SwapSite

# Widths and depths. videofactory is ModelScope T2V's own shape. tiny and small are ours: the
# least that has every kind of layer, and the same depth at 0.4 of the width.
PRESETS: dict[str, dict[str, Any]] = {
    # A CPU; latents of SpaceToDepth(4), text of TinyText.
    "tiny": {
        "sample_size": (16, 28),
        "in_channels": 48,
        "out_channels": 48,
        "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
        "up_block_types": ("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        "block_out_channels": (64, 64),
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "cross_attention_dim": 64,
        "attention_head_dim": 16,
    },
    # One GPU; Stable Diffusion latents of 224x128 pixels and OpenCLIP text.
    "small": {"sample_size": (16, 28), "block_out_channels": (128, 256, 512, 512)},
    # 344x192; starts from ModelScope T2V or Stable Diffusion 2.x.
    "videofactory": {"sample_size": (24, 43)},
}

DOWN = ("CrossAttnDownBlock3D", "DownBlock3D")
UP = ("CrossAttnUpBlock3D", "UpBlock3D")
CHOICES = {
    "swap_placement": ("block", "layer"),
    "swap_direction": ("alternate", "spatial_query", "temporal_query", "both"),
    "swap_attention": ("window", "global", "self", "off"),
    "swap_position": ("none", "rotary", "learned"),
    "swap_shift": ("none", "odd"),
}


def block_shapes(config: Any) -> list[BlockShape]:
    """Shapes of the down blocks, the mid block and the up blocks, in that order."""
    levels = len(config.block_out_channels)
    order = [*range(levels), levels - 1, *reversed(range(levels))]
    attends = [
        *(kind == DOWN[0] for kind in config.down_block_types),
        True,
        *(kind == UP[0] for kind in config.up_block_types),
    ]
    depth = config.layers_per_block
    depths = [depth] * levels + [1] + [depth + 1] * levels
    shapes, site = [], 0
    for level, attention, layers in zip(order, attends, depths, strict=True):
        after = range(layers) if config.swap_placement == "layer" else [layers - 1]
        if config.swap_attention == "off":
            after = []
        swaps = tuple(swap_site(config, level, layer, site + n) for n, layer in enumerate(after))
        site += len(swaps)
        shapes.append(
            BlockShape(
                channels=config.block_out_channels[level],
                time_channels=4 * config.block_out_channels[0],
                text_channels=config.cross_attention_dim,
                head_width=config.attention_head_dim,
                norm_groups=config.norm_num_groups,
                norm_eps=config.norm_eps,
                attention=attention,
                swaps=swaps,
            )
        )
    return shapes


def swap_site(config: Any, level: int, layer: int, index: int) -> SwapSite:
    """Heads, window and roles of the index-th Swap-CA, which follows `layer` of its block."""
    heads, window = config.swap_heads, config.swap_window
    if heads is None:
        heads = config.block_out_channels[level] // config.attention_head_dim
    elif not isinstance(heads, int):
        heads = heads[level]
    window = window if isinstance(window[0], int) else window[level]
    roles: dict[str, tuple[Role, ...]] = {
        "alternate": ("temporal",) if index % 2 else ("spatial",),
        "spatial_query": ("spatial",),
        "temporal_query": ("temporal",),
        "both": ("spatial", "temporal"),
    }
    return SwapSite(
        layer=layer,
        heads=heads,
        window=None if config.swap_attention == "global" else cast(Size, tuple(window)),
        roles=("self",) if config.swap_attention == "self" else roles[config.swap_direction],
        ffn_ratio=config.swap_ffn_ratio,
        position=config.swap_position,
        shifted=config.swap_shift == "odd" and index % 2 == 1,
    )


def check_config(config: Any) -> None:
    """Refuse a config that would build something other than it says."""
    for key, choices in CHOICES.items():
        if config[key] not in choices:
            raise ValueError(f"{key}={config[key]!r}: choose one of {', '.join(choices)}.")
    levels = len(config.block_out_channels)
    for key, kinds in (("down_block_types", DOWN), ("up_block_types", UP)):
        if len(config[key]) != levels or not set(config[key]) <= set(kinds):
            raise ValueError(
                f"{key}={list(config[key])}: give {levels} of {' or '.join(kinds)}, one for each "
                "entry of block_out_channels."
            )
    for key in ("layers_per_block", "norm_num_groups", "cross_attention_dim"):
        if not isinstance(config[key], int):
            raise ValueError(f"{key}={config[key]!r}: give one whole number for all levels.")
    if not isinstance(config.attention_head_dim, int):
        raise ValueError(
            f"attention_head_dim={config.attention_head_dim!r} must be one number, the channels "
            "per head; a list of numbers of heads is the 2D U-Net's use of the word. Start from "
            "such a model with SpaceTimeUNet.from_stable_diffusion."
        )
    for key in ("attention_head_dim", "norm_num_groups"):
        if any(width % config[key] for width in config.block_out_channels):
            raise ValueError(
                f"{key}={config[key]} must divide every entry of "
                f"block_out_channels={list(config.block_out_channels)}."
            )
    window, heads = config.swap_window, config.swap_heads
    triples = [window] if isinstance(window[0], int) else list(window)
    if len(triples) not in (1, levels) or any(
        len(triple) != 3 or min(triple) < 1 for triple in triples
    ):
        raise ValueError(
            f"swap_window={window}: give (frames, height, width) >= 1, or {levels} such triples, "
            "one for each level."
        )
    if heads is not None and not isinstance(heads, int) and len(heads) != levels:
        raise ValueError(f"swap_heads={heads}: give one number or {levels}, one for each level.")


def check_inputs(
    config: Any,
    sample: Tensor,
    text: Tensor,
    fps: Tensor | float | None,
    low_res: Tensor | None,
    noise_level: Tensor | float | int | None,
) -> None:
    """Refuse inputs of the wrong shape by name, before a layer does it by number."""
    if sample.ndim != 5 or sample.shape[1] != config.in_channels:
        raise ValueError(
            f"sample has shape {list(sample.shape)}: give latents [B, {config.in_channels}, T, H, "
            "W]; one image is T=1."
        )
    expected = (sample.shape[0], config.cross_attention_dim)
    if text.ndim != 3 or (text.shape[0], text.shape[2]) != expected:
        raise ValueError(
            f"encoder_hidden_states has shape {list(text.shape)}: give text states "
            f"[{expected[0]}, L, {expected[1]}] from the encoder this model was made for."
        )
    if (fps is not None) != config.fps_conditioning:
        raise ValueError(
            "this model was built with fps_conditioning="
            f"{config.fps_conditioning}: {'give' if fps is None else 'leave out'} fps."
        )
    check_low_res(config.low_res_channels, sample, low_res, noise_level)


def check_low_res(
    channels: int, sample: Tensor, low_res: Tensor | None, level: Tensor | float | int | None
) -> None:
    if not channels and (low_res is not None or level is not None):
        raise ValueError("this model is no upsampler: leave out low_res and noise_level.")
    wanted = [sample.shape[0], channels, *sample.shape[2:]]
    found = None if low_res is None else list(low_res.shape)
    if channels and (found != wanted or level is None):
        raise ValueError(
            f"this model is an upsampler: give low_res {wanted}, not {found}, and its noise_level."
        )
