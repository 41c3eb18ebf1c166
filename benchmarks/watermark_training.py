"""Trains the network of curation/scores/watermarks.py on marks blended over moving pictures.

    pip install onnx
    python benchmarks/watermark_training.py --pictures FOLDER --film FILE:32:130 --fonts FOLDER \\
        --minutes 60 --output curation

Every example is new: some samples of a scene, and in six of ten a mark. What the weights in the
repository saw is told in docs/filters.md; a film's seconds that were trained on are not measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from watermark_examples import Footage, example, films, pictures
from watermark_marks import Fonts, mark

from curation.scores.watermarks import MID, QUANTILES, SPREAD

EDGES = 32  # kinds that are told apart
COUNTS = (4, 5, 6, 8, 8, 10, 12, 16, 20)  # samples of an example
BATCH_SAMPLES = 96
NUM_MARKS = 600  # kept at hand; some are drawn anew for every batch


class Finder(nn.Module):
    """Samples [B, N, H, W], 0..255, to logits [B, H / 4, W / 4]: is there a mark?"""

    def __init__(self, edges: int = EDGES, width: int = 40) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.PixelUnshuffle(2), *block(4, 16), nn.ReLU(inplace=True))
        self.two = nn.Sequential(*block(16, edges, stride=2), nn.Hardtanh(inplace=True))
        self.into = nn.Sequential(*block(len(QUANTILES) * edges, width), nn.ReLU(inplace=True))
        reaches = (1, 2, 4, 8, 1)  # cells; together a word of 140 px
        self.mix = nn.ModuleList(
            nn.Sequential(*block(width, width, reach=reach), nn.ReLU(inplace=True))
            for reach in reaches
        )
        self.out = nn.Conv2d(width, 1, 1)
        nn.init.constant_(cast(torch.Tensor, self.out.bias), -3.0)  # few cells are marked

    def forward(self, luma: torch.Tensor) -> torch.Tensor:
        batch, count, height, width = luma.shape
        samples = ((luma - MID) / SPREAD).reshape(batch * count, 1, height, width)
        edges = self.two(self.one(samples))
        in_time = edges.reshape(batch, count, *edges.shape[1:]).permute(0, 2, 3, 4, 1)
        values = in_time.contiguous().sort(dim=-1).values
        places = [round(quantile * (count - 1)) for quantile in QUANTILES]
        return self.judge(torch.cat([values[..., place] for place in places], dim=1))

    def judge(self, quantiles: torch.Tensor) -> torch.Tensor:
        """Edges [B, quantiles * edges, H / 4, W / 4] to logits [B, H / 4, W / 4]."""
        found = self.into(quantiles)
        for layer in self.mix:
            found = found + layer(found)
        logits: torch.Tensor = self.out(found)[:, 0]
        return logits


class Judge(nn.Module):
    """The second half of a network alone, for the export."""

    def __init__(self, net: Finder) -> None:
        super().__init__()
        self.net = net

    def forward(self, quantiles: torch.Tensor) -> torch.Tensor:
        return self.net.judge(quantiles)


def block(given: int, made: int, stride: int = 1, reach: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(given, made, 3, stride, reach, dilation=reach, bias=False)
    return [convolution, nn.BatchNorm2d(made)]


class Batches(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches without end: samples uint8 [B, N, S, S], and per cell 1, 0 or -1 (not judged)."""

    def __init__(self, footage: Footage, fonts: Fonts, seed: int) -> None:
        self.footage, self.fonts, self.seed = footage, fonts, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0])
        bank = [mark(rng, self.fonts) for _ in range(NUM_MARKS)]
        while True:
            for _ in range(NUM_MARKS // 30):
                bank[rng.integers(NUM_MARKS)] = mark(rng, self.fonts)
            count = int(rng.choice(COUNTS))
            size = max(BATCH_SAMPLES // count, 6)
            made = [example(rng, self.footage, bank, count) for _ in range(size)]
            luma, label = (np.stack(part) for part in zip(*made, strict=True))
            yield torch.from_numpy(luma), torch.from_numpy(label)


def train(net: Finder, batches: Batches, minutes: float, lr: float) -> None:
    """Adam with a cosine that ends when the time is over."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-3)
    start = time.monotonic()
    losses: list[float] = []
    for step, (luma, label) in enumerate(DataLoader(batches, None, num_workers=1)):
        done = (time.monotonic() - start) / 60 / minutes
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, step / 100) * (1 + np.cos(np.pi * done)) / 2
        judged = label >= 0
        logits = net(luma.float())[judged]
        loss = F.binary_cross_entropy_with_logits(logits, label[judged].float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            print(f"step {step + 1}  loss {np.mean(losses[-100:]):.4f}", flush=True)


def export(net: Finder, folder: Path) -> None:
    """Write both halves of the network, for pictures of any size, as curation reads them."""
    net.eval()
    halves: dict[str, tuple[nn.Module, str, torch.Tensor]] = {
        "edges": (nn.Sequential(net.one[1:], net.two), "samples", torch.zeros(1, 4, 48, 64)),
        "marks": (Judge(net), "quantiles", torch.zeros(1, len(QUANTILES) * EDGES, 24, 32)),
    }
    for half, (module, given, zeros) in halves.items():
        torch.onnx.export(
            module, (zeros,), str(folder / f"watermark_{half}.onnx"), dynamo=False,
            opset_version=17, input_names=[given], output_names=[half],
            dynamic_axes={given: {2: "height", 3: "width"}, half: {-2: "rows", -1: "columns"}},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--film", action="append", default=[], help="FILE:START:END in seconds")
    parser.add_argument("--fonts", type=Path, required=True, help="folder of .ttf and .otf files")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights of an earlier run, .pt")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the weights and watermark_*.onnx"
    )
    given = parser.parse_args()
    cv2.setNumThreads(1)  # OpenCV's threads do not live through the fork of the loader
    footage = Footage(pictures(given.pictures), films(given.film))
    net = Finder()
    if given.start:
        net.load_state_dict(torch.load(given.start))
    batches = Batches(footage, Fonts.of(given.fonts), given.seed)
    train(net, batches, given.minutes, given.lr)
    given.output.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), given.output / "watermarks.pt")
    export(net, given.output)


if __name__ == "__main__":
    main()
