"""What the U-Net costs by its shapes alone: operations of a forward, padding in Swap-CA's windows;
and what devices can do.

Nothing is allocated or computed: modules are built on the meta device.
"""

import re
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.attention import UNSHIFTED, Size, count_windows, fit_window, half_shift
from model.configs import block_shapes
from model.texts import CONTEXT
from model.unet import SpaceTimeUNet

# Dense bf16 products with fp32 sums, TFLOP/s, by a part of the name that CUDA gives; what is more
# specific stands first. From NVIDIA's data sheets (of figures with sparsity the half) and, of RTX
# cards, the white papers of GA102, AD102 and the RTX Blackwell architecture.
PEAK_TFLOPS: dict[str, float] = {
    "B200": 2250,
    "GH200": 989.4,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756,
    "H100": 989.4,
    "A100": 312,
    "A40": 149.7,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090 Ti": 80,
    "RTX 3090": 71.2,
}
# Words after which a name means another chip, or a slice of one.
UNLIKE = {"D", "Laptop", "MIG"}


def peak_tflops(name: str) -> float | None:
    """Peak of a device by its name, TFLOP/s of dense bf16; None: not known."""
    if UNLIKE & set(name.split()):
        return None
    return next((peak for key, peak in PEAK_TFLOPS.items() if re.search(rf"\b{key}\b", name)), None)


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
            shift = half_shift(here, window) if site.shifted else UNSHIFTED
            held = prod(count_windows(here, window, shift)) * prod(window)
            every, padding = every + held, padding + held - prod(here)
    return every, padding
