"""Memory of a training step by shapes alone: what fits on which GPU, before one is rented.

A step is run on FakeTensors, which have shapes and storages and no data, and what is alive is
summed as it comes and goes.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.attention import Size
from model.costs import example_inputs
from model.unet import SpaceTimeUNet

# Of a GPU's memory; the rest is for CUDA itself, workspaces of cuDNN and what the allocator cannot
# use. Ours, a guess until it is measured.
USABLE = 0.9


class LiveBytes(TorchDispatchMode):
    """Inside, counts the bytes of storages that operations make, until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return out

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.seen:
            return
        self.seen.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, storage.nbytes())

    def forget(self, num_bytes: int) -> None:
        self.now -= num_bytes

    def given(self, tensors: list[Tensor]) -> None:
        """Know tensors that were there before: what is changed in place is nothing new."""
        for tensor in tensors:
            self.seen.add(tensor.untyped_storage())


def step_bytes(unet: SpaceTimeUNet, inputs: dict[str, Tensor], precision: str = "bf16") -> int:
    """Peak of what a forward and a backward hold above weights, gradients and inputs.

    Gradients are there before, as from an earlier micro-batch. Copies of weights that autocast
    makes count. Works on real tensors and on fake ones alike.
    """
    device = inputs["sample"].device.type
    parameters = list(unet.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        live.given([*parameters, *(p.grad for p in parameters if p.grad is not None)])
        live.given([*unet.buffers(), *inputs.values()])
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            prediction = unet(**inputs).sample
        prediction.float().square().mean().backward()
        del prediction
    return live.peak


def norms_in_fp32(unet: nn.Module) -> None:
    """Let norms take and give fp32, as CUDA's autocast does and that of a CPU does not."""
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))


def activation_bytes(config: Any, batch: int, size: Size, checkpointing: bool) -> int:
    """`step_bytes` of a batch of latents (T, H, W) at bf16 autocast as on a GPU, on FakeTensors."""
    with FakeTensorMode():
        unet = SpaceTimeUNet.from_config(config).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        norms_in_fp32(unet)
        return step_bytes(unet, example_inputs(config, batch, size))


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of training a U-Net in fp32 with AdamW and an EMA, latents and text precomputed.

    state: weights, gradients, AdamW's two moments and the EMA, 4 bytes a parameter each.
    fixed, per_clip: activations of a micro-batch, a line through those of one clip and of two.
    """

    state: int
    fixed: int
    per_clip: int

    @staticmethod
    def of(config: Any, size: Size, checkpointing: bool) -> "TrainingMemory":
        with torch.device("meta"):
            parameters = sum(p.numel() for p in SpaceTimeUNet.from_config(config).parameters())
        one, two = (activation_bytes(config, batch, size, checkpointing) for batch in (1, 2))
        return TrainingMemory(5 * 4 * parameters, 2 * one - two, two - one)

    def total(self, micro_batch: int) -> int:
        return self.state + self.fixed + micro_batch * self.per_clip

    def largest(self, memory_gb: float) -> int:
        """Clips at once that fit a GPU of so many GB (1e9 bytes); 0: not even one."""
        room = USABLE * memory_gb * 1e9 - self.state - self.fixed
        return max(0, int(room // self.per_clip))


CARDS_GB = (24, 40, 80)


def print_table(presets: list[str], num_frames: int = 16) -> None:
    """What training each preset takes at its own latent size, and what fits; minutes."""
    cards = "".join(f"{card:>5} GB" for card in CARDS_GB)
    heads = "".join(f"{head:>8}" for head in ("state", "fixed", "a clip"))
    print(f"{'preset':16}{'checkpointing':>14}{heads}   clips at once in")
    print(f"{'':16}{'':14}{'GB':>8}{'GB':>8}{'GB':>8}{cards}")
    for name in presets:
        with torch.device("meta"):
            config = SpaceTimeUNet.from_preset(name).config
        for checkpointing in (False, True):
            found = TrainingMemory.of(config, (num_frames, *config.sample_size), checkpointing)
            sizes = (found.state, found.fixed, found.per_clip)
            row = "".join(f"{each / 1e9:8.2f}" for each in sizes)
            fits = "".join(f"{found.largest(card) or 'no':>8}" for card in CARDS_GB)
            print(f"{name:16}{'on' if checkpointing else 'off':>14}{row}{fits}", flush=True)
