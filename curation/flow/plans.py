"""The body of `curation/run.py`: check what the user asked for, run it, tell what came of it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
import yaml
from rich.console import Console

from curation.captions import check_checkpoint
from curation.commands import check_lasting, check_reachable, default_output, start_ray
from curation.flow.driver import (
    check_all_decided,
    identify_all,
    only_writer,
    todo,
    write_run,
)
from curation.flow.driver import (
    curate as run_flow,
)
from curation.flow.holdings import Holdings, is_subset, take_over
from curation.flow.progress import Display, Tally
from curation.funnels import show
from curation.pipelines import Pipeline, load_pipeline
from curation.scores.chosen import check_models
from curation.settings import ConfigError, RunError
from curation.shards import Dataset
from curation.sources import Source, expand
from curation.subsets.asked import told_mistakes

FAILED_RUN = 1


@dataclass(frozen=True)
class Plan:
    """A checked run: nothing in it can still be the user's mistake."""

    pipeline: Pipeline
    sources: list[Source]
    dataset: Dataset


def make_plan(
    given: list[str],
    name: str,
    config: Path,
    output: str | None,
    overrides: list[str],
    limit: int | None,
) -> Plan:
    """Resolve and check everything that can be checked before any work; raises ConfigError."""
    pipeline = load_pipeline(config, name, overrides)
    # A pipeline's own sources are beside the config; the user's are where the user stands.
    folder, wanted = (Path.cwd(), given) if given else (config.parent, pipeline.sources)
    if not wanted:
        raise ConfigError(
            f"the pipeline {name!r} has no sources of its own; "
            f"name files, folders, lists or URLs: python curation/run.py SOURCE --pipeline {name}"
        )
    sources = expand(wanted, folder)[:limit]
    if not sources:
        raise ConfigError(f"no videos found in {', '.join(wanted)}")
    output = output or default_output(name)
    check_lasting(output)
    dataset = Dataset.at(output)
    dataset.check_ours()
    if any(is_subset(commit) for commit in dataset.commits()):
        raise ConfigError(
            f"{dataset.uri} is a subset that vf-clean wrote, and curating into it would delete it; "
            "give another --output"
        )
    check_checkpoint(pipeline.captions)
    check_models(pipeline.scorers, pipeline.scorers.models)
    return Plan(pipeline, sources, dataset)


def show_plan(plan: Plan, console: Console) -> None:
    """Print what would be done: the resolved pipeline and the first sources."""
    resolved = plan.pipeline.model_dump(mode="json", exclude={"name", "sources"}, exclude_none=True)
    console.print(f"pipeline {plan.pipeline.name}", style="bold")
    console.print(yaml.safe_dump(resolved, sort_keys=False), markup=False, highlight=False)
    console.print(f"{len(plan.sources)} sources -> {plan.dataset.uri}", style="bold")
    for source in plan.sources[:10]:
        console.print(f"  {source.url}", markup=False, highlight=False)
    holdings = take_over(plan.dataset, plan.pipeline, dry_run=True)
    tell_holdings(holdings, console)


def tell_holdings(holdings: Holdings, console: Console) -> None:
    """Say what an earlier run left and what a changed config does to it."""
    if holdings.changed:
        console.print(
            f"config changed since the last run ({', '.join(sorted(holdings.changed))}): "
            f"{holdings.redecided} videos decided again from their scores, {holdings.redo} to redo",
            style="yellow",
        )
    if held := len(holdings.decided) - holdings.redecided:
        console.print(f"{held} videos already decided")


def execute(plan: Plan, console: Console, started: float) -> None:
    """Do what is left to do of a plan and print the funnel; raises RunError when it cannot."""
    dataset, pipeline = plan.dataset, plan.pipeline
    with only_writer(dataset):
        dataset.claim()
        swept = dataset.sweep()
        if swept:
            console.print(f"removed {len(swept)} files that a killed run left")
        holdings = take_over(dataset, pipeline)
        tell_holdings(holdings, console)
        sources, num_copies = identify_all(plan.sources)
        if num_copies:
            console.print(f"{num_copies} sources are copies of others and are left out")
        left = todo(sources, holdings)
        if left:
            tally = Tally.remote()  # type: ignore[attr-defined]
            with Display(tally, len(left), console):
                run_flow(left, pipeline, dataset, tally)
        wall_s = time.time() - started
        facts = {"sources": len(sources), "copies": num_copies, "wall_s": round(wall_s, 2)}
        funnel = write_run(dataset, pipeline, facts)
        show(funnel, dataset, console)
        check_all_decided(dataset, sources, funnel)
        where = dataset.path("shards") if dataset.is_local else f"{dataset.uri}/shards"
        num_shards = len(dataset.shards())
        shards = f"{num_shards} shard{'s' * (num_shards != 1)}"
        console.print(f"{shards} in {where} ({wall_s:.0f} s)", soft_wrap=True, highlight=False)
        console.print(f"look into it: vf-validate {dataset.uri}; vf-why {dataset.uri} SOURCE_OR_ID")


def curate(
    given: list[str],
    name: str,
    config: Path,
    output: str | None,
    overrides: list[str],
    limit: int | None,
    dry_run: bool,
    ray_address: str | None,
    started: float,
) -> None:
    """Run `curation/run.py`; exits 2 for a user's mistake and 1 for a run that failed."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    with told_errors():
        plan = make_plan(given, name, config, output, overrides, limit)
        if dry_run:
            show_plan(plan, console)
            return
        console.print(
            f"{len(plan.sources)} sources -> {plan.dataset.uri}; starting Ray", style="dim"
        )
        start_ray(ray_address)
        check_reachable(plan.dataset.uri)
        execute(plan, console, started)


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """Tell a user's mistake and exit 2, or a failed run and exit 1; Ray is left at the end."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        with told_mistakes():
            yield
    except (RunError, ray.exceptions.RayError, ConnectionError) as error:
        errors.print(f"the run failed: {error}", style="red", markup=False, highlight=False)
        errors.print("what is committed stays; the same command goes on from there")
        raise SystemExit(FAILED_RUN) from None
    except KeyboardInterrupt:
        errors.print("stopped; what is committed stays, and the same command goes on from there")
        raise SystemExit(FAILED_RUN) from None
    finally:
        if ray.is_initialized():
            ray.shutdown()
