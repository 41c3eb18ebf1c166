"""What benchmarks/learning.py measures with, on clips and data whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gaussian_clips, learning, learning_bars, moving_clips
from model.diffusion import add_noise, noise_schedule, training_target
from training.config import load_config

Change = Callable[[Tensor, Tensor, Tensor], Tensor]
Errors = Callable[[Change | None], tuple[Any, ...]]
MOTION = learning.config_of("motion", False)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_psnr() -> None:
    black = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    assert learning.psnr_db(black, black) == math.inf
    assert learning.psnr_db(black, black + 255) == pytest.approx(0)
    assert learning.psnr_db(black, black + 10) == pytest.approx(20 * math.log10(25.5))


def test_the_best_still_and_the_best_colour() -> None:
    """Two frames 20 apart: each is 10 from their mean. Two columns 40 apart: 20 more."""
    clip = torch.tensor([[90, 130], [110, 150]], dtype=torch.uint8).view(2, 1, 2, 1)
    found = learning.stills(clip.expand(2, 6, 2, 3).contiguous())
    assert found["still_psnr_db"] == pytest.approx(10 * math.log10(255**2 / 100))
    assert found["flat_psnr_db"] == pytest.approx(10 * math.log10(255**2 / (100 + 400)))


@pytest.mark.parametrize("quick", [True, False])
def test_overfit_is_the_tiny_preset_on_a_smaller_picture(quick: bool) -> None:
    config, tiny = learning.config_of("overfit", quick), load_config("tiny", [])
    changed = {key for key, value in config if value != getattr(tiny, key)}
    few = {"width", "height", "max_steps", "num_threads", "device", "schedule", "held_out"}
    assert changed <= few


def test_learning_a_still_by_heart_is_a_miss() -> None:
    known = {"flat_psnr_db": 15.0, "still_psnr_db": 21.0}

    def meets(psnr_db: float, quick: bool) -> bool:
        return learning_bars.verdicts({"overfit": [{"psnr_db": psnr_db, **known}]}, quick)[0][3]

    assert not meets(21.0, False) and meets(24.1, False)
    assert not meets(15.0, True) and meets(18.1, True)


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


@pytest.fixture(scope="module")
def gaussian() -> Errors:
    """Errors per clip of any denoiser made of the optimal one, through the trainer's Objective."""
    torch.set_num_threads(1)
    config = learning.config_of("gaussian", True)
    state, objective = learning.trainer(config, gaussian_clips.Scaled())
    cov = gaussian_clips.covariance(config.num_frames)
    samples = gaussian_clips.gaussian_samples(range(320), torch.linalg.cholesky(cov), config)
    cov = cov + gaussian_clips.ROUNDING * torch.eye(len(cov), dtype=cov.dtype)
    optimal = gaussian_clips.Optimal(cov, objective)

    def errors(change: Change | None) -> tuple[Any, ...]:
        unet = state.unet if change is None else Changed(optimal, change)
        return gaussian_clips.measured(unet, cov, objective, samples)

    return errors


class Changed:
    """A denoiser whose prediction for x at steps is change(another's, x, steps)."""

    def __init__(self, denoiser: gaussian_clips.Optimal, change: Change) -> None:
        self.denoiser, self.change, self.config = denoiser, change, denoiser.config

    def __call__(self, x: Tensor, steps: Tensor, text: Tensor) -> SimpleNamespace:
        found = self.denoiser(x, steps, text).sample
        return SimpleNamespace(sample=self.change(found, x, steps))


def met(errors: tuple[Any, ...], quick: bool = True) -> list[bool]:
    """Of each timestep bin, whether its bar is met."""
    bins = gaussian_clips.bins_of(*errors)
    return [row[3] for row in learning_bars.verdicts({"gaussian": [{"bins": bins}]}, quick)]


def test_the_optimal_denoiser_meets_every_bar(gaussian: Errors) -> None:
    errors = gaussian(lambda found, x, steps: found)
    for each in gaussian_clips.bins_of(*errors):
        assert each["excess"] == pytest.approx(0, abs=1e-9) and abs(each["formula"]) < 4
    assert met(errors) == [True] * 5 and met(errors, False) == [True] * 5


def test_nothing_learned_is_all_that_there_is_to_learn(gaussian: Errors) -> None:
    """The prediction 0, which is all that targets of other clips teach, leaves 1 in every bin."""
    errors = gaussian(lambda found, x, steps: 0 * found)
    for each in gaussian_clips.bins_of(*errors):
        assert each["excess"] == pytest.approx(1, abs=5 * each["standard_error"])
    assert met(errors) == [False] * 5


def test_a_net_before_its_first_step_misses_every_bar(gaussian: Errors) -> None:
    assert met(gaussian(None)) == [False] * 5


@pytest.mark.parametrize(
    "change",
    [
        lambda found, x, steps: found.roll(1, 0),  # what another clip would need
        lambda found, x, steps: found.roll(1, 2),  # another frame
        lambda found, x, steps: -found,
    ],
)
def test_a_denoiser_of_something_else_misses_every_bar(gaussian: Errors, change: Change) -> None:
    assert met(gaussian(change)) == [False] * 5


@pytest.mark.parametrize("blind", range(5))
def test_a_bin_that_is_ignored_is_missed_and_no_other(gaussian: Errors, blind: int) -> None:
    errors = gaussian(
        lambda found, x, steps: found * (steps // 200 != blind)[:, None, None, None, None]
    )
    assert met(errors) == [n != blind for n in range(5)]


@pytest.mark.parametrize("quick", [True, False])
def test_the_bar_is_below_what_mixing_no_frames_leaves(quick: bool) -> None:
    """By the closed form: the optimum of one frame's covariance, as each frame has the same."""
    frames = learning.config_of("gaussian", quick).num_frames
    alpha = noise_schedule("v_prediction").alphas_cumprod.double().sqrt()
    whole, one = (torch.linalg.eigvalsh(gaussian_clips.covariance(n)) for n in (frames, 1))
    best, alone = (gaussian_clips.optimum(each, alpha, "v_prediction") for each in (whole, one))
    variance = alpha**2 + (1 - alpha**2) * whole.mean()
    means = [each.view(5, 200).mean(1) for each in (best, alone, variance)]
    left = (means[1] - means[0]) / (means[2] - means[0])
    assert left.min() > 2 * learning_bars.EXCESS_BAR[quick]
    assert left.min().item() == pytest.approx(0.544 if quick else 0.656, abs=1e-3)


def test_a_loss_below_the_optimum_is_a_miss(gaussian: Errors) -> None:
    """As a leak of the clip into the input, or a wrong weight, would look."""
    error, *rest = gaussian(lambda found, x, steps: found)
    assert met((0.95 * error, *rest)) == [False] * 5


def motion(*shares: float) -> list[dict[str, float]]:
    return [{"share_right": share} for share in shares]


def test_shuffled_captions_that_pass_are_a_miss() -> None:
    found = {"motion": motion(1.0, 1.0, 0.9), "shuffled": motion(1.0, 1.0, 1.0)}
    assert [each[3] for each in learning_bars.verdicts(found, False)] == [True, True, False]


def test_the_interval_over_seeds_must_lie_above_chance() -> None:
    """0.98 +- 4.303 * sd / sqrt(3) is far above 0.5; 1, 1, 0.71 has a mean as high as the bar."""
    low = 0.9033 - 4.303 * 0.1674 / math.sqrt(3)
    assert learning_bars.shares(motion(1.0, 1.0, 0.71))[1] == pytest.approx(low, abs=1e-3)
    found = {"motion": motion(1.0, 1.0, 0.71), "shuffled": motion(0.5, 0.5, 0.5)}
    assert [each[3] for each in learning_bars.verdicts(found, False)] == [True, low > 0.5, True]


def test_held_out_combinations_are_of_what_is_trained_on() -> None:
    held, trained = moving_clips.HELD_OUT, moving_clips.TRAINED
    assert not set(held) & set(trained) and len(held) + len(trained) == 8
    for n, all_of in enumerate((moving_clips.SHAPES, moving_clips.COLORS)):
        assert {each[n] for each in trained} == set(all_of)


@pytest.mark.parametrize("color", moving_clips.COLORS)
def test_the_colour_of_what_moves(color: str) -> None:
    for shape in moving_clips.SHAPES:
        assert moving_clips.color_of(moving_clips.moving(shape, color, 1, MOTION)) == color
    assert moving_clips.color_of(torch.full((3, 16, 24, 3), 110, dtype=torch.uint8)) is None
