"""What a video file is, from its headers, its first frame and its packets.

Sizes are display sizes, after rotation and sample aspect; times are seconds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type

from curation.media.files import (
    MediaError,
    decoded,
    open_video,
    readable,
    step_without_stamps,
    video_stream,
)
from curation.sources.source import storable

# Transfer functions whose 8-bit conversion is washed out (ITU-R BT.2100: PQ and HLG).
HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}


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
    has_subtitles: bool
    title: str | None  # the container's own title tag

    @property
    def upright_square(self) -> bool:
        """Whether the stored picture already is the displayed one."""
        return self.turn == Turn() and self.sample_aspect == 1


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
            has_subtitles=bool(container.streams.subtitles),
            title=storable(container.metadata.get("title", "")) or None,
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
