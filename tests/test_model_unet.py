"""The space-time U-Net: shapes, ablation keys, saving, checkpointing, presets, precision."""

import copy

import pytest
import torch
from diffusers import UNet3DConditionModel
from diffusers.models import modeling_utils

from model import SpaceTimeUNet
from model.configs import PRESETS
from model.unet import count_parameters, main

SMALL = {
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
    "swap_window": (2, 3, 4),
}
TWO_LEVELS = {
    **SMALL,
    "block_out_channels": (16, 16),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}


def awake(model: SpaceTimeUNet) -> SpaceTimeUNet:
    """The model with every Swap-CA output projection away from zero."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "swap_attentions" in name and "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make(**changes) -> SpaceTimeUNet:
    torch.manual_seed(0)
    return awake(SpaceTimeUNet(**{**TWO_LEVELS, **changes})).eval()


def inputs(frames=3, height=9, width=8, clips=2):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(clips, 4, frames, height, width, generator=generator)
    text = torch.randn(clips, 5, 12, generator=generator)
    return sample, torch.tensor([7, 800])[:clips], text


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_keys_are_those_of_diffusers_plus_swap_attentions():
    torch.manual_seed(0)
    shared = {k: v for k, v in SMALL.items() if not k.startswith("swap")}
    theirs = {k: v.shape for k, v in UNet3DConditionModel(**shared).state_dict().items()}
    ours = {k: v.shape for k, v in SpaceTimeUNet(**SMALL).state_dict().items()}
    assert theirs == {k: v for k, v in ours.items() if ".swap_attentions." not in k}
    blocks = {k.split(".swap_attentions")[0] for k in ours if ".swap_attentions." in k}
    assert len(blocks) == 9  # four down, the middle, four up


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 8, 8), (2, 9, 11), (5, 17, 8), (1, 24, 43), (3, 12, 13)]
)
def test_any_clip_size_goes_through_and_comes_back(frames, height, width):
    torch.manual_seed(0)
    model = awake(SpaceTimeUNet(**SMALL)).eval()
    with torch.no_grad():
        out = model(*inputs(frames, height, width, clips=1)).sample
    assert out.shape == (1, 4, frames, height, width)
    assert torch.isfinite(out).all()


def test_timestep_as_number_or_tensor_and_tuple_output():
    model, (sample, _, text) = make(), inputs()
    with torch.no_grad():
        a = model(sample, 7, text).sample
        b = model(sample, torch.tensor(7), text).sample
        (c,) = model(sample, torch.tensor([7, 7]), text, return_dict=False)
    assert torch.equal(a, b)
    assert torch.equal(a, c)


def test_clips_of_a_batch_do_not_mix():
    model, (sample, steps, text) = make(), inputs()
    with torch.no_grad():
        both = model(sample, steps, text).sample
        alone = model(sample[1:], steps[1:], text[1:]).sample
    assert relative(both[1:], alone) < 1e-5


def test_text_time_and_other_frames_reach_the_output():
    model, (sample, steps, text) = make(), inputs()
    with torch.no_grad():
        base = model(sample, steps, text).sample
        assert relative(model(sample, steps, text.flip(0)).sample, base) > 1e-4
        assert relative(model(sample, steps.flip(0), text).sample, base) > 1e-4
        changed = sample.clone()
        changed[:, :, 2] += 1
        assert relative(model(changed, steps, text).sample[:, :, 0], base[:, :, 0]) > 1e-4


def sites(model: SpaceTimeUNet) -> dict[str, list[tuple]]:
    """Roles of every Swap-CA by block, in the order down, mid, up."""
    blocks = {f"down{n}": block for n, block in enumerate(model.down_blocks)}
    blocks["mid"] = model.mid_block
    blocks.update({f"up{n}": block for n, block in enumerate(model.up_blocks)})
    return {
        name: [(swap.roles, swap.window) for swap in block.swap_attentions]
        for name, block in blocks.items()
        if hasattr(block, "swap_attentions")
    }


def test_the_asking_stream_alternates_from_block_to_block():
    roles = {name: [role for role, _ in found] for name, found in sites(make()).items()}
    s, t = [("spatial",)], [("temporal",)]
    assert roles == {"down0": s, "down1": t, "mid": s, "up0": t, "up1": s}


def test_each_ablation_is_one_key():
    every = {
        key: [role for found in sites(make(swap_direction=key)).values() for role, _ in found]
        for key in ("spatial_query", "temporal_query", "both")
    }
    assert every["spatial_query"] == [("spatial",)] * 5
    assert every["temporal_query"] == [("temporal",)] * 5
    assert every["both"] == [("spatial", "temporal")] * 5
    assert sites(make(swap_attention="off")) == {}
    assert {w for f in sites(make(swap_attention="global")).values() for _, w in f} == {None}
    assert {r for f in sites(make(swap_attention="self")).values() for r, _ in f} == {("self",)}
    per_layer = sites(make(swap_placement="layer", layers_per_block=2))
    assert {name: len(found) for name, found in per_layer.items()} == {
        "down0": 2, "down1": 2, "mid": 1, "up0": 3, "up1": 3,
    }  # fmt: skip
    levels = sites(make(swap_window=((1, 2, 3), (4, 5, 6))))
    assert [w for found in levels.values() for _, w in found] == [
        (1, 2, 3), (4, 5, 6), (4, 5, 6), (4, 5, 6), (1, 2, 3),
    ]  # fmt: skip
    assert make(swap_heads=(4, 1)).up_blocks[1].swap_attentions[0].branches.spatial.heads == 4
    assert not any("ffn" in key for key in make(swap_ffn_ratio=0).state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"swap_placement": "layer"},
        {"swap_direction": "spatial_query"},
        {"swap_direction": "temporal_query"},
        {"swap_direction": "both"},
        {"swap_attention": "global"},
        {"swap_attention": "self"},
        {"swap_attention": "off"},
        {"swap_window": (1, 2, 2)},
        {"swap_heads": 1},
        {"swap_ffn_ratio": 0},
    ],
)
def test_every_key_changes_what_is_computed(change):
    with torch.no_grad():
        base, other = make()(*inputs()).sample, make(**change)(*inputs()).sample
    assert torch.isfinite(other).all()
    assert relative(other, base) > 1e-6


@pytest.mark.parametrize("change", [{}, {"swap_placement": "layer", "swap_direction": "both"}])
def test_swap_attention_at_zero_leaves_the_model_as_without_it(change):
    with torch.no_grad():
        torch.manual_seed(0)
        model = SpaceTimeUNet(**TWO_LEVELS, **change).eval()
        off = SpaceTimeUNet(**TWO_LEVELS, swap_attention="off").eval()
        off.load_state_dict(model.state_dict(), strict=False)
        assert torch.equal(model(*inputs()).sample, off(*inputs()).sample)


def test_every_parameter_gets_a_gradient_by_step_two():
    torch.manual_seed(0)
    model = SpaceTimeUNet(**TWO_LEVELS, swap_direction="both", fps_conditioning=True).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(*inputs(), fps=8.0).sample.square().mean().backward()
        optimizer.step()
    dead = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("training", [False, True])
def test_activation_checkpointing_gives_bitwise_equal_gradients(training):
    plain = make().train(training)
    saving = copy.deepcopy(plain)
    saving.enable_gradient_checkpointing()
    calls = []
    run = saving._gradient_checkpointing_func
    saving._gradient_checkpointing_func = lambda block, *x: (calls.append(block), run(block, *x))[1]
    for model in (plain, saving):
        torch.manual_seed(3)  # the temporal convolutions have dropout
        model(*inputs()).sample.square().mean().backward()
    assert len(calls) == 5  # once for each block
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    saving.disable_gradient_checkpointing()
    assert not saving.is_gradient_checkpointing


def test_save_and_load_in_the_format_of_diffusers(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(modeling_utils.logger, "warning", told.append)
    model = make(swap_window=((1, 2, 3), (4, 5, 6)), swap_direction="both")
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    loaded, info = SpaceTimeUNet.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not told
    with torch.no_grad():
        assert torch.equal(loaded(*inputs()).sample, model(*inputs()).sample)


def test_presets_have_the_sizes_they_promise():
    counts = {}
    for name in PRESETS:
        with torch.device("meta"):
            counts[name] = count_parameters(SpaceTimeUNet.from_preset(name))
    assert counts["tiny"]["total"] < 5e6
    assert counts["tiny"]["total"] < counts["small"]["total"] < counts["videofactory"]["total"]
    # Without Swap-CA it is ModelScope T2V's U-Net: the same count as diffusers' class.
    with torch.device("meta"):
        theirs = sum(p.numel() for p in UNet3DConditionModel().parameters())
    big = counts["videofactory"]
    assert big["spatial"] + big["temporal"] == theirs
    assert 0.15e9 < big["swap"] < 0.2e9


def test_the_parameter_table_adds_up(capsys):
    main(["tiny"])
    _, per_block, per_layer, *_ = capsys.readouterr().out.splitlines()
    for row in (per_block, per_layer):
        *parts, total = (float(cell) for cell in row.split()[-4:])
        assert total == pytest.approx(sum(parts), abs=0.2)


def test_frame_rate_is_unseen_at_the_start_and_seen_after():
    model = make(fps_conditioning=True)
    with torch.no_grad():
        slow, fast = model(*inputs(), fps=4.0).sample, model(*inputs(), fps=24.0).sample
        assert torch.equal(slow, fast)
        torch.nn.init.normal_(model.fps_embedding.linear_2.weight)
        each = model(*inputs(), fps=torch.tensor([4.0, 24.0])).sample
        assert relative(each[1], model(*inputs(), fps=4.0).sample[1]) > 1e-4
        assert relative(each[0], model(*inputs(), fps=4.0).sample[0]) < 1e-5


def test_bf16_stays_near_fp32():
    model = make()
    sample, steps, text = inputs(clips=1)
    with torch.no_grad():
        full = model(sample, steps, text).sample
        half = copy.deepcopy(model).bfloat16()(sample.bfloat16(), steps, text.bfloat16()).sample
        with torch.autocast("cpu", torch.bfloat16):
            auto = model(sample, steps, text).sample
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), full) < 0.03
    assert relative(auto.float(), full) < 0.03


def test_a_block_compiles_in_one_graph_and_computes_the_same():
    block = make().down_blocks[0]
    torch.manual_seed(0)
    h, time = torch.randn(6, 16, 9, 8), torch.randn(6, 64)
    text = torch.randn(6, 5, 12)
    with torch.no_grad():
        expected, _ = block(h, time, text, 3)
        compiled = torch.compile(block, backend="eager", fullgraph=True, dynamic=False)
        out, _ = compiled(h, time, text, 3)
    assert relative(out, expected) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"swap_placement": "blocks"}, "swap_placement='blocks': choose one of block, layer"),
        ({"swap_attention": "none"}, "window, global, self, off"),
        ({"attention_head_dim": (2, 4)}, "from_stable_diffusion"),
        ({"attention_head_dim": 5}, "must divide every entry"),
        ({"swap_window": (0, 2, 2)}, "swap_window"),
        ({"swap_window": ((1, 1, 1),) * 3}, "or 2 such triples"),
        ({"swap_heads": (1, 2, 4)}, "swap_heads"),
        ({"swap_heads": 3}, "does not divide the 16 channels"),
        ({"down_block_types": ("DownBlock3D",)}, "give 2 of"),
        ({"layers_per_block": (1, 2)}, "one whole number"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SpaceTimeUNet(**{**TWO_LEVELS, **change})


def test_wrong_inputs_are_refused_by_name():
    model, (sample, steps, text) = make(), inputs()
    with pytest.raises(ValueError, match="one image is T=1"):
        model(sample[:, :, 0], steps, text)
    with pytest.raises(ValueError, match="encoder_hidden_states has shape"):
        model(sample, steps, text[..., :8])
    with pytest.raises(ValueError, match="leave out fps"):
        model(sample, steps, text, fps=8.0)
    with pytest.raises(ValueError, match="no preset 'huge': choose one of tiny"):
        SpaceTimeUNet.from_preset("huge")
