"""Stored scores -> which clips a recipe keeps: by columns, since there may be millions.

What `rules.judge` says of one clip this says of all of them, and it tells the clips that have not
been scored yet from those that a scorer could not score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.settings import ConfigError
from curation.subsets.gathered import Clips
from curation.subsets.near_copies import find_copies
from curation.subsets.recipes import Bounds, Recipe

# The names under which `near_copies` and `keep` stand among the rules.
NEAR_COPIES, KEEP = "near_copies", "keep"


@dataclass
class Step:
    """One rule's part of the funnel: clips that came to it and what became of them."""

    rule: str
    min: float | None  # resolved
    max: float | None
    asked: dict[str, Any]  # the bounds as the recipe has them
    came: int
    dropped: int
    failed: int
    not_scored: int  # yet: only in a dry run
    left: int
    left_s: float


@dataclass
class Decisions:
    """What becomes of every clip; arrays [number of clips]."""

    rule: np.ndarray  # int16, place in `rules`; -1 kept
    value: np.ndarray  # float64; NaN = there was no score
    threshold: np.ndarray
    failed: np.ndarray  # bool: `rule` could not be judged because its scorer failed
    unknown: np.ndarray  # bool: `rule` could not be judged because nothing has scored it yet
    rules: list[str]
    near_copy_of: np.ndarray  # object: the id of the clip that stands for a near copy, or None
    steps: list[Step] = field(default_factory=list)

    @property
    def kept(self) -> np.ndarray:
        return self.rule < 0

    def drop(self, who: np.ndarray, rule: str, value: np.ndarray, threshold: float) -> None:
        self.rule[who] = self.rules.index(rule)
        self.value[who] = value[who]
        self.threshold[who] = threshold


def breaks(values: np.ndarray, side: str, bound: float) -> np.ndarray:
    """Where a bound is not met; what was not scored (NaN) does not meet it."""
    with np.errstate(invalid="ignore"):
        return ~(values >= bound) if side == "min" else ~(values <= bound)


def needs(clips: Clips, recipe: Recipe) -> dict[str, np.ndarray]:
    """By scorer key, the clips that it still has to score: bool [number of clips].

    A clip that a number in an earlier rule already drops is not scored for the later ones.
    """
    alive = np.ones(len(clips), bool)
    out = {key: np.zeros(len(clips), bool) for key in recipe.keys}
    for rule, bounds in recipe.rules.items():
        key = recipe.key_of(rule)
        unknown = ~clips.scored[key] if key else np.zeros(len(clips), bool)
        if bounds.min is None and bounds.max is None:
            continue
        if key:
            out[key] |= alive & unknown
            alive &= ~clips.failed[key]
        for side in ("min", "max"):
            bound = getattr(bounds, side)
            if isinstance(bound, float):
                alive &= unknown | ~breaks(clips.scores[rule], side, bound)
    return out


def decide(clips: Clips, recipe: Recipe, others: Sequence[Clips] = ()) -> Decisions:
    """The first rule that each clip does not meet, then near copies, then what `keep` leaves out.

    `others` are the clips of further datasets, which may be copied here. Raises ConfigError for a
    quantile of a rule that no clip with a score comes to.
    """
    n, min_distance = len(clips), recipe.near_copies.min_distance
    out = Decisions(
        rule=np.full(n, -1, np.int16),
        value=np.full(n, np.nan),
        threshold=np.full(n, np.nan),
        failed=np.zeros(n, bool),
        unknown=np.zeros(n, bool),
        rules=[*recipe.rules, *[NEAR_COPIES] * (min_distance is not None), KEEP],
        near_copy_of=np.full(n, None),
    )
    for rule, bounds in recipe.rules.items():
        out.steps.append(apply_rule(clips, out, rule, bounds, recipe.key_of(rule)))
    if min_distance is not None:
        out.steps.append(apply_near_copies(clips, out, min_distance, others))
    if recipe.keep is not None:
        out.steps.append(apply_keep(clips, out, recipe))
    return out


def apply_rule(clips: Clips, out: Decisions, rule: str, bounds: Bounds, key: str | None) -> Step:
    """Judge the clips that are still kept by one rule, whose scorer is `key`."""
    came = out.kept
    values = clips.scores[rule]
    judged = came if bounds.min is not None or bounds.max is not None else np.zeros_like(came)
    failed, unknown = np.zeros_like(came), np.zeros_like(came)
    if key:
        failed, unknown = judged & clips.failed[key], judged & ~clips.scored[key]
        judged = judged & ~failed & ~unknown
    limits = {
        side: resolve(rule, side, getattr(bounds, side), values[judged], bool(unknown.any()))
        for side in ("min", "max")
    }
    for who, mark in ((failed, out.failed), (unknown, out.unknown)):
        out.rule[who] = out.rules.index(rule)
        mark |= who
    for side, bound in limits.items():
        if bound is not None:
            out.drop(judged & out.kept & breaks(values, side, bound), rule, values, bound)
    return step(clips, out, rule, limits, bounds.model_dump(exclude_none=True), came)


def resolve(
    rule: str, side: str, bound: float | str | None, values: np.ndarray, is_partial: bool
) -> float | None:
    """A bound as a number: a quantile is that of the scores of the clips that came to the rule.

    Linear between two scores, as numpy.percentile has it.
    """
    if not isinstance(bound, str):
        return bound
    finite = values[np.isfinite(values)]
    if len(finite):
        return float(np.percentile(finite, float(bound[1:])))
    if len(values) and not is_partial:
        raise ConfigError(
            f"rules.{rule}.{side} is {bound}, but no clip that comes to this rule has a score; "
            f"give a number: --set rules.{rule}.{side}=NUMBER"
        )
    return float("nan") if len(values) else None


def apply_near_copies(
    clips: Clips, out: Decisions, min_distance: float, others: Sequence[Clips]
) -> Step:
    """Of every group of near copies keep the best: of the clips still kept and those of `others`.

    Its value is the distance to the nearest of its group, bits of 64.
    """
    came = out.kept
    here = np.flatnonzero(came)
    copies = find_copies([part(clips, came), *others], min_distance)
    ids = pa.chunked_array(
        [*clips.ids.filter(pa.array(came)).chunks, *[c for o in others for c in o.ids.chunks]],
        pa.string(),
    )
    worse = np.flatnonzero(copies.best[: len(here)] != np.arange(len(here)))
    distance = np.full(len(clips), np.nan)
    distance[here] = copies.distance[: len(here)]
    who = np.zeros_like(came)
    who[here[worse]] = True
    out.drop(who, NEAR_COPIES, distance, min_distance)
    out.near_copy_of[here[worse]] = ids.take(pa.array(copies.best[worse])).to_pylist()
    asked = {"min": min_distance}
    return step(clips, out, NEAR_COPIES, {"min": min_distance, "max": None}, asked, came)


def part(clips: Clips, who: np.ndarray) -> Clips:
    """What near copies are told by of some clips alone."""
    assert clips.looks is not None
    mask = pa.array(who)
    ids, looks = clips.ids.filter(mask), clips.looks.filter(mask)
    return Clips(ids, clips.duration_s[who], {}, {}, {}, {}, clips.place, looks)


def apply_keep(clips: Clips, out: Decisions, recipe: Recipe) -> Step:
    """Of the clips that meet every rule keep the best, as many as `keep` says.

    A clip's rank in a rule is the share of clips that it is not worse than, ties in the middle;
    the mean of its ranks orders the clips, equal ones by id. Its standing is 1 for the best, down
    to 1 / n; the threshold is that of the last one kept.
    """
    assert recipe.keep is not None
    came = out.kept
    places = np.flatnonzero(came)
    n = len(places)
    share = recipe.keep <= 1
    target = int(np.ceil(round(recipe.keep * len(clips), 6))) if share else int(recipe.keep)
    limits: dict[str, float | None] = {"min": None, "max": None}
    if n > target:
        signed = [
            clips.scores[rule][places] * (1 if more_is_better else -1)
            for rule, more_is_better in recipe.ranked.items()
        ]
        table = pa.table({"rank": sum(map(ranks, signed)), "id": clips.ids.take(pa.array(places))})
        order = pc.sort_indices(table, [("rank", "descending"), ("id", "ascending")]).to_numpy()
        standing = np.full(len(clips), np.nan)
        standing[places[order]] = 1 - np.arange(n) / n
        threshold = 1 - (target - 1) / n
        limits["min"] = threshold
        worse = np.zeros_like(came)
        worse[places[order[target:]]] = True
        out.drop(worse, KEEP, standing, threshold)
    return step(clips, out, KEEP, limits, {"keep": recipe.keep, "clips": target}, came)


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, in (0, 1), the largest highest, equal ones the same."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - counts / 2
    return middles[inverse] / len(values)


def step(
    clips: Clips,
    out: Decisions,
    rule: str,
    limits: dict[str, float | None],
    asked: dict[str, Any],
    came: np.ndarray,
) -> Step:
    here = came & ~out.kept
    return Step(
        rule=rule,
        **limits,
        asked=asked,
        came=int(came.sum()),
        dropped=int((here & ~out.failed & ~out.unknown).sum()),
        failed=int((here & out.failed).sum()),
        not_scored=int((here & out.unknown).sum()),
        left=int(out.kept.sum()),
        left_s=float(clips.duration_s[out.kept].sum()),
    )


def rows(clips: Clips, out: Decisions, name: str) -> pa.Table:
    """The decisions on one commit's clips: clip_id, rule, value, threshold, failed, near_copy_of.

    The rule of a clip that is kept is null.
    """
    where = clips.commits[name]
    names = pa.array(out.rules)
    places = out.rule[where].astype(np.int32)
    return pa.table(
        {
            "clip_id": clips.ids[where],
            "rule": names.take(pa.array(places, mask=places < 0)),
            "value": pa.array(out.value[where], from_pandas=True),
            "threshold": pa.array(out.threshold[where], from_pandas=True),
            "failed": pa.array(out.failed[where]),
            "near_copy_of": pa.array(out.near_copy_of[where], pa.string()),
        }
    )


def as_json(steps: list[Step]) -> list[dict[str, Any]]:
    return [asdict(step) for step in steps]
