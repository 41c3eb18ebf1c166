"""Many workers train as one does: losses, weights, checkpoints, order, ends."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from conftest import PACKAGED_JOB
from ray import cloudpickle
from torch import Tensor
from training_media import TINY, clip, mp4, small_dataset, write_dataset

from training import ray_workers
from training.checkpoints.folders import latest
from training.config import Config, load_config
from training.data.batches import Batches
from training.data.orders import digest
from training.data.rows import open_rows
from training.data.shapes import shapes_of
from training.learning.losses import Objective, held_out_losses
from training.learning.starts import (
    DTYPES,
    choose_trained,
    make_codec,
    make_start,
    make_text,
    schedule_of,
)
from training.learning.steps import DivergedError, State, make_state, train_step
from training.parallel import ALONE, Team, whole
from training.train import train as vf_train

CPU = torch.device("cpu")
# One level of nine channels: no weight of the blocks divides by two. Two shapes of video, an image.
SPLIT = [
    *TINY,
    "unet.block_out_channels=[9]",
    "unet.down_block_types=[CrossAttnDownBlock3D]",
    "unet.up_block_types=[CrossAttnUpBlock3D]",
    "unet.attention_head_dim=3",
    "unet.norm_num_groups=3",
    *("precision=float64", "batch_size=5", "micro_batch_size=2", "ema_decay=0.9"),
    "buckets=[[2, 16, 32], [3, 16, 16]]",
]
DDP, FSDP = "parallel=ddp", "parallel=fsdp"


class OneByOne:
    """The tiny text tower, a prompt at a time: fp32 states depend on what they are batched with."""

    def __init__(self) -> None:
        self.tower = make_text(load_config("tiny", []), CPU)
        self.width = self.tower.width

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.cat([self.tower.encode([prompt]) for prompt in prompts])


@cache
def text() -> OneByOne:
    return OneByOne()


def fresh(config: Config, team: Team) -> tuple[State, Objective]:
    start = make_start(config, None)
    choose_trained(start.unet, config)
    schedule, dtype = schedule_of(start.noise), DTYPES[config.precision]
    objective = Objective(config, schedule, make_codec(config, CPU), text(), CPU, dtype)
    return make_state(start.unet, config, CPU, team), objective


def trained(data: str, overrides: list[str], steps: int, team: Team = ALONE) -> dict[str, Any]:
    """A few steps: what they gave, the same on every rank, and the state on this one."""
    config = load_config("tiny", [*SPLIT, *overrides])
    state, objective = fresh(config, team)
    rows = open_rows(data, "a", 1, shapes_of(config), 16, config.held_out)
    batches = Batches([rows], config, team).start_at(0)
    losses, norms, parts, seen = [], [], [], []
    for _ in range(steps):
        batch = next(batches)
        own, norm = train_step(state, objective, batch.samples, config)
        every = team.gather_lists(own.tolist())
        losses.append(math.fsum(every) / len(every))
        norms.append(norm)
        parts.append(state.part_norms)
        seen.append(sorted(team.gather_lists([sample.clip_id for sample in batch.samples])))
    batches.close()
    weights = {name: whole(p.detach()).clone() for name, p in state.unet.named_parameters()}
    averages = {name: whole(average).clone() for name, average in state.ema.averages.items()}
    return {"losses": losses, "norms": norms, "parts": parts, "seen": seen, "weights": weights,
            "averages": averages, "state": state, "objective": objective}  # fmt: skip


def diverged(data: str, team: Team) -> list[bool]:
    """Whether each rank stops, unchanged, at a step that diverges on the last rank alone."""
    config = load_config("tiny", [*SPLIT, "batch_size=2", "caption_dropout=0", DDP])
    state, objective = fresh(config, team)
    rows = open_rows(data, "a", 1, shapes_of(config), 16, 0)
    samples = next(Batches([rows], config, team).start_at(0)).samples
    if team.rank == 1:
        objective.text = type("Nan", (), {"encode": lambda _, p: text().encode(p) * float("nan")})()
    try:
        train_step(state, objective, samples, config)
    except DivergedError:
        return team.gather(state.step == 0)
    return team.gather(False)


# What the two workers do, each after the other in one pair of processes. Few shapes where blocks
# are compiled: each is traced for each.
PLACES = ["unet.swap_position=learned", "unet.swap_shift=odd", "unet.swap_window=[1, 2, 3]"]
ONE_SHAPE = ["buckets=[]", "batch_size=2", *PLACES]
SCENARIOS: dict[str, tuple[list[str], int]] = {
    "ddp": ([DDP], 5),
    "fsdp": ([FSDP], 5),
    "everything": ([FSDP, "activation_checkpointing=true", "compile=true", *ONE_SHAPE], 1),
    "hsdp, one copy": (["parallel=hsdp", "shard_workers=2"], 2),
    "hsdp, two copies": (["parallel=hsdp", "shard_workers=1"], 2),
    "swap alone": ([FSDP, "trainable=swap"], 1),
    "swap alone, copies": ([DDP, "trainable=swap", "activation_checkpointing=true"], 1),
}
# The same without a second worker, and without what must change nothing.
ALONE_AS: dict[str, list[str]] = {
    "everything": ONE_SHAPE,
    "hsdp, one copy": [],
    "hsdp, two copies": [],
    "swap alone": ["trainable=swap"],
    "swap alone, copies": ["trainable=swap"],
}


def be_a_worker(rank: int, folder: Path, data: str, broken: str) -> None:
    torch.set_num_threads(1)
    torch.compiler.set_stance("default", force_backend="eager")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    team, found = Team.here(), {}
    for name, (overrides, steps) in SCENARIOS.items():
        found[name] = trained(data, overrides, steps, team)
    found["broken"] = trained(broken, [FSDP, "batch_size=2"], 2, team)
    run = found["fsdp"]
    state, objective = run["state"], run["objective"]
    run["local"] = {n: p.to_local().shape for n, p in state.unet.named_parameters()}
    run["ema local"] = {n: a.to_local().shape for n, a in state.ema.averages.items()}
    samples = next(Batches([open_rows(data, "a", 1, shapes_of(objective.config), 16, 0)],
                           objective.config).start_at(0)).samples  # fmt: skip
    for key, count in (("held out", 3), ("held out, one", 1)):
        run[key] = held_out_losses(objective, state.unet, team.share(samples[:count]), 2, team)
    state.save(folder / "saved", {}, objective.config)
    state.saver.wait()
    copies = found["hsdp, two copies"]["state"]
    copies.save(folder / "copies", {}, objective.config)
    copies.saver.wait()
    again, _ = fresh(load_config("tiny", [*SPLIT, FSDP]), team)
    again.load(folder / "saved" / "checkpoints" / "step-00000005")
    run["loaded"] = {n: whole(p.detach()).clone() for n, p in again.unet.named_parameters()}
    run["loaded averages"] = {n: whole(a).clone() for n, a in again.ema.averages.items()}
    found["diverged"] = diverged(data, team)
    for each in found.values():
        if isinstance(each, dict):
            del each["state"], each["objective"]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "a"
    sizes = [(32, 16), (16, 16), (32, 16), (16, 16), (16, 16), (32, 16), (16, 16)]
    rows = [
        clip(f"c{n}", mp4(frames, size), frames, width=size[0])
        for n, (frames, size) in enumerate(zip([4, 5, 6, 7, 8, 1, 3], sizes, strict=True))
    ]
    return write_dataset(folder, rows)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the rows do not decode: now one rank has no sample, now the other."""
    rows = [clip(f"c{n}", b"junk" if n % 2 else mp4(4), 4) for n in range(6)]
    return write_dataset(tmp_path_factory.mktemp("data") / "b", rows)


@pytest.fixture(scope="module")
def pair(data: Path, broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two workers left what they did."""
    folder = tmp_path_factory.mktemp("pair")
    # Workers of one server that has imported all of this once.
    multiprocessing.set_forkserver_preload([__name__])
    arguments = (folder, str(data), str(broken))
    torch.multiprocessing.start_processes(be_a_worker, arguments, 2, start_method="forkserver")
    return folder


@pytest.fixture(scope="module")
def two(pair: Path) -> list[dict[str, Any]]:
    return [torch.load(pair / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def one(data: Path) -> dict[str, Any]:
    return trained(str(data), [], 5)


def assert_close(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys()
    for name in some:
        assert torch.allclose(some[name], others[name], rtol=1e-6, atol=1e-8), name


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_workers_train_as_one(
    name: str, two: list[dict[str, Any]], one: dict[str, Any], data: Path
) -> None:
    """fp64: losses, gradient norms, weights and EMA; both ranks hold the same."""
    _, steps = SCENARIOS[name]
    alone = trained(str(data), ALONE_AS[name], steps) if name in ALONE_AS else one
    for rank in two:
        found = rank[name]
        assert found["seen"] == alone["seen"]
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-9, abs=0)
        assert found["norms"] == pytest.approx(alone["norms"], rel=1e-9, abs=0)
        for own, same in zip(found["parts"], alone["parts"], strict=True):
            assert own == pytest.approx(same, rel=1e-9, abs=0)
        assert_close(found["weights"], alone["weights"])
        assert_close(found["averages"], alone["averages"])
    moved = {n for n, w in two[0][name]["averages"].items()
             if not torch.equal(w, two[0][name]["weights"][n])}  # fmt: skip
    assert moved  # the EMA lags behind


@pytest.mark.slow
def test_fsdp_shards_weights_and_their_averages(two: list[dict[str, Any]]) -> None:
    full, uneven = two[0]["fsdp"]["weights"], 0
    for name, weight in full.items():
        parts = [rank["fsdp"]["local"][name] for rank in two]
        assert sum(part[0] for part in parts) == weight.shape[0], name
        assert parts == [rank["fsdp"]["ema local"][name] for rank in two]
        uneven += parts[0] != parts[1]
    assert uneven > 100


@pytest.mark.slow
def test_a_sharded_checkpoint_is_a_whole_one(
    two: list[dict[str, Any]], pair: Path, one: dict[str, Any]
) -> None:
    """Saved by two workers with FSDP2, loaded by two and by one."""
    checkpoint = pair / "saved" / "checkpoints" / "step-00000005"
    state, _ = fresh(load_config("tiny", SPLIT), ALONE)
    state.load(checkpoint)
    for rank in two:
        for name, weight in state.unet.named_parameters():
            assert torch.equal(weight, rank["fsdp"]["weights"][name])
            assert torch.equal(weight, rank["fsdp"]["loaded"][name])
            assert torch.equal(state.ema.averages[name], rank["fsdp"]["averages"][name])
            assert torch.equal(state.ema.averages[name], rank["fsdp"]["loaded averages"][name])
    for name, weight in one["state"].unet.named_parameters():
        moments = state.optimizer.state[dict(state.unet.named_parameters())[name]]
        for key in ("exp_avg", "exp_avg_sq"):
            known = one["state"].optimizer.state[weight][key]
            assert torch.allclose(moments[key], known, rtol=1e-6, atol=1e-10), name
        assert moments["step"] == 5
    files = [*(checkpoint / "shards").iterdir()]
    sizes = [sum(f.stat().st_size for f in files if f"shard-0000{n}" in f.name) for n in (1, 2)]
    assert max(sizes) < 0.6 * sum(sizes)  # each rank wrote its part


@pytest.mark.slow
def test_copies_that_are_shared_are_written_once(two: list[dict[str, Any]], pair: Path) -> None:
    checkpoint, other = latest(pair / "copies"), latest(pair / "saved")
    assert checkpoint and other
    state, _ = fresh(load_config("tiny", SPLIT), ALONE)
    state.load(checkpoint)
    for name, weight in state.unet.named_parameters():
        assert torch.equal(weight, two[1]["hsdp, two copies"]["weights"][name])
    sizes = [
        sum(file.stat().st_size for file in (each / "shards").iterdir())
        for each in (checkpoint, other)
    ]
    assert sizes[0] < 1.1 * sizes[1]  # of one copy, in parts


@pytest.mark.slow
def test_held_out_losses_are_those_of_one_process(
    two: list[dict[str, Any]], one: dict[str, Any], data: Path
) -> None:
    """Also where a rank has no clip of its own."""
    config = one["objective"].config
    rows = open_rows(str(data), "a", 1, shapes_of(config), 16, 0)
    samples = next(Batches([rows], config).start_at(0)).samples
    for key, count in (("held out", 3), ("held out, one", 1)):
        known = held_out_losses(one["objective"], one["state"].unet, samples[:count], 2)
        for rank in two:
            found = rank["fsdp"][key]
            assert found["clips"] == known["clips"] == count
            assert found["all"] == pytest.approx(known["all"], rel=1e-6)
            assert found["bins"] == pytest.approx(known["bins"], rel=1e-6)


@pytest.mark.slow
def test_a_row_that_one_worker_cannot_read(two: list[dict[str, Any]], broken: Path) -> None:
    """The mean is over the samples that all of them read."""
    alone = trained(str(broken), ["batch_size=2"], 2)
    assert any(len(seen) == 1 for seen in alone["seen"])
    for rank in two:
        assert rank["broken"]["seen"] == alone["seen"]
        assert rank["broken"]["losses"] == pytest.approx(alone["losses"], rel=1e-9)
        assert rank["broken"]["norms"] == pytest.approx(alone["norms"], rel=1e-9)


@pytest.mark.slow
def test_all_workers_stop_where_one_diverges(two: list[dict[str, Any]]) -> None:
    assert [rank["diverged"] for rank in two] == [[True, True]] * 2


def test_compiled_blocks(data: Path) -> None:
    """Each of the three blocks is one graph for each shape, two clips and the one held out."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    found, graphs = [], []
    torch.compiler.set_stance("default", force_backend="eager")
    for asked in ("false", "true"):
        counters.clear()
        found.append(trained(str(data), [f"compile={asked}", *ONE_SHAPE], 1))
        graphs.append(counters["stats"]["unique_graphs"])
    torch.compiler.set_stance("default")
    assert found[1]["losses"] == pytest.approx(found[0]["losses"], rel=1e-9)
    # Two clips, and the one that is left of an epoch or held out.
    assert graphs == [0, 3 * 2] and not counters["graph_break"]


# -- the real command


def train(
    data: Path, run: Path, *overrides: str, workers: int | None = None, restarts: int = 3
) -> None:
    sets = [*TINY, "num_threads=1", "precision=float64", *overrides]
    vf_train("tiny", [str(data)], run, set_=sets, workers=workers, restarts=restarts)


def lines(run: Path, key: str = "loss") -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if key in line]


def once_at_step(run: Path, step: int, act: Callable[[], Any]) -> None:
    """Do something as soon as the metrics tell of a step."""

    def wait() -> None:
        path = run / "metrics.jsonl"
        while not path.exists() or f'"step": {step},' not in path.read_text():
            time.sleep(0.05)
        act()

    threading.Thread(target=wait, daemon=True).start()


def once_restarted(run: Path, act: Callable[[], Any]) -> None:
    """Do something two steps after what the restarted workers begin from."""
    path = run / "metrics.jsonl"
    before = path.stat().st_ino
    while path.stat().st_ino == before:  # a run that goes on writes it anew
        time.sleep(0.05)
    once_at_step(run, lines(run)[-1]["step"] + 2, act)


def kill_a_worker() -> None:
    for process in psutil.process_iter(["cmdline"]):
        is_worker = "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
        with contextlib.suppress(psutil.NoSuchProcess):  # another test's that has just ended
            if is_worker and psutil.Process() in process.parents():
                process.kill()
                return


def refused(capsys: pytest.CaptureFixture[str], code: int, call: Callable[[], None]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        call()
    assert error.value.code == code
    return capsys.readouterr().err


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_one_worker_two_and_one_again(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    """Ray Train: each clip once an epoch over the whole run, and the losses of one process.

    One process, two workers with FSDP2 until one of them is killed, which Ray Train begins again
    until one is killed once more, two with DDP until SIGTERM, one process to the end.
    """
    data, run = small_dataset(tmp_path / "a"), tmp_path / "run"
    train(data, run, "max_steps=3", "checkpoint_every=1")
    endless = ("max_steps=1000", "checkpoint_every=1")

    def kill_two() -> None:
        kill_a_worker()
        once_restarted(run, kill_a_worker)

    once_at_step(run, 5, kill_two)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train(data, run, *endless, FSDP, workers=2, restarts=1)
    out, error = capsys.readouterr()
    assert end.value.code == 1 and "Traceback" not in error
    assert "a worker was lost: beginning again from the last checkpoint, 1 of at most 1" in out
    assert out.count("going on from step") == 2 and "the run failed: worker" in error
    killed = int(latest(run).name.removeprefix("step-"))  # type: ignore[union-attr]
    seen = lines(run)[-1]["step"]  # perhaps past the checkpoint that was being written
    once_at_step(run, seen + 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    told = refused(capsys, 1, lambda: train(data, run, *endless, DDP, workers=2))
    last = lines(run)[-1]["step"]
    assert f"stopped and saved at step {last}" in told and last > seen >= killed
    assert latest(run).name == f"step-{last:08d}"  # type: ignore[union-attr]
    end = last + 3
    train(data, run, f"max_steps={end}")
    train(data, tmp_path / "whole", f"max_steps={end}", "checkpoint_every=100")
    assert {path.name for path in run.iterdir()} == {path.name for path in
            (tmp_path / "whole").iterdir()}  # fmt: skip

    some, every = lines(run), lines(tmp_path / "whole")
    assert [line["step"] for line in some] == list(range(1, end + 1))
    for key, tolerance in (("loss", 1e-5), ("gradient_norm", 1e-4)):
        known = [line[key] for line in every]
        assert [line[key] for line in some] == pytest.approx(known, rel=tolerance)
    assert [line["epoch"] for line in some] == [line["epoch"] for line in every]
    # Six clips, two a step: an epoch is three steps.
    config = load_config("tiny", TINY)
    memory_bytes = config.shuffle_memory_gb * 1e9
    rows = open_rows(str(data), "a", 1, shapes_of(config), memory_bytes, config.held_out)
    batches, met = Batches([rows], config), []
    for line in some:
        both = [batches.read(2 * (line["step"] - 1) + n) for n in range(2)]
        keys = [f"a/{s.epoch}/{s.clip_id}" for s in both]  # type: ignore[union-attr]
        assert line["clips_digest"] == digest(*sorted(keys)).hex()[:16]
        met += keys
    for epoch in range(end // 3):
        assert len({key for key in met if key.startswith(f"a/{epoch}/")}) == 6


@pytest.mark.slow
def test_mistakes_are_told_before_and_in_workers(
    local_ray: None,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = refused(capsys, 2, lambda: train(data, tmp_path / "x", workers=3))
    assert "--workers 3: a batch of 2" in told and "--workers 2" in told
    told = refused(capsys, 2, lambda: train(data, tmp_path / "x", "held_out=0.9999", workers=1))
    assert "no clip to train on" in told and "Traceback" not in told
    monkeypatch.setenv(*PACKAGED_JOB)
    told = refused(capsys, 2, lambda: train(data, Path("runs/x")))
    assert "--output runs/x is relative, and this Ray job" in told


def test_rays_controller_need_not_import_training() -> None:
    """What it unpickles, it unpickles without torch."""
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); print('torch' in sys.modules)"
    given = cloudpickle.dumps(ray_workers.imported_late())
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True)
    assert done.stdout.strip() == b"False", done.stderr


def test_without_workers_there_is_no_ray() -> None:

    code = "import sys; import training.jobs; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
