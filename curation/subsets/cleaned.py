"""The body of `vf-clean` behind its checked plan: score, decide, write, tell."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import numpy as np
import ray
from rich.console import Console

from curation.commands import code_version, say, start_ray
from curation.decode.tracks import build_scoring
from curation.flow.ray_flow import MAX_COMMITS_IN_FLIGHT
from curation.flow.ray_stages import TASK_RETRIES
from curation.funnels import FUNNEL_COLUMNS, count, show_steps
from curation.places import check_reachable, check_writable, only_writer
from curation.settings import RunError, counted
from curation.shards.commits import commit_name
from curation.subsets.asked import (
    Plan,
    gather_others,
    tell_taken_down,
    tell_unhashed,
    tell_untrained,
)
from curation.subsets.decided import Decisions, as_json, decide, needs, rows
from curation.subsets.gathered import Clips, trusted
from curation.subsets.indexed import write_index
from curation.subsets.recipes import Recipe, score_folder
from curation.subsets.scored import score_missing
from curation.subsets.written import write_extract
from curation.takedown.tombstones import add, read


def execute(
    plan: Plan, console: Console, started: float, ray_address: str | None = None
) -> Decisions:
    """Score what is missing, decide, and write the subset or its index."""
    assert plan.subset is not None
    clips, scored = score(plan, console, ray_address)
    others = gather_others(plan)
    tell_taken_down(clips, console)
    tell_unhashed([clips, *others], console)
    tell_untrained(clips, plan.recipe, console)
    decisions = decide(clips, plan.recipe, others)
    if decisions.unknown.any():
        raise RunError(f"{int(decisions.unknown.sum())} clips are still not scored; run again")
    with only_writer(plan.subset):
        plan.subset.claim()
        add(plan.subset, read(plan.dataset))
        if plan.index_only:
            write_index(plan.dataset, plan.subset, plan.recipe, clips, decisions)
        else:
            write_subset(plan, clips, decisions, console, ray_address)
        title = f"{plan.subset.uri}, recipe {plan.recipe.name}"
        seconds = clips.duration_s.sum()
        show_steps(title, len(clips), seconds, decisions.steps, console)
        wall_s = round(time.time() - started, 2)
        facts = {"clips_scored": scored, "wall_s": wall_s}
        write_run(plan, clips, decisions, facts)
    if plan.index_only:
        say(console, f"index in {plan.subset.uri} ({wall_s:.0f} s)")
        return decisions
    say(console, f"{plan.subset.uri} is a dataset ({wall_s:.0f} s)")
    say(console, f"look into it: vf-validate {plan.subset.uri}; vf-why {plan.subset.uri} ID")
    return decisions


def score(plan: Plan, console: Console, ray_address: str | None) -> tuple[Clips, dict[str, int]]:
    """The clips with every score that the recipe needs; and by key, how many were scored now."""
    clips = plan.gather(retry_failed=plan.retry_failed)
    missing = {key: mask for key, mask in needs(clips, plan.recipe).items() if mask.any()}
    counts = {key: int(mask.sum()) for key, mask in missing.items()}
    if not missing:
        return clips, counts
    scoring = build_scoring(plan.recipe.scorers, list(missing))
    wanted = ", ".join(f"{key} of {counted(number, 'clips')}" for key, number in counts.items())
    check_writable(plan.dataset)
    say(console, f"to score first: {wanted}; starting Ray", "dim")
    join_ray(plan, ray_address)
    with only_writer(plan.dataset):
        score_missing(plan.dataset, clips, missing, scoring, plan.recipe, console)
    return plan.gather(), counts


def join_ray(plan: Plan, address: str | None) -> None:
    """Start or join Ray; ConfigError where it has nodes that the folders are not on."""
    if not ray.is_initialized():
        start_ray(address)
    for each in (plan.dataset, plan.subset):
        if each is not None:
            check_reachable(each.uri)


# -- the subset


def write_subset(
    plan: Plan, clips: Clips, decisions: Decisions, console: Console, ray_address: str | None
) -> None:
    """Bring the subset to what was decided: what holds stays, the rest is written anew."""
    dataset, subset, recipe = plan.dataset, plan.subset, plan.recipe
    assert subset is not None
    swept = subset.sweep()
    if swept:
        say(console, f"removed {counted(len(swept), 'files')} that a killed run left")
    known = trusted(dataset, recipe)
    wanted = {}
    for commit in dataset.commits():
        if commit["name"] not in clips.commits:
            raise RunError(f"{dataset.uri} is being written to; wait for that run to end")
        gone = clips.gone[commit["name"]]
        left = [each for each in commit["video_ids"] if each not in gone]
        if left:
            prints = fingerprints(commit, clips, decisions, recipe, known)
            wanted[commit_name(left, prints)] = (commit | {"video_ids": left}, prints)
    there = set(subset.names("manifest", ".json"))
    stale = there - wanted.keys()
    for name in sorted(stale):
        subset.delete_commit(name)
    if there:
        held, todo = len(there & wanted.keys()), len(wanted.keys() - there)
        say(
            console, f"commits of an earlier run: {held} hold, {len(stale)} do not; {todo} to write"
        )
    unwritten = [both for name, both in wanted.items() if name not in there]
    if not unwritten:
        return
    join_ray(plan, ray_address)
    task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(write_extract)
    writing: list[Any] = []
    for commit, prints in unwritten:
        table = rows(clips, decisions, commit["name"])
        writing.append(task.remote(dataset, subset, commit, table, recipe, known, prints))
        while len(writing) >= 4 * MAX_COMMITS_IN_FLIGHT:
            done, writing = ray.wait(writing)
            ray.get(done)
    ray.get(writing)


def fingerprints(
    commit: dict[str, Any], clips: Clips, decisions: Decisions, recipe: Recipe, known: set[str]
) -> dict[str, str]:
    """What a commit of the subset depends on: the commit it comes from, and what was decided."""
    where = clips.commits[commit["name"]]
    digest = hashlib.sha256(json.dumps([decisions.rules, sorted(known)]).encode())
    for key in recipe.keys:
        digest.update(score_folder(recipe.scorers, key).encode())
    for column in (decisions.rule, decisions.value, decisions.threshold, decisions.failed):
        digest.update(np.ascontiguousarray(column[where]).tobytes())
    if recipe.near_copies.min_distance is not None:
        digest.update(json.dumps(decisions.near_copy_of[where].tolist()).encode())
    source = hashlib.sha256(json.dumps(commit["files"], sort_keys=True).encode())
    return commit["fingerprints"] | {
        "input": source.hexdigest()[:12],
        "decisions": digest.hexdigest()[:12],
    }


# -- the record


def write_run(plan: Plan, clips: Clips, decisions: Decisions, facts: dict[str, Any]) -> None:
    """Write run.json: the recipe as given and as resolved, the funnel, where it came from."""
    assert plan.subset is not None
    recipe, dataset = plan.recipe, plan.dataset
    theirs = json.loads(dataset.read_bytes("run.json")) if dataset.exists("run.json") else {}
    theirs_scorers = theirs.get("scorers") or theirs.get("pipeline", {}).get("scorers") or {}
    ours = {
        name: value
        for name, value in recipe.scorers.model_dump().items()
        if any(name == key or name.startswith(f"{key}_") for key in recipe.keys)
    }
    steps = as_json(decisions.steps)
    record = {
        "pipeline": theirs.get("pipeline"),
        "dataset": dataset.uri,
        "against": [other.uri for other in plan.against],
        "recipe": recipe.model_dump(exclude_none=True),
        "scorers": theirs_scorers | ours,
        "resolved": {s["rule"]: {"min": s["min"], "max": s["max"]} for s in steps},
        "steps": steps,
        "clips": {
            "total": len(clips),
            "kept": int(decisions.kept.sum()),
            "hours": clips.duration_s.sum() / 3600,
            "hours_kept": clips.duration_s[decisions.kept].sum() / 3600,
        },
        "code": code_version(),
        **facts,
    }
    if not plan.index_only:
        earlier = [*(theirs.get("pipeline") or {}).get("rules", {})]
        order = list(dict.fromkeys([*earlier, *decisions.rules]))
        funnel = count(plan.subset.ledgers(FUNNEL_COLUMNS), order)
        if not (funnel.videos.adds_up and funnel.clips.adds_up):
            raise RunError("the ledger does not add up: kept + dropped + failed are not the total")
        record["funnel"] = funnel.as_json()
    plan.subset.write_bytes(json.dumps(record, indent=1, default=str).encode(), "run.json")
