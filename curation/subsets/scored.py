"""Scores that a recipe needs and a dataset lacks: measured from its stored clips, on Ray.

A row group of a shard is the unit of work and a commit's score file the unit that is written, so a
run that is killed loses the commits it was at and no other. Scores lie beside the dataset, in
scores/<scorer>-<fingerprint>/<commit>.parquet, for every later run.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray
from rich.console import Console

from curation.decode.tracks import ClipScores, MakeTrack, Scoring
from curation.flow.actors import Shown, ask, start_models
from curation.flow.media_processes import Job, WorkerDiedError, attempt, media_worker_for
from curation.flow.progress import Count
from curation.flow.ray_stages import TASK_RETRIES
from curation.pipelines import Media
from curation.scores.models import Row
from curation.shards import Dataset, write_table
from curation.subsets.gathered import Clips, score_schema, stored_scores
from curation.subsets.recipes import Recipe, score_folder

MAX_COMMITS_IN_FLIGHT = 8

Found = dict[str, dict[str, Row]]  # by scorer key, by clip id


# -- one row group


def score_group(
    dataset: Dataset,
    name: str,
    group: int,
    wanted: dict[str, set[str]],
    scoring: Scoring,
    actors: dict[str, Any],
    recipe: Recipe,
) -> Found:
    """Every score that is wanted of the clips of one row group; `wanted` are clip ids by key."""
    found: Found = {key: {} for key in wanted}
    shown: dict[str, dict[str, Shown]] = {key: {} for key in actors}
    with dataset.open_shard(name) as shard:
        table = shard.read_row_group(group, columns=["clip_id", "duration_s", "caption", "clip"])
    for row in table.to_pylist():
        keys = [key for key, ids in wanted.items() if row["clip_id"] in ids]
        if not keys:
            continue
        tracks = {key: make for key, make in scoring.tracks.items() if key in keys}
        scores = score_stored(row, tracks, len(tracks) < len(keys), recipe.media)
        for key in keys:
            if scores.error is not None:
                found[key][row["clip_id"]] = {"error": scores.error}
            elif key in tracks:
                found[key][row["clip_id"]] = scores.rows[key]
            else:
                shown[key][row["clip_id"]] = (scores.pictures, row["caption"])
    for key, clips in shown.items():
        found[key] |= ask(actors[key], clips, recipe.models.timeout_s)
    return found


def score_stored(
    row: Row, tracks: dict[str, MakeTrack], wants_pictures: bool, limits: Media
) -> ClipScores:
    """One stored clip through the media worker; if that dies, every scorer of the clip fails."""
    arguments = (row["clip"]["bytes"], row["duration_s"], tracks, wants_pictures)
    job = Job("curation.decode.analyses:score_clip", arguments)
    result, _ = attempt(media_worker_for(limits), job, lambda stage, at_s: None)
    if isinstance(result, WorkerDiedError):
        return ClipScores(error=f"{result.error_class}: {result.message}")
    if isinstance(result, RuntimeError):
        return ClipScores(error=str(result)[-500:])
    return result


# -- one commit


def write_scores(
    dataset: Dataset, name: str, recipe: Recipe, keys: list[str], *parts: Found
) -> None:
    """Write what was found of a commit's clips over what was known of them, a file per scorer."""
    with dataset.open_shard(name) as shard:
        clip_ids = shard.read(columns=["clip_id"])["clip_id"].to_pylist()
    for key in keys:
        schema = score_schema(key)
        known = stored_scores(dataset, recipe, key, name)
        rows = {row["clip_id"]: row for row in (known.to_pylist() if known is not None else [])}
        for part in parts:
            rows |= {c: row | {"clip_id": c, "scored": True} for c, row in part[key].items()}
        table = pa.Table.from_pylist(
            [rows.get(c, {"clip_id": c, "scored": False}) for c in clip_ids], schema=schema
        )
        folder = score_folder(recipe.scorers, key)
        write_table(dataset, f"scores/{folder}", name, [table], schema)


# -- all of them


def score_missing(
    dataset: Dataset,
    clips: Clips,
    missing: dict[str, np.ndarray],
    scoring: Scoring,
    recipe: Recipe,
    console: Console,
) -> None:
    """Score what is missing, commit by commit; RunError when a model does not start."""
    sweep(dataset)
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    actors = start_models(scoring.models, recipe.models.num_workers, num_gpus)
    pools = {key: cycle(some) for key, some in actors.items()}
    one_group = ray.remote(num_cpus=recipe.media.cpus, max_retries=TASK_RETRIES)(score_group)
    one_commit = ray.remote(num_cpus=0, max_retries=TASK_RETRIES)(write_scores)
    todo = {name: wanted_of(clips, missing, name) for name in clips.commits}
    todo = {name: wanted for name, wanted in todo.items() if wanted}
    writing: dict[Any, int] = {}
    with Count("scoring", sum(map(num_clips, todo.values())), console) as count:
        for name, wanted in todo.items():
            with dataset.open_shard(name) as shard:
                num_groups = shard.num_row_groups
            parts = [
                one_group.remote(
                    dataset,
                    name,
                    group,
                    wanted,
                    scoring,
                    {key: next(pool) for key, pool in pools.items() if key in wanted},
                    recipe,
                )
                for group in range(num_groups)
            ]
            ref = one_commit.remote(dataset, name, recipe, list(wanted), *parts)
            writing[ref] = num_clips(wanted)
            while len(writing) >= MAX_COMMITS_IN_FLIGHT:
                wait_for_one(writing, count)
        while writing:
            wait_for_one(writing, count)


def wait_for_one(writing: dict[Any, int], count: Count) -> None:
    done, _ = ray.wait(list(writing), timeout=1.0)
    for ref in done:
        ray.get(ref)
        count.add(writing.pop(ref))


def wanted_of(clips: Clips, missing: dict[str, np.ndarray], name: str) -> dict[str, set[str]]:
    """By scorer key, the ids of a commit's clips that it has to score; {} for none."""
    where = clips.commits[name]
    found = {
        key: set(clips.ids[where].filter(pa.array(mask[where])).to_pylist())
        for key, mask in missing.items()
        if mask[where].any()
    }
    return found


def num_clips(wanted: dict[str, set[str]]) -> int:
    return len(set().union(*wanted.values()))


def sweep(dataset: Dataset) -> None:
    """Delete the half-written score files that a killed run left."""
    selector = pafs.FileSelector(dataset.path("scores"), allow_not_found=True, recursive=True)
    for info in dataset.filesystem.get_file_info(selector):
        if info.base_name.startswith(".tmp-"):
            dataset.filesystem.delete_file(info.path)
