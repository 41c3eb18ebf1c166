"""The 2x spatial upsampler: the video U-Net beside the low-resolution clip that it enlarges.

The paper names a "2x spatial upsampling" and says no more; all of this is ours. As in Cascaded
Diffusion Models (Ho et al. 2021, https://arxiv.org/abs/2106.15282, section 4) and Stable
Diffusion's x4 upscaler, the low-resolution latents get noise of a level that the U-Net is told,
are enlarged, and join the noisy latents as further channels.
"""

import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from model.diffusion import add_noise
from model.latents import Codec
from model.unet import SpaceTimeUNet

FACTOR = 2  # of each side


def halved(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, T, H, W] at half the height and width: means of 2x2, what a camera of fewer
    pixels would see."""
    return F.avg_pool3d(pixels, (1, FACTOR, FACTOR))


def low_res_input(
    codec: Codec, schedule: DDPMScheduler, low_res: Tensor, noise: Tensor, level: Tensor
) -> Tensor:
    """What the U-Net sees of low-resolution latents [B, C, T, h, w]: [B, C, T, 2h, 2w].

    noise: of their shape, added as at step `level` [B] of the schedule, so that what the base model
    makes need not be as clean as the latents of real clips. It is added before they are enlarged:
    afterwards each latent would come with four draws of noise, whose mean undoes much of it.
    """
    return codec.enlarge(add_noise(schedule, low_res, noise, level))


def as_upsampler(unet: SpaceTimeUNet) -> tuple[SpaceTimeUNet, list[str], list[str]]:
    """A U-Net with channels for low-resolution latents, equal to `unet` whatever these hold; and
    the keys that are new (random) and that are new and zero.

    The new channels of conv_in begin at zero, as ControlNet's and inpainting models' do.
    """
    channels = unet.config["in_channels"]
    # diffusers notes which keys had their default, and would give them that again.
    config = {key: unet.config[key] for key in unet.config if not key.startswith("_")}
    larger = SpaceTimeUNet(**{**config, "low_res_channels": channels})
    weights = unet.state_dict()
    first = larger.conv_in.weight.detach().zero_().clone()
    first[:, :channels] = weights["conv_in.weight"]
    missing, unexpected = larger.load_state_dict({**weights, "conv_in.weight": first}, strict=False)
    assert not unexpected
    zero = [key for key in missing if "linear_2" in key]
    return larger, [key for key in missing if key not in zero], zero
