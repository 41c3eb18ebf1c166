"""The report as it is seen: in light and dark, by colour-blind eyes, on a phone, in Chromium."""

from __future__ import annotations

import html
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import RULES, in_browser, make_dataset, picture, row
from typer.testing import CliRunner

from curation.pages import charts
from curation.report import app
from curation.shards import LEDGER_SCHEMA, write_commit

STYLE = Path(charts.__file__).parent / "templates" / "style.css"
# How people without one kind of cone see linear RGB, entirely without: Machado et al. 2009.
EYES = {
    "all cones": np.eye(3),
    "no long ones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no medium ones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


def asked(page: Path, script: str, width_px: int = 1180, dark: bool = False) -> Any:
    """What an async function body answers inside the page, which is as wide as a frame's inside:
    a window of Chromium is never as narrow as a phone. `page` in the script is its window."""
    frame = page.parent / "frame.html"
    frame.write_text(f"""<iframe id="f" style="width:{width_px}px;height:844px;border:0"></iframe>
<pre id="answer"></pre><script>
f.onload = async () => {{
  const page = f.contentWindow;
  const shown = () => new Promise(go => page.setTimeout(go, 60));
  let said;
  try {{ said = await (async () => {{ {script} }})(); }} catch (error) {{ said = "" + error; }}
  answer.textContent = JSON.stringify(said);
}};
f.src = "{page.name}";
</script>""")
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    dom = in_browser(frame, "--allow-file-access-from-files", theme)
    found = re.search(r'<pre id="answer">(.*?)</pre>', dom, re.S)
    assert found, dom[-2000:]
    return json.loads(html.unescape(found[1]))


def wide(n: int) -> dict[str, Any]:
    """One of three neighbours, of which the second failed, with long words in all its texts."""
    long = "w" * 120
    return row(
        LEDGER_SCHEMA, level="clip", video_id="wide", clip_id=f"{long}{n}", attempts=1,
        source_url=long, caption=long, start_s=2.0 * n, end_s=2.0 * n + 2, duration=2.0,
        preview=[picture(g) for g in (0, 60, 120, 180)], decision=["kept", "failed"][n == 1],
        **({"error_class": "encode", "message": long} if n == 1 else {}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    make_dataset(folder / "a")
    dataset = make_dataset(folder, RULES | {"watermark": {"min": None, "max": 0.25}})
    write_commit(dataset, [], [wide(n) for n in range(3)], {})
    for arguments in ([folder], [folder / "a", folder]):
        assert CliRunner().invoke(app, [str(a) for a in arguments]).exit_code == 0
    return folder


def linear(colour: str) -> np.ndarray:
    """#rrggbb as linear RGB, 0..1."""
    stored = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    return np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """WCAG's contrast ratio, 1..21."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (a, b))
    return high / low


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read_and_told_apart(theme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", STYLE.read_text())[theme]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
    for name in ("ink", "soft", "kept", "dropped"):  # WCAG 2.2, 1.4.3
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    drawn = [charts.KEPT_COLOUR, charts.DROPPED_COLOUR]
    assert all(contrast(colour, colours["paper"]) >= 3 for colour in drawn)  # 1.4.11
    text = [colours[name] for name in ("kept", "dropped", "ink")]
    for eyes, matrix in EYES.items():
        for pair in (*itertools.combinations(text, 2), drawn):
            a, b = (np.clip(np.array(matrix) @ linear(c), 0, 1) ** (1 / 2.2) for c in pair)
            assert np.abs(a - b).max() >= 0.25, (eyes, pair)


def test_the_theme_is_the_readers(folder: Path) -> None:
    script = """const style = of => page.getComputedStyle(page.document.querySelector(of));
    return [style("body").backgroundColor, style("body").color, style(".figures svg text").fill];"""
    light, dark = (asked(folder / "report.html", script, dark=dark) for dark in (False, True))
    assert light == ["rgb(255, 255, 255)", "rgb(29, 37, 33)", "rgb(29, 37, 33)"]
    assert dark == ["rgb(20, 24, 27)", "rgb(228, 232, 234)", "rgb(228, 232, 234)"]


def test_charts_are_drawn_in_ink_on_the_pages_paper(folder: Path) -> None:
    script = """const seen = {black: 0, white: 0};
    for (const part of page.document.querySelectorAll("svg *")) {
      const style = page.getComputedStyle(part);
      seen.black += style.stroke === "rgb(0, 0, 0)";
      seen.white += style.fill === "rgb(255, 255, 255)";
    }
    return seen;"""
    assert asked(folder / "report.html", script, dark=True) == {"black": 0, "white": 0}


@pytest.mark.parametrize("name", ["report.html", "comparison.html"])
def test_nothing_is_wider_than_a_phone(folder: Path, name: str) -> None:
    script = """const root = page.document.scrollingElement;
    const wider = [...page.document.querySelectorAll("body *")].filter(
      part => /auto|scroll/.test(page.getComputedStyle(part).overflowX)
        && part.scrollWidth > part.clientWidth).map(part => part.id || part.localName);
    return [page.innerWidth, root.scrollWidth - root.clientWidth, [...new Set(wider)]];"""
    width_px, over_px, wider = asked(folder / name, script, width_px=390)
    assert (width_px, over_px) == (390, 0)
    assert set(wider) <= {"table", "funnel-table", "changed-table", "how"}  # inside themselves
