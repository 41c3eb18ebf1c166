"""Runs without Ray: when they are, and that nothing of them goes on when they end."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import psutil
import pytest

from curation.flow import media_processes, plans
from curation.flow.confinement import machine_cpus
from curation.flow.local_flow import MOST, LocalFlow, is_enough
from curation.flow.media_processes import Job, MediaWorker, WorkerDiedError, attempt
from curation.pipelines import Media, Pipeline
from curation.sources import Source

ROOT = Path(__file__).parents[1]
FILE = Source(url="a.mp4", path="a.mp4")
URL = Source(url="https://h/a.mp4")


# -- when


@pytest.mark.parametrize(
    ("settings", "number", "enough"),
    [
        ({}, 1, True),
        ({}, MOST, True),
        ({}, MOST + 1, False),
        ({"captions": {"model": "blip2", "checkpoint": "x"}}, 1, False),
        ({"scorers": {"text": "rapidocr"}}, 1, False),
    ],
)
def test_few_videos_that_no_model_sees_need_no_ray(
    settings: dict[str, Any], number: int, enough: bool
) -> None:
    pipeline = Pipeline.model_validate(settings)
    assert is_enough([FILE] * number, pipeline) is enough


def test_ray_is_started_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(plans, "ray_runs", lambda: False)
    config = ROOT / "pipelines.yaml"
    plan = plans.make_plan([], "demo", config, "runs/never", [], None)
    assert not plans.wants_ray(plan, None) and plans.wants_ray(plan, "local")
    assert isinstance(plans.flow_of(plan), LocalFlow)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # as inside a job
    assert plans.wants_ray(plan, None)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(plans, "ray_runs", lambda: True)
    assert plans.wants_ray(plan, None)


def test_a_run_without_ray_does_not_load_it() -> None:
    code = "import sys, curation.run, curation.flow.plans; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "curation.flow.local_flow" in loaded
    assert not loaded & {"ray", "av", "torch", "yt_dlp", "pandas"}


# -- how many at once


def test_as_many_decode_as_there_are_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.flow.local_flow.machine_cpus", lambda: 3.5)
    flow = LocalFlow(Pipeline(), [FILE] * 9)
    assert (len(flow.workers), flow.turns) == (3, None)
    assert len(LocalFlow(Pipeline(), [FILE]).workers) == 1
    # What is fetched ahead waits for one of three turns.
    flow = LocalFlow(Pipeline.model_validate({"download": {"ahead": 2}}), [URL, *[FILE] * 99])
    assert flow.turns is not None
    assert (len(flow.workers), flow.turns.number) == (9, 3)
    flow = LocalFlow(Pipeline.model_validate({"media": {"cpus": 8}}), [FILE] * 9)
    assert len(flow.workers) == 1


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "25000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.25),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_has_the_cpus_that_it_was_given(
    tmp_path: Path, files: dict[str, str], cpus: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine_cpus(tmp_path) == (cpus or len(psutil.Process().cpu_affinity()))


# -- the end


def test_every_item_comes_out_once() -> None:
    with LocalFlow(Pipeline(), [FILE] * 2) as flow:
        assert sorted(flow.each(range(40), lambda n, _: n * n)) == [n * n for n in range(40)]


def test_a_mistake_of_ours_ends_the_run() -> None:
    def work(item: int, _: MediaWorker) -> int:
        if item == 3:
            raise LookupError("three")
        return item

    with LocalFlow(Pipeline(), [FILE] * 2) as flow, pytest.raises(LookupError, match="three"):
        list(flow.each(range(9), work))


@pytest.mark.parametrize("by", ["stop", "reader"])
def test_what_hangs_is_killed_when_a_run_is_stopped(by: str) -> None:
    """By Ctrl-C, or by who reads no more: no thread and no process stays behind."""
    stop, hanging = threading.Event(), threading.Semaphore(0)
    died: list[Any] = []
    seen: list[str] = []

    def work(item: str, worker: MediaWorker) -> str:
        seen.append(item)
        if item == "hangs":
            assert worker.process is not None
            os.kill(worker.process.pid, signal.SIGSTOP)
            hanging.release()
            result, _ = attempt(worker, Job("builtins:print"), lambda *_: None)
            died.append(result.error_class)
        return item

    with LocalFlow(Pipeline(), [FILE] * 2) as flow:
        processes = [worker.process for worker in flow.workers]
        results = flow.each(["quick", "hangs", "hangs", "later"], work, stop)
        assert next(results) == "quick"
        assert hanging.acquire(timeout=60) and hanging.acquire(timeout=60)
        if by == "stop":
            stop.set()
            with pytest.raises(KeyboardInterrupt):
                next(results)
        else:
            results.close()
        assert died == ["crashed", "crashed"]
        assert seen == ["quick", "hangs", "hangs"]
        assert all(process and process.poll() is not None for process in processes)
    assert [worker.process for worker in flow.workers] == [None, None]


def test_time_in_which_a_run_was_put_aside_is_no_time_of_a_video(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-Z for a day: the video is as far as it was. A clock that goes on ends it."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"a few bytes")
    job = Job("curation.sources.identified:identify", (Source(url="a", path=str(path)), False))
    put_aside = itertools.chain([0.0], itertools.repeat(86_400.0))
    clock = types.SimpleNamespace(monotonic=lambda: next(put_aside))
    with MediaWorker(Media(timeout_s=60, stall_s=60)) as worker:
        monkeypatch.setattr(media_processes, "time", clock)
        assert worker.run(job, lambda *_: None).id is not None
        clock.monotonic = map(float, itertools.count(0, 9)).__next__
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGSTOP)
        with pytest.raises(WorkerDiedError, match="not done after 60 s"):
            worker.run(Job("builtins:print"), lambda *_: None)
