"""Every displayed frame of a video file, once, with its time.

Times are seconds from presentation timestamps; 0 is the first displayed frame.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from curation.media.files import (
    MediaError,
    decoded,
    open_video,
    readable,
    stamps_decode_order,
    step_without_stamps,
    video_stream,
)
from curation.media.probes import check_samples, declared_bytes, declared_end_s

# Containers round durations; below this a missing tail is rounding, not a cut file.
# Ours: a GOP of half a second, or 1% of a long file.
TRUNCATION_SLACK_S = 0.5
TRUNCATION_SLACK_SHARE = 0.01
# Clumsy muxers repeat stamps; a longer way back is a recording joined to another.
# Ours: no reordering of frames reaches back half a second.
MAX_STEP_BACK_S = 0.5


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
        self.last_key = 0  # the newest frame that is a key frame

    def append(self, pts: int, duration: int, *, is_key: bool = False) -> None:
        if is_key:
            self.last_key = len(self.pts)
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
        # Otherwise HEVC fills damaged slices with guesses and says nothing. Of 6 files with 8 bytes
        # changed 3 are noticed with this, none without; H.264 6 of 6 either way. No healthy file
        # that we have decodes otherwise.
        stream.codec_context.options = {"err_detect": "explode"}
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
                timeline.append(pts, frame.duration or 0, is_key=frame.key_frame)
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


def at_s(timeline: Timeline) -> float:
    """How far a decode has come, in seconds."""
    return timeline.duration_s if timeline.pts else 0.0


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
