"""A subset without media: clip ids as Parquet, and the json form of the released HD-VG-130M."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.shards import SHARD_SCHEMA, Dataset, conform
from curation.shards.schema import schema_of
from curation.subsets.decided import Decisions, rows
from curation.subsets.gathered import Clips
from curation.subsets.recipes import Recipe

INDEX = "index.parquet"
# Videos in one hdvg_<i>.json. Ours: one fits into memory; the released ones are larger.
MAX_VIDEOS = 100_000
COLUMNS = (
    *("clip_id", "video_id", "source_url", "start_s", "end_s", "duration_s"),
    *("fps", "num_frames", "scene_index", "caption"),
)


def write_index(
    dataset: Dataset, subset: Dataset, recipe: Recipe, clips: Clips, decisions: Decisions
) -> None:
    """Write index.parquet and hdvg_0.json, hdvg_1.json, ... of the clips that are kept.

    index.parquet has a row per clip, `hdvg_clip_id` being its name in the json, and the scores
    that the recipe decided by.
    """
    names = [*COLUMNS, *[r for r in recipe.rules if r not in COLUMNS]]
    schema = schema_of(SHARD_SCHEMA, names).insert(0, pa.field("hdvg_clip_id", pa.string()))
    videos: dict[str, Any] = {}
    num_files = 0
    with subset.replacing(INDEX) as sink, pq.ParquetWriter(sink, schema) as writer:
        for table in kept_tables(dataset, recipe, clips, decisions):
            ids = [add_clip(videos, row) for row in table.select(COLUMNS).to_pylist()]
            table = table.append_column("hdvg_clip_id", pa.array(ids, pa.string()))
            writer.write_table(conform(table, schema))
            if len(videos) >= MAX_VIDEOS:
                subset.write_bytes(json.dumps(videos).encode(), f"hdvg_{num_files}.json")
                num_files, videos = num_files + 1, {}
    if videos or not num_files:
        subset.write_bytes(json.dumps(videos).encode(), f"hdvg_{num_files}.json")
        num_files += 1
    while subset.exists(f"hdvg_{num_files}.json"):  # an earlier run's, which kept more
        subset.delete(f"hdvg_{num_files}.json")
        num_files += 1


def kept_tables(
    dataset: Dataset, recipe: Recipe, clips: Clips, decisions: Decisions
) -> Iterator[pa.Table]:
    """The rows of every clip that is kept, without media, commit by commit."""
    for name, where in clips.commits.items():
        decided = rows(clips, decisions, name)
        kept = decided.filter(pc.is_null(decided["rule"]))["clip_id"]
        if not len(kept):
            continue
        with dataset.open_shard(name) as shard:
            table = shard.read(columns=list(COLUMNS))
        place = pc.index_in(table["clip_id"], clips.ids[where])
        for rule in recipe.rules:
            if rule not in COLUMNS:
                scores = pa.array(clips.scores[rule][where], from_pandas=True)
                table = table.append_column(rule, scores.take(place))
        yield table.filter(pc.is_in(table["clip_id"], kept))


def add_clip(videos: dict[str, Any], row: dict[str, Any]) -> str:
    """Put a clip under its video; returns its id in the released form.

    Each clip is a span of its own that is one whole scene: scene_cut [0, -1]. Its number is the
    scene's place in the video, so it is the same in every subset.
    """
    video_id = row["video_id"]
    video = videos.setdefault(video_id, {"url": row["source_url"], "clip": {}})
    name = f"{video_id}.{row['scene_index']}"
    video["clip"][f"{name}.mp4"] = {
        "span": [clock(row["start_s"]), clock(row["end_s"])],
        "fps": row["fps"],
        "scene_split": [
            {"clip_id": f"{name}_0", "scene_cut": [0, -1], "caption": row["caption"] or ""}
        ],
    }
    return f"{name}_0"


def clock(seconds: float) -> str:
    """Seconds as HH:MM:SS.mmm."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
