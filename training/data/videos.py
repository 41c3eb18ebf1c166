"""The one file of training that opens videos: mp4 bytes to the frames of a sample, any video file
to one whose frames were changed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

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
# The demuxers that bytes may be given to. Others follow what they find: an SDP binds ports, a
# playlist reads files. Clips are mp4; references of evaluations are avi, too (UCF-101).
CLIPS, REFERENCES = "mp4", "mp4,avi"
MAX_PICTURE_PX = 15360 * 8640  # what curation takes; more would be a bomb of memory


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


def opened(media: bytes | memoryview, formats: str) -> av.container.InputContainer:
    """Video bytes in one of these formats, in memory: no other file or host is ever opened."""
    container = av.open(io.BytesIO(media), "r", options={"format_whitelist": formats})
    for stream in container.streams.video:
        stream.codec_context.options = {"max_pixels": str(MAX_PICTURE_PX)}
    return container


def read_frames(
    media: bytes | memoryview, shape: SampleShape, start: float, formats: str = CLIPS
) -> np.ndarray:
    """The frames of a sample, uint8 [T, H, W, 3]; T is 1 for an image.

    start: in [0, 1), where in the clip the sample begins, 1 being the last place that fits; with
        `windows` the one it falls into. Raises BadVideoError.
    """
    try:
        with opened(media, formats) as container:
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
    """PTS of every frame in display order, from the packets alone.

    Those that an edit list hides, as of a file cut without encoding, are not displayed.
    """
    packets = container.demux(video=0)
    times = [packet.pts for packet in packets if packet.size and not packet.is_discard]
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
    """The wanted frames by PTS, decoding from the last keyframe before the first of them, or all
    of an AVI."""
    stream = container.streams.video[0]
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # clips run side by side
    # AVI seeks by decoding times, which with B-frames lie past the frame that is wanted.
    first = 0 if container.format.name == "avi" else min(wanted)
    container.seek(first, stream=stream, backward=True)
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


COPIED_AUDIO = {"aac", "ac3", "alac", "eac3", "flac", "mp2", "mp3", "opus"}  # what an mp4 holds
UNSPECIFIED = 2  # a frame's colorspace that its file does not tell
Frames = Iterator[np.ndarray]


@dataclass(frozen=True)
class Header:
    """What a video's header and first frame tell: upright size in px, frames (maybe a guess)."""

    height: int
    width: int
    num_frames: int
    audio: str | None


def header_of(path: Path) -> Header:
    """Look into a video file; BadVideoError where there is no picture in it."""
    try:
        with av.open(str(path)) as container:
            first = next(container.decode(container.streams.video[0]))
            stream = container.streams.video[0]
            guess = (container.duration or 0) / av.time_base * float(stream.average_rate or 0)
            audio = container.streams.audio
            height, width = first.height, first.width
            if int(first.rotation) % 180:
                height, width = width, height
            codec = audio[0].codec_context.name if audio else None
            return Header(height, width, stream.frames or round(guess), codec)
    except (av.FFmpegError, IndexError, StopIteration, OSError) as error:
        raise BadVideoError(f"{path} is no video: {error or 'no frame decodes'}") from None


def rewrite(
    source: Path, output: Path, size: tuple[int, int], change: Callable[[Frames], Frames]
) -> int:
    """Write a video whose frames go through `change`, one by one, with their times and the sound.

    size: height and width in px of what `change` gives, both even; frames are uint8 [H, W, 3].
    H.264, yuv420p, BT.709 and marked so, as players expect it; crf 18, which x264's guide calls
    nearly lossless to the eye. The file appears when it is whole. Returns the number of frames.
    Raises BadVideoError for one that does not decode to its end.
    """
    unfinished = output.with_name(f".unfinished-{output.name}")
    try:
        with av.open(str(source)) as given, av.open(str(unfinished), "w", format="mp4") as made:
            count = _rewrite(given, made, size, change)
        unfinished.replace(output)
    except av.FFmpegError as error:
        raise BadVideoError(f"{source} does not decode: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _rewrite(
    given: av.container.InputContainer,
    made: av.container.OutputContainer,
    size: tuple[int, int],
    change: Callable[[Frames], Frames],
) -> int:
    pictures, sounds = given.streams.video[0], given.streams.audio[:1]
    stream = made.add_stream("libx264", rate=pictures.average_rate or 25)
    stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
    assert pictures.time_base
    stream.codec_context.time_base = pictures.time_base
    bt709 = "colorprim=bt709:transfer=bt709:colormatrix=bt709"
    stream.options = {"crf": "18", "x264-params": bt709}
    copies = {s: made.add_stream_from_template(s) for s in sounds
              if s.codec_context.name in COPIED_AUDIO}  # fmt: skip
    start_s = Fraction(given.start_time or 0, av.time_base)
    times: list[int] = []

    def frames() -> Frames:
        for packet in given.demux([pictures, *copies]):
            if packet.dts is None and packet.stream in copies:
                continue  # the empty packet at the end
            if packet.stream in copies:
                retimed(packet, start_s)
                packet.stream = copies[packet.stream]
                made.mux(packet)
                continue
            for frame in pictures.decode(packet):
                if frame.pts is None or frame.time_base is None:
                    raise BadVideoError(f"frame {len(times)} has no time")
                times.append(frame.pts - round(start_s / frame.time_base))
                yield as_rgb(frame)

    count = 0
    for picture in change(frames()):
        frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709
        )
        frame.pts, frame.time_base = times[count], pictures.time_base
        made.mux(stream.encode(frame))
        count += 1
    made.mux(stream.encode())
    return count


def retimed(packet: av.Packet, start_s: Fraction) -> None:
    """Let the times of a packet begin where its file does."""
    assert packet.time_base and packet.pts is not None and packet.dts is not None
    shift = round(start_s / packet.time_base)
    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift


def as_rgb(frame: VideoFrame) -> np.ndarray:
    """A frame upright as uint8 [H, W, 3]; unmarked colours are BT.709 from 720 rows on (as players
    take them), BT.601 below."""
    unmarked = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    colours = unmarked if frame.colorspace == UNSPECIFIED else None
    picture = frame.reformat(format="rgb24", src_colorspace=colours).to_ndarray()
    turns = int(frame.rotation) % 360 // 90
    return np.ascontiguousarray(np.rot90(picture, turns))


def fits(media: bytes, sampling: SampleShape) -> bool:
    """Whether a reference is long enough for a sample; nothing is decoded. Raises BadVideoError."""
    try:
        with opened(media, REFERENCES) as container:
            times = display_times(container)
            time_base = container.streams.video[0].time_base
    except DAMAGE as error:
        raise BadVideoError(f"does not open: {error}") from None
    try:
        return len(wanted_times(times, sampling, 0.0, time_base)) == sampling.num_frames
    except BadVideoError:  # too short is all that it can say of times that are there
        return False


def brought_to(frames: np.ndarray, sampling: SampleShape) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] scaled and cut as those of a sample are."""
    pictures = (VideoFrame.from_ndarray(np.ascontiguousarray(f), format="rgb24") for f in frames)
    return np.stack([resize_and_crop(picture, sampling) for picture in pictures])
