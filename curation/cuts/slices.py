"""H.264 slice headers: an I picture that begins an open group is made an IDR picture.

Numbers in brackets are sections and tables of ITU-T H.264 (08/2021). Only headers are rewritten;
the entropy-coded data (CABAC) is copied. ValueError says that a slice does not allow it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from curation.cuts.parameter_sets import (
    DELIMITER,
    FILLER,
    IDR,
    PPS,
    SEI,
    SLICE,
    SPS,
    Bits,
    PictureSet,
    SequenceSet,
    escape,
    packed,
    read_picture_set,
    read_sequence_set,
    split_header,
    ue_text,
    unescape,
)

P_SLICES, I_SLICES = (0, 5), (2, 7)  # table 7-6
# Unlike x264's 0 and 1, so that two neighbouring IDR pictures never have the same (7.4.3).
IDR_PIC_ID = 2


@dataclass(frozen=True)
class Shift:
    """What is taken off every frame number and picture order count after an opened picture."""

    frame_num: int
    order: int


def is_idr(nals: list[bytes]) -> bool:
    return any(nal[0] & 31 == IDR for nal in nals)


def read_headers(extradata: bytes) -> Headers | None:
    """What reads the slices of a stream with this header; None unless it has one sequence set."""
    try:
        units = list(dict.fromkeys(split_header(extradata)))
        sequences = [read_sequence_set(nal) for nal in units if nal[0] & 31 == SPS]
        pictures = [read_picture_set(nal) for nal in units if nal[0] & 31 == PPS]
    except (ValueError, IndexError):
        return None
    by_id = {picture.id: picture for picture in pictures}
    if len(sequences) != 1 or not 0 < len(by_id) == len(pictures):
        return None
    known = {picture.sequence_id for picture in pictures} == {sequences[0].id}
    return Headers(sequences[0], by_id) if known else None


class Headers:
    """Reads and rewrites the slice headers (7.3.3) of a stream with one sequence set."""

    def __init__(self, sequence: SequenceSet, pictures: dict[int, PictureSet]) -> None:
        self.sequence = sequence
        self.pictures = pictures

    def picture(self, nals: list[bytes]) -> list[bytes]:
        """The NAL units of one picture that a clip keeps; ValueError for what is not one picture.

        Parameter sets inside the stream must repeat the header's: others could change with time.
        """
        known = {self.sequence.nal, *(p.nal for p in self.pictures.values())}
        kept = []
        for nal in nals:
            kind = nal[0] & 31
            if kind in (SPS, PPS) and nal not in known:
                raise ValueError("parameter sets change")
            if kind not in (SLICE, IDR, SEI, SPS, PPS, DELIMITER, FILLER):
                raise ValueError(f"NAL unit of type {kind}")
            if kind in (SLICE, IDR, SEI):
                kept.append(nal)
        own = [nal for nal in kept if nal[0] & 31 != SEI]
        starts = [nal[1:2] >= b"\x80" for nal in own]  # first_mb_in_slice is 0
        if sum(starts) != 1 or not starts[0] or len({nal[0] & 31 for nal in own}) != 1:
            raise ValueError("not one picture")
        return kept

    def opened(self, run: list[list[bytes]]) -> list[list[bytes]]:
        """A run of pictures with the first one turned into an IDR picture.

        Every picture up to the next IDR picture is renumbered; the picture data stays as it is.
        Raises ValueError where that cannot be.
        """
        shift: Shift | None = None
        out: list[list[bytes]] = []
        for i, nals in enumerate(itertools.takewhile(lambda nals: not is_idr(nals), run)):
            changed = []
            for nal in nals:
                if nal[0] & 31 == SEI:
                    changed.append(nal)
                    continue
                shift = shift or self.shift_of(nal)
                if i == 0:
                    changed.append(self.as_idr(nal))
                elif i == 1:
                    changed.append(self.after_idr(nal, shift))
                else:
                    changed.append(self.shifted(nal, shift))
            out.append(changed)
        return out + run[len(out) :]

    def opens(self, nals: list[bytes], after: list[bytes]) -> bool:
        """Whether a picture can be turned into an IDR picture, judged with the one after it."""
        try:
            self.opened([nals, after])
        except ValueError:
            return False
        return True

    def start(self, bits: Bits) -> tuple[int, PictureSet, int, int, int]:
        """Slice type, picture set, bit position of frame_num, frame_num, order lsb.

        `bits` stands behind them afterwards. Not for IDR slices.
        """
        bits.at = 8
        bits.ue()
        slice_type, picture = bits.ue(), self.pictures.get(bits.ue())
        if picture is None:
            raise ValueError("a slice with an unknown picture set")
        at = bits.at
        frame_num = bits.u(self.sequence.frame_num_bits)
        return slice_type, picture, at, frame_num, bits.u(self.sequence.order_bits)

    def shift_of(self, nal: bytes) -> Shift:
        """The shift that makes a picture's numbers those of an IDR picture."""
        _, _, _, frame_num, order = self.start(Bits(unescape(nal)))
        return Shift(frame_num, order)

    def numbers(self, frame_num: int, order: int, shift: Shift) -> str:
        """frame_num and pic_order_cnt_lsb less a shift, as bits; both are counted modulo."""
        frame_bits, order_bits = self.sequence.frame_num_bits, self.sequence.order_bits
        text = f"{(frame_num - shift.frame_num) % (1 << frame_bits):0{frame_bits}b}"
        if order_bits:
            text += f"{(order - shift.order) % (1 << order_bits):0{order_bits}b}"
        return text

    def shifted(self, nal: bytes, shift: Shift) -> bytes:
        """A slice with its numbers shifted; nothing else, and no length, changes."""
        data = unescape(nal)
        bits = Bits(data)
        _, _, at, frame_num, order = self.start(bits)
        first, last = at // 8, (bits.at + 7) // 8
        text = bits.text(8 * first, at) + self.numbers(frame_num, order, shift)
        text += bits.text(bits.at, 8 * last)
        return escape(data[:first] + packed(text, "") + data[last:])

    def as_idr(self, nal: bytes) -> bytes:
        """An I slice of an opened picture as an IDR slice."""
        bits = Bits(unescape(nal))
        slice_type, picture, at, _, _ = self.start(bits)
        if slice_type not in I_SLICES or not picture.cabac or not nal[0] >> 5 or bits.u(1):
            raise ValueError("not a plain I slice")
        text = bits.text(8, at) + self.numbers(0, 0, Shift(0, 0))[: self.sequence.frame_num_bits]
        text += ue_text(IDR_PIC_ID) + "0" * self.sequence.order_bits + "00"
        return bytes([nal[0] & 0xE0 | IDR]) + self.closed(bits, text, bits.at, picture, slice_type)

    def after_idr(self, nal: bytes, shift: Shift) -> bytes:
        """The slice of the P picture after an opened one, less the commands that clear the buffer.

        Raises ValueError unless it refers to the opened picture only and leaves no other picture
        before itself in the decoder's buffer: then no later picture can refer to one (8.2.5).
        """
        bits = Bits(unescape(nal))
        slice_type, picture, at, frame_num, order = self.start(bits)
        if slice_type not in P_SLICES or not picture.cabac or not nal[0] >> 5:
            raise ValueError("not a P slice that others refer to")
        numbers_end = bits.at
        self.require_one_reference(bits, picture, frame_num, shift.frame_num)
        marking = bits.at
        self.require_cleared_buffer(bits, frame_num, shift.frame_num)
        text = bits.text(8, at) + self.numbers(frame_num, order, shift)
        text += bits.text(numbers_end, marking) + "0"
        return nal[:1] + self.closed(bits, text, bits.at, picture, slice_type)

    def require_one_reference(
        self, bits: Bits, picture: PictureSet, frame_num: int, only: int
    ) -> None:
        """Read list sizes, reordering and weights (7.3.3.1, 7.3.3.2); all entries must be one."""
        num_refs = bits.ue() + 1 if bits.u(1) else picture.num_refs
        numbers, number, modulo = [], frame_num, 1 << self.sequence.frame_num_bits
        if bits.u(1):
            while (kind := bits.ue()) != 3:
                if kind > 1:
                    raise ValueError("a long-term reference")
                step = bits.ue() + 1
                number = (number + (step if kind else -step)) % modulo
                numbers.append(number)
        elif (only + 1) % modulo == frame_num:
            numbers.append(only)  # by default the newest comes first
        if len(numbers) < num_refs or set(numbers) != {only}:
            raise ValueError("other references")
        if picture.weighted:
            bits.skip(0, 0)
            for _ in range(num_refs):
                bits.skip(*(0, 0) if bits.u(1) else ())
                bits.skip(*(0, 0, 0, 0) if bits.u(1) else ())

    def require_cleared_buffer(self, bits: Bits, frame_num: int, only: int) -> None:
        """Read the marking commands (7.3.3.3); they must drop as many others as can be there."""
        dropped = set()
        if bits.u(1):
            while command := bits.ue():
                if command != 1:
                    raise ValueError("a long-term reference")
                dropped.add((frame_num - bits.ue() - 1) % (1 << self.sequence.frame_num_bits))
        if only in dropped or len(dropped) < self.sequence.num_ref_frames - 1:
            raise ValueError("the buffer may hold older pictures")

    def closed(self, bits: Bits, text: str, at: int, picture: PictureSet, slice_type: int) -> bytes:
        """A payload: new header bits, the header's rest from `at` on, the slice's data (7.3.4)."""
        bits.skip(*((0, 0) if slice_type in P_SLICES else (0,)))  # cabac_init_idc, slice_qp_delta
        if picture.deblocking and bits.ue() != 1:
            bits.skip(0, 0)
        text += bits.text(at, bits.at)
        return escape(packed(text, "1") + bits.data[(bits.at + 7) // 8 :])
