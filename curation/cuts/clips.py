"""Kept spans -> mp4 bytes: packets copied where that is exact, joined where most are, else encoded.

A clip's packets are exactly its displayed frames: no lead-in, no sound, upright square pixels.
"""

from __future__ import annotations

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

from curation.cuts.joins import join
from curation.cuts.packets import mux, read_runs, read_source
from curation.cuts.planner import plan
from curation.frames import (
    MediaError,
    Probe,
    Timeline,
    open_clip,
    open_video,
    readable,
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
    clips = copy_spans(path, probe, timeline, spans, settings, beat)
    out = []
    for span in spans:
        out.append(clips.get(span) or encode(path, probe, timeline, *span, settings, beat))
        beat()
    return out


def copy_spans(
    path: str,
    probe: Probe,
    timeline: Timeline,
    spans: list[tuple[int, int]],
    settings: Cut,
    beat: Callable[[], None],
) -> dict[tuple[int, int], Clip]:
    """The clip of every span of which packets can be copied; two passes over the file."""
    source = read_source(path, probe, joins=settings.joins)
    if source is None:
        return {}
    plans = [p for span in sorted(set(spans)) if (p := plan(source, timeline, *span))]
    plans.sort(key=lambda p: p.packets)
    clips = {}
    runs = read_runs(path, [p.packets for p in plans])
    for planned, (stream, packets) in zip(plans, runs, strict=True):
        try:
            made = join(planned, packets, source, probe, timeline, settings, beat)
            data = mux(stream, *made)
            with open_clip(data, ignore_edits=True) as clip:  # of hidden packets too
                check_times(clip, timeline, *planned.span)
        except (MediaError, av.FFmpegError, ValueError):
            continue  # encoded whole then
        word = "copied" if planned.is_copy else "joined"
        clips[planned.span] = Clip(data, probe.width, probe.height, probe.codec, word)
        beat()
    return clips


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
