"""Lists as data sets publish them: a layout is told by its columns, and read as if it had ours.

The columns are those that each data set's own page or loader names (docs/sources.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from curation.sources.lists.cells import RowError, is_nothing, list_in, seconds

Row = Mapping[str, Any]
# Under which the key of a video in a .json object comes; no published list has such a column.
VIDEO_KEY = "key of the object"
YOUTUBE = "https://www.youtube.com/watch?v="
# Of HD-VG's span times, in seconds: they are written to the millisecond. A frame that a count leads
# to may be shown that much before it.
SPAN_TICK_S = 0.001
# MSR-VTT's category.txt, by number.
MSRVTT_CATEGORIES = (
    *("music", "people", "gaming", "sports/actions", "news/events/politics", "education"),
    *("tv shows", "movie/comedy", "animation", "vehicles/autos", "howto", "travel"),
    *("science/technology", "animals/pets", "kids/family", "documentary", "food/drink"),
    *("cooking", "beauty/fashion", "advertisement"),
)


@dataclass(frozen=True)
class Layout:
    """The columns of a published list, and what of them is read."""

    name: str
    marks: tuple[str, ...]  # the columns that tell it
    columns: dict[str, str]  # our name: theirs, where a cell is read as it is
    uses: tuple[str, ...] = ()  # others of theirs that `cells` reads
    other: tuple[str, ...] = ()  # those that have a name of ours and say something else
    cells: Callable[[Row], dict[str, Any]] | None = None  # what it makes of them, by our names


def squeezed(name: str) -> str:
    """A column's name without case, blanks and what stands for them.

    >>> squeezed(" Upload-Date")
    'uploaddate'
    """
    return re.sub(r"[\s_\-]", "", name).casefold()


def layout_of(names: Iterable[str]) -> Layout | None:
    """The published layout that columns with these names are of."""
    there = {squeezed(name) for name in names}
    for layout in LAYOUTS:
        if there.issuperset(map(squeezed, layout.marks)):
            return layout
    return None


# -- what is made of their cells


@dataclass
class Cuts:
    """Cuts of one video with the captions of each, as `timestamp` and `caption` have them."""

    timestamp: list[list[Any]] = field(default_factory=list)
    caption: list[str | None] = field(default_factory=list)

    def add(self, start: Any, end: Any, caption: str | None = None) -> None:
        self.timestamp.append([start, end])
        self.caption.append(caption)

    def cells(self) -> dict[str, Any]:
        return {"timestamp": self.timestamp, "caption": self.caption}


def clip_cells(row: Row) -> dict[str, Any]:
    """HD-VILA's and HD-VG's `clip`: spans of a video, of HD-VG with scenes in each."""
    clips = row["clip"]
    if isinstance(clips, str):
        clips = list_in(clips)
    if isinstance(clips, dict):
        clips = list(clips.values())
    if not isinstance(clips, list) or not all(isinstance(clip, dict) for clip in clips):
        raise RowError("clips that are no list of spans", f"clip holds {str(row['clip'])[:60]!r}")
    cuts = Cuts()
    for clip in clips:
        start, end = pair(clip.get("span"), "span")
        scenes = clip.get("scene_split")
        if scenes is None:
            cuts.add(start, end, clip.get("caption"))
        for scene in scenes or []:
            ends = scene_span(start, end, scene.get("scene_cut"), clip.get("fps"))
            cuts.add(*ends, scene.get("caption"))
    return cuts.cells()


def scene_span(start: Any, end: Any, scene_cut: Any, fps: Any) -> tuple[Any, Any]:
    """An HD-VG scene in seconds of the video: frames [first, last) of its span; -1 is its end.

    Frames are counted from the span's first. Their loader leaves out the frame `first` itself; the
    duration that they give, (last - first) / fps, counts it, and so do we.
    """
    first, last = pair(scene_cut, "scene_cut")
    if last == -1 and first == 0:
        return start, end
    if not isinstance(fps, int | float) or not fps > 0:
        says = f"scene_cut {scene_cut} is in frames; it needs fps, not {fps!r}"
        raise RowError("scenes in frames without fps", says)
    from_s = seconds(start)
    begins_s = from_s + first / fps - SPAN_TICK_S if first else from_s
    return begins_s, end if last == -1 else from_s + last / fps - SPAN_TICK_S


def pair(cell: Any, name: str) -> tuple[Any, Any]:
    found = list_in(cell)
    if found is None or len(found) != 2:
        raise RowError(f"a {name} that is no [start, end]", f"{name} {cell!r} is no [start, end]")
    return found[0], found[1]


def lvd_cells(row: Row) -> dict[str, Any]:
    """LVD-2M's: a span of a YouTube video, or the whole of a WebVid one."""
    found = {"url": row.get("url") or row.get("contentUrl")}
    if not is_nothing(row.get("span")):
        found["start"], found["end"] = pair(row["span"], "span")
    elif not is_nothing(row.get("orig_span")):
        start, end = pair(row["orig_span"], "orig_span")
        found["start"], found["end"] = scene_span(start, end, row.get("scene_cut") or [0, -1], None)
    return found


def internvid_cells(row: Row) -> dict[str, Any]:
    video = row["YoutubeID"]
    return {"url": None if is_nothing(video) else f"{YOUTUBE}{video}"}


def msrvtt_cells(row: Row) -> dict[str, Any]:
    number = row.get("category")
    if isinstance(number, int) and 0 <= number < len(MSRVTT_CATEGORIES):
        return {"category": MSRVTT_CATEGORIES[number]}
    return {"category": number}


def own_cells(row: Row) -> dict[str, Any]:
    """Those of a list that vf-sources wrote: cuts with any number of captions each."""
    spans = row["spans"] or []
    return {"spans": [(s["start_s"], s["end_s"], s["captions"] or []) for s in spans]}


OWN = "vf-sources"
LAYOUTS = (
    Layout(OWN, ("url", "duration_s", "spans"), {}, ("spans",), cells=own_cells),
    Layout(
        "LVD-2M",
        ("key", "refined_caption", "raw_caption"),
        {"id": "video_id", "caption": "refined_caption"},
        ("url", "contentUrl", "span", "orig_span", "scene_cut"),
        cells=lvd_cells,
    ),
    Layout(
        "WebVid",
        ("videoid", "contentUrl", "name"),
        {"url": "contentUrl", "id": "videoid", "caption": "name", "duration_s": "duration"},
    ),
    Layout("Panda-70M", ("videoID", "url", "timestamp", "caption"), {"id": "videoID"}),
    # The key of each video in HD-VG's object comes under a name that no other list has.
    Layout("HD-VG", (VIDEO_KEY, "url", "clip"), {"id": VIDEO_KEY}, ("clip",), cells=clip_cells),
    Layout("HD-VILA", ("video_id", "url", "clip"), {"id": "video_id"}, ("clip",), cells=clip_cells),
    # Its video_id and id name a clip: several are of one video.
    Layout(
        "MSR-VTT",
        ("video_id", "url", "start time", "end time"),
        {"start": "start time", "end": "end time"},
        ("video_id", "category"),
        ("id",),
        msrvtt_cells,
    ),
    Layout(
        "OpenVid",
        ("video", "caption", "motion score", "camera motion"),
        {"url": "video", "duration_s": "seconds"},
    ),
    Layout(
        "InternVid",
        ("YoutubeID", "Start_timestamp", "End_timestamp"),
        {"id": "YoutubeID", "start": "Start_timestamp", "end": "End_timestamp"},
        ("YoutubeID",),
        cells=internvid_cells,
    ),
)
