"""Kept spans -> mp4 bytes: packets copied where that is exact, joined where most are, else encoded.

A clip's packets are exactly its displayed frames: no lead-in, no sound, upright square pixels.
"""

from __future__ import annotations

import collections
import io
import itertools
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import ffmpeg
import imageio_ffmpeg

from curation.cuts.joins import join_spans
from curation.frames import (
    MediaError,
    Probe,
    Timeline,
    open_clip,
    open_video,
    readable,
    stamps_decode_order,
    video_stream,
)
from curation.pipelines import Cut

# Decoding for an encode starts this long before the clip: the first covers rounding, the others
# the distance of keyframes in containers where a seek can land between them.
SEEK_MARGINS_S = (1.0, 8.0, 64.0)


@dataclass(frozen=True)
class Clip:
    """A cut piece of video as an mp4."""

    data: bytes
    width: int  # px
    height: int  # px
    codec: str
    made: str  # copied: the source's packets; joined: some of them; encoded: none


@dataclass(frozen=True)
class Packet:
    """The facts about one packet of the source that decide whether a span can be copied."""

    pts: int
    starts_clean: bool  # nothing from here on needs an earlier packet


def cut(
    path: str,
    probe: Probe,
    timeline: Timeline,
    spans: list[tuple[int, int]],
    settings: Cut,
    beat: Callable[[], None],
) -> list[Clip]:
    """Cut frames [first, last) of a video for every span, in order.

    `beat` is called as work advances. Raises MediaError encode when an encoder fails or returns
    other frames than were asked for.
    """
    packets = read_packets(path) if probe.upright_square else []
    runs = [copyable_run(packets, timeline, *span) for span in spans]
    copies = copy_runs(path, [run for run in runs if run])
    rest = [span for span, run in zip(spans, runs, strict=True) if settings.joins and not run]
    joined = {
        span: data
        for span, data in join_spans(path, probe, timeline, rest, settings, beat).items()
        if is_whole(data, timeline, *span)
    }
    clips = []
    for span, run in zip(spans, runs, strict=True):
        if run:
            clips.append(Clip(copies[run], probe.width, probe.height, probe.codec, "copied"))
        elif span in joined:
            clips.append(Clip(joined[span], probe.width, probe.height, probe.codec, "joined"))
        else:
            clips.append(encode(path, probe, timeline, *span, settings, beat))
        beat()
    return clips


# -- copying


def read_packets(path: str) -> list[Packet]:
    """The packets of a video in decode order; [] for codecs and containers that are not."""
    with open_video(path) as container:
        stream = video_stream(container)
        if stream.codec_context.name not in CLEAN_START_NALS or stamps_decode_order(container):
            return []
        nal_types, read_type = CLEAN_START_NALS[stream.codec_context.name]
        # avcC and hvcC begin with version 1; other headers mean start codes (Annex B).
        extradata = stream.codec_context.extradata or b""
        prefixed = extradata[:1] == b"\x01"
        packets = []
        for packet in readable(container.demux(stream)):
            if packet.pts is None or packet.size == 0:
                continue
            starts_clean = packet.is_keyframe and any(
                read_type(nal) in nal_types for nal in nal_headers(bytes(packet), prefixed)
            )
            packets.append(Packet(packet.pts, starts_clean))
        return packets


# Instantaneous decoder refresh pictures: H.264 table 7-1 type 5, H.265 table 7-1 types 19 and 20.
# A container's keyframe flag alone also marks open groups, whose first pictures need older ones.
CLEAN_START_NALS: dict[str, tuple[set[int], Callable[[int], int]]] = {
    "h264": ({5}, lambda header: header & 0x1F),
    "hevc": ({19, 20}, lambda header: header >> 1 & 0x3F),
}


def nal_headers(data: bytes, prefixed: bool) -> list[int]:
    """The first byte of every NAL unit of a packet, with 4-byte lengths or with start codes."""
    headers = []
    if prefixed:
        at = 0
        while at + 4 < len(data):
            headers.append(data[at + 4])
            at += 4 + int.from_bytes(data[at : at + 4])
    else:
        at = data.find(b"\x00\x00\x01")
        while 0 <= at < len(data) - 3:
            headers.append(data[at + 3])
            at = data.find(b"\x00\x00\x01", at + 3)
    return headers


def copyable_run(
    packets: list[Packet], timeline: Timeline, first: int, last: int
) -> tuple[int, int] | None:
    """The range of packets that is exactly frames [first, last) and needs no other, or None.

    It must start with a clean picture that is the first frame, hold every frame's packet and no
    other, and be unbroken in decode order: then no kept frame refers outside it.
    """
    wanted = set(timeline.pts[first:last])
    inside = [i for i, packet in enumerate(packets) if packet.pts in wanted]
    if len(inside) != len(wanted) or not inside:
        return None
    start, stop = inside[0], inside[-1] + 1
    unbroken = stop - start == len(inside)
    opens = packets[start].starts_clean and packets[start].pts == timeline.pts[first]
    return (start, stop) if unbroken and opens else None


def copy_runs(path: str, runs: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """The mp4 of every run of packets; one pass over the file unless given spans overlap."""
    waiting: list[tuple[int, int]] = []
    overlapping: list[tuple[int, int]] = []
    for run in sorted(set(runs)):
        (overlapping if waiting and run[0] < waiting[-1][1] else waiting).append(run)
    done = copy_apart(path, waiting) if waiting else {}
    return done | copy_runs(path, overlapping) if overlapping else done


def copy_apart(path: str, runs: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """The mp4 of every run of packets, for sorted runs that do not overlap."""
    done: dict[tuple[int, int], bytes] = {}
    with open_video(path) as container:
        stream = video_stream(container)
        usable = (p for p in readable(container.demux(stream)) if p.pts is not None and p.size)
        at = 0
        for start, stop in runs:
            skipped = itertools.islice(usable, start - at)
            collections.deque(skipped, maxlen=0)
            done[start, stop] = mux(stream, list(itertools.islice(usable, stop - start)))
            at = stop
    return done


def mux(stream: av.VideoStream, packets: list[av.Packet]) -> bytes:
    """Packets of a video stream as an mp4 whose first frame is at 0."""
    start = min(packet.pts for packet in packets if packet.pts is not None)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as output:
        target = output.add_stream_from_template(stream)
        for packet in packets:
            packet.pts -= start  # type: ignore[operator]
            if packet.dts is not None:
                packet.dts -= start
            packet.stream = target
            output.mux(packet)
    return buffer.getvalue()


# -- encoding


def encode(
    path: str,
    probe: Probe,
    timeline: Timeline,
    first: int,
    last: int,
    settings: Cut,
    beat: Callable[[], None],
) -> Clip:
    """Encode frames [first, last) to H.264 with their own times, upright and square.

    Raises MediaError encode when ffmpeg fails or its frames are not those asked for.
    """
    width, height = (max(2, side // 2 * 2) for side in (probe.width, probe.height))  # for 4:2:0
    starts_s = seeks_s(path, timeline, first)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        target = str(Path(folder) / "clip.mp4")
        for attempt, start_s in enumerate(starts_s, start=1):
            seek = {} if start_s is None else {"ss": start_s}
            picture = (
                ffmpeg.input(path, protocol_whitelist="file", **seek)
                .video.filter("settb", timeline.time_base)  # some come in the frame rate's
                .filter("trim", start_pts=timeline.pts[first], end_pts=timeline.end_pts(last))
                .filter("setpts", "PTS-STARTPTS")
                .filter("scale", probe.width, probe.height, flags="bicubic")  # square pixels
                .filter("crop", width, height, 0, 0)
                .filter("setsar", "1")
            )
            run_ffmpeg(h264(picture, target, timeline, settings), beat)
            try:
                with open_video(target) as made:
                    check_times(made, timeline, first, last)
                break
            except MediaError:
                if attempt == len(starts_s):
                    raise
        return Clip(Path(target).read_bytes(), width, height, "h264", "encoded")


def h264(picture: Any, target: str, timeline: Timeline, settings: Cut) -> Any:
    """The ffmpeg-python command that writes a picture stream to an mp4 with its own times."""
    output = ffmpeg.output(
        picture,
        target,
        vcodec="libx264",
        crf=settings.crf,
        preset=settings.preset,
        threads=1,  # x264 gives other bytes from run to run with two (measured: 1 to 7 of 12)
        pix_fmt="yuv420p",
        fps_mode="passthrough",
        enc_time_base="demux",
        video_track_timescale=timescale(timeline.time_base),
        map_metadata=-1,
        fflags="+bitexact",
        **{"flags:v": "+bitexact"},
    )
    return output.global_args("-copyts", "-nostdin", "-loglevel", "error", "-progress", "pipe:1")


def seeks_s(path: str, timeline: Timeline, first: int) -> list[float | None]:
    """Where ffmpeg may seek for frame `first`, the nearest first; None is the file's beginning.

    Containers without an index land anywhere, so what comes out is checked and the next is tried.
    """
    with open_video(path) as container:
        file_start_s = (container.start_time or 0) / av.time_base  # ffmpeg counts from there
    frame_s = float(timeline.pts[first] * timeline.time_base) - file_start_s
    # Near the beginning a seek is no help, and AVI's lands behind the first frames.
    return [frame_s - margin for margin in SEEK_MARGINS_S if frame_s - margin > 1.0] + [None]


def timescale(time_base: Fraction) -> int:
    """Ticks a second for the mp4, fine enough to hold every stamp of `time_base` exactly."""
    ticks = time_base.denominator
    return ticks if ticks >= 1000 else ticks * 1000


def run_ffmpeg(command: object, beat: Callable[[], None]) -> None:
    """Run an ffmpeg-python command to its end, calling `beat` as frames come out."""
    arguments = ffmpeg.compile(command, cmd=imageio_ffmpeg.get_ffmpeg_exe(), overwrite_output=True)
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            if line.startswith("frame=") and line != last:
                last = line
                beat()
        if process.wait() != 0:
            errors.seek(0)  # the cause comes first, what it led to after
            raise MediaError("encode", f"ffmpeg failed: {errors.read().strip()[:500]}")


def is_whole(data: bytes, timeline: Timeline, first: int, last: int) -> bool:
    """Whether a clip's packets, hidden ones too, are frames [first, last) at their times."""
    try:
        with open_clip(data, ignore_edits=True) as container:
            check_times(container, timeline, first, last)
    except MediaError:
        return False
    return True


def check_times(
    container: av.container.InputContainer, timeline: Timeline, first: int, last: int
) -> None:
    """Raise MediaError encode unless a clip's packets are frames [first, last) at their times."""
    stream = video_stream(container)
    pts = sorted(p.pts for p in readable(container.demux(stream)) if p.pts is not None and p.size)
    assert stream.time_base is not None
    found = [float((p - pts[0]) * stream.time_base) for p in pts]
    wanted = [timeline.time_s(i) - timeline.time_s(first) for i in range(first, last)]
    if len(found) != len(wanted):
        raise MediaError("encode", f"the encoder gave {len(found)} frames of {len(wanted)}")
    worst = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    if worst > 1e-3:
        raise MediaError("encode", f"the encoder moved a frame by {worst:.4f} s")
