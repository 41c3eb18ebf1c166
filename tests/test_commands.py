"""What all commands share: users' text whole, errors in a line, places checked before work."""

from __future__ import annotations

import fcntl
import io
import json
import shutil
import types
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from training_media import FPS, clip, mp4
from typer.testing import CliRunner

from curation import clean, report, run, validate, why
from curation.commands import say, told_errors
from curation.places import held
from curation.settings import ConfigError, RunError
from curation.shards import LEDGER_SCHEMA, Dataset, DatasetError, write_commit
from training import precompute, train

ROOT = Path(__file__).parents[1]
MEADOW = str(ROOT / "examples/media/meadow.mp4")
# Markup, an emoji's code, and more than a line of 80 columns; and with a tag that closes nothing.
ODD = "My talk [dQw4w9WgXcQ] [red] :cat: " + "on and on " * 8 + "end"
WORSE = f"{ODD} [/b]"
TITLE = f"{ODD}.mp4"

Invoke = Callable[..., tuple[int, str]]


def invoke(app: Any, *arguments: object) -> tuple[int, str]:
    """A command's exit code and all that it printed; a traceback fails the test."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def curate(*arguments: object) -> tuple[int, str]:
    return invoke(run.app, MEADOW, "--config", ROOT / "pipelines.yaml", *arguments)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in a folder of an odd name, of one kept clip of a video of an odd name."""
    folder = tmp_path_factory.mktemp("odd") / ODD
    video = {"video_id": "v", "source_url": TITLE, "decision": "kept", "attempts": 1}
    facts = {"start_s": 0.0, "end_s": 8 / FPS, "caption": WORSE, "duration": 1.0}
    rows = [{"level": "video"}, {"level": "clip", "clip_id": "v_0", **facts}]
    known = {"video_id": "v", "source_url": TITLE, "caption": WORSE, "duration": 1.0}
    kept = clip("v_0", mp4(8), 8, **known)
    empty = dict.fromkeys(LEDGER_SCHEMA.names)
    write_commit(Dataset.at(folder), [kept], [empty | video | row for row in rows], {"cut": "x"})
    return folder


# -- users' text


def test_curate_prints_titles_whole(tmp_path: Path) -> None:
    shutil.copy(MEADOW, tmp_path / TITLE)
    output = tmp_path / ODD
    arguments = (tmp_path / TITLE, "--config", ROOT / "pipelines.yaml", "--output", output)
    code, said = invoke(run.app, *arguments, "--dry-run")
    assert code == 0
    assert f"  {tmp_path / TITLE}\n" in said and f"1 source -> {output}\n" in said


def test_why_prints_titles_and_captions_whole(dataset: Path) -> None:
    code, said = invoke(why.app, dataset, TITLE)
    assert code == 0 and f"v  {TITLE}\n" in said and f"  {WORSE}\n" in said


def test_clean_prints_the_folder_whole(dataset: Path) -> None:
    code, said = invoke(clean.app, dataset, "--config", ROOT / "pipelines.yaml", "--dry-run")
    assert code == 0 and f"{dataset}, recipe hd-vg-clean\n" in said


def test_report_and_validate_print_the_folder_whole(dataset: Path, tmp_path: Path) -> None:
    place = shutil.copytree(dataset, tmp_path / ODD)
    code, said = invoke(report.app, place)
    assert code == 0 and said == f"{place}/report.html\n"
    assert invoke(validate.app, place, "--workers", 1)[0] == 0
    for odd in (place / "shards").iterdir():
        odd.rename(odd.with_name(f"{ODD}.parquet"))
    code, said = invoke(validate.app, place, "--workers", 1)
    assert code == 1 and f"shards/{ODD}.parquet: it belongs to no manifest" in said


def test_training_prints_the_folder_whole(dataset: Path, tmp_path: Path) -> None:
    tiny = ("--set", "num_frames=2", "--set", "held_out=0", "--dry-run", "--preset", "tiny")
    code, said = invoke(train.app, "--data", dataset, "--output", tmp_path / "run", *tiny)
    assert code == 0 and f"\n{dataset.name}: 1 clip," in said.replace("🐱", ":cat:")
    code, said = invoke(precompute.app, dataset, *tiny[:-3], *tiny[-3:])
    assert code == 0 and f"in {dataset}/latents\n" in said.replace("🐱", ":cat:")


@pytest.mark.parametrize("app", [clean.app, report.app, why.app, validate.app])
def test_what_is_not_there_is_named_whole(app: Any, tmp_path: Path) -> None:
    given = [tmp_path / WORSE, *(["x"] if app is why.app else [])]
    code, said = invoke(app, *given)
    assert code == 2 and said.startswith(f"error: {given[0]} is not a dataset folder")
    assert said.count("\n") == 1


def test_an_id_that_is_not_there_is_told_whole(dataset: Path) -> None:
    code, said = invoke(why.app, dataset, "x [/b]")
    assert code == 2 and f"error: no video, clip or source 'x [/b]' in {dataset}" in said


def test_bars_name_videos_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from curation.flow import progress

    monkeypatch.setattr(progress, "REFRESH_S", 0.001)
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    tally = types.SimpleNamespace()
    display = progress.Display(tally, 1, console)
    looks = []

    def look() -> dict[str, Any]:
        looks.append(0)
        if len(looks) == 9:
            display.stopped.set()
        finished = dict.fromkeys(progress.STAGES, 0)
        return {"finished": finished, "current": {"talk [dQw4w9WgXcQ] [red].mp4": ("fetch", 3.0)}}

    tally.look = look
    monkeypatch.setattr(progress, "Live", Shown)
    display.show_bars()
    assert "talk [dQw4w9WgXcQ] [red].mp4 3 s" in Shown.text


class Shown:
    """Stands for rich's Live, which draws four times a second: draws once, at the end."""

    text = ""

    def __init__(self, bars: Any, console: Console, **_: object) -> None:
        self.bars, self.console = bars, console

    def __enter__(self) -> None:
        update = self.bars.update

        def drawn(task: Any, **changes: Any) -> None:
            update(task, **changes)
            with self.console.capture() as capture:
                self.console.print(self.bars)
            Shown.text += capture.get()

        self.bars.update = drawn

    def __exit__(self, *_: object) -> None: ...


def test_what_would_steer_a_terminal_is_shown() -> None:
    console = Console(file=io.StringIO(), width=20)
    say(console, "a\x1b[2Jb\rc\ud800 \N{CAT FACE}")
    assert console.file.getvalue() == "a\\x1b[2Jb\\rc\\ud800 \N{CAT FACE}\n"  # type: ignore[attr-defined]


# -- errors


class OwnError(Exception): ...


class OwnStop(Exception): ...  # noqa: N818


def ended(error: BaseException) -> tuple[int, str]:
    """How a command ends that meets an error."""

    def body() -> None:
        with told_errors("go on", failures=(OwnError,), stops=(OwnStop,), mistakes=(KeyError,)):
            raise error

    import typer

    app = typer.Typer()
    app.command()(body)
    return invoke(app)


def of_a_task(cause: Exception) -> Exception:
    """An error as Ray raises one of a task; its own text is a traceback."""
    from ray.exceptions import RayTaskError

    return RayTaskError("commit", "Trace\n  of many\nlines", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a [/b]"), 2, "error: a [/b]\n"),
        (DatasetError("b"), 2, "error: b\n"),
        (KeyError("c"), 2, "error: 'c'\n"),
        (RunError("d\ne"), 1, "the run failed: d e\ngo on\n"),
        (ConnectionError("f"), 1, "the run failed: f\ngo on\n"),
        (OSError(28, "No space left", "x"), 1, "the run failed: [Errno 28] No space left: 'x'\n"),
        (OwnError("g"), 1, "the run failed: g\ngo on\n"),
        (OwnStop("stopped at 7"), 1, "stopped at 7; go on\n"),
        (KeyboardInterrupt(), 1, "stopped; go on\n"),
        (of_a_task(RunError("h")), 1, "the run failed: h\ngo on\n"),
        (of_a_task(OSError(28, "No space left")), 1, "the run failed: [Errno 28] No space left\n"),
        (of_a_task(ConfigError("i")), 2, "error: i\n"),
        (of_a_task(ZeroDivisionError("ours")), 1, "of many\nlines"),  # a fault of ours: all of it
    ],
    ids=repr,
)
def test_an_error_is_a_line_and_an_exit_code(error: BaseException, code: int, said: str) -> None:
    found = ended(error)
    assert found[0] == code and said in found[1]


def test_our_own_fault_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        ended(ZeroDivisionError())


# -- places


def bad_place(kind: str, folder: Path) -> Path:
    """An output that cannot be one."""
    place = folder / "out"
    if kind in ("file", "below"):
        place.write_text("")
        return place / "x/y" if kind == "below" else place
    if kind == "link":
        place.symlink_to(folder / "nothing")
        return place
    if kind == "unwritable":
        return Path("/proc/videofactory")  # not even root makes a file there
    if kind == "long":
        return folder / ("x" * 300)
    (place / "manifest").mkdir(parents=True)
    text = {"foreign": '{"icons": []}', "list": "[1]", "broken": '{"name": "a", ', "bytes": "\xff"}
    if kind == "part":
        (place / "manifest").rmdir()
        (place / "manifest").write_text("")
    else:
        (place / "manifest/a.json").write_text(text[kind], "latin-1")
    return place


PLACES = {
    "file": "is a file",
    "below": "out is a file; give a folder",
    "link": "is a link to nothing",
    "unwritable": "cannot be written to",
    "long": "File name too long",
    "foreign": "manifest/a.json is broken or not of a dataset: it has no name",
    "list": "manifest/a.json is broken or not of a dataset",
    "broken": "manifest/a.json is broken or not of a dataset",
    "bytes": "manifest/a.json is broken or not of a dataset",
    "part": "manifest is a file",
}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**_: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def is_told(found: tuple[int, str], says: str) -> None:
    code, said = found
    assert code == 2 and said.startswith("error: ") and says in said and said.count("\n") == 1


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry"])
@pytest.mark.parametrize("kind", PLACES)
def test_a_bad_output_is_told_before_ray_starts(
    no_ray: None, dataset: Path, tmp_path: Path, kind: str, dry: tuple[str, ...]
) -> None:
    place = bad_place(kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    is_told(curate("--output", place, *dry), PLACES[kind])
    config = ("--config", ROOT / "pipelines.yaml")
    is_told(invoke(clean.app, dataset, *config, "--output", place, *dry), PLACES[kind])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_uri_of_no_kind_is_told(no_ray: None, dataset: Path) -> None:
    is_told(curate("--output", "s4://bucket/x", "--dry-run"), "give a folder or a URI such as")
    is_told(invoke(why.app, "s4://bucket/x", "v"), "give a folder or a URI such as")


@pytest.mark.parametrize("app", [report.app, why.app, validate.app])
def test_a_broken_dataset_is_told(app: Any, tmp_path: Path) -> None:
    place = bad_place("foreign", tmp_path)
    is_told(invoke(app, place, *(["x"] if app is why.app else [])), PLACES["foreign"])


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry"])
@pytest.mark.parametrize(
    ("folder", "free", "says"),
    [
        ("x" * 60, 10**12, "is too long: Ray's sockets"),
        ("", 1000, "has 0 MB free"),
        ("file/x", 10**12, "is a file"),
    ],
)
def test_a_bad_tmpdir_is_told_before_ray_starts(
    no_ray: None, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    dry: tuple[str, ...], folder: str, free: int, says: str,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TMPDIR", str(tmp_path / folder))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, free))
    is_told(curate("--output", tmp_path / "out", *dry), says)
    config = ("--config", ROOT / "pipelines.yaml", "--output", tmp_path / "out")
    is_told(invoke(clean.app, dataset, *config, *dry), says)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # its Ray is elsewhere
    assert curate("--output", tmp_path / "out", "--dry-run")[0] == 0


# -- the lock


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    with held(folder, "taken"):
        with pytest.raises(ConfigError, match="taken; wait for it"), held(folder, "taken"):
            raise AssertionError
        lock = (folder / ".lock").open("w")
        with lock, pytest.raises(BlockingIOError):  # another program is kept out, too
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with held(folder, "taken"):
        pass


@pytest.mark.parametrize("target", ["victim", "new"])
def test_a_lock_that_is_a_link_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.lock").symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match="is a link; remove it"), held(tmp_path / "out", "taken"):
        raise AssertionError
    assert (tmp_path / "victim").read_text() == "precious" and not (tmp_path / "new").exists()


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "out/.lock").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be locked"), held(tmp_path / "out", "taken"):
        raise AssertionError


def test_a_ray_that_starts_too_late_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def late(**options: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", late)
    code, said = curate("--output", tmp_path / "out")
    assert code == 1 and "Ray did not start within 30 s" in said


# -- for scripts


def test_validate_ends_with_one_line_for_scripts(dataset: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(dataset, tmp_path / "data")
    code, said = invoke(validate.app, dataset, "--workers", 1, "--json")
    assert code == 0 and said.count("\n") == 1
    assert json.loads(said) == {"commits": 1, "videos": 1, "clips": 1, "problems": []}
    assert invoke(validate.app, dataset, "--workers", 1, "--quiet") == (0, "")
    next((dataset / "shards").iterdir()).unlink()
    code, said = invoke(validate.app, dataset, "--workers", 1, "--json")
    assert code == 1 and len(json.loads(said)["problems"]) >= 1
    assert invoke(validate.app, dataset, "--workers", 1, "--quiet") == (1, "")


def test_clean_ends_with_its_record_for_scripts(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "index"
    recipe = ("--config", ROOT / "pipelines.yaml", "--recipe", "near-copies", "--index-only")
    code, said = invoke(clean.app, dataset, "--output", output, *recipe, "--json")
    assert code == 0 and said.count("\n") == 1
    record = json.loads(said)
    assert record["output"] == str(output) and record["clips"]["total"] == 1
    assert record == {"output": str(output)} | json.loads((output / "run.json").read_text())


@pytest.mark.parametrize("app", [run.app, clean.app])
def test_a_dry_run_has_no_result(app: Any, dataset: Path) -> None:
    code, said = invoke(app, dataset, "--dry-run", "--json")
    assert code == 2 and said.startswith("error: --dry-run has no result for --json")
