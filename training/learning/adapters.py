"""LoRA (arXiv 2106.09685) through peft: small matrices beside those of the pretrained attention.

`trainable=lora` trains them and Swap-CA, which no pretrained model has; all else stays as it came.
What reads a run gets the U-Net with the adapters added to its weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from curation.settings import ConfigError
from model import SpaceTimeUNet

MARK = ".lora_"  # in the names of peft's parameters
# Queries, keys, values and outputs of spatial and temporal attention, as diffusers' trainers do.
TARGETS = r"(?!.*swap_attentions).*\.(to_q|to_k|to_v|to_out\.0)"


def add_adapters(unet: SpaceTimeUNet, rank: int, seed: int) -> None:
    """Put adapters of a rank into a U-Net, which computes what it did before.

    They are scaled by 1, alpha being the rank. Raises ConfigError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError(
            "trainable=lora needs peft, which is not installed: pip install 'videofactory[lora]'"
        ) from None
    torch.manual_seed(seed)  # of the first factor; the second one is 0
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), unet)


@torch.no_grad()
def merge_adapters(unet: SpaceTimeUNet) -> None:
    """Add a U-Net's adapters to its weights and take them out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {n: m for n, m in unet.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, module in found.items():
        layer: Any = module
        layer.merge()
        parent, _, child = name.rpartition(".")
        plain: nn.Module = layer.get_base_layer()
        setattr(unet.get_submodule(parent), child, plain)
