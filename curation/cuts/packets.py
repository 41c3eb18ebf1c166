"""The packets of a source in decode order, read without decoding, and packets as an mp4."""

from __future__ import annotations

import collections
import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import av

from curation.cuts.parameter_sets import split
from curation.cuts.slices import Headers, read_headers
from curation.media.files import open_video, readable, stamps_decode_order, video_stream
from curation.media.probes import Probe

# Instantaneous decoder refresh pictures: H.264 table 7-1 type 5, H.265 table 7-1 types 19 and 20.
# By codec: the types, and the bits of a NAL unit's first byte that hold one.
IDR_TYPES = {"h264": ({5}, 0, 0x1F), "hevc": ({19, 20}, 1, 0x3F)}
# Parameter sets likewise: H.264 types 7 and 8, H.265 types 32 to 34.
SET_TYPES = {"h264": {7, 8}, "hevc": {32, 33, 34}}
# What is joined: containers that stamp every frame, 8-bit 4:2:0.
CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"}
PIX_FMTS = {"yuv420p", "yuvj420p"}


@dataclass(frozen=True, slots=True)
class Packet:
    """One picture of the source; times are in its time base."""

    pts: int
    dts: int | None
    duration: int | None
    is_keyframe: bool  # the container's word, which also marks open groups: they need older packets
    is_idr: bool  # nothing from here on needs an earlier packet
    opens: bool = False  # an I picture that can be turned into an IDR picture


@dataclass
class Source:
    """A stream of H.264 or HEVC: its packets, numbered in decode order."""

    codec: str
    extradata: bytes
    headers: Headers | None  # None: nothing is proven of its pictures, clips are copied whole
    packets: list[Packet] = field(default_factory=list)
    index_of: dict[int, int] = field(default_factory=dict)  # by PTS, if no other packet has it
    sets: list[bytes] = field(default_factory=list)  # parameter sets beside a keyframe
    is_steady: bool = True  # they never change: one header goes for every clip

    @property
    def length_size(self) -> int:
        """Bytes before a NAL unit that hold its length; 0: start codes (Annex B)."""
        if self.extradata[:1] != b"\x01":  # avcC and hvcC begin with their version
            return 0
        at = 4 if self.codec == "h264" else 21
        return (int.from_bytes(self.extradata[at : at + 1]) & 3) + 1

    def add(self, packet: av.Packet, before: list[bytes]) -> list[bytes]:
        """Note the next packet; `before` are the NAL units of an I picture that may open, or none.

        Whether one opens is told by the picture after it. Returns the next `before`.
        """
        if packet.has_sidedata("new_extradata"):
            self.is_steady = False
        if packet.pts is None:
            self.headers = None
        if packet.pts is None:
            return []
        nals: list[bytes] = []
        try:
            if packet.is_keyframe or self.headers:
                nals.extend(split(bytes(packet), self.length_size))
            kept = self.headers.picture(nals) if self.headers else []
        except ValueError:  # what was split before still tells of an IDR picture
            self.headers, kept = None, []
        types, shift, mask = IDR_TYPES[self.codec]
        in_band = [nal for nal in nals if nal[0] >> shift & mask in SET_TYPES[self.codec]]
        self.is_steady &= in_band in ([], self.sets or in_band)
        self.sets = self.sets or in_band
        is_idr = any(nal[0] >> shift & mask in types for nal in nals)
        if before and self.headers:
            self.packets[-1] = replace(self.packets[-1], opens=self.headers.opens(before, kept))
        self.packets.append(
            Packet(packet.pts, packet.dts, packet.duration, packet.is_keyframe, is_idr)
        )
        return kept if packet.is_keyframe and not is_idr else []


def read_source(path: str, probe: Probe, *, joins: bool) -> Source | None:
    """The packets of a video by one pass; None for what is never copied.

    H.264 headers are read only where clips may be joined. Raises MediaError corrupt.
    """
    if not probe.upright_square:
        return None
    with open_video(path) as container:
        stream = video_stream(container)
        codec, extradata = stream.codec_context.name, stream.codec_context.extradata or b""
        if codec not in IDR_TYPES or stamps_decode_order(container):
            return None
        joins &= codec == "h264" and probe.pix_fmt in PIX_FMTS
        joins &= container.format.name in CONTAINERS
        headers = read_headers(extradata) if joins else None
        source = Source(codec, extradata, headers)
        before: list[bytes] = []
        for packet in readable(container.demux(stream)):
            if packet.size:
                before = source.add(packet, before)
    if not source.is_steady:
        return None
    times = collections.Counter(packet.pts for packet in source.packets)
    source.index_of = {p.pts: i for i, p in enumerate(source.packets) if times[p.pts] == 1}
    if len(source.index_of) < len(source.packets):
        source.headers = None
    return source


def read_runs(
    path: str, runs: Iterable[tuple[int, int]]
) -> Iterator[tuple[av.VideoStream, list[av.Packet]]]:
    """The packets [start, stop) of every run, with their stream, by one pass.

    Runs are sorted; where they overlap they share packets. Raises MediaError corrupt.
    """
    with open_video(path) as container:
        stream = video_stream(container)
        packets = (p for p in readable(container.demux(stream)) if p.pts is not None and p.size)
        at, held = 0, collections.deque[av.Packet]()
        for start, stop in runs:
            while at < start:
                held.popleft() if held else next(packets, None)
                at += 1
            held.extend(itertools.islice(packets, max(0, stop - at - len(held))))
            yield stream, list(itertools.islice(held, stop - start))


@dataclass(frozen=True)
class Sample:
    """A packet as it goes into an mp4; times are in the source's time base."""

    packet: av.Packet
    pts: int
    dts: int | None
    duration: int | None


def mux(stream: av.VideoStream, samples: list[Sample], extradata: bytes | None = None) -> bytes:
    """Samples in decode order as an mp4 of a source's stream whose first frame is at 0.

    `extradata` is the header of the mp4; None: the stream's own.
    """
    start = min(sample.pts for sample in samples)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as output:
        target = output.add_stream_from_template(stream)
        if extradata is not None:
            target.codec_context.extradata = extradata
        for sample in samples:
            packet = sample.packet  # of other clips too: the muxer changes its times
            packet.pts = sample.pts - start
            packet.dts = None if sample.dts is None else sample.dts - start
            packet.duration = sample.duration
            packet.time_base = stream.time_base  # type: ignore[assignment]
            packet.stream = target
            output.mux(packet)
    return buffer.getvalue()
