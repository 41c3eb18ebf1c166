"""Kept spans -> mp4 bytes: packets copied where that is exact, joined where most are, else encoded.

A clip's packets are exactly its displayed frames: no lead-in, no sound, upright square pixels. What
it shows is held against what the analysis saw (decode/signatures.py): of encoded clips the frames
that went into the encoder, of some copied and joined ones the picture that the body begins with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import av
import numpy as np

from curation.cuts.encodes import Clip, check_times, encode
from curation.cuts.joins import join
from curation.cuts.packets import mux, read_runs, read_source
from curation.cuts.planner import Plan, plan
from curation.decode.signatures import Signatures, check_same, signature_of
from curation.media.files import MediaError, open_clip, readable, video_stream
from curation.media.frames import Timeline
from curation.media.probes import Probe
from curation.pipelines import Cut
from curation.records import TRIED_AGAIN
from curation.scores.combing import FieldOrder

# Of copied packets so many bytes are decoded again at most, but for the first clip. Ours: keyframes
# of 1280x720 took 15 ms; all of them would be a tenth of the decode of examples/media/meadow.mp4.
COMPARED_SHARE = 1 / 64


def cut(
    path: str,
    probe: Probe,
    timeline: Timeline,
    signatures: Signatures,
    spans: list[tuple[int, int]],
    settings: Cut,
    beat: Callable[[], None],
    field_orders: Mapping[tuple[int, int], FieldOrder] | None = None,
) -> list[Clip | MediaError]:
    """Cut frames [first, last) of a video for every span, in order.

    `beat` is called as work advances. The spans in `field_orders` are deinterlaced, so encoded.
    Where a clip cannot be made, or shows other frames than the analysis saw, its place holds the
    MediaError, of class encode. Raises MediaError disk_full.
    """
    orders = field_orders or {}
    progressive = [span for span in spans if span not in orders]
    clips = copy_spans(path, probe, timeline, signatures, progressive, settings, beat)
    out: list[Clip | MediaError] = []
    for span in spans:
        try:
            seen = (path, probe, timeline, signatures)
            made = clips.get(span) or encode(*seen, *span, settings, beat, orders.get(span))
            out.append(made)
        except MediaError as error:
            if error.error_class in TRIED_AGAIN:
                raise
            out.append(error)  # of this clip alone
        beat()
    return out


def copy_spans(
    path: str,
    probe: Probe,
    timeline: Timeline,
    signatures: Signatures,
    spans: list[tuple[int, int]],
    settings: Cut,
    beat: Callable[[], None],
) -> dict[tuple[int, int], Clip]:
    """The clip of every span of which packets can be copied; two passes over the file."""
    clips: dict[tuple[int, int], Clip] = {}
    # What is behind the frames that were analysed may be damaged: the rest is encoded then.
    with contextlib.suppress(MediaError):
        source = read_source(path, probe, joins=settings.joins)
        if source is None:
            return {}
        plans = [p for span in sorted(set(spans)) if (p := plan(source, timeline, *span))]
        plans.sort(key=lambda p: p.packets)
        runs = read_runs(path, [p.packets for p in plans])
        budget = Budget()
        for planned, (stream, packets) in zip(plans, runs, strict=True):
            try:
                made = join(planned, packets, source, probe, timeline, signatures, settings, beat)
                data = mux(stream, *made)
                with open_clip(data, ignore_edits=True) as clip:  # of hidden packets too
                    shown = check_times(clip, timeline, *planned.span)
                    opening = shown[planned.body.first - planned.span[0]]
                    if budget.allows(len(data), opening.size, planned.is_copy):
                        check_opening(clip, opening, planned, signatures)
            except (MediaError, av.FFmpegError, ValueError):
                continue  # encoded whole then
            word = "copied" if planned.is_copy else "joined"
            clips[planned.span] = Clip(data, probe.width, probe.height, probe.codec, word)
            beat()
    return clips


class Budget:
    """Which clips' openings are decoded again: the first of each kind, then a share by bytes."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.num_decoded = 0
        self.kinds: set[bool] = set()

    def allows(self, clip_bytes: int, opening_bytes: int, is_copy: bool) -> bool:
        self.num_bytes += clip_bytes
        within = self.num_decoded + opening_bytes <= COMPARED_SHARE * self.num_bytes
        if is_copy in self.kinds and not within:
            return False
        self.kinds.add(is_copy)
        self.num_decoded += opening_bytes
        return True


def check_opening(
    container: av.container.InputContainer,
    opening: av.Packet,
    planned: Plan,
    signatures: Signatures,
) -> None:
    """Raise MediaError encode unless the packets that are copied begin with the picture analysed.

    It needs no other. What follows it is not decoded: the source's own packets, in their order,
    none of which needs one outside (planner.py).
    """
    decoder = video_stream(container).codec_context
    decoder.thread_count = 1
    frames = list(readable(iter([*decoder.decode(opening), *decoder.decode(None)])))
    first = planned.body.first
    found = np.stack([signature_of(frame) for frame in frames])
    check_same(found, signatures.of(first, first + 1), np.array([first - planned.span[0]]))
