"""`train_step`, one optimiser step as a function, and the state that it changes."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curation.settings import RunError
from model import SpaceTimeUNet
from model.unet import PARTS, part_of
from training.checkpoints import post_hoc, saving
from training.checkpoints.folders import Ema
from training.checkpoints.post_hoc import PowerAverages
from training.checkpoints.savers import Saver
from training.config import Config
from training.data.batches import BadRows, Sample
from training.data.orders import digest
from training.learning.losses import Objective, micro_batches
from training.parallel import ALONE, Team, accumulating, whole, wrap


class DivergedError(RunError):
    """The loss or the gradient is no longer a number."""


@dataclass
class State:
    """What a step changes and a checkpoint holds. `model` is the U-Net as this team calls it."""

    unet: SpaceTimeUNet
    optimizer: torch.optim.Optimizer
    ema: Ema
    model: Any
    team: Team
    saver: Saver
    powers: PowerAverages | None = None  # with post_hoc_ema
    step: int = 0
    num_skipped: int = 0  # steps that changed nothing, as their loss was no number
    part_norms: dict[str, float] = field(default_factory=dict)  # of the last step's gradient
    bad: BadRows = field(default_factory=BadRows)

    def save(self, run: Path, card: dict[str, Any], config: Config) -> None:
        """Begin to write a checkpoint; `saver.wait()` returns when it is there."""
        started = time.monotonic()
        self.saver.wait()
        self.saver.team = self.saver.team or self.team.beside()
        if self.team.any((run / "checkpoints" / f"step-{self.step:08d}").exists()):
            return
        bad = dict(self.bad.reasons)  # it grows while this one is written
        facts = {"step": self.step, "bad_rows": bad, "skipped": self.num_skipped}
        parts = self.unet, self.ema, self.optimizer, self.power_tensors()
        snapshot = saving.take(*parts, facts, card, self.team, self.saver.room)
        keep = config.keep_checkpoints, config.milestone_every
        write = partial(saving.write, run, snapshot, *keep, self.saver.team, config.checkpoint_to)
        self.saver.begin(self.step, started, write)

    def power_tensors(self) -> dict[str, Tensor]:
        return self.powers.tensors() if self.powers else {}

    def save_powers(self, run: Path) -> None:
        """Begin to write a snapshot of the averages of post_hoc_ema."""
        assert self.powers
        started = time.monotonic()
        self.saver.wait()
        self.saver.team = self.saver.team or self.team.beside()
        part = post_hoc.take_snapshot(self.powers, self.team)
        write = partial(post_hoc.write_snapshot, run, self.step, part, self.saver.team)
        self.saver.begin(self.step, started, write, "snapshot")

    def load(self, checkpoint: Path) -> None:
        parts = self.unet, self.ema, self.optimizer, self.power_tensors()
        facts = saving.load(checkpoint, *parts, self.team)
        self.step, self.bad = facts["step"], BadRows(facts["bad_rows"])
        self.num_skipped = facts.get("skipped", 0)  # none in checkpoints from before


def make_state(
    unet: SpaceTimeUNet, config: Config, device: torch.device, team: Team = ALONE
) -> State:
    """Optimiser and EMA of a U-Net whose trained parameters are chosen already."""
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    unet.train()
    model = wrap(unet, config, device, team)
    optimizer, ema = make_optimizer(unet, config), Ema(unet, config.ema_decay)
    powers = PowerAverages(unet) if config.post_hoc_ema else None
    return State(unet, optimizer, ema, model, team, Saver(), powers)


def make_optimizer(unet: SpaceTimeUNet, config: Config) -> torch.optim.Optimizer:
    """AdamW over the trained parameters, a group for each part with and without decay.

    Norms and biases have one axis and are not decayed, as in diffusers' and OpenAI's trainers:
    they hold no more than scale and shift, which decay would pull from where they act.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:
            groups[part_of(name), parameter.ndim > 1].append(parameter)
    every = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "factor": config.learning_rate_factors.get(part, 1.0),  # type: ignore[call-overload]
        }
        for (part, decayed), parameters in groups.items()
    ]
    return torch.optim.AdamW(
        every, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
    )


def learning_rate(config: Config, step: int) -> float:
    """Linear warmup, then constant, or half a cosine down to 0 at max_steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * (1 + math.cos(math.pi * min(1.0, done))) / 2


def train_step(
    state: State, objective: Objective, samples: list[Sample], config: Config
) -> tuple[Tensor, float]:
    """One optimiser step; returns the loss of each sample (fp64, in the order given) and the
    gradient's norm before clipping. Raises DivergedError, with the weights as they were.

    The gradient is that of the mean over all samples, however they are split. In a team each
    rank gives its own samples and gets their losses; norm, step and error are all ranks'. The
    norms of the parts of the gradient, before clipping too, are `state.part_norms` then.
    """
    team = state.team
    objective.encode_clock.restart()
    state.optimizer.zero_grad(set_to_none=True)
    losses: list[Tensor] = []
    parts = list(micro_batches(samples, config, objective.codec.factor))
    counts = team.gather((len(samples), len(parts)))
    total, num_parts = sum(n for n, _ in counts), max(n for _, n in counts)
    for n in range(num_parts):
        own = n < len(parts)
        # A rank that is through computes along, at weight 0: ranks wait for each other.
        part = parts[n] if own else [min(samples, key=cost_of, default=objective.blank())]
        # Dropout inside the U-Net is the only random number that is not the sample's own.
        torch.manual_seed(int.from_bytes(digest(config.seed, "dropout", key_of(part[0]))[:7]))
        with accumulating(state.model, last=n == num_parts - 1):
            loss = objective.losses(state.model, part)
            # Gradients are averaged over ranks.
            (loss.sum() * (team.world if own else 0) / total).backward()
        if own:
            losses.append(loss.detach().double())
    by_part = part_norms(state.unet)
    trained = [p for p in state.unet.parameters() if p.requires_grad]
    gradient = whole(nn.utils.clip_grad_norm_(trained, config.clip_norm))
    # The one place where the host waits for the device.
    told = [gradient, *by_part.values()]
    numbers = torch.cat([*losses, torch.stack(told).double()]).tolist()
    found, (norm, *norms) = numbers[: -len(told)], numbers[-len(told) :]
    state.part_norms = dict(zip(by_part, norms, strict=True))
    by_key = dict(zip((key_of(s) for part in parts for s in part), found, strict=True))
    every = torch.tensor([by_key[key_of(s)] for s in samples], dtype=torch.float64)
    mean = math.fsum(team.gather(float(every.sum()))) / total
    if not (math.isfinite(norm) and math.isfinite(mean)):
        bad = [s.clip_id for s, x in zip(samples, every, strict=True) if not x.isfinite()]
        culprits = ", ".join(team.gather_lists(bad))
        raise DivergedError(
            f"step {state.step + 1}: loss {mean}, gradient norm {norm}"
            + (f"; clips {culprits}" if culprits else "")
        )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step) * group["factor"]
    state.optimizer.step()
    state.ema.update(state.unet, state.step)
    state.step += 1
    if state.powers:
        state.powers.update(state.unet, state.step)
    return every, norm


def part_norms(unet: SpaceTimeUNet) -> dict[str, Tensor]:
    """The norm of the gradient of each trained part, on the device; over all ranks' shards."""
    gradients: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, parameter in unet.named_parameters():
        if parameter.grad is not None:
            gradients[part_of(name)].append(parameter.grad)
    return {part: whole(nn.utils.get_total_norm(each)) for part, each in gradients.items() if each}


def key_of(sample: Sample) -> str:
    return f"{sample.dataset}/{sample.epoch}/{sample.clip_id}"


def cost_of(sample: Sample) -> int:
    return math.prod(sample.shape)
