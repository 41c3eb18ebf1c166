"""URLs through the real yt-dlp, against a server on this machine."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from pathlib import Path

import pytest
from conftest import MakeVideo

from curation.downloads.fetches import download, with_site_data
from curation.media.files import MediaError
from curation.media.probes import probe
from curation.pipelines import Download, Pipeline
from curation.sources import Source, content_id
from curation.videos import curate_video

OPEN = Download(allow_private=True, retry_s=0.001)
Serve = tuple[str, Path]


def fetch(url: str, folder: Path, settings: Download = OPEN) -> Source:
    folder.mkdir(exist_ok=True)
    return download(Source(url=url), folder, settings, lambda: None)


def error_of(url: str, folder: Path, settings: Download = OPEN) -> MediaError:
    with pytest.raises(MediaError) as caught:
        fetch(url, folder, settings)
    return caught.value


def test_a_direct_file_is_fetched_whole(
    make_video: MakeVideo, serve: Serve, tmp_path: Path
) -> None:
    url, served = serve
    original = make_video("plain.mp4")
    shutil.copy(original, served / "a film.mp4")
    beats: list[int] = []
    got = download(Source(url=f"{url}/a%20film.mp4"), tmp_path, OPEN, lambda: beats.append(1))
    assert got.path is not None and Path(got.path).read_bytes() == original.read_bytes()
    # The server's are no site's; the id will be of the content.
    assert (got.id, got.title, got.upload_date, got.format) == (None, None, None, None)
    assert beats


def test_the_file_is_never_named_by_the_url(
    make_video: MakeVideo, serve: Serve, tmp_path: Path
) -> None:
    url, served = serve
    shutil.copy(make_video("plain.mp4"), served / "..%2f;rm -rf.mp4")
    got = fetch(f"{url}/..%252f;rm%20-rf.mp4", tmp_path / "scratch")
    assert got.path == str(tmp_path / "scratch" / "video.mp4")
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == ["video.mp4"]


def test_what_a_list_gave_stands(make_video: MakeVideo, serve: Serve, tmp_path: Path) -> None:
    url, served = serve
    shutil.copy(make_video("plain.mp4"), served / "a.mp4")
    source = Source(url=f"{url}/a.mp4", id="given", title="Mine", caption="a test")
    got = download(source, tmp_path, OPEN, lambda: None)
    assert (got.id, got.title, got.caption) == ("given", "Mine", "a test")


@pytest.mark.parametrize("name", ["missing.mp4", "page.html"])
def test_what_is_no_video_is_told(serve: Serve, tmp_path: Path, name: str) -> None:
    url, served = serve
    (served / "page.html").write_text("<!DOCTYPE html><html><title>x</title></html>")
    error = error_of(f"{url}/{name}", tmp_path)
    assert error.error_class == {"missing.mp4": "gone", "page.html": "not_a_video"}[name]
    assert error.message


def test_a_page_that_calls_itself_a_video_is_failed(serve: Serve, tmp_path: Path) -> None:
    url, served = serve
    (served / "page.mp4").write_text("<!DOCTYPE html><html><title>Not found</title></html>")
    pipeline = Pipeline(download=OPEN)
    result = curate_video(Source(url=f"{url}/page.mp4"), pipeline, tmp_path, lambda s, t: None)
    assert result.ledger[0]["decision"] == "failed"
    assert result.ledger[0]["error_class"] in {"not_a_video", "not_video"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.8", "169.254.169.254"])
def test_private_addresses_are_refused_by_default(host: str, tmp_path: Path) -> None:
    error = error_of(f"http://{host}/a.mp4", tmp_path, Download())
    assert error.error_class == "private_address"
    assert "--set download.allow_private=true" in error.message


def test_a_server_that_is_away_is_the_networks(tmp_path: Path) -> None:
    """It may be back tomorrow; an address without a host will not."""
    assert error_of("http://127.0.0.1:9/a.mp4", tmp_path).error_class == "network"
    assert error_of("http:///a.mp4", tmp_path, Download()).error_class == "download_failed"


def test_a_fetched_video_is_curated_like_a_file(
    make_video: MakeVideo, serve: Serve, tmp_path: Path
) -> None:
    url, served = serve
    shutil.copy(make_video("plain.mp4"), served / "a.mp4")
    pipeline, source = Pipeline(download=OPEN), Source(url=f"{url}/a.mp4")
    started = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    result = curate_video(source, pipeline, tmp_path, lambda stage, at_s: None)
    assert {row["source_url"] for row in result.ledger} == {f"{url}/a.mp4"}
    assert [clip.row["num_frames"] for clip in result.clips] == [30, 25, 35]
    assert {clip.row["video_id"] for clip in result.clips} == {content_id(str(served / "a.mp4"))}
    sha256 = hashlib.sha256((served / "a.mp4").read_bytes()).hexdigest()
    for row in (result.video, *[clip.row for clip in result.clips]):
        assert row["sha256"] == sha256
        then = datetime.datetime.fromisoformat(row["downloaded_at"])
        assert started <= then <= datetime.datetime.now(datetime.UTC)


def test_site_data_fills_what_was_not_given(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    info = {"id": "x1", "title": "T", "categories": ["Sport"], "upload_date": "20240131"}
    info |= {"channel": "Birds", "format": "22 - 1280x720 (720p)"}
    path = str(tmp_path / "f")
    tube = with_site_data(Source(url="u"), info | {"extractor_key": "Youtube"}, path)
    assert (tube.id, tube.title, tube.category) == ("x1", "T", "Sport")
    assert (tube.upload_date, tube.path) == ("2024-01-31", path)
    assert (tube.channel, tube.format) == ("Birds", "22 - 1280x720 (720p)")
    page = with_site_data(Source(url="u"), info | {"extractor_key": "HTML5MediaEmbed"}, path)
    assert (page.id, page.title, page.format) == (None, None, None)  # other pages have such a name
    other = with_site_data(Source(url="u", title="own"), info | {"extractor_key": "Vimeo"}, path)
    assert (other.id, other.title) == ("vimeo-x1", "own")


def test_a_file_keeps_its_format(make_video: MakeVideo, serve: Serve, tmp_path: Path) -> None:
    url, served = serve
    shutil.copy(make_video("plain.mkv"), served / "a.mkv")
    got = fetch(f"{url}/a.mkv", tmp_path / "scratch")
    assert got.path is not None and probe(got.path).codec == "h264"
