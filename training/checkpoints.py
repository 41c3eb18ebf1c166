"""Checkpoints and the run card: saved whole or not at all, compared before a run goes on.

RUN/checkpoints/step-00000100/
    unet/ unet_ema/   config.json and safetensors, as diffusers saves them
    optimizer.pt      AdamW's state
    state.json        step, bad rows
    card.json         what the run was when this was written
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.configs import FREE_KEYS, Config, ConfigError

STEP = re.compile(r"step-(\d{8,})")


class Ema:
    """Exponential moving average of the trained parameters, in their own dtype.

    The decay begins small, (1 + step) / (10 + step), so that the start is soon forgotten.
    """

    def __init__(self, unet: nn.Module, decay: float) -> None:
        self.decay = decay
        self.averages = {
            name: parameter.detach().clone()
            for name, parameter in unet.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, unet: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in unet.named_parameters():
            if name in self.averages:
                self.averages[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def swapped(self, unet: nn.Module) -> Iterator[None]:
        """Inside, the U-Net has the averages for weights."""
        parameters = {n: p for n, p in unet.named_parameters() if n in self.averages}
        raw = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self.averages[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = raw[name]


def steps_of(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; a folder without its last name is none."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if STEP.fullmatch(path.name)),
        key=lambda path: int(path.name.removeprefix("step-")),
    )


def latest(run: Path) -> Path | None:
    found = steps_of(run)
    return found[-1] if found else None


def save(
    run: Path,
    unet: Any,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    card: dict[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint under another name, bring it to the disk, rename it; drop old ones."""
    target = run / "checkpoints" / f"step-{state['step']:08d}"
    if target.exists():
        return target
    written = target.with_name(f".tmp-{target.name}")
    sweep(run)
    written.mkdir(parents=True)
    unet.save_pretrained(written / "unet")
    with ema.swapped(unet):
        unet.save_pretrained(written / "unet_ema")
    torch.save(optimizer.state_dict(), written / "optimizer.pt")
    (written / "state.json").write_text(json.dumps(state, indent=1))
    (written / "card.json").write_text(json.dumps(card, indent=1))
    for path in [*written.rglob("*"), written]:
        sync(path)
    written.rename(target)
    sync(target.parent)
    for old in steps_of(run)[:-keep]:
        # Renamed first: a half deleted folder must not look like a checkpoint.
        shutil.rmtree(old.rename(old.with_name(f".tmp-{old.name}")))
    return target


def sweep(run: Path) -> None:
    """Delete what a killed save left."""
    for path in (run / "checkpoints").glob(".tmp-*"):
        shutil.rmtree(path)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def load(checkpoint: Path, unet: Any, ema: Ema, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill a U-Net, its EMA and its optimiser from a checkpoint; returns its state."""
    dtype = unet.dtype
    weights = type(unet).from_pretrained(str(checkpoint / "unet"), torch_dtype=dtype)
    unet.load_state_dict(weights.state_dict())
    averages = type(unet).from_pretrained(str(checkpoint / "unet_ema"), torch_dtype=dtype)
    for name, parameter in averages.named_parameters():
        if name in ema.averages:
            ema.averages[name].copy_(parameter)
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    return json.loads((checkpoint / "state.json").read_text())


def code_version() -> str:
    """A hash of the source that a loss depends on."""
    root = Path(__file__).parents[1]
    files = sorted([*(root / "model").glob("*.py"), *(root / "training").glob("*.py")])
    text = b"".join(path.name.encode() + path.read_bytes() for path in files)
    return hashlib.sha256(text).hexdigest()[:12]


def make_card(
    config: Config,
    data: dict[str, Any],
    init: str | None,
    noise: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Everything that the loss trace depends on."""
    return {
        "config": config.model_dump(mode="json"),
        "data": data,
        "init": init,
        "noise": noise,
        "code": code_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
    }


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{path}.{key}" if path else key)
    return out


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of two cards that differ and matter, with both values."""
    old, new = flat(before), flat(now)
    free = {f"config.{key}" for key in FREE_KEYS}
    if before["config"]["schedule"] == now["config"]["schedule"] == "constant":
        free.add("config.max_steps")  # where the end is changes no step before it
    return {
        key.removeprefix("config."): (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if key not in free and old.get(key) != new.get(key) and not key.endswith(".location")
    }


def compare(before: dict[str, Any], now: dict[str, Any], allowed: list[str]) -> list[str]:
    """What changed since a checkpoint, as sentences; ConfigError unless each key is allowed."""
    changed = changed_keys(before, now)
    refused = [
        key
        for key in changed
        if not any(key == name or key.startswith(f"{name}.") for name in allowed)
    ]
    if refused:
        told = "; ".join(
            f"{key} was {changed[key][0]!r}, is {changed[key][1]!r}" for key in refused
        )
        flags = " ".join(f"--allow-change {key}" for key in refused)
        raise ConfigError(
            f"this is not the run that was started: {told}. Use another --output, the old "
            f"settings, or {flags}"
        )
    return [f"{key}: {was!r} -> {now_!r}" for key, (was, now_) in changed.items()]
