"""What a checkpoint holds of a model: written by all ranks beside the training, and read again.

torch.distributed.checkpoint in safetensors: no pickle, so a RUN of somebody else runs no code.
The names of tensors are a kind and the name of a parameter:

    unet.*                  the weights, frozen ones too
    ema.*                   their averages, of the trained ones
    power0.* power1.*       those of post_hoc_ema
    exp_avg.* exp_avg_sq.*  AdamW's state of what has been trained
    step                    how many steps each parameter has made, in their order; -1: none

Every rank writes what it holds: its part of each sharded tensor, its share of the whole ones.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from curation.settings import RunError
from model import SpaceTimeUNet
from training.checkpoints import copies
from training.checkpoints.folders import Ema, card_of, steps_of, sweep, sync, to_drop
from training.learning.adapters import add_adapters, merge_adapters
from training.parallel import ALONE, Team

SHARDS = "shards"
MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch's AdamW names them
# A file for each kind and rank: what is written is once more in memory, a file at a time.
FILES = {"unet": 1, "ema": 2, "exp_avg": 3, "exp_avg_sq": 4, "step": 3, "power0": 5, "power1": 6}
AVERAGES = ("ema", "power0", "power1")
# It tells so of every process without others.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")
OLD = "optimizer.pt"  # of checkpoints before 27 November 2026, with whole tensors
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


# -- writing


@dataclass
class Snapshot:
    """A checkpoint that is to be written: this rank's tensors as they were, in main memory."""

    tensors: dict[str, Tensor]
    files: dict[str, int]  # by the names of all ranks' tensors
    unet: SpaceTimeUNet  # whose config alone is written
    state: dict[str, Any]
    card: dict[str, Any]


def tensors_of(
    unet: SpaceTimeUNet, ema: Ema, optimizer: torch.optim.Optimizer, powers: dict[str, Tensor]
) -> dict[str, Tensor]:
    """All that a checkpoint holds, by name, as it lies in memory."""
    found = powers | {f"ema.{name}": average for name, average in ema.averages.items()}
    steps = []
    for name, parameter in unet.named_parameters():
        found[f"unet.{name}"] = parameter.detach()
        moments = optimizer.state.get(parameter, {})
        found |= {f"{kind}.{name}": moments[kind] for kind in MOMENTS if moments}
        steps.append(moments["step"].cpu() if moments else torch.tensor(-1.0))
    return found | {"step": torch.stack(steps)}


def take(
    unet: SpaceTimeUNet,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    powers: dict[str, Tensor],
    state: dict[str, Any],
    card: dict[str, Any],
    team: Team,
    room: dict[str, Tensor],
) -> Snapshot:
    """Copy what this rank writes into main memory; training may go on at once.

    room: tensors to copy into, of an earlier call. Memory that is new takes longer to get than to
    fill.
    """
    every = tensors_of(unet, ema, optimizer, powers)
    for name, tensor in own_of(every, team).items():
        if name in room:
            local(room[name]).copy_(local(tensor))
        else:
            room[name] = tensor.contiguous().to("cpu", copy=True)
    return Snapshot(room, files_of(every), unet, state, card)


def own_of(tensors: dict[str, Tensor], team: Team) -> dict[str, Tensor]:
    """Those that this rank writes: what is sharded, and a share of what all of them hold."""
    held = team.share(sorted(n for n, t in tensors.items() if not isinstance(t, DTensor)))
    return {n: t for n, t in tensors.items() if isinstance(t, DTensor)} | {
        name: tensors[name] for name in held
    }


def files_of(names: Iterable[str]) -> dict[str, int]:
    return {name: FILES[name.partition(".")[0]] for name in names}


def write_shards(
    folder: Path, tensors: dict[str, Tensor], files: dict[str, int], team: Team
) -> None:
    """Write this rank's tensors; files are of all ranks' names."""
    writer = HuggingFaceStorageWriter(
        str(folder / SHARDS), fqn_to_index_mapping=files, save_distributed=True
    )
    dcp.save(tensors, storage_writer=writer, process_group=team.group, no_dist=team.world == 1)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def write(
    run: Path,
    snapshot: Snapshot,
    keep: int,
    milestone_every: int | None,
    team: Team,
    copy_to: str | None = None,
) -> None:
    """Write a checkpoint under another name, bring it to the disk, rename it; drop old ones but
    for milestones, those of every so many steps. Raises RunError on all ranks."""
    target = run / "checkpoints" / f"step-{snapshot.state['step']:08d}"
    written = target.with_name(f".tmp-{target.name}")

    def make() -> None:
        sweep(run)
        written.mkdir(parents=True)
        snapshot.unet.save_config(written / "unet")

    def shards() -> None:
        write_shards(written, snapshot.tensors, snapshot.files, team)

    def finish() -> None:
        (written / "state.json").write_text(json.dumps(snapshot.state, indent=1))
        (written / "card.json").write_text(json.dumps(snapshot.card, indent=1))
        for path in [*written.rglob("*"), written]:
            sync(path)
        written.rename(target)
        sync(target.parent)
        drop_old(run, keep, milestone_every)

    def copy() -> None:
        if copy_to:
            copies.put(target, copy_to, keep, milestone_every)

    where = f"checkpoint {target} was not written"
    for part, by_all in ((make, False), (shards, True), (finish, False)):
        together(part if by_all or team.first else None, where, team)
    together(copy if team.first else None, f"checkpoint {target} was not copied", team)


def together(part: Callable[[], None] | None, failure: str, team: Team) -> None:
    """Do a part of a checkpoint; RunError on all ranks where it failed on one."""
    told = ""
    try:
        if part:
            part()
    except (Exception, CheckpointException) as error:  # whatever it is: others wait for this rank
        told = words_of(error)
    if failed := [each for each in team.gather(told) if each]:
        raise RunError(f"{failure}: {failed[0]}; those before it are as they were. Make room, or "
                       "repair what it names")  # fmt: skip


def words_of(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # of several ranks, with their traces
        return words_of(next(iter(error.failures.values()))[0])
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def drop_old(run: Path, keep: int, milestone_every: int | None) -> None:
    """Delete checkpoints but for the last `keep` and milestones."""
    for name in to_drop([path.name for path in steps_of(run)], keep, milestone_every):
        # Renamed first: a half deleted folder must not look like a checkpoint.
        old = run / "checkpoints" / name
        shutil.rmtree(old.rename(old.with_name(f".tmp-{name}")))


# -- reading


def load(
    checkpoint: Path,
    unet: SpaceTimeUNet,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    powers: dict[str, Tensor],
    team: Team = ALONE,
) -> dict[str, Any]:
    """Fill a U-Net, its averages and its optimiser from a checkpoint; returns its state.

    A rank reads its own part, whatever the number of ranks that wrote.
    """
    there: Container[str] = ()
    if (checkpoint / OLD).exists():
        load_old(checkpoint, unet, ema, optimizer)
        there = [f"ema.{name}" for name in ema.averages]
    else:
        reader = reader_of(checkpoint)
        there = reader.read_metadata().state_dict_metadata
        for name, parameter in unet.named_parameters():
            if parameter.requires_grad and f"exp_avg.{name}" in there:
                moments = {kind: torch.zeros_like(parameter.detach()) for kind in MOMENTS}
                moments["step"] = torch.zeros((), device=parameter.device)
                optimizer.state[parameter] = moments
        every = tensors_of(unet, ema, optimizer, powers)
        read(reader, {name: tensor for name, tensor in every.items() if name in there}, team)
        for parameter, step in zip(unet.parameters(), every["step"], strict=True):
            if parameter in optimizer.state:
                optimizer.state[parameter]["step"].copy_(step)
    # What was not averaged before begins at the weights.
    for name, average in tensors_of(unet, ema, optimizer, powers).items():
        kind, _, of = name.partition(".")
        if kind in AVERAGES and name not in there:
            average.copy_(unet.get_parameter(of).detach())
    return json.loads((checkpoint / "state.json").read_text())


class Reader(HuggingFaceStorageReader):
    """Reads the headers of a checkpoint's files once."""

    metadata: Metadata | None = None

    def read_metadata(self) -> Metadata:
        self.metadata = self.metadata or super().read_metadata()
        return self.metadata


def reader_of(checkpoint: Path) -> Reader:
    return Reader(str(checkpoint / SHARDS))


def read(reader: Reader, into: dict[str, Tensor], team: Team = ALONE) -> None:
    """Fill tensors, or this rank's parts of them, by their names."""
    dcp.load(into, storage_reader=reader, process_group=team.group, no_dist=team.world == 1)


def read_unet(checkpoint: Path, weights: str) -> SpaceTimeUNet:
    """The U-Net of a checkpoint in fp32 on the CPU; weights: `raw`, or `ema`, their averages."""
    if (checkpoint / OLD).exists():
        folder = checkpoint / {"ema": "unet_ema", "raw": "unet"}[weights]
        return SpaceTimeUNet.from_pretrained(str(folder))
    with torch.device("meta"):
        unet = SpaceTimeUNet.from_config(SpaceTimeUNet.load_config(str(checkpoint / "unet")))
        config = card_of(checkpoint).get("config", {})
        has_adapters = config.get("trainable") == "lora"
        if has_adapters:
            add_adapters(unet, config["lora_rank"], config["seed"])
    tensors = {name: torch.empty(p.shape) for name, p in unet.named_parameters()}
    reader = reader_of(checkpoint)
    averaged = {n for n in reader.read_metadata().state_dict_metadata if weights == "ema"}
    read(reader, {f"{'ema' if f'ema.{name}' in averaged else 'unet'}.{name}": tensor
                  for name, tensor in tensors.items()})  # fmt: skip
    unet.load_state_dict(tensors, assign=True)
    if has_adapters:
        merge_adapters(unet)
    return unet.eval()


def load_old(
    checkpoint: Path, unet: SpaceTimeUNet, ema: Ema, optimizer: torch.optim.Optimizer
) -> None:
    """Fill them from two diffusers folders and whole moments, as checkpoints were written."""
    for folder in ("unet_ema", "unet"):
        kept = SpaceTimeUNet.from_pretrained(str(checkpoint / folder), torch_dtype=unet.dtype)
        set_model_state_dict(unet, kept.state_dict(), options=WHOLE)
        if folder == "unet_ema":
            ema.take(unet)
    moments = torch.load(checkpoint / OLD, weights_only=True)
    set_optimizer_state_dict(unet, optimizer, moments, options=WHOLE)
