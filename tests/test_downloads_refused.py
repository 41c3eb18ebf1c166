"""A hostile or busy server, behaviour by behaviour: which class, after how many requests."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yt_dlp
from conftest import MakeVideo, Shot
from rich.console import Console

from curation.downloads import connections, fetches
from curation.downloads.fetches import download
from curation.downloads.refusals import refusal_of
from curation.downloads.runtimes import lacking
from curation.funnels import FUNNEL_COLUMNS, count, show
from curation.media.files import MediaError
from curation.pipelines import Download, Pipeline
from curation.records import TRIED_AGAIN, failed_row
from curation.shards import Dataset, write_commit
from curation.sources import Source
from curation.videos import curate_video

Answer = Callable[[http.server.BaseHTTPRequestHandler, int, bytes], None]


class Server:
    """Answers /NAME.mp4 as NAME of ANSWERS says, with a real video where it gives one."""

    def __init__(self, video: bytes) -> None:
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, range
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                server.asked.append((self.command, self.path, self.headers["Range"]))
                server.headers.append(dict(self.headers))
                number = sum(path == self.path for _, path, _ in server.asked)
                with contextlib.suppress(OSError):  # the other side had enough
                    ANSWERS[self.path[1:].split(".")[0]](self, number, video)
                self.close_connection = True

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


def says(status: int, **headers: str) -> Answer:
    def answer(to: http.server.BaseHTTPRequestHandler, number: int, video: bytes) -> None:
        to.send_response(status)
        for name, value in headers.items():
            to.send_header(name.replace("_", "-"), value)
        to.send_header("Content-Length", "0")
        to.end_headers()

    return answer


def gives(
    body: bytes | None = None, sent: int | None = None, kind: str = "video/mp4", ranges: bool = True
) -> Answer:
    """A body, by default the video; `sent` bytes of it, whatever the header says."""

    def answer(to: http.server.BaseHTTPRequestHandler, number: int, video: bytes) -> None:
        data = video if body is None else body
        asked = to.headers["Range"] if ranges else None
        first = int((asked or "bytes=0-")[6:].split("-")[0])
        to.send_response(206 if asked else 200)
        to.send_header("Content-Type", kind)
        if asked:
            to.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        to.send_header("Content-Length", str(len(data) - first))
        to.end_headers()
        to.wfile.write(data[first:] if sent is None else data[first : first + sent])

    return answer


def then(first: Answer, number_of_times: int, second: Answer) -> Answer:
    return lambda to, number, video: (first if number <= number_of_times else second)(
        to, number, video
    )


def drips(to: http.server.BaseHTTPRequestHandler, number: int, video: bytes) -> None:
    """A byte now and then: no time-out of a socket ever ends that."""
    to.send_response(200)
    to.send_header("Content-Type", "video/mp4")
    to.send_header("Content-Length", "100000")
    to.end_headers()
    for _ in range(600):
        to.wfile.write(b"a")
        threading.Event().wait(0.02)


PAGE = b"<!DOCTYPE html><html><title>Not found</title>" + b" " * 2000 + b"</html>"
ANSWERS: dict[str, Answer] = {
    "good": gives(),
    "gone": says(404),
    "removed": says(410),
    "private": says(403),
    "geo": says(451),
    "busy": says(429),
    "later": says(429, Retry_After="900"),
    "away": says(503),
    "soon": then(says(503, Retry_After="0"), 1, gives()),
    "twice": then(says(500), 2, gives()),
    "page": gives(PAGE, kind="text/html"),
    "lies": gives(PAGE),
    "loop": lambda to, number, video: says(302, Location=to.path)(to, number, video),
    "short": gives(sent=3000),
    "broken": gives(sent=3000, ranges=False),
    "drips": drips,
}
# Behaviour: class, requests at the most.
TABLE = {
    "gone": ("gone", 1),
    "removed": ("gone", 1),
    "private": ("private", 2),
    "geo": ("geo", 1),
    "busy": ("throttled", 3),
    "later": ("throttled", 1),
    "away": ("network", 3),
    "page": ("not_a_video", 3),
    "loop": ("download_failed", 15),
    "broken": ("network", 12),
    "drips": ("network", 6),
}
SETTINGS = Download(allow_private=True, retry_s=0.001, min_bytes_per_s=1000)


@pytest.fixture(scope="module")
def server(make_video: MakeVideo) -> Iterator[Server]:
    made = Server(make_video("small.mp4", [Shot("test", 1.0)], "160x90").read_bytes())
    yield made
    made.server.shutdown()
    made.server.server_close()


def fetch(server: Server, name: str, folder: Path, **settings: Any) -> Source:
    server.asked.clear()
    server.headers.clear()
    folder.mkdir(exist_ok=True)
    chosen = SETTINGS.model_copy(update=settings)
    return download(Source(url=f"{server.url}/{name}.mp4"), folder, chosen, lambda: None)


@pytest.mark.parametrize("name", TABLE)
def test_each_behaviour_has_its_class_in_bounded_time(
    server: Server, tmp_path: Path, name: str
) -> None:
    patience_s = 0.4 if name == "drips" else SETTINGS.timeout_s
    with pytest.raises(MediaError) as caught:
        fetch(server, name, tmp_path, timeout_s=patience_s)
    wanted, most = TABLE[name]
    assert (caught.value.error_class, len(server.asked) <= most) == (wanted, True), (
        caught.value.message,
        server.asked,
    )


@pytest.mark.parametrize(("name", "requests"), [("soon", 2), ("twice", 3)])
def test_what_heals_is_fetched(server: Server, tmp_path: Path, name: str, requests: int) -> None:
    got = fetch(server, name, tmp_path)
    assert got.path is not None and Path(got.path).stat().st_size > 3000
    assert len([path for _, path, _ in server.asked if name in path]) >= requests


def test_a_page_under_a_films_name_is_no_video(server: Server, tmp_path: Path) -> None:
    source = Source(url=f"{server.url}/lies.mp4")
    result = curate_video(source, Pipeline(download=SETTINGS), tmp_path, lambda s, t: None)
    assert result.video["error_class"] in ("not_video", "not_a_video")


def test_a_short_body_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    """Where it broke off, by a range, and not from its beginning."""
    got = fetch(server, "short", tmp_path)
    whole = fetch(server, "good", tmp_path / "whole")
    assert got.id == whole.id
    fetch(server, "short", tmp_path / "again")
    ranges = [each for _, _, each in server.asked if each]
    assert ranges and "bytes=3000-" in ranges and "bytes=6000-" in ranges


def test_a_server_is_not_asked_before_it_wants_to_be(server: Server, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="it asks to wait 900 s") as caught:
        fetch(server, "later", tmp_path)
    assert caught.value.error_class in TRIED_AGAIN


def test_waits_grow_and_are_no_stall(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(fetches, "wait", lambda wait_s, beat: waited.append(wait_s))
    with pytest.raises(MediaError, match="4 attempts"):
        fetch(server, "away", tmp_path, retry_s=10, attempts=4)
    assert [5 * 2**n <= s <= 15 * 2**n for n, s in enumerate(waited)] == [True] * 3
    beats: list[int] = []
    monkeypatch.undo()
    monkeypatch.setattr(fetches.time, "sleep", lambda s: None)
    clock = iter(range(100))
    monkeypatch.setattr(fetches.time, "monotonic", lambda: next(clock))
    fetches.wait(10, lambda: beats.append(1))
    assert len(beats) == 9


def test_requests_keep_their_distance(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, too: whoever had the place before may just have asked."""
    slept: list[float] = []
    monkeypatch.setattr(connections.time, "sleep", slept.append)
    fetch(server, "good", tmp_path, max_per_host=4, requests_per_s=0.01)
    assert [390 < s <= 400 for s in slept] == [True] * len(server.asked)


def test_who_asks_is_told_as_it_is_set(server: Server, tmp_path: Path) -> None:
    jar = tmp_path / "jar.txt"
    text = f"# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t{2**31}\tname\tsesame\n"
    jar.write_text(text)
    settings = Download(user_agent="Curator/1", cookies=jar)
    given = {"user_agent": settings.user_agent, "cookies": settings.cookies}
    fetch(server, "good", tmp_path / "scratch", **given)
    assert {each["User-Agent"] for each in server.headers} == {"Curator/1"}
    assert {each["Cookie"] for each in server.headers} == {"name=sesame"}
    assert jar.read_text() == text  # yt-dlp writes into its own


def test_proxies_and_cookies_are_in_nothing_that_is_kept(tmp_path: Path) -> None:
    jar = tmp_path / "jar.txt"
    jar.touch()
    pipeline = Pipeline(download=Download(cookies=jar, proxies=["http://me:sesame@proxy.test:1"]))
    assert "sesame" not in f"{pipeline!r} {pipeline.model_dump()}"
    assert "jar.txt" not in str(pipeline.model_dump())
    assert pipeline.fingerprints() == Pipeline().fingerprints()


def test_a_proxy_is_asked_and_not_told(server: Server, tmp_path: Path) -> None:
    proxies = Download(proxies=["http://me:sesame@127.0.0.1:9"]).proxies
    with pytest.raises(MediaError) as caught:
        fetch(server, "good", tmp_path, proxies=proxies)
    assert caught.value.error_class == "network" and not server.asked
    assert "sesame" not in caught.value.message


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("[youtube] x: Private video. Sign in if you've been granted access", "private"),
        ("[youtube] x: Sign in to confirm you’re not a bot. Use --cookies", "bot_check"),
        ("[youtube] x: Sign in to confirm your age. This video may be inappropriate", "age"),
        ("[youtube] x: Video unavailable. This video has been removed by the uploader", "gone"),
        ("[youtube] x: This live event will begin in 3 days", "live"),
        ("[youtube] x: Premieres in 4 hours", "live"),
        ("[youtube] x: The uploader has not made this video available in your country", "geo"),
        ("[youtube] x: Join this channel to get access to members-only content", "private"),
        ("[site] x: This video is DRM protected", "drm"),
        ("[site] x: Requested format is not available. Use --list-formats", "format"),
        ("[site] x: This content isn't available, try again later", "throttled"),
        ("[site] x: the moon is full", "download_failed"),
    ],
)
def test_what_sites_say_has_a_class(said: str, wanted: str) -> None:
    assert refusal_of(yt_dlp.utils.DownloadError(f"ERROR: {said}")).error_class == wanted


# -- what is told before and after


def test_youtube_needs_a_runtime_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert lacking(["https://host.test/a.mp4", "https://vimeo.com/1"]) is None
    said = lacking(["https://host.test/a.mp4", "https://youtu.be/dQw4w9WgXcQ"])
    assert said is not None and "deno" in said and "https://deno.com" in said


def test_the_funnel_has_an_example_of_each_class(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path / "data")
    dataset.claim()
    classes = ["gone", "gone", "private", "gone"]
    sources = [Source(url=f"http://a.test/{n}", id=str(n)) for n in range(len(classes))]
    pairs = zip(sources, classes, strict=True)
    rows = [failed_row(source, name, f"so\nit {name} was") for source, name in pairs]
    write_commit(dataset, [], rows, Pipeline().fingerprints())
    found = count(dataset.ledgers(FUNNEL_COLUMNS), [])
    assert found.videos.failed == {"gone": 3, "private": 1}
    console = Console(record=True, width=200)
    show(found, dataset, console)
    told = [line for line in console.export_text().splitlines() if "such as" in line]
    assert told == [
        "failed: gone, such as http://a.test/0: so it gone was",
        "failed: private, such as http://a.test/2: so it private was",
    ]
    assert "such as" not in str(found.as_json()) and "http://a.test" not in str(found.as_json())
