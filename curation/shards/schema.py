"""THE SCHEMA: the columns of shards and ledgers, and tables that have them."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from curation.scores.table import SCORES

SCHEMA_VERSION = "2"  # 2: scores of text, motion and look
KEPT, DROPPED, FAILED = "kept", "dropped", "failed"
# Of a clip: 8 hashes of its parts and 8 of what distinguishes them (decode/perceptual_hashes.py).
PERCEPTUAL_HASH = pa.field("perceptual_hash", pa.binary(128))
# As lists and sites say it, the date in ISO 8601; then of the file that was read: when it came in
# ISO 8601 (UTC), which of the site's formats it is, and the hash of its bytes.
ABOUT = (
    *("title", "category", "uploader", "channel", "license", "upload_date"),
    *("downloaded_at", "format", "sha256"),
)
SHARD_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("source_url", pa.string(), nullable=False),
        *[pa.field(n, pa.string()) for n in ABOUT],
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("scene_index", pa.int32(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("captions", pa.list_(pa.string())),  # where lists gave several
        pa.field("caption_model", pa.string()),
        pa.field("caption_frame_s", pa.list_(pa.float64())),
        *[pa.field(name, pa.float64()) for name in SCORES],
        PERCEPTUAL_HASH,
        pa.field("clip", pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])),
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)
LEDGER_SCHEMA = pa.schema(
    [
        pa.field("level", pa.string(), nullable=False),  # video | clip
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("clip_id", pa.string()),
        pa.field("source_url", pa.string(), nullable=False),
        pa.field("source_fingerprint", pa.string()),  # of what lists said of the video
        # Of the video, on its row alone: clips that are kept have them in their shard.
        *[pa.field(n, pa.string()) for n in ABOUT],
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("caption", pa.string()),
        pa.field("decision", pa.string(), nullable=False),  # kept | dropped | failed
        pa.field("rule", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string()),
        pa.field("copy_of", pa.string()),  # the video_id that a failed video of class copy has
        pa.field("partial", pa.string()),  # why only the video's beginning was curated
        pa.field("attempts", pa.int32(), nullable=False),
        *[pa.field(name, pa.float64()) for name in SCORES],
        PERCEPTUAL_HASH,
        pa.field("near_copy_of", pa.string()),  # the clip_id that stands for a dropped near copy
        pa.field("watermark_box", pa.list_(pa.float32())),  # x0 y0 x1 y1, fractions of the picture
        pa.field("text_boxes", pa.list_(pa.list_(pa.float32()))),  # each x0 y0 x1 y1, as above
        pa.field("preview", pa.list_(pa.binary())),  # small JPEGs of a clip, in order
        pa.field("stage_s", pa.map_(pa.string(), pa.float64())),  # CPU seconds by stage
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)
YOUNGER = {
    "captions",
    "source_fingerprint",
    "partial",
    "copy_of",
    "perceptual_hash",
    "near_copy_of",
    *ABOUT,
}  # columns that files of this version may lack


def with_own(schema: pa.Schema, own: Iterable[str]) -> pa.Schema:
    """A schema with the scores of a user's own scorers behind the others."""
    place = schema.get_field_index(SCORES[-1]) + 1
    for name in own:
        schema = schema.insert(place, pa.field(name, pa.float64()))
        place += 1
    return schema


def schema_of(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Some columns of a schema; a name that it lacks is a user's own score."""
    fields = [
        schema.field(name) if name in schema.names else pa.field(name, pa.float64())
        for name in names
    ]
    return pa.schema(fields, metadata=schema.metadata)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of `schema`, in its order; those it lacks are null."""
    empty = pa.nulls(len(table))
    columns = [
        table[field.name] if field.name in table.column_names else empty.cast(field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def has_columns(names: list[str], schema: pa.Schema) -> bool:
    """Whether a file has the columns of a schema, in order, but for those younger than it."""
    younger = {*SCORES, *YOUNGER} - set(names)
    return names == [name for name in schema.names if name not in younger]
