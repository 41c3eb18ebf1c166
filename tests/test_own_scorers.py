"""A scorer of the user's own, from a file beside the config, and its column everywhere."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import MakeVideo, Shot
from rich.console import Console
from typer.testing import CliRunner

from curation import report, validate, why
from curation.flow.plans import execute, make_plan
from curation.settings import ConfigError
from curation.shards import Dataset
from curation.subsets import asked, cleaned

TOY = """
import numpy as np

def redness(pictures):
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in pictures)
    return float(np.mean([p[..., 0].mean() for p in pictures])) / 255

class Brightest:
    def __call__(self, pictures):
        return max(int(p.max()) for p in pictures)

not_callable = 3
"""
CONFIG = """
pipelines:
  mine:
    scorers: {redness: "own_toy:redness"}
    rules: {redness: {min: 0.2}}
recipes:
  bright:
    scorers: {brightest: "own_toy:Brightest", redness: "own_toy:redness"}
    rules: {redness: {min: 0.4}, brightest: {min: 10}}
"""
RED, BLUE, DARK = (f"color=c={c}:s={{size}}:r={{fps}}" for c in ("red", "blue", "0x600000"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "own_toy.py").write_text(TOY)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return tmp_path / "mine.yaml"


@pytest.mark.slow
def test_a_toy_scorer_is_seen_everywhere(
    local_ray: None, config: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    shots = [Shot(picture, 1.0) for picture in (RED, BLUE, DARK)]
    video = make_video("own.mp4", shots=shots)
    console = Console(quiet=True)
    output = tmp_path / "out"
    settings = ["scenes.detector=content"]
    execute(
        make_plan([str(video)], "mine", config, str(output), settings, None), console, time.time()
    )
    dataset = Dataset.at(output)
    assert dataset.own_scores() == ["redness"]
    rows = {row["scene_index"]: row["redness"] for row in dataset.rows()}
    assert rows == {0: pytest.approx(1.0, abs=0.03), 2: pytest.approx(0.376, abs=0.03)}
    ledger = dataset.ledger(["level", "decision", "rule", "value", "redness"]).to_pylist()
    (dropped,) = [row for row in ledger if row["decision"] == "dropped"]
    assert dropped["rule"] == "redness" and dropped["value"] == dropped["redness"] < 0.03

    subset = str(tmp_path / "bright")
    order = asked.Order(str(output), subset, "bright", config, [])
    cleaned.execute(asked.make_plan(order), console, time.time(), None)
    (row,) = Dataset.at(subset).rows()
    assert row["scene_index"] == 0 and row["brightest"] >= 250 and row["redness"] > 0.9

    for folder in (str(output), subset):
        invoke = CliRunner().invoke
        assert invoke(validate.app, [folder]).exit_code == 0
        assert "redness" in invoke(why.app, [folder, row["clip_id"]]).output
        assert invoke(report.app, [folder]).exit_code == 0
        assert "redness" in (Path(folder) / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("scorers.new=own_toy:nothing", "has no attribute 'nothing'; give module:function"),
        ("scorers.new=own_nowhere:f", "No module named 'own_nowhere'; give module:function"),
        ("scorers.new=own_toy:not_callable", "is neither a function nor a class"),
        ("scorers.static=own_toy:redness", "'static' is a column already"),
        ("rules.rednes.min=1", "unknown rule 'rednes'; did you mean 'redness'"),
    ],
)
def test_mistakes_are_told(config: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_plan([str(config)], "mine", config, None, [override], None)


def test_other_code_is_another_scorer(config: Path) -> None:
    """Scores are kept by what made them: a changed file is seen."""
    from curation.pipelines import load_pipeline

    before = load_pipeline(config, "mine", []).fingerprints()
    assert load_pipeline(config, "mine", []).fingerprints() == before
    toy = config.parent / "own_toy.py"
    toy.write_text(toy.read_text() + "\n# changed\n")
    after = load_pipeline(config, "mine", []).fingerprints()
    assert {stage for stage in before if before[stage] != after[stage]} == {"scores"}
