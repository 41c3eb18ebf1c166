"""The user study: known statistics, and a page that a real browser answers by keyboard."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import in_browser
from training_media import mp4
from typer.testing import CliRunner

from training.evaluation.studies import fleiss, outcome, wilson
from training.study import app

# Answers every step as a rater who sees only left and right would, by keys.
RATER = """
<script>
addEventListener("load", () => {
  $("rater").value = "r1";
  $("who").requestSubmit();
  const press = (key) =>
    document.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true}));
  const seen = [];
  while (!$("work").hidden) {
    seen.push([$("prompt").textContent, $("question").textContent, $("left").src.slice(0, 22)]);
    press(seen.length % 2 ? "ArrowLeft" : "ArrowDown");
    if (seen.length === 3) { press("Backspace"); seen.pop(); press("ArrowRight"); seen.push(0); }
  }
  const saved = {};
  URL.createObjectURL = (blob) => { saved.type = blob.type; blob.text().then(told); return "#x"; };
  HTMLAnchorElement.prototype.click = function () { saved.name = this.download; };
  $("save").click();
  const out = document.createElement("pre");
  out.id = "out";
  const others = [...Array(20).keys()].map((n) => shuffled("r" + n));
  const orders = others.map((places) => places.map((place) => [place.pair.name, place.left]));
  function told(text) {
    out.textContent = JSON.stringify({saved, file: text, seen, orders});
    document.body.append(out);
  }
});
</script>
"""


def folders(where: Path, count: int = 4) -> tuple[Path, Path]:
    for side in "ab":
        (where / side).mkdir()
        for n in range(count):
            (where / side / f"c{n}.mp4").write_bytes(mp4(4 + n + (side == "b")))
    (where / "prompts.json").write_text(json.dumps({f"c{n}": f"<b>prompt {n}" for n in range(9)}))
    return where / "a", where / "b"


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_a_rater_in_a_browser(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    page = tmp_path / "study.html"
    done = invoke("--a", a, "--b", b, "--prompts", tmp_path / "prompts.json", "--output", page)
    assert done.exit_code == 0 and "4 pairs" in done.output, done.output
    text = page.read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)  # nothing is fetched
    page.write_text(text.replace("</html>", RATER + "</html>"))
    dom = in_browser(page)
    found = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)[1]))
    assert found["saved"] == {"type": "application/json", "name": "study-r1.json"}
    file = json.loads(found["file"])
    answers = file["answers"]
    assert len(answers) == 8 and found["seen"][0][2].startswith("data:video/mp4;base64")
    assert {tuple(sorted((x["pair"], x["question"]) for x in answers))} == {
        tuple((f"c{n}", q) for n in range(4) for q in ("quality", "relevance"))
    }
    assert found["seen"][0][0].startswith("<b>prompt ")  # a prompt is text, not markup
    # Quality was always answered left, but for the third key, which was taken back and put right.
    for place, each in enumerate(answers):
        if each["question"] == "relevance":
            assert each["chosen"] == "tie"
        else:
            other = {"a": "b", "b": "a"}[each["left"]]
            assert each["chosen"] == (other if place == 2 else each["left"])
    orders = found["orders"]  # of 20 raters
    assert len({tuple(name for name, _ in order) for order in orders}) > 8
    assert 20 < sum(left == "a" for order in orders for _, left in order) < 60  # of 80
    assert [[x["pair"], x["left"]] for x in answers[::2]] == orders[1]
    (tmp_path / "r1.json").write_text(found["file"])
    scored = invoke("--score", tmp_path / "r1.json")
    assert scored.exit_code == 0 and "4 of 4 no difference" in scored.output


def test_fleiss_own_table() -> None:
    """The worked example of 14 raters, 10 subjects and 5 categories: kappa 0.210."""
    table = [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
    agreement, kappa = fleiss(np.array(table))
    assert agreement == pytest.approx(0.378, abs=5e-4) and kappa == pytest.approx(0.210, abs=5e-4)


def test_wilsons_interval() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


def answered(rater: str, chosen: dict[str, str], study: str = "s") -> dict[str, Any]:
    rows = [{"pair": p, "left": "a", "question": "quality", "chosen": c} for p, c in chosen.items()]
    return {"study": study, "rater": rater, "pairs": 3, "answers": rows}


def test_counts_ties_and_agreement() -> None:
    raters = [answered("x", {"p": "a", "q": "a", "r": "tie"}),
              answered("y", {"p": "a", "q": "b", "r": "tie"})]  # fmt: skip
    found = outcome(raters, "quality")
    assert (found.a, found.b, found.ties) == (3, 1, 2)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.interval == wilson(3, 4)
    assert np.isnan(outcome(raters[:1], "quality").kappa)


def test_mistakes_are_told(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    (b / "c3.mp4").unlink()
    page = tmp_path / "s.html"
    assert "no partner (c3)" in invoke("--a", a, "--b", b, "--output", page).output
    (a / "c3.mp4").unlink()
    assert "no prompt for c0" in invoke("--a", a, "--b", b, "--output", page).output
    for n, answers in enumerate((answered("x", {}), answered("x", {}), answered("y", {}, "t"))):
        (tmp_path / f"{n}.json").write_text(json.dumps(answers))
    files = [tmp_path / f"{n}.json" for n in range(3)]
    assert "two files of rater x" in invoke("--score", *files[:2]).output
    assert "of several" in invoke("--score", files[0], files[2]).output
    assert "no answers" in invoke("--score", tmp_path / "prompts.json").output
    assert invoke("--score").exit_code == invoke().exit_code == 2
