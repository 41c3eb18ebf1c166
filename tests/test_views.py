"""One view of a file: what the analysis sees is what is cut, whatever the container does to it."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest
from conftest import MakeVideo, Shot, damaged, ffmpeg, read_frames

from curation.decode.jpegs import bgr_from_jpeg
from curation.media.files import decoded
from curation.pipelines import Cut, Pipeline
from curation.records import VideoResult
from curation.sources import Source, Span
from curation.videos import curate_video

SHOTS = (Shot("test", 1.2), Shot("bars", 1.0), Shot("gradient", 1.0))
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", 8, "-b:v", "500k")
DAMAGED = [
    ("fast.mp4", ("-movflags", "+faststart")),
    ("damaged.mkv", ()),
    ("damaged.ts", ()),
    ("damaged.mpg", ("-c:v", "mpeg2video", "-enc_time_base", "1/25", "-bf", 2, "-q:v", 3)),
    ("hevc.mp4", ("-c:v", "libx265", "-x265-params", "log-level=none")),
]
SECOND = Span(1.2, 2.2)  # its frames 30 to 55


@pytest.fixture(scope="session")
def make_video(make_video: MakeVideo) -> MakeVideo:
    return functools.partial(make_video, size="160x90", shots=SHOTS)


def curated(path: Path, *spans: Span) -> VideoResult:
    source = Source(url=str(path), path=str(path), id="video", spans=spans)
    pipeline = Pipeline(cut=Cut(crf=12))
    return curate_video(source, pipeline, path.parent, lambda stage, at_s: None)


def shown(path: Path, *arguments: object) -> np.ndarray:
    """Every picture as ffmpeg shows it, RGB [N, 90, 160, 3]."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, *arguments]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run([str(c) for c in command], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, 90, 160, 3)


def expect_second(path: Path, result: VideoResult, *arguments: object) -> None:
    """The clip of SECOND shows those frames as ffmpeg shows them, and so does its preview."""
    expect_frames(path, result, shown(path, *arguments)[30:55])


def expect_frames(path: Path, result: VideoResult, wanted: np.ndarray) -> None:
    assert result.video["decision"] == "kept", result.video["message"]
    clip = path.with_name(f"clip_{path.stem}.mp4")
    clip.write_bytes(result.clips[0].media)
    found = np.stack([frame.picture for frame in read_frames(clip, "rgb24")])
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean(axis=(1, 2, 3)).max() < 3
    preview: Any = result.ledger[1]["preview"][0]
    assert np.abs(bgr_from_jpeg(preview)[..., ::-1].astype(int) - wanted[0]).mean() < 16


def with_tags_first(path: Path) -> None:
    """Put the tags of an mp4, its cover art among them, before its tracks."""
    data = path.read_bytes()
    at = data.rindex(b"moov") - 4  # behind the pictures, so that no offset changes
    boxes, place = [], at + 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4])
        boxes.append(data[place : place + size])
        place += size
    boxes.sort(key=lambda box: box[4:8] != b"udta")
    path.write_bytes(data[: at + 8] + b"".join(boxes))


def test_cover_art_before_the_video(make_video: MakeVideo) -> None:
    plain = make_video("plain.mp4", options=VP9)
    picture, path = plain.with_name("cover.png"), plain.with_name("cover_first.mp4")
    ffmpeg("-i", plain, "-frames:v", 1, "-vf", "scale=64:64,negate", picture)
    both = ("-i", picture, "-i", plain, "-map", 0, "-map", "1:v")
    ffmpeg(*both, "-c", "copy", "-disposition:v:0", "attached_pic", path)
    with_tags_first(path)
    assert [s.codec_context.name for s in av.open(str(path)).streams.video] == ["png", "vp9"]
    expect_second(path, curated(path, SECOND), "-map", "0:1")


@pytest.mark.parametrize("flip", ["-display_hflip", "-display_vflip"])
@pytest.mark.parametrize("degrees", [0, 180])
def test_mirrored_videos_are_shown_as_players_do(
    make_video: MakeVideo, flip: str, degrees: int
) -> None:
    plain = make_video("plain.mp4")
    path = plain.with_name(f"turned{flip}{degrees}.mp4")
    ffmpeg("-display_rotation", degrees, flip, "-i", plain, "-c", "copy", path)
    expect_second(path, curated(path, SECOND))


def test_of_two_videos_the_default_one_counts(make_video: MakeVideo) -> None:
    plain = make_video("plain.mp4")
    path = plain.with_name("two_tracks.mov")
    tracks = ("-filter_complex", "[0:v]scale=80:46,negate[s]", "-map", "[s]", "-map", "0:v")
    ffmpeg("-i", plain, *tracks, "-disposition:v:0", 0, "-disposition:v:1", "default", path)
    expect_second(path, curated(path, SECOND), "-map", "0:1")


def test_a_repeated_stamp_is_one_frame_everywhere(make_video: MakeVideo) -> None:
    plain = make_video("plain.webm", options=VP9)
    path = plain.with_name("repeated.webm")
    repeat = "setts=pts='PTS-40*eq(mod(N,10),9)':dts='DTS-40*eq(mod(N,10),9)'"
    ffmpeg("-i", plain, "-c", "copy", "-bsf:v", repeat, path)
    left = [i for i in range(80) if i % 10 != 9]
    wanted = shown(plain)[[i for i in left if 30 <= i < 55]]
    expect_frames(path, curated(path, SECOND), wanted)


def test_an_empty_packet_keeps_the_picture_before_it(make_video: MakeVideo) -> None:
    """Theora repeats a picture so; to FFmpeg's decoders no bytes are an error or the end."""
    with av.open(str(make_video("plain.mp4"))) as container:
        stream = container.streams.video[0]

        def demux(_: object) -> Iterator[av.Packet]:
            for index, packet in enumerate(container.demux(stream)):
                if index == 20:
                    empty = av.Packet(0)
                    empty.pts, empty.stream = packet.pts, stream
                    yield empty
                yield packet

        reading: Any = SimpleNamespace(demux=demux)
        assert len(list(decoded(reading, stream))) == 80


def test_a_bare_stream_has_the_rate_of_its_headers(make_video: MakeVideo) -> None:
    plain = make_video("plain.mp4")
    path = plain.with_name("bare.h264")
    ffmpeg("-i", plain, "-c", "copy", "-bsf:v", "h264_mp4toannexb", path)
    result = curated(path, SECOND)
    expect_frames(path, result, shown(plain)[30:55])
    assert result.video["duration"] == pytest.approx(3.2)


def joined(name: str, *parts: Path) -> Path:
    path = parts[0].with_name(name)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_what_lies_before_a_change_of_size_is_kept(make_video: MakeVideo) -> None:
    wide = make_video("wide.ts")
    later = ("-output_ts_offset", 3.2)
    tall = make_video("tall.ts", shots=[Shot("test", 0.5)], size="90x160", options=later)
    path = joined("size.ts", wide, tall)
    result = curated(path)
    assert result.video["decision"] == "kept"
    assert result.video["partial"].startswith("size_changes: from 160x90 to 90x160 after 3.20 s")
    assert [row["message"] for row in result.ledger] == [None] * len(result.ledger)
    assert sum(clip.row["num_frames"] for clip in result.clips) == 80
    expect_frames(path, curated(path, SECOND), shown(wide)[30:55])


def test_what_lies_before_a_restart_of_the_clock_is_kept(make_video: MakeVideo) -> None:
    """Recordings joined byte by byte: the second's times have passed."""
    one, other = make_video("one.ts"), make_video("other.ts", filters="negate")
    path = joined("clock.ts", one, other)
    result = curated(path, SECOND)
    assert result.video["partial"].startswith("clock_restarts: time jumps back by 3.1")
    expect_frames(path, result, shown(one)[30:55])


@pytest.mark.parametrize(("name", "options"), DAMAGED, ids=[name for name, _ in DAMAGED])
def test_what_lies_before_damage_is_kept(
    make_video: MakeVideo, name: str, options: tuple[object, ...]
) -> None:
    """Up to the last key frame: one every 10 frames here, so that at most 9 are given up."""
    whole = make_video(name, options=(*options, "-g", 10), shots=[Shot("test", 3.2)])
    path = damaged(whole, 0.5)
    result = curated(path)
    found = re.match(r"corrupt: after (\d\.\d\d) s: ", result.video["partial"])
    assert found is not None, result.video
    [clip] = result.clips
    decoded = round(25 * float(found[1]))
    assert 30 < decoded < 70 and decoded - 12 <= clip.row["num_frames"] < decoded
    expect_frames(path, result, shown(whole)[: clip.row["num_frames"]])


def test_damage_at_once_leaves_nothing(make_video: MakeVideo) -> None:
    path = damaged(make_video("one_group.ts"), 0.5)  # its only key frame is the first
    for spans in ((), (SECOND,)):
        result = curated(path, *spans)
        assert (result.video["decision"], result.video["error_class"]) == ("failed", "corrupt")
        assert result.video["message"].startswith("after ") and result.clips == []


def test_a_video_that_is_whole_is_not_partial(make_video: MakeVideo) -> None:
    assert curated(make_video("plain.mp4"), SECOND).video["partial"] is None


def test_an_encode_that_fails_costs_its_clip_alone(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curation.cuts import clips
    from curation.cuts.encodes import Clip
    from curation.media.files import MediaError

    path = make_video("plain.webm", options=VP9)
    encode = clips.encode

    def failing(*arguments: Any) -> Clip:
        if arguments[4] == 30:  # the first frame
            raise MediaError("encode", "no")
        return encode(*arguments)

    monkeypatch.setattr(clips, "encode", failing)
    result = curated(path, Span(0, 1.2), SECOND)
    assert [row["error_class"] for row in result.ledger] == [None, None, "encode"]
    assert len(result.clips) == 1 and result.video["decision"] == "kept"
    alone = curated(path, SECOND).video
    assert (alone["decision"], alone["error_class"]) == ("failed", "encode")
