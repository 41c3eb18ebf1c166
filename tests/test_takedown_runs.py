"""What was taken down stays away: from curation runs, and from subsets that vf-clean writes."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import MakeVideo, Shot
from rich.console import Console
from test_runs_copies import Server, clips, curate, server, videos  # noqa: F401
from test_takedown import make, mentions, problems, purged
from test_takedown import videos as ids

from curation.shards import Dataset
from curation.sources import content_id
from curation.subsets.asked import Order, make_plan
from curation.subsets.cleaned import execute
from curation.takedown import tombstones

RECIPE = "recipes: {all: {rules: {duration: {min: 1.0}}}}"


def cleaned(dataset: Dataset, output: Path, *, index_only: bool = False) -> tuple[Dataset, str]:
    """The subset of every clip, and what the command said."""
    config = output.with_name("recipes.yaml")
    config.write_text(RECIPE)
    order = Order(dataset.root, str(output), "all", config, [], index_only)
    console = Console(file=io.StringIO(), width=200)
    execute(make_plan(order), console, time.time())
    return Dataset.at(output), console.file.getvalue()  # type: ignore[attr-defined]


def test_a_rerun_obeys_whatever_a_video_is_named_by(
    server: Server,  # noqa: F811
    make_video: MakeVideo,
    without_ray: None,
    tmp_path: Path,
) -> None:
    base, folder, asked = server
    output, dataset = tmp_path / "data", Dataset.at(tmp_path / "data")
    shutil.copy(make_video("b.mp4", [Shot("bars", 2.0)]), folder / "b.mp4")
    curate(output, f"{base}/a.mp4", f"{base}/b.mp4")
    video_id = content_id(str(folder / "a.mp4"))
    purged(output, "--url", f"{base}/a.mp4")
    assert videos(output) == {"b.mp4": ("kept", None)}
    asked.clear()
    said = curate(output, f"{base}/a.mp4", f"{base}/b.mp4", folder / "a.mp4")
    assert "taken down, and left out: 2 source" in said and not asked
    # Elsewhere it is known when it is there: once, and nothing of it is written, no commit of none.
    shutil.copy(folder / "a.mp4", folder / "again.mp4")
    before = dataset.names("manifest", ".json")
    for given, is_fetched in ((["again.mp4"], True), (["again.mp4", "b.mp4"], False)):
        asked.clear()
        said = curate(output, *(f"{base}/{name}" for name in given))
        assert "taken down, and left out: 1 source" in said
        assert bool(asked["/again.mp4"]) == is_fetched
        assert dataset.names("manifest", ".json") == before
    assert videos(output) == {"b.mp4": ("kept", None)} and len(clips(output)) == 1
    assert mentions(dataset, video_id) == mentions(dataset, "again.mp4") == set()
    record = json.loads(dataset.read_bytes("run.json"))
    assert (record["sources"], record["taken_down"]) == (1, 1)


def test_a_subset_with_media_obeys(local_ray: None, tmp_path: Path) -> None:
    dataset = make(Dataset.at(tmp_path / "data"))
    subset, _ = cleaned(dataset, tmp_path / "subset")
    assert ids(subset) == ids(dataset)
    purged(subset.root, "--video", "ant", "--video", "elk")
    for said in ("; 2 to write", "; 0 to write"):
        subset, told = cleaned(dataset, tmp_path / "subset")
        assert said in told
        assert ids(subset) == ["bee", "cow", "dog"] and problems(subset) == []


@pytest.mark.parametrize("where", ["dataset", "subset"])
def test_vf_clean_obeys_the_tombstones_of_both_folders(tmp_path: Path, where: str) -> None:
    """Also of a dataset whose vf-purge was killed: what has a tombstone is not looked at."""
    dataset = make(Dataset.at(tmp_path / "data"))
    subset = Dataset.at(tmp_path / "subset")
    subset.claim()
    folder = dataset if where == "dataset" else subset
    tombstones.add(folder, tombstones.of_names([("video", "ant"), ("uploader", "Dora")]))
    subset, said = cleaned(dataset, tmp_path / "subset", index_only=True)
    assert "taken down from" in said and "left out: 3 videos" in said  # and ant's copy
    assert set(pq.read_table(subset.path("index.parquet"))["video_id"].to_pylist()) == {
        *("bee", "elk")
    }
    assert set(json.loads(subset.read_bytes("hdvg_0.json"))) == {"bee", "elk"}
    assert tombstones.read(subset).date("video", "ant")


def test_an_index_without_media_is_purged(tmp_path: Path) -> None:
    dataset = make(Dataset.at(tmp_path / "data"))
    subset, _ = cleaned(dataset, tmp_path / "subset", index_only=True)
    assert mentions(subset, "ant") == {"index.parquet", "hdvg_0.json", "run.json"}
    said = purged(dataset.root, subset.root, "--uploader", "Ann")
    assert f"{subset.uri}: 1 video taken down" in said
    assert mentions(subset, "ant") == set()
    assert len(pq.read_table(subset.path("index.parquet"))) == 4
    assert set(json.loads(subset.read_bytes("hdvg_0.json"))) == {"bee", "dog", "elk"}
