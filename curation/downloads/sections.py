"""Of a remote file only what given spans need: whole groups of pictures at their own times.

A section is copied from a key frame that nothing before it is needed for up to another such one, so
that every picture in it is as it is in the whole file. The first group comes along, since times
count from the first picture, and the last one, which says how long the video is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import av
from av.stream import Discard

from curation.cuts.packets import IDR_TYPES
from curation.cuts.packets import Source as KeyPackets
from curation.downloads.connections import Guard, GuardedYoutubeDL
from curation.downloads.ranges import RemoteFile, WholeError
from curation.media.files import DAMAGE, video_stream
from curation.media.probes import declared_duration_s
from curation.sources import Span

# Demuxers by FFmpeg's names, and the muxer that keeps their times. Others have no index.
MUXERS = {"mov,mp4,m4a,3gp,3g2,mj2": "mp4", "matroska,webm": "matroska"}
FORMATS = "mov,matroska"
# In which a group of pictures is known to be closed: by the IDR picture, or by the codec.
CODECS = {*IDR_TYPES, "vp8", "vp9", "av1"}
# Before and behind a span. Ours: what looks for cuts sees half a second around them; and a seek,
# which goes by decoding times, may come so late as pictures are reordered.
MARGIN_S = 2.0
JOIN_S = 5.0  # between two sections: a jump spares less. Ours, a common distance of key frames
MAX_SHARE = 0.5  # of the video's time, and of the file's bytes. Ours: failing at it costs half more
MAX_OPEN = 4  # key frames in a row without a closed one. Ours: then mostly none is


def copy_sections(remote: RemoteFile, spans: Sequence[Span], path: str) -> int:
    """Write what `spans` need of a remote file's video to `path`; returns the number of sections.

    Sound is left out. Raises WholeError, and what the server's answers raise.
    """
    remote.most_bytes = int(MAX_SHARE * remote.num_bytes)
    try:
        # It may open nothing beside the file: no protocol has this name.
        options = {"protocol_whitelist": "none", "format_whitelist": FORMATS}
        with av.open(remote, "r", options=options, metadata_errors="replace") as container:
            number = copy(container, spans, path)
    except MemoryError:
        raise  # is of the machine
    except DAMAGE as error:
        if remote.failure:
            raise remote.failure from None
        raise WholeError(f"it is not read in sections: {type(error).__name__}: {error}") from None
    if remote.failure:  # passed over as if the file ended there
        raise remote.failure
    return number


def copy(container: av.container.InputContainer, spans: Sequence[Span], path: str) -> int:
    stream = checked_stream(container)
    duration_s = declared_duration_s(container, stream) or (container.duration or 0) / av.time_base
    inner = sections_s(spans, duration_s)
    base = stream.time_base
    assert base is not None
    muxer = MUXERS[container.format.name]
    reader = Reader(container, stream)
    with av.open(path, "w", format=muxer) as output:
        target = output.add_stream_from_template(stream, opaque=True)
        output.metadata.update(container.metadata)
        last_dts = write(output, target, reader.opening(), None)
        zero = reader.first
        for start_s, end_s in [*inner, (duration_s, None)]:
            start = zero + int(start_s / base)
            lead = int(MARGIN_S / base)
            stop = None if end_s is None else zero + int(end_s / base)
            section = reader.section(start, start + lead, stop)
            last_dts = write(output, target, section, last_dts)
    return len(inner)


def write(
    output: av.container.OutputContainer,
    target: av.VideoStream,
    packets: Iterable[av.Packet],
    last_dts: int | None,
) -> int | None:
    """Copy packets; returns the decoding time of the last one.

    Matroska stores none, and its demuxer does not know those behind a jump: there they repeat the
    last one, which its muxer allows and nobody reads.
    """
    for packet in packets:
        packet.dts = last_dts = last_dts if packet.dts is None else packet.dts
        packet.stream = target
        output.mux(packet)
    return last_dts


def checked_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video of a container; WholeError unless sections of it can be copied as they are."""
    if not container.streams.video:
        raise WholeError("it has no video stream")
    if container.streams.subtitles:
        raise WholeError("it has a text track, which is in all of it")
    stream = video_stream(container)
    codec: av.VideoCodecContext | None = stream.codec_context
    if codec is None or codec.codec.canonical_name not in CODECS:
        raise WholeError("its codec does not say which key frames need no picture before them")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    base = stream.time_base
    is_mp4 = MUXERS[container.format.name] == "mp4"
    if base is None or base.numerator != 1 or not (is_mp4 or base.denominator == 1000):
        raise WholeError("its times cannot be copied as they are")
    return stream


def sections_s(spans: Iterable[Span], duration_s: float) -> list[tuple[float, float]]:
    """What is copied for spans beside both ends of a video, as [start, end) in seconds, by time.

    Raises WholeError where that is no small part of it.

    >>> sections_s([Span(60, 62), Span(65, 70), Span(0.5, 3), Span(990, 2000)], 600)
    [(0.0, 5.0), (58.0, 72.0)]
    """
    out: list[tuple[float, float]] = []
    for span in sorted(spans, key=lambda span: span.start_s):
        start_s = max(0.0, span.start_s - MARGIN_S)
        end_s = min(duration_s, span.end_s + MARGIN_S)
        if start_s >= end_s:
            continue  # outside, which the whole file would tell as well
        if out and start_s - out[-1][1] < JOIN_S:
            start_s, end_s = out[-1][0], max(out.pop()[1], end_s)
        out.append((start_s, end_s))
    if sum(end_s - start_s for start_s, end_s in out) > MAX_SHARE * duration_s:
        raise WholeError("its spans need too much of it")
    return out


class Reader:
    """Reads closed groups of pictures of a video, each once, in their order.

    `first` and `last` are the earliest and latest time of all packets read, in its time base.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self.container = container
        self.stream = stream
        context = stream.codec_context
        codec = context.codec.canonical_name
        self.keys = (
            KeyPackets(codec, context.extradata or b"", None) if codec in IDR_TYPES else None
        )
        self.first = self.last = 0
        self.num_open = 0  # key frames since the last closed one

    def opening(self) -> Iterator[av.Packet]:
        """The first group of pictures, whatever it begins with."""
        for number, (pts, packet) in enumerate(self.packets()):
            if number and self.is_closed(packet):
                return
            self.first = min(self.first, pts) if number else pts
            self.last = max(self.last, pts) if number else pts
            yield packet

    def section(self, start: int, needed: int, stop: int | None) -> Iterator[av.Packet]:
        """The groups from `start` on, up to a picture at `stop` or later; None: up to the end.

        They begin at or before `needed`. What was read before is left out.
        """
        if stop is not None and self.last >= stop:
            return
        before, has_begun = self.last, False
        for pts, packet in self.seek(start, needed):
            is_closed = pts > before and self.is_closed(packet)
            if has_begun and is_closed and stop is not None and self.last >= stop:
                return
            has_begun |= is_closed
            if has_begun:
                self.last = max(self.last, pts)
                yield packet

    def seek(self, start: int, needed: int) -> Iterator[tuple[int, av.Packet]]:
        """The packets from a closed key frame on that is at `needed` or before."""
        at = start
        for _ in range(MAX_OPEN):
            self.container.seek(at, stream=self.stream)
            packets = self.packets()
            opening = next(packets, None)
            if opening and opening[0] <= needed and self.is_closed(opening[1]):
                return chain([opening], packets)
            at = min(at, opening[0] if opening else at) - 1
        raise WholeError("it has no key frame near that needs no picture before it")

    def packets(self) -> Iterator[tuple[int, av.Packet]]:
        """Those from here on, with their times."""
        for packet in self.container.demux(self.stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                raise WholeError("it has packets without a time, or that are not shown")
            yield packet.pts, packet

    def is_closed(self, packet: av.Packet) -> bool:
        """Whether nothing from a packet on needs an earlier one, nor is shown before one."""
        if packet.has_sidedata("new_extradata"):
            raise WholeError("its codec's parameters change")
        if not packet.is_keyframe or self.keys is None:
            return packet.is_keyframe
        self.keys.add(packet, [])
        if not self.keys.is_steady:
            raise WholeError("its codec's parameters change")
        closed = self.keys.packets[-1].is_idr
        self.num_open = 0 if closed else self.num_open + 1
        if self.num_open > MAX_OPEN:
            raise WholeError("its key frames need pictures before them")
        return closed


# -- inside yt-dlp


class SectionsYoutubeDL(GuardedYoutubeDL):
    """yt-dlp that fetches what `spans` need of a file where it can; without spans all of it.

    `note` says afterwards which of the two it was. Subtitles are left to texts.py.
    """

    def __init__(
        self,
        options: dict[str, Any],
        guard: Guard,
        spans: Sequence[Span],
        max_bytes_per_s: int | None,
        beat: Callable[[], None],
    ) -> None:
        self.spans = spans
        self.max_bytes_per_s = max_bytes_per_s
        self.beat = beat
        self.note: str | None = None
        super().__init__(options, guard)

    def dl(
        self, name: str, info: dict[str, Any], subtitle: bool = False, test: bool = False
    ) -> Any:
        """As yt-dlp's: fetch what `info` describes to the file `name`."""
        if not self.spans or subtitle or test:
            return super().dl(name, info, subtitle, test)
        try:
            self.note = self.fetch_sections(name, info)
            return True, True  # done, and just now
        except WholeError as why:
            Path(name).unlink(missing_ok=True)
            self.note = f"fetched whole, not in sections: {why}"
        self.guard.renew()  # what is thrown away is no part of the whole
        return super().dl(name, info, subtitle, test)

    def fetch_sections(self, name: str, info: dict[str, Any]) -> str:
        """Write the sections to `name`; returns what came, as a sentence. Raises WholeError."""
        protocol = info.get("protocol")
        if protocol not in ("http", "https") or info.get("fragments"):
            raise WholeError(f"it is no one file ({protocol})")
        if info.get("request_data"):
            raise WholeError("it is asked for by POST")
        headers = info.get("http_headers") or {}
        remote = RemoteFile(self, info["url"], headers, self.beat, self.max_bytes_per_s)
        number = copy_sections(remote, self.spans, name)
        came, whole = remote.came_bytes, remote.num_bytes
        return f"{number} sections fetched, {came:,} of {whole:,} bytes"

    def process_subtitles(self, *_: Any) -> None:
        """None are fetched beside the video: one that fails would fail it."""
        return
