"""What benchmarks/learning.py measures with, on clips and data whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks import gaussian_clips, learning, moving_clips
from model.diffusion import add_noise, noise_schedule, training_target

MOTION = learning.config_of("motion", False)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_psnr() -> None:
    black = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    assert learning.psnr_db(black, black) == math.inf
    assert learning.psnr_db(black, black + 255) == pytest.approx(0)
    assert learning.psnr_db(black, black + 10) == pytest.approx(20 * math.log10(25.5))


@pytest.mark.parametrize("shape", moving_clips.SHAPES)
@pytest.mark.parametrize("color", moving_clips.COLORS)
def test_the_speed_of_what_moves(shape: str, color: str) -> None:
    for direction in (-1, 1):
        clip = moving_clips.moving(shape, color, direction, MOTION)
        assert moving_clips.speed_px(clip) == pytest.approx(
            direction * moving_clips.SPEED_PX, abs=1e-6
        )
        assert moving_clips.speed_px(clip.flip(0)) == pytest.approx(
            -direction * moving_clips.SPEED_PX
        )


def test_noise_and_empty_clips_do_not_move() -> None:
    noise = torch.randint(0, 256, (4, 16, 32, 3), generator=torch.Generator().manual_seed(0))
    still = moving_clips.moving("disc", "red", 1, MOTION)[:1].expand(4, -1, -1, -1)
    grey = torch.full((4, 16, 32, 3), 110, dtype=torch.uint8)
    for clip in (noise.to(torch.uint8), still, grey):
        assert abs(moving_clips.speed_px(clip)) < moving_clips.SPEED_PX / 2


def test_the_share_that_goes_the_right_way() -> None:
    clips = torch.stack([moving_clips.moving("disc", "red", d, MOTION) for d in (-1, 1)])
    assert moving_clips.share_right(clips, [-1, 1]) == 1
    assert moving_clips.share_right(clips, [1, -1]) == 0
    assert moving_clips.share_right(clips, [1, 1]) == 0.5


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("step", [5, 400, 950])
def test_the_optimum_is_what_a_linear_regression_reaches(kind: str, step: int) -> None:
    """200,000 draws; the best linear prediction of the target by least squares."""
    config = learning.config_of("gaussian", True)
    schedule = noise_schedule(kind)
    cov = gaussian_clips.covariance(config.num_frames)
    random = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 200_000, len(cov), generator=random, dtype=torch.float64)
    clips, noise = draws[0] @ torch.linalg.cholesky(cov).T, draws[1]
    steps = torch.full((len(clips),), step)
    x, target = (f(schedule, clips, noise, steps) for f in (add_noise, training_target))
    found = torch.linalg.lstsq(x, target).solution
    error = (target - x @ found).square().mean()
    alpha = schedule.alphas_cumprod[[step]].double().sqrt()
    known = gaussian_clips.optimum(torch.linalg.eigvalsh(cov), alpha, kind)
    assert error.item() == pytest.approx(known.item(), rel=5e-3)


def gaussian_errors(gain: float) -> tuple[Tensor, ...]:
    """Errors per clip of the optimal denoiser times a gain, through the trainer's Objective."""
    config = learning.config_of("gaussian", True)
    _, objective = learning.trainer(config, gaussian_clips.Scaled())
    cov = gaussian_clips.covariance(config.num_frames)
    samples = gaussian_clips.gaussian_samples(range(160), torch.linalg.cholesky(cov), config)
    cov = cov + gaussian_clips.ROUNDING * torch.eye(len(cov), dtype=cov.dtype)
    return gaussian_clips.measured(
        Scaled(gaussian_clips.Optimal(cov, objective), gain), cov, objective, samples
    )


class Scaled:
    """A denoiser whose prediction is `gain` times another's."""

    def __init__(self, denoiser: gaussian_clips.Optimal, gain: float) -> None:
        self.denoiser, self.gain, self.config = denoiser, gain, denoiser.config

    def __call__(self, *inputs: Tensor) -> object:
        out = self.denoiser(*inputs)
        out.sample = out.sample * self.gain
        return out


def test_the_optimal_denoiser_has_no_excess_and_a_worse_one_has() -> None:
    for each in gaussian_clips.bins_of(*gaussian_errors(1.0)):
        assert each["excess"] == pytest.approx(0, abs=1e-9) and abs(each["formula"]) < 4
    worse = gaussian_clips.bins_of(*gaussian_errors(0.5))
    assert max(each["excess"] for each in worse) > 0.02
    assert all(each["excess"] > -3 * each["standard_error"] for each in worse)


def test_a_loss_below_the_optimum_is_a_miss() -> None:
    """As a leak of the clip into the input, or a wrong weight, would look."""
    error, *rest = gaussian_errors(1.0)
    leaked = {"gaussian": {"bins": gaussian_clips.bins_of(0.95 * error, *rest)}}
    assert not any(met for *_, met in learning.verdicts(leaked, True))
    honest = {"gaussian": {"bins": gaussian_clips.bins_of(error, *rest)}}
    assert all(met for *_, met in learning.verdicts(honest, True))


def test_shuffled_captions_that_pass_are_a_miss() -> None:
    found = {"motion": {"share_right": 1.0}, "shuffled": {"share_right": 1.0}}
    assert [met for *_, met in learning.verdicts(found, True)] == [True, False]
