"""vf-sources: what lists hold, a normalised list that runs read, samples, its documented use."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curation import run
from curation.sources import Source, Span, read_given
from curation.sources.__main__ import app
from curation.sources.lists.grouped import Grouped
from curation.sources.samples import sample, shares

ROOT = Path(__file__).parents[1]
HEAD = "url,start,end,caption,category,duration_s\n"
ROWS = [
    "https://h/1,0,1.5,red,cats,60",
    "https://h/2,,,whole,dogs,120",
    "https://h/1,2,3,blue,,",
    "https://h/2,5,3,backwards,,",
    "https://h/3,soon,3,never,,",
    "https://h/3,9,8,backwards,,",
    "https://h/1,0,1.5,crimson,birds,",
    "https://h/4,,,,cats,long",
]


def vf_sources(*arguments: object) -> tuple[int, str]:
    """A command's exit code and what it printed; a traceback fails the test."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "l.csv").write_text(HEAD + "\n".join(ROWS))
    return tmp_path / "l.csv"


# -- what is told


def test_it_says_what_a_list_holds(path: Path) -> None:
    code, said = vf_sources("l.csv")
    assert code == 0
    assert "3 videos; 2 clips, 0.00 hours; 2 videos without cuts; 4 captions" in said
    assert "length of whole videos: 0.03 hours, known of 1 of 3" in said
    assert "categories: cats 2, dogs 1" in said
    reason = "cuts that do not go forward (first: row 5: start 5.0 is not before end 3.0"
    assert f"l.csv: 2 rows refused: {reason}" in said
    assert "l.csv: 1 row refused: cuts that are no times (first: row 6: start 'soon'" in said
    assert "rows that name a video again with other facts, not used: 1 (first: row 8)" in said
    assert "durations that are no times: 1 (first: row 9)" in said


def test_json_holds_the_same(path: Path) -> None:
    code, said = vf_sources("l.csv", "--json")
    found = json.loads(said)
    assert code == 0 and said.count("\n") == 1
    assert (found["videos"], found["clips"], found["captions"]) == (3, 2, 4)
    assert found["clip_hours"] == pytest.approx(2.5 / 3600)
    assert found["video_hours"] == pytest.approx(120 / 3600)
    assert found["categories"] == {"cats": 2, "dogs": 1}
    [about] = found["lists"]
    assert (about["name"], about["layout"], about["rows"]) == ("l.csv", None, 8)
    assert about["refused"]["cuts that do not go forward"]["rows"] == 2


def test_broken_lines_and_rows_are_refused_and_the_others_read(path: Path) -> None:
    text = '{"url": "https://h/1"}\n{"url": \n["x"]\n{"url": "https://h/2"}\n{"id": 1}\n'
    Path("l.jsonl").write_text(text)
    assert "length" not in (said := vf_sources("l.jsonl")[1]) and "categories" not in said
    found = json.loads(vf_sources("l.jsonl", "--json")[1])
    assert found["videos"] == 2
    assert {why: each["rows"] for why, each in found["lists"][0]["refused"].items()} == {
        "lines that are no JSON": 1,
        "lines that are no objects": 1,
        "rows without a column for the url": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.csv"], "no such file or folder: none.csv"),
        (["empty.csv"], "no videos found in empty.csv"),
        (["l.csv", "--columns", "url=lnik"], "no column 'lnik'"),
        (["l.csv", "--sample", 2], "--sample needs --output FILE.parquet"),
        (["l.csv", "--by", "category"], "--by and --seed are for --sample"),
        (["l.csv", "--sample", 2, "--by", "categorie"], "did you mean 'category'?"),
        (["l.csv", "--output", "o.csv"], "a list is written as .parquet"),
        (["l.csv", "--output", "there.parquet"], "is there already"),
        (["l.csv", "--output", "no/o.parquet"], "there is no folder no"),
    ],
)
def test_a_mistake_is_told_in_one_line(path: Path, arguments: list[Any], says: str) -> None:
    Path("empty.csv").write_text("url\n")
    Path("there.parquet").touch()
    code, said = vf_sources(*arguments)
    assert code == 2 and said.startswith("error: ") and says in said and said.count("\n") == 1
    assert not Path("o.csv").exists() and Path("there.parquet").stat().st_size == 0


# -- the normalised list


def test_what_it_writes_says_the_same_to_a_run(path: Path) -> None:
    Path("v.mp4").touch()
    Path("sub").mkdir()  # from where v.mp4 is another path
    usable = [row for row in ROWS if not re.search(r",(5,3|soon,3|9,8),", row)]
    path.write_text(HEAD + "\n".join([*usable, "v.mp4,,,a file,,7.5"]))
    code, _ = vf_sources("l.csv", "--output", "sub/o.parquet")
    assert code == 0
    before = read_given(["l.csv"], Path.cwd()).sources
    after = read_given(["sub/o.parquet"], Path.cwd())
    assert after.sources[:3] == before[:3]
    spans = (Span(0, 1.5, "red", ("crimson",)), Span(2, 3, "blue"))
    first = Source(url="https://h/1", category="cats", spans=spans)
    assert after.sources[0] == first
    assert (after.sources[3].path, after.sources[3].duration_s) == (str(path.parent / "v.mp4"), 7.5)
    assert after.recognised()[0].startswith("sub/o.parquet: vf-sources columns: url, ")
    assert vf_sources("sub/o.parquet", "--output", "again.parquet")[0] == 0
    assert pq.read_table("again.parquet").equals(pq.read_table("sub/o.parquet"))


def test_a_file_that_is_given_is_found_from_where_its_list_is(path: Path) -> None:
    Path("v.mp4").touch()
    Path("sub").mkdir()
    assert vf_sources("v.mp4", "--output", "sub/o.parquet")[0] == 0
    [source] = read_given(["sub/o.parquet"], Path.cwd()).sources
    assert source.path == str(path.parent / "v.mp4")


def test_secrets_of_urls_are_not_written(path: Path) -> None:
    path.write_text("url\nhttps://me:pw@h/1.mp4?token=abc&v=1\n")
    code, said = vf_sources("l.csv", "--output", "o.parquet")
    assert code == 0 and "urls whose secrets are not kept: 1 (first: row 2)" in said
    assert pq.read_table("o.parquet")["url"].to_pylist() == ["https://h/1.mp4?v=1"]


def test_a_run_takes_columns_and_says_whose_they_are(path: Path) -> None:
    path.write_text("videoid,contentUrl,duration,page_dir,name,text\n1,https://h/1,PT1S,d,n,t\n")
    arguments = ["l.csv", "--pipeline", "web", "--config", str(ROOT / "pipelines.yaml")]
    arguments += ["--output", "out", "--dry-run"]
    result = CliRunner().invoke(run.app, [*arguments, "--columns", "caption=text"])
    assert result.exit_code == 0, result.output
    assert "l.csv: WebVid columns: videoid, contentUrl, duration, text" in result.output
    result = CliRunner().invoke(run.app, [*arguments, "--columns", "caption=txet"])
    assert result.exit_code == 2 and "did you mean 'text'?" in result.output


# -- grouping on disk


def test_mentions_of_a_video_far_apart_are_one_in_order_of_the_first(tmp_path: Path) -> None:
    grouped = Grouped(tmp_path)
    numbers = [n * 7919 % 3000 for n in range(6000)]  # every video twice, in no order
    for at, n in enumerate(numbers):
        grouped.add(Source(url=f"https://h/{n}", spans=(Span(at, at + 1, f"row {at}"),)))
    grouped.join_all()
    for _ in range(2):
        found = list(grouped)
        assert [s.url for s in found] == [f"https://h/{n}" for n in numbers[:3000]]
        starts = [[span.start_s for span in s.spans] for s in found]
        assert starts == [[at, at + 3000] for at in range(3000)]


# -- samples


def videos(**categories: int) -> list[Source]:
    return [
        Source(url=f"https://h/{name}/{n}", category=None if name == "none" else name)
        for name, number in categories.items()
        for n in range(number)
    ]


def drawn(sources: list[Source], *options: Any) -> list[str]:
    return [source.url for source in sample(sources, *options)]


def test_a_sample_is_balanced_and_seeded() -> None:
    given = videos(cats=500, dogs=3, birds=200, none=50)
    found = drawn(given, 43, 1, "category")
    counts = {name: sum(f"/{name}/" in url for url in found) for name in ("cats", "dogs", "birds")}
    assert len(found) == len(set(found)) == 43
    assert counts == {"cats": 14, "dogs": 3, "birds": 13}  # and 13 of none
    assert found == [s.url for s in given if s.url in set(found)]  # in their order
    assert set(drawn(given[::-1], 43, 1, "category")) == set(found)
    assert set(drawn(given, 43, 2, "category")) != set(found)
    # Another category changes nothing in this one beyond its share.
    cats = {url for url in found if "/cats/" in url}
    more = drawn([*given, *videos(fish=2)], 45, 1, "category")
    assert {url for url in more if "/cats/" in url} == cats


def test_a_sample_without_categories_is_of_all() -> None:
    given = videos(cats=900, dogs=100)
    found = drawn(given, 300, 5, None)
    assert len(found) == 300
    assert 10 < sum("/dogs/" in url for url in found) < 50  # 30 on average, sd 4.4
    assert len(drawn(given, 5000, 0, "category")) == 1000


def test_shares_are_equal_and_add_up() -> None:
    assert shares({"a": 5, "b": 5, "c": 5}, 10) == {"a": 3, "b": 3, "c": 4}
    assert shares({"a": 1, "b": 2}, 10) == {"a": 1, "b": 2}
    assert shares({}, 10) == {}


# -- the documented examples


def test_the_examples_of_the_docs_run(path: Path) -> None:
    Path("videos.csv").write_text(path.read_text())
    Path("links.csv").write_text("link,text\nhttps://h/9,a bird\n")
    Path("hdvg_0.json").write_text(json.dumps({"ab": {"url": "https://h/ab", "clip": {}}}))
    text = (ROOT / "docs/sources.md").read_text()
    lines = re.findall(r"^vf-sources .*", text, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        code, said = vf_sources(*shlex.split(line, comments=True)[1:])
        assert code == 0, said
    assert pq.read_table("sample.parquet").num_rows == 2
