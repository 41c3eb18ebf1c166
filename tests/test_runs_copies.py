"""Two URLs of one video, found out by downloading: one video, each clip once, the other a copy."""

from __future__ import annotations

import http.server
import io
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import MakeVideo, Shot
from rich.console import Console
from typer.testing import CliRunner

from curation import validate, why
from curation.flow.plans import execute, make_plan
from curation.shards import KEPT, Dataset

CONFIG = Path(__file__).parents[1] / "pipelines.yaml"
LOOSE = ["rules.resolution.min=0", "rules.duration.min=0.2", "rules.static.max=1"]
LOOSE += ["rules.black_bars.max=1", "rules.watermark.max=1", "download.allow_private=true"]
Server = tuple[str, Path, Counter[str]]  # its URL, its folder, what was asked for


@pytest.fixture
def server(make_video: MakeVideo, tmp_path: Path) -> Iterator[Server]:
    """Files by HTTP; /redir.mp4 leads to /a.mp4."""
    folder = tmp_path / "served"
    folder.mkdir()
    shutil.copy(make_video("a.mp4", [Shot("test", 2.0)]), folder / "a.mp4")
    asked: Counter[str] = Counter()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            if self.path == "/redir.mp4":
                self.send_response(302)
                self.send_header("Location", "/a.mp4")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None: ...

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}", folder, asked
    served.shutdown()
    served.server_close()
    thread.join()


def curate(output: Path, *given: Path | str, settings: list[str] | None = None) -> str:
    console = Console(file=io.StringIO(), width=200)
    wanted = [*LOOSE, *(settings or [])]
    plan = make_plan([*map(str, given)], "web", CONFIG, str(output), wanted, None)
    execute(plan, console, time.time())
    return console.file.getvalue()  # type: ignore[attr-defined]


def videos(output: Path) -> dict[str, tuple[str, str | None]]:
    """Decision and error class by the end of the URL, no URL twice."""
    table = Dataset.at(output).ledger(["level", "source_url", "decision", "error_class"])
    rows = [row for row in table.to_pylist() if row["level"] == "video"]
    found = {r["source_url"].rsplit("/", 1)[1]: (r["decision"], r["error_class"]) for r in rows}
    assert len(found) == len(rows)
    return found


def clips(output: Path) -> list[tuple[float, str | None]]:
    rows = list(Dataset.at(output).rows(["clip_id", "start_s", "caption"]))
    assert len({row["clip_id"] for row in rows}) == len(rows)
    return sorted((round(row["start_s"], 2), row["caption"]) for row in rows)


def is_valid(output: Path) -> bool:
    return CliRunner().invoke(validate.app, [str(output)]).exit_code == 0


def num_outcomes(output: Path) -> Counter[tuple[str, str | None]]:
    return Counter(videos(output).values())


ONE_AND_COPIES = Counter({(KEPT, None): 1, ("failed", "copy"): 2})


@pytest.mark.slow
def test_urls_of_one_video_are_one_video_with_the_cuts_and_captions_of_all(
    server: Server, tmp_path: Path, without_ray: None
) -> None:
    url, _, asked = server
    path, output = tmp_path / "l.csv", tmp_path / "out"
    head = f"url,start,end,caption\n{url}/a.mp4?a=1,0,1,first\n{url}/redir.mp4,1,1.8,second\n"
    path.write_text(f"{head}{url}/a.mp4?a=2,0,1,again\n")
    told = curate(output, path)
    assert "turned out to be copies of others: 2 sources" in told
    assert clips(output) == [(0, "first"), (1, "second")]
    captions = [row["captions"] for row in Dataset.at(output).rows(["captions"])]
    assert sorted(captions, key=str) == [None, ["first", "again"]] or captions == [
        ["first", "again"],
        None,
    ]
    assert num_outcomes(output) == ONE_AND_COPIES
    assert is_valid(output)

    before, files = Counter(asked), [each["name"] for each in Dataset.at(output).commits()]
    assert "copies of others, joined with them: 2 sources" in curate(
        output, path
    )  # known by now: nothing is fetched
    assert asked == before
    assert [each["name"] for each in Dataset.at(output).commits()] == files

    path.write_text(f"{head}{url}/a.mp4?a=2,0,1,new\n")
    curate(output, path)
    [captions] = [
        row["captions"] for row in Dataset.at(output).rows(["captions"]) if row["captions"]
    ]
    assert captions == ["first", "new"]
    assert num_outcomes(output) == ONE_AND_COPIES and is_valid(output)


def test_a_copy_is_seen_commits_and_runs_later(
    server: Server, tmp_path: Path, local_ray: None
) -> None:
    url, folder, asked = server
    output, each_alone = tmp_path / "out", ["shards.max_videos=1"]
    shutil.copy(folder / "a.mp4", folder / "b.mp4")
    curate(output, f"{url}/a.mp4", settings=each_alone)
    given = [f"{url}/b.mp4", f"{url}/a.mp4", f"{url}/redir.mp4"]
    told = curate(output, *given, settings=each_alone)
    assert "turned out to be copies of others: 2 sources" in told
    kept = {"a.mp4": (KEPT, None)}
    copies = dict.fromkeys(["b.mp4", "redir.mp4"], ("failed", "copy"))
    assert videos(output) == kept | copies
    assert len(Dataset.at(output).commits()) == 3 and is_valid(output)
    assert clips(output) == [(0, None)]
    told = CliRunner().invoke(why.app, [str(output), f"{url}/b.mp4"]).output
    assert f"the same video as {url}/a.mp4" in " ".join(told.split())
    before = Counter(asked)
    told = curate(output, *given, settings=each_alone)
    assert "named by no source" not in told and asked == before
    # Its first mention gone, a copy is still known; a file of the same bytes as well.
    curate(output, given[0], folder / "a.mp4", settings=each_alone)
    assert asked == before and videos(output) == kept | copies
    # Other settings: all is done again, in whatever order.
    told = curate(output, *given, settings=[*each_alone, "cut.crf=30"])
    assert num_outcomes(output) == ONE_AND_COPIES and is_valid(output)
