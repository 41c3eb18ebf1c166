"""Which rule a score breaks first, and what never passes."""

from __future__ import annotations

import math

import pytest

from curation.pipelines import Rule
from curation.rules import Verdict, judge, judge_headers

RULES = {"resolution": Rule(min=720), "duration": Rule(min=2, max=60), "watermark": Rule(max=0.5)}
GOOD = {"resolution": 1080.0, "duration": 5.0, "watermark": 0.1}


def test_scores_within_all_bounds_pass() -> None:
    assert judge(GOOD, RULES) is None
    assert judge(GOOD, {}) is None


@pytest.mark.parametrize(
    ("name", "value", "threshold"),
    [("resolution", 719.0, 720), ("duration", 1.9, 2), ("duration", 60.1, 60)],
)
def test_the_broken_bound_is_told(name: str, value: float, threshold: float) -> None:
    assert judge(GOOD | {name: value}, RULES) == Verdict(name, value, threshold)


@pytest.mark.parametrize("edge", [{"resolution": 720.0}, {"duration": 2.0}, {"duration": 60.0}])
def test_bounds_are_inside(edge: dict[str, float]) -> None:
    assert judge(GOOD | edge, RULES) is None


@pytest.mark.parametrize("name", ["watermark", "resolution"])
def test_what_was_not_scored_does_not_pass(name: str) -> None:
    missing = {k: v for k, v in GOOD.items() if k != name}
    for scores in (GOOD | {name: None}, missing):
        verdict = judge(scores, RULES)
        assert verdict is not None and (verdict.rule, verdict.value) == (name, None)
    verdict = judge(GOOD | {name: math.nan}, RULES)
    assert verdict is not None and verdict.rule == name


def test_a_bound_that_never_drops_lets_every_score_pass() -> None:
    assert judge({"watermark": 1.0}, {"watermark": Rule(max=1)}) is None
    assert judge({"watermark": None}, {"watermark": Rule()}) is None


def test_the_first_in_config_order_is_recorded() -> None:
    bad = {"resolution": 10.0, "duration": 0.1, "watermark": 0.9}
    for first in RULES:
        order = {first: RULES[first], **RULES}
        verdict = judge(bad, order)
        assert verdict is not None and verdict.rule == first


def test_headers_judge_only_what_they_can_know() -> None:
    header = {"resolution": 1080.0, "aspect": 1.78, "hdr": 0.0}
    assert judge_headers(header, RULES, 9.0) is None
    assert judge_headers(header, RULES, None) is None  # unknown length: decode and see
    assert judge_headers(header, RULES, 99.0) is None  # a long video may hold short clips
    assert judge_headers(header, RULES, 1.0) == Verdict("duration", 1.0, 2)


def test_headers_are_judged_in_config_order() -> None:
    header = {"resolution": 10.0, "aspect": 1.0, "hdr": 1.0}
    order = {"duration": Rule(min=2), "hdr": Rule(max=0), "resolution": Rule(min=720)}
    assert judge_headers(header, order, 1.0) == Verdict("duration", 1.0, 2)
    assert judge_headers(header, order, 3.0) == Verdict("hdr", 1.0, 0)
