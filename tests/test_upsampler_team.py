"""An upsampler that a team trains: samples of every rank's held-out clips, losses as alone."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from rich.console import Console
from training_media import TINY, clip, mp4, write_dataset

from curation.shards import is_held_out
from training import jobs
from training.config import load_config
from training.parallel import ALONE, Team

IDS = [f"v{n}" for n in range(60)]
# Two to a rank, of which one is shown; with a single one a rank has none and computes along.
OUT = [name for name in IDS if is_held_out(name, 0.5)][:3]
KEPT = [name for name in IDS if not is_held_out(name, 0.5)][:4]


def work(data: str, run: Path, team: Team, *sets: str) -> None:
    torch.set_num_threads(1)
    run.mkdir(exist_ok=True)
    config = load_config("tiny", [
        *(*TINY, "height=32", "width=32", "max_steps=2", "device=cpu", "held_out=0.5"),
        *("num_samples=2", *sets),
    ], "upsampler")  # fmt: skip
    jobs.work(jobs.Job(config, [data], run, None, []), Console(quiet=True), team)


def be_a_worker(rank: int, folder: Path, data: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    work(data, folder / "ddp", Team.here(), "parallel=ddp")
    work(data, folder / "fsdp", Team.here(), "parallel=fsdp", "held_out_clips=1")
    dist.destroy_process_group()


def lines(run: Path, key: str) -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if key in line]


def test_two_workers_train_an_upsampler_as_one_does(tmp_path: Path) -> None:
    rows = [clip(name, mp4(4 + n), 4 + n) for n, name in enumerate([*OUT, *KEPT])]
    data = str(write_dataset(tmp_path / "data", rows))
    multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(
        be_a_worker, (tmp_path, data), 2, start_method="forkserver"
    )
    threads = torch.get_num_threads()
    work(data, tmp_path / "alone", ALONE)
    torch.set_num_threads(threads)
    one = [line["loss"] for line in lines(tmp_path / "alone", "loss")]
    for parallel, count in (("ddp", 2), ("fsdp", 1)):
        run = tmp_path / parallel
        assert [line["loss"] for line in lines(run, "loss")] == pytest.approx(one, rel=1e-4)
        (told,) = lines(run, "samples")
        assert len(told["samples"]) == len(told["prompts"]) == count
        assert set(told["prompts"]) <= {f"clip {name}" for name in OUT}
        sheet = Image.open(run / "samples" / "step-00000002" / "sheet.png")
        assert sheet.size == (2 * 34 + 2, 3 * count * 34 + 2)
