"""Objects as sources: their URIs, what is below one, lists beside them, and what is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from conftest import Store
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from curation import run
from curation.settings import ConfigError
from curation.sources import __main__ as vf_sources
from curation.sources import expand, read_given, stores
from curation.sources.signed import told_without, without_secrets
from curation.sources.source import Source, remote
from curation.sources.uris import below, folder, parts_of, recorded
from curation.takedown.tombstones import of_names


def urls(sources: list[Source]) -> list[str]:
    return [source.url for source in sources]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this test alone."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# -- URIs


@pytest.mark.parametrize(
    ("uri", "kept", "is_secret"),
    [
        ("s3://b/a.mp4", "s3://b/a.mp4", False),
        ("S3://b/f//a b#é.mp4/", "s3://b/f//a%20b%23%C3%A9.mp4", False),
        ("s3://b/50%25%3F.mp4", "s3://b/50%25%3F.mp4", False),
        ("s3://b", "s3://b", False),
        ("s3://me:wo%2Frd@b/a@b.mp4", "s3://b/a@b.mp4", True),
        ("s3://ME:wo/rd@b/a.mp4", "s3://b/a.mp4", True),  # a slash that was not escaped
        ("s3://b/a.mp4?access_key=k&secret_key=s&region=r", "s3://b/a.mp4", True),
        ("gs://anonymous@b/a.mp4", "gs://b/a.mp4", True),
        ("abfs://c@x.dfs.core.windows.net/a", "abfs://c@x.dfs.core.windows.net/a", False),
        ("abfs://c:pw@x.dfs.core.windows.net/a", "abfs://c@x.dfs.core.windows.net/a", True),
    ],
)
def test_what_is_recorded_of_a_uri(uri: str, kept: str, is_secret: bool) -> None:
    source = remote(uri)
    assert (source.url, source.signed_url) == (kept, uri if is_secret else None)
    assert recorded(kept) == without_secrets(uri) == kept
    assert told_without(f"Cannot parse URI: '{uri}'", uri).count("wo") == 0


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1))
def test_every_name_comes_back(name: str) -> None:
    uri = below("s3://me:word@b/f?region=x", name)
    assert parts_of(uri).key.decode() == f"f/{name}"
    assert parts_of(recorded(uri)) == ("s3", "", "b", f"f/{name}".encode(), "")
    assert parts_of(folder(uri)) == ("s3", "me:word", "b", b"f", "region=x")


# -- what is below one


@pytest.fixture
def filled(s3: Store) -> Store:
    for key in ("v/b.MP4", "v/a b#1.mp4", "v/deep/er/50%.webm", "v/é?.mkv", "v/clip.ts"):
        s3.put(key, b"not looked at")
    for key in ("v/.hidden/c.mp4", "v/b.srt", "v/notes.pdf", "v/noname", "vv.mp4"):
        s3.put(key, b"x")
    return s3


BELOW = ["a%20b%231.mp4", "b.MP4", "clip.ts", "deep/er/50%25.webm", "%C3%A9%3F.mkv"]


@pytest.mark.parametrize("spelled", ["v", "v/"])
def test_what_is_below_a_folder_is_told_by_suffix(filled: Store, spelled: str) -> None:
    found = read_given([filled.uri(spelled)], Path())
    assert urls(found.sources) == [f"s3://{filled.bucket}/v/{name}" for name in BELOW]
    [line] = found.ignored()
    assert line.startswith(f"s3://{filled.bucket}/v: ")
    for part in (
        "hidden: 1 (first: .hidden/c.mp4)",
        "subtitles, which are not read beside objects: 1 (first: b.srt)",
        "files that are no videos: 1 without a suffix, 1 .pdf",
    ):
        assert part in line
    assert found.summary() == [f"s3://{filled.bucket}/v: 5 videos"]
    for source in found.sources:  # each is reached the way the folder is
        assert source.signed_url and source.path is None and source.id is None
        assert stores.look(source.signed_url).is_file


def test_a_whole_bucket_and_one_object(filled: Store) -> None:
    assert len(expand([filled.uri()], Path())) == 6
    one = [filled.uri("vv.mp4"), filled.uri("v%76.mp4"), f"s3://{filled.bucket}/vv.mp4"]
    assert urls(expand(one[:2], Path())) == [f"s3://{filled.bucket}/vv.mp4"]


def test_endpoint_and_credentials_of_the_environment(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{filled.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    found = expand([f"s3://{filled.bucket}/v", f"s3://{filled.bucket}/vv.mp4"], Path())
    assert len(found) == 6 and not any(source.signed_url for source in found)


# -- lists


def test_rows_of_a_list_in_a_store_are_beside_it(filled: Store, scratch: Path) -> None:
    rows = ["url,start,end,caption", "b.MP4,0,1,one", "a b#1.mp4,,,two", "./deep/er/50%.webm,,,"]
    rows += ["https://host/c.mp4,,,", f"s3://{filled.bucket}/vv.mp4,,,other", "b.MP4,1,2,three"]
    filled.put("v/list.csv", "\n".join(rows).encode())
    found = read_given([filled.uri("v/list.csv")], Path())
    at = f"s3://{filled.bucket}"
    assert urls(found.sources) == [
        *(f"{at}/v/b.MP4", f"{at}/v/a%20b%231.mp4", f"{at}/v/deep/er/50%25.webm"),
        *("https://host/c.mp4", f"{at}/vv.mp4"),
    ]
    first, second, *_, other = found.sources
    assert [span.caption for span in first.spans] == ["one", "three"]
    assert second.caption == "two" and second.signed_url == filled.uri("v/a%20b%231.mp4")
    assert other.signed_url is None  # what a row names whole is reached as the environment says
    assert found.summary()[0].startswith(f"{at}/v/list.csv: 6 rows")
    assert not [*scratch.iterdir()]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("../other/a.mp4", "leads out of the list's folder"),
        ("deep/../../a.mp4", "leads out of the list's folder"),
        ("/etc/passwd", "is a path of this machine"),
        ("file:///etc/passwd", "is a path of this machine"),
        ("file://localhost/etc/passwd", "is a path of this machine"),
        ("FILE:///etc/passwd", "is a path of this machine"),
    ],
)
def test_a_list_in_a_store_names_nothing_of_this_machine(
    filled: Store, scratch: Path, row: str, says: str
) -> None:
    filled.put("v/list.jsonl", f'{{"url": "{row}"}}'.encode())
    with pytest.raises(ConfigError, match=says) as caught:
        expand([filled.uri("v/list.jsonl")], Path())
    assert str(caught.value).startswith(f"s3://{filled.bucket}/v/list.jsonl: line 1: ")
    assert not [*scratch.iterdir()]


@pytest.mark.parametrize(
    "row",
    [
        "s3://b/a.mp4?endpoint_override=169.254.169.254&scheme=http",
        "s3://b/a.mp4?region=x",
        "S3://me:geheim@b/a.mp4",
        "s3://ME:ge/heim@b/a.mp4",
        "gs://me@b/a.mp4",
        "abfs://c@10.0.0.1/a.mp4",
        "abfs://c@x.core.windows.net.evil.org/a.mp4",
        "abfs://c:geheim@x.dfs.core.windows.net/a.mp4",
    ],
)
def test_no_list_says_where_a_users_credentials_go(tmp_path: Path, row: str) -> None:
    (tmp_path / "l.txt").write_text(f"s3://b/ok.mp4\ngs://b/ok.mp4\n{row}\n")
    with pytest.raises(ConfigError, match=r"line 3: .*a list names objects alone") as caught:
        expand([str(tmp_path / "l.txt")], Path())
    assert "geheim" not in str(caught.value) and "heim@" not in str(caught.value)


def test_a_broken_list_is_told_by_its_uri(filled: Store) -> None:
    filled.put("v/l.parquet", b"no parquet")
    filled.put("v/l.xlsx", b"x")
    at = f"s3://{filled.bucket}/v"
    with pytest.raises(ConfigError, match=f"{at}/l.parquet is not a readable .parquet list"):
        expand([filled.uri("v/l.parquet")], Path())
    with pytest.raises(ConfigError, match=f"{at}/l.xlsx is no list that is read"):
        expand([filled.uri("v/l.xlsx")], Path())
    with pytest.raises(ConfigError, match=f"{at}/b.srt is the text of a video"):
        expand([filled.uri("v/b.srt")], Path())


def test_vf_sources_reads_them_and_keeps_no_secrets(filled: Store, tmp_path: Path) -> None:
    written = tmp_path / "out.parquet"
    done = CliRunner().invoke(vf_sources.app, [filled.uri("v"), "--output", str(written)])
    assert done.exit_code == 0, done.output
    assert "urls whose secrets are not kept: 5" in done.output
    assert b"endpoint" not in written.read_bytes() and "test:test" not in done.output
    assert urls(expand([str(written)], Path())) == [f"s3://{filled.bucket}/v/{n}" for n in BELOW]


# -- mistakes


def told(*given: str) -> str:
    """What vf-curate says of a mistake: one line, before Ray starts."""
    done = CliRunner().invoke(run.app, [*given, "--pipeline", "web", "--dry-run"])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output and done.output.count("\n") == 1
    assert "test:test" not in done.output and "geheim" not in done.output
    return done.output


def test_mistakes_are_told_in_a_sentence(filled: Store) -> None:
    at = f"s3://{filled.bucket}"
    assert f"{at}/none.mp4: there is no object of this name" in told(filled.uri("none.mp4"))
    nowhere = told(filled.uri("v/a.mp4", bucket="no-such-bucket"))
    assert "s3://no-such-bucket/v/a.mp4: there is no bucket 'no-such-bucket'" in nowhere
    assert "there is no bucket" in told(filled.uri(bucket="no-such-bucket"))
    filled.put("empty/.keep", b"")
    assert f"no videos found in {at}/empty; {at}/empty: hidden: 1" in told(filled.uri("empty"))
    assert "s3://b/a cannot be read: Unexpected query parameter" in told(
        "s3://b/a?access_key=geheim&region=x"
    )
    assert "a password with a slash" in told("s3://ME:ge/geheim@b/a")
    assert "names no bucket" in told("s3:///a")
    assert "hdfs:// is not read; URLs begin with http://" in told("hdfs://me:geheim@h/a.mp4")


def test_a_store_that_is_away_is_told_at_once() -> None:
    """That is, in the 6 s in which pyarrow asks three times."""
    away = "endpoint_override=127.0.0.1:9&scheme=http&region=x"
    assert "s3://b/a cannot be read" in (says := told(f"s3://me:geheim@b/a?{away}"))
    assert "NETWORK_CONNECTION" in says


def test_what_was_taken_down_is_known_by_its_uri() -> None:
    stones = of_names([("source", recorded("s3://me:word@b/a.mp4?region=x"))])
    assert stones.of_source(remote("s3://b/%61.mp4"))
    assert not stones.of_source(remote("s3://b/b.mp4"))
