"""A dataset of a stranger's does no harm: docs/security.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from curation import clean, report, validate
from curation.places import open_output
from curation.records import KeptClip
from curation.shards import LEDGER_SCHEMA, Dataset, DatasetError, write_commit
from curation.validation.commits import check_clip_rows


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A dataset of one commit, beside a folder of the user's with a file by a commit's name."""
    dataset = Dataset.at(tmp_path / "hostile")
    dataset.claim()
    row = dict.fromkeys(LEDGER_SCHEMA.names) | {"level": "video", "video_id": "v", "attempts": 1}
    row |= {"source_url": "v.mp4", "decision": "dropped"}
    write_commit(dataset, [], [row], {"cut": "x"})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / f"{'0' * 16}.parquet").write_text("mine")
    (mine / f"{'0' * 16}.json").write_text("mine")
    return tmp_path / "hostile"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


ORDERS = ("resume", "vf-clean", "vf-validate", "vf-validate --repair", "vf-report")


def order(what: str, dataset: Path) -> tuple[int, str]:
    """Run a command on a dataset; its exit code and what it said."""
    if what == "resume":
        try:
            open_output(str(dataset))[0].sweep()
        except DatasetError as error:
            return 2, str(error)
        return 0, ""
    app = {"vf-clean": clean.app, "vf-report": report.app}.get(what, validate.app)
    options = what.split()[1:]
    if what == "vf-clean":
        options = ["--output", str(dataset.parent / "subset"), "--recipe", "hd-vg-clean"]
    done = CliRunner().invoke(app, [str(dataset), *options], env={"COLUMNS": "500"})
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize("what", ORDERS)
@pytest.mark.parametrize("name", ["../../mine/" + "0" * 16, "0" * 16])
def test_a_manifest_of_another_name_touches_nothing(hostile: Path, what: str, name: str) -> None:
    manifest = next(hostile.glob("manifest/*.json"))
    told = json.loads(manifest.read_text()) | {"name": name, "replaces": name, "schema_version": 1}
    manifest.write_text(json.dumps(told))
    before = everything(hostile.parent / "mine")
    code, said = order(what, hostile)
    assert (code, "is of the commit" in said) == (0 if "repair" in what else code or 1, True)
    assert everything(hostile.parent / "mine") == before


@pytest.mark.parametrize("part", ["shards", "ledger", "manifest"])
@pytest.mark.parametrize("what", ["resume", "vf-validate --repair"])
def test_a_folder_that_is_a_link_is_not_swept(hostile: Path, what: str, part: str) -> None:
    mine = hostile.parent / "mine"
    if (hostile / part).is_dir():
        for path in (hostile / part).iterdir():
            shutil.copy(path, mine)
        shutil.rmtree(hostile / part)
    (hostile / part).symlink_to(mine)
    before = everything(mine)
    code, said = order(what, hostile)
    assert code != 0 and ("is a link" in said or "is broken" in said)
    assert everything(mine) == before


def test_a_manifest_names_files_of_its_own_folders(hostile: Path) -> None:
    path = next(hostile.glob("manifest/*.json"))
    told = json.loads(path.read_text())
    told["files"]["../../mine"] = {"bytes": 4, "sha256": ""}
    path.write_text(json.dumps(told))
    with pytest.raises(DatasetError, match=r"its files\..*shards"):
        Dataset.at(hostile).commits()


def test_a_clip_is_put_where_clips_are() -> None:
    row = KeptClip({"clip_id": "../../a\\b_0_1"}, b"").shard_row()
    assert row["clip"]["path"] == ".._.._a_b_0_1.mp4"
    told = {name: None for name in LEDGER_SCHEMA.names}
    for path, is_told in (("../a.mp4", True), ("a.mp4", False)):
        says = [*check_clip_rows({"clip": {"path": path}}, told, decode=False)]
        assert bool(says) == is_told


ODD: tuple[Any, ...] = (None, -1, "../x", [1], {"a": []}, True, 1e300)
PLACES = ("fingerprints", "video_ids", "num_clips", "num_ledger_rows", "duration_s", "files",
          "files.ledger", "files.ledger.bytes", "files.ledger.sha256", "fingerprints.cut",
          "own_scores", "replaces")  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_an_odd_manifest_is_told_in_one_sentence(hostile: Path, place: str) -> None:
    """Whatever a key holds: no traceback, of a command that reads or that sweeps."""
    manifest = next(hostile.glob("manifest/*.json"))
    whole = manifest.read_text()
    for odd in ODD:
        told = json.loads(whole)
        *above, key = place.split(".")
        node = told
        for each in above:
            node = node[each]
        node[key] = odd
        manifest.write_text(json.dumps(told))
        # A report takes a second.
        commands = ["vf-validate", "vf-report"] if odd in (None, [1]) else ["vf-validate"]
        for what in commands:
            code, said = order(what, hostile)
            assert said.strip() and code in (0, 1, 2)
        if above:
            continue
        manifest.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != key}))
        code, said = order("vf-validate", hostile)
        assert said.strip() and code in (0, 1)
        manifest.write_text(json.dumps(told))
        if odd in (-1, [1]) and place != "replaces":
            with pytest.raises(DatasetError, match="is broken or not of a dataset"):
                Dataset.at(hostile).commits()
