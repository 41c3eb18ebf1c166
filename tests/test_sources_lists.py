"""Lists as people have them: encodings, quotes, separators, columns, times, and what is told."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.settings import ConfigError
from curation.sources import Given, Source, Span, read_given
from curation.sources.lists.cells import seconds


def given(folder: Path, name: str, text: str | bytes) -> Given:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return read_given([name], folder)


def captions(found: Given) -> list[str | None]:
    return [source.caption for source in found.sources]


def refusal(folder: Path, name: str, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as error:
        given(folder, name, text)
    return str(error.value)


# -- cells


def test_a_quoted_line_break_is_a_blank_and_other_breaks_cut_nothing(tmp_path: Path) -> None:
    text = 'url,caption\nhttps://h/1,"first line\nsecond line"\nhttps://h/2,a\u2028b\x85c\x0cd\n'
    assert captions(given(tmp_path, "l.csv", text)) == ["first line second line", "a b c d"]
    text = json.dumps({"url": "https://h/1", "caption": "a\u2028b"}, ensure_ascii=False)
    assert captions(given(tmp_path, "l.jsonl", text)) == ["a b"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system(tmp_path: Path, end: str) -> None:
    text = end.join(["url,caption", "https://h/1,a", 'https://h/2,"b"', ""])
    assert captions(given(tmp_path, "l.csv", text)) == ["a", "b"]
    found = given(tmp_path, "l.txt", end.join(["https://h/1", "https://h/2"]))
    assert [s.url for s in found.sources] == ["https://h/1", "https://h/2"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    text = f'{mark}"URL","Caption"\r\n"https://h/1","été"\r\n'
    assert captions(given(tmp_path, "l.csv", text.encode(encoding))) == ["été"]


def test_utf_16_without_a_mark_is_read_and_other_zero_bytes_are_refused(tmp_path: Path) -> None:
    text = "url,caption\nhttps://h/1,été\n"
    assert captions(given(tmp_path, "l.csv", text.encode("utf-16-le"))) == ["été"]
    assert "save it as UTF-8" in refusal(tmp_path, "l.csv", b"url\nhttps://h/\0\n")


LATIN = "url,caption\nhttps://h/1,café déjà vu\nhttps://h/2,plain\n"
CHINESE = "url,caption\nhttps://h/1,图书馆在哪里？\nhttps://h/2,我不知道该说什么。\n"
RUSSIAN = "url,caption\nhttps://h/1,Где находится библиотека?\nhttps://h/2,Я не знаю\n"


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        (LATIN, "cp1252", "Windows-1252"),
        (CHINESE, "gb18030", "GB18030"),
        (RUSSIAN, "cp1251", "Windows-1251"),
    ],
)
def test_captions_that_are_not_utf_8_are_read_and_that_is_told(
    tmp_path: Path, text: str, encoding: str, name: str
) -> None:
    said = [line.split(",")[1] for line in text.splitlines()[1:]]
    for list_name in ("l.csv", "l.jsonl", "l.json"):
        rows = [{"url": f"https://h/{n}", "caption": each} for n, each in enumerate(said)]
        written = {
            "l.csv": text,
            "l.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
            "l.json": json.dumps(rows, ensure_ascii=False, indent=1),
        }[list_name]
        found = given(tmp_path, list_name, written.encode(encoding))
        assert captions(found) == said
        assert found.ignored() == [f"{list_name}: read as {name}, since it is not UTF-8"]
    assert given(tmp_path, "l.csv", text).ignored() == []


def test_a_few_stray_bytes_make_no_other_encoding_of_utf_8(tmp_path: Path) -> None:
    data = "url,caption\nhttps://h/1,été\nhttps://h/2,鳥\n".encode() + b"https://h/3,cut \xe2\x80\n"
    found = given(tmp_path, "l.csv", data)
    assert captions(found) == ["été", "鳥", "cut \ufffd\ufffd"]
    assert "texts with what is not UTF-8" in found.ignored()[0]


def test_names_of_a_list_are_found_as_they_were_typed_or_as_they_are_on_the_disk(
    tmp_path: Path,
) -> None:
    """Excel writes a typed name in its own encoding; `ls` writes the bytes of a name."""
    typed, listed = "été.mp4".encode(), "naïve.mp4".encode("latin-1")
    for name in (typed, listed):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    rows = ["url,caption", "été.mp4,typed é", "naïve.mp4,listed ï", "garçon.mp4,lost ç"]
    found = given(tmp_path, "l.csv", "\n".join(rows).encode("cp1252"))
    assert [Path(s.path or "").read_bytes() for s in found.sources[:2]] == [typed, listed]
    assert captions(found) == ["typed é", "listed ï", "lost ç"]
    names = [Path(s.url).name for s in found.sources]
    assert names == ["été.mp4", "na\\xefve.mp4", "garçon.mp4"]
    assert found.notes[0].counts["missing files"] == 1


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_header_tells_the_separator(tmp_path: Path, mark: str) -> None:
    rows = [["id", "url", "caption"], ["1", "https://h/1", '"a, b; c|d"']]
    text = "\n".join(mark.join(row) for row in rows)
    assert captions(given(tmp_path, "l.csv", text)) == ["a, b; c|d"]
    assert captions(given(tmp_path, "e.csv", f"sep={mark}\n{text}")) == ["a, b; c|d"]
    if mark == "\t":
        assert captions(given(tmp_path, "l.tsv", text)) == ["a, b; c|d"]


def test_surplus_cells_are_refused_with_their_row_and_blank_ones_are_not(tmp_path: Path) -> None:
    says = refusal(tmp_path, "l.csv", "url,caption\nhttps://h/1,a\nhttps://h/2,a bird, blue\n")
    assert "row 3: 3 cells, and the header names 2" in says and "'blue'" in says
    assert captions(given(tmp_path, "l.csv", "url,caption\nhttps://h/1,a,,\n")) == ["a"]


def test_a_quote_that_is_left_open_takes_no_rows_along(tmp_path: Path) -> None:
    says = refusal(tmp_path, "l.csv", 'url,caption\nhttps://h/1,"a\nhttps://h/2,b\n')
    assert "row 2" in says
    long = f"url,caption\nhttps://h/1,a\nhttps://h/2,{'x' * 140000}\n"
    assert "row 3: field larger than field limit" in refusal(tmp_path, "l.csv", long)


def test_blank_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    found = given(tmp_path, "l.csv", "url,caption\nhttps://h/1,a\n,\n,b\n  ,\nhttps://h/2,c\n")
    assert captions(found) == ["a", "c"]
    [line] = found.ignored()
    assert "blank rows skipped: 2 (first: row 3)" in line
    assert "rows without a url skipped: 1 (first: row 4)" in line


def test_nan_is_null(tmp_path: Path) -> None:
    [one] = given(
        tmp_path, "l.jsonl", '{"url": "https://h/1", "caption": NaN, "start": NaN}'
    ).sources
    assert one == Source(url="https://h/1")
    found = given(tmp_path, "l.csv", "url,caption,start,end\nhttps://h/1,nan,NaN,nan\n")
    assert found.sources == [Source(url="https://h/1")]
    assert "cells that say NaN, None or null read as empty: 1 (first: row 2)" in found.ignored()[0]


def test_halves_of_characters_and_stray_bytes_are_replaced_and_told(tmp_path: Path) -> None:
    rows = (
        r'{"url":"https://h/1","caption":"cat \ud83d"}',
        r'{"url":"https://h/2","caption":"\ud83d\ude00"}',
    )
    found = given(tmp_path, "l.jsonl", "\n".join(rows))
    assert captions(found) == ["cat \ufffd", "\U0001f600"]
    assert "texts with what is not UTF-8, read as U+FFFD: 1 (first: line 1)" in found.ignored()[0]


def test_a_file_whose_name_is_not_utf_8_is_reached_from_every_list(tmp_path: Path) -> None:
    name = b"caf\xe9.mp4"
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    column = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\x08\0\0\0"), pa.py_buffer(name))
    pq.write_table(pa.table({"url": column}), tmp_path / "l.parquet")
    (tmp_path / "l.txt").write_bytes(name)
    (tmp_path / "l.csv").write_bytes(b"url\n" + name)
    (tmp_path / "l.jsonl").write_text(json.dumps({"url": os.fsdecode(name)}))
    (tmp_path / "recorded.txt").write_text("caf\\xe9.mp4")
    (tmp_path / "uri.txt").write_text(f"file://{tmp_path}/caf%E9.mp4")
    for each in ("l.txt", "l.csv", "l.jsonl", "l.parquet", "recorded.txt", "uri.txt"):
        found = read_given([each], tmp_path)
        [source] = found.sources
        assert source.url == f"{tmp_path}/caf\\xe9.mp4"
        assert Path(source.path or "").read_bytes() == b"x"
        assert each == "recorded.txt" or "not UTF-8" in found.ignored()[0]
    [again] = read_given(["caf\\xe9.mp4"], tmp_path).sources  # as the ledger names it
    assert Path(again.path or "").read_bytes() == b"x"


def test_bytes_of_a_url_are_percent_encoded(tmp_path: Path) -> None:
    data = "https://h/été\nhttps://h/".encode() + b"caf\xe9.mp4"  # more of it is UTF-8 than not
    _, source = given(tmp_path, "l.txt", data).sources
    assert source.url == "https://h/caf%E9.mp4"
    [source] = given(tmp_path, "l.txt", "https://h/café.mp4".encode("cp1252")).sources
    assert source.url == "https://h/café.mp4"


# -- text lists


def test_comments_are_those_of_yt_dlp(tmp_path: Path) -> None:
    lines = ["# a", "; b", "] c", "https://h/1#t=1", "https://h/2  # said", "file:///no/a%20b.mp4"]
    found = given(tmp_path, "l.txt", "\n".join(lines)).sources
    assert [s.url for s in found] == ["https://h/1#t=1", "https://h/2", "/no/a b.mp4"]


def test_a_file_with_a_name_like_a_comment_is_a_file(tmp_path: Path) -> None:
    for name in ("clip #1.mp4", "]x.mp4"):
        (tmp_path / name).touch()
    found = given(tmp_path, "l.txt", "clip #1.mp4\n]x.mp4\n").sources
    assert [Path(s.url).name for s in found] == ["clip #1.mp4", "]x.mp4"]


# -- columns


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("captions", "caption"),
        ("captoin", "caption"),
        ("titel", "title"),
        ("start_time", "start"),
        ("end_s", "end"),
        ("licence", "license"),
        ("Categories", "category"),
    ],
)
def test_a_misspelt_column_is_an_error_with_the_nearest(
    tmp_path: Path, wrong: str, right: str
) -> None:
    says = refusal(tmp_path, "l.csv", f"url,{wrong}\nhttps://h/1,x\n")
    assert f"{wrong!r}" in says and f"did you mean {right!r}?" in says
    assert f"did you mean {right!r}?" in refusal(
        tmp_path, "l.jsonl", json.dumps({"url": "https://h/1", wrong: "x"})
    )


def test_other_columns_are_named_and_read_ones_need_no_exact_case(tmp_path: Path) -> None:
    header = "videoID, URL ,CAPTION,Upload-Date,caption_score,license_url,description,captions"
    found = given(tmp_path, "l.csv", f"{header}\nx,https://h/1,a,2020-01-02,1,u,d,n\n")
    [source] = found.sources
    assert (source.caption, source.upload_date) == ("a", "2020-01-02")
    [line] = found.ignored()
    told = "columns not read: videoID, caption_score, license_url, description, captions"
    assert line.endswith(told)


def test_a_column_twice_and_no_header_are_errors(tmp_path: Path) -> None:
    assert "two columns are named" in refusal(tmp_path, "l.csv", "url,caption,Caption\nh,a,b\n")
    assert "it has no header" in refusal(tmp_path, "l.csv", "")
    assert "no 'url'" in refusal(tmp_path, "l.csv", "https://h/1\nhttps://h/2\n")
    assert "line 2: no 'url'" in refusal(
        tmp_path, "l.jsonl", '{"url": "https://h/1"}\n{"id": "x"}\n'
    )


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (["a", "b", "a"], ["a", "b"]),
        ("['a', \"b's\"]", ["a", "b's"]),
        ('["a", "b"]', ["a", "b"]),
        ("[music]", ["[music]"]),
        ("[1, 2]", ["[1, 2]"]),
        ([None, "a", " "], ["a"]),
        ([], []),
    ],
)
def test_a_caption_may_be_a_list(tmp_path: Path, cell: Any, expected: list[str]) -> None:
    row = json.dumps({"url": "https://h/1", "caption": cell})
    [source] = given(tmp_path, "l.jsonl", row).sources
    assert list(source.captions) == expected


def test_other_columns_hold_one_text(tmp_path: Path) -> None:
    row = {"url": "https://h/1", "category": ["Music"], "id": 5, "upload_date": 20200102}
    [source] = given(tmp_path, "l.jsonl", json.dumps(row)).sources
    assert (source.category, source.id, source.upload_date) == ("Music", "5", "20200102")
    says = refusal(tmp_path, "l.jsonl", json.dumps(row | {"category": ["Music", "Film"]}))
    assert "line 1: category holds 2 values" in says


# -- cuts


def test_times_are_seconds_or_clock_times(tmp_path: Path) -> None:
    times = ["7", 7, "0:03", "1:02:03.5", "00:00:01,500", datetime.time(0, 1, 2), " 2.5 "]
    assert [seconds(t) for t in times] == [7, 7, 3, 3723.5, 1.5, 62, 2.5]
    [source] = given(tmp_path, "l.csv", "url,start,end\nhttps://h/1,0:03,1:00:00\n").sources
    assert source.spans == (Span(3, 3600),)


@pytest.mark.parametrize(
    "cell", ["3s", "1:99", "0:61:00", "3,5", "soon", "inf", "-0:01", "-1", True]
)
def test_a_time_that_is_none_is_refused_with_its_row(tmp_path: Path, cell: Any) -> None:
    rows = [{"url": "https://h/1"}, {"url": "https://h/1", "start": 1, "end": cell}]
    assert "line 2: start" in refusal(tmp_path, "l.jsonl", "\n".join(map(json.dumps, rows)))


def test_panda_70m_has_a_list_of_cuts_with_a_caption_each(tmp_path: Path) -> None:
    cuts = "[['0:00:00.000', '0:00:01.000'], ['0:00:01.000', '0:00:01.800']]"
    header = "videoID,url,timestamp,caption,matching_score"
    text = f'{header}\nx,https://h/1,"{cuts}","[\'a bird\', \'two birds\']","[0.4, 0.5]"\n'
    found = given(tmp_path, "l.csv", text)
    assert found.sources[0].spans == (Span(0, 1, "a bird"), Span(1, 1.8, "two birds"))
    assert found.sources[0].id == "x"
    assert found.ignored() == ["l.csv: columns not read: matching_score"]
    says = refusal(tmp_path, "l.csv", text.replace(", 'two birds'", ""))
    assert "row 2: timestamp has 2 cuts and caption 1" in says
    made = given(tmp_path, "m.csv", "url,timestamp\nhttps://h/1,2020-01-02 10:00\n")
    assert made.sources[0].spans == () and "timestamp" in made.ignored()[0]


# -- one video in several rows


def test_captions_of_one_span_are_kept_in_list_order(tmp_path: Path) -> None:
    rows = [f"https://h/1,0,1.6,number {i}" for i in (3, 1, 4, 1, 5)]
    found = given(tmp_path, "l.csv", "\n".join(["url,start,end,caption", *rows]))
    [span] = found.sources[0].spans
    assert span.captions == ("number 3", "number 1", "number 4", "number 5")
    assert span.caption == "number 3"


def test_spellings_of_one_file_are_one_source(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").touch()
    (tmp_path / "link.mp4").symlink_to("v.mp4")
    rows = ["v.mp4,0,1,first", f"../{tmp_path.name}/v.mp4,1,2,second", "link.mp4,2,3,third"]
    found = given(tmp_path, "l.csv", "\n".join(["url,start,end,caption", *rows]))
    [source] = found.sources
    assert source.url.endswith("/v.mp4")
    assert [s.caption for s in source.spans] == ["first", "second", "third"]


def test_rows_that_contradict_are_told(tmp_path: Path) -> None:
    text = "url,id,start,end\nhttps://h/1,a,0,1\nhttps://h/1,b,1,2\n"
    found = given(tmp_path, "l.csv", text)
    assert (found.sources[0].id, len(found.sources[0].spans)) == ("a", 2)
    assert "rows that name a video again with other facts" in found.ignored()[0]


# -- other files


def test_json_holds_an_array_of_rows_or_a_row_a_line(tmp_path: Path) -> None:
    rows = [{"url": "https://h/1", "caption": "a"}, {"url": "https://h/2", "start": 1, "end": 2}]
    expected = [
        Source(url="https://h/1", caption="a"),
        Source(url="https://h/2", spans=(Span(1, 2),)),
    ]
    for text in (
        json.dumps(rows),
        "\ufeff\n" + json.dumps(rows, indent=1),
        "\n".join(map(json.dumps, rows)),
    ):
        assert given(tmp_path, "l.json", text).sources == expected
    assert "item 2: no 'url'" in refusal(tmp_path, "l.json", json.dumps([rows[0], {"id": "x"}]))
    assert "item 1: it is not an object" in refusal(tmp_path, "l.json", '["https://h/1"]')
    says = refusal(tmp_path, "l.json", json.dumps({"videos": rows}, indent=1))
    assert "it is one object with videos: an array of objects is read" in says


@pytest.mark.parametrize("name", ["l.xlsx", "L.XLS", "l.ods", "l.yaml", "l.xml", "l.csv.gz"])
def test_a_table_that_is_not_read_says_what_is(tmp_path: Path, name: str) -> None:
    says = refusal(tmp_path, name, b"PK\x03\x04")
    assert name in says and ".csv" in says and ".jsonl" in says and "Save it as" in says


def test_the_text_of_a_video_is_no_source(tmp_path: Path) -> None:
    assert "name the video" in refusal(tmp_path, "a.en.srt", "1\n")


# -- Parquet


def test_parquet_columns_of_every_text_kind(tmp_path: Path) -> None:
    urls = ["https://h/1", "https://h/2"]
    kinds = [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.binary(),
    ]
    for kind in kinds:
        table = pa.table(
            {
                "url": pa.array(urls).cast(kind) if kind != pa.binary() else pa.array(urls, kind),
                "caption": pa.array([["a", None], None], pa.large_list(pa.large_string())),
                "id": pa.array([1.0, None]),
                "start": pa.array([datetime.timedelta(seconds=1), None]),
                "end": pa.array([2, None], pa.int32()),
            }
        )
        pq.write_table(table, tmp_path / "l.parquet")
        one, two = read_given(["l.parquet"], tmp_path).sources
        assert (one.url, one.id, one.spans) == (urls[0], "1", (Span(1, 2, "a"),))
        assert two == Source(url=urls[1])


def test_parquet_is_read_in_pieces_and_names_the_row(tmp_path: Path) -> None:
    urls = [f"https://h/{i}" for i in range(3000)]
    starts = [None] * 2999 + ["later"]
    pq.write_table(pa.table({"url": urls, "start": starts, "end": starts}), tmp_path / "l.parquet")
    with pytest.raises(ConfigError, match="row 3000: start 'later'"):
        read_given(["l.parquet"], tmp_path)


# -- what is told


def test_a_summary_counts_what_a_list_gives(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").touch()
    text = "url,start,end,caption\nv.mp4,0,1,a\nv.mp4,1,2,\nlost.mp4,,,\n"
    [line] = given(tmp_path, "l.csv", text).summary()
    counts = "3 rows; 1 caption; 2 spans; 1 missing file"
    assert line == f"l.csv: {counts}; columns read: url, start, end, caption"


def test_a_row_that_names_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.mp4").mkdir()
    assert "line 2: " in refusal(tmp_path, "l.txt", "https://h/1\nd.mp4\n")
