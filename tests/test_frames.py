"""What a file is and which frames it shows, on media with known answers; and bad media by class."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from conftest import MakeVideo, Shot, damaged, ffmpeg, read_frames

from curation.media import probes
from curation.media.files import MediaError
from curation.media.frames import Timeline, decode
from curation.media.pictures import luma, small_bgr
from curation.media.probes import Turn, probe
from curation.pipelines import Pipeline, Rule
from curation.sources import Source, Span
from curation.videos import curate_video

FAST = ("-movflags", "+faststart")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", 8, "-b:v", "500k")
MPEG2 = ("-c:v", "mpeg2video", "-enc_time_base", "1/25", "-bf", 2, "-q:v", 3)
XVID = ("-c:v", "mpeg4", "-enc_time_base", "1/25", "-bf", 2)


def times(path: Path) -> list[float]:
    """The time of every frame that our decode yields, in seconds."""
    timeline = [timeline for timeline, _ in decode(path, num_threads=1)][-1]
    return [timeline.time_s(i) for i in range(timeline.num_frames + 1)]


def error_class(path: Path) -> str:
    """How a file fails when it is probed and decoded to its end."""
    with pytest.raises(MediaError) as caught:
        probe(path)
        times(path)
    return caught.value.error_class


def share_of(path: Path, name: str, start: float, stop: float) -> Path:
    """A copy that holds the bytes of a file from one share of its size to another."""
    data = path.read_bytes()
    part = path.with_name(name)
    part.write_bytes(data[int(len(data) * start) : int(len(data) * stop)])
    return part


# -- frames and times


@pytest.mark.parametrize("options", [VP9, MPEG2, XVID], ids=["vp9.webm", "mpeg2.mpg", "xvid.avi"])
def test_every_frame_of_other_codecs_comes_once(
    make_video: MakeVideo, options: tuple[object, ...], request: pytest.FixtureRequest
) -> None:
    path = make_video(request.node.callspec.id, options=options)
    assert times(path) == pytest.approx([i / 25 for i in range(91)], abs=2e-3)


def test_times_of_mixed_frame_rates_are_the_stamps(make_video: MakeVideo) -> None:
    path = make_video("mixed.mp4", shots=MIXED_RATES)
    expected = [i / 30 for i in range(36)] + [1.2 + i / 10 for i in range(15)]
    expected += [2.7 + i / 30 for i in range(31)]
    assert times(path) == pytest.approx(expected, abs=1e-4)


MIXED_RATES = (Shot("test", 1.2, 30), Shot("bars", 1.5, 10), Shot("gradient", 1.0, 30))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_first_stamp_after_zero_is_time_zero(make_video: MakeVideo, suffix: str) -> None:
    path = make_video(f"late.{suffix}", options=("-output_ts_offset", 5))
    assert times(path)[0] == 0.0
    assert times(path)[-1] == pytest.approx(3.6, abs=1e-3)


def test_frames_hidden_by_an_edit_list_are_not_shown(make_video: MakeVideo) -> None:
    source = make_video("plain.mp4")
    path = source.with_name("preroll.mp4")
    ffmpeg("-ss", 1.8, "-i", source, "-c", "copy", path)
    assert len(times(path)) - 1 == len(read_frames(path)) == 45


def test_avi_with_b_frames_loses_none(make_video: MakeVideo) -> None:
    """An H.264 AVI has no presentation stamps: those that the demuxer guesses repeat."""
    source = make_video("plain.mp4")
    path = source.with_name("remuxed.avi")
    ffmpeg("-i", source, "-c", "copy", "-bsf:v", "h264_mp4toannexb", path)
    assert len(times(path)) - 1 == 90


def test_sound_that_outlasts_the_picture_is_no_truncation(make_video: MakeVideo) -> None:
    source = make_video("plain.mp4")
    for suffix in ("mp4", "mkv", "ts"):
        path = source.with_name(f"long_sound.{suffix}")
        ffmpeg("-f", "lavfi", "-i", "sine=d=6", "-i", source, "-c:v", "copy", path)
        assert len(times(path)) - 1 == 90
        assert probe(path).has_audio


def test_one_frame_has_the_duration_the_file_gives(make_video: MakeVideo) -> None:
    path = make_video("one.mp4", shots=[Shot("test", 0.04)])
    assert times(path) == pytest.approx([0.0, 0.04])


def test_the_end_without_durations_repeats_the_last_step() -> None:
    timeline = Timeline(Fraction(1, 10))
    for pts in (5, 7, 10):
        timeline.append(pts, 0)
    assert timeline.end_pts(3) == 13
    assert timeline.span_s(1, 3) == pytest.approx(0.6)


def test_a_stream_that_begins_inside_a_group_is_not_damaged(make_video: MakeVideo) -> None:
    """Recordings begin anywhere: what cannot be shown before the first keyframe never was."""
    for name, options in (("cut.ts", ("-g", 25)), ("cut.mpg", (*MPEG2, "-g", 25))):
        tail = share_of(make_video(f"whole_{name}", options=options), name, 0.3, 1.0)
        assert 20 < len(times(tail)) < 75


# -- headers


def rotated(source: Path, degrees: int) -> Path:
    path = source.with_name(f"rotated{degrees}_{source.name}")
    ffmpeg("-display_rotation", degrees, "-i", source, "-c", "copy", path)
    return path


def test_probe_tells_size_rate_length_codec_sound_and_title(make_video: MakeVideo) -> None:
    found = probe(make_video("titled.mp4", options=("-metadata", "title=A fine film")))
    assert (found.width, found.height, found.codec) == (320, 180, "h264")
    assert (found.turn, found.sample_aspect, found.upright_square) == (Turn(), 1, True)
    assert found.fps == pytest.approx(25)
    assert found.duration_s == pytest.approx(3.6)
    assert (found.title, found.has_audio, found.transfer) == ("A fine film", False, None)


@pytest.mark.parametrize(
    ("degrees", "size"), [(90, (180, 320)), (180, (320, 180)), (270, (180, 320))]
)
def test_probe_shows_rotated_video_upright(
    make_video: MakeVideo, degrees: int, size: tuple[int, int]
) -> None:
    found = probe(rotated(make_video("plain.mp4"), degrees))
    assert (found.width, found.height) == size
    assert found.turn == Turn(degrees)
    assert not found.upright_square


def test_probe_shows_oblong_pixels_square(make_video: MakeVideo) -> None:
    path = make_video("oblong.mp4", size="240x180", filters="setsar=4/3")
    found = probe(path)
    assert (found.width, found.height, found.sample_aspect) == (320, 180, Fraction(4, 3))
    turned = probe(rotated(path, 90))
    assert (turned.width, turned.height) == (180, 320)


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_probe_names_hdr_transfers(make_video: MakeVideo, transfer: str) -> None:
    options = ("-color_trc", transfer, "-color_primaries", "bt2020", "-colorspace", "bt2020nc")
    filters = f"format=yuv420p10,setparams=color_trc={transfer}:color_primaries=bt2020"
    path = make_video(
        f"{transfer}.mp4", shots=[Shot("test", 0.2)], options=options, filters=filters
    )
    assert (probe(path).transfer, probe(path).pix_fmt) == (transfer, "yuv420p10le")


def test_matroska_durations_are_read_whatever_their_tag_says() -> None:
    stream = SimpleNamespace(duration=None, metadata={"DURATION-eng": "00:01:02.500000000"})
    assert probes.declared_duration_s(None, stream) == 62.5  # type: ignore[arg-type]


# -- headers that say less or more than there is


def test_a_stale_tag_is_no_truncation(make_video: MakeVideo) -> None:
    source = make_video("plain.mkv")
    path = source.with_name("stale.mkv")
    path.write_bytes(source.read_bytes().replace(b"00:00:03.6", b"00:15:03.6"))
    assert probe(path).duration_s == pytest.approx(903.6)
    assert len(times(path)) - 1 == 90


def short_flv(make_video: MakeVideo) -> Path:
    """An FLV whose header says 0.9 s of 3.6, as recorders leave it that are cut off."""
    source = make_video("plain.flv", options=("-c:v", "flv1"))
    data = source.read_bytes()
    at = data.index(b"duration") + len(b"duration") + 1  # a name, then 0: a number of 8 bytes
    path = source.with_name("short.flv")
    path.write_bytes(data[:at] + struct.pack(">d", 0.9) + data[at + 8 :])
    assert probe(path).duration_s == pytest.approx(0.9)
    return path


def test_a_header_that_says_too_little_rejects_nothing(make_video: MakeVideo) -> None:
    path = short_flv(make_video)
    pipeline = Pipeline(rules={"duration": Rule(min=1.1)})
    spans = (Span(1.2, 3.2),)  # behind the end that the header tells
    source = Source(url=str(path), path=str(path), spans=spans)
    result = curate_video(source, pipeline, path.parent, lambda stage, at_s: None)
    assert [clip.row["num_frames"] for clip in result.clips] == [50]


def test_a_video_that_is_too_short_is_still_not_decoded(make_video: MakeVideo) -> None:
    path = short_flv(make_video)
    source = Source(url=str(path), path=str(path))
    pipeline = Pipeline(rules={"duration": Rule(min=5)})
    result = curate_video(source, pipeline, path.parent, lambda stage, at_s: None)
    assert result.video["rule"] == "duration" and "decode" not in result.video["stage_s"]
    assert result.video["value"] == pytest.approx(3.6, abs=0.05)


# -- pictures


def test_small_pictures_equal_the_slow_way(make_video: MakeVideo) -> None:
    with av.open(str(make_video("plain.mp4"))) as container:
        frame = next(container.decode(video=0))
        small = small_bgr(frame, (160, 90))
        slow = cv2.resize(frame.to_ndarray(format="bgr24"), (160, 90), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - slow).mean() < 6
        assert (luma(frame) == frame.to_ndarray()[:180]).all()


# -- bad media; more of it in tests/test_poison.py


def test_a_stream_that_appears_in_the_middle(make_video: MakeVideo) -> None:
    """PyAV raises IndexError there; packets of the second half have an id that no table names."""
    one = make_video("renamed.ts")
    data = bytearray(one.read_bytes())
    for at in range(len(data) // 376 * 188, len(data), 188):
        if (data[at + 1] & 31, data[at + 2]) == (1, 0):  # the video's id, 256
            data[at + 1 : at + 3] = (data[at + 1] & 0xE0 | 3, 0xE7)
    renamed = one.with_name("in_the_middle.ts")
    renamed.write_bytes(data)
    assert error_class(renamed) == "corrupt"


CUT_POISON = [
    ("fast.mp4", FAST, 0.5, "truncated"),
    ("fast.mp4", FAST, 0.95, "truncated"),
    ("fragments.mp4", ("-movflags", "frag_keyframe+empty_moov"), 0.5, "truncated"),
    ("whole.mkv", (), 0.5, "truncated"),
    ("whole.webm", VP9, 0.5, "truncated"),
    ("whole.avi", XVID, 0.5, "truncated"),
    ("plain.mp4", (), 0.5, "not_video"),  # its index was at the end
]
DAMAGED_POISON = [
    ("fast.mp4", FAST),
    ("whole.mkv", ()),
    ("whole.ts", ()),
    ("whole.mpg", MPEG2),
    ("hevc.mp4", ("-c:v", "libx265", "-x265-params", "log-level=none")),
]


def expect_failed(path: Path, expected: str) -> None:
    """A bad file fails by itself and, through the whole video stage, in the ledger."""
    assert error_class(path) == expected
    source = Source(url=str(path), path=str(path))
    result = curate_video(source, Pipeline(), path.parent, lambda stage, at_s: None)
    assert result.clips == [] and len(result.ledger) == 1
    assert (result.ledger[0]["decision"], result.ledger[0]["error_class"]) == ("failed", expected)
    assert result.ledger[0]["level"] == "video" and result.ledger[0]["message"]


@pytest.mark.parametrize(("name", "options", "share", "expected"), CUT_POISON)
def test_part_of_a_file_is_failed(
    make_video: MakeVideo, name: str, options: tuple[object, ...], share: float, expected: str
) -> None:
    part = share_of(make_video(name, options=options), f"part{share}_{name}", 0.0, share)
    expect_failed(part, expected)


@pytest.mark.parametrize(("name", "options"), DAMAGED_POISON, ids=lambda v: str(v)[:9])
def test_damaged_bytes_are_noticed(
    make_video: MakeVideo, name: str, options: tuple[object, ...]
) -> None:
    """What becomes of the video: tests/test_views.py."""
    assert error_class(damaged(make_video(name, options=options), 0.3)) == "corrupt"
