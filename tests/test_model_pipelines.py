"""The sampling pipeline: prompts to clips, guidance against the empty prompt, seeds, mp4."""

import av
import pytest
import torch

from model import SpaceTimeUNet, VideoFactoryPipeline
from model.diffusion import noise_schedule
from model.latents import SpaceToDepth
from model.texts import TinyText

SHORT = {"num_frames": 3, "height": 32, "width": 40, "num_inference_steps": 3, "progress": False}


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    unet = SpaceTimeUNet.from_preset("tiny", block_out_channels=(32, 32), fps_conditioning=True)
    torch.nn.init.normal_(unet.fps_embedding.linear_2.weight, std=0.3)
    schedule = noise_schedule("v_prediction", zero_terminal_snr=True)
    return VideoFactoryPipeline(unet, SpaceToDepth(), TinyText(), schedule)


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


def test_one_clip_for_each_prompt(pipe):
    out = pipe(["a red ball", "a blue cube"], generator=seeds(1, 2), **SHORT)
    assert out.frames.shape == (2, 3, 32, 40, 3)
    assert out.frames.dtype == torch.uint8
    assert pipe("a red ball", **SHORT).frames.shape == (1, 3, 32, 40, 3)


def test_a_seed_gives_the_same_clip_alone_and_in_a_batch(pipe):
    both = pipe(["a red ball", "a blue cube"], generator=seeds(1, 2), **SHORT).frames
    alone = pipe("a blue cube", generator=seeds(2), **SHORT).frames
    assert (both[1].int() - alone[0].int()).abs().max() <= 1  # rounding of batched kernels
    other = pipe("a blue cube", generator=seeds(3), **SHORT).frames
    assert (both[1].int() - other[0].int()).abs().max() > 10


def calls_of(pipe, monkeypatch, **options):
    """The arguments of every call of the U-Net during one sampling."""
    seen, forward = [], pipe.unet.forward

    def watched(sample, steps, text, **rest):
        seen.append((sample, steps, text, rest))
        return forward(sample, steps, text, **rest)

    monkeypatch.setattr(pipe.unet, "forward", watched)
    pipe("a red ball", generator=seeds(1), **{**SHORT, **options})
    return seen


def test_guidance_is_against_the_true_empty_prompt(pipe, monkeypatch):
    for sample, steps, text, _ in calls_of(pipe, monkeypatch):
        torch.testing.assert_close(text, TinyText().encode(["a red ball", ""]))
        assert torch.equal(sample[0], sample[1])
        assert steps[0] == steps[1]


def test_a_negative_prompt_takes_its_place(pipe, monkeypatch):
    for _, _, text, _ in calls_of(pipe, monkeypatch, negative_prompt="blurry"):
        torch.testing.assert_close(text[1:], TinyText().encode(["blurry"]))


def test_no_guidance_is_half_the_work(pipe, monkeypatch):
    for sample, _, text, _ in calls_of(pipe, monkeypatch, guidance_scale=1.0):
        assert len(sample) == len(text) == 1


def test_the_frame_rate_is_told_to_the_model(pipe, monkeypatch):
    assert all(rest == {"fps": 24.0} for *_, rest in calls_of(pipe, monkeypatch, fps=24.0))


@pytest.mark.parametrize("change", [{"guidance_scale": 1.0}, {"guidance_rescale": 0.7},
                                    {"fps": 24.0}, {"sampler": "ddim"},
                                    {"num_inference_steps": 5}])  # fmt: skip
def test_every_option_changes_the_clip(pipe, change):
    base = pipe("a red ball", generator=seeds(1), **SHORT).frames
    other = pipe("a red ball", generator=seeds(1), **{**SHORT, **change}).frames
    assert not torch.equal(base, other)


def test_sampling_leaves_the_training_mode_as_it_was(pipe):
    pipe.unet.train()
    pipe("a", **SHORT)
    assert pipe.unet.training
    pipe.unet.eval()


def test_an_mp4_plays_with_its_frames_and_rate(pipe, tmp_path):
    out = pipe("a red ball", fps=12.5, generator=seeds(1), **SHORT)
    out.frames[0, 1] = 200
    path = out.save(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 12.5)
    assert [f.shape for f in frames] == [(32, 40, 3)] * 3
    assert abs(frames[1].mean() - 200) < 4


def test_what_does_not_fit_is_refused(pipe):
    with pytest.raises(ValueError, match="344x192"):
        pipe("a", height=30)
    with pytest.raises(ValueError, match="2 generators for 1 prompts"):
        pipe("a", generator=seeds(1, 2))
    with pytest.raises(ValueError, match="choose one of ddim, dpm"):
        pipe("a", sampler="euler")
    with pytest.raises(ValueError, match="Give those it was trained with"):
        VideoFactoryPipeline(pipe.unet, SpaceToDepth(8), pipe.text, pipe.schedule)


def test_under_autocast_the_unet_alone_is(pipe, monkeypatch):
    """As in training: text encoder and codec compute as they are."""
    seen = {}

    def watch(owner, name, key):
        plain = getattr(owner, name)

        def watched(*given, **named):
            seen[key] = torch.is_autocast_enabled("cpu")
            return plain(*given, **named)

        monkeypatch.setattr(owner, name, watched)

    watch(pipe.text, "encode", "text")
    watch(pipe.codec, "decode", "codec")
    watch(pipe.unet, "forward", "unet")
    with torch.autocast("cpu", torch.bfloat16):
        pipe("a red ball", **SHORT)
    assert seen == {"text": False, "codec": False, "unet": True}
