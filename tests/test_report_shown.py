"""What the report shows of failures, of rules with two bounds, and of clips that begin black."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import make_dataset, picture, row
from test_report_browser import asked
from typer.testing import CliRunner

from curation.pages import charts
from curation.pages.facts import FAILURE_COLUMNS, facts_of, failures
from curation.pages.pictures import data_uri
from curation.pages.sheets import sheets
from curation.report import app
from curation.shards import LEDGER_SCHEMA, Dataset, write_commit

BLACK, GREY = picture(0), picture(120)


def clip(clip_id: str, decision: str, **known: Any) -> dict[str, Any]:
    return row(
        LEDGER_SCHEMA, level="clip", video_id="v", clip_id=clip_id, attempts=1, start_s=0.0,
        source_url="<i>v.mp4", end_s=1.0, duration=1.0, decision=decision, preview=[BLACK, GREY],
    ) | known  # fmt: skip


def test_every_class_of_failure_has_an_example(tmp_path: Path) -> None:
    clips = [
        clip("a", "failed", error_class="encode", message="z <b>first</b>"),
        clip("b", "failed", error_class="encode", message="a second"),
        clip("c", "failed", error_class="caption"),
        clip("d", "kept"),
    ]
    video = row(LEDGER_SCHEMA, level="video", video_id="w", source_url="w.mp4", attempts=1,
                decision="failed", error_class="encode", message="a video")  # fmt: skip
    dataset = Dataset.at(tmp_path)
    write_commit(dataset, [], [*clips, video], {})
    found = failures(dataset.ledger(FAILURE_COLUMNS))
    told = [(f["level"], f["error_class"], f["count"], f["message"], f["clip_id"]) for f in found]
    assert told == [
        ("clip", "caption", 1, None, "c"),
        ("clip", "encode", 2, "z <b>first</b>", "a"),
        ("video", "encode", 1, "a video", None),
    ]
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 0
    rows = re.findall(r"<tr data-failure.*?</tr>", (tmp_path / "report.html").read_text(), re.S)
    assert len(rows) == 3 and "&lt;b&gt;first" in rows[1] and "of &lt;i&gt;v.mp4" in rows[1]
    assert ">a</button>" in rows[1] and data_uri(GREY) in rows[1]
    assert "w.mp4" in rows[2] and "<img" not in rows[2]


def test_each_bound_of_a_rule_has_its_curve() -> None:
    values, at = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.5, 4.0])
    both = charts.keep_curves(values, at, (1.5, 3.5))
    assert {side: shares.tolist() for side, shares in both.items()} == {
        "min": [1, 0.5, 0.25],
        "max": [0.25, 0.5, 1],
    }
    assert list(charts.keep_curves(values, at, (None, 3.5))) == ["max"]
    assert charts.keep_curves(values, at, (None, None)) == {}


@pytest.mark.parametrize(
    ("bounds", "said"),
    [((1.5, 3.5), "min or max"), ((1.5, None), "min"), ((None, 3.5), "max"), ((None, None), None)],
)
def test_curves_are_drawn_solid_for_min_and_dotted_for_max(bounds: Any, said: str | None) -> None:
    drawn = charts.score_chart("x", "", np.arange(1.0, 9), np.ones(8, bool), bounds)
    assert re.findall(r">share kept by (.*?)<", drawn) == ([said] if said else [])
    lines = re.findall(r'<path [^>]*style="fill: none; [^"]*stroke: #000000[^"]*"', drawn)
    dashes = [re.findall(r"stroke-dasharray: ([\d.]+)", line) for line in lines]
    solid, dotted = dashes.count([]), sum(bool(d) and float(d[0]) < 2 for d in dashes)
    assert (solid, dotted) == (bounds[0] is not None, bounds[1] is not None)


def test_no_card_is_black_that_has_a_lit_picture(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    black = {"preview": [BLACK, BLACK]}
    write_commit(dataset, [], [clip("a", "kept"), clip("b", "kept", **black)], {})
    cards = {c["clip_id"]: c for s in sheets(dataset, facts_of(dataset)) for c in s.clips}
    assert (cards["a"]["rest"], cards["b"]["rest"]) == (1, 0)
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 0
    script = """const seen = [...page.document.querySelectorAll('[data-clip="a"] img')].filter(
      image => page.getComputedStyle(image).opacity === "1");
    return seen.map(image => image.src);"""
    assert asked(tmp_path / "report.html", script) == [data_uri(GREY)]


def test_a_clip_without_previews_has_an_empty_card(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    write_commit(dataset, [], [clip("bare", "kept", preview=None)], {})
    cards = {c["clip_id"]: c for s in sheets(dataset, facts_of(dataset)) for c in s.clips}
    assert cards["bare"]["pictures"] == [] and len(cards["v1_01"]["pictures"]) == 2


def test_previews_that_are_no_pictures_do_not_stop_the_report(tmp_path: Path) -> None:
    broken = {"preview": [b"no jpeg", b""], "rule": "watermark", "watermark_box": [0, 0, 1, 1]}
    clips = [clip("a", "kept", **broken), clip("b", "kept", start_s=1.0, preview=[b"no", GREY])]
    dataset = Dataset.at(tmp_path)
    write_commit(dataset, [], clips, {})
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 0
    part = re.search(
        r'<script id="part-0".*?>(.*?)</script>', (tmp_path / "report.html").read_text()
    )
    assert part and [bool(jpeg) for jpeg in json.loads(part[1])] == [False, True]
