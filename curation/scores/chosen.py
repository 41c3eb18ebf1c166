"""The scorers that a config chooses: checked before any work, and what makes each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from curation.pipelines import Scorers
from curation.scores.models import Model
from curation.scores.own import OwnScore, loaded
from curation.scores.table import TABLE, load


def build_models(scorers: Scorers, keys: Iterable[str]) -> dict[str, Callable[[], Model]]:
    """What builds each model that these keys of `scorers` name; pickled by name."""
    rows = {row.key: row for row in TABLE if row.sees == "pictures" and row.wants(scorers)}
    made: dict[str, Callable[[], Model]] = {}
    for key in keys:
        if key in rows:
            made[key] = partial(load(rows[key].make), scorers)
        elif key in scorers.own:
            made[key] = partial(OwnScore, key, loaded(scorers.own[key]))
    return made


def check_models(scorers: Scorers, keys: Iterable[str]) -> None:
    """Raise ConfigError, before any work, when a key's model has weights that are not to be had."""
    for row in TABLE:
        if row.key in keys and row.check and row.wants(scorers):
            load(row.check)(scorers)
