"""Decisions by columns: what `judge` says row by row, quantiles, targets, and the sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.pipelines import Rule, Scorers
from curation.rules import judge
from curation.settings import ConfigError
from curation.shards import conform
from curation.subsets.decided import decide, needs, rows
from curation.subsets.gathered import Clips, score_schema
from curation.subsets.recipes import Recipe
from curation.subsets.written import fill

SCORERS = Scorers(text="rapidocr", motion="flow", look="pixels", aesthetic="technical_quality")
RULES = ("text", "motion", "resolution")


def make_recipe(rules: dict[str, Any], keep: float | None = None) -> Recipe:
    return Recipe(rules=rules, scorers=SCORERS, keep=keep)


def make_clips(scores: dict[str, Any], ids: list[str] | None = None, **known: Any) -> Clips:
    """Clips of one commit with these scores by rule; all scored and none failed unless told."""
    columns = {rule: np.array(values, float) for rule, values in scores.items()}
    n = len(next(iter(columns.values())))
    keys = {key: np.zeros(n, bool) for key in ("text", "motion", "look", "aesthetic")}
    names = ids or [f"c{i:06d}" for i in range(n)]
    return Clips(
        ids=pa.chunked_array([pa.array(names, pa.string())]),
        duration_s=np.full(n, 2.0),
        scores=columns,
        scored={key: ~none for key, none in keys.items()} | known.get("scored", {}),
        failed=keys | known.get("failed", {}),
        commits={"one": slice(0, n)},
    )


def same(a: float | None, b: float | None) -> bool:
    """Equal numbers, null and NaN being the same: there is no score."""
    missing = [x is None or math.isnan(x) for x in (a, b)]
    return all(missing) or (not any(missing) and a == b)


values = st.one_of(
    st.none(), st.just(math.nan), st.sampled_from([0.0, 0.5, 1.0, -0.0, math.inf]), st.floats(-2, 2)
)
bounds = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(-1.5, 1.5))
rule_sets = st.dictionaries(
    st.sampled_from(RULES), st.fixed_dictionaries({"min": bounds, "max": bounds})
)


def agree(clips: list[dict[str, float | None]], rules: dict[str, dict[str, float | None]]) -> None:
    """The columnar decision of every clip is `judge`'s."""
    table = make_clips({rule: [clip[rule] for clip in clips] for rule in RULES})
    found = rows(table, decide(table, make_recipe(rules)), "one").to_pylist()
    wanted = {name: Rule(**sides) for name, sides in rules.items()}
    for clip, row in zip(clips, found, strict=True):
        verdict = judge(clip, wanted)
        assert row["rule"] == (verdict.rule if verdict else None)
        assert same(row["value"], verdict.value if verdict else None)
        assert same(row["threshold"], verdict.threshold if verdict else None)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({rule: values for rule in RULES}), min_size=1, max_size=8),
    rule_sets,
)
def test_columns_decide_as_rows_do(clips: list[Any], rules: dict[str, Any]) -> None:
    agree(clips, rules)


def test_columns_decide_as_rows_do_for_fifty_thousand() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(50_000, 3))
    table[rng.random(table.shape) < 0.05] = np.nan
    clips = [dict(zip(RULES, row, strict=True)) for row in table.tolist()]
    agree(
        clips, {"text": {"max": 1.0}, "resolution": {"min": -1.5}, "motion": {"min": -1, "max": 1}}
    )


@given(st.permutations(range(100)), st.sampled_from([0, 10, 20, 37.5, 50, 100]))
@settings(max_examples=20, deadline=None)
def test_a_quantile_is_of_the_clips_that_come_to_the_rule(order: list[int], q: float) -> None:
    """Half of 200 clips are dropped before; they hold the extremes and must not count."""
    motion = np.concatenate([np.array(order, float), np.full(50, -1e6), np.full(50, 1e6)])
    text = np.concatenate([np.zeros(100), np.ones(100)])
    clips = make_clips({"text": text, "motion": motion})
    recipe = make_recipe({"text": {"max": 0.5}, "motion": {"min": f"p{q:g}"}})
    out = decide(clips, recipe)
    assert out.steps[1].min == pytest.approx(99 * q / 100)  # linear, as numpy.percentile
    assert out.steps[1].left == sum(i >= 99 * q / 100 - 1e-9 for i in range(100))
    upper = make_recipe({"text": {"max": 0.5}, "motion": {"max": f"p{q:g}"}})
    assert decide(clips, upper).steps[1].max == out.steps[1].min


def test_a_quantile_ignores_what_has_no_score_but_drops_it() -> None:
    clips = make_clips({"motion": [0, 1, 2, 3, 4, np.nan]})
    out = decide(clips, make_recipe({"motion": {"min": "p50"}}))
    assert out.steps[0].min == 2.0
    assert out.kept.tolist() == [False, False, True, True, True, False]


def test_a_quantile_of_nothing_is_an_error_unless_nothing_comes() -> None:
    recipe = make_recipe({"text": {"max": 0.5}, "motion": {"min": "p50"}})
    with pytest.raises(ConfigError, match=r"rules.motion.min is p50.*--set rules.motion.min="):
        decide(make_clips({"text": [0.0], "motion": [np.nan]}), recipe)
    assert not decide(make_clips({"text": [1.0], "motion": [np.nan]}), recipe).kept.any()


# -- keep


def test_keep_takes_the_best_by_the_mean_of_their_ranks() -> None:
    """Ranks of four clips: text (less is better) 4 3 2 1, motion 1 3 4 2; sums 5 6 6 3."""
    clips = make_clips({"text": [0.1, 0.2, 0.3, 0.4], "motion": [1, 30, 400, 20]})
    rules = {"text": {"max": 1}, "motion": {"min": 0}}
    for keep, kept in ((3, [0, 1, 2]), (2, [1, 2]), (1.0, [0, 1, 2, 3]), (9, [0, 1, 2, 3])):
        assert np.flatnonzero(decide(clips, make_recipe(rules, keep)).kept).tolist() == kept
    even = make_clips({"text": [0.1] * 4}, ids=["d", "a", "c", "b"])
    best = decide(even, make_recipe({"text": {"max": 1}}, 2)).kept
    assert best.tolist() == [False, True, False, True]
    row = rows(clips, decide(clips, make_recipe(rules, 2)), "one").to_pylist()[3]
    assert (row["rule"], row["value"], row["threshold"]) == ("keep", 0.25, 0.75)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.9]), min_size=1, max_size=40),
    st.one_of(st.floats(0.01, 1), st.integers(2, 50).map(float)),
    st.randoms(),
)
def test_keep_keeps_exactly_so_many_whatever_the_order(
    text: list[float], keep: float, random: Any
) -> None:
    recipe = make_recipe({"text": {"max": 0.5}}, keep)
    clips = make_clips({"text": text})
    out = decide(clips, recipe)
    target = math.ceil(round(keep * len(text), 6)) if keep <= 1 else int(keep)
    passing = sum(t <= 0.5 for t in text)
    assert out.kept.sum() == min(target, passing)
    assert all(s.came == s.left + s.dropped + s.failed + s.not_scored for s in out.steps)
    assert (out.value[out.rule == 1] < out.threshold[out.rule == 1]).all()
    order = random.sample(range(len(text)), len(text))
    ids = np.array(clips.ids.to_pylist())
    moved = make_clips({"text": [text[i] for i in order]}, ids=ids[order].tolist())
    assert set(ids[order][decide(moved, recipe).kept]) == set(ids[out.kept])


# -- what could not be scored


def test_a_clip_whose_scorer_failed_is_failed_at_the_rule_that_needs_it() -> None:
    failed = np.array([True, True, False])
    clips = make_clips(
        {"text": [0.9, 0.1, 0.1], "motion": [np.nan, np.nan, 1]}, failed={"motion": failed}
    )
    out = decide(clips, make_recipe({"text": {"max": 0.5}, "motion": {"min": 0}}))
    found = [(r["rule"], r["failed"]) for r in rows(clips, out, "one").to_pylist()]
    assert found == [("text", False), ("motion", True), (None, False)]
    assert [(s.dropped, s.failed, s.left) for s in out.steps] == [(1, 0, 2), (0, 1, 1)]


def test_only_clips_that_may_come_to_a_rule_are_scored_for_it() -> None:
    """Clips: dropped by a stored resolution, text unknown, text known good, text known bad."""
    clips = make_clips(
        {
            "resolution": [100, 720, 720, 720],
            "text": [np.nan, np.nan, 0.1, 0.9],
            "motion": [np.nan] * 4,
        },
        scored={
            "text": np.array([False, False, True, True]),
            "motion": np.array([False, False, False, False]),
        },
    )
    rules = {"resolution": {"min": 720}, "text": {"max": 0.5}, "motion": {"min": "p20"}}
    found = needs(clips, make_recipe(rules))
    assert found["text"].tolist() == [False, True, False, False]
    assert found["motion"].tolist() == [False, True, True, False]
    clips.failed["text"][2] = True  # it will fail there, so nothing later needs it
    assert needs(clips, make_recipe(rules))["motion"].tolist() == [False, True, False, False]
    clips.failed["text"][2] = False
    out = decide(clips, make_recipe(rules))  # a dry run
    assert [(s.came, s.dropped, s.not_scored, s.left) for s in out.steps] == [
        (4, 1, 0, 3),
        (3, 1, 1, 1),
        (1, 0, 1, 0),
    ]


def test_a_rule_without_bounds_needs_nothing_and_drops_nothing() -> None:
    none = np.zeros(2, bool)
    clips = make_clips({"motion": [np.nan, 1]}, scored={"motion": none}, failed={"motion": ~none})
    assert not needs(clips, make_recipe({"motion": {}}))["motion"].any()
    assert decide(clips, make_recipe({"motion": {}})).kept.all()


def test_scores_of_two_scorers_are_never_in_one_column() -> None:
    table = pa.table({"clip_id": ["a", "b", None], "text": [0.5, None, 0.7]})
    new = {"clip_id": ["b", "a"], "scored": [True, True], "text": [0.2, 0.1]}
    stored = conform(pa.table(new), score_schema("text"))
    for found, known, text in [
        (stored, {"text"}, [0.5, 0.2, 0.7]),  # the same scorer: what is there stays
        (stored, set(), [0.1, 0.2, None]),  # another's
        (None, set(), [None, None, None]),
    ]:
        assert fill(table, {"text": found}, known)["text"].to_pylist() == text
