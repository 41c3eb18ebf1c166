"""What training says of clips: as arithmetic, beside the dataset, in vf-clean and in vf-report."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_takedown import make, ordered
from training_media import TINY, small_dataset

from curation import clean, report, why
from curation.shards import Dataset
from curation.shards.train_signals import SIGNAL_SCHEMA, read_signal, write_signal
from curation.subsets.indexed import INDEX
from training.learning.signals import BINS, WARM, Signals
from training.train import train as vf_train

RECIPES = """
pipelines: {web: {}}
recipes:
  plain: {rules: {}}
  learned: {train_signal: first, rules: {relative_loss: {max: 1.5}}}
  best: {train_signal: first, rules: {relative_loss: {max: null}}}
"""


# -- the arithmetic


def test_a_loss_is_held_against_the_mean_of_its_timestep() -> None:
    """Twice the mean early, half of it late: the ratio does not see how the timesteps differ."""
    signals = Signals()
    for _ in range(WARM):
        signals.add([("d", "a", 0.05, 4.0), ("d", "a", 0.95, 0.1)])
    assert not signals.clips  # nothing is known yet
    signals.add([("d", "x", 0.05, 8.0), ("d", "y", 0.95, 0.05)])
    signals.add([("d", "x", 0.95, 0.2)])
    rows = {row["clip_id"]: row for row in signals.rows("d").to_pylist()}
    # The mean of the late bin had moved: a little of 0.05 beside what was 0.1 before.
    weights = [0.99**n for n in range(WARM + 1)]
    late = 0.2 / ((0.05 * weights[0] + 0.1 * sum(weights[1:])) / sum(weights))
    # All in all their mean is 1.
    total = 0.5 + 2.0 + late
    assert rows["y"]["relative_loss"] == pytest.approx(0.5 * 3 / total) and rows["y"]["spread"] == 0
    assert rows["x"]["num_losses"] == 2
    assert rows["x"]["relative_loss"] == pytest.approx((2.0 + late) / 2 * 3 / total)
    assert rows["x"]["spread"] == pytest.approx(abs(late - 2.0) / 2 * 3 / total)


def test_hard_clips_are_told_from_easy_ones_while_the_loss_falls() -> None:
    rng, signals = random.Random(0), Signals()
    for step in range(4000):
        timestep, n = rng.random(), rng.randrange(10)
        hardness = 0.5 + n / 9  # 0.5 to 1.5, on average 1
        level = (0.1 + timestep) * math.exp(-step / 40_000)
        signals.add([("d", f"{n}", timestep, level * hardness * rng.uniform(0.8, 1.2))])
    found = [row["relative_loss"] for row in signals.rows("d").to_pylist()]
    assert found == sorted(found)
    assert found == pytest.approx([0.5 + n / 9 for n in range(10)], rel=0.05)


def test_what_is_saved_goes_on_to_the_bit(tmp_path: Path) -> None:
    rng = random.Random(1)
    losses = [("d", f"{rng.randrange(5)}", rng.random(), rng.random()) for _ in range(3000)]
    whole, first = Signals(), Signals.load(tmp_path, 0)
    for n, loss in enumerate(losses):
        whole.add([loss])
        first.add([loss])
        if n == 1234:
            first.save(tmp_path, 7)
            first = Signals.load(tmp_path, 7)
    assert first.rows("d").equals(whole.rows("d")) and len(whole.rows("d")) == 5
    assert [path.name for path in tmp_path.rglob("*.json")] == ["step-00000007.json"]
    (tmp_path / "checkpoints/step-00000008").mkdir(parents=True)
    first.save(tmp_path, 9)
    assert [path.name for path in tmp_path.rglob("*.json")] == ["step-00000009.json"]


def test_a_mean_of_nothing_says_nothing() -> None:
    signals = Signals()
    for _ in range(2 * WARM):
        signals.add([("d", "a", 0.5, 0.0)])
    assert len(signals.rows("d")) == 0 and len(signals.rows("another")) == 0
    assert len(signals.sums) == BINS


# -- beside a dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six clips; of two the run knows nothing, and it knows one that is gone."""
    dataset = make(Dataset.at(tmp_path / "data"))
    ids = sorted(row["clip_id"] for row in dataset.rows(["clip_id"]))
    assert len(ids) == 6
    found = {ids[0]: 0.4, ids[1]: 1.6, ids[2]: 1.5, ids[3]: 0.9, "gone": 9.0}
    rows = pa.table(
        {
            "clip_id": [*found],
            "num_losses": [2] * 5,
            "relative_loss": [*found.values()],
            "spread": [0.1] * 5,
        }
    )
    write_signal(dataset, "first", rows, {"step": "80"})
    (tmp_path / "pipelines.yaml").write_text(RECIPES)
    return dataset


def clean_it(dataset: Dataset, recipe: str, *more: object) -> tuple[int, str]:
    config = Path(dataset.root).with_name("pipelines.yaml")
    given = (dataset.root, "--config", config, "--recipe", recipe, *more)
    return ordered(clean.app, *given)


def test_a_file_is_read_as_it_was_written(dataset: Dataset) -> None:
    rows = read_signal(dataset, "first")
    assert rows.schema.equals(SIGNAL_SCHEMA) and len(rows) == 5


def test_vf_clean_drops_what_is_learned_worst(dataset: Dataset) -> None:
    """What the run does not know is average: it stays, also where that is a held-out video."""
    output = Path(dataset.root).with_name("subset")
    code, said = clean_it(dataset, "learned", "--output", output, "--index-only")
    assert code == 0, said
    assert "2 of 6 clips were not trained on by first: they count as average" in said
    assert len(pq.read_table(output / INDEX)) == 5


def test_quantiles_and_ranks_know_it(dataset: Dataset) -> None:
    worst = ("--set", "rules.relative_loss.max=p50", "--dry-run")
    code, said = clean_it(dataset, "best", *worst)
    assert code == 0 and "<= 1 (p50)" in said, said  # of 0.4 0.9 1 1 1.5 1.6
    code, said = clean_it(dataset, "learned", "--set", "keep=2", "--dry-run")
    assert code == 0 and "keep" in said


def test_mistakes_are_told(dataset: Dataset) -> None:
    code, said = clean_it(dataset, "plain", "--dry-run", "--set", "rules.relative_loss.max=1")
    assert code == 2 and "--set train_signal=NAME" in said
    code, said = clean_it(dataset, "learned", "--dry-run", "--set", "train_signal=second")
    assert code == 2 and "has no train_signal/second.parquet; there is: first" in said


def test_the_report_shows_the_best_and_the_worst(dataset: Dataset) -> None:
    code, said = ordered(report.app, dataset.root)
    assert code == 0, said
    page = Path(dataset.root, "report.html").read_text()
    assert "learned worst by first" in page and "learned best by first" in page
    assert "0.40 to 1.60 times the mean, of 4 that it trained on" in page
    code, said = ordered(why.app, dataset.root, "ant")
    assert code == 0, said


# -- as a run writes it


def test_a_run_that_is_stopped_tells_the_same(tmp_path: Path) -> None:
    """Of the same videos twice: one run whole, of the other the second half is resumed."""
    found = []
    for name, steps in (("whole", [30]), ("halves", [15, 30])):
        data = small_dataset(tmp_path / name / "data")
        for num_steps in steps:
            how = [*TINY, "train_signal=true", "batch_size=6", "num_samples=0"]
            how += [f"max_steps={num_steps}", "checkpoint_every=15", "num_threads=1"]
            vf_train("tiny", [str(data)], tmp_path / name / "run", None, how, [])
        found.append(read_signal(Dataset.at(data), "run"))
        states = [path.name for path in (tmp_path / name / "run/train_signal").iterdir()]
        assert sorted(states) == ["step-00000015.json", "step-00000030.json"]
    whole, halves = found
    assert whole.equals(halves) and len(whole) > 1
    clip_ids = {row["clip_id"] for row in Dataset.at(data).rows(["clip_id"])}
    assert set(whole["clip_id"].to_pylist()) <= clip_ids
    assert 0 < min(whole["relative_loss"].to_pylist()) < 1 < max(whole["relative_loss"].to_pylist())
