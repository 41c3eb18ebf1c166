"""What a run learns, one step of it, and its checkpoints.

RUN/checkpoints/step-00000100/
    generator.safetensors ema.safetensors discriminator.safetensors
    optimizers.pt     both of Adam's states
    state.json card.json
RUN/weights.safetensors   the EMA of the last checkpoint, in the official layout
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from curation.settings import RunError
from training.checkpoints.folders import Ema, steps_of, sweep, sync
from training.data.batches import BadRows
from training.superresolution.config import Config
from training.superresolution.data import inner
from training.superresolution.losses import Perceptual, adversarial
from training.superresolution.networks import WEIGHTS, make_discriminator, official


@dataclass
class State:
    """Both networks, the generator's EMA, both optimisers, the step and the rows that were bad."""

    generator: nn.Module
    discriminator: nn.Module
    ema: Ema
    optimizers: dict[str, torch.optim.Adam]
    device: torch.device
    perceptual: Perceptual | None
    step: int = 0
    bad: BadRows = field(default_factory=BadRows)


def make_state(
    generator: nn.Module, perceptual: Perceptual | None, config: Config, device: torch.device
) -> State:
    discriminator = make_discriminator(config).to(device)
    generator.to(device)
    rate = config.learning_rate
    against = config.discriminator_learning_rate or rate
    optimizers = {
        name: torch.optim.Adam(network.parameters(), each, config.betas)
        for name, network, each in (
            ("generator", generator, rate),
            ("discriminator", discriminator, against),
        )
    }
    ema = Ema(generator, config.ema_decay)
    perceptual = perceptual.to(device) if perceptual else None
    return State(generator, discriminator, ema, optimizers, device, perceptual)


def train_step(state: State, small: Tensor, true: Tensor, config: Config) -> dict[str, float]:
    """One step of both networks on pixels [n, 3, h, w] and [n, 3, h s, w s]; the losses by name.

    The discriminator has nothing to do before the GAN begins. Raises RunError for a loss that is
    no number; nothing of that step is kept.
    """
    adversary = state.step >= config.pretrain_steps
    autocast = torch.autocast(state.device.type, torch.bfloat16, enabled=config.precision == "bf16")
    state.discriminator.requires_grad_(False)
    with autocast:
        made = state.generator(small)
    made, true = inner(made.float(), config.scale), inner(true, config.scale)
    losses = {"l1": config.l1_weight * F.l1_loss(made, true)}
    if adversary:
        with autocast:
            if state.perceptual:
                losses["perceptual"] = config.perceptual_weight * state.perceptual(made, true)
            if config.gan_weight:
                logits = state.discriminator(made).float()
                losses["gan"] = config.gan_weight * adversarial(logits, real=True)
    total = torch.stack([*losses.values()]).sum()
    told = {name: loss.item() for name, loss in losses.items()}
    if not torch.isfinite(total):
        raise RunError(
            f"step {state.step + 1}: the losses are {told}. The last checkpoint is as it was. "
            "Lower learning_rate, or use precision=float32"
        )
    step_of(state.optimizers["generator"], [total])
    if adversary and config.gan_weight:
        told |= train_discriminator(state, made.detach(), true, autocast)
    state.step += 1
    state.ema.update(state.generator, state.step)
    return {"loss": total.item(), **told}


def train_discriminator(
    state: State, made: Tensor, true: Tensor, autocast: torch.autocast
) -> dict[str, float]:
    state.discriminator.requires_grad_(True)
    with autocast:
        real, fake = state.discriminator(true).float(), state.discriminator(made).float()
    loss = adversarial(real, real=True) + adversarial(fake, real=False)
    step_of(state.optimizers["discriminator"], [loss])
    return {
        "discriminator": loss.item(),
        "real_logit": real.mean().item(),
        "made_logit": fake.mean().item(),
    }


def step_of(optimizer: torch.optim.Optimizer, losses: list[Tensor]) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()
    optimizer.step()


def save(run: Path, state: State, card: dict[str, Any], keep: int) -> None:
    """Write a checkpoint under another name, bring it to the disk, rename it; drop old ones."""
    target = run / "checkpoints" / f"step-{state.step:08d}"
    written = target.with_name(f".tmp-{target.name}")
    sweep(run)
    if not target.exists():
        written.mkdir(parents=True)
        save_file(whole(state.generator), written / "generator.safetensors")
        save_file(whole(state.discriminator), written / "discriminator.safetensors")
        with state.ema.swapped(state.generator):
            save_file(whole(state.generator), written / "ema.safetensors")
        moments = {name: each.state_dict() for name, each in state.optimizers.items()}
        torch.save(moments, written / "optimizers.pt")
        facts = {"step": state.step, "bad_rows": state.bad.reasons}
        (written / "state.json").write_text(json.dumps(facts, indent=1))
        (written / "card.json").write_text(json.dumps(card, indent=1))
        for path in [*written.iterdir(), written]:
            sync(path)
        written.rename(target)
        sync(target.parent)
    for old in steps_of(run)[:-keep]:
        # Renamed first: a half deleted folder must not look like a checkpoint.
        shutil.rmtree(old.rename(old.with_name(f".tmp-{old.name}")))
    publish(run, state)


def publish(run: Path, state: State) -> None:
    """Put the EMA where vf-upscale and vf-sample --upscale look for a run's weights."""
    with state.ema.swapped(state.generator):
        weights = official(whole(state.generator))
    written = run / f".tmp-{WEIGHTS}.part"
    save_file(weights, written)
    written.replace(run / WEIGHTS)


def whole(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in
            network.state_dict().items()}  # fmt: skip


def load(checkpoint: Path, state: State) -> None:
    """Fill a state from a checkpoint, to the bit."""
    generator, discriminator = state.generator, state.discriminator
    generator.load_state_dict(load_file(checkpoint / "ema.safetensors"))
    state.ema.take(generator)
    generator.load_state_dict(load_file(checkpoint / "generator.safetensors"))
    discriminator.load_state_dict(load_file(checkpoint / "discriminator.safetensors"))
    moments = torch.load(checkpoint / "optimizers.pt", map_location="cpu", weights_only=True)
    for name, optimizer in state.optimizers.items():
        optimizer.load_state_dict(moments[name])
    facts = json.loads((checkpoint / "state.json").read_text())
    state.step, state.bad = facts["step"], BadRows(facts["bad_rows"])
