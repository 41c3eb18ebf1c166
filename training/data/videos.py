"""The one file of training that opens videos: mp4 bytes to the frames of a sample."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation

# What PyAV raises at damaged data: many of Python's errors beside its own.
DAMAGE = (av.FFmpegError, ValueError, LookupError, TypeError, ArithmeticError, AssertionError)
# How a picture becomes one of the sample's size; a change here makes precomputed latents stale.
CROP = "covered, centre kept; area when smaller, else bicubic; untagged HD is BT.709"
# Of the frames that are taken; 24 a second of a clip of 23.976 are those of it.
MIN_FRAMES_SHARE = 0.95
# Pictures that do not say their colours: above this height BT.709, as players have it, else BT.601.
MAX_SD_HEIGHT = 576


class BadVideoError(ValueError):
    """A clip that does not decode to the frames asked for."""


@dataclass(frozen=True)
class SampleShape:
    """Which frames make a sample, and their size in px.

    Every stride-th frame, or without a stride the frames displayed at steps of 1 / fps seconds.
    windows: in how many places of a clip a sample may begin, the middles of as many equal parts
        of the room that it has; 1 is the middle, None anywhere.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    stride: int | None = None
    windows: int | None = None

    def window(self, start: float) -> int:
        """Which of the windows a start in [0, 1) belongs to."""
        return int(start * (self.windows or 1))

    def begin(self, start: float) -> float:
        """Where a sample drawn to begin at `start` does begin, both in [0, 1)."""
        return (self.window(start) + 0.5) / self.windows if self.windows else start

    def __str__(self) -> str:
        frames = f"{self.num_frames} frame{'s' * (self.num_frames != 1)}"
        return f"{frames} of {self.width}x{self.height}"

    @property
    def num_px(self) -> int:
        return self.height * self.width

    def fits(self, num_frames: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
        """Whether clips have the frames, and often enough; an image, of one frame, always has."""
        if self.stride:
            long = num_frames > (self.num_frames - 1) * self.stride
        else:
            long = (num_frames >= self.num_frames) & (duration_s >= self.num_frames / self.fps)
            # Fewer frames a second than are taken would be shown twice and stutter.
            long &= num_frames >= MIN_FRAMES_SHARE * self.fps * duration_s
        return long | (num_frames == 1)


def read_frames(media: bytes | memoryview, shape: SampleShape, start: float) -> np.ndarray:
    """The frames of a sample, uint8 [T, H, W, 3]; T is 1 for an image.

    start: in [0, 1), where in the clip the sample begins, 1 being the last place that fits; with
        `windows` the one it falls into. Raises BadVideoError.
    """
    try:
        with av.open(io.BytesIO(media), "r") as container:
            if not container.streams.video:
                raise BadVideoError("no picture")
            times = display_times(container)
            begin = shape.begin(start)
            wanted = wanted_times(times, shape, begin, container.streams.video[0].time_base)
            frames = decode(container, wanted)
    except BadVideoError:
        raise
    except DAMAGE as error:
        raise BadVideoError(f"does not decode: {error}") from None
    missing = set(wanted) - set(frames)
    if missing:
        raise BadVideoError(f"{len(missing)} of {len(wanted)} frames do not decode")
    return np.stack([resize_and_crop(frames[pts], shape) for pts in wanted])


def display_times(container: av.container.InputContainer) -> list[int]:
    """PTS of every frame in display order, from the packets alone."""
    times = [packet.pts for packet in container.demux(video=0) if packet.size]
    if not times or any(pts is None for pts in times):
        raise BadVideoError("no frames, or frames without a time")
    return sorted(pts for pts in times if pts is not None)


def wanted_times(
    times: list[int], shape: SampleShape, start: float, time_base: Fraction | None
) -> list[int]:
    """PTS of the frames of a sample among those of its clip."""
    T = 1 if len(times) == 1 else shape.num_frames
    if shape.stride:
        room = len(times) - (T - 1) * shape.stride
        if room < 1:
            raise BadVideoError(
                f"{len(times)} frames, too few for {T} at a stride of {shape.stride}"
            )
        first = int(start * room)
        return times[first :: shape.stride][:T]
    assert time_base is not None
    seconds = (np.array(times) - times[0]) * float(time_base)
    # The last frame is displayed too: for as long as the one before it.
    end = seconds[-1] + (seconds[-1] - seconds[-2] if len(times) > 1 else 0)
    room_s = end - (T - 1) / shape.fps
    if room_s <= 0 and len(times) > 1:  # a single frame is an image and has no length
        raise BadVideoError(f"{end:.3f} s, too short for {T} frames at {shape.fps:g} a second")
    asked = start * room_s + np.arange(T) / shape.fps
    # A microsecond: a frame whose time was rounded down is still the one displayed then.
    shown = np.searchsorted(seconds, asked + 1e-6, side="right") - 1
    return [times[n] for n in shown]


def decode(container: av.container.InputContainer, wanted: list[int]) -> dict[int, VideoFrame]:
    """The wanted frames by PTS, decoding from the last keyframe before the first of them."""
    stream = container.streams.video[0]
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # clips run side by side
    container.seek(min(wanted), stream=stream, backward=True)
    left, frames = set(wanted), {}
    for frame in container.decode(stream):
        if frame.pts in left:
            frames[frame.pts] = frame
            left.remove(frame.pts)
            if not left:
                break
    return frames


def resize_and_crop(frame: VideoFrame, shape: SampleShape) -> np.ndarray:
    """Scale so that the picture covers the sample's size, then keep its centre: [H, W, 3]."""
    H, W = shape.height, shape.width
    scale = max(H / frame.height, W / frame.width)
    height, width = max(H, round(frame.height * scale)), max(W, round(frame.width * scale))
    kind = Interpolation.AREA if scale < 1 else Interpolation.BICUBIC
    untagged = frame.colorspace not in tuple(Colorspace)
    colours = Colorspace.ITU709 if untagged and frame.height > MAX_SD_HEIGHT else None
    picture = frame.reformat(
        width, height, "rgb24", src_colorspace=colours, interpolation=kind
    ).to_ndarray()
    top, left = (height - H) // 2, (width - W) // 2
    return picture[top : top + H, left : left + W]
