"""Words of strangers steer no terminal and make no link: docs/security.md."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
from conftest import MakeVideo, Shot
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from curation import report, validate, why
from curation.media.probes import probe
from curation.pages.page import as_markdown
from curation.pipelines import Pipeline
from curation.shards import Dataset, write_commit
from curation.sources import expand, read_given
from curation.sources.subtitles import read_cues
from curation.videos import curate_video

STEERS = "\x1b[2J\x1b]0;owned\x07\x9b31mred\x08"
EVIL = (
    "$\\frac{$ <script>alert(1)</script> <img src=x onerror=alert(1)> [x](javascript:alert(1)) "
    "![y](https://evil.test/p.png) https://evil.test/a www.evil.test | **b** a@evil.test `c`"
)


def quiet(stage: str, at_s: float) -> None:
    """A listener that does nothing."""


# -- the border


def test_no_list_brings_a_control_character(tmp_path: Path) -> None:
    facts = {name: f"a {STEERS}{name}" for name in ("title", "caption", "category", "license")}
    rows = [{"url": "a.mp4", **facts}]
    path = tmp_path / "l.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    given = read_given([str(path)], tmp_path)
    [source] = given.sources
    assert (source.title, source.category) == ("a redtitle", "a redcategory")
    assert source.caption == "a redcaption"
    assert any("control characters" in line for line in given.ignored())


@pytest.mark.parametrize("suffix", [".srt", ".vtt", ".ass"])
def test_no_subtitles_bring_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    times = "00:00:01,000 --> 00:00:02,000"
    path.write_text(
        {
            ".srt": f"1\n{times}\nHello {STEERS}you\n",
            ".vtt": f"WEBVTT\n\n{times.replace(',', '.')}\nHello {STEERS}&#7;you\n",
            ".ass": "[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, "
            "Effect, Text\nDialogue: 0,0:00:01.00,0:00:02.00,D,,0,0,0,,"
            f"Hello {STEERS}you\n",
        }[suffix]
    )
    [cue] = read_cues(str(path))
    assert cue.text == "Hello redyou"


def test_no_title_of_a_file_brings_one(make_video: MakeVideo) -> None:
    path = make_video("a.mkv", [Shot("test", 1.0)], "160x90", ("-metadata", f"title=a{STEERS}b"))
    with av.open(str(path)) as container:
        assert "\x1b" in container.metadata["title"]
    assert probe(str(path)).title == "aredb"


# -- what is shown of a dataset of a stranger's


@pytest.fixture(scope="module")
def strange(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose rows say what no list could bring in."""
    folder = tmp_path_factory.mktemp("strange") / "a: [b](c) <i>"
    path = make_video("plain.mp4", [Shot("test", 2.0)], "320x180")
    result = curate_video(
        replace(expand([str(path)], Path())[0], id=None), Pipeline(), folder.parent, quiet
    )
    said: dict[str, Any] = {
        name: EVIL + STEERS for name in ("category", "license", "title", "caption", "uploader")
    }
    ledger = [row | {k: v for k, v in said.items() if k in row} for row in result.ledger]
    clips = [clip.shard_row() | said | {"caption_model": EVIL} for clip in result.clips]
    write_commit(Dataset.at(folder), clips, ledger, Pipeline().fingerprints())
    return folder


def test_a_terminal_is_steered_by_nothing(strange: Path) -> None:
    found = Dataset.at(strange)
    clip = next(found.rows(["clip_id"]))["clip_id"]
    for command, arguments in (
        (why.app, [str(strange), clip]),
        (why.app, [str(strange), f"x{STEERS}"]),
        (validate.app, [str(strange)]),
    ):
        said = CliRunner().invoke(command, arguments).output
        assert said.strip() and not set("\x1b\x9b\x07\x08") & set(said)


def test_the_card_shows_texts_as_they_are(strange: Path) -> None:
    done = CliRunner().invoke(report.app, [str(strange), "--card"])
    assert done.exit_code == 0, done.output
    text = (strange / "README.md").read_text()
    front, body = text.split("---\n")[1:3]
    assert f'pretty_name: "{strange.name}"'.replace("<", "\\u003c").replace(">", "\\u003e") in front
    page = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(body)
    # What is left of a bare address is broken by an entity, which is shown as itself.
    for tag in ("<a ", "<script", "<img", "<strong>"):
        assert tag not in page, tag
    shown = page.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
    assert EVIL in shown


@pytest.mark.parametrize("address", ["https://evil.test/a", "www.evil.test", "a@evil.test"])
def test_no_bare_address_is_a_link(address: str) -> None:
    """Hubs look for them in the source, before they read entities."""
    escaped = as_markdown(address)
    assert "://" not in escaped and "www." not in escaped and "@" not in escaped
    assert MarkdownIt("commonmark").render(escaped) == f"<p>{address}</p>\n"


def test_the_report_takes_no_text_for_a_formula_or_markup(strange: Path) -> None:
    done = CliRunner().invoke(report.app, [str(strange)])
    assert done.exit_code == 0, done.output
    page = (strange / "report.html").read_text()
    for markup in ("<script>alert", "<img src=x", 'href="javascript'):
        assert markup not in page
    assert "frac{$" in page
