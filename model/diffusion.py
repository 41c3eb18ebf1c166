"""Diffusion over latents: schedule, targets, loss weights, guidance and samplers.

A schedule is a diffusers DDPMScheduler, used for its tables: alphas_cumprod[t] = alpha_t^2, and
sigma_t^2 = 1 - alpha_t^2. x_t = alpha_t x_0 + sigma_t noise. Shapes: B clips, ... the rest.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction")
# Stable Diffusion's and ModelScope T2V's own schedule.
STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t, t of shape [B]) -> the model's prediction


def noise_schedule(
    prediction_type: str | None = None,
    *,
    zero_terminal_snr: bool = False,
    source: Mapping[str, Any] | None = None,
) -> DDPMScheduler:
    """The tables of a schedule; by default Stable Diffusion's 1000 steps.

    prediction_type: epsilon or v_prediction; None takes the source's, else epsilon.
    zero_terminal_snr: rescale so that nothing of the clip is left at the last step
        (arXiv 2305.08891, algorithm 1). Refused with epsilon: at that step the input is the
        noise, so predicting it teaches nothing and x_0 cannot be found from it.
    source: a scheduler config to take the betas from, such as `StartReport.scheduler_config`.

    Raises ValueError for an unknown prediction type and for epsilon with zero terminal SNR.
    """
    source = source or {}
    prediction_type = prediction_type or source.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTIONS:
        raise ValueError(
            f"prediction_type={prediction_type!r}: choose one of {', '.join(PREDICTIONS)}."
        )
    if zero_terminal_snr and prediction_type == "epsilon":
        raise ValueError(
            "zero_terminal_snr needs prediction_type=v_prediction: at the last step x is pure "
            "noise, and epsilon says nothing about the clip. Change one of the two."
        )
    tables = {key: source.get(key, value) for key, value in STABLE_DIFFUSION.items()}
    schedule = DDPMScheduler(
        **tables,
        trained_betas=source.get("trained_betas"),
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    assert not zero_terminal_snr or schedule.alphas_cumprod[-1] == 0
    return schedule


def alpha_sigma(schedule: DDPMScheduler, steps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t of steps [B], shaped to broadcast over `like`, in fp32 or wider."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    squared = schedule.alphas_cumprod.to(like.device)[steps].to(dtype)
    squared = squared.reshape(-1, *[1] * (like.ndim - 1))
    return squared.sqrt(), (1 - squared).sqrt()


def add_noise(schedule: DDPMScheduler, clips: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """x_t [B, ...] of clips and noise [B, ...] at steps [B]; fp32 even for bf16 latents.

    diffusers does this in the dtype of the latents, and bf16 cannot tell neighbouring steps of
    the schedule apart.
    """
    alpha, sigma = alpha_sigma(schedule, steps, clips)
    return alpha * clips + sigma * noise


def training_target(schedule: DDPMScheduler, clips: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """What the model has to predict: the noise, or v = alpha_t noise - sigma_t x_0.

    v as in arXiv 2202.00512, appendix D.
    """
    if schedule.config["prediction_type"] == "epsilon":
        return noise
    alpha, sigma = alpha_sigma(schedule, steps, clips)
    return alpha * noise - sigma * clips


def signal_to_noise(schedule: DDPMScheduler, steps: Tensor) -> Tensor:
    """SNR alpha_t^2 / sigma_t^2 of steps [B]: 0 at the last step of a zero-terminal-SNR one."""
    squared = schedule.alphas_cumprod.to(steps.device)[steps]
    return squared / (1 - squared)


def min_snr_weight(snr: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
    """Weight of the squared error at each SNR [B], finite for every SNR from 0 to infinity.

    min(SNR, gamma) in terms of the error of x_0, so min(SNR, gamma)/SNR for epsilon and
    min(SNR, gamma)/(SNR + 1) for v (arXiv 2303.09556, whose gamma is 5). With zero terminal SNR
    the weight of v at the last step is therefore 0: that step, where sampling starts, is then
    not trained. Use one of the two.
    """
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)  # at SNR 0 this is 1, where min(SNR, gamma)/SNR is 0/0
    return snr.clamp(max=gamma) / (snr + 1)


def diffusion_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared error of each clip [B], in fp32 or wider: mean over the rest, times weight [B]."""
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    error = (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(1)
    return error if weight is None else weight.to(error) * error


def drop_captions(text: Tensor, empty: Tensor, dropped: Tensor) -> Tensor:
    """Text states [B, L, D] with those of the empty prompt where dropped [B] is True.

    empty: [1, L, D] as the text encoder gives for "", never zeros: guidance will subtract what
    the model says to exactly these states.
    """
    return torch.where(dropped.to(text.device)[:, None, None], empty.to(text), text)


def guide(conditional: Tensor, unconditional: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance u + scale (c - u) (arXiv 2207.12598); scale 1 is c alone.

    rescale in [0, 1] moves the result's standard deviation per clip towards that of c
    (arXiv 2305.08891, equations 15-16, which use 0.7 with zero terminal SNR).
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return guided
    rest = tuple(range(1, guided.ndim))
    factor = conditional.std(rest, keepdim=True) / guided.std(rest, keepdim=True)
    return guided * (rescale * factor + 1 - rescale)


def trailing_steps(schedule: DDPMScheduler, count: int) -> list[int]:
    """`count` timesteps from the very last one down (arXiv 2305.08891, table 2, trailing)."""
    total = int(schedule.config["num_train_timesteps"])
    if not 1 <= count <= total:
        raise ValueError(f"{count} sampling steps: give 1 to {total}.")
    return [round(total - n * total / count) - 1 for n in range(count)]


def predicted_clip_and_noise(
    schedule: DDPMScheduler, prediction: Tensor, x: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """x_0 and noise that a prediction at x_t implies, of either type."""
    alpha, sigma = alpha_sigma(schedule, steps, x)
    if schedule.config["prediction_type"] == "epsilon":
        return (x - sigma * prediction) / alpha, prediction
    return alpha * x - sigma * prediction, sigma * x + alpha * prediction


@torch.no_grad()
def sample_ddim(
    denoise: Denoise,
    noise: Tensor,
    schedule: DDPMScheduler,
    count: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """Deterministic DDIM (arXiv 2010.02502, equation 12, eta 0) from noise [B, ...] to x_0.

    Ours rather than diffusers': that one steps by 1000 // count, which misses the next of the
    trailing timesteps unless count divides 1000.
    """
    x, steps = noise, trailing_steps(schedule, count)
    following = dict(pairwise(steps))
    for t in progress(steps):
        now = torch.full((len(x),), t, device=x.device)
        clip, eps = predicted_clip_and_noise(schedule, denoise(x, now).to(x.dtype), x, now)
        if t not in following:
            return clip
        x = add_noise(schedule, clip, eps, torch.full_like(now, following[t]))
    raise AssertionError("there is at least one step")


@torch.no_grad()
def sample_dpm(
    denoise: Denoise,
    noise: Tensor,
    schedule: DDPMScheduler,
    count: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095), diffusers' own, from noise [B, ...] to x_0."""
    kept = (*STABLE_DIFFUSION, "trained_betas", "prediction_type", "rescale_betas_zero_snr")
    solver = DPMSolverMultistepScheduler(
        **{key: schedule.config[key] for key in kept},
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    trailing_steps(schedule, count)  # for its error
    solver.set_timesteps(count, device=noise.device)
    x = noise
    for t in progress(solver.timesteps.tolist()):
        now = torch.full((len(x),), t, device=x.device)
        x = solver.step(denoise(x, now).to(x.dtype), t, x, return_dict=False)[0]
    return x


Sampler = Literal["ddim", "dpm"]
SAMPLERS = {"ddim": sample_ddim, "dpm": sample_dpm}
