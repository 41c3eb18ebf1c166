"""docs/python.md as it is written: curation from Python, and its datasets in other tools."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

import curation
from curation import ConfigError, DatasetError, RunError, curate, curate_one
from curation.calls import overrides

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOG = ROOT / "examples" / "media" / "dog_short.mp4"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the blocks of the document leave behind, run one after another in a new folder."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "examples").symlink_to(ROOT / "examples")
    blocks = BLOCK.findall((ROOT / "docs" / "python.md").read_text())
    assert len(blocks) == 5
    names: dict[str, object] = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("curation.flow.plans.ray_runs", lambda: False)
        for block in blocks:
            exec(block, names)  # our own text
    return names


def test_a_run_returns_what_it_did(told: dict[str, object]) -> None:
    done = told["done"]
    assert isinstance(done, curation.Curated)
    assert done.funnel.videos.total == 2 and done.funnel.clips.kept == done.clips().num_rows > 0
    assert "clip" not in done.clips().column_names
    again = done.clips(["clip", "clip_id"])
    assert again.column_names == ["clip", "clip_id"] and again.num_rows == done.clips().num_rows
    assert set(done.ledger(["level"])["level"].to_pylist()) == {"video", "clip"}
    assert len(told["table"]) == done.funnel.clips.kept  # type: ignore[arg-type]
    assert told["batch"]["pixels"].shape[1:] == (8, 64, 112, 3)  # type: ignore[index]


def test_datasets_reads_a_folder_without_a_card(told: dict[str, object]) -> None:
    """The whole of it; the document streams. The ledger has columns that it could not read."""
    folder, done = told["folder"], told["done"]
    assert isinstance(folder, Path) and isinstance(done, curation.Curated)
    rows = datasets.load_dataset(str(folder / "runs/python"), cache_dir=str(folder / "cache"))
    assert rows["train"].num_rows == done.funnel.clips.kept
    assert sorted(rows["train"]["clip_id"]) == sorted(done.clips()["clip_id"].to_pylist())


def test_the_example_runs(
    tmp_path: Path,
    without_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "from_python.py"), run_name="__main__")
    told = capsys.readouterr().out
    found = re.search(r"(\d+) of (\d+) clips kept.*?(\d+) clips of 4 s and more", told, re.DOTALL)
    assert found
    kept, total, longer = map(int, found.groups())
    assert total > kept > longer > 0
    assert "resolution" in told and "torch.Size([2, 8, 64, 112, 3]) torch.uint8" in told


def test_one_video_needs_no_ray() -> None:
    code = f"""
import sys
from curation import curate_one
one = curate_one({str(DOG)!r}, set={{"rules": {{}}}})
assert one.ledger["decision"].to_pylist() == ["kept", "kept"], one.ledger
assert one.clips["clip"][0]["bytes"].as_py()[4:8] == b"ftyp"
assert not {{"ray", "torch", "transformers"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_video_that_fails_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video")
    one = curate_one(tmp_path / "v.mp4")
    assert one.clips.num_rows == 0
    assert one.ledger["error_class"].to_pylist() == ["not_video"]


def test_mistakes_are_raised(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'web'"):
        curate_one(DOG, "wep")
    with pytest.raises(ConfigError, match=r"text asks a model; use curate\(\)"):
        curate_one(DOG, set={"scorers.text": "rapidocr"})
    with pytest.raises(ConfigError, match="holds 4 videos"):
        curate_one(ROOT / "examples" / "media")
    with pytest.raises(ConfigError, match="no such file"):
        curate("nowhere.mp4", output=tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises((ConfigError, DatasetError), match="no dataset of ours"):
        curate(DOG, output=tmp_path / "mine")
    assert not issubclass(RunError, ConfigError)


def test_values_are_those_of_set() -> None:
    assert overrides({"rules.x": {"min": 1.5}, "a": "b: c"}) == ['rules.x={"min": 1.5}', 'a="b: c"']


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(AttributeError, match="no attribute 'curat'"):
        curation.curat  # noqa: B018
