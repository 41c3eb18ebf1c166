"""What a step achieves: the share of what its device can do, of encoding, and of padding."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from model.attention import Size
from model.costs import forward_flops, peak_tflops, window_tokens
from training.config import Config


def peak_of(config: Config, device: torch.device) -> float | None:
    """TFLOP/s that utilisation is a share of: as given, or of a known GPU that computes in bf16."""
    if config.peak_tflops is not None:
        return config.peak_tflops
    if device.type != "cuda" or config.precision != "bf16":
        return None
    return peak_tflops(torch.cuda.get_device_name(device))


class Meter:
    """What a step's clips ask of the U-Net, by the shapes of their latents (T, H, W).

    unet: the U-Net's config. world: devices that share a step, of `peak` TFLOP/s each.
    """

    def __init__(self, config: Config, unet: Any, peak: float | None, world: int = 1) -> None:
        self.unet, self.world = unet, world
        self.peak = peak
        # A backward is twice a forward: a product for the gradient of what came in and one for
        # that of the weights. Where few weights are trained the latter are left out of the count,
        # which is then too low. What activation checkpointing computes again is no progress and
        # does not count (arXiv 2204.02311, appendix B).
        self.passes = 3 if config.trainable == "all" else 2
        self.known: dict[Size, tuple[int, int, int]] = {}

    def costs(self, size: Size) -> tuple[int, int, int]:
        """FLOPs of a forward (0 where no peak asks for them), window tokens, padded ones."""
        if size not in self.known:
            flops = forward_flops(self.unet, size) if self.peak else 0
            self.known[size] = (flops, *window_tokens(self.unet, size))
        return self.known[size]

    def shares(self, sizes: Sequence[Size], seconds: float) -> dict[str, float]:
        """Of a step of all devices: padding_share, and with a known peak mfu."""
        flops = tokens = padding = 0
        for size, count in Counter(sizes).items():
            each = self.costs(size)
            flops, tokens, padding = (
                total + count * one
                for total, one in zip((flops, tokens, padding), each, strict=True)
            )
        found = {"padding_share": padding / tokens if tokens else 0.0}
        if self.peak:
            could = self.peak * 1e12 * self.world * seconds
            found["mfu"] = self.passes * flops / could
        return found


class EncodeClock:
    """Seconds of a step in which clips and captions are encoded, by the device's own clock.

    On a GPU these are pairs of events, which are read when the step has waited for the device:
    nothing here waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        self.elapsed_s = 0.0
        self.events: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around what is an encoding."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            yield
            self.elapsed_s += time.perf_counter() - started
            return
        stream = torch.cuda.current_stream(self.device)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record(stream)
        yield
        last.record(stream)
        self.events.append((first, last))

    def seconds(self) -> float:
        """Since `restart`; on a GPU to be asked after the step has waited for it."""
        return self.elapsed_s + sum(first.elapsed_time(last) for first, last in self.events) / 1e3
