"""Tiny clips and datasets for the tests of training: real mp4s in real shards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from curation.shards import Dataset, write_commit

FPS = 8
# A U-Net of a moment: 16x16 px are latents of 4x4.
TINY = [
    "unet.block_out_channels=[8, 8]",
    "unet.attention_head_dim=4",
    "unet.norm_num_groups=4",
    *("num_frames=2", "height=16", "width=16", "stride=1", "batch_size=2", "warmup_steps=0"),
    *("num_threads=1", "held_out=0.1", "timestep_bins=2", "sample_steps=2", "num_samples=0"),
    *("max_steps=4", "checkpoint_every=2", "evaluate_every=1000", "sample_every=1000"),
    "precision=float32",
]


def level(n: int) -> int:
    """The grey of the n-th frame of a clip: told apart after any encoder."""
    return 30 + 12 * (n % 16)


def mp4(
    num_frames: int,
    size: tuple[int, int] = (32, 16),
    times: Sequence[int] | None = None,
    *,
    first: int = 0,
) -> bytes:
    """A clip whose n-th frame is of grey `level(first + n)`; size is (width, height).

    times: of the frames in 1/FPS seconds; with B-frames and a keyframe every six.
    """
    sink = io.BytesIO()
    with av.open(sink, "w", "mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        stream.options = {"crf": "10", "g": "6", "bf": "2", "threads": "1"}
        for n in range(num_frames):
            picture = np.full((size[1], size[0], 3), level(first + n), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times or range(num_frames))[n], Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return sink.getvalue()


def clip(name: str, media: bytes, num_frames: int, **changes: Any) -> dict[str, Any]:
    """A shard row."""
    facts = {"video_id": name, "source_url": f"file:///{name}.mp4", "codec": "h264"}
    times = {"start_s": 0.0, "end_s": num_frames / FPS, "duration_s": num_frames / FPS, "fps": FPS}
    return {
        "clip_id": name,
        **facts,
        **times,
        **{"num_frames": num_frames, "width": 32, "height": 16, "scene_index": 0},
        "caption": f"clip {name}",
        "clip": {"bytes": media, "path": None},
        **changes,
    }


def write_dataset(folder: Path, rows: list[dict[str, Any]], per_commit: int = 4) -> Path:
    """A dataset folder of these rows, as curation writes it."""
    dataset = Dataset.at(folder)
    for n in range(0, len(rows), per_commit):
        part = rows[n : n + per_commit]
        ledger = [
            {"level": "video", "video_id": row["video_id"], "source_url": row["source_url"],
             "decision": "kept", "attempts": 1}
            for row in part
        ]  # fmt: skip
        write_commit(dataset, part, ledger, {"cut": "test"})
    return folder


def small_dataset(folder: Path, count: int = 7, prefix: str = "c") -> Path:
    """A dataset of `count` clips of different lengths."""
    rows = [clip(f"{prefix}{n}", mp4(4 + n), 4 + n) for n in range(count)]
    return write_dataset(folder, rows)
