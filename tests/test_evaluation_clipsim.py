"""CLIPSIM on constructed vectors, and OpenAI's activation held to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import open_clip
import pytest
import torch

from curation.settings import ConfigError
from training.evaluation import clipsim, temporal
from training.evaluation.fvd import mean_interval


def write_model(folder: Path, name: str, quick_gelu: bool) -> str:
    """A CLIP of a moment that open_clip knows by name."""
    config = {
        "embed_dim": 8,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8,
                       "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1,
                     "layers": 1},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    return name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("clip"), "vf-tiny-quickgelu", True)


def test_the_mean_of_raw_cosines() -> None:
    """Frames at 0, 60 and 90 degrees from the text, of any length: (1 + 1/2 + 0) / 3."""
    text = torch.tensor([2.0, 0.0])
    angles = torch.tensor([0.0, math.pi / 3, math.pi / 2])
    frames = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [0.1]])
    assert clipsim.similarity(frames, text) == pytest.approx(0.5)
    assert clipsim.similarity(-frames, text) == pytest.approx(-0.5)  # not clamped at 0


def test_a_model_without_quickgelu_is_refused(tmp_path: Path, tiny: str) -> None:
    plain = write_model(tmp_path, "vf-tiny-gelu", False)
    with pytest.raises(ConfigError, match="QuickGELU"):
        clipsim.load_clip(None, plain)
    assert clipsim.load_clip(None, tiny).label == "untrained-features"


def test_weights_of_a_file_are_the_ones_used(tmp_path: Path, tiny: str) -> None:
    torch.manual_seed(5)
    other = open_clip.create_model(tiny, pretrained=None).eval()
    torch.save(other.state_dict(), tmp_path / "clip.pt")
    loaded = clipsim.load_clip(str(tmp_path / "clip.pt"), tiny)
    assert loaded.label == tiny and len(loaded.sha256) == 64
    tokens = open_clip.get_tokenizer(tiny)(["a red ball"])
    with torch.no_grad():
        expected = other.encode_text(tokens, normalize=True)
    torch.testing.assert_close(loaded.of_texts(["a red ball"]), expected)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(1))
    with pytest.raises(ConfigError, match="--clip nowhere"):
        clipsim.load_clip("nowhere", tiny)


def test_crop_hides_the_sides_and_squash_does_not(tiny: str) -> None:
    middle = torch.full((2, 16, 48, 3), 90, dtype=torch.uint8)
    sides = middle.clone()
    sides[:, :, :12] = sides[:, :, 36:] = 200  # beyond what antialiasing reaches
    crop, squash = (clipsim.load_clip(None, tiny, frames) for frames in ("crop", "squash"))
    torch.testing.assert_close(crop.of_frames(middle), crop.of_frames(sides))
    assert (squash.of_frames(middle) - squash.of_frames(sides)).abs().max() > 1e-3


def test_the_interval_of_a_mean() -> None:
    """Of 400 normal numbers: 1.96 standard errors to each side."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double().numpy()
    low, high = mean_interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def grey(*levels: int) -> torch.Tensor:
    """A clip whose frames are each of one grey."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 6, 3)


def test_flicker_and_frame_difference() -> None:
    fade, flickering = grey(10, 20, 30, 40), grey(10, 20, 10, 20)
    assert temporal.frame_difference(fade) == pytest.approx(10, abs=1e-4)
    assert temporal.frame_difference(flickering) == pytest.approx(10, abs=1e-4)
    assert temporal.flicker(fade) == pytest.approx(0, abs=1e-4)
    assert temporal.flicker(flickering) == pytest.approx(10, abs=1e-4)
    assert temporal.frame_difference(grey(7)) == 0 and math.isnan(temporal.flicker(grey(7, 9)))


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-2, 1), (0, 0)])
def test_the_slope_of_motion(dx: int, dy: int) -> None:
    clip = torch.full((4, 32, 48, 3), 110, dtype=torch.uint8)
    for t in range(4):
        clip[t, 12 + dy * t : 18 + dy * t, 20 + dx * t : 26 + dx * t] = 240
    assert temporal.motion_slope(clip) == pytest.approx((dx, dy), abs=1e-6)
    clip[2] = 110  # a frame that shows nothing
    assert temporal.motion_slope(clip) == (0, 0)
