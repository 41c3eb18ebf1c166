"""A kept clip against its own row and against the small pictures that were kept of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import av
import cv2
import numpy as np

from curation.decode.scenes import analysis_size
from curation.decode.signatures import signature
from curation.media.files import MediaError, open_clip, readable
from curation.media.pictures import small_pictures

# How far the nearest frame of a clip may be from a preview of it, in the measures of
# decode/signatures.py, grey levels. Measured: 37 clips of 11 real videos at most 0.5 and 3, of tiny
# GIFs in strong colours, which 4:2:0 shows otherwise, 2.0 and 10; two bad seeks into MPEG-4 at
# least 5.2 and 31, 0.8 and 16.
MAX_MEAN = 3.0
MAX_FIELD = 12.0


def check_clip(row: dict[str, Any], previews: Sequence[bytes]) -> Iterator[str]:
    """A clip's media against its row: packets, frames, size, times, no sound, the same pictures.

    `previews` are the JPEGs that its ledger row has of it; they came from another decode.
    """
    data = (row["clip"] or {}).get("bytes")
    if not data:
        yield "it has no media"
        return
    try:
        with open_clip(data, ignore_edits=True) as container:
            stored = sum(1 for p in readable(container.demux(video=0)) if p.size)
        with open_clip(data) as container:
            if container.streams.audio:
                yield "it has an audio stream"
            codec = container.streams.video[0].codec_context.name
            seen = [
                (f.time, f.width, f.height, looks(f)) for f in readable(container.decode(video=0))
            ]
    except (MediaError, IndexError) as error:
        yield f"it does not decode: {error}"
        return
    if not stored == len(seen) == row["num_frames"]:
        yield f"{stored} packets, {len(seen)} frames, num_frames {row['num_frames']}"
        return
    if codec != row["codec"]:
        yield f"its codec is {codec}, the row says {row['codec']}"
    sizes = {(width, height) for _, width, height, _ in seen}
    if sizes != {(row["width"], row["height"])}:
        yield f"pictures of {sizes}, the row says {row['width']}x{row['height']}"
    yield from check_times([time_s for time_s, *_ in seen], row)
    yield from check_pictures(np.stack([found for *_, found in seen]), previews)


def looks(frame: av.VideoFrame) -> np.ndarray:
    """The signature of a frame by way of colour, as its preview was made: strong colours clip."""
    small, _, _ = small_pictures(frame, analysis_size(frame.width, frame.height))
    return signature(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), is_full_range=True)


def check_times(times_s: list[float], row: dict[str, Any]) -> Iterator[str]:
    """The times of a clip's frames against its row."""
    duration_s, end_s = row["duration_s"], row["end_s"]
    frame_s = duration_s / row["num_frames"]
    if abs(times_s[0]) > 1e-3 or times_s[-1] >= duration_s + frame_s / 2:
        yield f"frames from {times_s[0]:.3f} to {times_s[-1]:.3f} s of {duration_s:.3f}"
    if abs(end_s - row["start_s"] - duration_s) > 1e-3:
        yield f"{row['start_s']:.3f} to {end_s:.3f} s are no {duration_s:.3f} s"


def check_pictures(found: np.ndarray, previews: Sequence[bytes]) -> Iterator[str]:
    """Whether every preview is a picture of the clip; `found` are its signatures [N, 8, 8]."""
    for number, jpeg in enumerate(previews, 1):
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            yield f"preview {number} is no JPEG"
            continue
        wanted = signature(picture, is_full_range=True).astype(np.int16)
        apart = np.abs(found - wanted).reshape(len(found), -1)
        nearest = int(np.argmin(apart.mean(axis=1)))
        mean, worst = apart[nearest].mean(), apart[nearest].max()
        if mean > MAX_MEAN or worst > MAX_FIELD:
            yield (
                f"it shows other pictures than were analysed: no frame is nearer to preview "
                f"{number} than {mean:.1f} grey levels, {worst} where most"
            )
            return
