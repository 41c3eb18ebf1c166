"""A cluster is one polite visitor: places and rates of a host, and hosts that refuse everybody."""

from __future__ import annotations

import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeVideo, Shot
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from curation.downloads.hosts import CLOSED_S, MAX_CLOSED_S, MAX_REFUSALS, Hosts
from curation.flow.plans import execute, make_plan
from curation.pipelines import Download
from curation.settings import RunError
from curation.shards import Dataset

ROOT = Path(__file__).parents[1]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(hosts: Hosts, url: str, error_class: str = "throttled") -> None:
    assert hosts.enter(url) == (0.0, None)
    hosts.leave(url, error_class)


# -- places


def test_a_host_has_so_many_places_and_others_have_their_own(clock: Clock) -> None:
    hosts = Hosts(2, clock)
    a, b, c = (f"http://one.test/{name}" for name in "abc")
    assert [hosts.enter(url)[0] for url in (a, b)] == [0.0, 0.0]
    assert hosts.enter(c) == (0.5, None)
    assert hosts.enter("http://two.test/a") == (0.0, None)
    hosts.leave(a, None)
    assert hosts.enter(c) == (0.0, None)


def test_a_lost_task_has_its_place_again(clock: Clock) -> None:
    hosts = Hosts(1, clock)
    assert hosts.enter("http://one.test/a") == hosts.enter("http://one.test/a") == (0.0, None)
    hosts.leave("http://one.test/a", None)
    hosts.leave("http://one.test/a", "throttled")  # said twice
    assert hosts.enter("http://one.test/b") == (0.0, None)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.booleans())),
    st.data(),
)
def test_there_are_never_more_inside(
    most: int, moves: list[tuple[bool, int, bool]], data: st.DataObject
) -> None:
    clock = Clock()
    hosts = Hosts(most, clock)
    inside: set[str] = set()
    for enters, number, is_well in moves:
        url = f"http://one.test/{number}"
        clock.now_s += data.draw(st.sampled_from([0.0, 1.0, 1000.0]))
        if enters:
            if hosts.enter(url) == (0.0, None):
                inside.add(url)
        else:
            hosts.leave(url, None if is_well else "network")
            inside.discard(url)
        assert len(inside) <= most
        assert hosts.hosts.get("one.test") is None or hosts.hosts["one.test"].inside == inside


# -- a host that refuses


def test_a_host_that_refuses_is_left_alone_and_tried_by_one(clock: Clock) -> None:
    hosts = Hosts(8, clock)
    for number in range(MAX_REFUSALS):
        fail(hosts, f"http://one.test/{number}")
    assert hosts.enter("http://one.test/x") == (CLOSED_S, "throttled")
    clock.now_s = CLOSED_S
    assert hosts.enter("http://one.test/x") == (0.0, None)
    assert hosts.enter("http://one.test/y") == (0.5, None)  # one alone tries
    hosts.leave("http://one.test/x", "bot_check")
    assert hosts.enter("http://one.test/y") == (2 * CLOSED_S, "bot_check")
    clock.now_s += 2 * CLOSED_S
    assert hosts.enter("http://one.test/y") == (0.0, None)
    hosts.leave("http://one.test/y", None)
    assert [hosts.enter(f"http://one.test/{n}")[0] for n in range(9)] == [0.0] * 8 + [0.5]


def test_it_is_left_alone_longer_each_time_and_not_for_ever(clock: Clock) -> None:
    hosts = Hosts(1, clock)
    waits = []
    for _ in range(MAX_REFUSALS - 1):
        fail(hosts, "http://one.test/a")
    for _ in range(6):
        fail(hosts, "http://one.test/a")
        wait_s = hosts.enter("http://one.test/a")[0]
        waits.append(wait_s)
        clock.now_s += wait_s
    assert waits == [60, 120, 240, 480, MAX_CLOSED_S, MAX_CLOSED_S]


@pytest.mark.parametrize("said", [None, "gone", "private", "not_a_video"])
def test_what_is_said_of_one_video_is_no_refusal_of_all(clock: Clock, said: str | None) -> None:
    hosts = Hosts(1, clock)
    for number in range(4 * MAX_REFUSALS):
        answer = said if number % MAX_REFUSALS == 0 else "throttled"
        assert hosts.enter(f"http://one.test/{number}") == (0.0, None)
        hosts.leave(f"http://one.test/{number}", answer)


# -- a whole run


class Busy:
    """Serves a video under every even number and nothing under others, and counts who asks."""

    def __init__(self, video: Path) -> None:
        self.asked = self.inside = self.most = 0
        self.lock = threading.Lock()
        busy, data = self, video.read_bytes()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                with busy.lock:
                    busy.asked += 1
                    busy.inside += 1
                    busy.most = max(busy.most, busy.inside)
                threading.Event().wait(0.1)  # so that two at once are seen
                number = int(self.path[1:].split(".")[0])
                self.send_response(200 if number % 2 == 0 else 404)
                body = data + str(number).encode() if number % 2 == 0 else b""
                self.send_header("Content-Type", "video/mp4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                with busy.lock:
                    busy.inside -= 1

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def busy(make_video: MakeVideo) -> Iterator[Busy]:
    made = Busy(make_video("tiny.mp4", [Shot("test", 1.0)], "320x180"))
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_run_keeps_a_hosts_limits_and_accounts_for_all(
    busy: Busy, tmp_path: Path, without_ray: None
) -> None:
    """Two workers and more; ten videos, half of them dead; one at a time."""
    given = tmp_path / "l.txt"
    given.write_text("".join(f"{busy.url}/{number}.mp4\n" for number in range(10)))
    settings = {
        "download.allow_private": "true",
        "download.max_per_host": "1",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    for _ in range(2):
        plan = make_plan([str(given)], "web", ROOT / "pipelines.yaml", str(tmp_path / "out"),
                         overrides, None, [])  # fmt: skip
        execute(plan, Console(quiet=True), time.time())
    assert busy.asked >= 10 and busy.most == 1
    ledger = Dataset.at(tmp_path / "out").ledger().to_pylist()
    rows = [row for row in ledger if row["level"] == "video"]
    found = {row["source_url"].rsplit("/")[-1]: row["error_class"] for row in rows}
    gone = [name for name in sorted(found) if found[name] == "gone"]
    assert gone == [f"{n}.mp4" for n in (1, 3, 5, 7, 9)]
    assert len(found) == 10
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("flow", ["local_ray", "without_ray"])
def test_a_run_stops_at_its_budget_of_bytes_and_goes_on_with_more(
    make_video: MakeVideo, tmp_path: Path, request: pytest.FixtureRequest, flow: str
) -> None:
    request.getfixturevalue(flow)
    for number in range(3):
        shutil.copy(make_video(f"b{number}.mp4", [Shot("test", 1.0 + number)]), tmp_path)

    def run(*overrides: str) -> None:
        plan = make_plan([str(tmp_path)], "web", ROOT / "pipelines.yaml", str(tmp_path / "out"),
                         ["rules={}", "shards.max_videos=1", *overrides], None, [])  # fmt: skip
        execute(plan, Console(quiet=True), time.time())

    with pytest.raises(RunError, match=r"has the 10 bytes that shards\.max_total_bytes"):
        run("shards.max_total_bytes=10")
    first = Dataset.at(tmp_path / "out").decided()
    assert 1 <= len(first) < 3
    with pytest.raises(RunError):
        run("shards.max_total_bytes=10")  # what is there counts
    assert Dataset.at(tmp_path / "out").decided() == first
    run()
    assert len(Dataset.at(tmp_path / "out").decided()) == 3


def test_the_rate_is_shared_by_the_places() -> None:
    assert Download(max_per_host=4, requests_per_s=2.0).request_interval_s == 2.0
    assert Download().request_interval_s == 0.0
