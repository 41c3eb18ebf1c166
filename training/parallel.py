"""One process or many: what ranks tell each other, and a U-Net that is trained by all of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from model import SpaceTimeUNet
from training.config import Config

T = TypeVar("T")
aten = torch.ops.aten


@dataclass(frozen=True)
class Team:
    """The processes that train one model. Each of them must make the same calls in one order."""

    rank: int = 0
    world: int = 1
    group: Any = None  # of torch.distributed; None: that of all processes

    @staticmethod
    def here() -> Team:
        """The team of this process's group; alone without one."""
        if not dist.is_initialized():
            return ALONE
        return Team(dist.get_rank(), dist.get_world_size())

    def beside(self) -> Team:
        """The same ranks for another thread: on one group the calls of two would be mixed up."""
        if self.world == 1:
            return self
        return replace(self, group=dist.new_group(backend="gloo"))

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes and talks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What every rank gave, by rank; returns when all of them have come here."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.group)
        return found

    def gather_lists(self, values: list[T]) -> list[T]:
        """One list of what every rank gave."""
        return [value for each in self.gather(values) for value in each]

    def any(self, flag: bool) -> bool:
        """Whether a rank said yes: the same answer on all of them."""
        return any(self.gather(flag))

    def share(self, values: Sequence[T]) -> list[T]:
        """This rank's part of what all of them hold; `join` puts such parts together again."""
        return list(values[self.rank :: self.world])

    def join(self, values: list[T]) -> list[T]:
        """The results of every rank's share in the order of the whole."""
        parts = self.gather(values)
        longest = max(map(len, parts))
        return [part[n] for n in range(longest) for part in parts if n < len(part)]


ALONE = Team()


def wrap(unet: SpaceTimeUNet, config: Config, device: torch.device, team: Team) -> Any:
    """Put a U-Net where it is trained; returns what a training step calls.

    Alone that is the U-Net itself. With `ddp` every rank holds all of it and gradients are
    averaged; with `fsdp` every rank holds its part of each block, and gathers a block's weights
    while it computes it; with `hsdp` so many ranks share a copy, and there are several copies.
    """
    checkpoint_activations(unet, config)
    if config.compile:
        compile_blocks(unet)
    if team.world > 1 and config.parallel != "ddp":
        shard(unet, config, device, team)  # block by block: the whole never fits on the device
        return unet
    unet.to(device)  # type: ignore[arg-type]
    if team.world == 1:
        return unet
    replica = DistributedDataParallel(unet, gradient_as_bucket_view=True)
    replica.config = unet.config  # type: ignore[assignment]  # what losses ask a U-Net for
    return replica


# What costs more to compute again than its output costs to keep: convolutions, products of
# matrices, attention. Norms, activations and what only moves data are computed again.
KEPT = [
    aten.convolution.default,
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default),
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def checkpoint_activations(unet: SpaceTimeUNet, config: Config) -> None:
    """Compute the inside of blocks again in the backward: all of it, or all but what is KEPT."""
    if config.activation_checkpointing == "selective":
        contexts = partial(create_selective_checkpoint_contexts, KEPT)
        unet.enable_gradient_checkpointing(
            partial(checkpoint, use_reentrant=False, context_fn=contexts)
        )
    elif config.activation_checkpointing:
        unet.enable_gradient_checkpointing()


def blocks_of(unet: SpaceTimeUNet) -> list[nn.Module]:
    return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


def compile_blocks(unet: SpaceTimeUNet) -> None:
    """Compile each block on its first call with a shape; the names of its weights stay.

    The forward alone: what FSDP2 does before and after a block stays outside of its graph.
    """
    for block in blocks_of(unet):
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)
    # Blocks of one class count together, each once for every shape and size of a micro-batch.
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096


def uncompiled(config: Config) -> AbstractContextManager[Any]:
    """Inside, compiled blocks run as they are: a few forwards do not repay a compilation."""
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()


def shard(unet: SpaceTimeUNet, config: Config, device: torch.device, team: Team) -> None:
    """FSDP2, a group for each block and one for the rest; hsdp is its mesh of copies by parts."""
    policy = MixedPrecisionPolicy()
    if config.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    # It warns of views that are then changed in place; the U-Net changes none.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    sizes, names = (team.world,), ("shard",)
    if config.parallel == "hsdp":
        assert config.shard_workers
        copies = team.world // config.shard_workers
        sizes, names = (copies, config.shard_workers), ("replicate", "shard")  # type: ignore[assignment]
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    for module in (*blocks_of(unet), unet):
        # The rest too is sharded again after each forward: EMA and optimiser see shards alone.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def accumulating(model: Any, last: bool) -> AbstractContextManager[None]:
    """Around forward and backward of a micro-batch: copies exchange gradients at the last one.

    Shards exchange them each time, as whole gradients may not fit.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, put together on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
