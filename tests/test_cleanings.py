"""vf-clean on a real Ray: scores stored clips, decides, and writes a dataset like any other."""

from __future__ import annotations

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import PACKAGED_JOB, Shot, num_packets, read_frames, without_column
from fake_scorers import ODD_HEIGHT_PX, NoWeights, fakes
from rich.console import Console
from test_workers import MARK, marked
from typer.testing import CliRunner

from curation import clean, report, validate, why
from curation.decode.tracks import Scoring
from curation.flow import actors, plans
from curation.flow.holdings import decided
from curation.pipelines import Media
from curation.rules import Verdict
from curation.settings import ConfigError, RunError
from curation.shards import (
    DROPPED,
    FAILED,
    KEPT,
    LEDGER_SCHEMA,
    SHARD_SCHEMA,
    Dataset,
    write_commit,
)
from curation.subsets import cleaned as cleanings
from curation.subsets import scored as rescores
from curation.subsets.asked import Order, make_plan
from curation.subsets.cleaned import execute
from curation.subsets.recipes import load_recipe
from curation.subsets.scored import score_group

ROOT = Path(__file__).parents[1]
CONFIG = """
pipelines: {web: {}}
recipes:
  small:
    rules: {motion: {min: 0.1}, text: {max: 0.9}}
    scorers: {motion: flow, text: rapidocr, look: pixels}
  sharp:
    extends: small
    rules: {sharpness: {min: 0.4}}
"""
# Clips by name: what is shown and how high. Two videos a commit, two commits.
PICTURES = {
    "a0": ("test", 64),
    "a1": ("fractal", 64),
    "b0": ("color=black:s={size}:r={fps}", 64),
    "c0": ("bars", ODD_HEIGHT_PX),
    "c1": ("color=red:s={size}:r={fps}", 64),
    "d0": ("gradient", 64),
}
COMMITS = (("a", "b"), ("c", "d"))


def shard_row(name: str, path: Path, height: int) -> dict[str, Any]:
    frames = read_frames(path)
    index = int(name[1])
    known = {
        **{"clip_id": f"{name[0]}_{index}", "video_id": name[0], "source_url": f"{name[0]}.mp4"},
        **{"start_s": 10.0 * index, "end_s": 10.0 * index + 0.4, "duration_s": 0.4, "fps": 25.0},
        **{"num_frames": len(frames), "width": 96, "height": height, "codec": "h264"},
        **{"scene_index": index, "caption": f"a clip {name}", "resolution": float(height)},
        "duration": 0.4,
    }
    clip = {"bytes": path.read_bytes(), "path": f"{known['clip_id']}.mp4"}
    return dict.fromkeys(SHARD_SCHEMA.names) | known | {"clip": clip}


def ledger_row(level: str, **known: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA.names)
    return empty | {"level": level, "decision": KEPT, "attempts": 1} | known


@pytest.fixture(scope="session")
def original(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of six clips, one clip that curation dropped, and one video that failed."""
    dataset = Dataset.at(tmp_path_factory.mktemp("clean") / "original")
    for number, videos in enumerate(COMMITS):
        clips, ledger = [], []
        for video in videos:
            url = {"video_id": video, "source_url": f"{video}.mp4"}
            ledger.append(ledger_row("video", duration=30.0, **url))
            for name in [n for n in PICTURES if n[0] == video]:
                picture, height = PICTURES[name]
                path = make_video(
                    f"clean-{name}.mp4",
                    shots=[Shot(picture, 0.4)],
                    size=f"96x{height}",
                    options=["-bf", 0],
                )
                assert num_packets(path) == 10
                clips.append(shard_row(name, path, height))
                ledger.append(
                    ledger_row(
                        "clip", **{k: v for k, v in clips[-1].items() if k in LEDGER_SCHEMA.names}
                    )
                )
        early = decided(Verdict("static", 1.0, 0.95))
        still = {"video_id": videos[0], "source_url": f"{videos[0]}.mp4", "duration": 3.0}
        still |= {"clip_id": f"{videos[0]}_still", "start_s": 20.0, "end_s": 23.0}
        ledger.append(ledger_row("clip", **still, **early))
        failed = {"decision": FAILED, "error_class": "corrupt", "message": "after 1 s"}
        ledger.append(ledger_row("video", video_id=f"x{number}", source_url=f"x{number}", **failed))
        write_commit(dataset, clips, ledger, {"cut": "test", "rules": "test"})
    run = {"pipeline": {"rules": {"static": {"max": 0.95}}, "scorers": {"watermark": "network"}}}
    dataset.write_bytes(json.dumps(run).encode(), "run.json")
    return Path(dataset.root)


@pytest.fixture
def dataset(original: Path, tmp_path: Path) -> Dataset:
    """A copy of the original that nothing has scored."""
    shutil.copytree(original, tmp_path / "dataset")
    return Dataset.at(tmp_path / "dataset")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "pipelines.yaml"
    path.write_text(CONFIG)
    return path


def clean_it(
    dataset: Dataset,
    subset: Dataset,
    config: Path,
    *overrides: str,
    recipe: str = "small",
    scoring: Scoring | None = None,
    index_only: bool = False,
    retry_failed: bool = False,
) -> str:
    """Run the command's body in this process, with fake scorers; returns what it printed."""
    places = dataset.root, subset.root, recipe, config, list(overrides)
    order = Order(*places, index_only=index_only, retry_failed=retry_failed)
    console = Console(record=True, width=120, file=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        chosen = scoring or fakes()
        patch.setattr(cleanings, "build_scoring", lambda scorers, keys: only(chosen, keys))
        execute(make_plan(order), console, time.time())
    return console.export_text()


Run = Callable[..., str]


@pytest.fixture
def run(local_ray: None, config: Path, subset: Dataset) -> Run:
    """run(dataset, *overrides, ...): clean_it to `subset`."""
    return lambda dataset, *overrides, **how: clean_it(dataset, subset, config, *overrides, **how)


@pytest.fixture(scope="module")
def scored(
    original: Path, local_ray: None, config: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Dataset, Dataset, str]:
    """A dataset with scores, its subset, and what the one run that made both printed."""
    folder = tmp_path_factory.mktemp("scored")
    shutil.copytree(original, folder / "dataset")
    dataset, subset = Dataset.at(folder / "dataset"), Dataset.at(folder / "subset")
    return dataset, subset, clean_it(dataset, subset, config)


@pytest.fixture
def again(scored: tuple[Dataset, Dataset, str], subset: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the scored dataset, with its subset's copy as `subset`."""
    shutil.copytree(scored[0].root, tmp_path / "again")
    shutil.copytree(scored[1].root, subset.root)
    return Dataset.at(tmp_path / "again")


def only(scoring: Scoring, keys: list[str]) -> Scoring:
    """The part of a scoring that has these keys, as build_scoring gives it."""
    return Scoring(
        *({k: v for k, v in part.items() if k in keys} for part in vars(scoring).values())
    )


@pytest.fixture
def subset(tmp_path: Path) -> Dataset:
    return Dataset.at(tmp_path / "subset")


def outcomes(dataset: Dataset, level: str = "clip") -> dict[str, tuple[str, str | None]]:
    rows = [row for row in dataset.ledger().to_pylist() if row["level"] == level]
    found = {r[f"{level}_id"]: (r["decision"], r["rule"] or r["error_class"]) for r in rows}
    assert len(found) == len(rows)
    return found


def media(dataset: Dataset) -> dict[str, str]:
    found = [(r["clip_id"], hashlib.sha256(r["clip"]["bytes"]).hexdigest()) for r in dataset.rows()]
    assert len(dict(found)) == len(found)
    return dict(found)


def files(folder: str | Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*.parquet")}


def is_valid(dataset: Dataset) -> bool:
    done = CliRunner().invoke(validate.app, [dataset.root, "--workers", "1"])
    return done.exit_code == 0


CLEAN = {
    "a_0": (KEPT, None),
    "a_1": (KEPT, None),
    "b_0": (DROPPED, "motion"),  # black
    "c_0": (KEPT, None),
    "c_1": (DROPPED, "text"),  # red
    "d_0": (DROPPED, "text"),  # red and yellow
    "a_still": (DROPPED, "static"),
    "c_still": (DROPPED, "static"),
}


def test_a_subset_is_a_dataset_like_any_other(scored: tuple[Dataset, Dataset, str]) -> None:
    dataset, subset, said = scored
    assert is_valid(dataset)
    assert "motion of 6 clips, text of 6 clips" in said
    assert outcomes(subset) == CLEAN
    failed = (FAILED, "corrupt")
    assert outcomes(subset, "video") == {
        **{"a": (KEPT, None), "b": (DROPPED, "motion"), "c": (KEPT, None), "d": (DROPPED, "text")},
        **{"x0": failed, "x1": failed},
    }
    before = media(dataset)
    assert media(subset) == {c: before[c] for c in ("a_0", "a_1", "c_0")}
    assert is_valid(subset)
    for row in subset.rows():
        assert row["motion"] > 0.1 and row["text"] <= 0.9 and row["zoom"] == 0.25
        assert row["sharpness"] is None and row["caption"].startswith("a clip")
    [black] = [r for r in subset.ledger().to_pylist() if r["clip_id"] == "b_0"]
    assert black["value"] == black["motion"] < 0.1 == black["threshold"]
    assert [[round(x, 2) for x in box] for box in black["text_boxes"]] == [[0, 0, 0.5, 0.25]]
    done = CliRunner().invoke(why.app, [subset.root, "b_0"])
    assert "dropped by motion" in done.output and "below the bound 0.1" in done.output
    with pytest.raises(ConfigError, match="is a subset that vf-clean wrote"):
        plans.make_plan([], "demo", ROOT / "pipelines.yaml", subset.root, [], None)


def test_the_run_records_what_was_decided_and_why(
    again: Dataset, subset: Dataset, run: Run
) -> None:
    said = run(again, "rules.motion.min=p50", "keep=1")
    record = json.loads(subset.read_bytes("run.json"))
    motions = [r["motion"] for r in subset.ledger().to_pylist() if r["motion"] is not None]
    middle = sum(sorted(motions)[2:4]) / 2
    assert record["resolved"]["motion"] == {"min": pytest.approx(middle), "max": None}
    assert record["recipe"]["rules"]["motion"]["min"] == "p50"
    assert [(s["rule"], s["came"], s["left"]) for s in record["steps"][:1]] == [("motion", 6, 3)]
    assert f">= {middle:.4g} (p50)" in said
    clips = record["funnel"]["clips"]
    assert clips["total"] == 8 and clips["dropped"]["static"] == 2
    assert clips["kept"] == record["clips"]["kept"] == len(media(subset))
    assert list(clips["dropped"])[:2] == ["static", "motion"]  # earlier rules first
    told = CliRunner().invoke(report.app, [subset.root, "--card"], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    page = (Path(subset.root) / "report.html").read_text()
    motion = page[page.index('data-rule="motion"') :].split("</tr>")[0]
    assert f"min {middle:.4g}" in motion and '<td class="n">3</td>' in motion


def test_a_rerun_writes_nothing_and_a_changed_recipe_scores_nothing_again(
    again: Dataset, subset: Dataset, run: Run
) -> None:
    scores, written = files(Path(again.root) / "scores"), files(subset.root)
    assert len(scores) == 4  # two scorers, two commits
    no_scorer = Scoring()
    assert "commits of an earlier run: 2 hold, 0 do not" in run(again, scoring=no_scorer)
    assert files(subset.root) == written
    said = run(again, "rules.text.max=1", scoring=no_scorer)
    assert "commits of an earlier run: 1 hold, 1 do not; 1 to write" in said
    assert outcomes(subset) == CLEAN | {"c_1": (KEPT, None), "d_0": (KEPT, None)}
    assert is_valid(subset) and files(Path(again.root) / "scores") == scores
    run(again, scoring=no_scorer)
    assert outcomes(subset) == CLEAN and media(subset).keys() == {"a_0", "a_1", "c_0"}


def test_only_what_an_earlier_rule_lets_through_is_scored(again: Dataset, run: Run) -> None:
    """Motion is known and drops b_0, so its text is not asked for until motion lets it through."""
    [text] = Path(again.root, "scores").glob("text-*")
    shutil.rmtree(text)
    run(again)
    tables = [pq.read_table(path).to_pylist() for path in text.iterdir()]
    known = {row["clip_id"]: row["scored"] for rows in tables for row in rows}
    assert known == {c: c != "b_0" for c in ("a_0", "a_1", "b_0", "c_0", "c_1", "d_0")}
    run(again, "rules.motion.min=0")
    tables = [pq.read_table(path).to_pylist() for path in text.iterdir()]
    assert all(row["scored"] and row["text"] is not None for rows in tables for row in rows)


def test_a_score_of_another_scorer_does_not_count(
    scored: tuple[Dataset, Dataset, str], config: Path, tmp_path: Path
) -> None:
    """A subset's own scores serve the next recipe where it names the same scorer."""
    shutil.copytree(scored[1].root, tmp_path / "first")
    first = Dataset.at(tmp_path / "first")
    small = ("--recipe", "small", "--config", config, "--dry-run")
    code, said = invoke(first.root, *small)
    assert code == 0 and "not scored" not in said
    run_json = json.loads(first.read_bytes("run.json"))
    run_json["scorers"]["text"] = "another"
    first.write_bytes(json.dumps(run_json).encode(), "run.json")
    code, said = invoke(first.root, *small)
    assert code == 0 and "not scored yet: text (rapidocr) of 3 clips" in said
    assert "motion (flow)" not in said


def test_a_dataset_older_than_a_score_serves_every_command(
    dataset: Dataset, subset: Dataset, run: Run
) -> None:
    without_column(Path(dataset.root), "caption_score")
    assert is_valid(dataset)
    run(dataset)
    assert outcomes(subset) == CLEAN and is_valid(subset)
    assert all(row["caption_score"] is None for row in subset.rows())
    for app, arguments in ((why.app, ["a_0"]), (report.app, ["--card"]), (report.app, [])):
        places = [dataset.root, subset.root] if not arguments else [dataset.root, *arguments]
        told = CliRunner().invoke(app, places, catch_exceptions=False)
        assert told.exit_code == 0, told.output
    without_column(Path(subset.root), "clip_id")
    assert not is_valid(subset)  # no score


# -- scorers that misbehave


def test_a_clip_that_could_not_be_scored_is_failed_or_dropped(
    again: Dataset, subset: Dataset, run: Run
) -> None:
    """NaN is the scorer's failure; null says that there is nothing to measure."""
    said = run(again, "rules.text={}", recipe="sharp", scoring=fakes(look="nan"))
    assert "to score first: look of 5 clips" in said
    found = outcomes(subset)
    assert found["c_0"] == (FAILED, "scorer") and "c_0" not in media(subset)
    assert {found[c] for c in ("a_0", "a_1", "c_1", "d_0")} == {(KEPT, None)}
    [row] = [r for r in subset.ledger().to_pylist() if r["clip_id"] == "c_0"]
    assert row["message"] == "look: the scorer gave nan for sharpness"
    assert is_valid(subset)
    assert "to score first" not in run(again, "rules.text={}", recipe="sharp", scoring=Scoring())
    nothing = fakes(look="null")
    said = run(again, "rules.text={}", recipe="sharp", scoring=nothing, retry_failed=True)
    assert "to score first: look of 1 clip" in said
    assert outcomes(subset)["c_0"] == (DROPPED, "sharpness")
    done = CliRunner().invoke(why.app, [subset.root, "c_0"])
    assert "dropped by sharpness: not scored is below the bound 0.4" in done.output


def test_a_track_that_raises_hangs_or_crashes_costs_one_clip(original: Path, config: Path) -> None:
    dataset, recipe = Dataset.at(original), load_recipe(config, "sharp", [])
    wanted = {"motion": {"c_0", "c_1"}, "look": {"c_0", "c_1"}}
    [name] = [c["name"] for c in dataset.commits() if "c" in c["video_ids"]]

    def look_of(how: str) -> dict[str, dict[str, Any]]:
        found = score_group(dataset, name, 0, wanted, fakes(look=how), {}, recipe)
        assert found["look"]["c_1"] == {"sharpness": 0.5}
        assert found["motion"]["c_1"]["motion"] > 0.1
        return {key: rows["c_0"] for key, rows in found.items()}

    try:
        found = look_of("raise")
        assert found["look"] == {"error": "ValueError: this clip is odd"}
        assert found["motion"]["motion"] > 0.1  # the scorer beside it is not hurt
        found = look_of("crash")
        assert found["look"]["error"].startswith("crashed: the media process was killed by SIGKILL")
        assert found["motion"] == found["look"]  # nothing of the clip survives
        look_of("")
        worker = rescores.media_worker_for(recipe.media)
        worker.limits = Media(timeout_s=2)  # it runs: starting up is no hang
        odd = next(row for row in dataset.rows() if row["clip_id"] == "c_0")
        scores = rescores.score_stored(odd, fakes(look="hang").tracks, False, worker.limits)
        assert scores.error == "timeout: not done after 2 s"
    finally:
        rescores.media_worker_for(Media()).stop()


@pytest.mark.parametrize("how", ["raise", "crash", "hang"])
def test_a_model_that_raises_hangs_or_crashes_costs_one_clip(
    original: Path, local_ray: None, how: str
) -> None:
    [[actor]] = actors.start_models(fakes(text=how).models, 1, 0).values()
    jpegs = {}
    for row in Dataset.at(original).rows():
        picture = np.full((row["height"], 96, 3), 128, np.uint8)
        jpegs[row["clip_id"]] = [cv2.imencode(".jpg", picture)[1].tobytes()], None
    found = actors.ask(actor, jpegs, timeout_s=2 if how == "hang" else 60)
    said = {"raise": "RuntimeError: the batch", "crash": "crashed: ", "hang": "timeout: no score"}
    assert found.pop("c_0")["error"].startswith(said[how])
    assert {round(row["text"], 1) for row in found.values()} == {0.5} and len(found) == 5


def test_a_model_that_cannot_be_built_stops_the_run(
    dataset: Dataset, subset: Dataset, run: Run
) -> None:
    broken = Scoring(fakes().tracks, {"text": NoWeights})
    with pytest.raises(RunError, match="no weights in /nowhere"):
        run(dataset, scoring=broken)
    assert not subset.exists("manifest")


# -- a killed run


def test_a_killed_run_goes_on(
    dataset: Dataset, subset: Dataset, run: Run, config: Path, tmp_path: Path
) -> None:
    """The odd clip's scorer waits for a file, so the kill comes when one of two commits is done."""
    code = (
        "import sys, time; sys.path.insert(0, 'tests'); from rich.console import Console\n"
        "from curation.subsets import cleaned\n"
        "from pathlib import Path; from fake_scorers import fakes\n"
        f"cleaned.build_scoring = lambda *_: fakes('gate', {str(tmp_path / 'gate')!r})\n"
        f"places = {dataset.root!r}, {subset.root!r}, 'sharp', Path({str(config)!r}), []\n"
        "from curation.subsets.asked import Order, make_plan\n"
        "cleaned.execute(make_plan(Order(*places)), Console(), time.time(), 'local')\n"
    )
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {MARK: mark},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    scores = Path(dataset.root) / "scores"
    while len(list(scores.glob("*/[!.]*.parquet"))) < 3:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)  # a poll, not a guess: the condition above decides
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(marked(mark), timeout=60)
    assert alive == []
    before = files(scores)
    assert len(before) == 3 and not subset.exists("manifest")
    (next(scores.iterdir()) / ".tmp-0-left.parquet").write_bytes(b"half written")
    said = run(dataset, recipe="sharp")
    assert "to score first: motion of 3 clips, text of 3 clips, look of 3 clips" in said
    assert before.items() <= files(scores).items() and len(files(scores)) == 6
    assert outcomes(subset) == CLEAN
    whole = (subset.ledger().to_pylist(), media(subset))
    # Now as if it had been killed while it wrote the subset.
    lost = subset.commits()[0]["name"]
    subset.delete("manifest", f"{lost}.json")
    (Path(subset.root) / f"shards/.tmp-{'0' * 32}-{'f' * 16}.parquet").write_bytes(b"half written")
    said = run(dataset, recipe="sharp")
    assert (
        "removed 3 files" in said
        and "commits of an earlier run: 1 hold, 0 do not; 1 to write" in said
    )
    assert (subset.ledger().to_pylist(), media(subset)) == whole
    assert not list(tmp_path.rglob(".tmp-*"))


# -- the index


def test_an_index_names_the_clips_in_both_forms(
    scored: tuple[Dataset, Dataset, str], subset: Dataset, run: Run
) -> None:
    dataset = scored[0]
    run(dataset, index_only=True)
    table = pq.read_table(Path(subset.root) / "index.parquet").to_pylist()
    assert [row["clip_id"] for row in table] == sorted(c for c in CLEAN if CLEAN[c][0] == KEPT)
    assert all(row["motion"] > 0.1 and row["source_url"] for row in table)
    released = json.loads(subset.read_bytes("hdvg_0.json"))
    assert released["a"] == {
        "url": "a.mp4",
        "clip": {
            f"a.{i}.mp4": {
                "span": [f"00:00:{10 * i:02d}.000", f"00:00:{10 * i:02d}.400"],
                "fps": 25.0,
                "scene_split": [
                    {"clip_id": f"a.{i}_0", "scene_cut": [0, -1], "caption": f"a clip a{i}"}
                ],
            }
            for i in (0, 1)
        },
    }
    assert {row["hdvg_clip_id"] for row in table} == {
        part["clip_id"]
        for video in released.values()
        for clip in video["clip"].values()
        for part in clip["scene_split"]
    }
    assert not subset.exists("shards") and json.loads(subset.read_bytes("run.json"))["clips"]
    with pytest.raises(ConfigError, match="holds an index without media"):
        run(dataset)


# -- the command


def invoke(*arguments: object) -> tuple[int, str]:
    """The command in this process, its exit code and output; the session's Ray stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.is_initialized", lambda: False)
        done = CliRunner(env={"COLUMNS": "200"}).invoke(clean.app, [str(a) for a in arguments])
        return done.exit_code, " ".join(done.output.split())


def test_a_dry_run_needs_no_ray_and_writes_nothing(
    dataset: Dataset, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run started Ray")

    monkeypatch.setattr("ray.init", refuse)
    before = sorted(Path(dataset.root).rglob("*"))
    code, said = invoke(dataset.root, "--recipe", "small", "--config", config, "--dry-run")
    assert code == 0, said
    assert "not scored yet: motion (flow) of 6 clips" in said
    assert "not scored yet: text (rapidocr) of 6 clips" in said
    assert sorted(Path(dataset.root).rglob("*")) == before


def test_a_dry_run_shows_the_funnel_of_the_run(
    scored: tuple[Dataset, Dataset, str], config: Path
) -> None:
    code, said = invoke(scored[0].root, "--recipe", "small", "--config", config, "--dry-run")
    assert code == 0 and "not scored" not in said
    rows = [line for line in said.replace("│", " ").split() if line.isdigit()]
    assert rows == ["6", "6", "1", "5", "5", "2", "3", "3"]


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("dataset", "is the dataset itself or lies inside it"),
        ("dataset/below", "is the dataset itself or lies inside it"),
        ("link", "is the dataset itself or lies inside it"),
        ("foreign", "is a curated dataset, not a subset"),
    ],
)
def test_a_bad_place_for_the_subset_is_refused(
    dataset: Dataset, config: Path, tmp_path: Path, where: str, says: str
) -> None:
    (tmp_path / "link").symlink_to(dataset.root)
    shutil.copytree(dataset.root, tmp_path / "foreign")
    code, said = invoke(
        dataset.root, "--recipe", "small", "--config", config, "--output", tmp_path / where
    )
    assert code == 2 and says in said


def test_mistakes_are_told_and_exit_2(
    dataset: Dataset, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--recipe", "small", "--config", config)
    for arguments, says in [
        ((dataset.root, *small), "--output is missing"),
        ((tmp_path, *small, "--dry-run"), "is not a dataset folder"),
        (
            (dataset.root, "--recipe", "smal", "--config", config, "--dry-run"),
            "did you mean 'small'",
        ),
        ((dataset.root, *small, "--dry-run", "--set", "rules.txt.max=1"), "did you mean 'text'"),
    ]:
        code, said = invoke(*arguments)
        assert code == 2 and says in said
    monkeypatch.setenv(*PACKAGED_JOB)
    code, said = invoke(dataset.root, *small, "--output", "runs/subset")
    assert code == 2 and "is relative, and this Ray job" in said
