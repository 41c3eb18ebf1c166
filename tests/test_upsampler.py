"""The 2x upsampler: equal to its base at the start, told its noise level, trained and sampled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_media import TINY, small_dataset

from curation.settings import ConfigError
from model import SpaceTimeUNet, VideoFactoryPipeline
from model.diffusion import add_noise, noise_schedule
from model.latents import SpaceToDepth, StableDiffusionLatents, to_pixels
from model.texts import TinyText
from model.upsampling import as_upsampler, halved, low_res_input
from training.checkpoints.folders import latest
from training.config import load_config
from training.learning.losses import Objective
from training.train import train as vf_train

# Its own sides are twice those of a base run of TINY.
LARGE = ["height=32", "width=32", "batch_size=1", "num_samples=2", "held_out=0.5"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    train("base", data, run)
    return run


def train(stage: str, data: Path, run: Path, *overrides: str, init: Path | None = None) -> None:
    start = init and str(init)
    vf_train("tiny", [str(data)], run, start, [*TINY, *overrides], stage=stage)


def losses(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


# -- the model


def tiny(**changes: Any) -> SpaceTimeUNet:
    torch.manual_seed(0)
    return SpaceTimeUNet.from_preset("tiny", block_out_channels=(32, 32), **changes).eval()


def test_an_upsampler_begins_equal_to_its_base_whatever_it_sees() -> None:
    base = tiny()
    upsampler, new, zero = as_upsampler(base)
    upsampler.eval()
    assert new == ["level_embedding.linear_1.weight", "level_embedding.linear_1.bias"]
    assert zero == ["level_embedding.linear_2.weight", "level_embedding.linear_2.bias"]
    x, low_res = torch.randn(2, 2, 48, 2, 8, 6, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, 3, 64)
    with torch.no_grad():
        told = {"low_res": low_res, "noise_level": torch.tensor([0, 300])}
        torch.testing.assert_close(
            upsampler(x, 500, text, **told).sample, base(x, 500, text).sample
        )
        # and no longer once both have learned something
        torch.nn.init.normal_(upsampler.conv_in.weight[:, 48:], std=0.1)
        seen = upsampler(x, 500, text, **told).sample
        other = upsampler(x, 500, text, low_res=low_res.flip(-1), noise_level=0).sample
        assert (seen - other).abs().max() > 1e-2
        before = upsampler(x, 500, text, low_res=low_res, noise_level=0).sample
        torch.nn.init.normal_(upsampler.level_embedding.linear_2.weight, std=0.3)
        levels = [upsampler(x, 500, text, low_res=low_res, noise_level=n).sample for n in (0, 300)]
    assert (levels[0] - before).abs().max() > 1e-3
    assert (levels[0] - levels[1]).abs().max() > 1e-3


def test_what_an_upsampler_sees_is_asked_for_by_name() -> None:
    base, (upsampler, *_) = tiny(), as_upsampler(tiny())
    x, text = torch.zeros(1, 48, 2, 8, 6), torch.zeros(1, 3, 64)
    with pytest.raises(ValueError, match="no upsampler: leave out low_res"):
        base(x, 1, text, low_res=x, noise_level=0)
    with pytest.raises(ValueError, match=r"give low_res \[1, 48, 2, 8, 6\], not None"):
        upsampler(x, 1, text)
    with pytest.raises(ValueError, match=r"not \[1, 48, 2, 4, 3\]"):
        upsampler(x, 1, text, low_res=x[..., :4, :3], noise_level=0)
    with pytest.raises(ValueError, match="and its noise_level"):
        upsampler(x, 1, text, low_res=x)


def test_pixels_are_halved_by_means_and_enlarged_between_pixels() -> None:
    pixels = torch.rand(2, 3, 2, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small = halved(pixels)
    four = pixels[..., ::2, ::2] + pixels[..., 1::2, ::2]
    four = four + pixels[..., ::2, 1::2] + pixels[..., 1::2, 1::2]
    torch.testing.assert_close(small, four / 4)
    codec = SpaceToDepth()
    made = codec.decode(codec.enlarge(codec.encode(small)))
    expected = [F.interpolate(small[:, :, t], scale_factor=2, mode="bilinear") for t in range(2)]
    torch.testing.assert_close(made, torch.stack(expected, 2))
    latents = torch.arange(2 * 4 * 1 * 2 * 3.0).reshape(2, 4, 1, 2, 3)
    twice = StableDiffusionLatents("never read").enlarge(latents)
    assert torch.equal(twice, latents.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_the_noise_of_a_level_is_put_on_before_the_clip_is_enlarged() -> None:
    schedule, codec = noise_schedule("v_prediction"), SpaceToDepth()
    low_res, noise = torch.randn(2, 2, 48, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0, 350])
    seen = low_res_input(codec, schedule, low_res, noise, levels)
    alpha = schedule.alphas_cumprod[levels].sqrt().view(2, 1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    torch.testing.assert_close(seen, codec.enlarge(alpha * low_res + sigma * noise))
    assert torch.equal(seen, codec.enlarge(add_noise(schedule, low_res, noise, levels)))


def test_a_pipeline_doubles_what_another_made() -> None:
    schedule, short = noise_schedule("v_prediction"), {"num_inference_steps": 2, "progress": False}
    pipes = [VideoFactoryPipeline(unet, SpaceToDepth(), TinyText(), schedule)
             for unet in (tiny(), as_upsampler(tiny())[0])]  # fmt: skip
    torch.nn.init.normal_(pipes[1].unet.conv_in.weight[:, 48:], std=0.1)
    generator = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    small = pipes[0]("a ball", num_frames=3, height=24, width=32, generator=generator(), **short)
    assert small.latents.shape == (1, 48, 3, 6, 8)
    told: dict[str, Any] = {"low_res": small.latents, **short}
    large = pipes[1]("a ball", generator=generator(), **told)
    assert large.frames.shape == (1, 3, 48, 64, 3)
    again = pipes[1]("a ball", generator=generator(), **told)
    assert torch.equal(large.frames, again.frames)
    noisy = pipes[1]("a ball", generator=generator(), noise_level=400, **told)
    assert not torch.equal(large.frames, noisy.frames)
    other = pipes[1]("a ball", generator=generator(), **{**told, "low_res": small.latents.flip(-1)})
    assert not torch.equal(large.frames, other.frames)
    with pytest.raises(ValueError, match="this model is an upsampler: give low_res"):
        pipes[1]("a ball", **short)
    with pytest.raises(ValueError, match="no upsampler: leave out low_res"):
        pipes[0]("a ball", **told)
    with pytest.raises(ValueError, match="one clip for each prompt"):
        pipes[1](["a ball", "a cube"], **told)
    with pytest.raises(ValueError, match="noise_level=1000"):
        pipes[1]("a ball", noise_level=1000, **told)


# -- training


def test_an_upsampler_is_trained_from_its_base_and_resumes_exactly(
    data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("upsampler", data, tmp_path / "whole", *LARGE, init=base)
    told = capsys.readouterr().out
    assert "740 tensors copied, 2 tensors new, 2 tensors zero" in told
    assert "2 samples in" in told and "held-out loss" in told
    train("upsampler", data, tmp_path / "parts", *LARGE, "max_steps=2", init=base)
    train("upsampler", data, tmp_path / "parts", *LARGE, init=base)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 4
    checkpoint = latest(tmp_path / "whole")
    assert checkpoint
    unet = json.loads((checkpoint / "unet" / "config.json").read_text())
    assert unet["low_res_channels"] == 48
    from PIL import Image

    sheet = Image.open(tmp_path / "whole" / "samples" / "step-00000004" / "sheet.png")
    # two clips of two frames, three rows each: given, made, true
    assert sheet.size == (2 * 34 + 2, 6 * 34 + 2)
    rows = [np.asarray(sheet)[2 + 34 * n : 34 * (n + 1), 2:34].std((0, 1)).max() for n in range(6)]
    # clips are of one grey each; what is made after four steps is noise
    assert max(rows[0], rows[2], rows[3], rows[5]) < 3 < 6 < min(rows[1], rows[4])


def test_what_is_lost_depends_on_the_low_resolution_and_its_noise(data: Path) -> None:
    from dataclasses import replace

    from training.data.batches import Sample
    from training.data.orders import draw
    from training.learning.starts import make_codec, make_start, make_text, schedule_of

    config = load_config("tiny", [*TINY, *LARGE], "upsampler")
    start, device = make_start(config, None), torch.device("cpu")
    assert start.unet.config["low_res_channels"] == 48
    codec, text = make_codec(config, device), make_text(config, device)
    objective = Objective(config, schedule_of(start.noise), codec, text, device, torch.float32)
    raw = torch.randint(0, 255, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    sample = Sample("a", "c", 0, "a ball", raw.to(torch.uint8), draw(0, "a", 0, "c"), 8)
    small = objective.encoded(sample)
    assert small.low_res is not None and small.low_res.shape == (48, 2, 4, 4)
    assert sample.raw is not None
    pixels = to_pixels(sample.raw[None])
    torch.testing.assert_close(small.low_res, codec.encode(halved(pixels))[0])
    torch.nn.init.normal_(start.unet.conv_in.weight[:, 48:], std=0.1)
    torch.nn.init.normal_(start.unet.level_embedding.linear_2.weight, std=0.3)
    start.unet.eval()

    def loss(of: Sample) -> float:
        with torch.no_grad():
            return float(objective.losses(start.unet, [of]))

    assert loss(sample) == pytest.approx(loss(small), rel=1e-6)
    assert loss(replace(small, low_res=small.low_res.flip(-1))) != pytest.approx(loss(small))
    for drawn in ({"level": 0.999}, {"level_seed": 1}):
        assert loss(replace(small, draws=replace(sample.draws, **drawn))) != pytest.approx(
            loss(small)
        )
    assert loss(replace(small, draws=replace(sample.draws, level=sample.draws.level))) == loss(
        small
    )
    told = objective.low_res_of([replace(sample, draws=replace(sample.draws, level=1 - 2**-48))])
    assert told["noise_level"].tolist() == [config.max_noise_level]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["precomputed=true"], "needs raw clips, of two sizes: leave out precomputed"),
        (["trainable=swap"], "leave out trainable"),
        (["protocol_every=5"], "not with stage=upsampler"),
        (["height=36"], "give a multiple of 8, such as 32"),
        (["unet.low_res_channels=48"], "use --stage upsampler"),
        (["stage=base"], "stage is no key of --set"),
    ],
)
def test_what_an_upsampler_cannot_be_is_told(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config("tiny", overrides, "upsampler")


# -- sampling


def refused(capsys: pytest.CaptureFixture[str], call: Callable[[], None]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        call()
    assert error.value.code == 2
    return capsys.readouterr().err


def test_a_sample_goes_through_upsampler_and_super_resolution(
    data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    from training.export import export
    from training.sample import sample

    train("upsampler", data, tmp_path / "larger", *LARGE, "num_samples=0", init=base)
    told: dict[str, Any] = {"prompt": "a ball", "seed": 1}
    out = tmp_path / "out.mp4"
    sample(base, output=out, upsampler=tmp_path / "larger", upscale="bicubic", size="64x62", **told)
    printed = capsys.readouterr().out
    assert "2 frames of 32x32 from 16x16 by larger" in printed.replace("\n", " ")
    assert "enlarged to 64x62 by bicubic" in printed.replace("\n", " ")
    with av.open(str(out)) as video:
        frames = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
    assert [f.shape for f in frames] == [(62, 64, 3)] * 2
    larger = tmp_path / "larger"
    before = out.read_bytes()
    export(larger, tmp_path / "exported")
    assert "use it: vf-sample BASE --upsampler" in capsys.readouterr().out
    sample(base, output=out, upsampler=tmp_path / "exported", upscale="bicubic", size="64x62",
           **told)  # fmt: skip
    assert out.read_bytes() == before
    for more in ({"upsampler_steps": 1}, {"noise_level": 300}):
        sample(base, output=out, upsampler=larger, upscale="bicubic", size="64x62", **told, **more)
        assert out.read_bytes() != before
    assert "is an upsampler: give it as --upsampler" in refused(
        capsys, lambda: sample(larger, output=out, **told)
    )
    assert "is a base run: give the --output of a vf-train --stage upsampler" in refused(
        capsys, lambda: sample(base, output=out, upsampler=base, **told)
    )
    call = lambda: train("base", data, tmp_path / "x", init=larger)  # noqa: E731
    assert "is an upsampler: give a base run" in refused(capsys, call)
