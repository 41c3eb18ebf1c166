"""Files, folders, lists and URLs become sources, with what a list knows of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeVideo, Shot

from curation.pipelines import Pipeline
from curation.settings import ConfigError
from curation.sources import Source, Span, content_id, expand
from curation.videos import curate_video

ROWS = [
    {"url": "a.mp4", "id": "one", "title": "A", "caption": "red", "start": 0.0, "end": 1.5},
    {"url": "a.mp4", "id": "one", "title": "A", "caption": "blue", "start": 2.0, "end": 3.0},
    {"url": "https://host/b.mp4", "title": "B", "caption": "a whole video", "license": "CC0"},
]
COLUMNS = ["url", "id", "title", "caption", "start", "end", "license"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_list(folder: Path, suffix: str) -> Path:
    """ROWS as a list of one kind."""
    path = folder / f"list{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif suffix == ".parquet":
        rows = [dict.fromkeys(COLUMNS) | row for row in ROWS]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [",".join(str(row.get(c, "")) for c in COLUMNS) for row in ROWS]
        path.write_text("\n".join([",".join(COLUMNS), *lines]), encoding="utf-8-sig")
    return path


def test_a_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "film.bin")
    [source] = expand(["film.bin"], tmp_path)
    assert (source.url, source.path) == ("film.bin", str(tmp_path / "film.bin"))


def test_a_folder_gives_its_videos_sorted_and_none_that_are_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "d/b.mp4", "d/a/z.MKV", "d/a.webm", "d/.x.mp4", "d/.git/y.mp4", "d/t.srt")
    assert [s.url for s in expand(["d"], tmp_path)] == ["d/a/z.MKV", "d/a.webm", "d/b.mp4"]


def test_a_text_list_has_a_source_a_line(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("\ufeffhttps://h/1\r\n\r\n# no\r\n  v/2.mp4  \r\n", "utf-8")
    first, second = expand(["l.txt"], tmp_path)
    assert (first.url, first.path) == ("https://h/1", None)
    assert second.path == str(tmp_path / "v/2.mp4")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists_give_text_and_join_their_spans(tmp_path: Path, suffix: str) -> None:
    write_list(tmp_path, suffix)
    local, remote = expand([f"list{suffix}"], tmp_path)
    assert (local.id, local.title, local.caption) == ("one", "A", None)
    assert local.path == str(tmp_path / "a.mp4")
    assert local.spans == (Span(0.0, 1.5, "red"), Span(2.0, 3.0, "blue"))
    assert (remote.id, remote.caption, remote.license) == (None, "a whole video", "CC0")
    assert remote.spans == () and remote.uploader is None


def test_a_source_given_twice_is_one(tmp_path: Path) -> None:
    touch(tmp_path, "d/a.mp4")
    given = ["d", "d/a.mp4", "https://h/1", "https://h/1"]
    assert [s.url for s in expand(given, tmp_path)] == ["d/a.mp4", "https://h/1"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.csv", "link,title\nhttps://h/1,x\n", "no 'url'; columns: link, title"),
        ("l.csv", "url,start,end\nhttps://h/1,0,soon\n", "must both be seconds"),
        ("l.csv", "url,start,end\nhttps://h/1,3,\n", "must both be seconds"),
        ("l.csv", "url,start,end\nhttps://h/1,3,1\n", "start 3.0 is not before end 1.0"),
        ("l.csv", "url,start,end\nhttps://h/1,nan,1\n", "is not before"),
        ("l.jsonl", '{"url": "https://h/1"\n', "line 1: Expecting ',' delimiter"),
        ("l.jsonl", '["https://h/1"]\n', "line 1: it is not an object"),
        ("l.parquet", "no parquet", "not a readable .parquet"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        expand([name], tmp_path)


def test_a_path_that_does_not_exist_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file or folder: nowhere\.mp4"):
        expand(["nowhere.mp4"], tmp_path)


def test_ids_come_from_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert content_id(str(tmp_path / "a")) == "ba7816bf8f01cfea4141"


def test_given_cuts_and_captions_are_used(make_video: MakeVideo, tmp_path: Path) -> None:
    shots = [Shot("test", 1.5), Shot("bars", 2.5)]
    shutil.copy(make_video("given.mp4", shots), tmp_path / "a.mp4")
    write_list(tmp_path, ".csv")
    source = expand(["list.csv"], tmp_path)[0]
    result = curate_video(source, Pipeline(), tmp_path, lambda stage, at_s: None)
    rows = [clip.row for clip in result.clips]
    rows = [clip.row for clip in result.clips]
    clips = [(r["start_s"], r["end_s"], r["caption"], r["num_frames"]) for r in rows]
    assert clips == [
        (pytest.approx(0), pytest.approx(1.52), "red", 38),  # the first frame at or after 1.5 s
        (pytest.approx(2), pytest.approx(3), "blue", 25),
    ]
    assert {r["video_id"] for r in rows} == {"one"}
    assert {r["title"] for r in rows} == {"A"}


def test_a_span_without_a_frame_fails_alone(make_video: MakeVideo) -> None:
    path = make_video("given.mp4", [Shot("test", 1.5), Shot("bars", 2.5)])
    spans = (Span(0.0, 1.0), Span(90.0, 99.0))
    source = Source(url="x", path=str(path), spans=spans)
    result = curate_video(source, Pipeline(), path.parent, lambda stage, at_s: None)
    assert sorted((r["level"], r["decision"], r["error_class"]) for r in result.ledger) == [
        ("clip", "failed", "outside"),
        ("clip", "kept", None),
        ("video", "kept", None),
    ]
    nowhere = replace(source, spans=spans[1:])
    result = curate_video(nowhere, Pipeline(), path.parent, lambda stage, at_s: None)
    assert [r["error_class"] for r in result.ledger] == ["outside", "outside"]
    assert result.clips == []
