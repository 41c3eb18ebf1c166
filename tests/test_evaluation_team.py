"""FVD while a team trains: each rank its share, copies and shards as one process."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from test_evaluation_run import IDS, cheap_network
from training_media import TINY, clip, mp4, write_dataset

from curation.shards import is_held_out
from training import jobs
from training.config import load_config
from training.evaluation import scoring
from training.evaluation.i3d import Features
from training.parallel import ALONE, Team

OUT = [i for i in IDS if is_held_out(i, 0.5)][:9]  # three parts: a rank has two, a rank has one
KEPT = [i for i in IDS if not is_held_out(i, 0.5)][:4]


def work(data: str, run: Path, parallel: str, team: Team) -> None:
    torch.set_num_threads(1)
    run.mkdir(exist_ok=True)
    config = load_config("tiny", [
        *(*TINY, "held_out=0.5", "held_out_clips=2", "max_steps=1", f"parallel={parallel}"),
        *("protocol_every=1", "protocol_samples=9", "protocol_i3d=untrained", "device=cpu"),
        *("protocol_set=[num_frames=10,height=16,width=32]", "learning_rate=1e-12"),
    ])  # fmt: skip
    jobs.work(jobs.Job(config, [data], run, None, []), Console(quiet=True), team)


def be_a_worker(rank: int, folder: Path, data: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    features = Features(cheap_network, "untrained-features", "seed 0")
    scoring.untrained_i3d = lambda device: features
    for parallel in ("ddp", "fsdp"):
        work(data, folder / parallel, parallel, Team.here())
    dist.destroy_process_group()


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "protocol" / "step-00000001.json").read_text())


def test_two_workers_measure_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [clip(name, mp4(12 + n), 12 + n) for n, name in enumerate([*OUT, *KEPT])]
    data = write_dataset(tmp_path / "data", rows)
    multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(
        be_a_worker, (tmp_path, str(data)), 2, start_method="forkserver"
    )
    features = Features(cheap_network, "untrained-features", "seed 0")
    monkeypatch.setattr(scoring, "untrained_i3d", lambda device: features)
    threads = torch.get_num_threads()
    work(str(data), tmp_path / "alone", "ddp", ALONE)
    torch.set_num_threads(threads)
    one = result(tmp_path / "alone")
    assert one["n"] == 9 and one["scores"]["fvd"]["value"] > 0
    for parallel in ("ddp", "fsdp"):
        two = result(tmp_path / parallel)
        for key in ("name", "hash", "items", "reference_sha256", "networks", "n"):
            assert two[key] == one[key]
        for name, score in one["scores"].items():
            assert two["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-3)
