"""What `vf-clean` was asked to do, checked, and shown from stored scores: no Ray, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from curation.commands import say
from curation.flow.holdings import is_subset
from curation.funnels import show_steps
from curation.places import check_writable, open_dataset, open_output
from curation.settings import ConfigError
from curation.shards import Dataset
from curation.subsets.decided import decide, needs
from curation.subsets.gathered import gather
from curation.subsets.indexed import INDEX
from curation.subsets.recipes import Recipe, load_recipe


@dataclass(frozen=True)
class Order:
    """What the user asked for, unchecked."""

    dataset: str
    output: str | None
    recipe: str
    config: Path
    overrides: list[str]
    index_only: bool = False
    retry_failed: bool = False


@dataclass(frozen=True)
class Plan:
    """A checked run."""

    recipe: Recipe
    dataset: Dataset
    subset: Dataset | None  # None: a dry run that named none
    index_only: bool
    retry_failed: bool = False


def make_plan(order: Order, dry_run: bool = False) -> Plan:
    """Check everything that can be checked before any work; ConfigError or DatasetError."""
    recipe = load_recipe(order.config, order.recipe, order.overrides)
    dataset = open_dataset(order.dataset)
    if order.output is None:
        if not dry_run:
            raise ConfigError("--output is missing: the folder or URI of the subset")
        return Plan(recipe, dataset, None, order.index_only, order.retry_failed)
    subset, commits = open_output(order.output)
    ours, theirs = (
        Path(d.root).resolve() if d.is_local else Path(d.root) for d in (subset, dataset)
    )
    if dataset.is_local == subset.is_local and (ours == theirs or theirs in ours.parents):
        raise ConfigError(
            f"--output {order.output} is the dataset itself or lies inside it; "
            "a subset is a dataset of its own: give another folder"
        )
    check_kind(subset, commits, order.index_only)
    return Plan(recipe, dataset, subset, order.index_only, order.retry_failed)


def check_kind(subset: Dataset, commits: list[dict[str, Any]], index_only: bool) -> None:
    """Refuse a folder that holds something else than an earlier run of the same kind."""
    if any(not is_subset(commit) for commit in commits):
        raise ConfigError(f"{subset.uri} is a curated dataset, not a subset; give another --output")
    if index_only and commits:
        raise ConfigError(f"{subset.uri} holds a subset with media; give another --output")
    if not index_only and subset.exists(INDEX):
        raise ConfigError(f"{subset.uri} holds an index without media; give another --output")


def show_plan(plan: Plan, console: Console) -> None:
    """Print the funnel as stored scores have it, and what a run would have to score first."""
    clips = gather(plan.dataset, plan.recipe, forget_failed=plan.retry_failed)
    title = f"{plan.dataset.uri}, recipe {plan.recipe.name}"
    show_steps(title, len(clips), clips.duration_s.sum(), decide(clips, plan.recipe).steps, console)
    missing = {key: int(mask.sum()) for key, mask in needs(clips, plan.recipe).items()}
    if any(missing.values()):
        check_writable(plan.dataset)  # scores are stored beside the clips
    for key, number in missing.items():
        if number:
            say(
                console,
                f"not scored yet: {key} ({getattr(plan.recipe.scorers, key)}) "
                f"of {number} clips; without --dry-run they are scored first",
                "yellow",
            )
