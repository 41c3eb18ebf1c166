"""A clip -> what is written of it, a function for each layout; table.py says whose they are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curation.scores.table import SCORES

ABOUT = ("clip_id", "video_id", "title", "uploader", "license", "category", "upload_date")
FOLDER_CLIPS = 1000  # hubs want at most 10,000 files in a folder (Hugging Face's advice)


@dataclass(frozen=True)
class Exported:
    """One clip as it is exported."""

    name: str  # of its files, without a suffix
    number: int  # of its row in the dataset
    caption: str  # one line
    row: Mapping[str, Any]  # its row in the dataset, but for the media
    num_frames: int
    width: int  # px
    height: int  # px
    duration_s: float
    num_bytes: int  # of its mp4
    is_trimmed: bool  # its end is left out
    root: str  # jsonl: what stands before the names of its files, "" or ending in a slash

    @property
    def fps(self) -> float:
        return self.num_frames / self.duration_s

    @property
    def mp4(self) -> str:
        return f"{self.name}.mp4"


@dataclass(frozen=True)
class Files:
    """What is written of one clip; paths are inside the export's folder, or inside a tar."""

    video: str
    beside: Mapping[str, bytes] = field(default_factory=dict)
    lines: Mapping[str, str] = field(default_factory=dict)  # by list file, one each


def facts(clip: Exported) -> dict[str, Any]:
    """What is known of a clip: the same keys for each; None where it is not known."""
    row = clip.row
    url = row["source_url"]
    about = {name: row.get(name) for name in ABOUT}
    scores = {name: row.get(name) for name in SCORES}
    return {
        **about,
        # A path of the machine that curated is nobody's business.
        "source_url": url if url.startswith(("http://", "https://", "s3://", "gs://")) else None,
        "start_s": row["start_s"],
        "end_s": row["start_s"] + clip.duration_s,
        "fps": clip.fps,
        "num_frames": clip.num_frames,
        "width": clip.width,
        "height": clip.height,
        "caption_model": row.get("caption_model"),
        **{k: v if v is not None and math.isfinite(v) else None for k, v in scores.items()},
    }


def folder(clip: Exported) -> Files:
    """NAME.mp4 and NAME.txt."""
    return Files(clip.mp4, {f"{clip.name}.txt": clip.caption.encode()})


def jsonl(clip: Exported) -> Files:
    """metadata.jsonl: video_path, caption."""
    path = f"videos/{clip.mp4}"
    return Files(
        path, lines={"metadata.jsonl": line(video_path=clip.root + path, caption=clip.caption)}
    )


def finetrainers(clip: Exported) -> Files:
    """videos.txt and prompt.txt, line by line."""
    path = f"videos/{clip.mp4}"
    return Files(path, lines={"videos.txt": path, "prompt.txt": clip.caption})


def fastvideo(clip: Exported) -> Files:
    """videos2caption.json: path, resolution, size, fps, duration, num_frames, cap."""
    known = line(
        path=clip.mp4,
        resolution={"width": clip.width, "height": clip.height},
        size=clip.num_bytes,
        fps=clip.fps,
        duration=clip.duration_s,
        num_frames=clip.num_frames,
        cap=clip.caption,
    )
    return Files(f"videos/{clip.mp4}", lines={"videos2caption.json": known})


def ltx(clip: Exported) -> Files:
    """dataset.json: caption, media_path."""
    path = f"videos/{clip.mp4}"
    return Files(path, lines={"dataset.json": line(caption=clip.caption, media_path=path)})


def videox_fun(clip: Exported) -> Files:
    """metadata.json: file_path, text, type, width, height."""
    path = f"train/{clip.mp4}"
    size = {"width": clip.width, "height": clip.height}
    known = line(file_path=path, text=clip.caption, type="video", **size)
    return Files(path, lines={"metadata.json": known})


def webdataset(clip: Exported) -> Files:
    """NAME.mp4, NAME.txt and NAME.json in a tar."""
    known = line(caption=clip.caption, **facts(clip))
    beside = {f"{clip.name}.txt": clip.caption.encode(), f"{clip.name}.json": known.encode()}
    return Files(clip.mp4, beside)


def hugging_face(clip: Exported) -> Files:
    """metadata.jsonl: file_name, caption, and what is known of each clip."""
    path = f"data/{clip.number // FOLDER_CLIPS:04d}/{clip.mp4}"
    known = line(file_name=path, caption=clip.caption, **facts(clip))
    return Files(path, lines={"metadata.jsonl": known})


def line(**known: Any) -> str:
    """One line of JSON."""
    return json.dumps(known, ensure_ascii=False, allow_nan=False)
