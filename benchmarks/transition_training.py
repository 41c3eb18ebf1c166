"""Trains the network of curation/decode/transitions.py on transitions made over real shots.

    pip install onnx
    python benchmarks/transition_training.py --shots benchmarks/transition_shots.txt \\
        --media FOLDER --pictures FOLDER --minutes 25 --output curation

Examples are new: shots of the listed stretches of video, of pictures that a camera moves over
and of things that move by a formula, joined by the transitions of scene_cases.py and disturbed by
what only looks like one. What the weights in the repository saw is told in docs/scenes.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transition_examples import Footage, example

from curation.decode.transitions import CELLS, SIZE

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # frames that are compared
BLENDS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # frames before and after that one may be a blend of
LEVELS = 8  # of a histogram, per channel
NOISE = 2.0 / 255  # grey levels under which two pictures are alike
BATCH = 24  # examples
NUM_FRAMES = 160  # of an example
NUM_POOLED, NUM_NEW = 1500, 3  # examples kept at hand, and made for every batch


class Finder(nn.Module):
    """Frames [B, T, 18, 32, 3], 0..255, to logits [B, T, 2]: a cut before it; inside a transition.

    The first layers are formulas: how much every cell of the picture differs from itself some
    frames ago, how it correlates, and whether it is a blend of itself before and after. Small
    convolutions over time judge them, first cell by cell, then for the picture.
    """

    def __init__(self, width: int = 64, per_cell: int = 24) -> None:
        super().__init__()
        given = 2 * len(LAGS) + 2 * len(BLENDS) + 2
        self.cell_in = nn.Conv1d(given, per_cell, 1)
        self.cell = nn.Conv1d(per_cell, per_cell, 5, padding=2)
        self.whole = nn.Conv1d(given + len(LAGS), 32, 1)
        self.into = nn.Conv1d(2 * per_cell + 32, width, 3, padding=1)
        self.mix = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=reach, dilation=reach) for reach in (1, 2, 4, 8, 16)
        )
        self.out = nn.Conv1d(width, 2, 1)
        nn.init.constant_(self.out.bias, -3.0)  # type: ignore[arg-type]

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.judged(*compared(frames / 255))

    def judged(self, per_cell: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """Features, as `compared` gives them, to logits [B, T, 2]."""
        batch = len(per_cell)
        found = torch.relu(self.cell_in(per_cell.flatten(0, 1).transpose(1, 2)))
        found = torch.relu(self.cell(found)).unflatten(0, (batch, -1))
        told = torch.relu(self.whole(whole.transpose(1, 2)))
        state = torch.relu(self.into(torch.cat([found.mean(1), found.amax(1), told], 1)))
        for layer in self.mix:
            state = state + torch.relu(layer(state))
        logits: torch.Tensor = self.out(state).transpose(1, 2)
        return logits


def compared(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the cells [B, cells, T, N] and of the whole picture [B, T, N + lags].

    pixels: [B, T, 18, 32, 3], 0..1.
    """
    rows, columns = CELLS
    cells = pixels.unflatten(2, (rows, -1)).unflatten(4, (columns, -1))
    cells = cells.permute(0, 2, 4, 1, 3, 5, 6).flatten(1, 2).flatten(3, 4)  # B, cells, T, px, 3
    means, squares = cells.mean(3), (cells * cells).mean((3, 4))
    apart = [((cells - late(cells, lag)) ** 2).mean((3, 4)) for lag in LAGS]
    # The picture is one large cell.
    whole = told([a.mean(1, True) for a in apart], means.mean(1, True), squares.mean(1, True))
    return told(apart, means, squares), torch.cat([whole, moved_colours(pixels)], -1)[:, 0]


def told(apart: list[torch.Tensor], means: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """What tells a transition, [B, cells, T, N], of the mean squared distances [B, cells, T].

    means: [B, cells, T, 3]; squares: mean square, [B, cells, T].
    """
    by_lag = dict(zip(LAGS, apart, strict=True))
    varied = (squares - (means * means).mean(-1)).clamp(min=0)
    out = [means.mean(-1), (varied + 1e-6).sqrt()]
    for lag, distance in by_lag.items():
        shift = ((means - late(means, lag)) ** 2).mean(-1)
        both = varied + late(varied, lag)
        out += [
            (distance + 1e-6).sqrt() * 3,
            (distance - shift) / (both + 2 * NOISE**2),  # 1 - correlation: brightness is out
        ]
    for reach in BLENDS:
        # Least squares of frame = before + weight * (after - before).
        before, between = by_lag[reach], early(by_lag[2 * reach], reach)
        after, span = early(before, reach), between + NOISE**2
        weight = (before + between - after) / (2 * span)
        rest = (before - weight * weight * between).clamp(min=0) / span
        out += [weight.clamp(-1, 2), (rest + 1e-6).sqrt().clamp(max=3)]
    return torch.stack(out, -1)


def moved_colours(pixels: torch.Tensor) -> torch.Tensor:
    """How much the histograms differ per lag, wherever in the picture: [B, 1, T, lags]."""
    levels = torch.arange(LEVELS) / (LEVELS - 1)
    some = pixels[:, :, ::2, ::2].flatten(2, 3)  # a quarter tells as much
    near = torch.relu(1 - (some[..., None] - levels).abs() * (LEVELS - 1))
    shares = near.mean(2).flatten(2)[:, None]
    return torch.stack([(shares - late(shares, lag)).abs().mean(-1) * 8 for lag in LAGS], -1)


def late(values: torch.Tensor, lag: int) -> torch.Tensor:
    """The values [B, cells, T, ...] of `lag` frames before; of the first frame at the start."""
    first = values[:, :, :1].expand(-1, -1, lag, *[-1] * (values.dim() - 3))
    return torch.cat([first, values[:, :, :-lag]], 2)


def early(values: torch.Tensor, lead: int) -> torch.Tensor:
    """The values [B, cells, T, ...] of `lead` frames after; of the last frame at the end."""
    last = values[:, :, -1:].expand(-1, -1, lead, *[-1] * (values.dim() - 3))
    return torch.cat([values[:, :, lead:], last], 2)


class Batches(IterableDataset[tuple[torch.Tensor, ...]]):
    """Batches without end: the features of `compared`, labels [B, T, 2], weights [B, T, 2]."""

    def __init__(self, footage: Footage, seed: int) -> None:
        self.footage, self.seed = footage, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        info = get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0])
        pool = [self.made(rng) for _ in range(BATCH)]
        while True:
            for _ in range(NUM_NEW):
                if len(pool) < NUM_POOLED:
                    pool.append(self.made(rng))
                else:
                    pool[rng.integers(NUM_POOLED)] = self.made(rng)
            chosen = [pool[i] for i in rng.permutation(len(pool))[:BATCH]]
            yield tuple(torch.stack(part) for part in zip(*chosen, strict=True))

    def made(self, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        frames, labels, weights = example(rng, self.footage, NUM_FRAMES)
        pixels = torch.from_numpy(frames)[None].float() / 255
        per_cell, whole = compared(pixels)
        return per_cell[0], whole[0], torch.from_numpy(labels), torch.from_numpy(weights)


def train(net: Finder, batches: Batches, minutes: float, lr: float, workers: int) -> None:
    """Adam with a cosine that ends when the time is over."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-3)
    start = time.monotonic()
    losses: list[float] = []
    for step, (per_cell, whole, labels, weights) in enumerate(
        DataLoader(batches, None, num_workers=workers)
    ):
        done = (time.monotonic() - start) / 60 / minutes
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 100) * (1 + np.cos(np.pi * done)) / 2
        loss = F.binary_cross_entropy_with_logits(net.judged(per_cell, whole), labels, weights)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            print(f"step {step + 1}  loss {np.mean(losses[-100:]):.4f}", flush=True)


class Judge(nn.Module):
    """Small frames uint8 [T, 18, 32, 3] to probabilities [T, 2], for the export."""

    def __init__(self, net: Finder) -> None:
        super().__init__()
        self.net = net

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.net(frames.float()[None])[0])


def export(net: Finder, path: Path) -> None:
    """Write the network for stretches of any length, as curation reads it."""
    torch.onnx.export(
        Judge(net.eval()), (torch.zeros(NUM_FRAMES, SIZE[1], SIZE[0], 3, dtype=torch.uint8),),
        str(path), dynamo=False, opset_version=17, input_names=["frames"],
        output_names=["probabilities"],
        dynamic_axes={"frames": {0: "time"}, "probabilities": {0: "time"}},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shots", type=Path, required=True, help="lines FILE START END, in frames")
    parser.add_argument("--media", type=Path, required=True, help="folder of those files")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that make examples")
    parser.add_argument("--start", type=Path, help="weights of an earlier run, .pt")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of transitions.pt and transitions.onnx"
    )
    given = parser.parse_args()
    cv2.setNumThreads(1)  # OpenCV's threads do not live through the fork of the loader
    footage = Footage.of(given.shots, given.media, given.pictures)
    net = Finder()
    if given.start:
        net.load_state_dict(torch.load(given.start))
    train(net, Batches(footage, given.seed), given.minutes, given.lr, given.workers)
    given.output.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), given.output / "transitions.pt")
    export(net, given.output / "transitions.onnx")


if __name__ == "__main__":
    main()
