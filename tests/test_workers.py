"""Media work is isolated: what kills, stops or fills its process costs one video."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Shot

from curation.flow.media_processes import MediaWorker, WorkerDiedError, curate_isolated
from curation.pipelines import Media, Pipeline
from curation.shards import FAILED, KEPT
from curation.sources import Source

PIPELINE = Pipeline(name="test")
MARK = "PYTHON_TEST_MARK"  # media processes are given few variables, and those of Python


@pytest.fixture
def source(make_video: Callable[..., Path]) -> Source:
    path = make_video("shots.mp4")
    return Source(url=str(path), path=str(path))


@pytest.fixture
def worker() -> Iterator[MediaWorker]:
    with MediaWorker(Media()) as worker:
        yield worker


def quiet(stage: str, at_s: float) -> None:
    """A listener that does nothing."""


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that were started with a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_worker_is_reused_and_then_renewed(source: Source) -> None:
    with MediaWorker(Media(recycle_after=2)) as worker:
        pids = []
        for _ in range(3):
            worker.curate(source, PIPELINE, quiet)
            assert worker.process is not None
            pids.append(worker.process.pid)
    assert pids[0] == pids[1] != pids[2]


def test_a_killed_video_is_tried_once_more(worker: MediaWorker, source: Source) -> None:
    pids: list[int] = []

    def kill_the_first(stage: str, at_s: float) -> None:
        assert worker.process is not None
        pids.append(worker.process.pid)
        if len(set(pids)) == 1:
            os.kill(worker.process.pid, signal.SIGKILL)

    result = curate_isolated(worker, source, PIPELINE, kill_the_first)
    assert result.ledger[0]["decision"] == KEPT
    assert result.ledger[0]["attempts"] == 2


def test_a_video_that_always_kills_its_process_is_quarantined(
    worker: MediaWorker, source: Source
) -> None:
    def kill(stage: str, at_s: float) -> None:
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGKILL)

    result = curate_isolated(worker, source, PIPELINE, kill)
    row = result.ledger[0]
    assert (row["decision"], row["error_class"], row["attempts"]) == (FAILED, "crashed", 2)
    assert "SIGKILL" in row["message"]
    assert f"replay: vf-curate {source.url!r} --pipeline test" in row["message"]


def test_the_next_video_has_a_worker_again(worker: MediaWorker, source: Source) -> None:
    def kill(stage: str, at_s: float) -> None:
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGKILL)

    curate_isolated(worker, source, PIPELINE, kill)
    assert curate_isolated(worker, source, PIPELINE, quiet).ledger[0]["decision"] == KEPT


def test_a_stopped_process_is_killed_as_stalled(worker: MediaWorker, source: Source) -> None:
    worker.curate(source, PIPELINE, quiet)  # starting up is no stall
    worker.limits = Media(stall_s=0.2)
    pids: list[int] = []

    def stop(stage: str, at_s: float) -> None:
        assert worker.process is not None
        pids.append(worker.process.pid)
        os.kill(worker.process.pid, signal.SIGSTOP)

    with pytest.raises(WorkerDiedError, match=r"no progress for 0\.2 s"):
        worker.curate(source, PIPELINE, stop)
    assert not psutil.pid_exists(pids[0])


@pytest.mark.parametrize(
    ("limits", "error_class"),
    [(Media(timeout_s=0.001), "timeout"), (Media(memory_gb=0.001), "memory")],
)
def test_a_limit_ends_a_video(limits: Media, error_class: str, source: Source) -> None:
    with MediaWorker(limits) as worker, pytest.raises(WorkerDiedError) as died:
        worker.curate(source, PIPELINE, quiet)
    assert died.value.error_class == error_class


def test_our_own_mistake_is_told_as_internal(worker: MediaWorker, source: Source) -> None:
    broken = Pipeline(name="test").model_copy(update={"scenes": None})
    row = curate_isolated(worker, source, broken, quiet).ledger[0]
    assert (row["decision"], row["error_class"]) == (FAILED, "internal")
    assert "AttributeError" in row["message"]


ENDS_ITSELF = """
import os, signal, sys
import psutil
from curation.pipelines import Cut, Media, Pipeline
from curation.sources import Source
from curation.flow.media_processes import MediaWorker
worker = MediaWorker(Media())
path = sys.argv[1]
source = Source(url=path, path=path)

def end_while_it_encodes(stage, at_s):
    for encoder in psutil.Process(worker.process.pid).children(recursive=True):
        encoder.suspend()  # so that it cannot come to an end by itself
        os.kill(os.getpid(), signal.SIGKILL)

worker.curate(source, Pipeline(cut=Cut(preset="veryslow")), end_while_it_encodes)
"""


def test_no_process_and_no_scratch_outlives_a_killed_parent(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    # Pixels that are not square, so that its clip is encoded.
    large = make_video("large.mp4", [Shot("fractal", 2)], "1280x720", filters="setsar=2")
    mark = uuid.uuid4().hex
    environment = os.environ | {MARK: mark, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", ENDS_ITSELF, str(large)]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    _, alive = psutil.wait_procs(marked(mark), timeout=30)
    assert alive == []
    assert list(tmp_path.iterdir()) == []
