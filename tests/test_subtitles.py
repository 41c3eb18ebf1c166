"""Timed text beside a video and in it: which is read, in which encoding, and said once."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import replace
from pathlib import Path

import av
import pytest
from conftest import MakeVideo, Shot, ffmpeg
from hypothesis import given
from hypothesis import strategies as st

from curation.media.probes import probe
from curation.media.subtitle_tracks import track_cues
from curation.pipelines import Pipeline
from curation.sources import Source, Span
from curation.sources.charsets import encoding_of
from curation.sources.folders import videos
from curation.sources.notes import Notes
from curation.sources.source import differ_in_captions_alone, fingerprint, join
from curation.sources.subtitles import Cue, beside, parse_cues, read_cues, with_subtitles
from curation.videos import curate_video

FIRST = "1\n00:00:00,100 --> 00:00:01,500\n"


def texts(cues: list[Cue]) -> list[str]:
    return [cue.text for cue in cues]


def clock(ms: int) -> str:
    return f"00:{ms // 60000:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"


def srt(*lines: str, step_s: float = 1.0, gap_s: float = 0.0) -> str:
    """SubRip text of cues that follow one another."""
    out = []
    for number, line in enumerate(lines):
        start_ms = round(number * (step_s + gap_s) * 1000)
        ends = [clock(ms) for ms in (start_ms, start_ms + round(step_s * 1000))]
        out.append(f"{number + 1}\n{' --> '.join(ends)}\n{line}\n\n")
    return "".join(out)


# -- which file


def test_the_own_name_comes_first_then_english_then_the_alphabet() -> None:
    ranked = [
        *("a.srt", "a.VTT", "a.mp4.ass", "a.en.srt", "a.en.vtt", "a.en-US.vtt", "a.en-orig.vtt"),
        *(
            "a.eng.srt",
            "a.de.srt",
            "a.pt-BR.srt",
            "a.zh-Hans.vtt",
            "a.forced.srt",
            "a.en.forced.srt",
        ),
    ]
    strangers = ["a.part2.srt", "a.en.txt", "a.1.srt", "ab.srt", "a.en.de.srt", "a..srt", "asrt"]
    texts_of_folder = sorted([*ranked, *strangers])
    found = beside(
        "a.mp4", [n for n in texts_of_folder if n.lower().endswith((".srt", ".vtt", ".ass"))]
    )
    assert found[:5] == ["a.srt", "a.VTT", "a.mp4.ass", "a.en.srt", "a.en.vtt"]
    assert set(found[5:8]) == {"a.en-US.vtt", "a.en-orig.vtt", "a.eng.srt"}
    assert found[8:] == [
        "a.de.srt",
        "a.pt-BR.srt",
        "a.zh-Hans.vtt",
        "a.forced.srt",
        "a.en.forced.srt",
    ]


@given(
    st.permutations(["x.srt", "x.de.srt", "x.en.vtt", "x.fr.ass", "x.en-GB.srt", "x.ja.srt"]),
    st.integers(1, 6),
)
def test_which_one_wins_depends_on_nothing_but_the_names(names: list[str], number: int) -> None:
    some = names[:number]
    assert beside("x.mkv", sorted(some))[0] == min(
        some, key=["x.srt", "x.en.vtt", "x.en-GB.srt", "x.de.srt", "x.fr.ass", "x.ja.srt"].index
    )


def found_beside(video: Path) -> str | None:
    found = with_subtitles(Source(url=video.name, path=str(video))).subtitles
    return Path(found.path).name if found else None


def cues_beside(video: Path) -> list[Cue]:
    found = found_beside(video)
    return read_cues(str(video.with_name(found))) if found else []


def test_names_with_brackets_dots_and_capitals_are_found(tmp_path: Path) -> None:
    names = {
        "Title [dQw4w9WgXcQ].mp4": "Title [dQw4w9WgXcQ].en.vtt",
        "film.v2.mp4": "film.v2.srt",
        "UP.MP4": "UP.SRT",
        "*.mp4": "*.srt",
        "none.mp4": None,
    }
    for video, text in names.items():
        (tmp_path / video).touch()
        if text:
            (tmp_path / text).write_text(FIRST + "x")
    (tmp_path / "none.srt").mkdir()
    assert {video: found_beside(tmp_path / video) for video in names} == names


def test_a_text_that_came_later_is_found(tmp_path: Path) -> None:
    assert found_beside(tmp_path / "a.mp4") is None
    (tmp_path / "a.srt").write_text(FIRST + "x")
    assert found_beside(tmp_path / "a.mp4") == "a.srt"


def test_a_folder_is_listed_once_for_all_its_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v7.srt").write_text(FIRST + "x")
    listings = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listings.append(path) or real(path))  # type: ignore[func-returns-value]
    found = [found_beside(tmp_path / f"v{number}.mp4") for number in range(50)]
    assert found == [None] * 7 + ["v7.srt"] + [None] * 42
    assert len(listings) == 1


def test_a_folder_tells_which_texts_are_not_read(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.en.srt", "a.de.srt", "b.mp4", "b.srt", "lost.srt"):
        (tmp_path / name).write_bytes(b"x")
    notes = Notes("f")
    assert list(videos(str(tmp_path), notes)) == ["a.mp4", "b.mp4"]
    assert notes.counts == {"with subtitles beside": 2}
    assert notes.ignored() == (
        "f: subtitles not read, since their video has others: 1 (first: a.de.srt); "
        "subtitles beside no video: 1 (first: lost.srt)"
    )


# -- what was said of a source


def test_a_text_that_changes_is_another_thing_said_of_its_video(tmp_path: Path) -> None:
    video = Source(url="a.mp4", path=str(tmp_path / "a.mp4"), id="v")
    plain = with_subtitles(video)
    (tmp_path / "a.srt").write_text(FIRST + "one")
    one = with_subtitles(video)
    (tmp_path / "a.srt").write_text(FIRST + "two")
    two = with_subtitles(video)
    assert len({fingerprint(each) for each in (plain, one, two)}) == 3
    assert differ_in_captions_alone(fingerprint(one), fingerprint(two))
    assert fingerprint(plain) == fingerprint(video)


def test_where_lists_caption_everything_no_text_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text(FIRST + "one")
    video = Source(url="a.mp4", path=str(tmp_path / "a.mp4"), id="v")
    assert with_subtitles(replace(video, caption="said")).subtitles is None
    assert with_subtitles(replace(video, spans=(Span(0, 1, "said"),))).subtitles is None
    half = replace(video, spans=(Span(0, 1, "said"), Span(1, 2)))
    assert with_subtitles(half).subtitles is not None


def test_a_copy_brings_its_text_along(tmp_path: Path) -> None:
    (tmp_path / "b.srt").write_text(FIRST + "one")
    first, second = (
        with_subtitles(Source(url=n, path=str(tmp_path / n), id="v")) for n in ("a.mp4", "b.mp4")
    )
    assert first.subtitles is None and join(first, second).subtitles == second.subtitles


# -- encodings

SAID = {
    "utf-8": "été 鳥 🐦",
    "utf-8-sig": "été 鳥 🐦",
    "utf-16": "été 鳥 🐦",
    "utf-16-le": "été 鳥 🐦",
    "utf-16-be": "鳥が歌っています",
    "utf-32": "été 鳥 🐦",
    "cp1252": "café déjà vu – “naïve”",
    "cp1251": "Где находится библиотека?",
    "cp932": "鳥が歌っています",
    "euc_jp": "鳥が歌っています",
    "gb18030": "图书馆在哪里？",
    "big5": "圖書館在哪裡？",
    "cp949": "도서관이 어디예요?",
    "cp1253": "Πού είναι η βιβλιοθήκη;",
    "cp1256": "أين المكتبة من فضلك؟",
    "cp1250": "Zażółć gęślą jaźń",
}


@pytest.mark.parametrize("encoding", SAID)
@pytest.mark.parametrize("times", [1, 500])
def test_texts_of_every_encoding_are_read(tmp_path: Path, encoding: str, times: int) -> None:
    lines = [f"{SAID[encoding]} line {number}" for number in range(times)]
    text = srt(*lines, gap_s=1).replace(" line", "\nline").replace("\n", "\r\n")
    (tmp_path / "a.srt").write_bytes(text.encode(encoding))
    assert texts(read_cues(str(tmp_path / "a.srt"))) == lines


def test_one_damaged_line_does_not_change_the_encoding(tmp_path: Path) -> None:
    data = (
        srt("été", "naïve", "plain", gap_s=1).encode()
        + b"9\n00:00:09,000 --> 00:00:10,000\ncut \xe2\x80\n"
    )
    (tmp_path / "a.srt").write_bytes(data)
    assert texts(read_cues(str(tmp_path / "a.srt"))) == ["été", "naïve", "plain", "cut \ufffd"]


@given(st.binary(max_size=400))
def test_any_bytes_have_an_encoding_or_are_refused(data: bytes) -> None:
    try:
        encoding = encoding_of(io.BytesIO(data))
    except ValueError as error:
        assert "zero bytes" in str(error) and b"\0" in data
    else:
        data.decode(encoding, "replace")


def test_what_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes(bytes(range(256)) * 4)
    assert read_cues(str(tmp_path / "a.srt")) == [] == read_cues(str(tmp_path / "none.srt"))


# -- cues


def test_subrip_is_read() -> None:
    text = "1\r\n00:00:01,500 --> 00:00:02,000\r\n<i>Hello</i>\r\nyou\r\n\r\n2\r\n"
    text += "01:00:00,000 --> 01:00:01,250\r\n{\\an8}<font color='red'>Bye &amp; thanks</font>\r\n"
    assert parse_cues(text) == [Cue(1.5, 2.0, "Hello you"), Cue(3600.0, 3601.25, "Bye & thanks")]


def test_webvtt_is_read() -> None:
    text = "WEBVTT\nKind: captions\n\nNOTE a remark\n\nname\n00:01.000 --> 00:02.500 align:start\n"
    text += "<v Ann>Good <00:01.500><c>morning</c>\n\n00:03.000 --> 00:04.000\n\n"
    assert parse_cues(text) == [Cue(1.0, 2.5, "Good morning")]


def test_old_line_ends_and_marks_of_order_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes("\ufeff1\r00:00:01,000 --> 00:00:02,000\rHello\r\r".encode())
    assert cues_beside(tmp_path / "a.mp4") == [Cue(1.0, 2.0, "Hello")]


def test_text_beside_the_video_is_found(tmp_path: Path) -> None:
    assert cues_beside(tmp_path / "a.mp4") == []
    (tmp_path / "a.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nvtt\n")
    assert [cue.text for cue in cues_beside(tmp_path / "a.mp4")] == ["vtt"]
    (tmp_path / "a.srt").write_text("00:00:01,000 --> 00:00:02,000\nsrt \xe4\n", "latin-1")
    assert [cue.text[:3] for cue in cues_beside(tmp_path / "a.mp4")] == ["srt"]


def test_what_stands_between_cues_is_no_text() -> None:
    text = (
        "WEBVTT\n\nintro\n00:01.000 --> 00:02.000\nIn the year\n1984\n\nNOTE a remark\n\nsecond\n"
    )
    text += (
        "00:02.000 --> 00:03.000\n\nNOTE of nothing\n\nlast\n00:03.000 --> 00:04.000\nC:\\new {x}\n"
    )
    assert parse_cues(text) == [Cue(1.0, 2.0, "In the year 1984"), Cue(3.0, 4.0, "C:\\new {x}")]


def test_times_inside_a_line_of_youtube_are_no_cue() -> None:
    text = "WEBVTT\n\n00:00:01.000 --> 00:00:04.000 align:start position:0%\n"
    text += "so<00:00:01.500><c> good</c><00:00:02.000><c> morning</c>\n"
    assert parse_cues(text) == [Cue(1.0, 4.0, "so good morning")]


ASS = """[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:05.00,0:00:06.50,Default,,0,0,0,,Later
Comment: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,not shown
Dialogue: 0,0:00:01.50,0:00:02.00,Default,,0,0,0,,{\\i1}Hello{\\i0},\\Nyou & me
Dialogue: 0,0:00:01.50,0:00:02.00,Default,,0,0,0,,{\\p1}m 0 0 l 9 9{\\p0}
"""


def test_substation_is_read_by_time(tmp_path: Path) -> None:
    (tmp_path / "a.ass").write_text(ASS)
    cues = cues_beside(tmp_path / "a.mp4")
    assert cues == [Cue(1.5, 2.0, "Hello, you & me"), Cue(5.0, 6.5, "Later")]
    assert parse_cues(ASS.replace("0:00:05.00", "soon"), "ass") == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_cues_without_a_blank_line_between_them(end: str) -> None:
    text = "1\n00:00:00,100 --> 00:00:00,900\nfirst cue\n2\n00:00:01,000 --> 00:00:01,900\nsecond\n"
    assert texts(parse_cues(text.replace("\n", end))) == ["first cue", "second"]
    text = "00:00:00,100 --> 00:00:00,900\nIn the year\n1984\n00:00:01,000 --> 00:00:01,900\n3\n"
    assert texts(parse_cues(text)) == ["In the year 1984", "3"]  # cues have no numbers here


@pytest.mark.parametrize(
    "times",
    [
        *("00:00:00,100 -> 00:00:01,500", "00:00:00:100 --> 00:00:01:500", "0:0:0.1-->0:0:1.5"),
        *("00:00.100 --> 00:01.500 line:0", "00:00:00,100 --> 00:00:01,500  X1:1 X2:2"),
    ],
)
def test_times_as_people_write_them(times: str) -> None:
    assert parse_cues(f"1\n{times}\na <3 b\n") == [Cue(0.1, 1.5, "a <3 b")]


# -- said once

ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.000 --> 00:00:00.590 align:start position:0%
 
hi<00:00:00.200><c> guys</c><00:00:00.400><c> welcome</c>

00:00:00.590 --> 00:00:00.600 align:start position:0%
hi guys welcome
 

00:00:00.600 --> 00:00:01.200 align:start position:0%
hi guys welcome
to<00:00:00.700><c> my</c><00:00:00.900><c> channel</c>

00:00:01.200 --> 00:00:01.210 align:start position:0%
to my channel
 

00:00:01.210 --> 00:00:01.900 align:start position:0%
to my channel
hi<00:00:01.300><c> guys</c><00:00:01.400><c> welcome</c>
"""


def test_rolling_captions_are_said_once_and_what_is_said_again_stays() -> None:
    cues = parse_cues(ROLLING)
    assert texts(cues) == ["hi guys welcome", "to my channel", "hi guys welcome"]
    assert [(cue.start_s, cue.end_s) for cue in cues] == [(0, 0.6), (0.6, 1.2), (1.21, 1.9)]


def test_rolling_captions_that_a_converter_made_one_line_of() -> None:
    lines = ["hi guys welcome", "hi guys welcome to my channel", "to my channel"]
    lines += ["to my channel today birds"]
    assert texts(parse_cues(srt(*lines))) == ["hi guys welcome", "to my channel", "today birds"]


def test_a_word_in_common_is_no_repeat_where_captions_roll() -> None:
    lines = ["I said", "I said no", "I said no\nno way", "way too much"]
    assert texts(parse_cues(srt(*lines))) == ["I said", "no", "no way", "way too much"]


def test_captions_of_television_roll_by_a_line() -> None:
    lines = ["a b c\nd e f", "d e f\ng h i", "g h i\nd e f"]
    assert texts(parse_cues(srt(*lines))) == ["a b c d e f", "g h i", "d e f"]


def test_words_that_a_speaker_repeats_stay() -> None:
    lines = ["I said no", "no way", "Go!", "Go on, go!", "la la la", "la la la la", "and so on"]
    lines += [f"sentence number {number}" for number in range(20)]
    assert texts(parse_cues(srt(*lines))) == lines


def test_a_line_that_stays_is_one_cue_and_one_that_comes_back_is_two() -> None:
    assert parse_cues(srt("on", "on")) == [Cue(0, 2, "on")]
    assert texts(parse_cues(srt("on", "on", gap_s=0.5))) == ["on", "on"]


# -- tracks in the file


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mov_text"), ("a.mkv", "srt"), ("b.mkv", "ass"), ("c.mkv", "webvtt")],
)
def test_a_text_track_is_read(make_video: MakeVideo, tmp_path: Path, name: str, codec: str) -> None:
    (tmp_path / "t.srt").write_text(srt("<i>a bird</i>, singing", "two\nlines", step_s=0.5))
    video = make_video("plain.mp4")
    ffmpeg("-i", video, "-i", tmp_path / "t.srt", "-c", "copy", "-c:s", codec, tmp_path / name)
    cues = [Cue(0.0, 0.5, "a bird, singing"), Cue(0.5, 1.0, "two lines")]
    assert track_cues(tmp_path / name, 0.0) == cues
    [first, _] = track_cues(tmp_path / name, 10.0)
    assert (first.start_s, first.end_s) == (-10.0, -9.5)
    assert track_cues(video, 0.0) == []


def test_the_default_track_is_read_and_pictures_are_not(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    for word in ("forced", "deutsch", "english", "main"):
        (tmp_path / f"{word}.srt").write_text(srt(word))
    inputs = [
        x
        for word in ("forced", "deutsch", "english", "main")
        for x in ("-i", tmp_path / f"{word}.srt")
    ]
    base = [
        "-i",
        make_video("plain.mp4"),
        *inputs,
        *(x for n in range(5) for x in ("-map", n)),
        "-c",
        "copy",
    ]
    languages = [
        x
        for n, tag in enumerate(("ger", "ger", "eng", "ger"))
        for x in (f"-metadata:s:s:{n}", f"language={tag}")
    ]
    flags = ["-disposition:s:0", "default+forced", "-disposition:s:1", 0, "-disposition:s:2", 0]
    ffmpeg(*base, *languages, *flags, "-disposition:s:3", "default", tmp_path / "a.mkv")
    assert texts(track_cues(tmp_path / "a.mkv", 0.0)) == ["main"]
    ffmpeg(*base, *languages, *flags, "-disposition:s:3", 0, tmp_path / "b.mkv")
    assert texts(track_cues(tmp_path / "b.mkv", 0.0)) == ["english"]


def picture_subtitles() -> bytes:
    """A Blu-ray subtitle (PGS) of two pixels: composition, window, palette, object, end."""
    parts = [
        (0x16, struct.pack(">HHBHBBBBHBBHH", 320, 180, 16, 0, 128, 0, 0, 1, 0, 0, 0, 0, 0)),
        (0x17, struct.pack(">BBHHHH", 1, 0, 0, 0, 2, 1)),
        (0x14, bytes([0, 0, 1, 200, 128, 128, 255])),
        (0x15, struct.pack(">HBB", 0, 0, 0xC0) + bytes([0, 0, 8, 0, 2, 0, 1, 1, 1, 0, 0])),
        (0x80, b""),
    ]
    heads = (b"PG" + struct.pack(">IIBH", 9000, 0, kind, len(data)) for kind, data in parts)
    return b"".join(head + data for head, (_, data) in zip(heads, parts, strict=True))


def test_a_track_of_pictures_is_no_text(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "a.sup").write_bytes(picture_subtitles())
    inputs = ("-i", make_video("plain.mp4"), "-f", "sup", "-i", tmp_path / "a.sup")
    ffmpeg(*inputs, "-map", 0, "-map", 1, "-c", "copy", tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as file:
        pictures = [r for packet in file.demux(subtitles=0) for r in packet.decode()]
    assert pictures and probe(tmp_path / "a.mkv").has_subtitles
    assert track_cues(tmp_path / "a.mkv", 0.0) == []


def test_a_clip_is_captioned_by_the_file_beside_it_then_by_the_track_in_it(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    (tmp_path / "t.srt").write_text(srt("in it"))
    video = make_video("one.mp4", [Shot("test", 1.0)])
    ffmpeg(
        "-i", video, "-i", tmp_path / "t.srt", "-c", "copy", "-c:s", "mov_text", tmp_path / "a.mp4"
    )
    source = Source(url="a.mp4", path=str(tmp_path / "a.mp4"), id="v")

    def caption() -> str | None:
        result = curate_video(
            with_subtitles(source), Pipeline(), tmp_path, lambda stage, at_s: None
        )
        return result.ledger[1]["caption"]

    assert caption() == "in it"
    (tmp_path / "a.en.srt").write_text(srt("beside it"))
    assert caption() == "beside it"
