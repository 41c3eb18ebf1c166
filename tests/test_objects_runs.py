"""Whole runs from an object store: one outcome each, nothing fetched twice, no secret left."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeVideo, Shot, Store
from rich.console import Console
from typer.testing import CliRunner

from curation import curate_one, purge, why
from curation.flow.plans import execute, make_plan
from curation.shards import FAILED, KEPT, Dataset
from curation.sources import content_id

CONFIG = Path(__file__).parents[1] / "pipelines.yaml"
LOOSE = ["rules.resolution.min=0", "rules.duration.min=0.2", "rules.static.max=1"]
LOOSE += ["rules.black_bars.max=1", "rules.watermark.max=1"]
Curate = Callable[..., str]


@pytest.fixture
def curate(tmp_path: Path, without_ray: None) -> Curate:
    """curate(URI ..., retry=[CLASS]): a run into tmp_path/out; returns what it says."""

    def run(*given: str, retry: tuple[str, ...] = ()) -> str:
        console = Console(file=io.StringIO(), width=200)
        plan = make_plan([*given], "web", CONFIG, str(tmp_path / "out"), LOOSE, None, retry)
        execute(plan, console, time.time())
        return console.file.getvalue()  # type: ignore[attr-defined]

    return run


def outcomes(output: Path) -> dict[str, tuple[str, str | None, str]]:
    """By name of the object: decision, class of error, video id."""
    rows = Dataset.at(output).ledger().to_pylist()
    return {
        r["source_url"].rsplit("/", 1)[1]: (r["decision"], r["error_class"], r["video_id"])
        for r in rows
        if r["level"] == "video"
    }


def test_a_list_beside_its_videos(
    s3: Store, make_video: MakeVideo, curate: Curate, tmp_path: Path
) -> None:
    video, other = (
        make_video("a.mp4", [Shot("test", 2.0)]),
        make_video("b.mp4", [Shot("bars", 1.0)]),
    )
    shutil.copy(video, tmp_path / "here.mp4")
    s3.put("v/a b.mp4", video)
    s3.put("v/same.mp4", video)
    s3.put("v/page.mp4", b"<html>")
    rows = ["url,caption", "a b.mp4,said", "same.mp4,", "page.mp4,", "late.mp4,"]
    s3.put("v/list.csv", "\n".join(rows).encode())
    before = copies()
    told = curate(s3.uri("v/list.csv"))
    assert "turned out to be copies of others: 1 source" in told
    output, video_id = tmp_path / "out", content_id(str(video))
    found = outcomes(output)
    assert found["page.mp4"][:2] == (FAILED, "not_video")
    assert found["late.mp4"][:2] == (FAILED, "gone")
    pair = {found["a%20b.mp4"][:2], found["same.mp4"][:2]}
    assert pair == {(KEPT, None), (FAILED, "copy")}
    assert video_id in {found["a%20b.mp4"][2], found["same.mp4"][2]}
    [caption] = {row["caption"] for row in Dataset.at(output).rows(["caption"])}
    assert caption == "said"

    # Nothing is asked of what is decided: it need not even be there any more.
    for key in ("v/a b.mp4", "v/same.mp4", "v/page.mp4"):
        s3.filesystem.delete_file(f"{s3.bucket}/{key}")
    again = curate(s3.uri("v/list.csv"))
    assert "videos already decided" in again and outcomes(output) == found

    # A class that is named is tried again, and only that.
    s3.put("v/late.mp4", other)
    curate(s3.uri("v/list.csv"), retry=("gone",))
    assert outcomes(output) == found | {"late.mp4": (KEPT, None, content_id(str(other)))}

    assert copies() <= before
    for path in output.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"test:test" not in data and s3.endpoint.encode() not in data


def test_a_folder_and_what_is_taken_down_of_it(
    s3: Store, make_video: MakeVideo, curate: Curate, tmp_path: Path
) -> None:
    s3.put("v/a.mp4", make_video("a.mp4", [Shot("test", 2.0)]))
    s3.put("v/b.mp4", make_video("b.mp4", [Shot("bars", 1.0)]))
    output = str(tmp_path / "out")
    curate(s3.uri("v"))
    assert {name: row[:2] for name, row in outcomes(Path(output)).items()} == {
        "a.mp4": (KEPT, None),
        "b.mp4": (KEPT, None),
    }
    for asked in (s3.uri("v/a.mp4"), f"s3://{s3.bucket}/v/%61.mp4"):
        done = CliRunner().invoke(why.app, [output, asked])
        assert done.exit_code == 0 and f"s3://{s3.bucket}/v/a.mp4\nkept" in done.output
        assert "test:test" not in done.output
    listed = tmp_path / "notice.txt"
    listed.write_text(f"{s3.uri('v/a.mp4')}\ns3://elsewhere/x.mp4\n")
    done = CliRunner().invoke(purge.app, [output, "--url-file", str(listed)])
    assert done.exit_code == 0, done.output
    assert "1 video taken down" in done.output and "1 of 2 listed URLs" in done.output
    s3.put("v/c.mp4", make_video("a.mp4", [Shot("test", 2.0)]))  # the same under another name
    told = curate(s3.uri("v"))
    assert "taken down, and left out: 2 sources" in told
    assert [*outcomes(Path(output))] == ["b.mp4"]
    done = CliRunner().invoke(why.app, [output, s3.uri("v/c.mp4")])
    assert "taken down on" in done.output  # it is not fetched a second time


def test_one_object_from_python(s3: Store, make_video: MakeVideo) -> None:
    video = make_video("a.mp4", [Shot("test", 2.0)])
    s3.put("a.mp4", video)
    before = copies()
    loose = dict(each.split("=") for each in LOOSE)
    done = curate_one(s3.uri("a.mp4"), set={name: float(value) for name, value in loose.items()})
    [row] = done.clips.to_pylist()
    assert (row["video_id"], row["source_url"]) == (
        content_id(str(video)),
        f"s3://{s3.bucket}/a.mp4",
    )
    assert row["sha256"].startswith(row["video_id"]) and row["downloaded_at"] and not row["format"]
    assert copies() == before


def copies() -> set[str]:
    """Copies of objects that are there now."""
    return {str(path) for path in Path(tempfile.gettempdir()).glob("videofactory-*/video*")}
