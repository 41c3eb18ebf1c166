"""Opening a video file, and reading the packets and frames of the one video in it that counts."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import av

from curation.sources.source import storable

# What PyAV raises at data that it cannot read.
DAMAGE = (av.FFmpegError, ValueError, LookupError, TypeError, ArithmeticError, AssertionError)

# Formats that read other files or hosts: playlists, pictures by a pattern, sessions, side files.
# They are what FFmpeg's demuxers with `io_open` of their own are (libavformat, version 8).
FOLLOWERS = {
    *("hls", "dash", "webm_dash_manifest", "imf", "concat", "image2", "image2pipe", "lavfi"),
    *("rtp", "rtsp", "sap", "sdp", "vobsub", "mlv"),
}
FORMATS = ",".join(sorted(av.formats_available - FOLLOWERS))
# Of one picture. Ours: 16K (15360x8640), 400 MB in RGB; FFmpeg itself ends at 268 million.
MAX_PICTURE_PX = 15360 * 8640

T = TypeVar("T")


class MediaError(Exception):
    """An input that cannot be curated; `error_class` goes to the ledger.

    Classes of this file: missing, empty, not_video, no_video_stream, corrupt, truncated,
    size_changes, clock_restarts; others add those of downloads, encode, caption, scorer.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(error_class, message)
        self.error_class = error_class
        self.message = storable(message)  # a name or a library's words may hold any bytes

    def __str__(self) -> str:
        return f"{self.error_class}: {self.message}"


def open_video(path: str | Path) -> av.container.InputContainer:
    """Open a local file, only that file, for reading.

    Raises MediaError: missing, empty, not_video, no_video_stream, memory.
    """
    path = Path(path)
    if not path.is_file():
        there = path.exists()  # opening a FIFO would wait for ever
        raise MediaError("missing", f"{'not a file' if there else 'no such file'}: {path}")
    if not os.access(path, os.R_OK):
        raise MediaError("missing", f"may not be read: {path}")
    if path.stat().st_size == 0:
        raise MediaError("empty", f"{path.name} has 0 bytes")
    try:
        # Old tags are in any encoding: what is not UTF-8 in them becomes U+FFFD.
        container = av.open(
            str(path),
            options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
            metadata_errors="replace",
        )
    except MemoryError:
        raise  # is of the machine, and one of FFmpeg's errors
    except DAMAGE as error:
        raise MediaError("not_video", f"{path.name} is not a media file: {error}") from error
    # Cover art is a video stream of one attached picture.
    if not [s for s in container.streams.video if not is_cover_art(s)]:
        container.close()
        raise MediaError("no_video_stream", f"{path.name} has no video stream")
    size: av.VideoCodecContext | None = video_stream(container).codec_context
    if size is None:
        container.close()
        raise MediaError("no_video_stream", f"{path.name} has a video of a codec unknown here")
    if size.width * size.height > MAX_PICTURE_PX:
        container.close()
        says = f"its pictures are {size.width}x{size.height}"
        raise MediaError("memory", f"{says}; at most {MAX_PICTURE_PX:,} px are taken")
    return container


def open_clip(data: bytes, *, ignore_edits: bool = False) -> av.container.InputContainer:
    """Open one of our own clips from memory; `ignore_edits` shows packets that an edit list hides.

    It is read as an mp4 whatever it is, and nothing beside it is opened. Raises MediaError
    not_video when it is none.
    """
    options = {"ignore_editlist": "1"} if ignore_edits else {}
    try:
        container = av.open(io.BytesIO(data), "r", format="mp4", options=options)
        for stream in container.streams.video:
            stream.codec_context.options = {"max_pixels": str(MAX_PICTURE_PX)}
        return container
    except DAMAGE as error:
        raise MediaError("not_video", f"not an mp4: {error}") from error


def readable(reading: Iterator[T]) -> Iterator[T]:
    """What PyAV reads of a file, packet by packet or frame by frame.

    Raises MediaError corrupt for whatever it raises: damaged data end in many errors beside its
    own, but for a MemoryError. A stream that begins in the middle of a TS ends in IndexError.
    """
    while True:
        try:
            item = next(reading)
        except StopIteration:
            return
        except MemoryError:
            raise  # as above
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


def stamps_decode_order(container: av.container.InputContainer) -> bool:
    """Whether a container stamps frames in decode order only, so that their PTS are guesses."""
    return container.format.name == "avi"


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
