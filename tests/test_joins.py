"""Clips joined from copied packets and encoded ends, held against the decoded source."""

from __future__ import annotations

import functools
import io
import itertools
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from conftest import Frame, MakeVideo, Shot, analysed, ffmpeg, read_frames

from curation.cuts.clips import cut
from curation.cuts.encodes import Clip
from curation.cuts.packets import read_source
from curation.cuts.parameter_sets import escape, packed, read_sequence_set, ue_text, unescape
from curation.media.probes import probe
from curation.pipelines import Cut

SHOTS = (Shot("test", 1.6), Shot("fractal", 1.4), Shot("bars", 1.0), Shot("gradient", 1.2))
BFRAMES = "keyint=30:min-keyint=2:scenecut=40:bframes=3"
# Options of x264 and the container of sources that can be joined.
SOURCES: dict[str, tuple[str, Sequence[object]]] = {
    "closed": ("mp4", ("-x264-params", BFRAMES)),
    "open": ("mp4", ("-x264-params", f"{BFRAMES}:open-gop=1")),
    "open-refs": ("mp4", ("-x264-params", f"{BFRAMES}:open-gop=1:ref=5:b-pyramid=normal")),
    "open-main": ("mp4", ("-profile:v", "main", "-x264-params", f"{BFRAMES}:open-gop=1:ref=3")),
    "open-slices": ("mp4", ("-x264-params", f"{BFRAMES}:open-gop=1:slices=3:b-adapt=2")),
    "open-no-b": ("mp4", ("-x264-params", "keyint=30:min-keyint=2:bframes=0:open-gop=1")),
    "pyramid": ("mp4", ("-x264-params", "keyint=40:bframes=8:b-adapt=0:b-pyramid=normal:ref=4")),
    "cavlc": ("mp4", ("-x264-params", f"{BFRAMES}:cabac=0")),
    "scaling-lists": ("mp4", ("-x264-params", f"{BFRAMES}:open-gop=1:cqm=jvt")),
    "baseline": ("mp4", ("-profile:v", "baseline", "-x264-params", "keyint=30")),
    "matroska": ("mkv", ("-x264-params", f"{BFRAMES}:open-gop=1")),
    "transport": ("ts", ("-x264-params", f"{BFRAMES}:open-gop=1")),
    "hrd": ("mp4", ("-x264-params", f"{BFRAMES}:nal-hrd=vbr:vbv-maxrate=4000:vbv-bufsize=4000")),
    "full-range": (
        "mp4",
        ("-pix_fmt", "yuvj420p", "-colorspace", "bt709", "-x264-params", f"{BFRAMES}:open-gop=1"),
    ),
}
# Sources of which something is unsure: all is encoded that is not plainly copied.
OTHERS: dict[str, Sequence[object]] = {
    "ten-bit": ("-pix_fmt", "yuv420p10le", "-x264-params", BFRAMES),
    "chroma-444": ("-pix_fmt", "yuv444p", "-x264-params", BFRAMES),
    "interlaced": ("-flags", "+ildct+ilme", "-x264-params", f"{BFRAMES}:tff=1"),
    "hevc": ("-c:v", "libx265", "-x265-params", "keyint=30:log-level=none"),
}
FINE = Cut(crf=12)  # in small pictures 18 is less than 40 dB
SPANS = [(0, 37), (7, 55), (20, 78), (30, 73), (40, 97), (75, 125), (99, 130)]


@pytest.fixture(scope="session")
def make_video(make_video: MakeVideo) -> MakeVideo:
    """Small pictures: what is joined does not depend on their size."""
    return functools.partial(make_video, size="160x92")


@functools.cache
def source_frames(path: Path) -> list[Frame]:
    return read_frames(path)


def cut_all(path: Path, spans: list[tuple[int, int]], config: Cut = FINE) -> list[Clip]:
    made = cut(str(path), probe(path), *analysed(path), spans, config, lambda: None)
    return [clip for clip in made if isinstance(clip, Clip)]


def joined_of(
    path: Path, spans: list[tuple[int, int]], config: Cut = FINE
) -> dict[tuple[int, int], Clip]:
    """The clips of those spans that are joined."""
    clips = zip(spans, cut_all(path, spans, config), strict=True)
    return {span: clip for span, clip in clips if clip.made == "joined"}


def same_pictures(found: list[Frame], source: list[Frame]) -> list[bool]:
    """Which frames of a clip are the source's bit by bit; the others must be near (40 dB)."""
    assert len(found) == len(source)
    same = []
    for own, wanted in zip(found, source, strict=True):
        assert own.time_s == pytest.approx(wanted.time_s - source[0].time_s, abs=1e-6)
        same.append(np.array_equal(own.picture, wanted.picture))
        error = np.square(own.picture.astype(float) - wanted.picture).mean()
        assert error <= 255**2 / 10**4.0, f"frame {len(same) - 1}"
    return same


def packet_times(data: bytes) -> list[tuple[int, int, bool]]:
    """(PTS, DTS, key) of every packet, in decode order, whatever an edit list hides."""
    with av.open(io.BytesIO(data), options={"ignore_editlist": "1"}) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        assert all(p.pts is not None and p.dts is not None for p in packets)
        return [(p.pts or 0, p.dts or 0, p.is_keyframe) for p in packets]


def check_layout(data: bytes, num_frames: int) -> None:
    """All packets are there, in an order that decoders can keep, and one more stream is not."""
    packets = packet_times(data)
    assert len(packets) == num_frames
    assert packets[0][2]
    dts = [dts for _, dts, _ in packets]
    assert dts == sorted(set(dts))
    assert all(dts <= pts for pts, dts, _ in packets)
    with av.open(io.BytesIO(data)) as container:
        assert len(container.streams) == 1
        assert next(container.decode(video=0)).pts == 0


def check_decoders(clip: Path, pictures: list[np.ndarray]) -> None:
    """Decoders agree with the one of `pictures`, whatever their threads; seeks land right."""
    last = len(pictures) - 1
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "FRAME"
        container.streams.video[0].codec_context.thread_count = 4
        found = list(container.decode(video=0))
    assert not any(f.is_corrupt for f in found)
    assert all(np.array_equal(f.to_ndarray(), p) for f, p in zip(found, pictures, strict=True))
    stamps = [f.pts for f in found]
    seeks = {("SLICE", 1): {0, last // 4, last - 1}, ("FRAME", 4): {1, last // 2, last}}
    for (kind, num_threads), indices in seeks.items():
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = kind, num_threads
            for index in indices:
                container.seek(stamps[max(0, index - 3)] or 0, stream=stream)  # mp4 seeks by DTS
                landed = next(f for f in container.decode(stream) if f.pts == stamps[index])
                assert np.array_equal(landed.to_ndarray(), pictures[index])
    capture = cv2.VideoCapture(str(clip))
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == len(pictures)


def check_silence(clips: list[Path]) -> None:
    """ffmpeg finds nothing to say about clips."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "warning", "-xerror"]
    for clip in clips:
        command += ["-err_detect", "explode", "-i", str(clip)]
    for index in range(len(clips)):
        command += ["-map", str(index), "-threads", "1", "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def check(
    clips: dict[tuple[int, int], Clip], source: list[Frame], folder: Path
) -> list[list[bool]]:
    """Everything that joined clips of spans promise; which of their frames are the source's own."""
    paths, same = [], []
    for i, ((first, last), clip) in enumerate(clips.items()):
        paths.append(folder / f"{i}.mp4")
        paths[-1].write_bytes(clip.data)
        check_layout(clip.data, last - first)
        found = read_frames(paths[-1])
        check_decoders(paths[-1], [frame.picture for frame in found])
        same.append(same_pictures(found, source[first:last]))
    check_silence(paths)
    return same


@pytest.mark.parametrize("name", SOURCES)
def test_joined_clips_are_the_source(make_video: MakeVideo, tmp_path: Path, name: str) -> None:
    suffix, options = SOURCES[name]
    path = make_video(f"join-{name}.{suffix}", SHOTS, options=options)
    frames = source_frames(path)
    clips = joined_of(path, SPANS)
    assert len(clips) >= 2
    for same in check(clips, frames, tmp_path):
        assert sum(same) > len(same) / 4
        # One stretch of the source's own pictures, with at most two ends around it.
        assert sum(a != b for a, b in itertools.pairwise(same)) <= 2
    again = joined_of(path, list(clips)[:2])
    assert again.items() <= clips.items()  # the same bytes each time
    assert len(again) == 2


@pytest.mark.parametrize("name", ["open", "open-refs", "open-main", "open-slices", "transport"])
def test_open_groups_become_clip_starts(make_video: MakeVideo, tmp_path: Path, name: str) -> None:
    suffix, options = SOURCES[name]
    path = make_video(f"join-{name}.{suffix}", SHOTS, options=options)
    frames, timeline = source_frames(path), analysed(path)[0]
    source = read_source(str(path), probe(path), joins=True)
    assert source is not None
    starts = [timeline.pts.index(p.pts) for p in source.packets if p.opens]
    spans = [(start, min(start + 29, len(frames))) for start in starts]
    clips = joined_of(path, spans)
    assert list(clips) == spans != []
    assert all(all(same[:-4]) for same in check(clips, frames, tmp_path))


def test_mixed_frame_rates_keep_their_times_and_their_quality(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    shots = (Shot("test", 2.0, 24), Shot("fractal", 2.0, 10), Shot("bars", 1.5, 50))
    path = make_video("join-vfr.mp4", shots, size="320x180", options=("-x264-params", BFRAMES))
    frames = source_frames(path)
    spans = [(5, 60), (40, 66), (50, len(frames) - 3), (60, len(frames) - 20)]
    clips = joined_of(path, spans, Cut())
    assert len(clips) >= 2
    check(clips, frames, tmp_path)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_unsure_is_not_joined(make_video: MakeVideo, name: str) -> None:
    path = make_video(f"join-{name}.mp4", SHOTS, options=OTHERS[name])
    clips = cut_all(path, [(7, 55), (20, 78)])
    assert {clip.made for clip in clips} <= {"copied", "encoded"}
    assert [len(packet_times(clip.data)) for clip in clips] == [48, 58]


@pytest.mark.parametrize("suffix", ["ts", "mp4"])
def test_changing_parameter_sets_are_not_joined(
    make_video: MakeVideo, media_folder: Path, suffix: str
) -> None:
    parts = [
        make_video(f"part-{refs}.ts", SHOTS, options=("-x264-params", f"{BFRAMES}:ref={refs}"))
        for refs in (2, 4)
    ]
    entries = media_folder / "parts.txt"
    entries.write_text("".join(f"file '{part}'\n" for part in parts))
    path = media_folder / f"join-parts.{suffix}"
    ffmpeg("-f", "concat", "-safe", 0, "-i", entries, "-c", "copy", path)
    for video, is_joined in ((parts[0], True), (path, False)):
        source = read_source(str(video), probe(video), joins=True)
        assert (source is not None and source.headers is not None) == is_joined


def test_colours_of_the_encoded_ends_are_the_sources(make_video: MakeVideo) -> None:
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 14}  # BT.2020, 10 bit
    colours = "colormatrix=bt2020nc:colorprim=bt2020:transfer=bt2020-10"
    path = make_video("join-tags.mp4", SHOTS, options=("-x264-params", f"{BFRAMES}:{colours}"))
    (clip,) = cut_all(path, [(7, 55)])
    assert clip.made == "joined"
    with av.open(io.BytesIO(clip.data)) as container:
        for frame in container.decode(video=0):
            assert {tag: int(getattr(frame, tag)) for tag in tags} == tags


def sequence_set(**changed: int) -> bytes:
    """A baseline sequence set of 320x180 without a word on reordering, but for what is changed."""
    fields = {"order_type": 2, "refs": 1, "gaps": 0, "frames_only": 1} | changed
    bits = f"{66:08b}{0:08b}{30:08b}" + ue_text(0) + ue_text(0) + ue_text(fields["order_type"])
    bits += ue_text(fields["refs"]) + str(fields["gaps"]) + ue_text(19) + ue_text(11)
    return b"\x67" + packed(bits + f"{fields['frames_only']}100" + "1", "0")


@pytest.mark.parametrize("changed", [{}, {"order_type": 1}, {"gaps": 1}, {"frames_only": 0}])
def test_sequence_sets_that_leave_something_open(changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"reordering|order of type|gaps, or fields"):
        read_sequence_set(sequence_set(**changed))


def test_emulation_prevention_goes_both_ways() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        payload = bytes(rng.choice([0, 0, 0, 1, 2, 3, 4], 40).astype(np.uint8))
        escaped = escape(payload)
        assert not any(bad in escaped for bad in (b"\0\0\0", b"\0\0\1", b"\0\0\2"))
        assert unescape(escaped) == payload


@pytest.mark.parametrize("name", ["pyramid", "full-range", "open"])
def test_ten_cuts_at_once_give_the_same_bytes(make_video: MakeVideo, name: str) -> None:
    """With two threads of the encoder 1 to 7 of 12 were others."""
    container, options = SOURCES[name]
    path = make_video(f"join-{name}.{container}", SHOTS, options=options)
    with ThreadPoolExecutor(4) as pool:  # more than there are cores: encoders wait for each other
        cuts = list(pool.map(lambda _: cut_all(path, [SPANS[1]])[0], range(10)))
    assert len({clip.data for clip in cuts}) == 1


def test_joins_can_be_left_to_the_encoder(make_video: MakeVideo) -> None:
    path = make_video("join-open.mp4", SHOTS, options=SOURCES["open"][1])
    made = {joins: cut_all(path, SPANS[3:5], Cut(joins=joins)) for joins in (True, False)}
    assert {clip.made for clip in made[True]} == {"joined"}
    assert {clip.made for clip in made[False]} == {"encoded"}
