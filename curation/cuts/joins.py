"""Clips of which most pictures are the source's own: copied packets between encoded ends, in H.264.

A clip is a head, a body and a tail. The body is a run of the source's packets that begins with an
IDR picture, or with an I picture that can be turned into one, and is unbroken in decode order, so
that none of its pictures refers to another outside it. Head and tail are the few frames left over,
encoded with an IDR picture first and with parameter sets of their own ids, so that both kinds stand
beside each other in the mp4's header. What is not proven from the headers is not joined.
"""

from __future__ import annotations

import collections
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.video.frame import PictureType

from curation.cuts import parameter_sets
from curation.cuts.pictures import (
    PICTURE_NALS,
    Stream,
    decodable_run,
    is_idr,
    opened,
    picture_nals,
    read_run,
    read_stream,
)
from curation.frames import MediaError, Probe, Timeline, open_video, video_stream
from curation.pipelines import Cut

# A join must spare this share of encoding the whole clip. Decoding a frame costs about an eighth
# of encoding it (measured at 1280x720, x264 veryfast).
MIN_SPARED = 0.25
DECODE_COST = 0.125


@dataclass(frozen=True)
class Join:
    """How frames [first, last) are made: pictures [start, stop) hold frames [body, tail)."""

    first: int
    body: int
    tail: int
    last: int
    start: int
    stop: int


def join_spans(
    path: str,
    probe: Probe,
    timeline: Timeline,
    spans: list[tuple[int, int]],
    settings: Cut,
    beat: Callable[[], None],
) -> dict[tuple[int, int], bytes]:
    """The mp4 of every span [first, last) of frames that is better joined than encoded whole."""
    stream = read_stream(path, probe) if spans else None
    done: dict[tuple[int, int], bytes] = {}
    for span in spans if stream else []:
        assert stream is not None
        planned = plan(stream, timeline, *span)
        if planned:
            try:
                done[span] = make(path, probe, timeline, stream, planned, settings, beat)
            except (MediaError, av.FFmpegError, ValueError):
                continue  # encoded whole then
        beat()
    return done


def plan(stream: Stream, timeline: Timeline, first: int, last: int) -> Join | None:
    """The join of frames [first, last) with the largest body, or None where it spares too little.

    Of the packets after the body's first picture, in decode order, as many belong to it as leave
    no hole in the displayed frames.
    """
    index_of, pictures = stream.index_of, stream.pictures
    frame_of = {pts: i for i, pts in enumerate(timeline.pts[first:last], start=first)}
    best: Join | None = None
    for frame in range(first, last):
        start = index_of.get(timeline.pts[frame])
        if start is None:
            return None
        if best and last - frame <= best.tail - best.body:
            break
        if not (pictures[start].is_idr or pictures[start].opens):
            continue
        end = frame
        for stop in range(start, len(pictures)):
            shown = frame_of.get(pictures[stop].pts, -1)
            if shown < frame:
                break
            end = max(end, shown + 1)
            whole = end - frame == stop + 1 - start
            if whole and (best is None or end - frame > best.tail - best.body):
                best = Join(first, frame, end, last, start, stop + 1)
    return best if best and spares(stream, timeline, best) else None


def spares(stream: Stream, timeline: Timeline, join: Join) -> bool:
    """Whether a join costs enough less than encoding all of its frames."""
    cost = float(join.body - join.first + join.last - join.tail)
    for first, last in ((join.first, join.body), (join.tail, join.last)):
        if first < last:
            run = decodable_run(stream, timeline, first, last)
            if run is None:
                return False
            cost += DECODE_COST * (run[1] - run[0])
    return cost <= (1 - MIN_SPARED) * (join.last - join.first)


# -- joining


@dataclass(frozen=True)
class Sample:
    """One picture as it goes into the mp4."""

    pts: int  # of the source
    is_idr: bool
    nals: list[bytes]


@dataclass(frozen=True)
class End:
    """An encoded head or tail in decode order, with its own parameter sets."""

    sequence: bytes
    picture: bytes
    samples: list[Sample]


def make(
    path: str,
    probe: Probe,
    timeline: Timeline,
    stream: Stream,
    join: Join,
    settings: Cut,
    beat: Callable[[], None],
) -> bytes:
    """The mp4 of a planned join. Raises ValueError when a condition turns out not to hold."""
    body = [picture_nals(stream, data) for data in read_run(path, stream, join.start, join.stop)]
    if not stream.pictures[join.start].is_idr:
        body = opened(stream.headers, body)
    pts = [picture.pts for picture in stream.pictures[join.start : join.stop]]
    samples = [Sample(p, is_idr(nals), nals) for p, nals in zip(pts, body, strict=True)]
    ends = {}
    for first, last in ((join.first, join.body), (join.tail, join.last)):
        if first < last:
            frames = decode_end(path, timeline, stream, first, last, beat)
            ends[first] = encode_end(frames, timeline.time_base, probe, stream, settings)
    sets = {(end.sequence, end.picture) for end in ends.values()}
    if len(sets) > 1:
        raise ValueError("head and tail need different parameter sets")
    for first, end in ends.items():
        samples = end.samples + samples if first == join.first else samples + end.samples
    headers = stream.headers
    config = parameter_sets.configuration(
        [headers.sequence.nal, *(sequence for sequence, _ in sets)],
        [*(p.nal for p in headers.pictures.values()), *(picture for _, picture in sets)],
    )
    return mux(path, timeline, join, samples, config)


def decode_end(
    path: str,
    timeline: Timeline,
    stream: Stream,
    first: int,
    last: int,
    beat: Callable[[], None],
) -> Iterator[av.VideoFrame]:
    """Frames [first, last), decoded from the nearest IDR picture before them.

    Raises ValueError when not exactly these come out.
    """
    run = decodable_run(stream, timeline, first, last)
    if run is None:
        raise ValueError("no IDR picture before these frames")
    decoder = av.CodecContext.create("h264", "r")
    decoder.extradata = stream.extradata
    data = read_run(path, stream, *run)
    stamps = [picture.pts for picture in stream.pictures[run[0] : run[1]]]
    waiting = collections.deque(timeline.pts[first:last])
    for packet in [*map(packet_of, data, stamps), None]:
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
    packet = av.Packet(data)
    packet.pts = pts
    return packet


def encode_end(
    frames: Iterator[av.VideoFrame],
    time_base: Fraction,
    probe: Probe,
    stream: Stream,
    settings: Cut,
) -> End:
    """Encode frames so that they can stand beside the source's own pictures.

    Raises ValueError when they cannot.
    """
    sequence = stream.headers.sequence
    first = next(frames)
    encoder = open_encoder(first, time_base, probe, stream, settings)
    samples = []
    for frame in itertools.chain([first], frames, [None]):
        for packet in encoder.encode(frame):
            nals = [n for n in parameter_sets.split(bytes(packet), 0) if n[0] & 31 in PICTURE_NALS]
            samples.append(Sample(packet.pts or 0, is_idr(nals), nals))
    own = {nal[0] & 31: nal for nal in parameter_sets.split(encoder.extradata or b"", 0)}
    encoded = parameter_sets.read_sequence_set(own[parameter_sets.SPS])
    same = (encoded.geometry, encoded.profile) == (sequence.geometry, sequence.profile)
    if not same or not samples[0].is_idr:
        raise ValueError("the encoder's stream does not go with the source's")
    return End(encoded.with_buffers_of(sequence), own[parameter_sets.PPS], samples)


def open_encoder(
    first: av.VideoFrame, time_base: Fraction, probe: Probe, stream: Stream, settings: Cut
) -> av.VideoCodecContext:
    """An encoder of the source's profile, level and colours, with parameter sets of a free id.

    Without B-frames, so that decode order is display order.
    """
    sequence = stream.headers.sequence
    taken = {sequence.id, *stream.headers.pictures}
    number = next(i for i in range(1, 32) if i not in taken)
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height = first.width, first.height
    encoder.pix_fmt = first.format.name
    encoder.time_base = time_base
    encoder.framerate = Fraction(probe.fps).limit_denominator(100_000)
    encoder.thread_count = 1  # for the reason in clips.h264
    for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
        setattr(encoder, tag, getattr(first, tag))
    encoder.flags |= av.codec.context.Flags.global_header
    encoder.options = {
        "crf": str(settings.crf),
        "preset": settings.preset,
        "profile": parameter_sets.PROFILES[sequence.profile],
        "x264-params": f"bframes=0:ref=1:stitchable=1:sps-id={number}:level={sequence.level}",
    }
    return encoder


def mux(path: str, timeline: Timeline, join: Join, samples: list[Sample], config: bytes) -> bytes:
    """Samples in decode order as an mp4 whose first frame is at 0.

    Decode times are the display times in order, put back by the least constant number of frames
    that keeps each at or before its own display time.
    """
    order = timeline.pts[join.first : join.last]
    rank = {pts: i for i, pts in enumerate(order)}
    if sorted(s.pts for s in samples) != order:
        raise ValueError("head, body and tail are not the clip's frames")
    delay = max(i - rank[sample.pts] for i, sample in enumerate(samples))
    step = timeline.end_pts(join.first + 1) - order[0]
    decode_pts = [order[0] - step * (delay - i) for i in range(delay)] + order
    buffer = io.BytesIO()
    options = {"fflags": "+bitexact"}
    with open_video(path) as source, av.open(buffer, "w", format="mp4", options=options) as output:
        target = output.add_stream_from_template(video_stream(source))
        target.codec_context.extradata = config
        for sample, dts in zip(samples, decode_pts, strict=False):
            packet = packet_of(
                b"".join(map(parameter_sets.with_length, sample.nals)), sample.pts - order[0]
            )
            packet.dts = dts - order[0]
            frame = join.first + rank[sample.pts]
            packet.duration = timeline.end_pts(frame + 1) - timeline.end_pts(frame)
            packet.is_keyframe = sample.is_idr
            packet.time_base = timeline.time_base
            packet.stream = target
            output.mux(packet)
    return buffer.getvalue()
