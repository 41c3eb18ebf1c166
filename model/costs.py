"""What the U-Net costs by its shapes alone: operations of a forward, padding in Swap-CA's windows.

Nothing is allocated or computed: modules are built on the meta device.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.attention import Size, count_windows, fit_window
from model.configs import block_shapes
from model.texts import CONTEXT
from model.unet import SpaceTimeUNet


def forward_flops(config: Any, size: Size) -> int:
    """Floating point operations of one forward of one clip, latents of `size` (T, H, W).

    A multiplication and an addition are two. Matrix products, convolutions and attention are
    counted, as torch's FlopCounterMode does; norms, activations and sums, which are below 1% of
    them, are not. Tokens that pad Swap-CA's windows are computed and so counted (`window_tokens`).
    config: of a SpaceTimeUNet.
    """
    with torch.device("meta"):
        unet = SpaceTimeUNet.from_config(config).eval()
        inputs = example_inputs(config, 1, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(**inputs)
    return int(counter.get_total_flops())


def example_inputs(config: Any, batch: int, size: Size) -> dict[str, Tensor]:
    """Everything that a U-Net of this config takes for a batch of clips, on the current device."""
    inputs = {
        "sample": torch.randn(batch, config["in_channels"], *size),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": torch.randn(batch, CONTEXT, config["cross_attention_dim"]),
    }
    if config["fps_conditioning"]:
        inputs["fps"] = torch.full((batch,), 8.0)
    if config["low_res_channels"]:
        inputs["low_res"] = torch.randn(batch, config["low_res_channels"], *size)
        inputs["noise_level"] = torch.full((batch,), 20)
    return inputs


def window_tokens(config: Any, size: Size) -> tuple[int, int]:
    """Tokens of one clip in the windows of all Swap-CA sites, and how many of them are padding.

    size: (T, H, W) of the latents. Both are 0 where Swap-CA is off.
    """
    levels = len(config.block_out_channels)
    order = [*range(levels), levels - 1, *reversed(range(levels))]
    every = padding = 0
    for level, shape in zip(order, block_shapes(config), strict=True):
        T, H, W = size
        # A strided convolution of 3 with padding 1 rounds up.
        here: Size = (T, -(-H // 2**level), -(-W // 2**level))
        for site in shape.swaps:
            window = here if site.window is None else fit_window(here, site.window)
            held = prod(count_windows(here, window)) * prod(window)
            every, padding = every + held, padding + held - prod(here)
    return every, padding
