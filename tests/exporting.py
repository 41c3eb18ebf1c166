"""A dataset of few small clips for the tests of vf-export-clips, and what is told of an export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import Shot, read_frames
from typer.testing import CliRunner, Result

from curation import export_clips
from curation.shards import KEPT, LEDGER_SCHEMA, SHARD_SCHEMA, Dataset, write_commit

# Frame N of a clip has this brightness.
COUNTED = "color=black:s={size}:r={fps},format=yuv420p,geq=lum=16+4*N:cb=128:cr=128"
# By clip: shot, size, encoder's options, caption.
CLIPS: dict[str, tuple[Shot, str, list[object], str | None]] = {
    "plain_0_1": (Shot(COUNTED, 1.2), "96x64", ["-bf", 0], "A plain\nclip."),
    "bees_0_1": (
        Shot("test", 1.6),
        "100x70",
        ["-bf", 3, "-b_strategy", 0],
        " two\u2028 lines\x07 ",
    ),
    "Bees_0_1": (Shot("test", 0.4), "96x64", ["-bf", 0], None),
    "a/b.c_0_1": (Shot("bars", 1.0, 10), "96x64", ["-bf", 0], '"quoted" \\ \u00e9'),
    "hevc_0_1": (Shot("test", 0.4), "96x64", ["-c:v", "libx265", "-tag:v", "hvc1"], "of HEVC"),
}
COMMITS = (("plain_0_1", "bees_0_1", "Bees_0_1"), ("a/b.c_0_1", "hevc_0_1"))


def row_of(clip_id: str, path: Path, shot: Shot, size: str, caption: str | None) -> dict[str, Any]:
    num_frames = len(read_frames(path))
    width, height = map(int, size.split("x"))
    known = {
        **{"clip_id": clip_id, "video_id": clip_id[:-4], "source_url": f"/home/me/{clip_id}.mp4"},
        **{"start_s": 2.0, "end_s": 2 + num_frames / shot.fps, "duration_s": num_frames / shot.fps},
        **{"fps": float(shot.fps), "num_frames": num_frames, "width": width, "height": height},
        **{"codec": "hevc" if "hevc" in clip_id else "h264", "scene_index": 0, "caption": caption},
        **{"title": f"title of {clip_id}", "resolution": float(height), "motion": None},
    }
    clip = {"bytes": path.read_bytes(), "path": f"{clip_id}.mp4"}
    return dict.fromkeys(SHARD_SCHEMA.names) | known | {"clip": clip}


def write_dataset(folder: str, make_video: Callable[..., Path]) -> Dataset:
    dataset = Dataset.at(folder)
    for clip_ids in COMMITS:
        rows, ledger = [], []
        for clip_id in clip_ids:
            shot, size, options, caption = CLIPS[clip_id]
            path = make_video("clip.mp4", shots=[shot], size=size, options=options)
            rows.append(row_of(clip_id, path, shot, size, caption))
            known = {k: v for k, v in rows[-1].items() if k in LEDGER_SCHEMA.names}
            empty = dict.fromkeys(LEDGER_SCHEMA.names) | known | {"decision": KEPT, "attempts": 1}
            ledger += [empty | {"level": level} for level in ("video", "clip")]
        write_commit(dataset, rows, ledger, {"cut": "test", "rules": "test"})
    dataset.write_bytes(b"{}", "run.json")
    return dataset


def stored(dataset: Dataset) -> dict[str, bytes]:
    """The mp4s of a dataset by clip."""
    return {row["clip_id"]: row["clip"]["bytes"] for row in dataset.rows(["clip_id", "clip"])}


def run(*given: object) -> Result:
    return CliRunner().invoke(export_clips.app, [str(each) for each in given])


def export(dataset: Dataset, to: str, out: Path | str, *options: object) -> dict[str, Any]:
    """Run the command to its end; returns the counts that it tells."""
    done = run(dataset.uri, "--to", to, "--output", out, "--json", *options)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)["clips"]


def refused(*given: object) -> str:
    """What a user is told of a mistake."""
    done = run(*given)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    return " ".join(done.output.split())


def hashes(folder: Path | str) -> dict[str, str]:
    """Every file of a folder, by its path inside."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def counted_frames(path: Path | str) -> list[int]:
    """Which frames of a clip of COUNTED a file shows, in order."""
    return [round((float(f.picture[0, 0]) - 16) / 4) for f in read_frames(path)]
