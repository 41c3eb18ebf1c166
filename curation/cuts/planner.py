"""How a span of frames is made of the source's packets: what is copied, what decoded for an encode.

A clip is a head, a body and a tail. The body is a run of the source's packets that begins with an
IDR picture, or with an I picture that can be turned into one, and is unbroken in decode order, so
that none of its pictures refers to another outside it. Head and tail are the few frames left over;
a clip with neither is a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from curation.cuts.packets import Source
from curation.media.frames import Timeline

# A join must spare this share of encoding the whole clip. Decoding a frame costs about an eighth
# of encoding it (measured at 1280x720, x264 veryfast).
MIN_SPARED = 0.25
DECODE_COST = 0.125


@dataclass(frozen=True)
class Run:
    """Packets [start, stop) of a source, which decode to frames [first, last) at least."""

    first: int
    last: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """How a clip is made: the packets of its body as they are, those of the others decoded."""

    head: Run | None
    body: Run
    tail: Run | None
    is_copy: bool  # the source's packets are the clip, without a change

    @property
    def span(self) -> tuple[int, int]:
        """The frames [first, last) of the clip."""
        return (self.head or self.body).first, (self.tail or self.body).last

    @property
    def packets(self) -> tuple[int, int]:
        """The range [start, stop) of all packets that are needed."""
        runs = [run for run in (self.head, self.body, self.tail) if run]
        return min(run.start for run in runs), max(run.stop for run in runs)


def plan(source: Source, timeline: Timeline, first: int, last: int) -> Plan | None:
    """How to make frames [first, last) of packets, or None where that cannot be or spares little.

    Without headers that prove more, a clip is a copy or nothing.
    """
    if any(pts not in source.index_of for pts in timeline.pts[first:last]):
        return None
    body = largest_body(source, timeline, first, last)
    if body is None:
        return None
    opening = source.packets[body.start]
    if (body.first, body.last) == (first, last) and opening.is_keyframe and opening.is_idr:
        return Plan(None, body, None, is_copy=True)
    if source.headers is None:
        return None
    ends, cost = [], 0.0
    for start, stop in ((first, body.first), (body.last, last)):
        end = decodable_run(source, timeline, start, stop) if start < stop else None
        if start < stop and end is None:
            return None
        ends.append(end)
        cost += end.last - end.first + DECODE_COST * (end.stop - end.start) if end else 0
    is_cheap = cost <= (1 - MIN_SPARED) * (last - first)
    return Plan(ends[0], body, ends[1], is_copy=False) if is_cheap else None


def largest_body(source: Source, timeline: Timeline, first: int, last: int) -> Run | None:
    """The most of frames [first, last) that are a run of packets which needs no other.

    Of the packets after the first picture, in decode order, as many belong to it as leave no hole
    in the displayed frames. Without headers only frame `first` can be the first picture.
    """
    packets = source.packets
    frame_of = {pts: i for i, pts in enumerate(timeline.pts[first:last], start=first)}
    best: Run | None = None
    for frame in range(first, last if source.headers else first + 1):
        if best and last - frame <= best.last - best.first:
            break
        start = source.index_of[timeline.pts[frame]]
        if not (packets[start].is_idr or packets[start].opens):
            continue
        end = frame
        for stop in range(start, len(packets)):
            shown = frame_of.get(packets[stop].pts, -1)
            if shown < frame:
                break
            end = max(end, shown + 1)
            whole = end - frame == stop + 1 - start
            if whole and (best is None or end - frame > best.last - best.first):
                best = Run(frame, end, start, stop + 1)
    return best


def decodable_run(source: Source, timeline: Timeline, first: int, last: int) -> Run | None:
    """The packets that decode to frames [first, last) at least: from an IDR picture on."""
    wanted = [source.index_of[pts] for pts in timeline.pts[first:last]]
    for start in range(min(wanted), -1, -1):
        if source.packets[start].is_idr:
            return Run(first, last, start, max(wanted) + 1)
    return None
