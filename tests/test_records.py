"""What stages hand on: row, media and frames of a clip stay together, and results never change."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation.flow.ray_stages import RESULT_SCHEMA, from_rows, to_row
from curation.pipelines import Rule
from curation.records import (
    KeptClip,
    VideoResult,
    failed_row,
    ledger_row,
    with_attempts,
    with_captions,
    with_cost,
    with_late_scores,
)
from curation.shards import DROPPED, FAILED, KEPT, LEDGER_SCHEMA, SHARD_SCHEMA
from curation.sources import Source

ROOT = Path(__file__).parents[1]
RULES = {"text": Rule(max=0.01)}


def video_of(*clip_ids: str) -> VideoResult:
    """A kept video of kept clips, each with media and frames that name it."""
    empty: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA.names)
    video = empty | {"level": "video", "decision": KEPT, "attempts": 1, "stage_s": {"cut": 1.0}}
    rows = [empty | {"level": "clip", "clip_id": c, "decision": KEPT} for c in clip_ids]
    shard: dict[str, Any] = dict.fromkeys(SHARD_SCHEMA.names)
    clips = [
        KeptClip(shard | {"clip_id": c}, f"{c} mp4".encode(), [b"c"], [f"{c} jpeg".encode()])
        for c in clip_ids
    ]
    return VideoResult([video, *rows], clips)


def told(result: VideoResult, column: str) -> dict[str, Any]:
    """A column of the ledger by clip id; the video's is under "video"."""
    return {row["clip_id"] or "video": row[column] for row in result.ledger}


@pytest.mark.parametrize(
    "change",
    [
        lambda r: with_late_scores(r, {"a": {"text": 1.0}, "b": {"text": 0.0}}, RULES),
        lambda r: with_late_scores(r, {"a": {"error": "no"}, "b": {"error": "no"}}, RULES),
        lambda r: with_captions(r, {"a": ["a dog"], "b": [ValueError("none")]}, "blip2"),
        lambda r: with_captions(r, {}, "blip2"),
        lambda r: with_attempts(r, 2),
        lambda r: with_cost(r, "cut", 0.5),
    ],
)
def test_a_stage_makes_a_new_result(change: Any) -> None:
    given = video_of("a", "b")
    before = deepcopy(given)
    done = change(given)
    assert given == before != done
    assert not {id(row) for row in done.ledger if row not in before.ledger} & {
        id(row) for row in given.ledger
    }


def test_captions_belong_to_their_clips() -> None:
    captions: dict[str, list[str | Exception]] = {"b": ["two", "two", "deux"], "a": ["one", ""]}
    done = with_captions(video_of("a", "b"), captions, "blip2:x")
    assert told(done, "caption") == {"video": None, "a": "one", "b": "two; deux"}
    assert [(c.clip_id, c.row["caption"], c.media) for c in done.clips] == [
        ("a", "one", b"a mp4"),
        ("b", "two; deux", b"b mp4"),
    ]
    assert [(c.row["caption_model"], c.caption_frames) for c in done.clips] == [("blip2:x", [])] * 2


def test_a_clip_that_could_not_be_captioned_is_failed_and_so_is_a_video_of_such() -> None:
    lost = {"a": ["one", OSError("no picture")]}
    done = with_captions(video_of("a", "b", "c"), lost | {"c": ["three"]}, "blip2")  # type: ignore[arg-type]
    assert told(done, "decision") == {"video": KEPT, "a": FAILED, "b": FAILED, "c": KEPT}
    assert told(done, "message")["a"] == "no picture"
    assert "no frame was taken" in told(done, "message")["b"]
    assert [clip.clip_id for clip in done.clips] == ["c"]
    alone = with_captions(video_of("a"), {}, "blip2")
    assert told(alone, "error_class") == {"video": "caption", "a": "caption"}
    assert alone.clips == []


def test_late_scores_reach_row_and_ledger_together() -> None:
    found = {"b": {"text": 0.0, "mine": 7.0}, "a": {"text": 0.5, "mine": 8.0}}
    done = with_late_scores(video_of("a", "b"), found, RULES)
    assert told(done, "decision") == {"video": KEPT, "a": DROPPED, "b": KEPT}
    [left] = done.clips
    assert (left.clip_id, left.media, left.model_frames) == ("b", b"b mp4", [b"b jpeg"])
    assert (left.row["text"], left.row["mine"]) == (0.0, 7.0)


def test_cost_is_added_up() -> None:
    again = with_cost(with_cost(video_of("a"), "models", 2.0), "models", 0.5)
    assert again.video["stage_s"] == {"cut": 1.0, "models": 2.5}


def test_a_result_travels_whole() -> None:
    given = [video_of("a", "b"), video_of(), video_of("c")]
    assert list(from_rows(pa.concat_tables([to_row(result) for result in given]))) == given


def test_media_are_joined_by_id_and_missing_ones_are_seen() -> None:
    [row] = to_row(video_of("a", "b")).to_pylist()
    row["media"] = row["media"][::-1]
    [found] = from_rows(pa.Table.from_pylist([row], schema=RESULT_SCHEMA))
    assert found == video_of("a", "b")
    row["media"][0]["clip_id"] = "another"
    with pytest.raises(KeyError, match="b"):
        list(from_rows(pa.Table.from_pylist([row], schema=RESULT_SCHEMA)))


def test_what_ray_runs_loads_no_video_library() -> None:
    code = "import sys, curation.flow.ray_stages; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "curation.records" in loaded
    assert not loaded & {"av", "scenedetect", "yt_dlp", "curation.videos", "torch"}


def test_the_row_of_a_video_tells_what_is_known_of_it() -> None:
    known = {"title": "a title", "uploader": "Ann", "channel": "Birds", "sha256": "ab"}
    source = Source(url="v.mp4", id="v", **known)
    video = failed_row(source, "corrupt", "so it was")
    about = known | {"license": None, "downloaded_at": None}
    assert {name: video[name] for name in about} == about
    clip = ledger_row(source, level="clip", clip_id="v_0")
    assert {clip[name] for name in about} == {None}
