"""Training super-resolution: kernels and degradations by known answers, networks, losses, LPIPS."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks.package_weights import CAFFE_MEAN_BGR, FIRES, squeeze_state
from curation.settings import ConfigError
from model.superresolution import load_upscaler
from training.evaluation.i3d import weights_folder
from training.evaluation.lpips import FETCH, FILE, MEAN, STD, distance, load_lpips
from training.superresolution.config import Degradation, Round, load_config
from training.superresolution.degradations import degrade, filtered, h264, jpeg, noisy
from training.superresolution.kernels import Dice, draw_kernel, gaussian, sinc
from training.superresolution.losses import VGG_LAYERS, Perceptual, load_perceptual, vgg_features
from training.superresolution.networks import (
    Discriminator,
    make_generator,
    official,
    start_from,
)

NOTHING = Degradation(rounds=0, final_sinc=0, final_resize=["area"], crf=None)
RRDB = ["network=rrdb", "num_features=8", "num_blocks=2"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_any_kernel_sums_to_one(seed: int) -> None:
    kernel = draw_kernel(Dice(seed), Round(sinc=0.3))
    assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(kernel, kernel.rot90(2), rtol=0, atol=1e-6)  # none moves a picture


def test_kernels_by_their_formulas() -> None:
    plain = gaussian(7, 1.0, 1.0)
    assert (plain[3, 4] / plain[3, 3]).item() == pytest.approx(math.exp(-1 / 2))
    long = gaussian(21, 4.0, 1.0, angle=math.pi / 2)  # the long axis turned to y
    assert (long[14, 10] / long[10, 10]).item() == pytest.approx(math.exp(-1 / 2))
    assert (long[10, 11] / long[10, 10]).item() == pytest.approx(math.exp(-1 / 2))
    flat = gaussian(7, 2.0, 2.0, beta=2.0, plateau=True)
    assert (flat[3, 5] / flat[3, 3]).item() == pytest.approx(1 / 2)  # q = 1
    ring = sinc(21, math.pi / 2)
    r2 = math.pi / 2 * float(torch.special.bessel_j1(torch.tensor(math.pi))) / (4 * math.pi)
    assert (ring[10, 12] / ring[10, 10]).item() == pytest.approx(r2 / (math.pi / 16), rel=1e-4)
    assert ring.min() < 0  # it overshoots


def test_an_impulse_gives_the_kernel() -> None:
    picture, kernel = torch.zeros(1, 3, 41, 41), gaussian(9, 2.0, 0.7, angle=0.5)
    picture[..., 20, 20] = 1
    made = filtered(picture, kernel)
    torch.testing.assert_close(made[0, 1, 16:25, 16:25], kernel, rtol=0, atol=1e-7)
    assert made[0, 0, :16].abs().max() == 0


def test_no_degradation_is_the_mean_of_an_area() -> None:
    clip = (noise(2, 3, 32, 48) * 255).to(torch.uint8)
    means = F.avg_pool2d(clip.float() / 255, 2)
    assert torch.equal(degrade(clip, 2, NOTHING, 0), (means * 255).round().to(torch.uint8))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 4]), st.sampled_from([1, 3]))
def test_sizes_and_the_same_seed(seed: int, scale: int, T: int) -> None:
    clip = (noise(T, 3, 64, 96) * 255).to(torch.uint8)
    made = degrade(clip, scale, Degradation(), seed)
    assert made.shape == (T, 3, 64 // scale, 96 // scale) and made.dtype == torch.uint8
    assert torch.equal(made, degrade(clip, scale, Degradation(), seed))
    assert not torch.equal(made, degrade(clip, scale, Degradation(), seed + 1))


def test_noise_has_the_size_asked_for_and_is_each_frames_own() -> None:
    grey = torch.full((2, 3, 64, 64), 0.5)
    made = noisy(grey, Dice(0), Round(gaussian=1, noise=(20, 20), grey=0))
    assert (made - grey).std().item() * 255 == pytest.approx(20, rel=0.05)
    assert not torch.equal(made[0], made[1])
    one = noisy(grey, Dice(0), Round(gaussian=1, noise=(20, 20), grey=1))
    assert torch.equal(one[:, 0], one[:, 2])
    # A flat picture uses one level, so n is 2: a binomial-like 0, 1, 2 ... halves.
    shot = noisy(grey, Dice(0), Round(gaussian=0, poisson=(0.1, 0.1), grey=0))
    sigma = 0.1 * math.sqrt(0.5 / 2)  # Poisson(x n) / n has variance x / n
    assert (shot - grey).std().item() == pytest.approx(sigma, rel=0.05)


def test_coding_costs_more_at_a_lower_quality() -> None:
    clip = F.interpolate(noise(3, 3, 16, 16), scale_factor=4, mode="bicubic").clamp(0, 1)

    def error(made: torch.Tensor) -> float:
        return (made - clip).abs().mean().item()

    assert error(jpeg(clip, 95)) < error(jpeg(clip, 50)) < error(jpeg(clip, 10))
    as_bytes = (clip * 255).round().to(torch.uint8)
    errors = [error(h264(as_bytes, crf).float() / 255) for crf in (10, 25, 40)]
    assert errors == sorted(errors) and errors[0] < errors[2] / 2
    # Frames are predicted: a still clip stays what its first frame was coded as.
    still = as_bytes[:1].repeat(3, 1, 1, 1)
    made = h264(still, 30).float()
    assert (made[1] - made[0]).abs().mean() < (made[0] - still[0].float()).abs().mean() / 2


@pytest.mark.parametrize(("sets", "scale", "name"), [
    ([], 2, "Compact x2"),
    (["scale=4", "crop=128"], 4, "Compact x4"),
    (RRDB, 2, "ESRGAN x2"),
    ([*RRDB, "scale=4", "crop=128"], 4, "ESRGAN x4"),
])  # fmt: skip
def test_what_is_written_is_an_official_file(tmp_path: Path, sets, scale, name) -> None:
    """The upscaler reads it through spandrel and makes the same pixels; --init takes it back."""
    config = load_config("tiny", sets)
    generator = make_generator(config).eval()
    for parameter in generator.parameters():  # the last layer begins at zero
        parameter.data += 0.01 * noise(*parameter.shape)
    state = official(generator.state_dict())
    assert ("conv_first.weight" if sets[:1] == RRDB[:1] else "body.0.weight") in state
    save_file(state, tmp_path / "weights.safetensors")
    (tmp_path / "card.json").write_text("{}")
    upscaler = load_upscaler(str(tmp_path))
    assert upscaler.scale == scale and name in upscaler.label
    pixels = noise(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(upscaler.tiled(pixels), generator(pixels), rtol=0, atol=1e-5)
    again = make_generator(config.model_copy(update={"seed": 1}))
    start_from(again, str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), generator.parameters(),
                                                 strict=True))  # fmt: skip
    with pytest.raises(ConfigError, match="is another network"):
        start_from(make_generator(load_config("tiny", ["num_features=12"])), str(tmp_path))


@pytest.mark.parametrize("scale", [2, 4])
def test_the_small_network_begins_as_bicubic(scale: int) -> None:
    config = load_config("tiny", [f"scale={scale}", "crop=128"])
    generator, pixels = make_generator(config), noise(2, 3, 12, 16)
    aim = F.interpolate(pixels, scale_factor=scale, mode="bicubic", align_corners=False)
    inside = (..., slice(2 * scale, -2 * scale), slice(2 * scale, -2 * scale))
    torch.testing.assert_close(generator(pixels)[inside], aim[inside], rtol=0, atol=1e-5)


def test_the_discriminator_judges_every_pixel_and_is_bounded() -> None:
    torch.manual_seed(0)
    net = Discriminator(4)
    assert net(noise(2, 3, 32, 40)).shape == (2, 1, 32, 40)
    for _ in range(30):  # spectral norm is a power iteration
        net(noise(1, 3, 32, 32))
    for layer in [*net.down, *net.up, *net.last]:
        weight = layer.weight.detach()  # type: ignore[union-attr]
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, rel=0.02)


def test_lpips_of_constructed_features() -> None:
    """One layer of two channels: 0 for a multiple of itself, 2 for orthogonal ones."""
    a = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    b = torch.tensor([0.0, 5.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    heads = [torch.tensor([1.0, 1.0])]
    assert distance([a], [7 * a], heads).item() == pytest.approx(0, abs=1e-6)
    assert distance([a], [b], heads).item() == pytest.approx(2)
    assert distance([a], [b], [torch.tensor([0.5, 0.0])]).item() == pytest.approx(0.5)
    half = a.clone()
    half[..., :2] = b[..., :2]  # half of the pixels
    assert distance([a, a], [half, a], heads * 2).item() == pytest.approx(1)


def test_lpips_of_the_real_weights() -> None:
    """What lpips 0.1.4 answers with the same trunk to blocks of uniform noise."""
    if not (weights_folder() / FILE).exists():
        pytest.skip(f"no {weights_folder() / FILE}: {FETCH}")
    blocks = np.random.default_rng(0).uniform(0, 1, (2, 3, 8, 8))
    frames = torch.from_numpy(np.kron(blocks, np.ones((1, 1, 8, 8))).astype(np.float32))
    measure = load_lpips()
    assert measure(frames[:1], frames[1:]).item() == pytest.approx(0.10782159, rel=1e-4)
    assert measure(frames[:1], frames[:1] * 0.5).item() == pytest.approx(0.04236607, rel=1e-4)
    assert measure(frames, frames).tolist() == [0, 0]


def test_caffes_pixels_are_folded_into_the_first_layer() -> None:
    rng = np.random.default_rng(0)

    def layer(k: int, inside: int, out: int) -> list[np.ndarray]:
        return [
            rng.normal(size=(k, k, inside, out)).astype("f4"),
            rng.normal(size=out).astype("f4"),
        ]

    arrays = {"conv1": layer(3, 3, 4)}
    for number in FIRES.values():
        for name, k in (("squeeze1x1", 1), ("expand1x1", 1), ("expand3x3", 3)):
            arrays[f"fire{number}/{name}"] = layer(k, 2, 5)
    state, pixels = squeeze_state(arrays), noise(1, 3, 9, 9)
    caffe = pixels.flip(1) * 255 - torch.tensor(CAFFE_MEAN_BGR).view(3, 1, 1)
    kernel, bias = (torch.from_numpy(x) for x in arrays["conv1"])
    expected = F.conv2d(caffe, kernel.permute(3, 2, 0, 1), bias)
    given_pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    made = F.conv2d(given_pixels, state["features.0.weight"], state["features.0.bias"])
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-2)
    assert state["features.3.expand3x3.weight"].shape == (5, 2, 3, 3)


def test_the_perceptual_loss_weighs_layers() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x, 10 * x]

    loss = Perceptual(Two(), [0.5, 2.0])
    assert loss(torch.full((1, 3, 2, 2), 3.0), torch.ones(1, 3, 2, 2)).item() == 0.5 * 2 + 2 * 20


def test_vgg_is_read_from_a_file_and_its_absence_told(tmp_path: Path) -> None:
    """Random weights through the real loading code: the layers are those before activations."""
    net = vgg_features()
    features = net(noise(1, 3, 32, 32))
    assert [f.shape[1] for f in features] == [64, 128, 256, 512, 512] and len(VGG_LAYERS) == 5
    assert all(f.min() < 0 for f in features)
    torch.save(net.state_dict(), tmp_path / "vgg.pth")
    sets = ["perceptual=vgg19", f"perceptual_path={tmp_path}/vgg.pth"]
    loss = load_perceptual(load_config("tiny", sets))
    assert loss is not None and loss(noise(1, 3, 32, 32), noise(1, 3, 32, 32)).item() == 0
    for path, told in ((tmp_path / "none.pth", "does not load"), (tmp_path / "x.pth", "vgg19")):
        torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
        with pytest.raises(ConfigError, match=told):
            load_perceptual(load_config("tiny", [sets[0], f"perceptual_path={path}"]))


@pytest.mark.parametrize(("preset", "sets", "told"), [
    ("tinny", [], "did you mean 'tiny'"),
    ("tiny", ["crop=50"], "crop is 50: give a multiple of 8"),
    ("tiny", ["degradation.first.jpg=[1,2]"], "did you mean 'jpeg'"),
    ("tiny", ["networks=srvgg"], "did you mean 'network'"),
])  # fmt: skip
def test_mistakes_in_a_config_are_told(preset: str, sets: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(preset, sets)
    assert load_config("x2plus", []).degradation.first == Round()
