"""vf-export-clips: killed and resumed, on an object store, refused, and what it tells."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeVideo, Store
from exporting import export, hashes, refused, run, write_dataset

from curation.exports import clips, media, parts, written
from curation.exports.asked import Order, make_plan
from curation.shards import Dataset
from curation.shards.folders import AtomicFile
from curation.takedown.tombstones import add, of_names

ROOT = Path(__file__).parents[1]
LAYOUTS = ["folder", "finetrainers", "hf", "webdataset"]


@pytest.fixture(scope="module")
def dataset(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(str(tmp_path_factory.mktemp("exports") / "mine"), make_video)


class Killed(BaseException):
    """A process that is gone at this point: nothing that comes after runs."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, folder: Path, stop: int) -> Iterator[None]:
    """Inside, a run is gone when it has written `stop` files of a folder, the next one half."""
    close, left = AtomicFile.__exit__, [stop]

    def die(self: AtomicFile, *error: Any) -> None:
        if not self.path.startswith(str(folder)):
            return close(self, *error)
        if left[0] == 0:  # what was written stays as it is, without its name
            self.stream.close()
            raise Killed
        left[0] -= 1
        close(self, *error)

    with monkeypatch.context() as patched:
        patched.setattr(AtomicFile, "__exit__", die)
        yield


@pytest.mark.parametrize("to", LAYOUTS)
def test_killed_at_any_point_it_ends_with_the_same_files(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    if to == "webdataset":
        pytest.importorskip("webdataset")
    monkeypatch.setattr(written, "PART_ROWS", 2)
    monkeypatch.setattr("curation.exports.asked.MB", 40_000)
    options = ["--workers", 1, "--frames", "4k+1"]
    options += ["--shard-mb", 1] if to == "webdataset" else []
    export(dataset, to, tmp_path / "whole", *options)
    wanted = hashes(tmp_path / "whole")
    given = [dataset.uri, "--to", to, "--output", tmp_path / "out", *options]
    for stop in range(200):
        try:
            with dying(monkeypatch, tmp_path / "out", stop):
                assert run(*given).exit_code == 0
            break
        except Killed:
            assert not (tmp_path / "out/export.json").exists()
        if stop % 3 == 0:  # what one run left is gone on from by the next, which is killed as well
            continue
        export(dataset, to, tmp_path / "out", *options)
        assert hashes(tmp_path / "out") == wanted
        shutil.rmtree(tmp_path / "out")
    assert stop > 3 and hashes(tmp_path / "out") == wanted


def test_a_process_that_is_killed(dataset: Dataset, tmp_path: Path) -> None:
    """SIGKILL, from inside, when the third clip is made."""
    script = (
        "import os, signal\n"
        "from curation import export_clips\n"
        "from curation.exports import clips, written\n"
        "written.PART_ROWS, make, seen = 1, clips.made, []\n"
        "def dying(*given):\n"
        "    seen.append(1)\n"
        "    len(seen) == 3 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return make(*given)\n"
        "clips.made = dying\n"
        "export_clips.main()\n"
    )
    given = [dataset.uri, "--to", "jsonl", "--output", str(tmp_path / "out"), "--workers", "1"]
    given += ["--root", "/data"]
    killed = subprocess.run([sys.executable, "-c", script, *given], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "out/.export/begun.json").exists()
    export(dataset, "jsonl", tmp_path / "out", "--root", "/data")
    export(dataset, "jsonl", tmp_path / "whole", "--root", "/data")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_parts_that_are_done_are_not_done_again(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "PART_ROWS", 1)
    made: list[int] = []

    def counted(*given: Any) -> media.Media:
        made.append(1)
        if len(made) == 4:
            raise Killed
        return media.made(*given)

    monkeypatch.setattr(clips, "made", counted)
    options = ["--workers", "1"]
    with pytest.raises(Killed):
        run(dataset.uri, "--to", "ltx", "--output", tmp_path, *options)
    num_made = len(made)
    num_done = len(list(parts.read_parts(Dataset.at(tmp_path))))
    assert num_done in (1, 2, 3)
    export(dataset, "ltx", tmp_path, *options)
    assert len(made) == num_made + 5 - num_done


def test_an_export_that_is_whole_is_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    first = export(dataset, "folder", tmp_path / "out")
    (tmp_path / "out" / "cache").mkdir()  # as trainers make them
    before = hashes(tmp_path / "out")
    done = run(dataset.uri, "--to", "folder", "--output", tmp_path / "out")
    assert done.exit_code == 0 and "5 clips of 5" in done.output
    assert "were there already" in done.output
    assert hashes(tmp_path / "out") == before
    assert export(dataset, "folder", tmp_path / "out") == first


def test_the_same_on_an_object_store(dataset: Dataset, tmp_path: Path, s3: Store) -> None:
    source = Dataset.at(s3.uri("mine"))
    for name in hashes(dataset.root):
        s3.put(f"mine/{name}", Path(dataset.root, name).read_bytes())
    for to in ("folder", "finetrainers", "webdataset"):
        if to == "webdataset":
            pytest.importorskip("webdataset")
        assert export(source, to, s3.uri(f"out/{to}")) == export(dataset, to, tmp_path / to)
        wanted = hashes(tmp_path / to)
        out = Dataset.at(s3.uri(f"out/{to}"))
        for name in wanted:
            assert out.read_bytes(*name.split("/")) == (tmp_path / to / name).read_bytes()
        assert not out.exists(".export", "begun.json")
    done = run(source.uri, "--to", "folder", "--output", s3.uri("out/folder"), "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["clips"]["exported"] == 5
    out = Dataset.at(s3.uri("out/jsonl"))
    export(dataset, "jsonl", out.uri)
    first = json.loads(out.read_bytes("metadata.jsonl").splitlines()[0])
    assert first["video_path"].startswith("videos/")
    assert "test:test" not in out.read_bytes("export.json").decode()


def test_what_was_taken_down_is_left_out(dataset: Dataset, tmp_path: Path) -> None:
    mine = Dataset.at(shutil.copytree(dataset.root, tmp_path / "mine"))
    add(mine, of_names([("video", "plain")]))
    counts = export(mine, "folder", tmp_path / "out")
    assert counts["dropped"] == {"taken down": 1} and counts["exported"] == 4
    assert not list((tmp_path / "out").glob("plain*"))
    add(mine, of_names([("video", "bees")]))
    told = refused(mine.uri, "--to", "folder", "--output", tmp_path / "out")
    assert "of another dataset, or of this one before it changed" in told


def test_a_dry_run_says_what_a_run_would(dataset: Dataset, tmp_path: Path) -> None:
    options = ["--frames", "8k+1", "--max-frames", 30, "--captioned-only", "--multiple-of", 64]
    done = run(dataset.uri, "--to", "folder", "--dry-run", "--json", *options)
    told = json.loads(done.stdout)["clips"]
    counts = export(dataset, "folder", tmp_path / "out", *options)
    assert told.pop("duration_s") == pytest.approx(counts.pop("duration_s"), abs=1e-3)
    assert told | {"made": 0, "bytes": 0} == counts | {"made": 0, "bytes": 0}
    assert counts["dropped"] == {"without a caption": 1}
    done = run(dataset.uri, "--to", "folder", "--dry-run", *options)
    assert "4 clips of 5" in done.output and "left out, without a caption: 1" in done.output


def test_every_clip_moves_the_bar(dataset: Dataset, tmp_path: Path) -> None:
    plan = make_plan(Order(dataset.uri, "folder", str(tmp_path / "out")))
    seen: list[tuple[int, int]] = []
    written.export(plan, 1, lambda done, total: seen.append((done, total)))
    total = seen[0][1]
    assert seen == [(n, total) for n in range(total + 1)]


def test_what_is_told(dataset: Dataset, tmp_path: Path) -> None:
    done = run(dataset.uri, "--to", "hf", "--output", tmp_path / "a", "--frames", "4k+1")
    assert "5 clips of 5 " in done.output and "with an empty caption: 1" in done.output
    assert "trimmed at the end: 5" in done.output
    assert "(codec libx264, crf 18, preset veryfast)" in done.output
    quiet = run(dataset.uri, "--to", "hf", "--output", tmp_path / "b", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_a_log_has_a_line_now_and_then(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.export_clips.LOG_EVERY_S", 0.0)
    monkeypatch.setattr(written, "PART_ROWS", 2)
    done = run(dataset.uri, "--to", "folder", "--output", tmp_path)
    lines = [line for line in done.output.splitlines() if line.endswith(" of 5 clips")]
    assert lines == [f"{n} of 5 clips" for n in range(6)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--to", "hff"], "--to hff is no layout; did you mean 'hf'?"),
        (["--to", "folder", "--frames", "4k-1"], "give one such as 4k+1 or 8k+1, or any"),
        (["--to", "folder", "--fps", "0"], "--fps '0' is not a rate from 1 to 240"),
        (["--to", "folder", "--fps", "1/0"], "is not a rate"),
        (["--to", "folder", "--multiple-of", "15"], "--multiple-of 15 is odd"),
        (["--to", "ltx", "--max-frames", "8"], "leaves no count of 8k+1 frames; give 9 or more"),
        (["--to", "ltx", "--min-frames", "9", "--max-frames", "8"], "is more than --max-frames 8"),
        (["--to", "hf", "--shard-mb", "9"], "--shard-mb is for --to webdataset"),
        (["--to", "hf", "--root", "/x"], "--root is for --to jsonl"),
        (["--to", "hf", "--caption-column", "capton"], "did you mean 'caption'?"),
        (["--to", "hf", "--caption-column", "fps"], "is no column of texts"),
    ],
)
def test_mistakes(dataset: Dataset, tmp_path: Path, options: list[str], told: str) -> None:
    assert told in refused(dataset.uri, *options, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    to = ["--to", "folder"]
    assert "--output is missing" in refused(dataset.uri, *to)
    assert "is not a dataset folder" in refused(tmp_path, *to, "--output", tmp_path / "out")
    inside = refused(dataset.uri, *to, "--output", Path(dataset.root) / "x")
    assert "is the dataset itself or lies inside it" in inside
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/holiday.jpg").write_bytes(b"x")
    told = refused(dataset.uri, *to, "--output", tmp_path / "mine")
    assert "is not empty: it holds 'holiday.jpg'; give a new folder" in told
    (tmp_path / "other").mkdir()
    (tmp_path / "other/export.json").write_text("[]")
    assert "is not of an export" in refused(dataset.uri, *to, "--output", tmp_path / "other")
    export(dataset, "folder", tmp_path / "out", "--frames", "4k+1")
    told = refused(dataset.uri, *to, "--output", tmp_path / "out")
    assert "holds an export with frames '4k+1', not 'any'" in told
    told = refused(dataset.uri, "--to", "jsonl", "--output", tmp_path / "out")
    assert "holds an export with layout 'folder', not 'jsonl'" in told


def test_nothing_left_is_a_run_that_failed(dataset: Dataset, tmp_path: Path) -> None:
    done = run(dataset.uri, "--to", "folder", "--output", tmp_path, "--min-frames", 1000)
    assert done.exit_code == 1
    assert "none of 5 clips is left to export (too few frames: 5)" in done.output
    assert not (tmp_path / "export.json").exists()


def test_a_clip_that_is_broken_stops_the_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> media.Media:
        return media.made(b"", *_[1:])

    monkeypatch.setattr(clips, "made", broken)
    done = run(dataset.uri, "--to", "folder", "--output", tmp_path)
    told = " ".join(done.output.split())
    assert done.exit_code == 1 and "cannot be exported: not_video" in told
    assert f"vf-validate {dataset.uri}" in told


def test_without_the_package_webdataset_is_refused(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = refused(dataset.uri, "--to", "webdataset", "--output", tmp_path)
    assert "pip install videofactory[webdataset]" in told


def test_a_folder_that_another_export_writes_to(dataset: Dataset, tmp_path: Path) -> None:
    with written.only_exporter(Dataset.at(tmp_path)):
        told = refused(dataset.uri, "--to", "folder", "--output", tmp_path)
    assert "another export is writing to" in told
    assert os.listdir(tmp_path) == [".export"]  # noqa: PTH208
