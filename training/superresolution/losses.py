"""L1, perceptual and adversarial losses of Real-ESRGAN (section 4.1)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.settings import ConfigError
from training.evaluation.lpips import PictureFeatures, load_lpips
from training.superresolution.config import Config

# conv1_2, conv2_2, conv3_4, conv4_4, conv5_4 of torchvision's vgg19.features, before activation,
# and their weights: Real-ESRGAN, section 4.1.
VGG_LAYERS = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}


def vgg_features() -> PictureFeatures:
    """VGG19 up to the last of VGG_LAYERS, its weights random."""
    from torchvision.models.vgg import cfgs, make_layers

    return PictureFeatures(make_layers(cfgs["E"])[: max(VGG_LAYERS) + 1], VGG_LAYERS)  # E: vgg19


class Perceptual(nn.Module):
    """Weighted L1 between the features of two batches of pictures in 0..1; a scalar.

    vgg19: the paper's. squeezenet: ours, the layers that LPIPS looks at, all of weight 0.1
    (they are ten times as large as VGG's) and without its normalization and heads; a run trained
    so is judged by the same trunk.
    """

    def __init__(self, features: nn.Module, weights: list[float]) -> None:
        super().__init__()
        self.features, self.weights = features, weights

    def forward(self, made: Tensor, true: Tensor) -> Tensor:
        with torch.no_grad():
            aims = self.features(true)
        pairs = zip(self.weights, self.features(made), aims, strict=True)
        return sum((w * F.l1_loss(a, b) for w, a, b in pairs), torch.zeros((), device=made.device))


def load_perceptual(config: Config) -> Perceptual | None:
    """The perceptual loss that a config names; ConfigError where its weights are not there."""
    if config.perceptual == "none" or not config.perceptual_weight:
        return None
    if config.perceptual == "squeezenet":
        features: nn.Module = load_squeezenet()
        return Perceptual(features, [0.1] * 7)
    vgg = vgg_features()
    state = vgg_state(config.perceptual_path)
    missing, _ = vgg.load_state_dict(state, strict=False)
    if missing:
        raise ConfigError(
            f"perceptual_path={config.perceptual_path}: no weights of torchvision's vgg19 "
            f"({missing[0]} is missing)"
        )
    return Perceptual(vgg, list(VGG_LAYERS.values()))


def load_squeezenet() -> PictureFeatures:
    try:
        return load_lpips().trunk
    except ConfigError as error:
        raise ConfigError(f"perceptual=squeezenet: {error}; or --set perceptual=none") from None


def vgg_state(path: str | None) -> dict[str, Tensor]:
    """torchvision's weights of VGG19 from a file, or fetched once."""
    from torchvision.models import VGG19_Weights

    told = (
        "give torchvision's file (vgg19-dcbb9e9d.pth) as --set perceptual_path=FILE, or "
        "--set perceptual=squeezenet or none"
    )
    if path is None:
        try:
            return VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
        except OSError as error:
            raise ConfigError(
                f"perceptual=vgg19: its weights cannot be fetched ({error}); {told}"
            ) from None
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(Path(path))
        return torch.load(Path(path), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what the file makes it raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"perceptual_path={path} does not load ({reason}); {told}") from None


def adversarial(logits: Tensor, real: bool) -> Tensor:
    """Binary cross entropy of logits against one answer (vanilla GAN, as published); a scalar."""
    aim = torch.full_like(logits, float(real))
    return F.binary_cross_entropy_with_logits(logits, aim)
