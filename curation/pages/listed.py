"""Every clip as the page's list has it: text and scores, thumbnails in parts, some media."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.pages.facts import Facts
from curation.pages.pictures import decoded, lit, stored
from curation.pages.sheets import by_chance
from curation.shards import KEPT, Dataset

# All ours. A page of 10,000 clips is about 20 MB and opens in a second or two (docs/report.md).
MAX_LISTED = 20_000  # clips listed inside the page; beyond that vf-why looks them up
MAX_THUMBNAILS = 10_000
PART_CLIPS = 200  # whose thumbnails the page reads together, when one of them comes into view
THUMBNAIL_WIDTH_PX = 96
THUMBNAIL_QUALITY = 50
MAX_TEXT = 300  # characters of a caption or an address; what is longer is cut
DIGITS = 4  # of a score, significant


@dataclass(frozen=True)
class Listed:
    """What the page's script reads.

    index: the names of scores and, of each clip, [id, decision, rule or error class, value,
        source, start, end, caption, scores...]; `playing` numbers the clips whose media are here.
    parts: base64 JPEGs of PART_CLIPS clips each, "" where there is none.
    media: mp4 in base64 by the clip's number in `index`.
    """

    index: dict[str, Any]
    parts: list[list[str]]
    media: dict[int, str]


def listed(dataset: Dataset, found: Facts, num_playing: int) -> Listed:
    """The first MAX_LISTED clips in ledger order; media of `num_playing` kept ones by chance."""
    clips = found.clips.slice(0, MAX_LISTED)
    scores = [name for name in found.score_names if clips[name].null_count < len(clips)]
    numbers = {clip_id: n for n, clip_id in enumerate(clips["clip_id"].to_pylist())}
    playing = by_chance(clips.filter(pc.equal(clips["decision"], KEPT)), num_playing)
    media = {
        numbers[clip_id]: base64.b64encode(data).decode()
        for clip_id, data in media_of(dataset, playing["clip_id"].to_pylist()).items()
    }
    index = {"scores": scores, "part": PART_CLIPS, "playing": sorted(media)}
    index["rows"] = [listed_row(row, scores) for row in clips.to_pylist()]
    return Listed(index, thumbnails(dataset, list(numbers)[:MAX_THUMBNAILS]), media)


def listed_row(row: dict[str, Any], scores: Sequence[str]) -> list[Any]:
    return [
        row["clip_id"], row["decision"], row["rule"] or row["error_class"] or "",
        rounded(row["value"]), row["source_url"][:MAX_TEXT], row["start_s"], row["end_s"],
        (row["caption"] or "")[:MAX_TEXT], *[rounded(row[name]) for name in scores],
    ]  # fmt: skip


def rounded(value: float | None) -> float | None:
    """None for what JSON has no word for, too."""
    return float(f"{value:.{DIGITS}g}") if value is not None and np.isfinite(value) else None


def thumbnails(dataset: Dataset, clip_ids: Sequence[str]) -> list[list[str]]:
    """One small JPEG of each clip, in parts."""
    small = {
        row["clip_id"]: thumbnail(row["preview"][lit(row["preview"])])
        for row in stored(dataset, clip_ids, most=None)
        if row["preview"]
    }
    starts = range(0, len(clip_ids), PART_CLIPS)
    return [[small.get(c, "") for c in clip_ids[n : n + PART_CLIPS]] for n in starts]


def thumbnail(jpeg: bytes) -> str:
    """A preview made smaller, in base64; "" for what is no picture."""
    picture = decoded(jpeg)
    if picture is None:
        return ""
    height = max(1, round(picture.shape[0] * THUMBNAIL_WIDTH_PX / picture.shape[1]))
    small = cv2.resize(picture, (THUMBNAIL_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    coded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])[1]
    return base64.b64encode(coded.tobytes()).decode()


def media_of(dataset: Dataset, clip_ids: Sequence[str]) -> dict[str, bytes]:
    """The mp4 files of some kept clips; row groups without any of them are not read."""
    wanted = pa.array(clip_ids, pa.string())
    out = {}
    for name in dataset.shards() if clip_ids else []:
        with dataset.open_shard(name) as shard:
            for group in range(shard.num_row_groups):
                ids = shard.read_row_group(group, columns=["clip_id"])["clip_id"]
                if not pc.any(pc.is_in(ids, wanted)).as_py():
                    continue
                rows = shard.read_row_group(group, columns=["clip_id", "clip"])
                for row in rows.filter(pc.is_in(rows["clip_id"], wanted)).to_pylist():
                    out[row["clip_id"]] = row["clip"]["bytes"]
    return out
