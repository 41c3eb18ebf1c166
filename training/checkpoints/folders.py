"""Checkpoints and the run card: saved whole or not at all, compared before a run goes on.

RUN/checkpoints/step-00000100/
    shards/           weights, EMA, AdamW's state: safetensors of each rank (saving.py)
    unet/config.json  of the U-Net, as diffusers saves it
    state.json        step, bad rows
    card.json         what the run was when this was written

Any number of workers goes on from there.
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
from torch import Tensor, nn

from curation.settings import ConfigError
from training.config import FREE_KEYS, Config

STEP = re.compile(r"step-(\d{8,})")


class Ema:
    """Exponential moving average of the trained parameters, in their own dtype, sharded as they.

    The decay begins small, (1 + step) / (10 + step) as diffusers' EMAModel, so that the start is
    soon forgotten.
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
        for average, parameter in self.pairs(unet):
            average.lerp_(parameter, 1 - decay)

    @contextmanager
    def swapped(self, unet: nn.Module) -> Iterator[None]:
        """Inside, the U-Net has the averages for weights, and they have its own."""
        self.swap(unet)
        try:
            yield
        finally:
            self.swap(unet)

    @torch.no_grad()
    def swap(self, unet: nn.Module) -> None:
        # In place: FSDP2 gathers from the memory that its parameters had at the start.
        for average, parameter in self.pairs(unet):
            raw = parameter.clone()
            parameter.copy_(average)
            average.copy_(raw)

    @torch.no_grad()
    def take(self, unet: nn.Module) -> None:
        """Make a U-Net's weights the averages."""
        for average, parameter in self.pairs(unet):
            average.copy_(parameter)

    def pairs(self, unet: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        for name, parameter in unet.named_parameters():
            if name in self.averages:
                yield self.averages[name], parameter


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


def to_drop(names: list[str], keep: int, milestone_every: int | None) -> list[str]:
    """Of the names of checkpoints, oldest first, those beside the last `keep` and milestones."""
    return [
        name
        for name in names[:-keep]
        if not milestone_every or int(name.removeprefix("step-")) % milestone_every
    ]


def sweep(run: Path) -> None:
    """Delete what a killed save left."""
    for path in (run / "checkpoints").glob(".tmp-*"):
        shutil.rmtree(path)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader, or a kill, meets the old one or the new one."""
    written = path.with_name(f".tmp-{path.name}")
    written.write_text(text)
    written.replace(path)


def code_version() -> str:
    """A hash of the source that a loss depends on."""
    root = Path(__file__).parents[2]
    files = sorted([*(root / "model").rglob("*.py"), *(root / "training").rglob("*.py")])
    text = b"".join(path.name.encode() + path.read_bytes() for path in files)
    return hashlib.sha256(text).hexdigest()[:12]


def make_card(
    config: Config,
    data: dict[str, Any],
    init: str | None,
    noise: dict[str, Any],
    draw_seed: int,
    device: torch.device,
    workers: int = 1,
) -> dict[str, Any]:
    """Everything that the loss trace depends on; on `workers` and `threads` to rounding alone."""
    return {
        "config": config.model_dump(mode="json"),
        "data": data,
        "init": init,
        "noise": noise,
        "draw_seed": draw_seed,
        "code": code_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "workers": workers,
    }


def card_of(checkpoint: Path) -> dict[str, Any]:
    """The card of a U-Net's checkpoint; ConfigError for one of super-resolution."""
    card = json.loads((checkpoint / "card.json").read_text())
    if card.get("stage") == "sr":
        run = checkpoint.parents[1]
        raise ConfigError(
            f"{run} is a run of --stage sr, which enlarges pictures: give it to vf-upscale "
            "--weights or vf-sample --upscale, or name the run of a video model here"
        )
    return card


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
    free = {"workers", *(f"config.{key}" for key in FREE_KEYS)}
    if before.get("workers") != now["workers"]:
        free |= {"threads", "config.num_threads"}  # not bitwise the same in any case
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
