"""What strangers send does no harm: servers, lists, files and datasets, a row of docs/security.md
after another.

A name that is public leads, by a resolver of the test's own, to a public address, and only the
connection to that address is led on to the server of the test.
"""

from __future__ import annotations

import gzip
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeVideo

from curation.downloads import connections, download
from curation.downloads.connections import is_public
from curation.media.files import MediaError
from curation.pipelines import Download
from curation.sources import Source
from curation.sources.source import remote

ROOT = Path(__file__).parents[1]
PUBLIC = "93.184.215.14"  # an address that is somebody's; nothing is ever sent there


class Web:
    """A server of two names: site.test, which is public, and inside.test, which is this machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[str] = []
        self.connected: list[str] = []
        self.answers = {"site.test": [PUBLIC], "inside.test": ["127.0.0.1"]}
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                web.asked.append(self.path)
                status, headers, body = web.pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                endless = headers.get("X-Endless")
                for name, value in headers.items():
                    self.send_header(name, value)
                if not endless:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                    while endless:
                        self.wfile.write(bytes(1 << 16))
                except OSError:
                    self.close_connection = True  # the other side had enough

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        look_up, connect = socket.getaddrinfo, socket.create_connection

        def names(host: str, *args: Any, **kwargs: Any) -> Any:
            answers = self.answers.get(host)
            if answers is None:
                return look_up(host, *args, **kwargs)
            return look_up(answers.pop(0) if len(answers) > 1 else answers[0], *args, **kwargs)

        def led_on(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
            self.connected.append(address[0])
            host = "127.0.0.1" if address[0] == PUBLIC else address[0]
            return connect((host, address[1]), *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", names)
        monkeypatch.setattr(socket, "create_connection", led_on)

    def put(self, path: str, body: str | bytes, status: int = 200, **headers: str) -> str:
        """Serve a body; returns its public address."""
        data = body.encode() if isinstance(body, str) else body
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = (status, names, data)
        return f"http://site.test:{self.port}{path}"

    @property
    def secret(self) -> str:
        return f"http://inside.test:{self.port}/secret.mp4"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, make_video: MakeVideo) -> Iterator[Web]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    web = Web(monkeypatch)
    web.put("/secret.mp4", make_video("plain.mp4").read_bytes(), Content_Type="video/mp4")
    yield web
    web.server.shutdown()
    web.server.server_close()


def fetch(url: str, folder: Path, **settings: Any) -> Source:
    return download(Source(url=url), folder, Download(**settings), lambda: None)


def error_of(url: str, folder: Path, **settings: Any) -> MediaError:
    with pytest.raises(MediaError) as caught:
        fetch(url, folder, **settings)
    return caught.value


# -- SSRF: what is public leads to what is not

HLS = "application/vnd.apple.mpegurl"
HTML = "<!DOCTYPE html><html><head>{}</head><body>{}</body></html>"
MPD = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
 mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4"><Representation
 id="1" bandwidth="1000" width="320" height="180"><BaseURL>{}</BaseURL><SegmentList duration="2">
 <SegmentURL media="{}"/></SegmentList></Representation></AdaptationSet></Period></MPD>"""
M3U8 = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n{}#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"


def lead(web: Web, kind: str) -> str:
    """The public address of something that leads to the secret."""
    secret = web.secret
    html = {"Content_Type": "text/html"}
    hls = {"Content_Type": HLS}
    match kind:
        case "redirect":
            return web.put("/a.mp4", "", 302, Location=secret)
        case "second redirect":
            web.put("/b.mp4", "", 301, Location=secret)
            return web.put("/a.mp4", "", 307, Location="/b.mp4")
        case "meta refresh":
            refresh = f'<meta http-equiv="refresh" content="0; url={secret}">'
            return web.put("/a", HTML.format(refresh, ""), **html)
        case "video":
            return web.put("/a", HTML.format("", f'<video src="{secret}"></video>'), **html)
        case "og:video":
            og = f'<meta property="og:video" content="{secret}">'
            return web.put("/a", HTML.format(og, ""), **html)
        case "HLS segment":
            web.put("/2.ts", bytes(376))
            return web.put("/a.m3u8", M3U8.format("", f"{secret}\n#EXTINF:2,\n2.ts"), **hls)
        case "HLS key":
            web.put("/1.ts", bytes(376))
            key = f'#EXT-X-KEY:METHOD=AES-128,URI="{secret}"\n'
            return web.put("/a.m3u8", M3U8.format(key, "1.ts"), **hls)
        case "HLS variant":
            variant = f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000,RESOLUTION=320x180\n{secret}\n"
            return web.put("/a.m3u8", variant, **hls)
        case "DASH BaseURL":
            base, _, name = secret.rpartition("/")
            manifest = MPD.format(f"{base}/", name)
            return web.put("/a.mpd", manifest, Content_Type="application/dash+xml")
    raise AssertionError(kind)


KINDS = (
    *("redirect", "second redirect", "meta refresh", "video", "og:video"),
    *("HLS segment", "HLS key", "HLS variant", "DASH BaseURL"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_public_leads_inside(web: Web, tmp_path: Path, kind: str) -> None:
    error = error_of(lead(web, kind), tmp_path)
    assert error.error_class == "private_address" and "127.0.0.1" in error.message
    assert web.asked and not {"/secret.mp4", "/2.ts"} & set(web.asked)
    assert set(web.connected) == {PUBLIC}


@pytest.mark.parametrize("kind", KINDS)
def test_each_does_lead_there_where_that_is_allowed(web: Web, tmp_path: Path, kind: str) -> None:
    """Else the test above would show nothing."""
    try:
        fetch(lead(web, kind), tmp_path, allow_private=True)
    except MediaError as error:
        assert error.error_class == "download_failed"  # the secret is no key and no playlist
    assert "/secret.mp4" in web.asked


def test_a_name_that_leads_elsewhere_the_second_time(web: Web, tmp_path: Path) -> None:
    """DNS rebinding: what is connected to is what was judged."""
    url = web.put("/a.mp4", web.pages["/secret.mp4"][2], Content_Type="video/mp4")
    web.answers["site.test"] = [PUBLIC, "127.0.0.1"]
    assert error_of(url, tmp_path).error_class == "private_address"
    assert web.connected == [PUBLIC]  # by the first answer; the second one was refused


def test_a_name_with_a_private_address_among_public_ones(web: Web, tmp_path: Path) -> None:
    guard = connections.Guard(allow_private=False, max_bytes=1, min_bytes_per_s=1, window_s=30)
    with pytest.raises(connections.Refused):
        guard.check("both.test", [PUBLIC, "10.0.0.8"])


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "0x7f000001", "2130706433", "127.1", "0", "[::]", "[::1]"),
        *("[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "168.63.129.16"),
    ],
)
def test_hosts_that_are_inside(web: Web, tmp_path: Path, host: str) -> None:
    error = error_of(f"http://{host}:{web.port}/secret.mp4", tmp_path)
    assert error.error_class == "private_address" and not web.asked


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.8", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "fe80::1%eth0"),
        *("192.0.0.192", "168.63.129.16", "224.0.0.1", "239.1.2.3", "ff0e::1", "240.0.0.1"),
        *("255.255.255.255", "fc00::1", "fec0::1", "fd00:ec2::254", "::7f00:1", "2001::1"),
        *("64:ff9b::a00:8", "64:ff9b:1::808:808", "2002:a00:8::", "::ffff:169.254.169.254"),
        *("192.88.99.1", "198.18.0.1", "0.0.0.0"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


def test_a_proxy_of_the_user_is_used_and_asked_for_nothing_inside(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{web.port}")
    video = web.pages["/secret.mp4"]
    web.pages["http://known-to-the-proxy.test/a.mp4"] = video
    assert fetch("http://known-to-the-proxy.test/a.mp4", tmp_path).path
    web.asked.clear()
    error = error_of("http://inside.test/secret.mp4", tmp_path)
    assert error.error_class == "private_address" and not web.asked


# -- what has no end


def test_a_body_without_end_is_cut_off_by_its_bytes(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.mp4", web.pages["/secret.mp4"][2], Content_Type="video/mp4", X_Endless="1")
    error = error_of(url, tmp_path, max_bytes=1 << 20)
    assert error.error_class == "too_large" and "download.max_bytes" in error.message
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 20


def test_a_body_that_says_it_is_too_long_is_not_begun(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.mp4", bytes(2000), Content_Type="video/mp4")
    error = error_of(url, tmp_path, max_bytes=1999)
    assert error.error_class == "too_large" and not list(tmp_path.iterdir())


def test_segments_count_together(web: Web, tmp_path: Path) -> None:
    web.put("/1.ts", bytes(1000))
    segments = M3U8.format("", "\n#EXTINF:2,\n".join(["1.ts"] * 9))
    url = web.put("/a.m3u8", segments, Content_Type=HLS)
    assert error_of(url, tmp_path, max_bytes=5000).error_class == "too_large"
    assert web.asked.count("/1.ts") < 6


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_page_is_held_in_memory_up_to_a_size(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(connections, "MAX_PAGE_BYTES", 100_000)
    page = HTML.format("", " " * 200_000).encode()
    packed = {"Content_Encoding": "gzip"} if kind == "packed" else {}
    body = gzip.compress(page) if packed else page
    error = error_of(web.put("/a", body, Content_Type="text/html", **packed), tmp_path)
    assert error.error_class == "too_large" and "page" in error.message


ITEM = "<item><title>{0}</title><enclosure url='http://site.test:{1}/{0}.mp4' type='video/mp4'/>"


@pytest.mark.parametrize("kind", ["feed", "page"])
def test_one_video_a_source(web: Web, tmp_path: Path, kind: str) -> None:
    if kind == "feed":
        items = "".join(ITEM.format(n, web.port) + "</item>" for n in range(3))
        body = f"<?xml version='1.0'?><rss version='2.0'><channel>{items}</channel></rss>"
        url = web.put("/a", body, Content_Type="application/rss+xml")
    else:
        videos = "".join(f'<video src="/{n}.mp4"></video>' for n in range(3))
        url = web.put("/a", HTML.format("", videos), Content_Type="text/html")
    error = error_of(url, tmp_path)
    assert (error.error_class, "a playlist of 3" in error.message) == ("not_a_video", True)
    assert set(web.asked) == {"/a"}


def test_a_live_stream_is_refused_at_once(web: Web, tmp_path: Path) -> None:
    web.put("/1.ts", bytes(376))
    live = M3U8.format("", "1.ts").replace("#EXT-X-ENDLIST\n", "")
    url = web.put("/a.m3u8", live, Content_Type=HLS)
    error = error_of(url, tmp_path)
    assert error.error_class == "live" and "live" in error.message
    assert "/1.ts" not in web.asked


def test_no_program_is_sent_to_fetch(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What yt-dlp cannot fetch itself it hands to ffmpeg, which asks nobody."""
    ffmpeg = tmp_path / "bin/ffmpeg"
    ffmpeg.parent.mkdir()
    ffmpeg.write_text(f"#!/bin/sh\necho ffmpeg version 8 && echo $@ >>{tmp_path}/ran\n")
    ffmpeg.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ffmpeg.parent}:{os.environ['PATH']}")
    key = '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="k"\n'
    body = M3U8.format(key, "1.ts")
    error = error_of(web.put("/a.m3u8", body, Content_Type=HLS), tmp_path)
    assert error.error_class == "download_failed" and not (tmp_path / "ran").exists()


# -- yt-dlp's own ways in


def test_plugins_in_the_home_are_not_run(tmp_path: Path) -> None:
    plugin = tmp_path / ".config/yt-dlp/plugins/any/yt_dlp_plugins/extractor/any.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    def is_run(code: str) -> bool:
        (tmp_path / "ran").unlink(missing_ok=True)
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
        return (tmp_path / "ran").exists()

    start = "import yt_dlp; yt_dlp.YoutubeDL({'quiet': True})"
    assert is_run(start)  # as yt-dlp is; else the next line would show nothing
    assert not is_run(f"import curation.downloads; {start}")


def test_a_signed_url_is_fetched_as_it_was_given(web: Web, tmp_path: Path) -> None:
    """What is kept of it is another matter: test_safety_files.py."""
    url = web.put("/a.mp4?token=1", web.pages["/secret.mp4"][2], Content_Type="video/mp4")
    source = download(remote(url), tmp_path, Download(), lambda: None)
    assert source.url == url.partition("?")[0] and set(web.asked) == {"/a.mp4?token=1"}
