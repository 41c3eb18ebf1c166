"""A stored clip -> the mp4 that is exported: its bytes, its first packets, or an encode of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import ffmpeg

from curation.cuts.clips import copy_spans
from curation.cuts.encodes import h264, run_ffmpeg
from curation.cuts.packets import Sample, mux
from curation.decode.scenes import analysis_size
from curation.decode.signatures import Signatures
from curation.exports.fits import Demands, Fit
from curation.media.files import FORMATS, MediaError, open_clip, readable, video_stream
from curation.media.frames import Timeline, decode
from curation.media.pictures import small_pictures
from curation.media.probes import probe
from curation.pipelines import Cut

COPIED, TRIMMED, JOINED, ENCODED = "copied", "trimmed", "joined", "encoded"
SAME_S = 1e-3  # as the curation allows a clip's frames to move (cuts/encodes.py)
SETTINGS = Cut()  # of what is encoded: those of a curation that sets none


@dataclass(frozen=True)
class Media:
    """An mp4 that is exported, and how it was made of the stored one.

    copied: the same bytes. trimmed: its first packets. joined: most of them, the last frames
    encoded. encoded: all frames.
    """

    data: bytes
    duration_s: float
    width: int  # px
    height: int  # px
    made: str


@dataclass(frozen=True)
class Stored:
    """What a stored clip's headers say."""

    packets: list[av.Packet]  # in decode order
    times: list[int]  # of its frames in order of display, and of its end; from 0, in time_base
    time_base: Fraction
    width: int  # px
    height: int  # px
    in_browsers: bool

    def time_s(self, frame: int) -> float:
        return float(self.times[frame] * self.time_base)


def made(data: bytes, fit: Fit, demands: Demands, scratch: str) -> Media:
    """The mp4 of what is wanted of a clip, proven to have its frames at their times.

    `scratch` is a folder for files that are gone again afterwards.

    Raises MediaError where the clip is broken, or cannot be encoded.
    """
    with open_clip(data) as container:
        stored = read(container)
        if demands.fps is None and fit.num_frames > len(stored.packets):
            raise MediaError("corrupt", f"{len(stored.packets)} frames, its row says more")
        at_rate = demands.fps is None or has_rate(stored, demands.fps)
        same = (fit.width, fit.height) == (stored.width, stored.height) and at_rate
        if same and (stored.in_browsers or not demands.plays_in_browsers):
            num_frames = len(stored.packets)
            if fit.num_frames == num_frames:
                return Media(data, stored.time_s(num_frames), fit.width, fit.height, COPIED)
            return trimmed(data, container, stored, fit, scratch)
    return encoded(data, stored, fit, None if at_rate else demands.fps, scratch)


def read(container: av.container.InputContainer) -> Stored:
    """What a clip's headers and packets say; nothing is decoded."""
    stream = video_stream(container)
    codec, time_base = stream.codec_context, stream.time_base
    assert time_base is not None
    packets = [p for p in readable(container.demux(stream)) if p.pts is not None and p.size]
    if not packets:
        raise MediaError("corrupt", "a clip without frames")
    shown = sorted(packets, key=lambda packet: packet.pts or 0)
    times = [(packet.pts or 0) - (shown[0].pts or 0) for packet in shown]
    last = shown[-1].duration or (times[-1] - times[-2] if len(times) > 1 else 1)
    plays = codec.name == "h264" and codec.pix_fmt in ("yuv420p", "yuvj420p")
    size = codec.width, codec.height
    return Stored(packets, [*times, times[-1] + last], time_base, *size, plays)


def has_rate(stored: Stored, fps: Fraction) -> bool:
    """Whether every frame of a clip, and its end, is where it would be at a constant rate."""
    numbers = range(len(stored.times))
    return all(abs(stored.time_s(i) - float(i / fps)) < SAME_S for i in numbers)


def trimmed(
    data: bytes, container: av.container.InputContainer, stored: Stored, fit: Fit, scratch: str
) -> Media:
    """The first frames of a clip: its packets where that is exact, else most of them, or none."""
    count = fit.num_frames
    end = stored.times[count]
    duration_s = float(end * stored.time_base)
    first = stored.packets[:count]
    start = min(packet.pts or 0 for packet in stored.packets)
    # What was decoded earlier needs nothing that is decoded later.
    if all((packet.pts or 0) - start < end for packet in first):
        samples = [Sample(p, p.pts or 0, p.dts, p.duration) for p in first]
        cut = mux(video_stream(container), samples)
        check(cut, stored.times[:count], stored.time_base)
        return Media(cut, duration_s, fit.width, fit.height, TRIMMED)
    joined = join(data, count, scratch)
    if joined is not None:
        check(joined, stored.times[:count], stored.time_base)
        return Media(joined, duration_s, fit.width, fit.height, JOINED)
    return encoded(data, stored, fit, None, scratch)


def join(data: bytes, count: int, scratch: str) -> bytes | None:
    """The first frames of a clip as the curation joins them; None where it would encode them."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "clip.mp4"
        path.write_bytes(data)
        found = probe(path)
        signatures = Signatures(found.turn)
        for timeline, frame in decode(path, num_threads=1):  # noqa: B007
            size = analysis_size(frame.width, frame.height)
            _, luma, is_full_range = small_pictures(frame, size)
            signatures.add(luma, is_full_range=is_full_range)
        span = (0, count)
        clips = copy_spans(
            *(str(path), found, timeline, signatures, [span], SETTINGS), lambda: None
        )
        return clips[span].data if span in clips else None


def encoded(data: bytes, stored: Stored, fit: Fit, fps: Fraction | None, scratch: str) -> Media:
    """An encode of the first frames and the middle of the picture, at a constant rate if asked.

    At a rate, frame k is what the clip shows at k / fps seconds.
    """
    width, height = (side // 2 * 2 for side in (fit.width, fit.height))  # for 4:2:0
    left, top = (stored.width - width) // 4 * 2, (stored.height - height) // 4 * 2
    count = fit.num_frames
    times: Sequence[int]
    time_base, times = (1 / fps, range(count)) if fps else (stored.time_base, stored.times[:count])
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        source, target = str(Path(folder) / "source.mp4"), str(Path(folder) / "clip.mp4")
        Path(source).write_bytes(data)
        only = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        picture: Any = ffmpeg.input(source, **only).video.filter("setpts", "PTS-STARTPTS")
        if fps:
            # The last frame stays for as long as its duration says, however that is rounded.
            picture = picture.filter("tpad", stop=-1, stop_mode="clone")
            picture = picture.filter("fps", f"{fps.numerator}/{fps.denominator}", round="up")
        if (width, height) != (stored.width, stored.height):
            picture = picture.filter("crop", width, height, left, top)
        own_times = "filter" if fps else "demux"
        output = h264(picture, target, Timeline(time_base), SETTINGS, count, own_times)
        run_ffmpeg(output, lambda: None)
        out = Path(target).read_bytes()
    check(out, times, time_base)
    duration_s = float(count / fps) if fps else stored.time_s(count)
    return Media(out, duration_s, width, height, ENCODED)


def check(data: bytes, times: Sequence[int], time_base: Fraction) -> None:
    """Raise MediaError encode unless an mp4 has frames at these times and no others."""
    with open_clip(data, ignore_edits=True) as container:
        made = read(container)
    wanted = [float(time * time_base) for time in times]
    found = [made.time_s(i) for i in range(len(made.packets))]
    if len(found) != len(wanted):
        raise MediaError("encode", f"{len(found)} frames came out of {len(wanted)}")
    worst = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    if worst > SAME_S:
        raise MediaError("encode", f"a frame moved by {worst:.4f} s")
