"""The H.264 pictures of a source, read without decoding: what each packet is, and runs of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import av

from curation.cuts import parameter_sets as sets
from curation.cuts.slices import Headers, Shift
from curation.frames import MediaError, Probe, Timeline, open_video, readable, video_stream

# Containers that stamp every frame and that we read by its packets.
CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"}
PIX_FMTS = {"yuv420p", "yuvj420p"}
PICTURE_NALS = {sets.SLICE, sets.IDR}


@dataclass(frozen=True)
class Picture:
    """One packet of the source; pictures are numbered in decode order."""

    pts: int
    size: int  # bytes
    is_idr: bool
    opens: bool  # an I picture that can be turned into an IDR picture


@dataclass
class Stream:
    """A source's H.264 stream: its pictures in decode order and its parameter sets."""

    length_size: int  # bytes before a NAL unit; 0: start codes
    extradata: bytes
    headers: Headers
    pictures: list[Picture] = field(default_factory=list)
    index_of: dict[int, int] = field(default_factory=dict)  # by PTS


def read_stream(path: str, probe: Probe) -> Stream | None:
    """The pictures of a source, or None when it is of a kind that is never joined."""
    if not (probe.upright_square and probe.codec == "h264" and probe.pix_fmt in PIX_FMTS):
        return None
    with open_video(path) as container:
        video = video_stream(container)
        if container.format.name not in CONTAINERS:
            return None
        try:
            stream = stream_of(video.codec_context.extradata or b"")
            before: list[bytes] = []
            for packet in readable(container.demux(video)):
                if packet.size:
                    before = add_picture(stream, packet, before)
        except (MediaError, ValueError):
            return None
    repeated = len(stream.index_of) != len(stream.pictures)
    return None if repeated or not stream.pictures else stream


def stream_of(extradata: bytes) -> Stream:
    """The parameter sets of a header; ValueError unless there is one sequence set."""
    if extradata[:1] == b"\x01":
        at, units, length_size = 5, [], (extradata[4] & 3) + 1
        for mask in (0x1F, 0xFF):
            count, at = extradata[at] & mask, at + 1
            for _ in range(count):
                size = int.from_bytes(extradata[at : at + 2])
                units.append(extradata[at + 2 : at + 2 + size])
                at += 2 + size
    else:
        units, length_size = list(sets.split(extradata, 0)), 0
    units = list(dict.fromkeys(units))
    sequences = [sets.read_sequence_set(n) for n in units if n[0] & 31 == sets.SPS]
    pictures = [sets.read_picture_set(n) for n in units if n[0] & 31 == sets.PPS]
    by_id = {p.id: p for p in pictures}
    if len(sequences) != 1 or len(by_id) != len(pictures) or not pictures:
        raise ValueError("not one sequence set, or none")
    if any(p.sequence_id != sequences[0].id for p in pictures):
        raise ValueError("a picture set without its sequence set")
    return Stream(length_size, extradata, Headers(sequences[0], by_id))


def picture_nals(stream: Stream, data: bytes) -> list[bytes]:
    """The NAL units of one picture that a clip keeps; ValueError for what is not one picture.

    Parameter sets inside the stream must repeat the header's: others could change with time.
    """
    headers = stream.headers
    known = {headers.sequence.nal, *(p.nal for p in headers.pictures.values())}
    kept = []
    for nal in sets.split(data, stream.length_size):
        kind = nal[0] & 31
        if kind in (sets.SPS, sets.PPS) and nal not in known:
            raise ValueError("parameter sets change")
        if kind in PICTURE_NALS or kind == sets.SEI:
            kept.append(nal)
        elif kind not in (
            sets.SPS,
            sets.PPS,
            sets.DELIMITER,
            sets.FILLER,
        ):
            raise ValueError(f"NAL unit of type {kind}")
    own = [n for n in kept if n[0] & 31 != sets.SEI]
    starts = [n[1] >> 7 for n in own]  # first_mb_in_slice is 0
    if sum(starts) != 1 or not starts[0] or len({n[0] & 31 for n in own}) != 1:
        raise ValueError("not one picture")
    return kept


def is_idr(nals: list[bytes]) -> bool:
    return any(nal[0] & 31 == sets.IDR for nal in nals)


def add_picture(stream: Stream, packet: av.Packet, before: list[bytes]) -> list[bytes]:
    """Note one more packet; `before` are the NAL units of an I picture that may open, or none.

    Whether one opens is told by the picture after it. Returns the next `before`.
    """
    if packet.pts is None or packet.has_sidedata("new_extradata"):
        raise ValueError("a packet without a time, or a new header")
    nals = picture_nals(stream, bytes(packet))
    pictures = stream.pictures
    if before:
        pictures[-1] = replace(pictures[-1], opens=can_open(stream.headers, before, nals))
    stream.index_of[packet.pts] = len(pictures)
    pictures.append(Picture(packet.pts, packet.size, is_idr(nals), opens=False))
    return nals if packet.is_keyframe and not is_idr(nals) else []


def opened(headers: Headers, run: list[list[bytes]]) -> list[list[bytes]]:
    """A run of pictures with the first one turned into an IDR picture.

    Every picture up to the next IDR picture is renumbered; the picture data stays as it is. Raises
    ValueError where that cannot be.
    """
    shift: Shift | None = None
    out: list[list[bytes]] = []
    for i, nals in enumerate(run):
        if is_idr(nals):
            break
        changed = []
        for nal in nals:
            if nal[0] & 31 == sets.SEI:
                changed.append(nal)
                continue
            shift = shift or headers.shift_of(nal)
            if i == 0:
                changed.append(headers.as_idr(nal))
            elif i == 1:
                changed.append(headers.after_idr(nal, shift))
            else:
                changed.append(headers.shifted(nal, shift))
        out.append(changed)
    return out + run[len(out) :]


def can_open(headers: Headers, nals: list[bytes], after: list[bytes]) -> bool:
    """Whether a picture can be turned into an IDR picture, judged with the one after it."""
    try:
        opened(headers, [nals, after])
    except ValueError:
        return False
    return True


def decodable_run(
    stream: Stream, timeline: Timeline, first: int, last: int
) -> tuple[int, int] | None:
    """The pictures that decode to frames [first, last) at least: from an IDR picture on."""
    wanted = [stream.index_of.get(pts) for pts in timeline.pts[first:last]]
    if None in wanted:
        return None
    known = [i for i in wanted if i is not None]
    for start in range(min(known), -1, -1):
        if stream.pictures[start].is_idr:
            return start, max(known) + 1
    return None


def read_run(path: str, stream: Stream, start: int, stop: int) -> list[bytes]:
    """The packets of pictures [start, stop), by a seek where it lands before them.

    Raises ValueError when the file's packets are not those that were counted.
    """
    for seek in (True, False):
        with open_video(path) as container:
            video = video_stream(container)
            if seek:
                container.seek(stream.pictures[start].pts, stream=video, any_frame=False)
            packets = (p for p in readable(container.demux(video)) if p.size)
            head = next(packets, None)
            at = stream.index_of.get(head.pts or 0, start + 1) if head else start + 1
            if head is None or at > start:
                continue
            found = list(itertools.islice(itertools.chain([head], packets), start - at, stop - at))
            expected = [(p.pts, p.size) for p in stream.pictures[start:stop]]
            if [(p.pts, p.size) for p in found] == expected:
                return [bytes(p) for p in found]
    raise ValueError("a seek does not find its packets")
