"""The one file of this package that opens a video: what it is, its frames, its packets.

Times are seconds from presentation timestamps; 0 is the first displayed frame. Sizes are display
sizes, after rotation and sample aspect.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from av.sidedata.sidedata import Type

from curation.sources.source import storable

# Transfer functions whose 8-bit conversion is washed out (ITU-R BT.2100: PQ and HLG).
HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}
# Containers round durations; below this a missing tail is rounding, not a cut file.
# Ours: a GOP of half a second, or 1% of a long file.
TRUNCATION_SLACK_S = 0.5
TRUNCATION_SLACK_SHARE = 0.01
# Clumsy muxers repeat stamps; a longer way back is a recording joined to another.
# Ours: no reordering of frames reaches back half a second.
MAX_STEP_BACK_S = 0.5
# What PyAV raises at data that it cannot read.
DAMAGE = (av.FFmpegError, ValueError, LookupError, TypeError, ArithmeticError, AssertionError)

T = TypeVar("T")


class MediaError(Exception):
    """An input that cannot be curated; `error_class` goes to the ledger.

    Classes of this file: missing, empty, not_video, no_video_stream, corrupt, truncated,
    size_changes, clock_restarts; others add private_address, download_failed, encode, caption,
    scorer.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(error_class, message)
        self.error_class = error_class
        self.message = storable(message)  # a name or a library's words may hold any bytes

    def __str__(self) -> str:
        return f"{self.error_class}: {self.message}"


class Turn(NamedTuple):
    """How a stored picture is shown: mirrored left to right first, then turned."""

    degrees: int = 0  # counter-clockwise: 0, 90, 180 or 270
    is_mirrored: bool = False


@dataclass(frozen=True)
class Probe:
    """What a file is, read from its headers and its first frame."""

    stream_index: int  # of the video in the file
    width: int  # display, px
    height: int  # display, px
    turn: Turn  # needed to show it upright
    sample_aspect: Fraction  # of the stored picture
    fps: float  # average; never used for times
    duration_s: float | None  # as the container says
    num_frames: int | None  # as the container says
    codec: str
    pix_fmt: str
    transfer: str | None  # "smpte2084", "arib-std-b67" or None for everything else
    has_audio: bool
    title: str | None  # the container's own title tag

    @property
    def upright_square(self) -> bool:
        """Whether the stored picture already is the displayed one."""
        return self.turn == Turn() and self.sample_aspect == 1


def open_video(path: str | Path) -> av.container.InputContainer:
    """Open a local file, only that file, for reading.

    Raises MediaError: missing, empty, not_video, no_video_stream.
    """
    path = Path(path)
    if not path.is_file():
        raise MediaError("missing", f"no such file: {path}")
    if path.stat().st_size == 0:
        raise MediaError("empty", f"{path.name} has 0 bytes")
    try:
        # A playlist-like file must not make the demuxer open other files or hosts.
        # Old tags are in any encoding: what is not UTF-8 in them becomes U+FFFD.
        container = av.open(
            str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except DAMAGE as error:
        raise MediaError("not_video", f"{path.name} is not a media file: {error}") from error
    # Cover art is a video stream of one attached picture.
    if not [s for s in container.streams.video if not is_cover_art(s)]:
        container.close()
        raise MediaError("no_video_stream", f"{path.name} has no video stream")
    return container


def open_clip(data: bytes, *, ignore_edits: bool = False) -> av.container.InputContainer:
    """Open one of our own clips from memory; `ignore_edits` shows packets that an edit list hides.

    Raises MediaError not_video when it is none.
    """
    options = {"ignore_editlist": "1"} if ignore_edits else {}
    try:
        return av.open(io.BytesIO(data), "r", format="mp4", options=options)
    except DAMAGE as error:
        raise MediaError("not_video", f"not an mp4: {error}") from error


def readable(reading: Iterator[T]) -> Iterator[T]:
    """What PyAV reads of a file, packet by packet or frame by frame.

    Raises MediaError corrupt for whatever it raises: damaged data end in many errors beside its
    own. A stream that begins in the middle of a TS ends in IndexError.
    """
    while True:
        try:
            item = next(reading)
        except StopIteration:
            return
        except DAMAGE as error:
            raise MediaError("corrupt", f"{type(error).__name__}: {error}") from error
        yield item


def is_cover_art(stream: av.VideoStream) -> bool:
    """Whether a video stream is a picture attached to an audio file."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video that counts: the container's default, else the first, cover art left out."""
    videos = [s for s in container.streams.video if not is_cover_art(s)]
    return next((s for s in videos if s.disposition & av.stream.Disposition.default), videos[0])


def probe(path: str | Path) -> Probe:
    """Read a file's display size, rate, duration and colour from its headers and first frame.

    Raises MediaError as open_video does, corrupt when no frame decodes, and truncated when an
    mp4's sample table goes on behind the end of the file.
    """
    with open_video(path) as container:
        stream = video_stream(container)
        check_samples(path, container, stream)
        first = first_frame(container, stream)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        width, height = round(first.width * aspect), first.height
        turn = turn_of(first)
        if turn.degrees in (90, 270):
            width, height = height, width
        return Probe(
            stream_index=stream.index,
            width=width,
            height=height,
            turn=turn,
            sample_aspect=aspect,
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            duration_s=declared_duration_s(container, stream),
            num_frames=stream.frames or None,
            codec=stream.codec_context.name,
            pix_fmt=first.format.name,
            transfer=HDR_TRANSFERS.get(int(first.color_trc)),
            has_audio=bool(container.streams.audio),
            title=container.metadata.get("title") or None,
        )


def turn_of(frame: av.VideoFrame) -> Turn:
    """How a frame is to be shown, from its display matrix (ISO/IEC 14496-12, 8.2.2).

    A row vector of stored coordinates times [[a, b], [c, d]] is the place on the screen, so a
    determinant below 0 mirrors. Taken out, a turn is left, to the nearest of the four.
    """
    side_data: Any = frame.side_data  # typed as a dict by name, which it is not
    matrix = side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Turn()
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    is_mirrored = a * d - b * c < 0
    if is_mirrored:
        a, b = -a, -b
    return Turn(90 * round(-math.degrees(math.atan2(b, a)) / 90) % 360, is_mirrored)


def first_frame(container: av.container.InputContainer, stream: av.VideoStream) -> av.VideoFrame:
    """The first frame that decodes; MediaError corrupt when none does."""
    for frame in readable(decoded(container, stream)):
        return frame
    raise MediaError("corrupt", "the video stream holds no frame")


def declared_duration_s(
    container: av.container.InputContainer, stream: av.VideoStream
) -> float | None:
    """How long the container says that the video is, in seconds, or None when it does not say.

    The container's own duration counts only where the video is alone: sound and subtitles may
    outlast the picture. Matroska counts from 0 even where the first frame comes later.
    """
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    # Matroska: "00:01:02.345000000" as DURATION; DURATION-eng is often left over from another file.
    for key, tag in sorted(stream.metadata.items()):
        if key.startswith("DURATION") and (match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", tag)):
            hours, minutes, seconds = match.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    alone = not (container.streams.audio or container.streams.subtitles)
    return container.duration / av.time_base if container.duration and alone else None


def declared_end_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """The file's own time, in seconds, at which the container says that the video ends."""
    duration_s = declared_duration_s(container, stream)
    if duration_s is None or "matroska" in container.format.name:
        return duration_s
    if stream.start_time is not None and stream.time_base is not None:
        return float(stream.start_time * stream.time_base) + duration_s
    return duration_s


class Timeline:
    """The presentation times of every displayed frame of a video, filled by one decode.

    `pts` are the file's own stamps in `time_base` units, strictly increasing. `step`: it has none,
    and they are counted, so many units a frame.
    """

    def __init__(self, time_base: Fraction, step: int | None = None) -> None:
        self.time_base = time_base
        self.step = step
        self.pts: list[int] = []
        self.last_duration: int = 0

    def append(self, pts: int, duration: int) -> None:
        self.pts.append(pts)
        self.last_duration = duration

    @property
    def num_frames(self) -> int:
        return len(self.pts)

    def time_s(self, index: int) -> float:
        """Seconds of frame `index` after the first; `num_frames` means the end of the video."""
        return float((self.end_pts(index) - self.pts[0]) * self.time_base)

    def end_pts(self, index: int) -> int:
        """The stamp of frame `index`, or of the video's end when index is `num_frames`."""
        if index < self.num_frames:
            return self.pts[index]
        if self.last_duration > 0:
            return self.pts[-1] + self.last_duration
        # Some containers carry no durations: repeat the last step.
        step = self.pts[-1] - self.pts[-2] if self.num_frames > 1 else 1
        return self.pts[-1] + step

    def span_s(self, first: int, last: int) -> float:
        """Seconds that frames [first, last) are shown."""
        return float((self.end_pts(last) - self.pts[first]) * self.time_base)

    @property
    def duration_s(self) -> float:
        return self.time_s(self.num_frames)


def decode(path: str | Path, *, num_threads: int) -> Iterator[tuple[Timeline, av.VideoFrame]]:
    """Every displayed frame of a file in order, once, with the timeline so far.

    Raises MediaError: corrupt when a packet does not decode, truncated when the data ends before
    the container says so, size_changes when the stored picture does, clock_restarts when time
    jumps back. They come when they are met, so frames before them were already yielded.
    """
    with open_video(path) as container:
        stream = video_stream(container)
        check_samples(path, container, stream)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = num_threads
        assert stream.time_base is not None
        timeline = Timeline(stream.time_base, step_without_stamps(container, stream))
        size: tuple[int, int] | None = None
        try:
            for frame in readable(decoded(container, stream)):
                if frame.is_corrupt:
                    raise MediaError("corrupt", "damaged picture")
                pts = display_pts(container, timeline, frame)
                if pts is None:
                    raise MediaError("corrupt", "frame without a time")
                if timeline.pts and pts <= timeline.pts[-1]:
                    back_s = float((timeline.pts[-1] - pts) * timeline.time_base)
                    if back_s > MAX_STEP_BACK_S:
                        message = f"by {back_s:.2f} s after {at_s(timeline):.2f} s"
                        raise MediaError("clock_restarts", f"time jumps back {message}")
                    continue  # a repeated stamp is never shown
                size = size or (frame.width, frame.height)
                if size != (frame.width, frame.height):
                    at = f"{frame.width}x{frame.height} after {at_s(timeline):.2f} s"
                    raise MediaError("size_changes", f"from {size[0]}x{size[1]} to {at}")
                timeline.append(pts, frame.duration or 0)
                yield timeline, frame
        except MediaError as error:
            if error.error_class != "corrupt":
                raise
            # Half a packet does not decode either: what follows it tells the two apart.
            check_complete(path, container, stream, timeline)
            where = f"after {at_s(timeline):.2f} s: {error.message}"
            raise MediaError("corrupt", where) from error
        if not timeline.pts:
            raise MediaError("corrupt", "no frame decodes")
        check_complete(path, container, stream, timeline)


def decoded(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """Every frame that decodes; raises what PyAV raises.

    An empty packet says that the picture before it stays (Theora); only the last one, which has no
    time and ends the stream, is for a decoder.
    """
    for packet in container.demux(stream):
        if packet.size or (packet.pts is None and packet.dts is None):
            yield from packet.decode()


def at_s(timeline: Timeline) -> float:
    """How far a decode has come, in seconds."""
    return timeline.duration_s if timeline.pts else 0.0


def step_without_stamps(
    container: av.container.InputContainer, stream: av.VideoStream
) -> int | None:
    """Ticks of a frame where the file is a bare stream without any stamp (.h264, .m2v); else None.

    Its frames are shown at the rate that its headers say.
    """
    if not av.format.Flags(container.format.flags) & av.format.Flags.no_timestamps:
        return None
    rate = stream.average_rate or stream.guessed_rate
    assert stream.time_base is not None
    return max(1, round(1 / (rate * stream.time_base))) if rate else None


def stamps_decode_order(container: av.container.InputContainer) -> bool:
    """Whether a container stamps frames in decode order only, so that their PTS are guesses."""
    return container.format.name == "avi"


def display_pts(
    container: av.container.InputContainer, timeline: Timeline, frame: av.VideoFrame
) -> int | None:
    """When a frame is shown, in time base units; AVI's are taken as ffmpeg takes them."""
    if timeline.step:
        return timeline.num_frames * timeline.step
    if not stamps_decode_order(container):
        return frame.pts
    if frame.dts is None and timeline.num_frames > 1:  # flushed at the end
        return 2 * timeline.pts[-1] - timeline.pts[-2]
    return frame.pts if frame.dts is None else frame.dts


def check_samples(
    path: str | Path, container: av.container.InputContainer, stream: av.VideoStream
) -> None:
    """Raise MediaError truncated when an mp4's sample table points behind the end of the file."""
    if "mp4" not in container.format.name:  # other formats' indexes are hints
        return
    size = Path(path).stat().st_size
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if end > size:
        raise MediaError("truncated", f"the file has {size} bytes; its video goes on to {end}")


def declared_bytes(path: str | Path) -> int:
    """How long a file says that it is, in bytes, by its outermost box; 0 where none says.

    AVI: the size of its RIFF chunk. Matroska: that of its segment (RFC 8794, 4 and 6: an ID, then a
    size whose leading zero bits tell its length; all ones: not known).
    """
    with Path(path).open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] != b"\x1a\x45\xdf\xa3":  # EBML
        return 0
    at, size = 4, 0
    for _ in range(2):  # the EBML header, then, behind its content and an ID, the segment
        length = 9 - head[at].bit_length() if at < len(head) else 9
        mask = (1 << 7 * length) - 1
        size = int.from_bytes(head[at : at + length]) & mask
        if length > 8 or size == mask or at + length + size + 4 >= len(head):
            break
        at += length + size + 4
    return 0 if length > 8 or size == mask else at + length + size


def packets_s(path: str | Path) -> float:
    """How long the video's packets go on, in seconds, by reading them all without decoding.

    Raises MediaError as open_video does, and corrupt.
    """
    with open_video(path) as container:
        stream = video_stream(container)
        assert stream.time_base is not None
        step = step_without_stamps(container, stream)
        reading = readable(container.demux(stream))
        shown = [(p.pts, p.duration or 0) for p in reading if p.size]
        known = [(pts, duration) for pts, duration in shown if pts is not None]
        if step or not known:
            return float(len(shown) * (step or 0) * stream.time_base)
        length = max(pts + duration for pts, duration in known) - min(pts for pts, _ in known)
        return float(length * stream.time_base)


def check_complete(
    path: str | Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    timeline: Timeline,
) -> None:
    """Raise MediaError truncated when the data ends early, by the container's time and its bytes.

    A time alone proves nothing: tags are left over from other files, recorders never fill them in.
    """
    size = Path(path).stat().st_size
    indexed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if max(indexed, declared_bytes(path)) <= size:
        return
    declared_s = declared_end_s(container, stream)
    # A sparse VFR file may be short in seconds yet whole: then every declared frame was there.
    if declared_s is None or timeline.num_frames == stream.frames:
        return
    ends = []
    with contextlib.suppress(MediaError):  # the decode has told of the damage
        ends += [
            packet.pts for packet in readable(container.demux(stream)) if packet.pts is not None
        ]
    if timeline.pts:
        ends.append(timeline.end_pts(timeline.num_frames))
    found_s = float(max(ends, default=0) * timeline.time_base)
    slack_s = max(TRUNCATION_SLACK_S, TRUNCATION_SLACK_SHARE * declared_s)
    if found_s < declared_s - slack_s:
        raise MediaError(
            "truncated", f"the data ends at {found_s:.2f} s of {declared_s:.2f} s declared"
        )
