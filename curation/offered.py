"""What a config offers: its pipelines and recipes, their rules, and every key that --set takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from curation.commands import say
from curation.configs import read_config, resolve
from curation.pipelines import Pipeline
from curation.scores.table import known_settings
from curation.settings import ConfigError
from curation.subsets.recipes import Recipe

COMMANDS = {"pipelines": "vf-curate --pipeline NAME", "recipes": "vf-clean --recipe NAME"}
SECTIONS: dict[str, type[BaseModel]] = {"pipelines": Pipeline, "recipes": Recipe}
NAMED = ("name", "description", "sources", "rules", "scorers")  # shown apart, or no key at all


def show_offered(config: Path, console: Console) -> None:
    """Print what a config offers; raises ConfigError where it cannot be read."""
    for kind, command in COMMANDS.items():
        say(console, f"{kind} of {config} ({command})", "bold")
        tree = read_config(config, kind)
        for name in tree:
            merged = resolve(tree, name, kind)
            say(console, f"  {name}: {' '.join(str(merged.get('description') or '').split())}")
            for rule, bounds in (merged.get("rules") or {}).items():
                say(console, f"    {rule} {in_words(bounds)}")
            for key in ("near_copies", "keep"):
                if merged.get(key):
                    say(console, f"    {key} {shown(merged[key])}")
    for kind, section in SECTIONS.items():
        say(console, f"keys of {kind} (--set KEY=VALUE), where a config says nothing", "bold")
        for line in keys_of(section):
            say(console, f"  {line}")
        say(console, "  rules.SCORE.min, rules.SCORE.max (none)")
    say(console, "  scores and what gives them: docs/filters.md", "dim")


def in_words(bounds: Any) -> str:
    """A rule's bounds as they are read.

    >>> in_words({"min": 1.74, "max": 1.82}), in_words({"max": "p20"}), in_words({})
    ('1.74 to 1.82', 'at most p20', 'measured, not judged')
    """
    if not isinstance(bounds, dict):
        raise ConfigError(f"a rule is {bounds!r}: give min, max or both")
    low, high = bounds.get("min"), bounds.get("max")
    if low is None and high is None:
        return "measured, not judged"
    if low is None or high is None:
        return f"at most {high}" if low is None else f"at least {low}"
    return f"{low} to {high}"


def keys_of(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every key of a section with its default, as --set takes it."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if not path and name == "scorers":
            for key, (first, *others) in known_settings().items():
                told = [each for each in others if each is not None]
                others_too = f"; {', '.join(map(str, told))}" if told else ""
                yield f"scorers.{key} ({shown(first)}{others_too})"
            yield f"scorers.num_workers ({section.model_fields['scorers'].default.num_workers})"
        elif isinstance(default, BaseModel):
            yield from keys_of(type(default), f"{path}{name}.")
        elif path or name not in NAMED:
            yield f"{path}{name} ({shown(default)})"


def shown(default: Any) -> str:
    return "none" if default is None else json.dumps(default, default=str).strip('"')
