"""Objects -> local files: what arrives, what it is called when it does not, and what is left."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Store

from curation import places
from curation.downloads import objects
from curation.pipelines import Pipeline
from curation.records import Beat, VideoResult
from curation.settings import ConfigError
from curation.shards import FAILED
from curation.sources.source import Source, remote
from curation.sources.stores import NUM_REQUESTS, ObjectError, fault, look

ROOT = Path(__file__).parents[1]
DATA = bytes(range(256)) * 1000
QUICK = {"attempts": 2, "retry_s": 0.01}


def pipeline(media: dict[str, Any] | None = None, **download: Any) -> Pipeline:
    return Pipeline(name="p", download=QUICK | download, media=media or {})


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder of this test; nothing may be left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not [*folder.iterdir()]


def beaten() -> tuple[list[str], Callable[[str, float], None]]:
    beats: list[str] = []
    return beats, lambda stage, at_s: beats.append(stage)


@contextlib.contextmanager
def copy_of(source: Source, using: Pipeline, beat: Beat = lambda *_: None) -> Iterator[Any]:
    """What a Ray worker has of a source, in a scratch folder."""
    room = places.Scratch()
    try:
        yield objects.copied(source, using, room.folder, beat)[0]
    finally:
        room.remove()


def failed(source: Source, using: Pipeline, beat: Beat = lambda *_: None) -> tuple[str, str]:
    """The class and message of one that there is no copy of."""
    with copy_of(source, using, beat) as result:
        assert isinstance(result, VideoResult)
        assert result.video["decision"] == FAILED and result.video["source_url"] == source.url
        if not any(isinstance(each, objects.Copying) for each in threading.enumerate()):
            assert not [*Path(tempfile.gettempdir()).glob("*/*.part")]
        return result.video["error_class"], result.video["message"]


# -- a real store


def test_a_copy_is_there_as_long_as_it_is_needed(s3: Store, scratch: Path) -> None:
    s3.put("a b/é.MP4", DATA)
    source = remote(s3.uri("a b/é.MP4"))
    with copy_of(source, pipeline()) as at_hand:
        assert at_hand.path is not None and Path(at_hand.path).read_bytes() == DATA
        assert Path(at_hand.path).name == "video.MP4"
        # What goes to the media process has no secret, and is known by the same URL.
        assert (at_hand.url, at_hand.signed_url) == (source.url, None)
        assert [each.name for each in Path(at_hand.path).parent.glob("[!.]*")] == ["video.MP4"]
        assert datetime.datetime.fromisoformat(at_hand.downloaded_at).tzinfo == datetime.UTC


@pytest.mark.parametrize("name", ["x/..%2f", "a.%2e%2e", "a.mp4;rm", "a.é", "a", "a.longsuffix"])
def test_no_name_of_a_store_reaches_a_path(s3: Store, name: str) -> None:
    s3.put("n/" + objects.parts_of(f"s3://b/{name}").key.decode().replace("/..", "_"), DATA)
    source = remote(s3.uri("n/" + name.replace("/..%2f", "_")))
    with copy_of(source, pipeline()) as at_hand:
        assert at_hand.path and Path(at_hand.path).name == "video"


@pytest.mark.parametrize("source", [remote("https://h/a.mp4"), Source("a.mp4", path="/a.mp4")])
def test_other_sources_stay_as_they_are(source: Source) -> None:
    with copy_of(source, pipeline()) as at_hand:
        assert at_hand is source


@pytest.mark.parametrize("size", [0, 1, objects.MIN_PART_BYTES, objects.MIN_PART_BYTES + 1])
def test_every_byte_arrives_in_parts_of_any_size(
    s3: Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(objects, "MAX_PART_BYTES", objects.MIN_PART_BYTES)
    s3.put("a.mp4", DATA[:size])
    with copy_of(remote(s3.uri("a.mp4")), pipeline()) as at_hand:
        assert at_hand.path and Path(at_hand.path).read_bytes() == DATA[:size]


def test_what_is_not_there_or_too_much(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("f/a.mp4", DATA)
    for uri in (s3.uri("none.mp4"), s3.uri("f"), s3.uri("a", bucket="no-such-bucket")):
        assert failed(remote(uri), pipeline())[0] == "gone"
    found = failed(remote(s3.uri("f/a.mp4")), pipeline(max_bytes=len(DATA) - 1))
    assert found == ("too_large", "has 256,000 bytes; download.max_bytes is 255,999")
    with copy_of(remote(s3.uri("f/a.mp4")), pipeline(max_bytes=len(DATA))):
        pass
    free = SimpleNamespace(free=len(DATA) - 1)
    monkeypatch.setattr(objects.shutil, "disk_usage", lambda _: free)
    error_class, message = failed(remote(s3.uri("f/a.mp4")), pipeline())
    assert error_class == "disk_full" and "give TMPDIR more room" in message


def test_a_mistake_of_ours_costs_one_video(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(stream: Any) -> None:
        raise KeyError(s3.uri("a.mp4"))

    monkeypatch.setattr(objects, "facts_of", wrong)
    s3.put("a.mp4", DATA)
    error_class, message = failed(remote(s3.uri("a.mp4")), pipeline())
    assert error_class == "internal" and "KeyError" in message and "test:test" not in message


def test_a_disk_that_fills_meanwhile(s3: Store, scratch: Path) -> None:
    """/dev/full is a disk without room."""
    s3.put("a.mp4", DATA)
    (scratch / "1.part").symlink_to("/dev/full")
    with pytest.raises(ObjectError) as caught:
        objects.fetch(s3.uri("a.mp4"), scratch / "video", pipeline().download, 9, print)
    assert caught.value.error_class == "disk_full"


def test_it_is_copied_no_faster_than_it_may_be(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 0.0, thread_time=lambda: 0.0, sleep=slept.append)
    monkeypatch.setattr(objects, "time", clock)
    s3.put("a.mp4", DATA)
    with copy_of(remote(s3.uri("a.mp4")), pipeline(max_bytes_per_s=64_000)):
        assert sum(slept) == pytest.approx(4.0) and max(slept) <= 1


# -- a store that is odd


class OddStore(http.server.BaseHTTPRequestHandler):
    """Does what a key says."""

    requests: Counter[str]
    ended: threading.Event
    second: threading.Event
    tags: Iterator[int]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
        key = self.path.rsplit("/", 1)[1]
        self.send_response(status)
        self.send_header("ETag", f'"{next(self.tags) if key == "changing" else 0}"')
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        key = self.path.rsplit("/", 1)[1]
        self.requests[f"HEAD {key}"] += 1
        self.answer({"denied": 403}.get(key, 200), length=1000)

    def do_GET(self) -> None:
        key = self.path.rsplit("/", 1)[1]
        self.requests[f"GET {key}"] += 1
        error = "<Error><Code>{}</Code><Message>m</Message></Error>"
        if key == "busy":
            self.answer(503, error.format("SlowDown").encode())
        elif key == "broken":
            self.answer(206, b"x" * 500, length=1000)
            self.close_connection = True
        elif key == "late" and self.requests["GET late"] == 1:
            self.second.wait()
            self.answer(206, b"y" * 1000)
            self.ended.set()
        elif key == "dripping":
            self.answer(206, b"x", length=1000)
            self.ended.wait()
            self.close_connection = True
        else:
            self.answer(206, b"x" * 1000)
            self.second.set()


@pytest.fixture
def odd() -> Iterator[tuple[str, Counter[str]]]:
    requests: Counter[str] = Counter()
    ended = threading.Event()
    second = threading.Event()
    facts = {"requests": requests, "ended": ended, "second": second, "tags": itertools.count()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (OddStore,), facts))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    options = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=x"
    yield f"s3://geheim-key:geheim-word@b/{{}}?{options}", requests
    ended.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("error", "error_class"),
    [
        (OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: The specified"), "gone"),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No body."), "private"),
        (OSError("AWS Error INVALID_ACCESS_KEY_ID during GetObject operation: m"), "private"),
        (OSError("AWS Error SIGNATURE_DOES_NOT_MATCH during GetObject operation: m"), "private"),
        (OSError("AWS Error UNKNOWN (HTTP status 400): ExpiredToken Message: m"), "private"),
        (OSError("AWS Error SLOW_DOWN during GetObject operation: m"), "throttled"),
        (OSError("AWS Error SERVICE_UNAVAILABLE during GetObject operation: "), "network"),
        (OSError("AWS Error NETWORK_CONNECTION: curlCode: 28, Timeout was reached"), "network"),
        (OSError("AWS Error [code 136] during GetObject operation: archived"), "download_failed"),
        (FileNotFoundError(2, "Path does not exist 'b/a'"), "gone"),
        (PermissionError(13, "google::cloud::Status(PERMISSION_DENIED: m)"), "private"),
        (ConnectionRefusedError(111, "google::cloud::Status(UNAVAILABLE: m)"), "network"),
        (ValueError("names no bucket"), "download_failed"),
    ],
)
def test_what_stores_say_has_a_class(error: Exception, error_class: str) -> None:
    """The first nine as pyarrow 26 words them, those of Google's store as its source does."""
    assert fault(error, "s3://b/a").error_class == error_class


@pytest.mark.parametrize(
    ("key", "error_class", "attempts"),
    [
        ("denied", "private", 1),
        ("busy", "network", 2),
        ("broken", "network", 2),
        ("changing", "changing", 1),
        ("dripping", "network", 2),
    ],
)
def test_what_an_odd_store_does_has_a_class(
    odd: tuple[str, Counter[str]], key: str, error_class: str, attempts: int
) -> None:
    uri, requests = odd
    beats, beat = beaten()
    using = pipeline(timeout_s=0.5 if key == "dripping" else 30)
    found, message = failed(remote(uri.format(key)), using, beat)
    assert found == error_class, message
    assert ("(2 attempts in" in message) == (attempts == 2)
    assert "geheim" not in message and "\n" not in message
    if key == "denied":
        assert "AWS_ACCESS_KEY_ID" in message
    assert set(beats) <= {"fetch"} and (beats or attempts == 1)
    opened = 2 if key == "changing" else attempts
    assert requests[f"HEAD {key}"] == opened
    if key == "busy":  # pyarrow by itself asks 31 times
        assert requests["GET busy"] == attempts * NUM_REQUESTS
    if key == "dripping":
        assert "none for 0.5 s" in message


def test_a_good_object_of_that_store_costs_three_requests(odd: tuple[str, Counter[str]]) -> None:
    uri, requests = odd
    with copy_of(remote(uri.format("good")), pipeline()) as at_hand:
        assert at_hand.path and Path(at_hand.path).read_bytes() == b"x" * 1000
    assert requests == {"HEAD good": 2, "GET good": 1}


def test_a_user_without_access_is_told_so_before_the_run(odd: tuple[str, Counter[str]]) -> None:
    uri, requests = odd
    with pytest.raises(ConfigError, match=r"s3://b/denied cannot be read: .*AWS_ACCESS_KEY_ID"):
        look(uri.format("denied"))
    assert requests == {"HEAD denied": 1}


def test_all_attempts_together_have_a_limit(odd: tuple[str, Counter[str]]) -> None:
    uri, requests = odd
    using = pipeline(media={"timeout_s": 0.3}, timeout_s=60)
    assert failed(remote(uri.format("dripping")), using) == ("timeout", "not copied after 0.3 s")
    assert requests["HEAD dripping"] == 1


def test_an_answer_that_comes_after_all_is_not_in_the_copy(odd: tuple[str, Counter[str]]) -> None:
    uri, requests = odd
    with copy_of(remote(uri.format("late")), pipeline(timeout_s=0.5, attempts=20)) as at_hand:
        threads = [t for t in threading.enumerate() if isinstance(t, objects.Copying)]
        for thread in threads:  # the first attempt's, which was given up
            thread.join(20)
        assert requests["GET late"] >= 2
        assert Path(at_hand.path).read_bytes() == b"x" * 1000


# -- a kill

HOLDS = """
import sys, time
from curation.downloads.objects import copied
from curation.places import Scratch
from curation.pipelines import Pipeline
from curation.sources.source import remote
room = Scratch()
source, _ = copied(remote(sys.argv[1]), Pipeline(name="p"), room.folder, lambda *_: None)
print(source.path, flush=True)
time.sleep(60)
"""


def test_what_a_kill_leaves_goes_and_what_lives_stays(
    s3: Store, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("a.mp4", DATA)
    command = [sys.executable, "-c", HOLDS, s3.uri("a.mp4")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"TMPDIR": str(scratch)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    copy = Path(process.stdout.readline().decode().strip())
    places.sweep_scratch()
    assert copy.read_bytes() == DATA
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert copy.exists()
    places.sweep_scratch()
    assert not copy.parent.exists()
