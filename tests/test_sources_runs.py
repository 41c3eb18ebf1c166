"""Whole runs from lists: what they say is in the rows, and what is edited is done again."""

from __future__ import annotations

import io
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeVideo, Shot, ffmpeg
from rich.console import Console
from typer.testing import CliRunner

from curation import run, validate
from curation.flow.plans import execute, make_plan
from curation.pipelines import Pipeline
from curation.shards import FAILED, KEPT, Dataset
from curation.sources import Source, Span
from curation.videos import curate_video

CONFIG = Path(__file__).parents[1] / "pipelines.yaml"
LOOSE = ["rules.resolution.min=0", "rules.duration.min=0.2", "rules.static.max=1"]
LOOSE += ["rules.black_bars.max=1", "rules.watermark.max=1"]


def curate(output: Path, *given: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    plan = make_plan([*map(str, given)], "web", CONFIG, str(output), LOOSE, None)
    execute(plan, console, time.time())
    return console.file.getvalue()  # type: ignore[attr-defined]


def rows(output: Path) -> list[tuple[Any, ...]]:
    found = Dataset.at(output).rows(["start_s", "caption", "captions"])
    told = [(round(r["start_s"], 2), r["caption"], r["captions"]) for r in found]
    return sorted(told, key=str)


def videos(output: Path) -> list[tuple[str, str, str | None]]:
    table = Dataset.at(output).ledger(["level", "source_url", "decision", "error_class"])
    found = [row for row in table.to_pylist() if row["level"] == "video"]
    return sorted((Path(r["source_url"]).name, r["decision"], r["error_class"]) for r in found)


@pytest.fixture
def folder(make_video: MakeVideo, tmp_path: Path) -> Path:
    shutil.copy(make_video("a.mp4", [Shot("test", 2.0)]), tmp_path / "a.mp4")
    return tmp_path


def test_a_list_is_heard_and_heard_again_when_it_is_edited(
    folder: Path, make_video: MakeVideo, without_ray: None
) -> None:
    path, output = folder / "l.csv", folder / "out"
    stray = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4"))
    shutil.copy(make_video("b.mp4", [Shot("bars", 0.8)]), stray)
    head = "url,start,end,caption\n"
    lines = [
        *(f"a.mp4,0,1,said {i}" for i in range(3)),
        f"../{folder.name}/a.mp4,1,1.8,other",
        "late.mp4,,,late",
    ]
    path.write_text("\n".join([head.strip(), *lines]))
    curate(output, path, stray)
    said = ["said 0", "said 1", "said 2"]
    assert rows(output) == [(0, "said 0", said), (0, None, None), (1, "other", None)]
    kept = [("a.mp4", KEPT, None), ("caf\\xe9.mp4", KEPT, None)]
    assert videos(output) == [*kept, ("late.mp4", FAILED, "missing")]
    assert not list(validate_all(output))

    shutil.copy(make_video("c.mp4", [Shot("fractal", 0.8)]), folder / "late.mp4")
    path.write_text("\n".join([head.strip(), *lines[1:3], "a.mp4,1,1.9,new", lines[4]]))
    told = curate(output, path)
    assert "2 videos to redo" in told and "1 video of no source" in told
    assert rows(output) == [
        (0, "late", None),
        (0, "said 1", said[1:]),
        (0, None, None),
        (1, "new", None),
    ]
    assert videos(output) == [*kept, ("late.mp4", KEPT, None)]
    assert not list(validate_all(output))
    path.write_text(path.read_text().replace("said 1", "newer"))
    assert "1 video with new captions" in curate(output, path)
    assert rows(output)[1] == (0, "newer", ["newer", "said 2"])
    assert not list(validate_all(output))
    before = [commit["name"] for commit in Dataset.at(output).commits()]
    curate(output, path)
    assert [commit["name"] for commit in Dataset.at(output).commits()] == before


def validate_all(output: Path) -> list[str]:
    done = CliRunner().invoke(validate.app, [str(output)])
    return [] if done.exit_code == 0 else [done.output]


def test_a_dry_run_tells_of_every_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "l.csv").write_text(
        "url,start,end,caption,score\na.mp4,0:00,0:01,x,1\nlost.mp4,,,,\n"
    )
    (folder / "notes.md").touch()
    arguments = [".", "l.csv", "--pipeline", "web", "--config", str(CONFIG), "--output", "out"]
    done = CliRunner().invoke(run.app, [*arguments, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "l.csv: columns not read: score" in done.output
    counts = "2 rows; 1 caption; 1 span; 1 missing file"
    assert f"l.csv: {counts}; columns read: url, start, end, caption" in done.output
    assert ".: files that are no videos: 1 .csv, 1 .md" in done.output
    (folder / "l.csv").write_text("url,captions\na.mp4,x\n")
    done = CliRunner().invoke(run.app, [*arguments, "--dry-run"])
    assert done.exit_code == 2 and "did you mean 'caption'?" in done.output


def test_cuts_that_show_the_same_frames_are_one_clip(folder: Path) -> None:
    spans = (Span(0.0, 1.0, "a"), Span(0.0, 0.99, "b"), Span(1.0, 1.5))
    source = Source(url="x", path=str(folder / "a.mp4"), id="v", spans=spans)
    result = curate_video(source, Pipeline(), folder, lambda stage, at_s: None)
    ids = [row["clip_id"] for row in result.ledger]
    assert ids == [None, "v_00000000_00001000", "v_00001000_00001520"]


def test_a_tag_that_is_not_utf_8_is_read(folder: Path) -> None:
    ffmpeg("-i", folder / "a.mp4", "-c", "copy", "-metadata", "title=XXXX", folder / "a.avi")
    data = (folder / "a.avi").read_bytes()
    assert data.count(b"XXXX") == 1
    (folder / "a.avi").write_bytes(data.replace(b"XXXX", b"caf\xe9"))
    source = Source(url="a.avi", path=str(folder / "a.avi"), id="v")
    result = curate_video(source, Pipeline(), folder, lambda stage, at_s: None)
    assert result.video["decision"] == KEPT
    assert {clip.row["title"] for clip in result.clips} == {"caf\ufffd"}
