"""Sections of a remote file: what given cuts need, at the times of the whole, or the whole."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import MakeVideo, Shot, ffmpeg, read_frames
from ranged import Ranged
from rich.console import Console
from yt_dlp.networking.exceptions import RequestError

from curation import why
from curation.downloads import ranges
from curation.downloads.connections import Guard, GuardedYoutubeDL
from curation.downloads.fetches import download
from curation.media.files import MediaError
from curation.media.probes import probe
from curation.pipelines import Captions, Cut, Download, Pipeline
from curation.records import VideoResult
from curation.sources import Source, Span, content_id
from curation.videos import curate_video

AUTO = Download(allow_private=True, retry_s=0.001, sections="auto")
SHOTS = (Shot("test", 20.0), Shot("fractal", 20.0))
GROUPS = ("-g", 25, "-bf", 3)
SPANS = (Span(8.0, 9.0), Span(25.02, 26.3))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts as small against these files as they are against real ones."""
    monkeypatch.setattr(ranges, "MIN_PART_BYTES", 8 << 10)
    monkeypatch.setattr(ranges, "MAX_PART_BYTES", 32 << 10)


@pytest.fixture
def ranged() -> Iterator[Ranged]:
    made = Ranged()
    yield made
    made.close()


@pytest.fixture
def film(make_video: MakeVideo) -> Path:
    return make_video("film.mp4", SHOTS, "160x90", GROUPS)


def fetch(url: str, folder: Path, settings: Download = AUTO, **known: Any) -> Source:
    folder.mkdir(exist_ok=True)
    source = Source(url=url, **{"spans": SPANS, **known})
    return download(source, folder, settings, lambda: None)


def curated(url: str, folder: Path, cut: Cut, sections: str) -> VideoResult:
    folder.mkdir()
    settings = AUTO.model_copy(update={"sections": sections})
    source = Source(url=url, id="film", spans=(*SPANS, Span(50.0, 51.0)))
    pipeline = Pipeline(download=settings, cut=cut)
    return curate_video(source, pipeline, folder, lambda stage, at_s: None)


def pictures(data: bytes) -> list[tuple[float, np.ndarray]]:
    with av.open(io.BytesIO(data), "r") as container:
        return [(frame.time or 0.0, frame.to_ndarray()) for frame in container.decode(video=0)]


# -- what is fetched


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", GROUPS),  # its index is at the end
        ("first.mp4", (*GROUPS, "-movflags", "+faststart")),
        ("dash.mp4", (*GROUPS, "-movflags", "+dash+global_sidx+frag_keyframe")),
        ("film.mkv", GROUPS),
        ("late.mkv", (*GROUPS, "-output_ts_offset", 12)),  # times count from its first frame
        ("vp9.webm", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", 8, "-g", 25)),
        ("hevc.mp4", ("-c:v", "libx265", "-x265-params", "log-level=error:open-gop=0:keyint=25")),
        ("titled.mp4", (*GROUPS, "-metadata", "title=A film")),
    ],
)  # fmt: skip
def test_every_frame_of_a_section_is_that_of_the_whole_file(
    make_video: MakeVideo,
    ranged: Ranged,
    tmp_path: Path,
    name: str,
    options: tuple[object, ...],
) -> None:
    film = make_video(name, SHOTS, "160x90", options)
    got = fetch(ranged.serve(film), tmp_path / "scratch")
    assert got.path and got.note and "sections fetched" in got.note, got.note
    assert ranged.num_bytes < len(ranged.data) / 2
    assert max(stop - first for first, stop in ranged.ranges) > ranges.MIN_PART_BYTES
    whole = {round(frame.time_s, 6): frame.picture for frame in read_frames(film)}
    part = {round(frame.time_s, 6): frame.picture for frame in read_frames(got.path)}
    assert [t for t, picture in part.items() if not np.array_equal(whole[t], picture)] == []
    for span in SPANS:  # and what scorers look at around them
        assert [t for t in whole if span.start_s - 1 < t < span.end_s + 1 and t not in part] == []
    assert {min(part), max(part)} == {min(whole), max(whole)}
    assert len(part) < len(whole) / 2
    facts = [probe(path) for path in (film, got.path)]
    assert facts[0].title == facts[1].title
    assert len({(f.width, f.height, f.turn, f.codec, f.pix_fmt) for f in facts}) == 1
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == [Path(got.path).name]


@pytest.mark.parametrize("joins", [True, False])
def test_clips_and_their_times_are_those_of_the_whole_file(
    film: Path, ranged: Ranged, tmp_path: Path, joins: bool
) -> None:
    url = ranged.serve(film)
    whole = curated(url, tmp_path / "whole", Cut(joins=joins), "off")
    part = curated(url, tmp_path / "part", Cut(joins=joins), "auto")
    assert "2 sections fetched" in part.video["message"]
    assert whole.video["message"] is None
    keys = ("clip_id", "start_s", "end_s", "num_frames", "fps", "width", "height", "codec")
    assert [[c.row[k] for k in keys] for c in part.clips] == [
        [c.row[k] for k in keys] for c in whole.clips
    ]
    assert len(whole.clips) == 2
    for a, b in zip(whole.clips, part.clips, strict=True):
        for (time_a, one), (time_b, two) in zip(pictures(a.media), pictures(b.media), strict=True):
            assert time_a == time_b and np.array_equal(one, two)
    assert part.video["duration"] == whole.video["duration"] == 40.0
    assert part.video["partial"] is None
    outside = [r for r in part.ledger if r["error_class"] == "outside"]
    assert [(r["start_s"], r["message"]) for r in outside] == [
        (r["start_s"], r["message"]) for r in whole.ledger if r["error_class"] == "outside"
    ]
    assert len(outside) == 1


def test_a_rotated_film_stays_rotated(film: Path, ranged: Ranged, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    with av.open(str(film)) as whole, av.open(str(turned), "w") as output:
        target = output.add_stream_from_template(whole.streams.video[0], opaque=True)
        target.set_display_rotation(90)
        for packet in whole.demux(whole.streams.video[0]):
            if packet.size:
                packet.stream = target
                output.mux(packet)
    got = fetch(ranged.serve(turned), tmp_path / "scratch")
    assert got.path and "sections fetched" in str(got.note)
    assert probe(got.path).turn == probe(turned).turn
    assert probe(turned).turn.degrees in (90, 270)


def test_sound_is_left_out(film: Path, ranged: Ranged, tmp_path: Path) -> None:
    loud = tmp_path / "loud.mp4"
    tone = ("-f", "lavfi", "-t", 41, "-i", "sine")
    ffmpeg("-i", film, *tone, "-c:v", "copy", "-c:a", "aac", "-b:a", "32k", loud)
    got = fetch(ranged.serve(loud), tmp_path / "scratch")
    assert got.path and "2 sections fetched" in str(got.note)
    assert (probe(loud).has_audio, probe(got.path).has_audio) == (True, False)
    whole, part = ({f.time_s for f in read_frames(path)} for path in (loud, got.path))
    assert part < whole and max(part) == max(whole)


def test_the_id_is_of_the_url_whatever_came(film: Path, ranged: Ranged, tmp_path: Path) -> None:
    """Else it would depend on what a server could do that day."""
    url = ranged.serve(film)
    part = fetch(url, tmp_path / "a")
    whole = fetch(ranged.serve(film, "no_ranges"), tmp_path / "b")
    assert part.id == whole.id and part.id != content_id(str(film))
    assert fetch(url, tmp_path / "c", id="given").id == "given"
    assert fetch(url, tmp_path / "d", spans=()).id is None  # it will be its content's


def test_off_is_the_default(film: Path, ranged: Ranged, tmp_path: Path) -> None:
    got = fetch(ranged.serve(film), tmp_path, Download(allow_private=True))
    assert got.path and Path(got.path).read_bytes() == ranged.data
    assert (got.note, ranged.ranges, got.id) == (None, [], None)


# -- what is fetched whole, and why


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ("no_ranges", "the server gives no ranges"),
        ("status", "the server gives no ranges"),
        ("shifted", "other ranges than asked for"),
        ("no_state", "does not tell one state of the file from another"),
    ],
)
def test_a_server_without_honest_ranges_is_asked_for_the_whole(
    film: Path, ranged: Ranged, tmp_path: Path, lie: str, says: str
) -> None:
    got = fetch(ranged.serve(film, lie), tmp_path)
    assert got.path and Path(got.path).read_bytes() == ranged.data
    assert got.note and got.note.startswith("fetched whole") and says in got.note
    assert len(ranged.ranges) == 1


@pytest.mark.parametrize("lies", [(), ("if_range",)])
def test_a_file_that_changes_meanwhile_is_fetched_whole(
    film: Path, make_video: MakeVideo, ranged: Ranged, tmp_path: Path, lies: tuple[str, ...]
) -> None:
    """With and without the server's own word (If-Range): never pictures of both."""
    url = ranged.serve(film, *lies)
    ranged.changed = make_video("other.mp4", SHOTS[::-1], "160x90", GROUPS).read_bytes()
    got = fetch(url, tmp_path)
    assert got.path and Path(got.path).read_bytes() == ranged.data
    assert "the file changed on the server" in str(got.note)
    assert ranged.if_ranges[0] is None and all(ranged.if_ranges[1:])


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("open.mp4", ("-x264-params", "keyint=25:open-gop=1:bframes=3:scenecut=0"),
            "its key frames need pictures before them"),
        ("film.ts", GROUPS, "it is not read in sections"),
        ("jpegs.mp4", ("-c:v", "mjpeg", "-strict", "unofficial"), "its codec does not say"),
        ("one.mp4", ("-g", 10_000, "-sc_threshold", 0), "its sections would need too much"),
    ],
)  # fmt: skip
def test_files_without_clear_sections_are_fetched_whole(
    make_video: MakeVideo,
    ranged: Ranged,
    tmp_path: Path,
    name: str,
    options: tuple[object, ...],
    says: str,
) -> None:
    film = make_video(name, SHOTS, "160x90", options)
    url = ranged.serve(film)
    most = int(1.2 * len(ranged.data))  # what is thrown away counts no more
    got = fetch(url, tmp_path, AUTO.model_copy(update={"max_bytes": most}))
    assert got.path and Path(got.path).read_bytes() == ranged.data
    assert says in str(got.note)
    assert ranged.num_bytes <= len(ranged.data) / 2


def test_spans_of_most_of_a_film_are_no_sections(
    film: Path, ranged: Ranged, tmp_path: Path
) -> None:
    got = fetch(ranged.serve(film), tmp_path, spans=(Span(0, 10), Span(12, 22)))
    assert "its spans need too much of it" in str(got.note)
    assert got.path and Path(got.path).read_bytes() == ranged.data


def test_a_film_that_speaks_in_a_track_is_fetched_whole(
    film: Path, ranged: Ranged, tmp_path: Path
) -> None:
    text, spoken = tmp_path / "a.srt", tmp_path / "spoken.mp4"
    text.write_text("1\n00:00:01,000 --> 00:00:30,000\nHello\n")
    ffmpeg("-i", film, "-i", text, "-c", "copy", "-c:s", "mov_text", spoken)
    got = fetch(ranged.serve(spoken), tmp_path / "scratch")
    assert got.path and Path(got.path).read_bytes() == spoken.read_bytes()
    assert "it has a text track" in str(got.note)


def test_a_film_whose_edit_list_hides_pictures_is_fetched_whole(
    film: Path, ranged: Ranged, tmp_path: Path
) -> None:
    trimmed = tmp_path / "trimmed.mp4"
    ffmpeg("-ss", 0.5, "-i", film, "-c", "copy", trimmed)
    got = fetch(ranged.serve(trimmed), tmp_path / "scratch")
    assert got.path and Path(got.path).read_bytes() == trimmed.read_bytes()
    assert "that are not shown" in str(got.note)


def test_what_comes_in_segments_is_fetched_whole(
    film: Path, serve: tuple[str, Path], tmp_path: Path
) -> None:
    url, served = serve
    shutil.copy(film, served / "part.mp4")
    (served / "film.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:30\n#EXTINF:30,\npart.mp4\n#EXT-X-ENDLIST\n"
    )
    got = fetch(f"{url}/film.m3u8", tmp_path / "scratch")
    assert got.path and Path(got.path).read_bytes() == film.read_bytes()
    assert "it is no one file (m3u8" in str(got.note)


# -- what goes wrong on the way


def test_answers_that_break_off_are_gone_on_with_a_few_times(
    film: Path, ranged: Ranged, tmp_path: Path
) -> None:
    with pytest.raises(MediaError) as caught:
        fetch(ranged.serve(film, "short"), tmp_path, AUTO.model_copy(update={"attempts": 1}))
    assert caught.value.error_class == "network"
    ends = {first + (stop - first) // 2 for first, stop in ranged.ranges}
    assert ends & {first for first, _ in ranged.ranges}  # gone on with where one broke off
    assert 2 <= len(ranged.ranges) <= 1 + ranges.MAX_SHORT


def test_a_file_that_goes_away_has_its_class(film: Path, ranged: Ranged, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        fetch(ranged.serve(film, "gone"), tmp_path)
    assert caught.value.error_class == "gone"
    assert len(ranged.ranges) == 3


def test_addresses_are_judged(film: Path, ranged: Ranged, tmp_path: Path) -> None:
    """Of the connections that ask for ranges: those before them have been let through."""
    guard = Guard(allow_private=False, max_bytes=10**9, min_bytes_per_s=0, window_s=30)
    url = ranged.serve(film)
    with GuardedYoutubeDL({"quiet": True}, guard) as downloader, pytest.raises(RequestError):
        ranges.RemoteFile(downloader, url, {}, lambda: None)
    assert guard.refused and guard.refused.error.error_class == "private_address"
    assert ranged.ranges == []


def test_a_rate_is_kept(
    film: Path, ranged: Ranged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(ranges.time, "sleep", slept.append)
    url = ranged.serve(film)
    fetch(url, tmp_path, AUTO.model_copy(update={"max_bytes_per_s": 10_000}))
    most = max(stop - first for first, stop in ranged.ranges)
    assert most <= 10_000
    assert max(slept) > 0.5 * most / 10_000


def test_how_it_came_is_told_of_the_video_alone(film: Path, ranged: Ranged, tmp_path: Path) -> None:
    pipeline = Pipeline(download=AUTO, captions=Captions(model="source_text"))
    source = Source(url=ranged.serve(film), spans=SPANS, fingerprint="f")
    result = curate_video(source, pipeline, tmp_path, lambda stage, at_s: None)
    assert {row["source_fingerprint"] for row in result.ledger} == {"f"}
    assert [r["message"] for r in result.ledger if r["level"] == "clip"] == [None, None]
    console = Console(record=True, width=200)
    why.show([result.video | {"stage_s": []}], [], {}, console)
    assert f"\n{result.video['message']}\n" in console.export_text()
