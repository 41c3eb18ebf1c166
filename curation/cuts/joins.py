"""Clips of which most pictures are the source's own: copied packets between encoded ends, in H.264.

The ends are the few frames that the body leaves over (planner.py), encoded with an IDR picture
first and with parameter sets of their own ids: both kinds stand beside each other in the mp4's
header. What is not proven from the headers is not joined.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType

from curation.cuts import parameter_sets
from curation.cuts.packets import Sample, Source
from curation.cuts.parameter_sets import IDR, SLICE, split
from curation.cuts.planner import Plan, Run
from curation.cuts.slices import Headers, is_idr
from curation.decode.signatures import Signatures, check_same, signature_of
from curation.media.frames import Timeline
from curation.media.probes import Probe
from curation.pipelines import Cut


@dataclass(frozen=True)
class Picture:
    """One picture as it goes into the mp4."""

    pts: int  # of the source
    nals: list[bytes]


@dataclass(frozen=True)
class End:
    """An encoded head or tail in decode order, with its own parameter sets."""

    sequence: bytes
    picture: bytes
    pictures: list[Picture]


def join(
    plan: Plan,
    packets: list[av.Packet],
    source: Source,
    probe: Probe,
    timeline: Timeline,
    signatures: Signatures,
    settings: Cut,
    beat: Callable[[], None],
) -> tuple[list[Sample], bytes | None]:
    """What `mux` makes the planned clip of, from its packets: samples, and a header of its own.

    Raises ValueError when a condition turns out not to hold, and MediaError encode when an end does
    not begin with the picture that the analysis saw.
    """
    if plan.is_copy:
        facts = source.packets[slice(*plan.packets)]
        return [
            Sample(p, f.pts, f.dts, f.duration) for p, f in zip(packets, facts, strict=True)
        ], None
    headers = source.headers
    assert headers is not None
    numbered = dict(enumerate(map(bytes, packets), start=plan.packets[0]))
    ends = {}
    for run in (plan.head, plan.tail):
        if run:
            frames: Iterator[av.VideoFrame] = decode_run(run, numbered, source, timeline, beat)
            first = next(frames)
            wanted = signatures.of(run.first, run.first + 1)
            check_same(signature_of(first)[None], wanted, np.array([run.first - plan.span[0]]))
            frames = itertools.chain([first], frames)
            ends[run] = encode_end(frames, probe, timeline.time_base, headers, settings)
    sets = {(end.sequence, end.picture) for end in ends.values()}
    if len(sets) > 1:
        raise ValueError("head and tail need different parameter sets")
    config = parameter_sets.configuration(
        [headers.sequence.nal, *(sequence for sequence, _ in sets)],
        [*(p.nal for p in headers.pictures.values()), *(picture for _, picture in sets)],
    )
    head, tail = (ends[run].pictures if run else [] for run in (plan.head, plan.tail))
    pictures = [*head, *body_of(plan.body, numbered, source, headers), *tail]
    return samples_of(pictures, timeline, *plan.span), config


def body_of(run: Run, data: dict[int, bytes], source: Source, headers: Headers) -> list[Picture]:
    """The source's own pictures; the first one is an IDR picture, or is turned into one."""
    numbers = range(run.start, run.stop)
    pictures = [headers.picture(list(split(data[i], source.length_size))) for i in numbers]
    if not source.packets[run.start].is_idr:
        pictures = headers.opened(pictures)
    return [Picture(source.packets[i].pts, nals) for i, nals in zip(numbers, pictures, strict=True)]


def decode_run(
    run: Run,
    data: dict[int, bytes],
    source: Source,
    timeline: Timeline,
    beat: Callable[[], None],
) -> Iterator[av.VideoFrame]:
    """Frames [first, last) of a run. Raises ValueError when not exactly these come out."""
    decoder = av.CodecContext.create("h264", "r")
    decoder.extradata = source.extradata
    waiting = collections.deque(timeline.pts[run.first : run.last])
    packets = [packet_of(data[i], source.packets[i].pts) for i in range(run.start, run.stop)]
    for packet in [*packets, None]:
        beat()
        for frame in decoder.decode(packet):
            if frame.is_corrupt or (waiting and (frame.pts or 0) > waiting[0]):
                raise ValueError("frames do not decode from their IDR picture on")
            if waiting and frame.pts == waiting[0]:
                waiting.popleft()
                frame.time_base = timeline.time_base
                frame.pict_type = PictureType.NONE  # else x264 takes the source's
                yield frame
    if waiting:
        raise ValueError("frames are missing")


def packet_of(data: bytes, pts: int) -> av.Packet:
    """A packet of our own bytes; PyAV lends them to FFmpeg as they are unless it allocates."""
    packet = av.Packet(len(data))  # with the zero bytes behind it that decoders read
    packet.update(data)
    packet.pts = pts
    return packet


def encode_end(
    frames: Iterator[av.VideoFrame],
    probe: Probe,
    time_base: Fraction,
    headers: Headers,
    settings: Cut,
) -> End:
    """Encode frames so that they can stand beside the source's own pictures.

    Raises ValueError when they cannot.
    """
    sequence = headers.sequence
    first = next(frames)
    encoder = open_encoder(first, probe, time_base, headers, settings)
    pictures = []
    for frame in itertools.chain([first], frames, [None]):
        for packet in encoder.encode(frame):
            nals = [nal for nal in split(bytes(packet), 0) if nal[0] & 31 in (SLICE, IDR)]
            pictures.append(Picture(packet.pts or 0, nals))
    own = {nal[0] & 31: nal for nal in split(encoder.extradata or b"", 0)}
    encoded = parameter_sets.read_sequence_set(own[parameter_sets.SPS])
    same = (encoded.geometry, encoded.profile) == (sequence.geometry, sequence.profile)
    if not same or not is_idr(pictures[0].nals):
        raise ValueError("the encoder's stream does not go with the source's")
    return End(encoded.with_buffers_of(sequence), own[parameter_sets.PPS], pictures)


def open_encoder(
    first: av.VideoFrame, probe: Probe, time_base: Fraction, headers: Headers, settings: Cut
) -> av.VideoCodecContext:
    """An encoder of the source's profile, level and colours, with parameter sets of a free id.

    Without B-frames, so that decode order is display order. Without x264's macroblock tree: with it
    45 of 14,000 encodes of a small end, in processes that had cut before, gave other bytes; without
    it 0 of 23,400.
    """
    sequence = headers.sequence
    taken = {sequence.id, *headers.pictures}
    number = next(i for i in range(1, 32) if i not in taken)
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height = first.width, first.height
    encoder.pix_fmt = first.format.name
    encoder.time_base = time_base
    encoder.framerate = Fraction(probe.fps).limit_denominator(100_000)
    encoder.thread_count = 1  # for the reason in encodes.h264
    for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
        setattr(encoder, tag, getattr(first, tag))
    encoder.flags |= av.codec.context.Flags.global_header
    params = f"bframes=0:ref=1:mbtree=0:stitchable=1:sps-id={number}:level={sequence.level}"
    encoder.options = {
        "crf": str(settings.crf),
        "preset": settings.preset,
        "profile": parameter_sets.PROFILES[sequence.profile],
        "x264-params": params,
    }
    return encoder


def samples_of(pictures: list[Picture], timeline: Timeline, first: int, last: int) -> list[Sample]:
    """Pictures in decode order as they go into the mp4 of frames [first, last).

    Decode times are the display times in order, put back by the least constant number of frames
    that keeps each at or before its own display time.
    """
    order = timeline.pts[first:last]
    frame_of = {pts: i for i, pts in enumerate(order, start=first)}
    if sorted(picture.pts for picture in pictures) != order:
        raise ValueError("head, body and tail are not the clip's frames")
    delay = max(first + i - frame_of[p.pts] for i, p in enumerate(pictures))
    step = timeline.end_pts(first + 1) - order[0]
    decode_pts = [order[0] - step * (delay - i) for i in range(delay)] + order
    samples = []
    for picture, dts in zip(pictures, decode_pts, strict=False):
        frame = frame_of[picture.pts]
        packet = packet_of(b"".join(map(parameter_sets.with_length, picture.nals)), picture.pts)
        packet.is_keyframe = is_idr(picture.nals)
        duration = timeline.end_pts(frame + 1) - timeline.end_pts(frame)
        samples.append(Sample(packet, picture.pts, dts, duration))
    return samples
