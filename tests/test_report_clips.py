"""The report's list of all clips in Chromium: filters, order, what is made, copied and played."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeVideo, Shot
from test_report import make_dataset, picture, row
from test_report_browser import asked
from typer.testing import CliRunner

from curation.decode.jpegs import bgr_from_jpeg
from curation.pages import listed
from curation.pages.facts import facts_of
from curation.pages.pictures import lit
from curation.report import app
from curation.shards import LEDGER_SCHEMA, Dataset, write_commit

HOSTILE = "</script><img src=x onerror=\"document.title='run'\">"
SET = """const at = id => page.document.getElementById(id);
const set = (id, value) => { at(id).value = value; at(id).dispatchEvent(new page.Event("input", {bubbles: true})); };
const ids = () => [...page.document.querySelectorAll(".row .id")].map(b => b.textContent.split("_").pop());
"""  # noqa: E501


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips with watermarks 0 to 0.9: 0 too short, 1 to 5 kept, 6 to 9 marked."""
    folder = tmp_path_factory.mktemp("ten")
    make_dataset(folder)
    assert CliRunner().invoke(app, [str(folder)]).exit_code == 0
    return folder / "report.html"


def many(folder: Path, number: int, **known: Any) -> Path:
    """A report of clips c0000, c0001 ... of which every seventh is lit in its picture."""
    jpegs = picture(200), picture(60)
    clips = [
        row(LEDGER_SCHEMA, level="clip", video_id="v", clip_id=f"c_{n:04d}", attempts=1,
            decision="kept", source_url="v.mp4", start_s=float(n), end_s=n + 1.0, duration=1.0,
            preview=[jpegs[n % 7 > 0]]) | known
        for n in range(number)
    ]  # fmt: skip
    write_commit(Dataset.at(folder), [], clips, {})
    assert CliRunner().invoke(app, [str(folder)]).exit_code == 0
    return folder / "report.html"


def test_clips_are_filtered_and_sorted(report: Path) -> None:
    script = """const out = {};
    out.options = [...at("decision").options].map(option => option.text);
    set("decision", at("decision").options[2].value); out.dropped = ids();
    set("decision", '["dropped","duration"]'); out.duration = ids();
    set("decision", ""); set("score", "watermark"); set("least", "0.2"); set("most", "0.4");
    out.range = ids(); out.said = at("hits").textContent;
    set("score", "caption_score"); set("least", ""); set("most", ""); out.scored = ids();
    set("least", "0.2"); set("score", ""); out.any = ids().length;
    set("sort", "caption_score"); out.up = ids();
    at("down").checked = true; set("sort", "watermark"); out.down = ids();
    set("sort", ""); set("text", "V1 watermark"); out.text = ids();
    set("text", "nowhere"); out.none = at("hits").textContent;
    return out;"""
    found = asked(report, SET + script)
    tens = [f"{n:02d}" for n in range(10)]
    assert found["options"] == ["any", "dropped by duration (1)", "dropped by watermark (4)",
                                "dropped (5)", "kept (5)"]  # fmt: skip
    assert found["dropped"] == tens[6:] and found["duration"] == tens[:1]
    assert found["range"] == tens[2:5] and found["said"] == "3 of 10"
    assert found["scored"] == [t for t in tens if t != "02"] and found["any"] == 10
    assert found["up"] == [*[t for t in tens if t != "02"], "02"]  # the unscored one last
    assert found["down"] == tens[::-1] and found["text"] == ["07"] and found["none"] == "0 of 10"


def test_only_what_is_in_view_is_made_and_read(tmp_path: Path) -> None:
    script = """const out = {made: ids().length, height: at("inside").style.height};
    let read = 0;
    const parse = page.JSON.parse;
    page.JSON.parse = text => { read += 1; return parse(text); };
    at("list").scrollTop = 1e9;
    const last = () => [...page.document.querySelectorAll(".row .id")].pop().textContent;
    for (let n = 0; n < 600 && last() !== "c_3099"; n++) await shown();  // frames, of a busy machine
    const rows = page.document.querySelectorAll(".row");
    out.last = rows[rows.length - 1].querySelector(".id").textContent;
    out.jpeg = rows[rows.length - 1].querySelector("img").src;
    const place = rows[rows.length - 1].getBoundingClientRect(), box = at("list").getBoundingClientRect();
    return {...out, read, again: rows.length, inside: place.bottom <= box.bottom && place.top >= box.top};"""  # noqa: E501
    found = asked(many(tmp_path, 3100), SET + script)
    assert found["made"] < 30 and found["again"] < 30 and found["height"] == f"{3100 * 74}px"
    assert found["last"] == "c_3099" and found["inside"]
    assert found["read"] == 1  # one part of sixteen: the last
    jpeg = bgr_from_jpeg(base64.b64decode(found["jpeg"].split(",")[1]))
    assert jpeg.shape == (54, 96, 3) and jpeg.mean() == pytest.approx(60, abs=3)  # 3099 % 7 is 5


def test_thumbnails_and_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAX_LISTED", 8), ("MAX_THUMBNAILS", 5), ("PART_CLIPS", 3)):
        monkeypatch.setattr(listed, name, value)
    page = many(tmp_path, 10)
    script = (
        'return [...page.document.querySelectorAll(".row")].map(r => !!r.querySelector("img"));'
    )
    assert asked(page, script) == [True] * 5 + [False] * 3
    assert "The first 8 of 10 clips" in page.read_text()


def test_a_click_copies_an_id(report: Path) -> None:
    script = """const copied = [];
    const where = [".row button.id", '.sheet [data-clip="v0_06"] button.id'];
    const click = async of => { page.document.querySelector(of).click(); await shown(); };
    const to = writeText => Object.defineProperty(page.navigator, "clipboard",
      {value: {writeText}, configurable: true});
    to(async text => copied.push(text));
    for (const of of where) await click(of);
    to(async () => { throw new Error("not from a file"); });
    page.document.execCommand = name => copied.push(name, page.document.activeElement.value);
    await click(where[0]);
    const text = page.document.querySelector(where[0]).textContent;
    return [copied, page.document.querySelectorAll("textarea").length, text];"""
    copied, left, text = asked(report, script)
    assert copied == ["v0_00", "v0_06", "copy", "v0_00"] and left == 0 and text == "v0_00"


def test_what_sources_say_stays_text(tmp_path: Path) -> None:
    names = dict(clip_id=HOSTILE, source_url=HOSTILE, caption=HOSTILE, error_class=HOSTILE)
    page = many(tmp_path, 1, **names)
    script = """set("decision", at("decision").options[1].value);
    const row = page.document.querySelector(".row");
    const run = page.document.querySelectorAll("[onerror]").length;
    return [row.textContent, page.document.title, run, at("decision").options[1].text];"""
    text, title, found, option = asked(page, SET + script)
    assert text.count(HOSTILE) == 4 and found == 0 and "run" not in title and HOSTILE in option


def test_clips_play_where_their_media_are_inside(
    tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path)
    video = make_video("short.mp4", [Shot("test", 1.0)]).read_bytes()
    monkeypatch.setattr(listed, "media_of", lambda _, ids: dict.fromkeys(ids, video))
    assert CliRunner().invoke(app, [str(tmp_path), "--clips", "2"]).exit_code == 0
    script = """const buttons = page.document.querySelectorAll(".play");
    const video = at("player").querySelector("video");
    const ready = new Promise(go => video.addEventListener("loadeddata", go));
    buttons[0].click();
    await ready;
    const id = buttons[0].closest(".row").querySelector(".id").textContent;
    const out = [buttons.length, at("player").open, video.videoWidth > 0,
      Math.round(video.duration), at("playing").textContent === id];
    at("player").dispatchEvent(new page.Event("close")); // where nothing is painted, none comes
    return [...out, video.hasAttribute("src")];"""
    assert asked(tmp_path / "report.html", SET + script) == [2, True, True, 1, True, False]
    assert listed.listed(dataset, facts_of(dataset), 0).media == {}


def test_media_inside_are_those_of_their_clips(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    found = listed.listed(dataset, facts_of(dataset), 3)
    assert len(found.media) == 3 and found.index["playing"] == sorted(found.media)
    assert all(found.index["rows"][n][1] == "kept" for n in found.media)
    assert {base64.b64decode(data) for data in found.media.values()} == {b"mp4"}


def test_the_page_says_how_to_see_a_clip_and_it_is_so(
    report: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = report.read_text()
    assert "No media are inside this page" in page and "--clips 24" in page
    how = re.search(r'<pre id="how">(.*?)</pre>', page, re.S)
    assert how
    monkeypatch.chdir(tmp_path)
    exec(html.unescape(how[1]).replace("ID", "v1_01"), {})
    assert (tmp_path / "clip.mp4").read_bytes() == b"mp4"


def test_a_score_that_json_has_no_word_for_is_no_score() -> None:
    assert [listed.rounded(v) for v in (None, float("nan"), float("inf"), 0.123456)] == [
        None, None, None, 0.1235,
    ]  # fmt: skip


def test_the_first_lit_picture_is_shown(tmp_path: Path) -> None:
    black, dim, grey, bright = (picture(g) for g in (0, 12, 90, 220))
    assert lit([grey, bright]) == 0 and lit([black, grey, bright]) == 1
    assert lit([black, dim]) == 1 and lit([black]) == 0  # a night has its brightest
    page = many(tmp_path, 1, preview=[black, bright]).read_text()
    part = re.search(r'<script id="part-0".*?>(.*?)</script>', page, re.S)
    assert part and np.mean(bgr_from_jpeg(base64.b64decode(json.loads(part[1])[0]))) > 200
