"""A recipe of pipelines.yaml -> one validated Recipe: which clips of a dataset to keep."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from curation.configs import load_named
from curation.pipelines import STAGE_VERSIONS, Media, Scorers, Section, check_rules
from curation.scores.table import keys_where
from curation.shards.train_signals import RELATIVE_LOSS

QUANTILE = re.compile(r"p(\d+(?:\.\d+)?)")


def read_bound(value: Any) -> Any:
    """A bound as it may be written: a finite number, or a quantile such as p20."""
    if isinstance(value, str) and (match := QUANTILE.fullmatch(value)):
        if float(match[1]) <= 100:
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    elif value is None:
        return None
    raise PydanticCustomError("bound", "give a number, or a quantile from p0 to p100 such as p20")


Bound = Annotated[float | str | None, BeforeValidator(read_bound)]


class Bounds(Section):
    """A rule whose bounds may be quantiles."""

    min: Bound = None
    max: Bound = None


class NearCopies(Section):
    """Of clips that show nearly the same the best is kept; off without a distance."""

    # Bits of 64. Unlike clips are 32 apart: with more than half of that all would be one group.
    min_distance: float | None = Field(None, gt=0, le=24)


class Models(Section):
    """How the scorers that are models run."""

    num_workers: int | None = Field(None, ge=1)  # of each; None: by the CPUs, or GPUs, there are
    timeout_s: float = Field(600, gt=0)  # for the pictures of a few clips, its turn included


class Recipe(Section):
    """A resolved recipe: rules in order, the scorers they need, and how much to keep."""

    name: str = ""
    description: str = ""
    rules: dict[str, Bounds] = Field(default_factory=dict)
    scorers: Scorers = Scorers()
    near_copies: NearCopies = NearCopies()
    train_signal: str | None = None  # the run of vf-train whose relative_loss is meant
    keep: float | None = Field(None, gt=0, allow_inf_nan=False)  # to 1: a share; above: clips
    media: Media = Media(timeout_s=600)
    models: Models = Models()

    @model_validator(mode="after")
    def makes_sense(self) -> Recipe:
        measured = {name: rule for name, rule in self.rules.items() if name != RELATIVE_LOSS}
        check_rules(measured, self.scorers)
        if RELATIVE_LOSS in self.rules and self.train_signal is None:
            raise ValueError(
                f"rules.{RELATIVE_LOSS} needs a run of vf-train that wrote it; add "
                "--set train_signal=NAME, of DATASET/train_signal/NAME.parquet"
            )
        if self.keep is not None and self.keep > 1 and self.keep != int(self.keep):
            raise ValueError(f"keep is {self.keep:g}: give a share up to 1 or a whole number")
        if self.keep is not None and not self.ranked:
            raise ValueError("keep ranks clips by the rules that have one bound; there is none")
        return self

    @property
    def ranked(self) -> dict[str, bool]:
        """The rules that `keep` ranks by, and whether more of their score is better."""
        return {
            name: bounds.min is not None
            for name, bounds in self.rules.items()
            if (bounds.min is None) != (bounds.max is None)
        }

    def key_of(self, rule: str) -> str | None:
        """The key of `scorers` that can score stored clips for a rule; None: none can."""
        key = self.scorers.key_of(rule)
        return None if key in keys_where("of_video") else key

    @property
    def keys(self) -> list[str]:
        """The keys of `scorers` that the rules need, in order."""
        return list(dict.fromkeys(key for rule in self.rules if (key := self.key_of(rule))))


def scorer_settings(scorers: dict[str, Any], key: str) -> dict[str, Any]:
    """What the scores of a key depend on: its implementation and its own further keys."""
    ours = {k: v for k, v in sorted(scorers.items()) if k == key or k.startswith(f"{key}_")}
    return {k: v for k, v in ours.items() if v is not None}  # a key may be younger than a run


def score_folder(scorers: Scorers, key: str) -> str:
    """The folder, in a dataset's scores/, of what a scorer found: its key and a fingerprint."""
    facts = [STAGE_VERSIONS["scores"], scorer_settings(scorers.model_dump(), key)]
    return f"{key}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def load_recipe(config: Path, name: str, overrides: list[str]) -> Recipe:
    """The recipe called `name` in a pipelines.yaml, with `path=value` overrides applied.

    Raises ConfigError for a missing file, recipe or key, and for a value out of range.
    """
    return load_named(config, "recipes", name, overrides, Recipe)
