"""vf-export-clips: what each layout holds, by known answers and as others' loaders read it."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeVideo, read_frames
from exporting import export, hashes, run, stored, write_dataset

from curation.exports.table import TABLE
from curation.media.files import open_clip
from curation.shards import Dataset

# By clip id; the hashes are sha256sum's. Two differ by case alone.
NAMES = {
    "plain_0_1": "plain_0_1",
    "bees_0_1": "bees_0_1-d7ada36a",
    "Bees_0_1": "Bees_0_1-6303ffaf",
    "a/b.c_0_1": "a-b-c_0_1-1444a33c",
    "hevc_0_1": "hevc_0_1",
}
CAPTIONS = {
    "plain_0_1": "A plain clip.",
    "bees_0_1": "two lines",
    "Bees_0_1": "",
    "a/b.c_0_1": '"quoted" \\ é',
    "hevc_0_1": "of HEVC",
}


@pytest.fixture(scope="module")
def dataset(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(str(tmp_path_factory.mktemp("exports") / "mine"), make_video)


def mp4s(folder: Path, dataset: Dataset) -> dict[str, Path]:
    """The mp4s of an export by clip, whose bytes are those of the dataset."""
    found = {path.stem: path for path in folder.rglob("*.mp4")}
    assert sorted(found) == sorted(NAMES.values())
    for clip_id, data in stored(dataset).items():
        assert found[NAMES[clip_id]].read_bytes() == data
    return {clip_id: found[name] for clip_id, name in NAMES.items()}


def order(dataset: Dataset) -> list[str]:
    return [row["clip_id"] for row in dataset.rows(["clip_id"])]


def test_folder(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = export(dataset, "folder", out)
    for clip_id, path in mp4s(out, dataset).items():
        assert path.parent == out
        assert path.with_suffix(".txt").read_text() == CAPTIONS[clip_id]
    assert len(hashes(out)) == 11 and (out / "export.json").exists()  # and nothing that is hidden
    assert (counts["total"], counts["exported"], counts["without_caption"]) == (5, 5, 1)
    assert counts["made"] == {"copied": 5} and counts["dropped"] == {} and counts["trimmed"] == 0
    assert counts["frames"] == 30 + 40 + 10 + 10 + 10
    assert json.loads((out / "export.json").read_text())["clips"] == counts


def test_jsonl(dataset: Dataset, tmp_path: Path) -> None:
    export(dataset, "jsonl", tmp_path / "out", "--workers", 3)
    lines = [
        json.loads(each) for each in (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    ]
    paths = mp4s(tmp_path / "out", dataset)
    wanted = [{"video_path": str(paths[i]), "caption": CAPTIONS[i]} for i in order(dataset)]
    assert lines == wanted and Path(lines[0]["video_path"]).is_file()
    export(dataset, "jsonl", tmp_path / "there", "--root", "/data/mine/")
    first = json.loads((tmp_path / "there/metadata.jsonl").read_text().splitlines()[0])
    assert first["video_path"] == f"/data/mine/videos/{NAMES[order(dataset)[0]]}.mp4"


def test_finetrainers(dataset: Dataset, tmp_path: Path) -> None:
    export(dataset, "finetrainers", tmp_path)
    mp4s(tmp_path, dataset)
    # As its loader reads both: a caption that is empty, and is the last one, is a line.
    videos = (tmp_path / "videos.txt").read_text().splitlines()
    prompts = (tmp_path / "prompt.txt").read_text().splitlines()
    assert videos == [f"videos/{NAMES[i]}.mp4" for i in order(dataset)]
    assert prompts == [CAPTIONS[i] for i in order(dataset)]


def test_fastvideo(dataset: Dataset, tmp_path: Path) -> None:
    counts = export(dataset, "fastvideo", tmp_path)
    assert counts["dropped"] == {"without a caption": 1}
    listed = {
        each["path"]: each for each in json.loads((tmp_path / "videos2caption.json").read_text())
    }
    assert {f"{NAMES[i]}.mp4" for i in NAMES if CAPTIONS[i]} == listed.keys()
    path = tmp_path / "videos" / f"{NAMES['bees_0_1']}.mp4"
    assert listed[path.name] == {
        **{"path": path.name, "resolution": {"width": 100, "height": 70}, "cap": "two lines"},
        **{"size": path.stat().st_size, "fps": 25.0, "duration": 1.6, "num_frames": 40},
    }
    assert export(dataset, "fastvideo", tmp_path / "all", "--uncaptioned-too")["exported"] == 5


def test_ltx(dataset: Dataset, tmp_path: Path) -> None:
    counts = export(dataset, "ltx", tmp_path)
    assert counts["frames"] == 25 + 33 + 3 * 9 and counts["trimmed"] == 5
    listed = json.loads((tmp_path / "dataset.json").read_text())
    assert [each["caption"] for each in listed] == [CAPTIONS[i] for i in order(dataset)]
    counted = {
        each["media_path"]: len(read_frames(tmp_path / each["media_path"])) for each in listed
    }
    assert sorted(counted.values()) == [9, 9, 9, 25, 33]
    assert counted[f"videos/{NAMES['bees_0_1']}.mp4"] == 33


def test_videox_fun(dataset: Dataset, tmp_path: Path) -> None:
    export(dataset, "videox-fun", tmp_path)
    paths = mp4s(tmp_path, dataset)
    listed = json.loads((tmp_path / "metadata.json").read_text())
    assert [each["text"] for each in listed] == [CAPTIONS[i] for i in order(dataset)]
    bees = next(each for each in listed if each["text"] == "two lines")
    path = str(paths["bees_0_1"].relative_to(tmp_path))
    assert bees == {
        "file_path": path,
        "text": "two lines",
        "type": "video",
        "width": 100,
        "height": 70,
    }


def test_webdataset(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = pytest.importorskip("webdataset")
    monkeypatch.setattr("curation.exports.asked.MB", 12_000)
    export(dataset, "webdataset", tmp_path, "--shard-mb", 4)
    tars = sorted(tmp_path.glob("*.tar"))
    assert len(tars) > 1 and all(tar.stat().st_size <= 48_000 for tar in tars)
    media = stored(dataset)
    read = list(web.WebDataset([str(tar) for tar in tars], shardshuffle=False))
    assert [each["__key__"] for each in read] == [NAMES[i] for i in order(dataset)]
    for clip_id, each in zip(order(dataset), read, strict=True):
        assert each["mp4"] == media[clip_id] and each["txt"].decode() == CAPTIONS[clip_id]
        known = json.loads(each["json"])
        assert known["clip_id"] == clip_id and known["caption"] == CAPTIONS[clip_id]
        assert known["source_url"] is None and known["start_s"] == 2.0
    again = tmp_path / "again"
    export(dataset, "webdataset", again, "--shard-mb", 4)
    for tar in tars:
        assert (again / tar.name).read_bytes() == tar.read_bytes()


def test_a_tar_holds_a_clip_that_is_larger_than_it_may_be(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr("curation.exports.asked.MB", 1)
    export(dataset, "webdataset", tmp_path, "--shard-mb", 1, "--captioned-only")
    for number in range(4):
        with tarfile.open(tmp_path / f"clips-{number:06d}.tar") as tar:
            assert [Path(name).suffix for name in tar.getnames()] == [".json", ".mp4", ".txt"]
    assert not (tmp_path / "clips-000004.tar").exists()


def test_webdataset_as_datasets_reads_it(dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    datasets: Any = pytest.importorskip("datasets")
    export(dataset, "webdataset", tmp_path / "out")
    # As finetrainers asks: the folder alone, whose kind is told by its files.
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    rows = list(rows.cast_column("mp4", datasets.Video(decode=False)))
    assert [each["txt"] for each in rows] == [CAPTIONS[i] for i in order(dataset)]


@pytest.mark.parametrize("name", ["", "videofolder"])  # as the card says, and as finetrainers asks
def test_hf_as_datasets_reads_it(dataset: Dataset, tmp_path: Path, name: str) -> None:
    datasets: Any = pytest.importorskip("datasets")
    out = tmp_path / "out"
    counts = export(dataset, "hf", out)
    assert counts["made"] == {"copied": 4, "encoded": 1}
    given = {"path": name, "data_dir": str(out)} if name else {"path": str(out)}
    rows = datasets.load_dataset(**given, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["video"] == datasets.Video()
    rows = rows.cast_column("video", datasets.Video(decode=False))
    assert {row["clip_id"]: row["caption"] for row in rows} == CAPTIONS
    media = stored(dataset)
    for row in rows:
        path = Path(row["video"]["path"])
        assert path.name == f"{NAMES[row['clip_id']]}.mp4" and path.parent == out / "data/0000"
        with open_clip(path.read_bytes()) as clip:
            assert clip.streams.video[0].codec_context.name == "h264"  # what browsers play
        if "hevc" not in row["clip_id"]:
            assert path.read_bytes() == media[row["clip_id"]]
        assert (row["fps"], row["title"]) == (
            pytest.approx(row["num_frames"] / (row["end_s"] - 2)),
            f"title of {row['clip_id']}",
        )
    card = (out / "README.md").read_text()
    assert "text-to-video" in card and "5 clips" in card and "4 of them with a caption" in card


def test_every_layout_is_told_in_help_and_docs() -> None:
    told = re.sub(r"\s+", " ", run("--help").output)
    docs = (Path(__file__).parents[1] / "docs/exports.md").read_text()
    for layout in TABLE:
        assert layout.name in told
        assert f"| `{layout.name}` |" in docs


def test_names_are_one_each_where_case_does_not_count(dataset: Dataset, tmp_path: Path) -> None:
    export(dataset, "folder", tmp_path)
    stems = [path.stem for path in tmp_path.glob("*.mp4")]
    assert len({stem.lower() for stem in stems}) == 5
    assert all(re.fullmatch("[A-Za-z0-9_-]+", stem) for stem in stems)


def test_another_column_may_be_the_caption(dataset: Dataset, tmp_path: Path) -> None:
    export(dataset, "folder", tmp_path, "--caption-column", "title")
    assert (tmp_path / "plain_0_1.txt").read_text() == "title of plain_0_1"
