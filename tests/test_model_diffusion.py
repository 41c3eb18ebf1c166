"""Schedules, targets, weights, guidance and samplers, against closed forms.

The known answer is Gaussian data N(MEAN, SPREAD^2): its best prediction and its probability flow
are both exact.
"""

import pytest
import torch
from diffusers import DDPMScheduler

from model.diffusion import (
    SAMPLERS,
    add_noise,
    diffusion_loss,
    drop_captions,
    guide,
    min_snr_weight,
    noise_schedule,
    signal_to_noise,
    trailing_steps,
    training_target,
)

MEAN, SPREAD = 1.5, 0.4
KINDS = [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]


def best_prediction(schedule, x, steps):
    """The exact conditional mean of the target given x_t for the Gaussian data."""
    squared = schedule.alphas_cumprod[steps].to(x.dtype)[:, None]
    alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
    variance = alpha**2 * SPREAD**2 + sigma**2
    clip = MEAN + alpha * SPREAD**2 / variance * (x - alpha * MEAN)
    noise = sigma / variance * (x - alpha * MEAN)
    return noise if schedule.config.prediction_type == "epsilon" else alpha * noise - sigma * clip


def flowed(schedule, noise, first_step):
    """Where the probability flow takes noise at first_step: quantiles stay quantiles."""
    squared = schedule.alphas_cumprod[first_step].double()
    spread = (squared * SPREAD**2 + 1 - squared).sqrt()
    return MEAN + SPREAD * (noise - squared.sqrt() * MEAN) / spread


@pytest.mark.parametrize(("kind", "zero"), KINDS)
@pytest.mark.parametrize(
    ("sampler", "count", "bound"),
    [
        ("ddim", 30, 0.15), ("ddim", 64, 0.08), ("ddim", 200, 0.03), ("ddim", 1000, 0.007),
        ("dpm", 25, 0.12), ("dpm", 50, 0.06), ("dpm", 200, 0.015), ("dpm", 1000, 0.003),
    ],
)  # fmt: skip
def test_samplers_find_the_gaussian(kind, zero, sampler, count, bound):
    schedule = noise_schedule(kind, zero_terminal_snr=zero)
    noise = torch.linspace(-2.5, 2.5, 9, dtype=torch.float64)[:, None]
    out = SAMPLERS[sampler](lambda x, t: best_prediction(schedule, x, t), noise, schedule, count)
    assert (out - flowed(schedule, noise, 999)).abs().max() < bound


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_visit_trailing_steps_from_the_last_one(sampler):
    schedule, seen = noise_schedule("v_prediction", zero_terminal_snr=True), []

    def denoise(x, t):
        seen.append(t.tolist())
        return torch.zeros_like(x)

    out = SAMPLERS[sampler](denoise, torch.randn(2, 3), schedule, 7)
    assert [a for a, b in seen if a == b] == trailing_steps(schedule, 7)
    assert seen[0] == [999, 999]
    assert out.shape == (2, 3)


def test_trailing_steps_and_their_bounds():
    schedule = noise_schedule()
    assert trailing_steps(schedule, 4) == [999, 749, 499, 249]
    assert trailing_steps(schedule, 1000) == list(range(999, -1, -1))
    for count in (0, 1001):
        with pytest.raises(ValueError, match="give 1 to 1000"):
            trailing_steps(schedule, count)


@pytest.mark.parametrize(("kind", "zero"), KINDS)
@pytest.mark.parametrize("step", [0, 300, 999])
def test_loss_of_the_best_prediction_is_the_analytic_optimum(kind, zero, step):
    schedule = noise_schedule(kind, zero_terminal_snr=zero)
    generator = torch.Generator().manual_seed(0)
    clips = MEAN + SPREAD * torch.randn(200_000, 1, dtype=torch.float64, generator=generator)
    noise = torch.randn(clips.shape, dtype=torch.float64, generator=generator)
    steps = torch.full((len(clips),), step)
    x = add_noise(schedule, clips, noise, steps)
    target = training_target(schedule, clips, noise, steps)
    loss = (best_prediction(schedule, x, steps) - target).square().mean().item()
    squared = schedule.alphas_cumprod[step].item()
    optimum = SPREAD**2 / (squared * SPREAD**2 + 1 - squared)
    if kind == "epsilon":
        optimum *= squared
    assert loss == pytest.approx(optimum, rel=0.02)


@pytest.mark.parametrize("zero", [False, True])
def test_noise_and_velocity_are_those_of_diffusers_in_fp32(zero):
    schedule = noise_schedule("v_prediction", zero_terminal_snr=zero)
    theirs = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=zero,
    )
    torch.manual_seed(0)
    clips, noise = torch.randn(2, 5, 4, 2, 3, 3)
    steps = torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(
        add_noise(schedule, clips, noise, steps), theirs.add_noise(clips, noise, steps)
    )
    torch.testing.assert_close(
        training_target(schedule, clips, noise, steps), theirs.get_velocity(clips, noise, steps)
    )


def test_zero_terminal_snr_is_zero_where_noise_is_added():
    schedule = noise_schedule("v_prediction", zero_terminal_snr=True)
    clips, noise = torch.full((1, 4, 2, 3, 3), 1e4), torch.randn(1, 4, 2, 3, 3)
    last = torch.tensor([999])
    assert torch.equal(add_noise(schedule, clips, noise, last), noise)
    assert torch.equal(training_target(schedule, clips, noise, last), -clips)
    assert signal_to_noise(schedule, last) == 0
    # Without it a clip shines through: about 7% of it at the last step.
    plain = noise_schedule("v_prediction")
    left = (add_noise(plain, clips, noise, last) - noise).mean() / 1e4
    assert 0.06 < left < 0.08
    # The rest of the table is the same at its start and falls all the way.
    assert schedule.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0].item(), rel=1e-5)
    assert (schedule.alphas_cumprod.diff() < 0).all()


def test_noise_of_bf16_latents_is_added_in_fp32():
    schedule = noise_schedule()
    clips = torch.ones(2, 1, 1, 1, 1, dtype=torch.bfloat16)
    x = add_noise(schedule, clips, torch.zeros_like(clips), torch.tensor([100, 101]))
    assert x.dtype == torch.float32
    assert x[0] > x[1]  # bf16 has one value for both


def test_snr_table():
    schedule = noise_schedule()
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    squared = (1 - beta).cumprod(0)
    snr = signal_to_noise(schedule, torch.arange(1000)).double()
    torch.testing.assert_close(snr, squared / (1 - squared), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weight_is_finite_and_the_papers(kind):
    snr = torch.tensor([0.0, 1e-30, 0.5, 5.0, 20.0, float("inf")], dtype=torch.float64)
    weight = min_snr_weight(snr, kind, gamma=5.0)
    assert torch.isfinite(weight).all()
    expected = {
        "epsilon": [1, 1, 1, 1, 0.25, 0],
        "v_prediction": [0, 1e-30, 0.5 / 1.5, 5 / 6, 5 / 21, 0],
    }[kind]
    torch.testing.assert_close(weight, torch.tensor(expected, dtype=torch.float64))


def test_min_snr_weighs_both_predictions_by_the_same_error_of_the_clip():
    """|eps error|^2 = SNR |x_0 error|^2 and |v error|^2 = (SNR + 1) |x_0 error|^2."""
    snr = signal_to_noise(noise_schedule(), torch.arange(1000)).double()
    for_epsilon = min_snr_weight(snr, "epsilon") * snr
    for_v = min_snr_weight(snr, "v_prediction") * (snr + 1)
    torch.testing.assert_close(for_epsilon, snr.clamp(max=5))
    torch.testing.assert_close(for_v, snr.clamp(max=5))


def test_loss_per_clip():
    prediction = torch.zeros(2, 1, 1, 1, 2, dtype=torch.bfloat16)
    target = torch.tensor([[1.0, 3.0], [2.0, 2.0]]).reshape(2, 1, 1, 1, 2)
    assert diffusion_loss(prediction, target).tolist() == [5.0, 4.0]
    assert diffusion_loss(prediction, target, torch.tensor([1.0, 0.5])).tolist() == [5.0, 2.0]


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.float32),
                                             (torch.float64, torch.float64)])  # fmt: skip
def test_the_loss_is_fp32_or_wider(dtype, kept):
    target = torch.zeros(1, 2, dtype=dtype)
    loss = diffusion_loss(target + 1 + 2**-40, target, torch.ones(1))
    assert loss.dtype == kept
    assert (loss == 1).item() == (dtype is torch.bfloat16)


def test_dropped_captions_become_the_empty_prompt():
    text, empty = torch.randn(3, 7, 5), torch.randn(1, 7, 5)
    out = drop_captions(text, empty, torch.tensor([True, False, True]))
    assert torch.equal(out[0], empty[0])
    assert torch.equal(out[1], text[1])
    assert torch.equal(out[2], empty[0])


def test_guidance_and_its_rescale():
    torch.manual_seed(0)
    c, u = torch.randn(2, 3, 4, 5, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(guide(c, u, 1.0), c)
    torch.testing.assert_close(guide(c, u, 0.0), u)
    torch.testing.assert_close(guide(c, u, 7.5), u + 7.5 * (c - u))
    spread = guide(c, u, 7.5, rescale=1.0).flatten(1).std(1)
    torch.testing.assert_close(spread, c.flatten(1).std(1))
    half = guide(c, u, 7.5, rescale=0.5)
    torch.testing.assert_close(half, (guide(c, u, 7.5) + guide(c, u, 7.5, rescale=1.0)) / 2)


def test_epsilon_with_zero_terminal_snr_is_refused():
    with pytest.raises(ValueError, match="needs prediction_type=v_prediction"):
        noise_schedule("epsilon", zero_terminal_snr=True)
    with pytest.raises(ValueError, match="choose one of epsilon, v_prediction"):
        noise_schedule("sample")


def test_a_source_gives_its_betas_and_its_prediction():
    schedule = noise_schedule(source={"prediction_type": "v_prediction", "beta_end": 0.02})
    assert schedule.config.prediction_type == "v_prediction"
    assert schedule.config.beta_end == 0.02
    assert schedule.config.beta_start == 0.00085
