"""What `vf-clean` was asked to do, checked, and shown from stored scores: no Ray, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from curation.commands import say
from curation.flow.holdings import is_subset
from curation.funnels import show_steps
from curation.places import check_writable, open_dataset, open_output
from curation.settings import ConfigError, counted
from curation.shards import Dataset
from curation.subsets.decided import decide, needs
from curation.subsets.gathered import Clips, gather
from curation.subsets.indexed import INDEX
from curation.subsets.recipes import Recipe, load_recipe
from curation.takedown.tombstones import NOTHING, read


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
    against: tuple[str, ...] = ()  # further datasets whose clips may be copied here


@dataclass(frozen=True)
class Plan:
    """A checked run."""

    recipe: Recipe
    dataset: Dataset
    subset: Dataset | None  # None: a dry run that named none
    index_only: bool
    retry_failed: bool = False
    against: tuple[Dataset, ...] = ()

    def gather(self, *, retry_failed: bool = False) -> Clips:
        """The clips of the dataset, without what was taken down in it or in the subset."""
        others = NOTHING if self.subset is None else read(self.subset)
        return gather(self.dataset, self.recipe, forget_failed=retry_failed, others=others)


def make_plan(order: Order, dry_run: bool = False) -> Plan:
    """Check everything that can be checked before any work; ConfigError or DatasetError."""
    recipe = load_recipe(order.config, order.recipe, order.overrides)
    dataset = open_dataset(order.dataset)
    against = open_others(order.against, dataset, recipe)
    if order.output is None:
        if not dry_run:
            raise ConfigError("--output is missing: the folder or URI of the subset")
        return Plan(recipe, dataset, None, order.index_only, order.retry_failed, against)
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
    return Plan(recipe, dataset, subset, order.index_only, order.retry_failed, against)


def open_others(places: tuple[str, ...], dataset: Dataset, recipe: Recipe) -> tuple[Dataset, ...]:
    """The datasets of --against, each once; ConfigError where they would mean nothing."""
    if places and recipe.near_copies.min_distance is None:
        raise ConfigError(
            "--against is for near copies, which this recipe does not look for; "
            "add --set near_copies.min_distance=16, or leave --against out"
        )
    others = {other.root: other for other in map(open_dataset, places)}
    if dataset.root in others:
        raise ConfigError(f"--against {dataset.uri} is the dataset itself; name other ones")
    return tuple(others[root] for root in sorted(others))


def gather_others(plan: Plan) -> list[Clips]:
    """Every clip that the datasets of --against keep."""
    only = Recipe(near_copies=plan.recipe.near_copies)
    return [gather(other, only) for other in plan.against]


def tell_taken_down(clips: Clips, console: Console) -> None:
    """Say how many videos of the dataset are left out since they were taken down."""
    if number := sum(map(len, clips.gone.values())):
        says = f"taken down from {clips.place}, and left out: {counted(number, 'videos')}"
        say(console, f"{says}; vf-purge takes them out of it", "yellow")


def tell_untrained(clips: Clips, recipe: Recipe, console: Console) -> None:
    """Say how many clips the run did not train on."""
    if clips.untrained:
        says = f"{clips.untrained} of {len(clips)} clips were not trained on by "
        says += f"{recipe.train_signal}: they count as average (relative_loss 1)"
        say(console, says, "yellow")


def tell_unhashed(clips: Sequence[Clips], console: Console) -> None:
    """Say how many clips cannot be told to be copies, dataset by dataset."""
    for each in clips:
        without = each.looks["perceptual_hash"].null_count if each.looks is not None else 0
        if without:
            says = f"{each.place}: {without} of {len(each)} clips have no perceptual hash (curated "
            says += "before there was one): near_copies passes them; curate them again to have it"
            say(console, says, "yellow")


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
    clips = plan.gather(retry_failed=plan.retry_failed)
    title = f"{plan.dataset.uri}, recipe {plan.recipe.name}"
    others = gather_others(plan)
    tell_taken_down(clips, console)
    tell_unhashed([clips, *others], console)
    tell_untrained(clips, plan.recipe, console)
    steps = decide(clips, plan.recipe, others).steps
    show_steps(title, len(clips), clips.duration_s.sum(), steps, console)
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
