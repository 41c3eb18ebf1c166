"""Downloads run ahead of decoding, as far as they may: turns, and what Ray is told of a video."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import MakeVideo, Shot
from test_runs_copies import curate, videos

from curation.flow import stages
from curation.flow.ray_stages import SharedTally, num_turns
from curation.flow.spool import (
    TURN_PREFIX,
    cpus_per_task,
    is_spooled,
    locked,
    sweep_turns,
    turn,
)
from curation.flow.tally import Tally
from curation.pipelines import Pipeline
from curation.shards import Dataset
from curation.sources import Source
from curation.takedown.tombstones import NOTHING

HERE = Source(url="a.mp4", path="/a.mp4")
THERE = Source(url="https://host.test/a.mp4")


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def turns(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix(TURN_PREFIX) for path in folder.glob(f"{TURN_PREFIX}*"))


# -- turns


def test_one_turn_is_held_by_one(temp: Path) -> None:
    with turn(1, "node"):
        assert turns(temp) == ["node-0"]
        assert locked(temp / f"{TURN_PREFIX}node-0") is None
        with turn(1, "other"):  # another node of this machine has turns of its own
            assert turns(temp) == ["node-0", "other-0"]
    assert turns(temp) == []


def test_never_more_than_there_are_turns(temp: Path) -> None:
    lock, inside, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        with turn(3, "node"):
            with lock:
                inside += 1
                most = max(most, inside)
            os.sched_yield()
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(60)))
    assert 1 <= most <= 3 and turns(temp) == []


def test_a_file_that_its_holder_took_away_is_no_turn(
    temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its opening and its locking: else another one's new file would be a second turn."""
    path, flock = temp / f"{TURN_PREFIX}node-0", fcntl.flock

    def late(file: int, how: int) -> None:
        path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert locked(path) is None
    monkeypatch.undo()
    assert locked(path) is not None


def test_a_process_that_was_killed_holds_nothing(temp: Path) -> None:
    code = (
        "from curation.flow.spool import turn\nwith turn(1, 'node'):\n print(flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(temp)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    assert locked(temp / f"{TURN_PREFIX}node-0") is None
    sweep_turns()  # it is held: it stays
    assert turns(temp) == ["node-0"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert turns(temp) == ["node-0"]
    with turn(1, "another"):
        assert turns(temp) == ["another-0"]  # what was left is gone
    (temp / f"{TURN_PREFIX}node-0").touch()
    with turn(1, "node"):
        assert turns(temp) == ["node-0"]


# -- what a video takes


def test_a_run_with_nothing_to_fetch_is_as_it_was() -> None:
    ahead, none = Pipeline(), Pipeline.model_validate({"download": {"ahead": 0}})
    assert not is_spooled([HERE], ahead) and is_spooled([HERE, THERE], ahead)
    assert not is_spooled([THERE], none)


@pytest.mark.parametrize(
    ("cpus", "ahead", "share"), [(1, 2, 1 / 3), (1, 0, 1), (0.5, 1, 0.25), (8, 2, 2), (4, 3, 1)]
)
def test_a_video_that_may_wait_takes_a_share(cpus: float, ahead: int, share: float) -> None:
    """Ray takes no parts of CPUs above one."""
    pipeline = Pipeline.model_validate({"media": {"cpus": cpus}, "download": {"ahead": ahead}})
    assert cpus_per_task(pipeline, True) == share
    assert cpus_per_task(pipeline, False) == cpus


def test_a_video_tried_again_is_counted_once(local_ray: None) -> None:
    shared = SharedTally({}, 8, NOTHING)
    for tally in (shared, Tally({})):
        for stage in ("fetch", "decode", "fetch", "decode", "cut"):
            tally.at("v", stage, 1.0)
        tally.left("v", "cut")
        look = tally.look()
        assert look is not None
        assert [look["finished"][stage] for stage in ("fetch", "decode", "cut")] == [1, 1, 1]
    ray.kill(shared.actor)


@pytest.mark.parametrize("raises", [False, True])
def test_a_file_goes_when_its_video_is_done(
    temp: Path, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    """However that ends; the host has been left by then."""
    left: list[str | None] = []

    class Visit:
        def __init__(self, *_: object) -> None: ...

        def enter(self, max_wait_s: float) -> None: ...

        def leave(self, error_class: str | None) -> None:
            left.append(error_class)

    def fetch(worker: Any, source: Source, pipeline: Any, room: Path, beat: Any) -> Any:
        (room / "video.mp4").touch()
        return replace(source, path=str(room / "video.mp4")), 0.5

    monkeypatch.setattr(stages, "Visit", Visit)
    monkeypatch.setattr(stages, "fetch_isolated", fetch)
    worker: Any = None
    ended = pytest.raises(ZeroDivisionError) if raises else contextlib.nullcontext()
    with ended, stages.arrived(worker, THERE, Pipeline(), None, lambda *_: None) as (got, spent_s):
        assert isinstance(got, Source) and got.path and Path(got.path).is_file()
        assert (spent_s, left) == (0.5, [None])
        1 / (0 if raises else 1)
    assert not list(temp.iterdir())


# -- a whole run


class Counting:
    """Serves one video under any name, each with bytes of its own, and knows what was fetched."""

    def __init__(self, video: Path, number: int) -> None:
        self.sent: Counter[str] = Counter()
        self.all_sent = threading.Event()
        counting, data = self, video.read_bytes()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                body = data + self.path.encode()
                self.send_response(200)
                self.send_header("Content-Type", "video/mp4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)
                counting.sent[self.path] += 1
                # yt-dlp asks once to see what it is, and once for the file.
                if sum(times >= 2 for times in counting.sent.values()) == number:
                    counting.all_sent.set()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def counting(make_video: MakeVideo) -> Iterator[Counting]:
    made = Counting(make_video("tiny.mp4", [Shot("test", 1.0)], "320x180"), 4)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_all_are_fetched_while_none_can_be_decoded(
    counting: Counting, tmp_path: Path, local_ray: None
) -> None:
    """Two CPUs, both turns held here: four videos arrive, and are decoded when they are free."""
    node = ray.get_runtime_context().get_node_id()
    assert num_turns(1) == 2 and num_turns(0.5) == 4 and num_turns(3) == 1
    urls = [f"{counting.url}/{number}.mp4" for number in range(4)]
    with ThreadPoolExecutor(1) as pool:
        with turn(2, node), turn(2, node):
            run = pool.submit(curate, tmp_path / "out", *urls)
            assert counting.all_sent.wait(120)
            assert not run.done()
            assert not list((tmp_path / "out").glob("ledger/*"))
        run.result(120)
    assert videos(tmp_path / "out") == {f"{n}.mp4": ("kept", None) for n in range(4)}
    rows = Dataset.at(tmp_path / "out").ledger(["level", "stage_s"]).to_pylist()
    spent = [dict(row["stage_s"]) for row in rows if row["level"] == "video"]
    assert all(each["fetch"] > 0.01 and each["decode"] > 0 for each in spent)  # yt-dlp takes 0.1
