"""Objects -> local files: what arrives, what it is called when it does not, and what is left."""

from __future__ import annotations

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

from curation.downloads import objects
from curation.downloads.objects import local_copy
from curation.flow import confinement
from curation.pipelines import Pipeline
from curation.sources.objects import ObjectError, fault
from curation.sources.source import Source, remote

ROOT = Path(__file__).parents[1]
DATA = bytes(range(256)) * 1000
QUICK = {"attempts": 2, "retry_s": 0.01}


def pipeline(media: dict[str, Any] | None = None, **download: Any) -> Pipeline:
    return Pipeline(name="p", download=QUICK | download, media=media or {})  # type: ignore[arg-type]


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


def failed(source: Source, using: Pipeline) -> ObjectError:
    with pytest.raises(ObjectError) as caught, local_copy(source, using, beaten()[1]):
        raise AssertionError("there is no copy")
    return caught.value


# -- a real store


def test_a_copy_is_there_as_long_as_it_is_needed(s3: Store, scratch: Path) -> None:
    s3.put("a b/é.MP4", DATA)
    source = remote(s3.uri("a b/é.MP4"))
    with local_copy(source, pipeline(), beaten()[1]) as at_hand:
        assert at_hand.path is not None and Path(at_hand.path).read_bytes() == DATA
        assert Path(at_hand.path).name == "video.MP4"
        # What goes to the media process has no secret, and is known by the same URL.
        assert (at_hand.url, at_hand.signed_url) == (source.url, None)
        assert [each.name for each in scratch.iterdir()] == [Path(at_hand.path).parent.name]
    assert not Path(at_hand.path).exists()


@pytest.mark.parametrize("name", ["x/..%2f", "a.%2e%2e", "a.mp4;rm", "a.é", "a", "a.longsuffix"])
def test_no_name_of_a_store_reaches_a_path(s3: Store, name: str) -> None:
    s3.put("n/" + objects.parts_of(f"s3://b/{name}").key.decode().replace("/..", "_"), DATA)
    source = remote(s3.uri("n/" + name.replace("/..%2f", "_")))
    with local_copy(source, pipeline(), beaten()[1]) as at_hand:
        assert at_hand.path and Path(at_hand.path).name == "video"


def test_a_copy_goes_when_the_work_on_it_fails(s3: Store) -> None:
    s3.put("a.mp4", DATA)
    with pytest.raises(ZeroDivisionError), local_copy(remote(s3.uri("a.mp4")), pipeline(), print):
        raise ZeroDivisionError


@pytest.mark.parametrize("source", [remote("https://h/a.mp4"), Source("a.mp4", path="/a.mp4")])
def test_other_sources_stay_as_they_are(source: Source) -> None:
    with local_copy(source, pipeline(), beaten()[1]) as at_hand:
        assert at_hand is source


@pytest.mark.parametrize("size", [0, 1, objects.MIN_PART_BYTES, objects.MIN_PART_BYTES + 1])
def test_every_byte_arrives_in_parts_of_any_size(
    s3: Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(objects, "MAX_PART_BYTES", objects.MIN_PART_BYTES)
    s3.put("a.mp4", DATA[:size])
    with local_copy(remote(s3.uri("a.mp4")), pipeline(), beaten()[1]) as at_hand:
        assert at_hand.path and Path(at_hand.path).read_bytes() == DATA[:size]


def test_what_is_not_there_or_too_much(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("f/a.mp4", DATA)
    for uri in (s3.uri("none.mp4"), s3.uri("f"), s3.uri("a", bucket="no-such-bucket")):
        assert failed(remote(uri), pipeline()).error_class == "gone"
    error = failed(remote(s3.uri("f/a.mp4")), pipeline(max_bytes=len(DATA) - 1))
    assert error.error_class == "too_large" and "256,000 bytes" in error.message
    with local_copy(remote(s3.uri("f/a.mp4")), pipeline(max_bytes=len(DATA)), beaten()[1]):
        pass
    free = SimpleNamespace(free=len(DATA) - 1)
    monkeypatch.setattr(objects.shutil, "disk_usage", lambda _: free)
    error = failed(remote(s3.uri("f/a.mp4")), pipeline())
    assert error.error_class == "disk_full" and "give TMPDIR more room" in error.message


def test_a_disk_that_fills_meanwhile(s3: Store, scratch: Path) -> None:
    """/dev/full is a disk without room."""
    s3.put("a.mp4", DATA)
    source = remote(s3.uri("a.mp4"))
    (scratch / "full").symlink_to("/dev/full")
    with pytest.raises(ObjectError) as caught:
        objects.fetch(source.signed_url or "", scratch / "full", pipeline().download, 9, print)
    assert caught.value.error_class == "disk_full"
    (scratch / "full").unlink()


def test_it_is_copied_no_faster_than_it_may_be(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append)
    monkeypatch.setattr(objects, "time", clock)
    s3.put("a.mp4", DATA)
    with local_copy(remote(s3.uri("a.mp4")), pipeline(max_bytes_per_s=64_000), beaten()[1]):
        assert slept == [500 * 128 / 64_000] * 4 or sum(slept) == pytest.approx(4.0)


# -- a store that is odd


class OddStore(http.server.BaseHTTPRequestHandler):
    """Does what a key says."""

    requests: Counter[str]
    ended: threading.Event
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
        elif key == "dripping":
            self.answer(206, b"x", length=1000)
            self.ended.wait()
            self.close_connection = True
        else:
            self.answer(206, b"x" * 1000)


@pytest.fixture
def odd() -> Iterator[tuple[str, Counter[str]]]:
    requests: Counter[str] = Counter()
    ended = threading.Event()
    facts = {"requests": requests, "ended": ended, "tags": itertools.count()}
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
    with (
        pytest.raises(ObjectError) as caught,
        local_copy(remote(uri.format(key)), using, beat),
    ):
        raise AssertionError("there is no copy")
    error = caught.value
    assert error.error_class == error_class, error.message
    assert ("(2 attempts in" in error.message) == (attempts == 2)
    assert "geheim" not in error.message and "\n" not in error.message
    if key == "denied":
        assert "AWS_ACCESS_KEY_ID" in error.message
    assert set(beats) <= {"fetch"} and (beats or attempts == 1)
    opened = 2 if key == "changing" else attempts
    assert requests[f"HEAD {key}"] == opened


def test_a_good_object_of_that_store_costs_three_requests(odd: tuple[str, Counter[str]]) -> None:
    uri, requests = odd
    with local_copy(remote(uri.format("good")), pipeline(), beaten()[1]) as at_hand:
        assert at_hand.path and Path(at_hand.path).read_bytes() == b"x" * 1000
    assert requests == {"HEAD good": 2, "GET good": 1}


def test_all_attempts_together_have_a_limit(odd: tuple[str, Counter[str]]) -> None:
    uri, requests = odd
    using = pipeline(media={"timeout_s": 0.3}, timeout_s=60)
    error = failed(remote(uri.format("dripping")), using)
    assert error.error_class == "timeout" and requests["HEAD dripping"] == 1


# -- a kill

HOLDS = """
import sys, time
from curation.downloads.objects import local_copy
from curation.pipelines import Pipeline
from curation.sources.source import remote
with local_copy(remote(sys.argv[1]), Pipeline(name="p"), lambda *_: None) as at_hand:
    print(at_hand.path, flush=True)
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
    confinement.sweep_scratch()
    assert copy.read_bytes() == DATA
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert copy.exists()
    confinement.sweep_scratch()
    assert not copy.parent.exists()
