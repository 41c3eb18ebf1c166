"""Commits: what is written is what is read, whole or not at all, here and on S3."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Store

from curation.shards import (
    LEDGER_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    Dataset,
    DatasetError,
    commits,
    write_commit,
)

PRINTS = {"scenes": "a", "rules": "b"}


def clip_row(index: int, data: bytes = b"mp4") -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(SHARD_SCHEMA.names)
    return empty | {
        **{"clip_id": f"v_{index:04d}", "video_id": "v", "source_url": "v.mp4", "codec": "h264"},
        **{"start_s": float(index), "end_s": index + 1.0, "duration_s": 1.0, "fps": 25.0},
        **{"num_frames": 25, "width": 320, "height": 180, "scene_index": index, "static": 0.5},
        **{"caption": "a cat", "clip": {"bytes": data, "path": f"v_{index:04d}.mp4"}},
    }


def ledger_row(level: str = "video", **known: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA.names)
    row = {"level": level, "video_id": "v", "source_url": "v.mp4", "decision": "kept"}
    return empty | row | {"attempts": 1, "stage_s": {"decode": 1.5}} | known


def commit(dataset: Dataset, clips: int = 3, video_id: str = "v") -> dict[str, Any]:
    rows = [clip_row(i, bytes([i]) * 10) for i in range(clips)]
    return write_commit(dataset, rows, [ledger_row(video_id=video_id)], PRINTS)


def files(folder: Path) -> list[str]:
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(str(p) for p in found)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    rows = [clip_row(2, b"two"), clip_row(1, bytes(range(256)) * 50)]
    write_commit(dataset, rows, [ledger_row(), ledger_row("clip", clip_id="c")], PRINTS)
    assert list(dataset.rows()) == [rows[1], rows[0]]  # by time within a video
    ledger = dataset.ledger().to_pylist()
    assert [row["level"] for row in ledger] == ["video", "clip"]
    assert ledger[0]["stage_s"] == [("decode", 1.5)]
    assert list(dataset.rows(["clip_id"])) == [{"clip_id": "v_0001"}, {"clip_id": "v_0002"}]


def test_the_manifest_tells_the_commit(tmp_path: Path) -> None:
    manifest = commit(Dataset.at(tmp_path))
    name = manifest["name"]
    assert json.loads((tmp_path / "manifest" / f"{name}.json").read_text()) == manifest
    assert (manifest["video_ids"], manifest["num_clips"], manifest["duration_s"]) == (["v"], 3, 3.0)
    for folder, facts in manifest["files"].items():
        data = (tmp_path / folder / f"{name}.parquet").read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_commit_that_kept_nothing_has_no_shard(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    assert list(commit(dataset, clips=0)["files"]) == ["ledger"]
    assert not (tmp_path / "shards").exists()
    assert list(dataset.rows()) == [] and dataset.ledger().num_rows == 1


def test_the_same_commit_twice_is_one_with_the_same_bytes(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    assert commit(dataset) == commit(dataset)
    assert len(dataset.commits()) == 1 and len(list(dataset.rows())) == 3


def test_row_groups_are_bounded_in_rows_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "MAX_GROUP_ROWS", 4)
    monkeypatch.setattr(commits, "MAX_GROUP_BYTES", 1000)
    dataset = Dataset.at(tmp_path)
    sizes = [10] * 9 + [900, 200, 5000, 10]
    rows = [clip_row(i, bytes(size)) for i, size in enumerate(sizes)]
    name = write_commit(dataset, rows, [ledger_row()], PRINTS)["name"]
    with dataset.open_shard(name) as shard:
        found = [shard.metadata.row_group(i).num_rows for i in range(shard.num_row_groups)]
    assert found == [4, 4, 2, 1, 1, 1]


def test_shards_have_page_indexes_versions_and_plain_video(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    with dataset.open_shard(commit(dataset)["name"]) as shard:
        assert shard.schema_arrow.metadata[b"schema_version"] == SCHEMA_VERSION.encode()
        assert shard.schema_arrow.names == SHARD_SCHEMA.names
        group = shard.metadata.row_group(0)
        columns = {c.path_in_schema: c for c in map(group.column, range(group.num_columns))}
    assert all(column.has_offset_index for column in columns.values())
    assert columns["clip_id"].has_column_index
    assert columns["clip.bytes"].compression == "UNCOMPRESSED"
    ledger = pq.ParquetFile(next((tmp_path / "ledger").iterdir()))
    assert ledger.schema_arrow.metadata[b"schema_version"] == SCHEMA_VERSION.encode()


def test_columns_younger_than_a_file_come_back_null(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    commit(dataset)
    file = next((tmp_path / "ledger").iterdir())
    pq.write_table(pq.read_table(file).drop_columns(["motion", "text_boxes"]), file)
    assert dataset.ledger().schema.names == LEDGER_SCHEMA.names
    assert dataset.ledger(["motion", "level"]).to_pylist() == [{"motion": None, "level": "video"}]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    rows = [clip_row(0), clip_row(1) | {"fps": "fast"}]
    with pytest.raises(Exception, match="fast"):
        write_commit(dataset, rows, [ledger_row()], PRINTS)
    with pytest.raises(RuntimeError), dataset.replacing("shards", "x.parquet") as sink:
        sink.write(b"half")
        raise RuntimeError
    assert files(tmp_path) == []
    assert dataset.commits() == []


def test_a_finished_write_leaves_no_other_file(tmp_path: Path) -> None:
    name = commit(Dataset.at(tmp_path))["name"]
    expected = [f"ledger/{name}.parquet", f"manifest/{name}.json", f"shards/{name}.parquet"]
    assert files(tmp_path) == expected


DEAD, KILLED = "0123456789abcdef", f".tmp-{'0' * 32}-"


def test_a_sweep_removes_only_what_no_manifest_names(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    commit(dataset)
    kept = files(tmp_path)
    orphans = (f"shards/{DEAD}.parquet", f"ledger/{DEAD}.parquet", f"manifest/{KILLED}{DEAD}.json")
    users = ("shards/mine.parquet", "shards/holiday.mp4", f"ledger/{DEAD}.csv", "manifest/a.json")
    for name in (*orphans, *users, "run.json"):
        (tmp_path / name).write_text("x")
    assert len(dataset.sweep()) == 3
    assert files(tmp_path) == sorted([*kept, *users, "run.json"])
    assert dataset.sweep() == []


def test_only_a_folder_of_ours_is_claimed(tmp_path: Path) -> None:
    for name in ("new", "empty", "killed", "older"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if name == "killed":
            (folder / f"{KILLED}videofactory.json").touch()
            (folder / ".lock").touch()
        if name == "older":
            commit(Dataset.at(folder))
        Dataset.at(folder).claim()
        Dataset.at(folder).claim()
        assert (folder / "videofactory.json").exists()
    users = tmp_path / "users"
    (users / "shards").mkdir(parents=True)
    (users / "shards" / f"{DEAD}.parquet").touch()
    with pytest.raises(DatasetError, match="is not empty and no dataset of ours"):
        Dataset.at(users).claim()
    assert files(users) == [f"shards/{DEAD}.parquet"]


def test_files_without_a_manifest_are_not_read(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    first, second = commit(dataset, 1), commit(dataset, 2, "w")
    (tmp_path / "manifest" / f"{second['name']}.json").unlink()
    assert dataset.shards() == [first["name"]]
    assert dataset.ledger()["video_id"].to_pylist() == ["v"]


def test_a_deleted_commit_is_gone_manifest_first(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    dataset.delete_commit(commit(dataset)["name"])
    assert files(tmp_path) == []
    dataset.delete_commit("never")


def test_a_folder_without_commits_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a dataset folder"):
        Dataset.at(tmp_path / "none").require()
    commit(Dataset.at(tmp_path))
    assert Dataset.at(str(tmp_path) + "/").require().root == str(tmp_path)


@pytest.fixture
def bucket(s3: Store) -> str:
    """The URI of a folder on an S3 server."""
    return s3.uri("data/set")


def test_a_dataset_on_s3_is_written_read_and_swept(bucket: str) -> None:
    dataset = Dataset.at(bucket)
    assert dataset.commits() == [] and not dataset.is_local
    manifest = commit(dataset)
    assert [row["clip"]["bytes"] for row in dataset.rows()] == [bytes([i]) * 10 for i in range(3)]
    data = dataset.read_bytes("shards", f"{manifest['name']}.parquet")
    assert hashlib.sha256(data).hexdigest() == manifest["files"]["shards"]["sha256"]
    dataset.write_bytes(b"x", "shards", f"{DEAD}.parquet")
    assert [path.rsplit("/", 1)[1] for path in dataset.sweep()] == [f"{DEAD}.parquet"]
    assert dataset.require().ledger().num_rows == 1
    dataset.delete_commit(manifest["name"])
    assert dataset.commits() == [] and dataset.sweep() == []


def test_a_write_to_s3_that_fails_is_no_commit(bucket: str) -> None:
    dataset = Dataset.at(bucket)
    rows = [clip_row(0), clip_row(1) | {"fps": "fast"}]
    with pytest.raises(Exception, match="fast"):
        write_commit(dataset, rows, [ledger_row()], PRINTS)
    assert dataset.commits() == []
    dataset.sweep()
    assert dataset.names("shards", ".parquet") == []
