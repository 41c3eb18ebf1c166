"""Generators in Real-ESRGAN's official layouts, and the discriminator that they are trained with.

The generators are spandrel's own classes, so that what a run writes is read by whatever reads the
official files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from curation.settings import ConfigError
from training.superresolution.config import Config

WEIGHTS = "weights.safetensors"  # of a run: the EMA, in the official layout


def make_generator(config: Config) -> nn.Module:
    """Pixels [n, 3, h, w] in 0..1 to [n, 3, h s, w s], its weights drawn from the seed.

    srvgg: SRVGGNetCompact, which learns the difference from nearest neighbours. rrdb: RRDBNet,
    whose x2 sees four pixels as one (pixel-unshuffle), as RealESRGAN_x2plus.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.network == "srvgg":
            generator: nn.Module = Compact(
                num_feat=config.num_features, num_conv=config.num_blocks, upscale=config.scale
            )
            start_as_bicubic(generator, config.scale)
            return generator
        unshuffled = 4 // config.scale
        generator = ESRGAN(
            in_nc=3 * unshuffled**2,
            num_filters=config.num_features,
            num_blocks=config.num_blocks,
            scale=4,
            shuffle_factor=unshuffled if unshuffled > 1 else None,
        )
        shrink_blocks(generator)
        return generator


@torch.no_grad()
def start_as_bicubic(generator: nn.Module, scale: int) -> None:
    """Let SRVGGNetCompact begin as bicubic interpolation (but for 2 px at edges), if it has 27
    features or more; with fewer as nearest neighbours.

    27 features carry the 3x3 neighbours of three colours through the body (PReLU leaves what is
    not negative), the last layer weighs 5x5 pixels of them; the rest is Kaiming's for PReLU. Ours:
    with torch's own weights, which shrink the signal to a third in every layer, or with Kaiming's
    alone a tiny run was still worse than bicubic after 100 steps; published ones had a million.
    """
    layers = [module for module in generator.modules() if isinstance(module, nn.Conv2d)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, a=0.25)  # PReLU's slope at the start
        nn.init.zeros_(cast(Tensor, layer.bias))
    first, *inner, last = layers
    last.weight.zero_()
    carried = range(27)
    if first.out_channels < len(carried):
        return
    for layer in (first, *inner):
        layer.weight[: len(carried)] = 0
    for n in carried:
        colour, shift = divmod(n, 9)
        first.weight[n, colour, shift // 3, shift % 3] = 1
        for layer in inner:
            layer.weight[n, n, 1, 1] = 1
    # What each of 5x5 pixels adds to the s x s ones of the middle; nearest is there already.
    impulses = torch.eye(25).view(25, 1, 5, 5)
    taps = F.interpolate(impulses, scale_factor=scale, mode="bicubic", align_corners=False)
    taps = taps[:, 0, 2 * scale : 3 * scale, 2 * scale : 3 * scale].reshape(25, -1)
    taps[12] -= 1
    # An offset of -2..2 as that of a feature (0..2) and of the last layer's kernel (0..2).
    split = [(0, 0), (0, 1), (1, 1), (2, 1), (2, 2)]
    for colour in range(3):
        rows = slice(colour * scale**2, (colour + 1) * scale**2)
        for n in range(25):
            (a, u), (b, v) = split[n // 5], split[n % 5]
            last.weight[rows, colour * 9 + a * 3 + b, u, v] = taps[n]


def shrink_blocks(generator: nn.Module) -> None:
    """A tenth of Kaiming's weights in dense blocks, and no bias: ESRGAN (Wang et al. 2018,
    section 3.1, "smaller initialization"); deep networks without norms do not start otherwise."""
    for name, module in generator.named_modules():
        if ".RDB" in name and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            module.weight.data *= 0.1
            nn.init.zeros_(cast(Tensor, module.bias))


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A generator's weights under the names of the official files.

    spandrel's RRDBNet has ESRGAN's older names (model.0, model.1.sub...), which it also reads.
    """
    if "model.0.weight" not in state:
        return dict(state)
    num_blocks = 1 + max(int(m[1]) for k in state if (m := re.match(r"model\.1\.sub\.(\d+)\.R", k)))
    names = {"0": "conv_first", f"1.sub.{num_blocks}": "conv_body", "3": "conv_up1",
             "6": "conv_up2", "8": "conv_hr", "10": "conv_last"}  # fmt: skip
    out = {}
    for key, value in state.items():
        stem, kind = key.removeprefix("model.").rsplit(".", 1)
        if inner := re.fullmatch(r"1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", stem):
            out["body.{}.rdb{}.conv{}.{}".format(*inner.groups(), kind)] = value
        else:
            out[f"{names[stem]}.{kind}"] = value
    return out


def start_from(generator: nn.Module, init: str) -> None:
    """Fill a generator from official weights or from an earlier run; ConfigError if it is another.

    init: a .pth or .safetensors, or a folder of an earlier run: its EMA weights.
    """
    path = Path(init)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"--init {init}: no file {path}; give official weights (.pth, .safetensors) or an "
            "earlier run of --stage sr"
        )
    try:
        found = ModelLoader(device="cpu").load_from_file(path).model.state_dict()
    except Exception as error:  # spandrel's loader raises what the file makes torch raise
        told = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(f"--init {init}: no network that spandrel knows: {told}") from None
    own = generator.state_dict()
    unlike = [k for k in own.keys() | found.keys() if shape_of(own, k) != shape_of(found, k)]
    if unlike:
        first = min(unlike)
        raise ConfigError(
            f"--init {init} is another network: {len(unlike)} of its weights differ, {first} is "
            f"{shape_of(found, first)} and not {shape_of(own, first)}; use --set network=, "
            "num_features=, num_blocks= or scale= (x2plus: rrdb, 64, 23, 2)"
        )
    generator.load_state_dict(found)


def shape_of(state: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


class Discriminator(nn.Module):
    """Pictures [n, 3, H, W] in 0..1 to a logit for every pixel, [n, 1, H, W]; sides divide by 8.

    A U-Net with spectral norm (Real-ESRGAN, section 3.3 and figure 6; Schönfeld et al. 2020):
    three halvings, three doublings with what was there before added, three last convolutions.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        n = features
        self.first = nn.Conv2d(3, n, 3, padding=1)
        self.down = nn.ModuleList(
            [normed(n * 2**k, n * 2 ** (k + 1), kernel=4, stride=2) for k in range(3)]
        )
        self.up = nn.ModuleList([normed(n * 2 ** (k + 1), n * 2**k) for k in reversed(range(3))])
        self.last = nn.ModuleList([normed(n, n), normed(n, n)])
        self.logits = nn.Conv2d(n, 1, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = [F.leaky_relu(self.first(pixels), 0.2)]
        for layer in self.down:
            seen.append(F.leaky_relu(layer(seen[-1]), 0.2))
        x = seen.pop()
        for layer in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu(layer(x), 0.2) + seen.pop()
        for layer in self.last:
            x = F.leaky_relu(layer(x), 0.2)
        return self.logits(x)


def normed(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(inside, outside, kernel, stride, padding=1, bias=False))


def make_discriminator(config: Config) -> Discriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        return Discriminator(config.discriminator_features)
