"""Clips hold exactly their frames: decoded and compared with the source, copied or encoded."""

from __future__ import annotations

import functools
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import Frame, MakeVideo, Shot, analysed, ffmpeg, num_packets, read_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.cuts.clips import cut
from curation.cuts.encodes import Clip
from curation.cuts.parameter_sets import split
from curation.decode.signatures import Signatures
from curation.media.files import MediaError
from curation.media.frames import Timeline
from curation.media.probes import probe
from curation.pipelines import Cut

CLOSED = ("-bf", 3, "-g", 30, "-keyint_min", 5, "-x264-params", "b-adapt=0:b-pyramid=normal")
OPEN_H264 = ("-bf", 3, "-g", 20, "-x264-params", "open-gop=1:scenecut=0:b-adapt=0:keyint=20")
OPEN_HEVC = ("-c:v", "libx265", "-g", 20, "-x265-params", "log-level=none:open-gop=1")
CLOSED_HEVC = ("-c:v", "libx265", "-g", 20, "-x265-params", "log-level=none:open-gop=0")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", 8, "-b:v", "500k")
MPEG2 = ("-c:v", "mpeg2video", "-enc_time_base", "1/25", "-bf", 2, "-q:v", 3)
XVID = ("-c:v", "mpeg4", "-enc_time_base", "1/25", "-bf", 2)
FINE = Cut(crf=10, preset="ultrafast")


@pytest.fixture(scope="session")
def make_video(make_video: MakeVideo) -> MakeVideo:
    """Small pictures: what is cut does not depend on their size."""
    return functools.partial(make_video, size="160x90")


@functools.cache
def source_frames(path: Path) -> list[Frame]:
    return read_frames(path)


def cut_one(path: Path, first: int, last: int, config: Cut = FINE) -> Clip:
    made = cut(str(path), probe(path), *analysed(path), [(first, last)], config, lambda: None)[0]
    if isinstance(made, MediaError):
        raise made
    return made


def read_clip(clip: Clip, folder: Path) -> list[Frame]:
    """The frames of a clip, once it is seen to be clean: its packets, streams and start."""
    path = folder / "clip.mp4"
    path.write_bytes(clip.data)
    found = read_frames(path)
    assert num_packets(path) == len(found)  # nothing hidden by an edit list
    with av.open(str(path)) as container:
        assert [s.type for s in container.streams] == ["video"]
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (clip.width, clip.height)
        assert stream.sample_aspect_ratio in (None, 0, 1)
        assert stream.codec_context.name == clip.codec
    return found


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


def expect_same_times(found: list[Frame], wanted: list[Frame]) -> None:
    start_s = wanted[0].time_s
    times = [frame.time_s - start_s for frame in wanted]
    assert [frame.time_s for frame in found] == pytest.approx(times, abs=1e-3)


def expect_clip(path: Path, first: int, last: int, *, copied: bool) -> None:
    """A clip is frames [first, last) of the source: bit by bit when copied, > 40 dB when not."""
    clip = cut_one(path, first, last)
    assert (clip.made == "copied") == copied
    found, wanted = read_clip(clip, path.parent), source_frames(path)[first:last]
    expect_same_times(found, wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        if copied:
            assert (ours.picture == theirs.picture).all()
        else:
            assert psnr(ours.picture, theirs.picture) > 40


# -- copied where that is exact


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(("first", "last"), [(0, 30), (30, 55), (55, 90), (0, 90), (30, 90)])
def test_spans_between_keyframes_are_copied(
    make_video: MakeVideo, suffix: str, first: int, last: int
) -> None:
    path = make_video(f"closed.{suffix}", options=CLOSED)
    expect_clip(path, first, last, copied=True)


def test_hevc_of_closed_groups_is_copied(make_video: MakeVideo) -> None:
    path = make_video("closed_hevc.mp4", options=CLOSED_HEVC)
    expect_clip(path, *keyframes(path)[1:3], copied=True)


def test_a_late_or_hidden_beginning_is_copied_without_its_past(make_video: MakeVideo) -> None:
    late = make_video("late.mkv", options=(*CLOSED, "-output_ts_offset", 5))
    expect_clip(late, 30, 55, copied=True)
    hidden = late.with_name("hidden.mp4")
    ffmpeg("-ss", 1.0, "-i", make_video("closed.mp4", options=CLOSED), "-c", "copy", hidden)
    expect_clip(hidden, 5, 30, copied=True)
    expect_clip(hidden, 0, 30, copied=False)  # its first frame needs hidden ones


def test_mixed_rates_keep_their_times_when_copied(make_video: MakeVideo) -> None:
    path = make_video("rates.mp4", shots=MIXED_RATES, size="320x180")
    expect_clip(path, 36, 81, copied=True)


MIXED_RATES = (Shot("test", 1.2, 30), Shot("bars", 1.5, 10), Shot("gradient", 1.0, 30))


def test_sound_is_left_out(make_video: MakeVideo) -> None:
    source = make_video("closed.mp4", options=CLOSED)
    path = source.with_name("sound_and_picture.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=d=6", "-i", source, "-c:v", "copy", path)
    expect_clip(path, 30, 90, copied=True)
    expect_clip(path, 31, 90, copied=False)


def test_every_group_can_be_copied_where_groups_are_one_frame(make_video: MakeVideo) -> None:
    path = make_video("intra.mp4", options=("-g", 1))
    expect_clip(path, 17, 18, copied=True)


def test_lengths_of_two_bytes_are_copied(make_video: MakeVideo) -> None:
    """Most mp4s write a NAL unit's length in four bytes; the header may say otherwise."""
    source = make_video("closed.mp4", options=CLOSED)
    path = source.with_name("short_lengths.mp4")
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = read.streams.video[0]
        target = written.add_stream_from_template(stream)
        header = bytearray(stream.codec_context.extradata or b"")
        header[4] = 0xFC | 2 - 1  # ISO/IEC 14496-15, 5.3.3.1: lengthSizeMinusOne
        target.codec_context.extradata = bytes(header)
        for packet in read.demux(stream):
            nals = [len(nal).to_bytes(2) + nal for nal in split(bytes(packet), 4)]
            short = av.Packet(b"".join(nals))
            for name in ("pts", "dts", "duration", "time_base", "is_keyframe"):
                setattr(short, name, getattr(packet, name))
            short.stream = target
            if nals:
                written.mux(short)
    expect_clip(path, 30, 55, copied=True)


def test_spans_that_overlap_are_all_cut(make_video: MakeVideo) -> None:
    path = make_video("closed.mp4", options=CLOSED)
    spans = [(0, 90), (30, 55), (0, 30), (30, 90), (30, 55)]
    made = cut(str(path), probe(path), *analysed(path), spans, FINE, lambda: None)
    clips = [clip for clip in made if isinstance(clip, Clip)]
    assert {clip.made for clip in clips} == {"copied"}
    assert [len(read_clip(clip, path.parent)) for clip in clips] == [90, 25, 30, 60, 25]


# -- encoded where a copy would show other frames


def keyframes(path: Path) -> list[int]:
    """Display indices of the frames whose packets the container calls keyframes."""
    stamps = analysed(path)[0].pts
    with av.open(str(path)) as container:
        packets = list(container.demux(container.streams.video[0]))
    return [stamps.index(p.pts) for p in packets if p.is_keyframe and p.pts is not None]


@pytest.mark.parametrize("options", [OPEN_H264, OPEN_HEVC], ids=["h264", "hevc"])
def test_a_start_in_an_open_group_is_not_copied(
    make_video: MakeVideo, options: tuple[object, ...], request: pytest.FixtureRequest
) -> None:
    path = make_video(f"open_{request.node.callspec.id}.mp4", options=options)
    begins = keyframes(path)[1]
    assert begins > 0
    expect_clip(path, begins, begins + 10, copied=False)


def test_a_start_in_a_rolling_refresh_is_not_copied(make_video: MakeVideo) -> None:
    """Containers call its beginning a keyframe, though the picture is whole only later."""
    options = ("-bf", 0, "-g", 20, "-x264-params", "intra-refresh=1:scenecut=0:keyint=20")
    path = make_video("refresh.mp4", [Shot("fractal", 3.6)], options=options)
    begins = keyframes(path)[1]
    assert begins > 0
    expect_clip(path, begins, begins + 10, copied=False)


def test_a_start_off_a_keyframe_is_not_copied(make_video: MakeVideo) -> None:
    path = make_video("closed.mp4", options=CLOSED)
    expect_clip(path, 31, 55, copied=False)
    expect_clip(path, 29, 55, copied=False)


def test_an_end_inside_a_pyramid_is_not_copied(make_video: MakeVideo) -> None:
    """Frames before such an end refer to one behind it, whose packet comes first."""
    path = make_video("closed.mp4", options=CLOSED)
    with av.open(str(path)) as container:
        pts = [p.pts for p in container.demux(video=0) if p.pts is not None]
    stamps = analysed(path)[0].pts
    clean = {i for i in range(1, 31) if set(pts[:i]) == set(stamps[:i])}
    inside = next(i for i in range(2, 30) if i not in clean)
    expect_clip(path, 0, inside, copied=False)
    expect_clip(path, 0, max(clean), copied=True)


@pytest.mark.parametrize("options", [VP9, MPEG2, XVID], ids=["v.webm", "m.mpg", "x.avi"])
@pytest.mark.parametrize(("first", "last"), [(0, 12), (40, 70), (89, 90)])
def test_other_codecs_are_encoded(
    make_video: MakeVideo,
    options: tuple[object, ...],
    first: int,
    last: int,
    request: pytest.FixtureRequest,
) -> None:
    name = request.node.callspec.id.split("-")[-1]
    expect_clip(make_video(f"other_{name}", options=options), first, last, copied=False)


def test_a_seek_between_distant_keyframes_still_finds_the_frames(make_video: MakeVideo) -> None:
    """MPEG-TS has no index: a seek lands where nothing decodes until the next keyframe."""
    shots = (Shot("gradient", 6.0),)
    path = make_video("distant.ts", shots=shots, options=("-g", 999))
    expect_clip(path, 100, 120, copied=False)


def test_mixed_rates_keep_their_times_when_encoded(make_video: MakeVideo) -> None:
    path = make_video("rates.mp4", shots=MIXED_RATES, size="320x180")
    expect_clip(path, 30, 60, copied=False)


def shown_as(path: Path, filters: str) -> list[Frame]:
    """A source's frames as ffmpeg itself shows them, upright, after `filters`."""
    shown = path.with_name(f"shown_{path.stem}.mkv")
    ffmpeg("-i", path, "-vf", filters, "-fps_mode", "passthrough", "-c:v", "ffv1", shown)
    return read_frames(shown)


def expect_shown(path: Path, filters: str, size: tuple[int, int]) -> None:
    clip = cut_one(path, 0, 30)
    assert (clip.width, clip.height, clip.made) == (*size, "encoded")
    found = read_clip(clip, path.parent)
    for ours, theirs in zip(found, shown_as(path, filters)[:30], strict=True):
        assert psnr(ours.picture, theirs.picture) > 40


@pytest.mark.parametrize(("degrees", "filters"), [(90, "null"), (180, "null"), (270, "null")])
def test_rotated_sources_are_turned_upright(
    make_video: MakeVideo, degrees: int, filters: str
) -> None:
    source = make_video("closed.mp4", options=CLOSED)
    path = source.with_name(f"turn{degrees}.mp4")
    ffmpeg("-display_rotation", degrees, "-i", source, "-c", "copy", path)
    expect_shown(path, filters, (160, 90) if degrees == 180 else (90, 160))


def test_oblong_pixels_are_made_square(make_video: MakeVideo) -> None:
    path = make_video("oblong.mp4", size="120x90", filters="setsar=4/3")
    expect_shown(path, "scale=160:90:flags=bicubic", (160, 90))


def test_oblong_and_rotated_at_once(make_video: MakeVideo) -> None:
    source = make_video("oblong.mp4", size="120x90", filters="setsar=4/3")
    path = source.with_name("oblong_turned.mp4")
    ffmpeg("-display_rotation", 90, "-i", source, "-c", "copy", path)
    expect_shown(path, "scale=90:160:flags=bicubic", (90, 160))


def test_odd_sizes_lose_a_line_and_nothing_else(make_video: MakeVideo) -> None:
    options = ("-c:v", "ffv1", "-pix_fmt", "yuv444p")
    path = make_video("odd.mkv", [Shot("test", 1.2)], size="161x91", options=options)
    expect_shown(path, "crop=160:90:0:0,format=yuv420p", (160, 90))


def test_ten_bits_become_eight(make_video: MakeVideo) -> None:
    path = make_video("ten.mp4", filters="format=yuv420p10", options=(*CLOSED_HEVC, "-g", 50))
    clip = cut_one(path, 3, 33)
    found = read_clip(clip, path.parent)
    for ours, theirs in zip(found, read_frames(path, "yuv420p")[3:33], strict=True):
        assert psnr(ours.picture, theirs.picture) > 38


def test_a_video_of_one_frame_is_one_clip(make_video: MakeVideo) -> None:
    path = make_video("one.mp4", shots=[Shot("test", 0.04)])
    expect_clip(path, 0, 1, copied=True)


@settings(max_examples=12, deadline=None)
@given(span=st.tuples(st.integers(0, 89), st.integers(1, 90)).filter(lambda s: s[0] < s[1]))
def test_any_span_is_exactly_its_frames(make_video: MakeVideo, span: tuple[int, int]) -> None:
    path = make_video("tiny.mp4", options=CLOSED)
    clip = cut_one(path, *span)
    found, wanted = read_clip(clip, path.parent), source_frames(path)[slice(*span)]
    expect_same_times(found, wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert psnr(ours.picture, theirs.picture) > (98 if clip.made == "copied" else 40)


# -- the encoder


def test_the_default_quality_keeps_forty_decibels(make_video: MakeVideo) -> None:
    path = make_video("closed.mp4", options=CLOSED)
    found = read_clip(cut_one(path, 1, 90, Cut()), path.parent)
    pairs = zip(found, source_frames(path)[1:], strict=True)
    assert np.mean([psnr(ours.picture, theirs.picture) for ours, theirs in pairs]) > 40


def test_the_same_cut_is_the_same_bytes(make_video: MakeVideo) -> None:
    path = make_video("closed.mp4", options=CLOSED)
    for span in ((30, 55), (31, 55)):
        assert cut_one(path, *span).data == cut_one(path, *span).data


def test_an_encoder_that_fails_is_a_media_error(make_video: MakeVideo) -> None:
    path = make_video("closed.mp4", options=CLOSED)
    with pytest.raises(MediaError, match=r"encode: ffmpeg failed: .*nonsense"):
        cut_one(path, 1, 5, Cut(preset="nonsense"))


def test_other_frames_than_asked_for_are_a_media_error(make_video: MakeVideo) -> None:
    path = make_video("closed.mp4", options=CLOSED)
    timeline = Timeline(analysed(path)[0].time_base)
    for pts in analysed(path)[0].pts:
        timeline.append(pts + 1, 1)  # a timeline of another file
    seen = analysed(path)[1]
    (made,) = cut(str(path), probe(path), timeline, seen, [(85, 90)], FINE, lambda: None)
    assert str(made).startswith("encode: the encoder gave")


@pytest.mark.parametrize("number", [0, 3, 16, 19])
def test_another_picture_than_analysed_is_a_media_error(make_video: MakeVideo, number: int) -> None:
    """Among the first four, every sixteenth and the last frame of an encoded clip."""
    path = make_video("closed.mp4", options=CLOSED)
    timeline, seen = analysed(path)
    other = Signatures(seen.turn)
    other.fields = bytearray(seen.fields)
    at = 64 * (5 + number)
    other.fields[at : at + 64] = bytes(255 - level for level in seen.fields[at : at + 64])
    whole = FINE.model_copy(update={"joins": False})
    (right,) = cut(str(path), probe(path), timeline, seen, [(5, 25)], whole, lambda: None)
    (wrong,) = cut(str(path), probe(path), timeline, other, [(5, 25)], whole, lambda: None)
    assert isinstance(right, Clip)
    assert str(wrong).startswith(f"encode: frame {number} of the clip is another picture")
