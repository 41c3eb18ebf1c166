"""What strangers send does no harm: secrets, clips, datasets and lists (docs/security.md)."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeVideo, Shot
from rich.console import Console

from curation.downloads.fetches import download
from curation.flow.plans import execute, make_plan
from curation.media import files
from curation.media.files import MediaError, open_clip, readable
from curation.pipelines import Download, Pipeline
from curation.settings import ConfigError
from curation.sources import expand
from curation.sources.identified import identify
from curation.sources.lists import columns, rows
from curation.sources.signed import told_without, without_secrets
from curation.sources.source import remote
from curation.videos import curate_video
from training.data import videos
from training.data.videos import REFERENCES, BadVideoError, SampleShape, fits, read_frames

CONFIG = Path(__file__).parents[1] / "pipelines.yaml"
LOOSE = ["rules.resolution.min=0", "rules.duration.min=0.2", "rules.static.max=1"]
LOOSE += ["rules.black_bars.max=1", "rules.watermark.max=1", "download.allow_private=true"]
Serve = tuple[str, Path]


def curate(output: Path, *given: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    execute(make_plan([*given], "web", CONFIG, str(output), LOOSE, None), console, time.time())
    return console.file.getvalue()  # type: ignore[attr-defined]


# -- secrets


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://me:pw@host:8/a.mp4", "https://host:8/a.mp4"),
        ("https://me@host/a@b.mp4", "https://host/a@b.mp4"),
        ("https://h/a?v=1&X-Amz-Signature=0&x-amz-date=2&t=3", "https://h/a?v=1&t=3"),
        ("https://h/a?X-Goog-Credential=0", "https://h/a"),
        ("https://h/a?Expires=1&Signature=s&Key-Pair-Id=k&Policy=p", "https://h/a"),
        ("https://h/a?sv=1&sp=r&sig=s%2B&id=7", "https://h/a?id=7"),
        ("https://h/a?%74oken=1#access_token=2&t=5", "https://h/a#t=5"),
        # Without a signature these names may be the video's; and what is kept stays as it was.
        ("https://h/a?expires=1&sp=r&key=k", "https://h/a?expires=1&sp=r&key=k"),
        ("https://h/a%2f?b=%20&&c#?", "https://h/a%2f?b=%20&&c#?"),
        ("https://me:pw@[::1/a", "https://[::1/a"),
    ],
)
def test_what_is_kept_of_a_url(url: str, kept: str) -> None:
    source = remote(url)
    assert source.url == without_secrets(kept) == kept
    assert source.signed_url == (url if url != kept else None)
    assert "pw" not in repr(source)


def test_urls_that_differ_in_secrets_alone_are_one_source(tmp_path: Path) -> None:
    urls = ["https://h/a?token=1", "https://h/a?token=2", "https://h/a?v=2"]
    assert [s.url for s in expand(urls, tmp_path)] == ["https://h/a", "https://h/a?v=2"]


def test_what_went_wrong_is_told_without_secrets(serve: Serve, tmp_path: Path) -> None:
    url, served = serve
    (served / "page.html").write_text("<!DOCTYPE html><html><title>x</title></html>")
    url = url.replace("//", "//me:pass%40word@") + "/page.html?token=sesame%2F"
    with pytest.raises(MediaError) as caught:
        download(remote(url), tmp_path, Download(allow_private=True), lambda: None)
    assert "Unsupported URL: http" in caught.value.message
    for text in (caught.value.message, told_without(f"no {url}: sesame/, pass@word", url)):
        assert "sesame" not in text and "word" not in text
    led_to = "Unsupported URL: https://cdn/a?X-Amz-Signature=0123"
    assert told_without(led_to, url) == "Unsupported URL: https://cdn/a"


def test_secrets_are_used_and_never_stored(
    make_video: MakeVideo, serve: Serve, tmp_path: Path, without_ray: None
) -> None:
    """And the same URL, signed anew, is decided already."""
    url, served = serve
    shutil.copy(make_video("a.mp4", [Shot("test", 2.0)]), served / "a.mp4")
    output = tmp_path / "out"
    asked = f"{url.replace('//', '//sesame-user:sesame-word@')}/a.mp4?v=1&token=sesame-{{}}"
    gone = f"{url}/gone.mp4?X-Amz-Signature=sesame-{{}}"
    told = curate(output, asked.format(1), gone.format(1))
    (served / "a.mp4").unlink()
    told += curate(output, asked.format(2), gone.format(2))
    assert "2 videos already decided" in told and "sesame" not in told
    files = [path for path in output.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"sesame" in path.read_bytes()]
    ledger = [row for path in output.glob("ledger/*") for row in read_rows(path)]
    assert {row["source_url"] for row in ledger} == {f"{url}/a.mp4?v=1", f"{url}/gone.mp4"}
    assert not [row for row in ledger if "sesame" in str(row)]


def read_rows(path: Path) -> list[dict[str, object]]:
    return pq.read_table(path).drop_columns(["preview"]).to_pylist()


# -- the bytes of a clip

TEXTS = {
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 47306 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "ffconcat": "ffconcat version 1.0\nfile {path}\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{path}\n#EXT-X-ENDLIST\n",
    "text": "You are not meant to see this.\n" * 20,
}


def in_training(data: bytes) -> None:
    read_frames(data, SampleShape(4, 64, 64, fps=25, stride=1), 0.0)


def in_evaluation(data: bytes) -> None:
    fits(data, SampleShape(4, 64, 64, fps=25, stride=1))
    read_frames(data, SampleShape(4, 64, 64, fps=25, stride=1), 0.0, REFERENCES)


def in_validation(data: bytes) -> None:
    with open_clip(data) as container:
        list(readable(container.decode(video=0)))


READERS = (in_training, in_evaluation, in_validation)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_no_mp4_opens_nothing(
    kind: str,
    read: Callable[[bytes], None],
    make_video: MakeVideo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(make_video("a.mp4", [Shot("test", 2.0)]), "there.mp4")
    read(Path("there.mp4").read_bytes())  # as itself it can be read
    data = TEXTS[kind].format(path="there.mp4").encode()
    with pytest.raises((BadVideoError, MediaError)) as caught:
        read(data)
    assert "there.mp4" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("read", READERS)
def test_a_picture_has_a_size(
    read: Callable[[bytes], None], make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_video("a.mp4", [Shot("test", 2.0)]).read_bytes()
    for module in (videos, files):
        monkeypatch.setattr(module, "MAX_PICTURE_PX", 320 * 180 - 1)
    with pytest.raises((BadVideoError, MediaError)):
        read(data)


# -- lists


def a_list(path: Path, *urls: str) -> Path:
    path.write_text("\n".join(urls))
    return path


@pytest.mark.parametrize("url", ["../secret.txt", "a/../../secret.txt", "./.././secret.txt"])
def test_a_relative_path_stays_below_its_list(tmp_path: Path, url: str) -> None:
    (tmp_path / "secret.txt").write_text("mine")
    (tmp_path / "given").mkdir()
    given = a_list(tmp_path / "given/l.txt", url)
    with pytest.raises(ConfigError, match="leads out of the list's folder") as caught:
        expand([str(given)], tmp_path)
    assert "line 1" in str(caught.value) and "whole path from /" in str(caught.value)
    # What stays below by any spelling is taken, and so is what is named from / on.
    allowed = [url.replace("secret", "given/a"), str(tmp_path / "secret.txt")]
    assert len(expand([str(a_list(given, *allowed))], tmp_path)) == 2


def test_what_is_no_regular_file_is_never_read(tmp_path: Path) -> None:
    """A FIFO would wait, and /dev/zero never ends; a link to one is that, too."""
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "link.mp4").symlink_to("/dev/zero")
    (tmp_path / "link.srt").symlink_to("/dev/zero")
    given = a_list(tmp_path / "l.txt", "fifo.mp4", "link.mp4", "/dev/zero")
    sources = [
        identify(source, True, tmp_path, lambda *_: None)
        for source in expand([str(given)], tmp_path)
    ]
    assert [(s.id, s.subtitles) for s in sources] == [(None, None)] * 2
    for source in sources:
        result = curate_video(source, Pipeline(), tmp_path, lambda stage, at_s: None)
        assert result.video["error_class"] == "missing" and "not a file" in result.video["message"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_deep_json_is_told_in_one_sentence(tmp_path: Path, suffix: str) -> None:
    row = f'{{"url": {"[" * 100_000}{"]" * 100_000}}}'
    path = a_list(tmp_path / f"l{suffix}", f"[{row}]" if suffix == ".json" else row)
    with pytest.raises(ConfigError) as caught:
        expand([str(path)], tmp_path)
    assert "l.json" in str(caught.value) and len(str(caught.value)) < 300


def test_a_list_of_a_bomb_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """100 kB on the disk; its texts have 20 GB."""
    text = pa.array(["a" * (1 << 20)])
    ones = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), text)
    urls = pa.array([f"{n}.mp4" for n in range(20_000)])
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"url": urls, "caption": ones}), path)
    assert path.stat().st_size < 1 << 20
    code = f"""
import pyarrow as pa
from pathlib import Path
from curation.sources import expand
try:
    expand([{str(path)!r}], Path())
except ValueError as error:
    print(error)
print(pa.default_memory_pool().max_memory())
"""
    environment = os.environ | {"PYTHONPATH": str(CONFIG.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said, peak = done.stdout.strip().rsplit("\n", 1)
    assert "row 1: caption holds more than" in said and int(peak) < 300 << 20


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_a_cell_and_a_line_have_a_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(columns, "MAX_CELL_CHARS", 1000)
    monkeypatch.setattr(rows, "MAX_LINE_CHARS", 1000)
    name = "a" * 1001
    texts = {".txt": name, ".jsonl": json.dumps({"url": "a"}) + " " * 1000, ".csv": f"url\n{name}"}
    with pytest.raises(ConfigError, match="more than 1,000 characters"):
        expand([str(a_list(tmp_path / f"l{suffix}", texts[suffix]))], tmp_path)


def test_rows_of_a_parquet_list_have_a_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_BATCH_BYTES", 1000)
    pq.write_table(pa.table({"url": ["a"], "picture": [bytes(1001)]}), tmp_path / "l.parquet")
    with pytest.raises(ConfigError, match="1 rows from row 1 on hold"):
        expand([str(tmp_path / "l.parquet")], tmp_path)
