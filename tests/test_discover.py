"""vf-discover: lists that are written, added to and read again; what is told; mistakes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from tube import EXTRACTORS, Tube
from typer.testing import CliRunner

from curation import discover as command
from curation import run
from curation.discovery import asked
from curation.discovery.facts import SCHEMA
from curation.discovery.filters import Bounds
from curation.settings import ConfigError
from curation.shards import LEDGER_SCHEMA, Dataset, DatasetError, write_commit
from curation.sources import expand
from curation.sources.__main__ import app as sources_app
from curation.sources.written import write_rows
from curation.takedown.tombstones import add as add_tombstones
from curation.takedown.tombstones import of_names

ROOT = Path(__file__).parents[1]
SUFFIXES = ("parquet", "jsonl", "csv")


@pytest.fixture
def tube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tube]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    tube = Tube()
    yield tube
    tube.close()


def discover(output: str | None, *queries: Any, **options: Any) -> None:
    """The command's own function with the extractors of the tests' site."""
    pairs = [q if isinstance(q, tuple) else (None, q) for q in queries]
    bounds = options.pop("bounds", Bounds(min_height_px=0))
    asked.discover(
        pairs,
        Path(output) if output else None,
        bounds,
        options.pop("seen", []),
        sleep_s=0,
        allow_private=True,
        search="tubesearch",
        extractors=EXTRACTORS,
        **options,
    )


def vf_discover(*arguments: object) -> tuple[int, str]:
    """A command's exit code and what it printed; a traceback fails the test."""
    result = CliRunner().invoke(command.app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def urls(output: str) -> list[str]:
    return [source.url.rpartition("/")[2] for source in expand([output], Path.cwd())]


# -- the list


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_list_is_read_like_any_other(tube: Tube, suffix: str) -> None:
    facts = {"title": 'One, "two"; =1', "uploader": "Ännä", "license": "CC", "duration": 62}
    entry = tube.entry("a", timestamp=1704103200, height=720, channel="C", **facts)
    discover(f"l.{suffix}", ("Cats", tube.put_list("p", [entry, tube.entry("b")])))
    first, second = expand([f"l.{suffix}"], Path.cwd())
    assert (first.url, first.id, first.category) == (f"{tube.url}/watch/a", "tube-a", "Cats")
    assert (first.title, first.uploader, first.license) == ('One, "two"; =1', "Ännä", "CC")
    assert (first.upload_date, first.duration_s) == ("2024-01-01", 62.0)
    assert (second.id, second.title, second.duration_s) == ("tube-b", None, None)
    said = CliRunner().invoke(sources_app, [f"l.{suffix}"]).output
    assert "2 videos; no cuts" in said and "categories: Cats 2" in said
    assert first.channel == "C"
    assert "columns not read: height" in said
    assert [p.name for p in Path.cwd().iterdir()] == [f"l.{suffix}"]  # nothing is left over


def test_a_run_takes_a_list(tube: Tube) -> None:
    discover("l.parquet", tube.put_list("p", tube.entries("a", "b")))
    arguments = ["l.parquet", "--config", str(ROOT / "pipelines.yaml"), "--pipeline", "web"]
    result = CliRunner().invoke(run.app, [*arguments, "--output", "out", "--dry-run"])
    assert result.exit_code == 0 and "columns read: url, id" in result.output, result.output
    assert "2 rows" in result.output


def test_columns_have_their_types(tube: Tube) -> None:
    discover("l.parquet", tube.put_list("p", [tube.entry("a", height=720, duration=3)]))
    table = pq.read_table("l.parquet")
    assert table.schema.equals(SCHEMA) and table["height"].to_pylist() == [720]
    discover("l.jsonl", f"{tube.url}/list/p")
    row = json.loads(Path("l.jsonl").read_text())
    assert (row["height"], row["duration_s"]) == (720, 3.0) and "title" not in row


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_again_adds_only_what_is_new(tube: Tube, suffix: str, capsys: Any) -> None:
    output = f"l.{suffix}"
    url = tube.put_list("p", tube.entries("a", "b"))
    discover(output, url)
    before = Path(output).read_bytes()
    discover(output, url)
    assert Path(output).read_bytes() == before
    assert "2 seen before" in (told := capsys.readouterr().out) and "nothing new" in told
    tube.put_list("p", [*tube.entries("c", "b", "d"), tube.entry("a")])
    discover(output, url)
    assert urls(output) == ["a", "b", "c", "d"]
    assert "2 new, 4 videos" in capsys.readouterr().out


def test_a_limit_goes_on_where_it_ended(tube: Tube) -> None:
    tube.put_list("waves", tube.entries(*"abcdefg"))
    for expected in ("abc", "abcdef", "abcdefg"):
        discover("l.csv", "waves", limit=3)
        assert "".join(urls("l.csv")) == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_write_that_fails_leaves_the_list_as_it_was(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"l.{suffix}"
    assert write_rows([{"url": "https://h/1"}], path, SCHEMA) == 1
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_rows(({"url": f"https://h/{1 // (2 - n)}"} for n in range(3)), path, SCHEMA)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_users_edited_stays(tube: Tube) -> None:
    url = tube.put_list("p", tube.entries("a", "b", "c"))
    discover("l.csv", url)
    lines = Path("l.csv").read_text().splitlines(keepends=True)
    Path("l.csv").write_text(lines[0] + lines[2].replace("tube-b,", 'tube-b,"Mine, of b"'))
    discover("l.csv", url)
    assert urls("l.csv") == ["b", "a", "c"]
    assert expand(["l.csv"], Path.cwd())[0].title == "Mine, of b"


def test_a_list_that_another_program_saved_is_added_to(tube: Tube) -> None:
    """As Excel does in the west of Europe, and with a byte that is no text in any encoding."""
    head = ";".join(SCHEMA.names)
    Path("l.csv").write_bytes(f"{head}\r\nhttps://h/1;;Café;;;;;;;;;\r\n".encode("cp1252"))
    url = tube.put_list("p", tube.entries("a"))
    discover("l.csv", url)
    assert [s.title for s in expand(["l.csv"], Path.cwd())] == ["Café", None]
    Path("l.csv").write_bytes(Path("l.csv").read_bytes() + b"https://h/2,,\xff" + b"," * 9 + b"\n")
    tube.put_list("p", tube.entries("b"))
    discover("l.csv", url)
    assert urls("l.csv") == ["1", "a", "2", "b"]


@pytest.mark.parametrize(
    "text", ["url,caption\nhttps://h/a,x\n", "link\nhttps://h/a\n", 'url,id\n"a\n', "url\na,b\n"]
)
def test_another_list_is_not_written_over(tube: Tube, text: str) -> None:
    Path("l.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"l\.csv"):
        discover("l.csv", tube.put_list("p", tube.entries("a")))
    assert Path("l.csv").read_text() == text and not tube.asked


def test_a_stop_keeps_what_was_found(tube: Tube, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tube.put_list("p", tube.entries("a"))
    second = tube.put_list("q", tube.entries("b", "c"))
    real = asked.Discovery.rows

    def stopped(self: Any, query: Any) -> Iterator[Any]:
        for number, row in enumerate(real(self, query)):
            if query.target == second and number == 1:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(asked.Discovery, "rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        discover("l.csv", first, second)
    assert urls("l.csv") == ["a", "b"]


# -- seen before


def test_videos_of_lists_and_datasets_are_out(tube: Tube, capsys: Any) -> None:
    Path("have.txt").write_text(f"{tube.url}/watch/a\nhttps://youtu.be/dQw4w9WgXcQ?t=1\n")
    Path("mine.csv").write_text("url,id\nhttps://elsewhere/1,tube-b\n,\n")
    known = dict.fromkeys(LEDGER_SCHEMA.names) | {"level": "video", "attempts": 1}
    decided = {"tube-c": "https://elsewhere/2", "0123": f"{tube.url}/watch/d?token=1"}
    ledger = [
        known | {"video_id": video_id, "source_url": url, "decision": "failed"}
        for video_id, url in decided.items()
    ]
    write_commit(Dataset.at("runs"), [], ledger, {})
    youtube = {"_type": "url", "url": "https://www.youtube.com/watch?v=dQw4w9WgXcQ"}
    url = tube.put_list("p", [*tube.entries(*"abcde"), youtube])
    discover("l.csv", url, seen=["have.txt", "mine.csv", "runs"])
    assert urls("l.csv") == ["e"]
    assert "5 seen before" in capsys.readouterr().out


def test_what_was_taken_down_is_out(tube: Tube, capsys: Any) -> None:
    """By id, by address, and by an uploader that only the page tells."""
    ledger = [
        dict.fromkeys(LEDGER_SCHEMA.names)
        | {"level": "video", "attempts": 1, "video_id": "x", "source_url": "x", "decision": "kept"}
    ]
    write_commit(Dataset.at("runs"), [], ledger, {})
    names = [("video", "tube-a"), ("source", f"{tube.url}/watch/b"), ("uploader", "Ann")]
    add_tombstones(Dataset.at("runs"), of_names(names))
    tube.put_page("c", 720, uploader="Ann")
    tube.put_page("d", 720, uploader="Bob")
    url = tube.put_list("p", tube.entries(*"abcd"))
    discover("l.csv", url, seen=["runs"], probes=True)
    assert urls("l.csv") == ["d"]
    assert "3 taken down" in capsys.readouterr().out


def test_what_is_neither_list_nor_dataset_is_told(tube: Tube) -> None:
    url = tube.put_list("p", tube.entries("a"))
    with pytest.raises(ConfigError, match="no video"):
        discover("l.csv", url, seen=["https://h/a"])
    with pytest.raises(DatasetError, match="not a dataset folder"):
        discover("l.csv", url, seen=["nowhere"])
    with pytest.raises(ConfigError, match="no such file"):
        discover("l.csv", url, seen=["none.csv"])
    assert not tube.asked


# -- what is told


def test_each_category_is_told(tube: Tube, capsys: Any) -> None:
    tube.put_list("waves", [tube.entry("a", height=480), *tube.entries("b", "c")])
    tube.put_list("cats", tube.entries("d", "b"))
    queries = [("Sports", "waves"), ("Pets", "cats"), ("Sports", "none")]
    discover("l.csv", *queries, bounds=Bounds(720))
    captured = capsys.readouterr()
    assert "Sports: 2 queries, 3 listed, 2 written" in captured.out
    assert f"left out: 1 lower than --min-height 720 (first: {tube.url}/watch/a: 480 px)" in (
        captured.out
    )
    assert "2 of unknown height: the list does not tell it, --probe" in captured.out
    assert "query failed: none: gone: " in captured.out
    assert "Pets: 1 query, 2 listed, 1 written" in captured.out
    assert "3 new, 3 videos -> l.csv; vf-curate l.csv" in captured.out
    assert "1/3 waves: 2 found" in captured.err


def test_a_runtime_that_youtube_needs_is_told(
    tube: Tube, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = {"id": "dQw4w9WgXcQ", "formats": [{"height": 360}]}
    monkeypatch.setattr("curation.discovery.listing.Lister.page", lambda *_: page)
    monkeypatch.setattr("shutil.which", lambda _: None)
    tube.put_list("waves", [{"_type": "url", "url": "https://youtu.be/dQw4w9WgXcQ"}])
    discover("l.csv", "waves", probes=True, bounds=Bounds(720))
    said = capsys.readouterr().out
    assert "deno is not on the PATH" in said and "1 lower than --min-height 720" in said
    discover("l.csv", "waves", bounds=Bounds(720))
    assert "deno" not in capsys.readouterr().out


def test_json_holds_it_all(tube: Tube, capsys: Any) -> None:
    tube.put_list("waves", [tube.entry("a", is_live=True), tube.entry("b")])
    discover("l.csv", ("Sports", "waves"), ("Pets", "none"), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["written"], told["there_before"], told["output"]) == (1, 0, "l.csv")
    sports = told["categories"]["Sports"]
    assert (sports["listed"], sports["found"]) == (2, 1)
    assert sports["left_out"] == {"live": {"number": 1, "first": f"{tube.url}/watch/a: is_live"}}
    assert list(told["categories"]["Pets"]["failed"]) == ["none"]


def test_a_dry_run_looks_at_the_first_and_writes_nothing(tube: Tube, capsys: Any) -> None:
    tube.put_list("waves", tube.entries(*(f"v{i}" for i in range(30))))
    discover("l.csv", "waves", dry_run=True)
    told = capsys.readouterr().out
    assert "20 listed, 20 would be written" in told and "nothing is written" in told
    assert len(tube.asked) == 7 and not list(Path.cwd().iterdir())


def test_only_if_every_query_fails_does_the_command(tube: Tube) -> None:
    tube.put_list("waves", tube.entries("a"))
    discover("l.csv", "none", "waves")
    with pytest.raises(SystemExit) as caught:
        discover("l.csv", "none", "nothing")
    assert caught.value.code == 1 and urls("l.csv") == ["a"]


# -- the command


def test_the_command_takes_a_feed(tube: Tube) -> None:
    item = "<item><title>T[bold]</title><link>{}</link></item>"
    items = "".join(item.format(f"https://h/{i}.mp4") for i in range(3))
    tube.answers["/f.xml"] = (
        f'<?xml version="1.0"?><rss version="2.0"><channel>{items}</channel></rss>'
    )
    arguments = (f"{tube.url}/f.xml", "--category", "News", "--output", "l.parquet", "--limit", 2)
    code, said = vf_discover(*arguments, "--sleep", 0)
    assert code == 1 and "private_address" in said and not Path("l.parquet").exists()
    code, said = vf_discover(*arguments, "--sleep", 0, "--allow-private")
    assert code == 0 and "News: 1 query, 2 listed, 2 written" in said
    assert pq.read_table("l.parquet")["title"].to_pylist() == ["T[bold]"] * 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a"], "--output FILE is needed"),
        (["a", "--output", "l.txt"], ".parquet, .jsonl, .csv"),
        (["a", "--output", "no/l.csv"], "there is no folder no"),
        (["--category", "A", "--output", "l.csv"], "--category is for QUERIES"),
        (["--queries", "no.yaml", "--output", "l.csv"], "no.yaml cannot be read"),
        (["a", "--search", "yt", "--output", "l.csv"], "no such search of yt-dlp"),
        (["a", "--min-duration", "9", "--max-duration", "8", "--dry-run"], "--min-duration is"),
    ],
)
def test_mistakes_are_told(tube: Tube, arguments: list[str], says: str) -> None:
    code, said = vf_discover(*arguments)
    assert code == 2 and says in said.replace("\n", " ")


def documented() -> list[list[str]]:
    text = (ROOT / "docs/discovery.md").read_text()
    block = text.partition("```bash\n")[2].partition("```")[0]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [words[1:] for words in lines if words[0] == "vf-discover"]


@pytest.mark.parametrize("arguments", documented(), ids=" ".join)
def test_the_documented_options_are_there(arguments: list[str]) -> None:
    typer.main.get_command(command.app).make_context("vf-discover", arguments)
    text = (ROOT / "pyproject.toml").read_text()
    assert 'vf-discover = "curation.discover:main"' in text and '"discovery/*.yaml"' in text
