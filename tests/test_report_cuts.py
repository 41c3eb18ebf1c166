"""Cuts in the report: which are shown, in which order, and what is said of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_report import in_browser, picture, row
from typer.testing import CliRunner

from curation.pages import cuts
from curation.pages.facts import facts_of
from curation.report import app
from curation.shards import LEDGER_SCHEMA, Dataset, write_commit


def clip(name: str, start_s: float, greys: list[int], **known: Any) -> dict[str, Any]:
    """A kept clip of two seconds; its video is the first letter of its name."""
    return row(
        LEDGER_SCHEMA, level="clip", video_id=name[0], clip_id=name, attempts=1, decision="kept",
        source_url="v.mp4", start_s=start_s, end_s=start_s + 2, duration=2.0,
        preview=[picture(g) for g in greys],
    ) | known  # fmt: skip


def found_cuts(folder: Path, clips: list[dict[str, Any]]) -> tuple[list[cuts.Cut], int]:
    dataset = Dataset.at(folder)
    write_commit(dataset, [], clips, {})
    return cuts.unsure_cuts(dataset, facts_of(dataset))


def names(found: list[cuts.Cut]) -> list[str]:
    return ["".join(clip["clip_id"] for clip in cut.clips) for cut in found]


def test_the_least_sure_cut_comes_first(tmp_path: Path) -> None:
    dropped = {"decision": "dropped", "rule": "hidden_cut"}
    clips = [  # out of order, as retries leave them
        clip("a3", 6.0, [20, 30]),
        clip("a1", 0.0, [10, 100]),
        clip("a2", 2.5, [110, 20]),  # a1|a2 differ by 10; a2|a3 are the same
        clip("b1", 0.0, [0, 0], hidden_cut=0.41),
        clip("b2", 2.0, [200, 200], hidden_cut=0.1),  # by 200, but a score of 0.4
        clip("c1", 0.0, [0, 0], hidden_cut=0.1),
        clip("c2", 2.0, [240, 9], hidden_cut=0.9, **dropped),
        clip("d1", 5.0, [50], hidden_cut=0.6, **dropped),  # alone, and dropped for it
        clip("g1", 0.0, [0], hidden_cut=0.52, **dropped),  # the first of two, not alone
        clip("g2", 2.0, [200]),
        clip("e1", 0.0, [1]),
        clip("e2", 5.1, [1]),  # 3.1 s later: not beside a cut
        clip("f1", 2.0, [1]),  # begins where no clip of its own video ends
    ]
    found, number = found_cuts(tmp_path, clips)
    assert names(found) == ["c1c2", "d1", "g1g2", "b1b2", "a2a3", "a1a2"] and number == 6
    assert [c.difference for c in found] == [240, None, 200, 200, 0, 10]
    assert [c.hidden_cut for c in found] == [0.9, 0.6, 0.52, 0.41, None, None]


def test_alike_pictures_come_first_within_a_tenth_of_the_score(tmp_path: Path) -> None:
    clips = []
    for video, score, second in (("a", 0.12, 90), ("b", 0.08, 20), ("c", 0.32, 99)):
        clips += [clip(f"{video}1", 0, [0], hidden_cut=score), clip(f"{video}2", 2, [second])]
    assert names(found_cuts(tmp_path, clips)[0]) == ["c1c2", "b1b2", "a1a2"]


def test_cuts_shown_and_compared_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "MAX_COMPARED", 3)
    monkeypatch.setattr(cuts, "MAX_CUTS", 2)
    clips = [clip(f"a{n}", 2.0 * n, [n], hidden_cut=n / 10) for n in range(9)]
    found, number = found_cuts(tmp_path, clips)
    assert names(found) == ["a7a8", "a6a7"] and number == 8


def test_pictures_beside_a_cut_are_beside_each_other_on_the_page(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    clips = [clip("a1", 0.0, [0, 50]), clip("a2", 2.25, [100, 150], hidden_cut=0.25)]
    clips += [clip("b1", 0.0, []), clip(f"b{hostile}", 2.0, [1])]
    dataset = Dataset.at(tmp_path)
    write_commit(dataset, [], clips, {})
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 0
    page = in_browser(tmp_path / "report.html").split('id="cuts"')[1].split('id="captions"')[0]
    assert "they are not the very frames at the cut" in page and "2 of 2 are shown" in page
    first = page.split('class="cuts"')[1]
    jpegs = [clips[0]["preview"][0], clips[0]["preview"][1], *clips[1]["preview"]]
    places = [first.index(cuts.data_uri(jpeg)) for jpeg in jpegs]
    assert places == sorted(places)
    assert re.search(
        r"0.00 to 2.00 s</span>\s*<button[^>]*>a1<.*2.25 to 4.25 s</span>\s*<button[^>]*>a2<",
        first,
        re.S,
    )
    assert "hidden_cut 0.25" in first and "hidden_cut not scored" in first
    assert "no previews" in page and "<img src=x" not in page and "&lt;img src=x" in page


def test_a_dataset_of_lone_clips_says_so(tmp_path: Path) -> None:
    write_commit(Dataset.at(tmp_path), [], [clip("a1", 0.0, [1])], {})
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 0
    assert "No two clips are neighbours" in (tmp_path / "report.html").read_text()
