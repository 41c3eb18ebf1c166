"""A span of frames -> an encoded mp4, held against what the analysis saw and at its own times."""

from __future__ import annotations

import errno
import os
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
import numpy as np

from curation.decode.signatures import Signatures, check_same, signature
from curation.media.files import FORMATS, MediaError, open_video, readable, video_stream
from curation.media.frames import Timeline
from curation.media.probes import Probe
from curation.pipelines import Cut
from curation.scores.combing import FieldOrder

# Decoding for an encode starts this long before the clip: the first covers rounding, the others
# the distance of keyframes in containers where a seek can land between them.
SEEK_MARGINS_S = (1.0, 8.0, 64.0)
# Of an encoded clip these frames are compared: what a bad seek shows is wrong from the first frame
# on, until the next keyframe; what a decoder guesses of damage stays until the end. Ours: all of
# them would cost 0.4 ms each (1280x720), a fifth of their decode.
FIRST_COMPARED, STEP_COMPARED = 4, 16
COMPARED_SIDE_PX = 64  # of the square picture that ffmpeg gives to compare


@dataclass(frozen=True)
class Clip:
    """A cut piece of video as an mp4."""

    data: bytes
    width: int  # px
    height: int  # px
    codec: str
    made: str  # copied: the source's packets; joined: some of them; encoded: none


def encode(
    path: str,
    probe: Probe,
    timeline: Timeline,
    signatures: Signatures,
    first: int,
    last: int,
    settings: Cut,
    beat: Callable[[], None],
    field_order: FieldOrder | None = None,
) -> Clip:
    """Encode frames [first, last) to H.264 with their own times, upright and square.

    With a `field_order` they are deinterlaced, one frame out for each: bwdif keeps the earlier
    field and makes the lines of the other one anew. What is compared are the frames before that.

    A seek that fails, or brings other frames, is followed by the next one, at last by a decode
    from the beginning. Raises MediaError encode when that is no better.
    """
    width, height = (max(2, side // 2 * 2) for side in (probe.width, probe.height))  # for 4:2:0
    count = last - first
    numbers = np.array(
        [n for n in range(count) if n < FIRST_COMPARED or n % STEP_COMPARED == 0 or n == count - 1]
    )
    if field_order and probe.turn.degrees:
        raise MediaError("encode", "interlaced video that is shown turned is not deinterlaced")
    starts_s = [None] if timeline.step else seeks_s(path, timeline, first)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        target, look = str(Path(folder) / "clip.mp4"), str(Path(folder) / "look.yuv")
        for attempt, start_s in enumerate(starts_s, start=1):
            frames = decoded(path, probe, timeline, first, last, start_s).split()
            picture = frames[0]
            if field_order:
                # All frames, whatever they are flagged as.
                options = {"mode": "send_frame", "parity": field_order, "deint": "all"}
                picture = picture.filter("bwdif", **options)
            picture = (
                picture.filter("scale", probe.width, probe.height, flags="bicubic")  # square pixels
                .filter("crop", width, height, 0, 0)
                .filter("setsar", "1")
            )
            # Counted: where the picture changes its size all filters begin anew, behind the clip.
            outputs = (
                h264(picture, target, timeline, settings, count),
                compared(frames[1], look, len(numbers), count),
            )
            try:
                run_ffmpeg(ffmpeg.merge_outputs(*outputs), beat)
                with open_video(target) as made:
                    check_times(made, timeline, first, last)
                check_looks(Path(look).read_bytes(), signatures.of(first, last)[numbers], numbers)
                break
            except MediaError as error:
                if error.error_class != "encode" or attempt == len(starts_s):
                    raise
        return Clip(Path(target).read_bytes(), width, height, "h264", "encoded")


def decoded(
    path: str, probe: Probe, timeline: Timeline, first: int, last: int, start_s: float | None
) -> Any:
    """The ffmpeg-python stream of frames [first, last), as frames.decode shows them.

    `start_s` is where ffmpeg seeks to first, seconds; None: it does not.
    """
    seek = {} if start_s is None else {"ss": start_s}
    only = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    stream = ffmpeg.input(path, **only, **seek)[str(probe.stream_index)]
    stream = stream.filter("settb", timeline.time_base)  # some come in the frame rate's
    if timeline.step:
        stream = stream.filter("setpts", f"N*{timeline.step}")
    return (
        stream
        # A repeated stamp is never shown.
        .filter("select", "isnan(prev_selected_pts)+gt(pts,prev_selected_pts)")
        .filter("trim", start_pts=timeline.pts[first], end_pts=timeline.end_pts(last))
        .filter("setpts", "PTS-STARTPTS")
    )


def compared(frames: Any, target: str, num_frames: int, count: int) -> Any:
    """The ffmpeg-python output of the frames that are compared, small, end to end.

    They are `num_frames` of the clip's `count`. As 4:2:0 of limited range: its grey was 4 levels
    darker than the brightness plane (9.0.2).
    """
    side = COMPARED_SIDE_PX
    chosen = f"lt(n,{FIRST_COMPARED})+not(mod(n,{STEP_COMPARED}))+eq(n,{count - 1})"
    some = frames.filter("select", chosen)
    small = some.filter("scale", side, side, flags="area", out_range="tv")
    small = small.filter("format", "yuv420p")
    limit = {"frames:v": num_frames}
    return ffmpeg.output(small, target, format="rawvideo", fps_mode="passthrough", **limit)


def check_looks(data: bytes, wanted: np.ndarray, numbers: np.ndarray) -> None:
    """Raise MediaError encode unless what `compared` wrote has the signatures wanted."""
    side = COMPARED_SIDE_PX
    pictures = np.frombuffer(data, np.uint8).reshape(-1, side * side * 3 // 2)
    lumas = pictures[:, : side * side].reshape(-1, side, side)
    found = [signature(luma, is_full_range=False) for luma in lumas]
    check_same(np.array(found), wanted, numbers)


def h264(
    picture: Any,
    target: str,
    timeline: Timeline,
    settings: Cut,
    num_frames: int,
    own_times: str = "demux",
) -> Any:
    """The ffmpeg-python output that writes a picture stream to an mp4 with its own times.

    `own_times`: whose time base they are in, that of the file (demux) or of the last filter.
    """
    return ffmpeg.output(
        picture,
        target,
        vcodec="libx264",
        crf=settings.crf,
        preset=settings.preset,
        threads=1,  # x264 gives other bytes from run to run with two (measured: 1 to 7 of 12)
        pix_fmt="yuv420p",
        fps_mode="passthrough",
        enc_time_base=own_times,
        video_track_timescale=timescale(timeline.time_base),
        map_metadata=-1,
        fflags="+bitexact",
        **{"flags:v": "+bitexact", "frames:v": num_frames},
    )


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


def run_ffmpeg(command: Any, beat: Callable[[], None]) -> None:
    """Run an ffmpeg-python command to its end, calling `beat` as frames come out."""
    command = command.global_args("-copyts", "-nostdin", "-loglevel", "error")
    command = command.global_args("-progress", "pipe:1")
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
            said = errors.read().strip()
            if os.strerror(errno.ENOSPC) in said or is_full(Path.cwd()):
                raise MediaError("disk_full", f"ffmpeg failed: {said[:500]}; give TMPDIR more room")
            if os.strerror(errno.ENOMEM) in said:
                raise MediaError("memory", f"ffmpeg failed: {said[:500]}")
            raise MediaError("encode", f"ffmpeg failed: {said[:500]}")


def is_full(folder: Path) -> bool:
    """Whether a folder's disk has no room for a page: ffmpeg may die of that without a word."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize < 4096


def check_times(
    container: av.container.InputContainer, timeline: Timeline, first: int, last: int
) -> list[av.Packet]:
    """A clip's packets in the order of display.

    Raises MediaError encode unless they are frames [first, last) at their times.
    """
    stream = video_stream(container)
    packets = [p for p in readable(container.demux(stream)) if p.pts is not None and p.size]
    packets.sort(key=lambda packet: packet.pts or 0)
    pts = [packet.pts or 0 for packet in packets]
    assert stream.time_base is not None
    found = [float((p - pts[0]) * stream.time_base) for p in pts]
    wanted = [timeline.time_s(i) - timeline.time_s(first) for i in range(first, last)]
    if len(found) != len(wanted):
        raise MediaError("encode", f"the encoder gave {len(found)} frames of {len(wanted)}")
    worst = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    if worst > 1e-3:
        raise MediaError("encode", f"the encoder moved a frame by {worst:.4f} s")
    return packets
