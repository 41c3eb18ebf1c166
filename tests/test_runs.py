"""Whole runs on a real Ray: every input has one outcome, and a killed run goes on."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import Shot, ffmpeg, without_column
from rich.console import Console
from test_captions import build_checkpoint
from test_workers import MARK, marked
from typer.testing import CliRunner

from curation import validate, why
from curation.captions import Blip2
from curation.decode.jpegs import picture_from_jpeg
from curation.decode.samples import CAPTION_SIDE_PX, jpeg, shrink
from curation.flow.plans import Plan, execute, make_plan
from curation.media.frames import decode
from curation.media.probes import Turn
from curation.settings import ConfigError
from curation.shards import DROPPED, FAILED, KEPT, Dataset

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "pipelines.yaml"
SMALL = ["rules.resolution.min=180", "rules.duration.min=0.5"]
MORE_SHOTS = (Shot("life", 1.0), Shot("gradient", 1.1), Shot("test", 0.9))
ONE_SHOT = (Shot("fractal", 1.5),)

EXPECTED = {
    "good.mp4": (KEPT, None),
    "more.mkv": (KEPT, None),
    "still.mp4": (DROPPED, "static"),
    "letterbox.mp4": (DROPPED, "black_bars"),
    "small.mp4": (DROPPED, "resolution"),
    "square.mp4": (DROPPED, "aspect"),
    "short.mp4": (DROPPED, "duration"),
    "text.mp4": (FAILED, "not_video"),
    "sound.mp4": (FAILED, "no_video_stream"),
    "half.mp4": (FAILED, "truncated"),
    "broken.mp4": (FAILED, "corrupt"),
    "empty.mp4": (FAILED, "empty"),
}


@pytest.fixture(scope="module")
def inputs(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good videos and one of every kind that is dropped or fails."""
    folder = tmp_path_factory.mktemp("inputs")

    def add(name: str, **how: Any) -> None:
        shutil.copy(make_video(f"run-{name}", **how), folder / name)

    add("good.mp4")
    add("more.mkv", shots=MORE_SHOTS)
    add("still.mp4", shots=[Shot("still", 1.5)])
    add("letterbox.mp4", shots=ONE_SHOT, filters="crop=320:120,pad=320:180:0:30")
    add("small.mp4", shots=ONE_SHOT, size="192x108")
    add("square.mp4", shots=ONE_SHOT, size="240x240")
    add("short.mp4", shots=[Shot("test", 0.3)])
    (folder / "text.mp4").write_text("this is not a video\n" * 100)
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac", folder / "sound.mp4")
    whole = folder / "whole.mp4"
    ffmpeg("-i", folder / "good.mp4", "-c", "copy", "-movflags", "+faststart", whole)
    data = bytearray(whole.read_bytes())
    (folder / "half.mp4").write_bytes(data[: len(data) // 2])
    first = data.index(b"mdat") + 100  # in the one key frame: nothing before it is whole
    data[first : first + 4096] = bytes(range(256)) * 16
    (folder / "broken.mp4").write_bytes(data)
    whole.unlink()
    (folder / "empty.mp4").touch()
    return folder


def plan(inputs: Path, output: Path | str, *overrides: str) -> Plan:
    return make_plan([str(inputs)], "web", CONFIG, str(output), [*SMALL, *overrides], None)


def run(inputs: Path, output: Path | str, *overrides: str) -> str:
    """Run the flow in this process; returns what it printed."""
    console = Console(record=True, width=100, file=io.StringIO())
    execute(plan(inputs, output, *overrides), console, time.time())
    return console.export_text()


def outcomes(dataset: Dataset) -> dict[str, tuple[str, str | None]]:
    """File name -> (decision, rule or error class) of every video in a ledger."""
    videos = [row for row in dataset.ledger().to_pylist() if row["level"] == "video"]
    assert len({row["source_url"] for row in videos}) == len(videos)
    return {
        Path(row["source_url"]).name: (row["decision"], row["rule"] or row["error_class"])
        for row in videos
    }


def clips(dataset: Dataset) -> dict[str, str]:
    """clip_id -> hash of its media, and no clip twice."""
    found = [(r["clip_id"], hashlib.sha256(r["clip"]["bytes"]).hexdigest()) for r in dataset.rows()]
    assert len(dict(found)) == len(found)
    return dict(found)


def decisions(dataset: Dataset) -> Counter[str]:
    """Every ledger row, previews included, without what time and chance put in it."""
    rows = dataset.ledger().drop(["stage_s", "attempts"]).to_pylist()
    return Counter(repr(row) for row in rows)


@pytest.fixture(scope="module")
def curated(inputs: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The dataset of one uninterrupted run over `inputs`."""
    output = tmp_path_factory.mktemp("runs") / "curated"
    run(inputs, output)
    return Dataset.at(output)


def test_every_input_has_the_expected_outcome(curated: Dataset) -> None:
    assert outcomes(curated) == EXPECTED


def test_the_funnel_adds_up(curated: Dataset) -> None:
    funnel = json.loads(curated.read_bytes("run.json"))["funnel"]
    for level in (funnel["videos"], funnel["clips"]):
        lost = sum(level["dropped"].values()) + sum(level["failed"].values())
        assert level["total"] == level["kept"] + lost
    assert funnel["videos"]["total"] == len(EXPECTED)
    assert funnel["clips"]["kept"] == len(clips(curated)) == 6


def test_a_video_is_kept_if_and_only_if_a_clip_is(curated: Dataset) -> None:
    rows = curated.ledger().to_pylist()
    kept = {r["video_id"] for r in rows if r["level"] == "clip" and r["decision"] == KEPT}
    assert kept == {r["video_id"] for r in rows if r["level"] == "video" and r["decision"] == KEPT}


def test_it_validates(curated: Dataset) -> None:
    done = CliRunner().invoke(validate.app, [curated.root, "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "6 clips" in done.output


def test_without_ray_rows_and_media_are_the_same(
    curated: Dataset, inputs: Path, tmp_path: Path, without_ray: None
) -> None:
    said = run(inputs, tmp_path / "local", "shards.max_videos=5")
    dataset = Dataset.at(tmp_path / "local")
    assert decisions(dataset) == decisions(curated) and clips(dataset) == clips(curated)
    assert len(dataset.commits()) == 3  # of 5, 5 and 2 videos
    assert f"{len(EXPECTED)} videos already decided" in run(inputs, tmp_path / "local")
    assert "3 shards in" in said or "2 shards in" in said  # some commits hold no clip


def test_a_rerun_adds_nothing(curated: Dataset, inputs: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(curated.root).rglob("*.parquet")}
    assert f"{len(EXPECTED)} videos already decided" in run(inputs, curated.root)
    assert before == {p: p.stat().st_mtime_ns for p in Path(curated.root).rglob("*.parquet")}


def test_a_repaired_dataset_is_made_whole_by_the_same_run(
    copied: Dataset, curated: Dataset, inputs: Path
) -> None:
    shard = next(Path(copied.root, "shards").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = CliRunner().invoke(validate.app, [copied.root, "--workers", "1", "--repair"])
    assert done.exit_code == 0 and "sha256" in done.output
    run(inputs, copied.root)
    assert decisions(copied) == decisions(curated) and clips(copied) == clips(curated)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("small.mp4", "dropped by resolution: 108 is below the bound 180"),
        ("text.mp4", "failed: not_video"),
        ("good.mp4", "kept"),
    ],
)
def test_why_names_the_reason(curated: Dataset, inputs: Path, name: str, sentence: str) -> None:
    done = CliRunner().invoke(why.app, [curated.root, str(inputs / name)])
    assert done.exit_code == 0, done.output
    assert sentence in done.output


def test_why_offers_the_nearest_name(curated: Dataset, inputs: Path) -> None:
    done = CliRunner().invoke(why.app, [curated.root, str(inputs / "goood.mp4")])
    assert done.exit_code == 2
    assert f"did you mean {inputs / 'good.mp4'}" in done.output.replace("\n", "")


# -- a changed config


@pytest.fixture
def copied(curated: Dataset, tmp_path: Path) -> Dataset:
    shutil.copytree(curated.root, tmp_path / "copied")
    return Dataset.at(tmp_path / "copied")


def test_a_tighter_rule_is_decided_from_stored_scores(
    copied: Dataset, curated: Dataset, inputs: Path
) -> None:
    without_column(Path(copied.root), "caption_score")  # in a folder older than a score, too
    said = run(inputs, copied.root, "rules.duration.min=1.05")
    assert "config changed since the last run (rules): 12 videos decided again" in said
    assert "0 to redo" in said
    kept = {
        r["clip_id"] for r in curated.rows(["clip_id", "duration_s"]) if r["duration_s"] >= 1.05
    }
    assert clips(copied) == {c: h for c, h in clips(curated).items() if c in kept}
    assert 0 < len(kept) < 6


def test_a_looser_rule_redoes_only_what_it_must(copied: Dataset, inputs: Path) -> None:
    said = run(inputs, copied.root, "rules.static.max=1")
    assert "11 videos decided again from their scores, 1 to redo" in said
    assert outcomes(copied) == EXPECTED | {"still.mp4": (KEPT, None)}
    done = CliRunner().invoke(validate.app, [copied.root, "--workers", "1"])
    assert done.exit_code == 0, done.output


def test_another_encoder_setting_redoes_all(copied: Dataset, inputs: Path) -> None:
    said = run(inputs, copied.root, "cut.crf=30")
    assert "(cut): 0 videos decided again from their scores, 12 to redo" in said
    assert outcomes(copied) == EXPECTED


def test_given_back_the_old_config_the_rows_are_the_old_ones(
    copied: Dataset, curated: Dataset, inputs: Path
) -> None:
    run(inputs, copied.root, "rules.duration.min=1.05")
    run(inputs, copied.root)
    assert decisions(copied) == decisions(curated)
    assert clips(copied) == clips(curated)


# -- a killed run


def start(inputs: Path, output: Path, mark: str, *how: str) -> subprocess.Popen[bytes]:
    """The real command in a process group of its own, a commit per video."""
    command = [sys.executable, "curation/run.py", str(inputs), "--pipeline", "web", *how]
    for override in [*SMALL, "shards.max_videos=1"]:
        command += ["--set", override]
    return subprocess.Popen(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env=os.environ | {MARK: mark},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_commits(output: Path, process: subprocess.Popen[bytes], num_commits: int) -> None:
    """Block until a run has made some commits; it must not end before."""
    while len(list(output.glob("manifest/*.json"))) < num_commits:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)  # a poll, not a guess: the condition above decides


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--ray-address", "local"]])
def test_a_killed_run_goes_on_to_the_same_rows_and_media(
    curated: Dataset, inputs: Path, tmp_path: Path, how: list[str]
) -> None:
    output, mark = tmp_path / "killed", uuid.uuid4().hex
    process = start(inputs, output, mark, *how)
    wait_for_commits(output, process, num_commits=3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(marked(mark), timeout=60)
    assert alive == []
    (output / "shards").mkdir(exist_ok=True)
    (output / "shards" / f".tmp-{'0' * 32}-{'f' * 16}.parquet").write_bytes(b"half written")
    said = run(inputs, output)
    assert "removed" in said and "already decided" in said
    dataset = Dataset.at(output)
    assert decisions(dataset) == decisions(curated)
    assert clips(dataset) == clips(curated)
    assert not list(output.rglob(".tmp-*"))


def test_a_second_writer_is_refused(inputs: Path, local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with (tmp_path / "taken/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run is writing"):
            run(inputs, tmp_path / "taken")


# -- URLs


@pytest.mark.parametrize("has_ray", [True, False])
def test_urls_are_fetched_decided_once_and_named_by_content(
    curated: Dataset,
    inputs: Path,
    serve: tuple[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    has_ray: bool,
) -> None:
    if not has_ray:
        request.getfixturevalue("without_ray")
    url, served = serve
    for name in ("good.mp4", "short.mp4"):
        shutil.copy(inputs / name, served / name)
    urls = tmp_path / "urls.csv"
    urls.write_text(f"url,title\n{url}/good.mp4,Shots\n{url}/short.mp4,\n{url}/gone.mp4,\n")
    private = "download.allow_private=true"
    run(urls, tmp_path / "fetched", private)
    dataset = Dataset.at(tmp_path / "fetched")
    assert outcomes(dataset) == {
        "good.mp4": (KEPT, None),
        "short.mp4": (DROPPED, "duration"),
        "gone.mp4": (FAILED, "gone"),
    }
    assert {row["caption"] for row in dataset.rows(["caption"])} == {"Shots"}
    assert clips(dataset).items() <= clips(curated).items()  # the same ids and bytes as from a file
    assert "3 videos already decided" in run(urls, tmp_path / "fetched", private)


# -- captions by a model


def test_captions_of_a_model_belong_to_their_clips(
    local_ray: None, inputs: Path, tmp_path: Path
) -> None:
    """A tiny random BLIP-2: what it says of each clip's own frame is what stands in its row."""
    checkpoint = build_checkpoint(tmp_path / "blip2", "opt")
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("good.mp4", "more.mkv"):
        shutil.copy(inputs / name, folder / name)
    model = ["captions.model=blip2", f"captions.checkpoint={checkpoint}", "captions.device=cpu"]
    run(folder, tmp_path / "captioned", *model)
    dataset = Dataset.at(tmp_path / "captioned")
    settings = plan(folder, "unused", *model).pipeline.captions
    blip2, rows = Blip2(settings), list(dataset.rows())
    assert len(rows) == 6
    for row in rows:
        assert row["caption_model"] == f"blip2:{checkpoint}"
        [at_s] = row["caption_frame_s"]
        assert row["start_s"] <= at_s < row["end_s"]
        picture = frame_at(row["source_url"], at_s)
        assert row["caption"] == (blip2.caption([picture])[0] or None)
    said = {row["clip_id"]: row["caption"] for row in dataset.ledger().to_pylist()}
    assert all(said[row["clip_id"]] == row["caption"] for row in rows)
    assert len({row["caption"] for row in rows}) > 1  # else any join would pass


def frame_at(path: str, at_s: float) -> np.ndarray:
    """The picture a captioner gets of the frame of a video at a time."""
    for timeline, frame in decode(path, num_threads=1):
        if abs(timeline.time_s(timeline.num_frames - 1) - at_s) < 1e-6:
            return picture_from_jpeg(jpeg(shrink(frame, CAPTION_SIDE_PX), Turn()))
    raise AssertionError(f"no frame at {at_s} s")


def test_missing_weights_stop_the_run_before_any_work(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "none"
    with pytest.raises(ConfigError, match=r"nowhere.*captions\.model=source_text"):
        plan(inputs, output, "captions.model=blip2", "captions.checkpoint=/nowhere")
    assert not output.exists()


# -- the samples of the repository


def test_the_demo_keeps_the_clean_and_drops_its_logo_twin(local_ray: None, tmp_path: Path) -> None:
    demo = make_plan([], "demo", CONFIG, str(tmp_path / "demo"), [], None)
    execute(demo, Console(file=io.StringIO()), time.time())
    dataset = Dataset.at(tmp_path / "demo")
    assert outcomes(dataset) == {
        "meadow.mp4": (KEPT, None),
        "meadow_logo.mp4": (DROPPED, "watermark"),
        "city_360p.mp4": (DROPPED, "resolution"),
        "dog_short.mp4": (DROPPED, "duration"),
    }
    rows = {round(r["start_s"], 1): r["caption"] for r in dataset.rows(["start_s", "caption"])}
    assert len(rows) == 7
    assert rows[28.2].startswith("Three small furry animals stand side by side")
    assert rows[33.7].startswith("A brown squirrel climbs out")
