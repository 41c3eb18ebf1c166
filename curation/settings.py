"""What a user may set and how a mistake in it is told, for curation and training alike."""

from __future__ import annotations

import difflib
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError


class ConfigError(ValueError):
    """A mistake in a config or a command line, told in one sentence for the user."""


class RunError(RuntimeError):
    """A run that cannot go on, told in one sentence for the user."""


def nearest(name: str, known: Any) -> str:
    """The end of an error message about an unknown name: the closest known one, or all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(known)}"


def counted(number: int, things: str) -> str:
    """A number of things, as one says it.

    >>> counted(1, "videos"), counted(2, "queries"), counted(1, "copies"), counted(1200, "clips")
    ('1 video', '2 queries', '1 copy', '1,200 clips')
    """
    one = f"{things[:-3]}y" if things.endswith("ies") else things.removesuffix("s")
    return f"{number:,} {one if number == 1 else things}"


def set_path(tree: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value` (value read as YAML) to a tree of maps, in place."""
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(
            f"--set {override!r} is not path=value, such as rules.watermark.max=0.5 or "
            "learning_rate=1e-4"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value") from None
    *parents, last = path.split(".")
    for key in parents:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {key!r} holds a value, not keys")
        # Maps of a preset or of a base pipeline are shared: change a copy.
        tree[key] = dict(child)
        tree = tree[key]
    tree[last] = value


def explain(error: ValidationError, section: type[BaseModel]) -> str:
    """The first problem of a validation error: key, value, what is allowed."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        known: Any = section
        for part in path[:-1]:
            if isinstance(known, type) and issubclass(known, BaseModel):
                known = known.model_fields[part].annotation
            else:
                known = get_args(known)[1]  # the values of a map
        return f"unknown key {'.'.join(path)!r}{nearest(path[-1], known.model_fields)}"
    if problem["type"] == "value_error":  # our own words name the key
        return problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path)} is {problem['input']!r}: {problem['msg']}"
