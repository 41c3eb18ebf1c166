"""The machine's faults are no verdict on a video: the next run tries again."""

from __future__ import annotations

import errno
import functools
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeVideo, Shot, analysed

from curation import downloads, videos
from curation.cuts import clips, encodes
from curation.flow.holdings import forget, take_over
from curation.flow.plans import classes_of
from curation.media.files import MediaError
from curation.media.probes import probe
from curation.pipelines import Cut, Download, Pipeline
from curation.records import ERROR_CLASSES, TRIED_AGAIN, failed_row, ledger_row
from curation.settings import ConfigError
from curation.shards import Dataset, write_commit
from curation.sources import Source, Span

NO_JOINS = Cut(joins=False)


@pytest.fixture(scope="session")
def make_video(make_video: MakeVideo) -> MakeVideo:
    return functools.partial(make_video, size="160x90", shots=[Shot("test", 1.2)])


def outcome(path: Path) -> tuple[str, str]:
    source = Source(url=str(path), path=str(path), id="video", spans=(Span(0.2, 1.0),))
    result = videos.curate_video(source, Pipeline(cut=NO_JOINS), path.parent, lambda *_: None)
    assert result.clips == []
    return result.video["decision"], result.video["error_class"]


def test_a_full_disk_is_not_the_videos_fault(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ffmpeg dies of it as of anything else, often without a word."""
    path = make_video("plain.mp4")
    monkeypatch.setattr(encodes, "is_full", lambda folder: True)
    monkeypatch.setattr(encodes, "h264", functools.partial(broken, encodes.h264))
    assert outcome(path) == ("failed", "disk_full")
    with pytest.raises(MediaError, match="disk_full"):  # no clip of it is judged
        clips.cut(str(path), probe(path), *analysed(path), [(5, 25)], NO_JOINS, lambda: None)
    monkeypatch.setattr(encodes, "is_full", lambda folder: False)
    assert outcome(path) == ("failed", "encode")


def broken(make: Any, picture: Any, target: str, timeline: Any, settings: Cut, count: int) -> Any:
    return make(picture, target, timeline, Cut(preset="nonsense"), count)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (MemoryError(), "no_memory"),
    ],
)
def test_what_the_machine_lacks_is_told_by_its_name(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch, error: Exception, wanted: str
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(videos, "analyse", failing)
    assert outcome(make_video("plain.mp4")) == ("failed", wanted)
    assert wanted in TRIED_AGAIN


def test_our_own_mistakes_still_raise(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.EBADF, "a mistake")

    monkeypatch.setattr(videos, "analyse", failing)
    with pytest.raises(OSError, match="a mistake"):
        outcome(make_video("plain.mp4"))


@pytest.fixture
def answering() -> Iterator[Any]:
    """answering(status): the URL of a server that says nothing else."""
    servers = []

    def start(status: int) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None: ...

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/video.mp4"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def download_error(url: str, folder: Path) -> str:
    settings = Download(allow_private=True, timeout_s=5, retry_s=0.001)
    with pytest.raises(MediaError) as caught:
        downloads.download(Source(url=url), folder, settings, lambda: None)
    return caught.value.error_class


@pytest.mark.parametrize(
    ("status", "wanted"),
    [(503, "network"), (429, "throttled"), (404, "gone"), (403, "private"), (451, "geo")],
)
def test_a_servers_bad_moment_is_told_from_its_answer(
    answering: Any, tmp_path: Path, status: int, wanted: str
) -> None:
    assert download_error(answering(status), tmp_path) == wanted


def test_a_refused_connection_is_the_networks(tmp_path: Path) -> None:
    with socket.socket() as held:  # bound and not listening
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/video.mp4"
        assert download_error(url, tmp_path) == "network"


@pytest.mark.parametrize(
    ("code", "wanted"),
    [(socket.EAI_AGAIN, "network"), (socket.EAI_NONAME, "gone")],
)
def test_a_lost_network_is_told_from_a_wrong_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, wanted: str
) -> None:
    def failing(*_: object) -> None:
        raise socket.gaierror(code, "no such luck")

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    with pytest.raises(MediaError) as caught:
        source = Source(url="http://host.invalid/a.mp4")
        downloads.download(source, tmp_path, Download(retry_s=0.001), lambda: None)
    assert caught.value.error_class == wanted


def test_the_next_run_tries_again_by_itself(tmp_path: Path) -> None:
    dataset, pipeline = Dataset.at(str(tmp_path / "data")), Pipeline()
    dataset.claim()
    classes = {"full": "disk_full", "bad": "corrupt", "away": "network"}
    sources = {name: Source(url=name, id=name) for name in classes}
    rows = [failed_row(sources[name], classes[name], "so it was") for name in classes]
    write_commit(dataset, [], rows, pipeline.fingerprints())
    holdings = take_over(dataset, pipeline)
    assert (holdings.decided, holdings.again) == ({"bad"}, {"full", "away"})
    assert [name for name in classes if not holdings.holds(sources[name])] == ["full", "away"]
    other = Pipeline(cut=Cut(crf=30))  # whose videos are all to redo, whatever had failed
    assert take_over(dataset, other, dry_run=True).again == set()
    forget(dataset, holdings.again)
    assert {video for video, _ in dataset.decided()} == {"bad"}
    assert take_over(dataset, pipeline).again == set()


def test_a_class_is_tried_again_when_asked(tmp_path: Path) -> None:
    """Also a video that is kept and lost one clip."""
    dataset, pipeline = Dataset.at(str(tmp_path / "data")), Pipeline()
    dataset.claim()
    rows = [
        failed_row(Source(url=name, id=name), name, "so it was") for name in ("corrupt", "encode")
    ]
    part = Source(url="part", id="part")
    lost = failed_row(part, "encode", "so it was") | {"level": "clip", "clip_id": "part_0"}
    rows += [ledger_row(part, level="video", decision="kept"), lost]
    write_commit(dataset, [], rows, pipeline.fingerprints())
    again = {
        classes: take_over(dataset, pipeline, retry=classes_of(classes)).again
        for classes in [(), ("corrupt",), ("encode",), ("encode", "corrupt"), ("all",)]
    }
    every = {"corrupt", "encode", "part"}
    assert list(again.values()) == [set(), {"corrupt"}, every - {"corrupt"}, every, every]


def test_an_unknown_class_is_told() -> None:
    with pytest.raises(ConfigError, match=r"--retry encod: .* did you mean 'encode'"):
        classes_of(["encod"])


def test_every_class_is_documented() -> None:
    """Those that code names, those of docs/shards.md and those that --retry knows are the same."""
    root = Path(__file__).parents[1]
    table = (root / "docs/shards.md").read_text().partition("## Error classes")[2]
    rows = re.findall(r"^\| ([a-z_, ]+) \|", table.partition("## ")[0], re.MULTILINE)
    documented = {name for row in rows for name in row.split(", ")} - {"class"}
    assert documented == ERROR_CLASSES
    named = re.compile(
        r"(?:MediaError|WorkerDiedError|failure|failed_row)\((?:source, )?\s*\"(\w+)\""
    )
    texts = [path.read_text() for path in (root / "curation").rglob("*.py")]
    in_code = {name for text in texts for name in named.findall(text)}
    assert in_code - {"size_changes", "clock_restarts"} < ERROR_CLASSES  # those two end a beginning
    assert {"encode", "timeout", "lost", "outside"} < in_code
