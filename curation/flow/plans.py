"""The body of `curation/run.py`: check what the user asked for, run it, tell what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from curation.captions import check_checkpoint
from curation.commands import (
    GOES_ON,
    interruptible,
    ray_runs,
    say,
    screen,
    start_ray,
    tell_run,
    told_errors,
)
from curation.downloads.runtimes import lacking
from curation.flow.driver import check_all_decided, joined, todo, write_run
from curation.flow.holdings import Holdings, forget, is_subset, retell, take_over
from curation.flow.local_flow import LocalFlow, is_enough
from curation.flow.progress import Display
from curation.funnels import Funnel, show
from curation.pipelines import Pipeline, load_pipeline
from curation.places import check_reachable, check_temp, default_output, only_writer, open_output
from curation.records import COPY, ERROR_CLASSES, TRIED_AGAIN
from curation.scores.chosen import check_models
from curation.settings import ConfigError, counted, nearest
from curation.shards import Dataset
from curation.sources import Given, Source, is_remote, read_given
from curation.sources.lists.columns import columns_of
from curation.sources.source import shown
from curation.takedown.removal import remove
from curation.takedown.tombstones import Tombstones, of_names
from curation.takedown.tombstones import add as add_tombstones
from curation.takedown.tombstones import read as read_tombstones

if TYPE_CHECKING:
    from curation.flow.ray_flow import RayFlow


@dataclass(frozen=True)
class Plan:
    """A checked run: nothing in it can still be the user's mistake."""

    pipeline: Pipeline
    sources: list[Source]
    dataset: Dataset
    given: Given  # what the sources come from, and what was left out of it
    retry: frozenset[str] = frozenset()  # error classes that are tried again


def make_plan(
    given: list[str],
    name: str,
    config: Path,
    output: str | None,
    overrides: list[str],
    limit: int | None,
    retry: Sequence[str] = (),
    columns: str | None = None,
) -> Plan:
    """Resolve and check everything that can be checked before any work; raises ConfigError."""
    pipeline = load_pipeline(config, name, overrides)
    # A pipeline's own sources are beside the config; the user's are where the user stands.
    folder, wanted = (Path.cwd(), given) if given else (config.parent, pipeline.sources)
    if not wanted:
        raise ConfigError(
            f"the pipeline {name!r} has no sources of its own; "
            f"name files, folders, lists or URLs: vf-curate SOURCE --pipeline {name}"
        )
    found = read_given(wanted, folder, columns_of(columns))
    sources = found.sources[:limit]
    if not sources:
        why = "; ".join(["", *found.ignored()])
        raise ConfigError(f"no videos found in {', '.join(map(shown, wanted))}{why}")
    dataset, commits = open_output(output or default_output(name))
    if any(map(is_subset, commits)):
        raise ConfigError(
            f"{dataset.uri} is a subset that vf-clean wrote, and curating into it would delete it; "
            "give another --output"
        )
    check_checkpoint(pipeline.captions)
    check_models(pipeline.scorers, pipeline.scorers.models)
    return Plan(pipeline, sources, dataset, found, classes_of(retry))


def classes_of(retry: Sequence[str]) -> frozenset[str]:
    """The error classes named by --retry; "all" is every one. Raises ConfigError."""
    for name in retry:
        if name not in {*ERROR_CLASSES, "all"}:
            allowed = nearest(name, {*ERROR_CLASSES, "all"})
            raise ConfigError(f"--retry {name}: no such error class{allowed}")
    return ERROR_CLASSES if "all" in retry else frozenset(retry)


def show_plan(plan: Plan, console: Console) -> None:
    """Print what would be done: the resolved pipeline and the first sources."""
    resolved = plan.pipeline.model_dump(mode="json", exclude={"name", "sources"}, exclude_none=True)
    say(console, f"pipeline {plan.pipeline.name}", "bold")
    say(console, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    say(console, f"{counted(len(plan.sources), 'sources')} -> {plan.dataset.uri}", "bold")
    for line in plan.given.summary():
        say(console, line)
    for source in plan.sources[:10]:
        say(console, f"  {source.url}")
    holdings = take_over(plan.dataset, plan.pipeline, retry=plan.retry, dry_run=True)
    tell_holdings(holdings, console)
    num_allowed = len(allowed(plan.sources, read_tombstones(plan.dataset)))
    tell_taken_down(len(plan.sources) - num_allowed, console)


def tell_holdings(holdings: Holdings, console: Console) -> None:
    """Say what an earlier run left and what a changed config does to it."""
    if holdings.changed:
        say(
            console,
            f"config changed since the last run ({', '.join(sorted(holdings.changed))}): "
            f"{counted(holdings.redecided, 'videos')} decided again from their scores, "
            f"{holdings.redo} to redo",
            "yellow",
        )
    if holdings.again:
        say(
            console,
            f"{counted(len(holdings.again), 'videos')} with failures to try again",
            "yellow",
        )
    if held := len(holdings.decided) - holdings.redecided:
        say(console, f"{counted(held, 'videos')} already decided")


def hear(
    dataset: Dataset,
    pipeline: Pipeline,
    holdings: Holdings,
    sources: list[Source],
    console: Console,
) -> None:
    """Make room for what is done again: failures that are tried again, and what lists changed.

    New captions are written.
    """
    forget(dataset, holdings.again)
    if retold := retell(dataset, pipeline, holdings, sources):
        say(
            console,
            f"{counted(len(retold), 'videos')} with new captions from their lists",
            "yellow",
        )
    if outdated := holdings.outdated(sources):
        say(
            console,
            f"{counted(len(outdated), 'videos')} to redo: their lists or files changed",
            "yellow",
        )
        forget(dataset, outdated)
        holdings.decided -= outdated
    if unnamed := holdings.unnamed(sources):
        say(console, f"{counted(len(unnamed), 'videos')} of no source of this run stay as they are")


def untold(dataset: Dataset, holdings: Holdings, sources: list[Source]) -> list[Source]:
    """Make room for decided videos of which their copies say more; those to be done again."""
    outdated = holdings.outdated(sources)
    forget(dataset, outdated)
    left = [s for s in todo(sources, holdings) if holdings.names(s) & outdated]
    holdings.decided -= outdated
    return left


def allowed(sources: list[Source], stones: Tombstones) -> list[Source]:
    """The sources that were not taken down."""
    return [source for source in sources if not stones.of_source(source)]


def tell_taken_down(number: int, console: Console) -> None:
    if number:
        say(console, f"taken down, and left out: {counted(number, 'sources')}", "yellow")


def wants_ray(plan: Plan, address: str | None) -> bool:
    """Whether a run is Ray's: it is told where, or too much for this process alone."""
    told = bool(address or os.environ.get("RAY_ADDRESS"))
    return told or ray_runs() or not is_enough(plan.sources, plan.pipeline)


def flow_of(plan: Plan) -> RayFlow | LocalFlow:
    """Ray where it runs, else this process."""
    if not ray_runs():
        return LocalFlow(plan.pipeline, plan.sources)
    from curation.flow.ray_flow import RayFlow  # loading Ray takes 2 s

    return RayFlow(plan.pipeline)


def work(
    flow: RayFlow | LocalFlow,
    dataset: Dataset,
    holdings: Holdings,
    left: list[Source],
    stones: Tombstones,
    console: Console,
) -> tuple[int, set[str]]:
    """Curate what is left.

    Returns how many sources turned out to be copies of others, and the URLs of those that turned
    out to be what was taken down. These get tombstones of their own: they are not fetched again.
    """
    if not left:
        return 0, set()
    tally: Any = flow.tally(holdings.recorded(), stones)
    with Display(tally, len(left), console), interruptible() as stop:
        flow.curate(left, dataset, tally, stop)
    refused = tally.refused_urls()
    add_tombstones(dataset, of_names([("source", url) for url in refused if is_remote(url)]))
    return tally.num_copies(), refused


def execute(plan: Plan, console: Console, started: float) -> Funnel:
    """Do what is left to do of a plan and print the funnel; raises RunError when it cannot."""
    dataset, pipeline = plan.dataset, plan.pipeline
    with only_writer(dataset), flow_of(plan) as flow:
        stones = tidy(dataset, console)
        holdings = take_over(dataset, pipeline, retry=plan.retry)
        tell_holdings(holdings, console)
        identified = flow.identify(plan.sources)
        sources, num_copies = joined(allowed(identified, stones), holdings)
        if num_copies:
            say(console, f"copies of others, joined with them: {counted(num_copies, 'sources')}")
        hear(dataset, pipeline, holdings, sources, console)
        found, refused = work(flow, dataset, holdings, todo(sources, holdings), stones, console)
        if found:
            say(console, f"turned out to be copies of others: {counted(found, 'sources')}")
            num_copies += found
            holdings = take_over(dataset, pipeline)
            sources, _ = joined(allowed(identified, stones), holdings)
            again = untold(dataset, holdings, sources)
            work(flow, dataset, holdings, again, stones, console)
        sources = [source for source in sources if source.url not in refused]
        num_gone = len(identified) - len(allowed(identified, stones)) + len(refused)
        tell_taken_down(num_gone, console)
        wall_s = round(time.time() - started, 2)
        counts = {"sources": len(sources), "copies": num_copies, "taken_down": num_gone}
        funnel = write_run(dataset, pipeline, counts | {"wall_s": wall_s})
        show(funnel, dataset, console)
        check_all_decided(dataset, sources, funnel)
        tell_output(dataset, funnel, wall_s, console)
        return funnel


def tidy(dataset: Dataset, console: Console) -> Tombstones:
    """Take out what killed runs left, and what has a tombstone; returns the tombstones."""
    dataset.claim()
    swept = dataset.sweep()
    if swept:
        say(console, f"removed {counted(len(swept), 'files')} that a killed run left")
    stones = read_tombstones(dataset)
    if gone := remove(dataset, stones):
        say(console, f"removed {counted(len(gone), 'videos')} that a killed vf-purge left")
    return stones


def tell_output(dataset: Dataset, funnel: Funnel, wall_s: float, console: Console) -> None:
    """Say where the clips are, and what can be done next."""
    where = dataset.path("shards") if dataset.is_local else f"{dataset.uri}/shards"
    num_shards = len(dataset.shards())
    shards = counted(num_shards, "shards")
    say(console, f"{shards} in {where} ({wall_s:.0f} s)")
    failed = {*funnel.videos.failed, *funnel.clips.failed}
    if passing := failed & TRIED_AGAIN:
        say(console, f"failed by the machine ({listed(passing)}): the same command tries again")
    if others := failed - TRIED_AGAIN - {COPY}:
        say(console, f"failed for good ({listed(others)}): --retry CLASS tries again")
    uri = dataset.uri
    say(console, f"look into it: vf-report {uri}; vf-validate {uri}; vf-why {uri} SOURCE_OR_ID")


def listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def curate(
    given: list[str],
    name: str,
    config: Path,
    output: str | None,
    overrides: list[str],
    limit: int | None,
    retry: list[str],
    dry_run: bool,
    ray_address: str | None,
    started: float,
    columns: str | None = None,
    *,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Run `curation/run.py`; exits 2 for a user's mistake and 1 for a run that failed."""
    console = screen(quiet=quiet or as_json)
    with told_errors(GOES_ON):
        if dry_run and as_json:
            raise ConfigError("--dry-run has no result for --json; leave one of them out")
        plan = make_plan(given, name, config, output, overrides, limit, retry, columns)
        check_temp(ray_address)
        for line in plan.given.recognised():
            say(console, line)
        for line in plan.given.ignored():
            say(console, line, "yellow")
        if lack := lacking(source.url for source in plan.sources if source.path is None):
            say(console, lack, "yellow")
        if dry_run:
            show_plan(plan, console)
            return
        toward = f"{counted(len(plan.sources), 'sources')} -> {plan.dataset.uri}"
        if wants_ray(plan, ray_address):
            say(console, f"{toward}; starting Ray", "dim")
            start_ray(ray_address)
            check_reachable(plan.dataset.uri)
        else:
            say(console, toward, "dim")
        execute(plan, console, started)
        if as_json:
            tell_run(plan.dataset)
