"""The report: numbers against known ones, the page against a real browser."""

from __future__ import annotations

import base64
import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import without_column
from typer.testing import CliRunner

from curation.decode import previews
from curation.decode.jpegs import bgr_from_jpeg
from curation.media.probes import Turn
from curation.pages.facts import facts_of, fit, integrity, kept_share, loops
from curation.pages.pictures import previews as previews_of
from curation.pages.sheets import sheets
from curation.report import app
from curation.shards import LEDGER_SCHEMA, SHARD_SCHEMA, Dataset, write_commit

RULES = {"duration": {"min": 2.0, "max": None}, "watermark": {"min": None, "max": 0.5}}
LOOP = "a hat on top of a hat on top of a hat on top of a hat"


def row(schema: Any, **known: Any) -> dict[str, Any]:
    return dict.fromkeys(schema.names) | known


def picture(grey: int) -> bytes:
    return previews.small_jpeg(np.full((90, 160, 3), grey, np.uint8))


def clip(n: int, duration: float, watermark: float, rules: dict[str, Any]) -> dict[str, Any]:
    """The ledger row of the n-th clip, decided here by hand: duration first, then watermark."""
    out = row(
        LEDGER_SCHEMA, level="clip", video_id=f"v{n % 3}", clip_id=f"v{n % 3}_{n:02d}", attempts=1,
        source_url=f"<v{n % 3}>.mp4", start_s=0.0, end_s=duration, duration=duration,
        watermark=watermark, caption_score=None if n == 2 else n / 20,
        decision="kept", preview=[picture(20 * n), picture(20 * n + 10)],
    )  # fmt: skip
    if duration < rules["duration"]["min"]:
        bound = rules["duration"]["min"]
        return out | dict(decision="dropped", rule="duration", value=duration, threshold=bound)
    if watermark > rules["watermark"]["max"]:
        bound = rules["watermark"]["max"]
        return out | dict(decision="dropped", rule="watermark", value=watermark, threshold=bound)
    return out


def make_dataset(folder: Path, rules: dict[str, Any] = RULES) -> Dataset:
    """Ten clips of three videos, 1 to 10 s long, watermarks 0 to 0.9; one more video failed."""
    dataset = Dataset.at(folder)
    clips = [clip(n, n + 1.0, n / 10, rules) for n in range(10)]
    kept = [each for each in clips if each["decision"] == "kept"]
    videos = [
        row(LEDGER_SCHEMA, level="video", video_id=f"v{n}", source_url=f"<v{n}>.mp4", attempts=1,
            decision="kept", duration=60.0, stage_s={"decode": 5.0, "cut": 1.0})
        for n in range(3)
    ]  # fmt: skip
    failed = row(LEDGER_SCHEMA, level="video", video_id="f", source_url="f.mp4", attempts=2,
                 decision="failed", error_class="crashed", message="by <b>SIGKILL</b>")  # fmt: skip
    captions = [None, LOOP, "the same", "the same", "words of four here"]
    media = [
        row(SHARD_SCHEMA, clip_id=each["clip_id"], video_id=each["video_id"], source_url="v.mp4",
            codec="h264", start_s=0.0, end_s=each["duration"], duration_s=each["duration"],
            fps=25.0, num_frames=25, width=1280, height=720, scene_index=0, license="CC0",
            caption=captions[n % 5], clip={"bytes": b"mp4", "path": "x.mp4"})
        for n, each in enumerate(kept)
    ]  # fmt: skip
    write_commit(dataset, media, [*videos, failed, *clips], {"rules": json.dumps(rules)})
    record = {"pipeline": {"name": "web", "rules": rules}, "code": "1"}
    dataset.write_bytes(json.dumps(record).encode(), "run.json")
    return dataset


def test_statistics_of_a_known_dataset(tmp_path: Path) -> None:
    found = facts_of(make_dataset(tmp_path))
    told = [(step.rule, step.before, step.dropped, step.after) for step in found.steps]
    assert told == [("duration", 10, 1, 9), ("watermark", 9, 4, 5)]
    assert found.funnel.clips.kept == len(found.kept) == 5
    assert found.kept_hours == pytest.approx((2 + 3 + 4 + 5 + 6) / 3600)
    values, kept = found.scores("watermark")
    assert values.tolist() == [n / 10 for n in range(10)] and kept.tolist() == [
        *[False] + [True] * 5 + [False] * 4
    ]
    assert found.scores("motion")[0].size == 0


def test_sheets_show_what_is_nearest_to_a_bound_first(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    by_title = {sheet.title: sheet for sheet in sheets(dataset, facts_of(dataset))}
    assert [c["watermark"] for c in by_title["watermark: just dropped"].clips] == [
        0.6,
        0.7,
        0.8,
        0.9,
    ]
    assert [c["watermark"] for c in by_title["watermark: just kept"].clips][:2] == [0.5, 0.4]
    assert all(len(c["pictures"]) == 2 for sheet in by_title.values() for c in sheet.clips)


def test_what_dropped_a_clip_is_framed(tmp_path: Path) -> None:
    """Red where the watermark or text was found, and nowhere in a clip dropped for another rule."""
    left, right = [0.1, 0.1, 0.3, 0.3], [0.6, 0.5, 0.9, 0.8]
    base = clip(1, 1.0, 0.9, RULES) | {"preview": [picture(128)], "watermark_box": left}
    clips = [
        base | {"clip_id": "w", "rule": "watermark"},
        base | {"clip_id": "t", "rule": "text", "text_boxes": [left, right]},
        base | {"clip_id": "d", "rule": "duration", "text_boxes": [left, right]},
        base | {"clip_id": "k", "rule": None, "decision": "kept", "watermark_box": None},
    ]
    dataset = Dataset.at(tmp_path)
    write_commit(dataset, [], clips, {})
    seen = previews_of(dataset, ["w", "t", "d", "k"])

    def framed(clip_id: str, x0: float, y0: float) -> bool:
        data = base64.b64decode(seen[clip_id].uris[0].split(",")[1])
        blue, _, red = bgr_from_jpeg(data)[int(y0 * 90) - 1, int((x0 + 0.1) * 160)].astype(int)
        return bool(red - blue > 100)

    found = {c: (framed(c, *left[:2]), framed(c, *right[:2])) for c in "wtdk"}
    assert found == {
        **{"w": (True, False), "t": (True, True)},
        **{"d": (False, False), "k": (False, False)},
    }


def test_captions_that_loop_miss_or_repeat_are_counted(tmp_path: Path) -> None:
    found = facts_of(make_dataset(tmp_path))
    whole = integrity(found.kept, found.clips)
    assert (whole.total, whole.missing, len(whole.looping), whole.repeated) == (5, 1, 1, [])
    assert loops("no no no") and not loops("no no") and not loops("a cat and a dog and a bird")
    assert loops(LOOP) and not loops("the man walks and the man sits and the man eats")


def test_how_captions_fit_is_counted(tmp_path: Path) -> None:
    """Clips 1 to 5 are kept; clip n of 10 has the score n / 20, the third has none."""
    bounded = RULES | {"caption_score": {"min": 0.12, "max": None}}
    for folder, rules in ((tmp_path / "a", RULES), (tmp_path / "b", bounded)):
        found = fit(facts_of(make_dataset(folder, rules)))
        assert (found.kept, found.median, found.scored) == (4, pytest.approx(0.175), 9)
        assert (found.bound, found.below) == ((0.12, 2) if folder.name == "b" else (None, 0))
        assert CliRunner().invoke(app, [str(folder)]).exit_code == 0
        page = (folder / "report.html").read_text()
        assert 'id="fit-kept">4<' in page and 'id="fit-median">0.175<' in page
        assert ('id="fit-below">2 (22.2%)<' in page) == (folder.name == "b")
        assert "<h3>caption_score</h3>" in page.split('id="scores"')[1].split('id="sheets"')[0]
    without_column(tmp_path / "a", "caption_score")
    assert fit(facts_of(Dataset.at(tmp_path / "a"))).median is None
    assert CliRunner().invoke(app, [str(tmp_path / "a")]).exit_code == 0
    assert "fit-kept" not in (tmp_path / "a" / "report.html").read_text()


def test_the_keep_curve_counts_its_bounds() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert kept_share(values, np.array([1.0, 2.0, 4.5]), keep_above=True).tolist() == [1, 0.75, 0]
    assert kept_share(values, np.array([0.5, 2.0, 4.0]), keep_above=False).tolist() == [0, 0.5, 1]


class Outside(html.parser.HTMLParser):
    """Every address that a page would load, but for data inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(
                ("#", "data:")
            ):
                self.found.append(f"{tag} {value}")


def in_browser(page: Path, *options: str) -> str:
    """The page's text as Chromium has it after its scripts ran; skips without a Chromium."""
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        pytest.skip("no Chromium on this machine")
    profile = page.parent / "profile"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=5000", *options, "--dump-dom", page.absolute().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_page_in_a_browser_shows_the_funnel_and_the_pictures(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    result = CliRunner().invoke(app, [str(tmp_path / "data"), "--card"])
    assert result.exit_code == 0, result.output
    page = tmp_path / "data" / "report.html"
    links = Outside()
    links.feed(page.read_text())
    assert links.found == []
    dom = in_browser(page)
    assert '<b id="clips-in">10</b>' in dom and '<b id="clips-kept">5</b>' in dom
    funnel = re.search(r'data-rule="watermark".*?</tr>', dom, re.S)
    assert funnel and re.findall(r'class="n">(\d+)', funnel[0]) == ["9", "4", "5"]
    assert dom.count("data:image/jpeg") > 20 and dom.count("<svg") >= 6
    assert "10 of 10" in dom  # the search ran
    assert "&lt;b&gt;SIGKILL" in dom and "<b>SIGKILL" not in dom  # what a source says is text
    assert "&lt;v0&gt;.mp4" in dom and "<v0>" not in dom
    card = (tmp_path / "data" / "README.md").read_text()
    assert card.startswith("---\n") and "| watermark | max 0.5 | 9 | 4 | 5 |" in card
    assert "- CC0: 5 clips" in card
    assert "5 video clips" in card and "4 of them with a caption" in card


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", RULES | {"watermark": {"min": None, "max": 0.25}})
    result = CliRunner().invoke(app, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    dom = in_browser(tmp_path / "b" / "comparison.html")
    rows = re.search(r'data-rule="watermark".*?</tr>', dom, re.S)
    assert rows and re.findall(r'class="n">(\d+)', rows[0]) == ["4", "7"]
    changed = re.search(r'id="changed-table".*?</table>', dom, re.S)
    assert changed and re.search(
        r"<td>kept</td><td>dropped by watermark</td><td class=\"n\">3", changed[0]
    )
    assert "kept by the first alone" in dom and "kept by the second alone" not in dom


def test_a_run_that_has_not_ended_is_shown_as_far_as_it_came(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    (tmp_path / "run.json").unlink()
    assert CliRunner().invoke(app, [str(tmp_path), "--card"]).exit_code == 0
    assert '<b id="clips-kept">5</b>' in (tmp_path / "report.html").read_text()


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert result.exit_code == 2 and "not a dataset folder" in result.output


def test_previews_are_of_their_clip_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "MAX_PREVIEWS", 16)
    taken = previews.Previews(Turn())
    for n in range(1000):  # 40 s at 25 fps, a grey that says the time
        taken.add(n / 25, np.full((36, 64, 3), n // 4, np.uint8), changed=n == 500)
    assert len(taken.items) <= 16
    for start_s, end_s in ((0, 20), (20, 40), (5, 30)):
        shown = taken.of_clip(start_s, end_s)
        greys = [cv2.imdecode(np.frombuffer(j, np.uint8), 0).mean() for j in shown]
        assert 1 <= len(shown) <= 4 and greys == sorted(greys)
        assert start_s * 25 / 4 - 2 <= greys[0] and greys[-1] <= end_s * 25 / 4 + 2
    assert taken.of_clip(100, 101) == []


def test_previews_are_turned_upright() -> None:
    stored = np.zeros((36, 64, 3), np.uint8)
    stored[:18] = 255  # the top half as stored
    taken = previews.Previews(Turn(90))
    taken.add(0.0, stored, changed=False)
    shown = cv2.imdecode(np.frombuffer(taken.of_clip(0, 1)[0], np.uint8), 0)
    assert shown.shape[0] > shown.shape[1]
    assert shown[:, :70].mean() > 200 and shown[:, 90:].mean() < 50  # the top went left


def test_charts_leave_matplotlib_as_it_was() -> None:
    code = (
        "import sys, numpy as np; from matplotlib import rcParams;"
        "names = 'svg.hashsalt', 'svg.fonttype', 'font.size', 'axes.spines.top';"
        "before = [rcParams[name] for name in names]; from curation.pages import charts;"
        "charts.histogram(np.arange(9.0), 'x'); assert [rcParams[n] for n in names] == before;"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
