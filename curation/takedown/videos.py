"""The videos of a dataset as far as a tombstone can name them, and those that one does name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.shards import Dataset
from curation.takedown.tombstones import Tombstones

# What videos are told by.
VIDEO = pa.schema([(name, pa.string()) for name in ("video_id", "source_url", "copy_of")])
VIDEO = VIDEO.append(pa.field("uploader", pa.string()))


def videos_of(dataset: Dataset, commit: Mapping[str, Any], uploaders: bool = True) -> pa.Table:
    """The videos of a commit as VIDEO has them; without `uploaders` those may be null.

    Ledgers did not always have them. Then those of kept clips are known, from their shard.
    """
    name = commit["name"]
    ledger = dataset.ledger_of(name, ["level", *VIDEO.names])
    videos = ledger.filter(pc.equal(ledger["level"], "video")).select(VIDEO.names)
    if uploaders and commit["num_clips"] and videos["uploader"].null_count:
        with dataset.open_shard(name) as shard:
            clips = shard.read(columns=["video_id", "uploader"])
        place = pc.index_in(videos["video_id"], clips["video_id"])
        known = pc.coalesce(videos["uploader"], clips["uploader"].take(place))
        videos = videos.set_column(VIDEO.get_field_index("uploader"), "uploader", known)
    return videos.cast(VIDEO)


def taken_down_in(
    dataset: Dataset, commit: Mapping[str, Any], stones: Tombstones
) -> dict[str, str]:
    """The ids of a commit's videos that have a tombstone, with its day."""
    if not stones:
        return {}
    videos = videos_of(dataset, commit, stones.number("uploader") > 0)
    return taken_down(videos, stones)


def taken_down(videos: pa.Table, stones: Tombstones) -> dict[str, str]:
    found = ((row["video_id"], stones.of_row(row)) for row in videos.to_pylist())
    return {video_id: date for video_id, date in found if date}
