"""H.264 NAL units and parameter sets, as far as cutting without decoding needs them.

Section and table numbers are those of ITU-T H.264 (08/2021). Whatever is out of the ordinary
(fields, long-term references, slice groups, scaling lists, ...) raises ValueError: such a video is
not taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Table 7-1.
SLICE, IDR, SEI, SPS, PPS, DELIMITER, FILLER = 1, 5, 6, 7, 8, 9, 12
PROFILES = {66: "baseline", 77: "main", 100: "high"}  # A.2


class Bits:
    """Reads a NAL unit's payload bit by bit; `at` is the next bit's position."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def u(self, width: int) -> int:
        """An unsigned number of `width` bits."""
        end = self.at + width
        if end > 8 * len(self.data):
            raise ValueError("the NAL unit ends too early")
        first, last = self.at // 8, (end + 7) // 8
        self.at = end
        return int.from_bytes(self.data[first:last]) >> (8 * last - end) & ((1 << width) - 1)

    def ue(self) -> int:
        """An unsigned Exp-Golomb number (9.1)."""
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def skip(self, *widths: int) -> None:
        """Pass over numbers of so many bits, or Exp-Golomb ones where the width is 0."""
        for width in widths:
            if width:
                self.u(width)
            else:
                self.ue()

    def text(self, start: int, stop: int) -> str:
        """Bits [start, stop) as a string of 0 and 1."""
        return f"{Bits(self.data, start).u(stop - start):0{stop - start}b}" if stop > start else ""


def ue_text(value: int) -> str:
    """A number in Exp-Golomb code as a string of 0 and 1."""
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def packed(bits: str, fill: str) -> bytes:
    """A string of 0 and 1 as bytes, the last one filled up with `fill`."""
    bits += fill * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)


def unescape(nal: bytes) -> bytes:
    """A NAL unit without its emulation prevention bytes (7.3.1)."""
    return nal.replace(b"\x00\x00\x03", b"\x00\x00")


def escape(payload: bytes) -> bytes:
    """A NAL unit with the emulation prevention bytes that it needs (7.4.1)."""
    return re.sub(rb"\x00\x00(?=[\x00-\x03]|\Z)", b"\x00\x00\x03", payload)


def split(data: bytes, length_size: int) -> Iterator[bytes]:
    """The NAL units of a packet: with lengths of so many bytes, or with start codes for 0."""
    if not length_size:
        for nal in re.split(rb"\x00\x00\x01", data)[1:]:
            if nal := nal.rstrip(b"\x00"):  # zeros belong to the next start code (B.1.1)
                yield nal
        return
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + length_size])
        at += length_size
        if not 0 < size <= len(data) - at:
            raise ValueError("a NAL unit goes on behind its packet")
        yield data[at : at + size]
        at += size


def split_header(extradata: bytes) -> Iterator[bytes]:
    """The parameter sets of a stream's header: an mp4's (as `configuration`) or start codes."""
    if extradata[:1] != b"\x01":
        yield from split(extradata, 0)
        return
    at = 5
    for mask in (0x1F, 0xFF):
        count, at = extradata[at] & mask, at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2])
            yield extradata[at + 2 : at + 2 + size]
            at += 2 + size


def with_length(nal: bytes) -> bytes:
    """A NAL unit as it stands in an mp4 of ours."""
    return len(nal).to_bytes(4) + nal


@dataclass(frozen=True)
class SequenceSet:
    """What a sequence parameter set says (7.3.2.1.1, E.1.1)."""

    nal: bytes
    id: int
    profile: int
    level: int
    frame_num_bits: int
    order_bits: int  # of pic_order_cnt_lsb; 0: frames are displayed in decode order
    num_ref_frames: int
    geometry: tuple[int, ...]  # width and height in macroblocks, cropping
    num_reorder: int
    num_buffered: int
    reorder_at: int  # bit position of the last two

    def with_buffers_of(self, other: SequenceSet) -> bytes:
        """This set with another's promises about reordering, so that decoders need not change."""
        bits = Bits(unescape(self.nal)).text(0, self.reorder_at)
        bits += ue_text(other.num_reorder) + ue_text(other.num_buffered) + "1"
        return escape(packed(bits, "0"))


@dataclass(frozen=True)
class PictureSet:
    """What a picture parameter set says (7.3.2.2)."""

    nal: bytes
    id: int
    sequence_id: int
    cabac: bool
    num_refs: int  # of list 0, when a slice does not say
    weighted: bool  # P slices
    deblocking: bool  # slices say how they are deblocked


def read_sequence_set(nal: bytes) -> SequenceSet:
    """Read a sequence parameter set of a progressive 8-bit 4:2:0 stream."""
    bits = Bits(unescape(nal), at=8)
    profile, _, level, number = bits.u(8), bits.u(8), bits.u(8), bits.ue()
    if profile not in PROFILES:
        raise ValueError(f"profile {profile}")
    high = (bits.ue(), bits.ue(), bits.ue(), bits.u(1), bits.u(1)) if profile == 100 else None
    if high not in (None, (1, 0, 0, 0, 0)):
        raise ValueError("not 8-bit 4:2:0, or with scaling lists")
    frame_num_bits, order_type = bits.ue() + 4, bits.ue()
    if order_type == 1:
        raise ValueError("picture order of type 1")
    order_bits = bits.ue() + 4 if order_type == 0 else 0
    num_ref_frames, gaps, columns, rows = bits.ue(), bits.u(1), bits.ue() + 1, bits.ue() + 1
    if gaps or not bits.u(1):
        raise ValueError("frame number gaps, or fields")
    bits.skip(1)  # direct_8x8_inference_flag
    crop = tuple(bits.ue() for _ in range(4)) if bits.u(1) else (0, 0, 0, 0)
    if not bits.u(1):
        raise ValueError("no word on reordering")
    skip_to_restriction(bits)
    reorder_at = bits.at
    return SequenceSet(
        *(nal, number, profile, level, frame_num_bits, order_bits, num_ref_frames),
        *((columns, rows, *crop), bits.ue(), bits.ue(), reorder_at),
    )


def skip_to_restriction(bits: Bits) -> None:
    """From the start of the usability information to max_num_reorder_frames (E.1.1)."""
    if bits.u(1) and bits.u(8) == 255:  # aspect ratio
        bits.skip(32)
    if bits.u(1):  # overscan
        bits.skip(1)
    if bits.u(1):  # format, range
        bits.skip(4)
        if bits.u(1):  # colours
            bits.skip(24)
    if bits.u(1):  # chroma location
        bits.skip(0, 0)
    if bits.u(1):  # timing
        bits.skip(32, 32, 1)
    models = 0
    for _ in range(2):
        if bits.u(1):
            skip_buffer_model(bits)
            models += 1
    if models:
        bits.skip(1)
    bits.skip(1)  # pic_struct_present_flag
    if not bits.u(1):
        raise ValueError("no word on reordering")
    bits.skip(1, 0, 0, 0, 0)


def skip_buffer_model(bits: Bits) -> None:
    """Pass over hrd_parameters (E.1.2)."""
    count = bits.ue() + 1
    bits.skip(4, 4, *(0, 0, 1) * count, 5, 5, 5, 5)


def read_picture_set(nal: bytes) -> PictureSet:
    """Read a picture parameter set without slice groups and redundant pictures."""
    bits = Bits(unescape(nal), at=8)
    number, sequence_id, cabac, bottom, groups = (
        bits.ue(),
        bits.ue(),
        bits.u(1),
        bits.u(1),
        bits.ue(),
    )
    num_refs, _, weighted, _ = bits.ue() + 1, bits.ue(), bits.u(1), bits.u(2)
    bits.skip(0, 0, 0)  # quantisers
    deblocking, _, redundant = bits.u(1), bits.u(1), bits.u(1)
    if bottom or groups or redundant:
        raise ValueError("field order, slice groups or redundant pictures")
    return PictureSet(
        nal, number, sequence_id, bool(cabac), num_refs, bool(weighted), bool(deblocking)
    )


def configuration(sequences: list[bytes], pictures: list[bytes]) -> bytes:
    """An mp4's AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1); lengths take 4 bytes."""
    first = sequences[0]
    flags = first[2]
    for nal in sequences[1:]:
        flags &= nal[2]
    out = bytes([1, first[1], flags, max(nal[3] for nal in sequences), 0xFF])
    out += bytes([0xE0 | len(sequences)])
    out += b"".join(len(nal).to_bytes(2) + nal for nal in sequences)
    out += bytes([len(pictures)]) + b"".join(len(nal).to_bytes(2) + nal for nal in pictures)
    return out + (b"\xfd\xf8\xf8\x00" if first[1] == 100 else b"")  # 4:2:0, 8 bit
