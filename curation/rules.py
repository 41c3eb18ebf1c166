"""Scores -> decisions: the first rule, in config order, that a video or clip does not meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curation.pipelines import Rule
from curation.scores.table import HEADER_SCORES


@dataclass(frozen=True)
class Verdict:
    """Why something is dropped: the rule, the value it saw and the bound it broke."""

    rule: str
    value: float | None  # None: there was no score, and a rule does not pass what it cannot see
    threshold: float | None


def judge(scores: Mapping[str, float | None], rules: Mapping[str, Rule]) -> Verdict | None:
    """The first failing rule for these scores, or None when every rule is met."""
    for name, rule in rules.items():
        value = scores.get(name)
        for bound, broken in ((rule.min, lambda v, b: v < b), (rule.max, lambda v, b: v > b)):
            # `not >=` would let NaN through one way and not the other: name it.
            if bound is not None and (value is None or value != value or broken(value, bound)):
                return Verdict(name, value, bound)
    return None


def others_broken(
    scores: Mapping[str, float | None], rules: Mapping[str, Rule], first: str
) -> list[Verdict]:
    """What else breaks a rule, beside the `first` that did; without what has no score."""
    rest = {n: rule for n, rule in rules.items() if n != first and scores.get(n) is not None}
    return [found for n, rule in rest.items() if (found := judge(scores, {n: rule}))]


def judge_headers(
    scores: Mapping[str, float | None], rules: Mapping[str, Rule], duration_s: float | None
) -> Verdict | None:
    """The first rule that a whole video breaks before it is decoded, or None.

    A video shorter than the shortest clip can give none; one of unknown length may.
    """
    # What the headers tell is judged first, so that most unwanted bytes are never decoded.
    early = {name: rule for name, rule in rules.items() if name in HEADER_SCORES}
    shortest = rules.get("duration")
    if shortest is not None and shortest.min is not None and duration_s is not None:
        early["duration"] = Rule(min=shortest.min)
    ordered = {name: early[name] for name in rules if name in early}
    return judge({**scores, "duration": duration_s}, ordered)


def video_verdict(verdicts: Sequence[Verdict | None], rules: Mapping[str, Rule]) -> Verdict | None:
    """Why a whole video is dropped: the verdict of the clip that came furthest through the rules.

    None when a clip is kept, or when there was no clip to judge.
    """
    failing = [v for v in verdicts if v]
    if len(failing) < len(verdicts) or not failing:
        return None
    order = list(rules)
    return max(failing, key=lambda v: order.index(v.rule))
