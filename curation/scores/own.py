"""A user's own scorers: `scorers.NAME: module:function`, from a file beside the config.

The function is called with a clip's pictures, a list of 1 to 5 uint8 RGB arrays [H, W, 3] whose
short side is at most 608 px, in order of time; it returns the clip's score, a number or None.
A class is made once in each process and its instances are called the same way. NAME is the score's
column in ledger and shards, and the name of its rule.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation.scores.models import Row, Seen
from curation.scores.table import load

NAME = re.compile(r"[a-z][a-z0-9_]*")


def checked_place(name: str, place: str) -> str:
    """`module:function` with a hash of its file, so that scores of other code are not mixed.

    Raises ValueError where there is no such function.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"scorers.{name}: a name is letters, digits and _ in lower case")
    place = place.partition("@")[0]
    module, _, function = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"scorers.{name} is {place!r}: {error}; give module:function of a Python file beside "
            "the config or of an installed package"
        ) from None
    if not callable(found):
        raise ValueError(f"scorers.{name} is {place!r}, which is neither a function nor a class")
    source = Path(inspect.getfile(importlib.import_module(module))).read_bytes()
    return f"{place}@{hashlib.sha256(source).hexdigest()[:12]}"


class OwnScore:
    """A model whose score is what a user's function says of a clip's pictures."""

    def __init__(self, name: str, made: Callable[..., Any]) -> None:
        self.name = name
        function: Any = made() if inspect.isclass(made) else made
        self.function = function

    def __call__(self, clips: Sequence[Seen]) -> list[Row]:
        return [{self.name: self.score(clip.pictures)} for clip in clips]

    def score(self, pictures: Sequence[np.ndarray]) -> float | None:
        value = self.function([np.ascontiguousarray(p[..., ::-1]) for p in pictures])
        return None if value is None else float(value)


def loaded(place: str) -> Callable[..., Any]:
    """The function itself, to be sent to other processes whole: its file may not be there."""
    import ray

    function = load(place.partition("@")[0])
    ray.cloudpickle.register_pickle_by_value(importlib.import_module(function.__module__))
    return function
