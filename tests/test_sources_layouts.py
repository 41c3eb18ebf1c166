"""Lists as data sets publish them, written small from their columns, give the expected sources."""

from __future__ import annotations

import bisect
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from curation.pipelines import Pipeline
from curation.settings import ConfigError
from curation.sources import Given, Source, Span, read_given
from curation.sources.lists.columns import columns_of
from curation.sources.lists.layouts import scene_span
from curation.videos import curate_video

CITY = Path(__file__).parents[1] / "examples/media/city_360p.mp4"
WATCH = "https://www.youtube.com/watch?v="


def given(folder: Path, name: str, text: str, columns: str | None = None) -> Given:
    (folder / name).write_text(text)
    return read_given([name], folder, columns_of(columns))


def only(found: Given, layout: str) -> Source:
    """The one source of a list that is told as this layout."""
    [line] = found.recognised()
    assert line.split(": ")[1] == f"{layout} columns"
    [source] = found.sources
    return source


# -- one layout after another


def test_webvid_csv(tmp_path: Path) -> None:
    text = "videoid,contentUrl,duration,page_dir,name\n42,https://h/42.mp4,PT00H01M02S,d,A bird\n"
    found = given(tmp_path, "videos.csv", text)
    expected = Source(url="https://h/42.mp4", id="42", caption="A bird", duration_s=62)
    assert only(found, "WebVid") == expected
    assert found.recognised() == ["videos.csv: WebVid columns: videoid, contentUrl, duration, name"]
    assert found.ignored() == ["videos.csv: columns not read: page_dir"]
    assert only(given(tmp_path, "t.csv", text.replace(",", ";")), "WebVid") == expected


def test_panda_70m_csv(tmp_path: Path) -> None:
    cuts = "[['0:00:00.000', '0:00:01.500'], ['1:00:02.000', '1:00:03.000']]"
    text = f"videoID,url,timestamp,caption\nab,{WATCH}ab,\"{cuts}\",\"['a bird', 'two']\"\n"
    source = only(given(tmp_path, "l.csv", text), "Panda-70M")
    assert (source.id, source.url) == ("ab", f"{WATCH}ab")
    assert source.spans == (Span(0, 1.5, "a bird"), Span(3602, 3603, "two"))


def test_hd_vila_jsonl(tmp_path: Path) -> None:
    clips = [
        {"clip_id": "ab.0.mp4", "span": ["00:00:01.500", "00:00:03.000"]},
        {"clip_id": "ab.1.mp4", "span": ["00:01:00.000", "00:01:05.250"]},
    ]
    row = {"video_id": "ab", "url": f"{WATCH}ab", "clip": clips}
    source = only(given(tmp_path, "l.jsonl", json.dumps(row)), "HD-VILA")
    assert source == Source(url=f"{WATCH}ab", id="ab", spans=(Span(1.5, 3), Span(60, 65.25)))


def hdvg(url: str, span: list[str], fps: float, scenes: list[list[int]]) -> dict[str, Any]:
    split = [
        {"clip_id": f"ab.0_{k}", "scene_cut": cut, "caption": f"scene {k}"}
        for k, cut in enumerate(scenes)
    ]
    return {"ab": {"url": url, "clip": {"ab.0.mp4": dict(span=span, fps=fps, scene_split=split)}}}


@pytest.mark.parametrize("indent", [None, 1])
def test_hd_vg_json(tmp_path: Path, indent: int | None) -> None:
    videos = hdvg(f"{WATCH}ab", ["00:00:10.000", "00:00:20.000"], 25.0, [[0, 50], [50, -1]])
    videos["cd"] = hdvg(f"{WATCH}cd", ["00:00:00.000", "00:00:04.000"], 30, [[0, -1]])["ab"]
    found = given(tmp_path, "hdvg_0.json", json.dumps(videos, indent=indent))
    one, two = found.sources
    assert (one.id, one.url, two.id) == ("ab", f"{WATCH}ab", "cd")
    assert [span.captions for span in one.spans] == [("scene 0",), ("scene 1",)]
    ends = [end for span in one.spans for end in (span.start_s, span.end_s)]
    assert ends == pytest.approx([10, 12, 12, 20], abs=0.0011)
    assert two.spans == (Span(0, 4, "scene 0"),)  # -1: the whole clip
    assert found.recognised()[0].startswith("hdvg_0.json: HD-VG columns: ")


def test_msr_vtt_json(tmp_path: Path) -> None:
    video = {"category": 13, "url": f"{WATCH}ab", "video_id": "video7", "start time": 1.5}
    video |= {"end time": 9.5, "split": "train", "id": 7}
    other = video | {"video_id": "video8", "start time": 20.0, "end time": 30.0}
    said = [("video8", "a cat"), ("video7", "a dog runs"), ("video7", "a dog is running")]
    sentences = [{"caption": c, "video_id": v, "sen_id": n} for n, (v, c) in enumerate(said)]
    data = {"info": {"year": "2016"}, "videos": [video, other], "sentences": sentences}
    found = given(tmp_path, "train_val_videodatainfo.json", json.dumps(data))
    source = only(found, "MSR-VTT")
    assert (source.url, source.id, source.category) == (f"{WATCH}ab", None, "animals/pets")
    first = Span(1.5, 9.5, "a dog runs", ("a dog is running",))
    assert source.spans == (first, Span(20, 30, "a cat"))


def test_openvid_csv(tmp_path: Path) -> None:
    (tmp_path / "ab_0.mp4").touch()
    head = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion"
    text = f'{head},frame,fps,seconds\nab_0.mp4,"A bird, blue",5.1,2.2,0.9,pan,250,25.0,10.0\n'
    source = only(given(tmp_path, "OpenVid-1M.csv", text), "OpenVid")
    assert source.path == str(tmp_path / "ab_0.mp4")
    assert (source.caption, source.duration_s, source.spans) == ("A bird, blue", 10, ())


def test_lvd_2m_csv(tmp_path: Path) -> None:
    head = "key,video_id,url,raw_caption,refined_caption,rewritten_caption,span,orig_span,scene_cut"
    rows = [
        f"k1,ab,{WATCH}ab,raw,fine,brief,\"['0:00:01.000', '0:00:12.500']\",,",
        f"k2,cd,{WATCH}cd,raw,whole,brief,,\"['00:00:02.000', '00:00:30.000']\",\"[0, -1]\"",
        f"k3,ef,{WATCH}ef,raw,lost,brief,,\"['00:00:02.000', '00:00:30.000']\",\"[9, 99]\"",
    ]
    with pytest.raises(ConfigError, match=r"row 4: scene_cut .* is in frames; it needs fps"):
        given(tmp_path, "l.csv", "\n".join([head, *rows]))
    one, two = given(tmp_path, "l.csv", "\n".join([head, *rows[:2]])).sources
    assert (one.id, one.spans) == ("ab", (Span(1, 12.5, "fine"),))
    assert (two.id, two.spans) == ("cd", (Span(2, 30, "whole"),))
    webvid = "key,contentUrl,raw_caption,refined_caption\nk,https://h/1.mp4,raw,fine\n"
    source = only(given(tmp_path, "w.csv", webvid), "LVD-2M")
    assert (source.url, source.caption) == ("https://h/1.mp4", "fine")


def test_internvid_jsonl(tmp_path: Path) -> None:
    row = {"YoutubeID": "ab", "Start_timestamp": "00:00:01.250", "End_timestamp": "00:01:00.000"}
    row |= {"Caption": "a bird", "Aesthetic_Score": 4.2, "UMT_Score": 0.3}
    source = only(given(tmp_path, "l.jsonl", json.dumps(row)), "InternVid")
    assert source == Source(url=f"{WATCH}ab", id="ab", spans=(Span(1.25, 60, "a bird"),))


# -- any other


def test_columns_names_those_of_any_list(tmp_path: Path) -> None:
    text = "link,text,caption,from\nhttps://h/1,a bird,no,1\n"
    found = given(tmp_path, "l.csv", text, "url=link, caption=text")
    assert found.sources == [Source(url="https://h/1", caption="a bird")]
    assert found.ignored() == ["l.csv: columns not read: caption, from"]
    lvd = "key,url,raw_caption,refined_caption\nk,https://h/1,raw,fine\n"
    assert given(tmp_path, "l.csv", lvd, "caption=raw_caption").sources[0].caption == "raw"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("url=lnik", r"l.csv: row 2: --columns url=lnik: no column 'lnik'; did you mean 'link'\?"),
        ("ulr=link", r"--columns ulr=link: ulr is no column; did you mean 'url'\?"),
        ("url", "--columns url: write OURS=THEIRS"),
        ("url=link,url=text", "--columns names url twice"),
    ],
)
def test_a_column_that_is_not_there_is_an_error_with_the_nearest(
    tmp_path: Path, columns: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        given(tmp_path, "l.csv", "link,text\nhttps://h/1,a bird\n", columns)


# -- HD-VG's frames


def test_hd_vg_of_a_local_video_reproduces_its_cuts_to_the_frame(tmp_path: Path) -> None:
    with av.open(str(CITY)) as file:
        shown = sorted(float(p.pts * p.time_base) for p in file.demux(video=0) if p.pts is not None)
    first = bisect.bisect_left(shown, 2)  # of the span, which ends before frame `last`
    last = bisect.bisect_left(shown, 7)
    cuts = [[0, 30], [30, 101], [101, -1]]
    videos = hdvg(str(CITY), ["00:00:02.000", "00:00:07.000"], 25.0, cuts)
    source = only(given(tmp_path, "hdvg_0.json", json.dumps(videos)), "HD-VG")
    result = curate_video(source, Pipeline(), tmp_path, lambda stage, at_s: None)
    rows = [row for row in result.ledger if row["level"] == "clip"]
    frames = [(first, first + 30), (first + 30, first + 101), (first + 101, last)]
    expected = [
        (pytest.approx(shown[a], abs=1e-5), pytest.approx(shown[b], abs=1e-5)) for a, b in frames
    ]
    assert [(row["start_s"], row["end_s"]) for row in rows] == expected
    lengths = {clip.row["start_s"]: clip.row["num_frames"] for clip in result.clips}
    assert lengths and all(
        lengths.get(row["start_s"], b - a) == b - a
        for row, (a, b) in zip(rows, frames, strict=True)
    )


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60)])
def test_frames_are_counted_right_though_times_are_rounded(fps: Fraction) -> None:
    """Spans are written to the millisecond, Matroska's frame times as well."""
    exact = [float(k / fps) for k in range(4000)]
    for shown in (exact, [round(t, 3) for t in exact]):
        for at in (0, 1, 7, 1000):
            begins = f"0:{int(exact[at] // 60):02}:{exact[at] % 60:06.3f}"
            for cut in (1, 2, 29, 999, 2001):
                start_s, _ = scene_span(begins, "1:00:00.000", [cut, -1], float(fps))
                assert bisect.bisect_left(shown, start_s - 5e-7) == at + cut


# -- .json of any size


def test_a_json_list_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.sources.lists.json_pieces.CHUNK_CHARS", 7)
    rows = [{"url": f"https://h/{n}", "caption": 'a "bird" } ] \\', "x": [1, {}]} for n in range(9)]
    for text in (json.dumps(rows), json.dumps(rows, indent=2), f"\n {json.dumps(rows)} \n"):
        found = given(tmp_path, "l.json", text)
        assert [s.url for s in found.sources] == [f"https://h/{n}" for n in range(9)]
        assert {s.caption for s in found.sources} == {'a "bird" } ] \\'}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"url": "https://h/1"}, {"url": ', "character 34: Expecting value"),
        ('[{"url": "https://h/1"} {"url": "https://h/2"}]', "character 25: ',' is missing"),
        ('[{"url": "https://h/1"}]]', "goes on behind its end"),
        ('[{"url": "https://h/1"}', "',' is missing"),
        ('[{"url": nothing, "caption": "long enough to see that it is none"}]', "character 10"),
    ],
)
def test_broken_json_says_where(
    tmp_path: Path, text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_chars in (1 << 20, 7):
        monkeypatch.setattr("curation.sources.lists.json_pieces.CHUNK_CHARS", num_chars)
        with pytest.raises(ConfigError, match=says):
            given(tmp_path, "l.json", text)
