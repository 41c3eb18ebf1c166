"""Scores on pictures and headers whose answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import MakeVideo, Shot

from curation.decode.analyses import score_clip
from curation.decode.tracks import build_tracks
from curation.media.probes import Probe, Turn, probe
from curation.pipelines import Pipeline, Scorers
from curation.scores.headers import header_scores, static
from curation.scores.motions import MotionTrack
from curation.scores.quality import LookTrack
from curation.sources import Source
from curation.videos import curate_video

HD = Probe(
    *(0, 1280, 720, Turn(), Fraction(1), 25.0, 9.0, 225),
    *("h264", "yuv420p", None, False, False, None),
)


def clip_scores(path: Path) -> dict[str, float]:
    """The ledger row of a video's only clip."""
    source = Source(url=str(path), path=str(path))
    rows = curate_video(source, Pipeline(), path.parent, lambda stage, at_s: None).ledger
    return rows[1]


def test_headers_tell_size_shape_and_transfer() -> None:
    assert header_scores(HD) == {"resolution": 720, "aspect": 1280 / 720, "hdr": 0}
    assert header_scores(replace(HD, transfer="smpte2084"))["hdr"] == 1


def test_a_still_is_static_and_moving_pictures_are_not(make_video: MakeVideo) -> None:
    assert clip_scores(make_video("still.mp4", [Shot("still", 1.0)]))["static"] > 0.95
    assert clip_scores(make_video("moves.mp4", [Shot("test", 1.0)]))["static"] < 0.05


def test_static_is_the_share_of_steps_that_change_nothing() -> None:
    assert static(np.array([0.0, 0.1, 5.0, 5.0])) == 0.5
    assert static(np.array([])) == 1.0


def test_a_full_picture_has_no_bars(make_video: MakeVideo) -> None:
    path = make_video("full.mp4", [Shot("test", 1.0)])
    assert clip_scores(path)["black_bars"] == 0
    assert clip_scores(path)["resolution"] == probe(path).height == 180


# -- scorers that are switched on

TRACKED = ("motion", "camera_motion", "zoom", "slideshow", "flicker", "sharpness", "exposure")
TRACKED += ("colourfulness", "blockiness", "aesthetic")
ALL_ON = Scorers(motion="flow", look="pixels", aesthetic="technical_quality")


def rows_of(path: Path, **settings: Any) -> list[dict[str, Any]]:
    source = Source(url=str(path), path=str(path))
    pipeline = Pipeline(**settings)
    return curate_video(source, pipeline, path.parent, lambda stage, at_s: None).ledger


def test_scorers_fill_their_columns_and_no_others(make_video: MakeVideo) -> None:
    path = make_video("moves.mp4", [Shot("test", 1.0)])
    _, off = rows_of(path)
    assert [off[name] for name in TRACKED] == [None] * len(TRACKED)
    _, clip = rows_of(path, scorers=ALL_ON)
    assert [name for name in TRACKED if clip[name] is None] == []
    assert clip["motion"] > 0.02
    _, motion = rows_of(path, scorers=Scorers(motion="flow"))
    assert [motion[name] for name in TRACKED[5:]] == [None] * 5
    assert motion["motion"] == clip["motion"]


def test_a_stored_clip_is_scored_as_its_source_was(make_video: MakeVideo, tmp_path: Path) -> None:
    """One engine: the whole of a video, copied, has the video's frames and so its scores."""
    path = make_video("moves.mp4", [Shot("test", 1.0)])
    source = Source(url=str(path), path=str(path))
    pipeline = Pipeline(scorers=ALL_ON)
    [clip] = curate_video(source, pipeline, tmp_path, lambda stage, at_s: None).clips
    tracks = build_tracks(ALL_ON)
    assert list(tracks) == ["motion", "look", "aesthetic"]
    duration_s = clip.row["duration_s"]
    found = score_clip(clip.media, duration_s, tracks, False, tmp_path, lambda stage, at_s: None)
    assert found.error is None and found.pictures == []
    stored = {name: value for row in found.rows.values() for name, value in row.items()}
    assert stored == {name: clip.row[name] for name in TRACKED}


def test_rules_see_them(make_video: MakeVideo) -> None:
    still, moving = (make_video(f"{n}.mp4", [Shot(n, 1.0)]) for n in ("still", "test"))
    settings = {"scorers": Scorers(motion="flow"), "rules": {"motion": {"min": 0.01}}}
    assert [row["rule"] for row in rows_of(still, **settings)] == ["motion", "motion"]
    assert [row["decision"] for row in rows_of(moving, **settings)] == ["kept", "kept"]


def test_a_clip_too_short_to_score_does_not_pass(make_video: MakeVideo) -> None:
    path = make_video("blink.mp4", [Shot("test", 0.08)])
    _, clip = rows_of(path, scorers=ALL_ON, rules={"motion": {"max": 9}})
    assert (clip["decision"], clip["rule"], clip["value"]) == ("dropped", "motion", None)


def test_a_scorer_that_raises_fails_the_video(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(*_: object) -> None:
        raise cv2.error("no flow today")

    monkeypatch.setattr(MotionTrack, "add", add)
    [video] = rows_of(make_video("moves.mp4", [Shot("test", 1.0)]), scorers=ALL_ON)
    assert (video["decision"], video["error_class"]) == ("failed", "scorer")
    assert "no flow today" in video["message"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_clip_whose_score_is_no_number_fails(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch, bad: float | None
) -> None:
    """Only the first of two clips is met; the video keeps the other."""
    between = LookTrack.between

    def broken(self: LookTrack, start_s: float, end_s: float) -> dict[str, float | None]:
        if start_s > 0:
            return between(self, start_s, end_s)
        if bad is None:
            raise ZeroDivisionError("no picture")
        return between(self, start_s, end_s) | {"sharpness": bad}

    monkeypatch.setattr(LookTrack, "between", broken)
    path = make_video("two.mp4", [Shot("test", 1.0), Shot("bars", 1.0)])
    rows = rows_of(path, scorers=ALL_ON)
    assert [row["decision"] for row in rows] == ["kept", "failed", "kept"]
    assert rows[1]["error_class"] == "scorer"
    assert ("no picture" if bad is None else f"sharpness is {bad}") in rows[1]["message"]
    alone = rows_of(make_video("one.mp4", [Shot("test", 1.0)]), scorers=ALL_ON)
    assert [row["decision"] for row in alone] == ["failed", "failed"]
    assert alone[0]["error_class"] == "scorer"
