"""Scores that a recipe needs and a dataset lacks: measured from its stored clips, on Ray.

A row group of a shard is the unit of work and a commit's score file the unit that is written, so a
run that is killed loses the commits it was at and no other. Scores lie beside the dataset, in
scores/<scorer>-<fingerprint>/<commit>.parquet, for every later run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray
from rich.console import Console

from curation.pipelines import Media
from curation.progress import Count
from curation.recipes import Recipe, score_folder
from curation.runs import TASK_RETRIES, RunError
from curation.samples import bgr_from_jpeg
from curation.scorers import ClipScores, Model, Scoring, described, score_clip
from curation.shards import SCORES, Dataset, write_table
from curation.subsets import Clips, score_schema, stored_scores
from curation.workers import MediaWorker, WorkerDiedError, attempt

MAX_COMMITS_IN_FLIGHT = 8
START_TIMEOUT_S = 600.0  # of a model, weights read and all
MAX_RESTARTS = 100  # of a model's actor, by pictures that kill it or hang in it

# What a scorer found of one clip: its columns, and `error` when it could not score it.
Row = dict[str, Any]
Found = dict[str, dict[str, Row]]  # by scorer key, by clip id


class ScorerActor:
    """A model in a process of its own."""

    def __init__(self, make: Callable[[], Model]) -> None:
        self.model = make()

    def ready(self) -> None:
        """Answers once the model is built."""

    def score(self, clips: list[list[bytes]]) -> list[Row]:
        """A row per clip, from its pictures as JPEGs; one bad clip costs no other."""
        return score_each(self.model, [[bgr_from_jpeg(jpeg) for jpeg in clip] for clip in clips])


def score_each(model: Model, clips: Sequence[Sequence[np.ndarray]]) -> list[Row]:
    """The model's scores of every clip; a batch that raises is tried clip by clip."""
    try:
        rows = model(clips)
        if len(rows) != len(clips):
            raise RuntimeError(f"{len(rows)} scores for {len(clips)} clips")
        return rows
    except Exception as error:  # goes to the ledger of the clip that it belongs to
        if len(clips) == 1:
            return [{"error": described(error)}]
    return [score_each(model, [clip])[0] for clip in clips]


# -- one row group

# One media process per Ray worker process, reused from task to task.
media_worker: MediaWorker | None = None


def media_worker_for(limits: Media) -> MediaWorker:
    global media_worker
    if media_worker is None or media_worker.limits != limits:
        if media_worker is not None:
            media_worker.stop()
        media_worker = MediaWorker(limits)
    return media_worker


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
    pictures: dict[str, dict[str, list[bytes]]] = {key: {} for key in actors}
    with dataset.open_shard(name) as shard:
        table = shard.read_row_group(group, columns=["clip_id", "duration_s", "clip"])
    for row in table.to_pylist():
        keys = [key for key, ids in wanted.items() if row["clip_id"] in ids]
        if not keys:
            continue
        scores = score_stored(row, keys, scoring, recipe.media)
        for key, values in scores.scores.items():
            found[key][row["clip_id"]] = values
        for key, error in scores.errors.items():
            found[key][row["clip_id"]] = {"error": error}
        for key, jpegs in scores.pictures.items():
            pictures[key][row["clip_id"]] = jpegs
    for key, of_clips in pictures.items():
        found[key] |= ask(actors[key], of_clips, recipe.models.timeout_s)
    return {key: {c: checked(key, row) for c, row in rows.items()} for key, rows in found.items()}


def score_stored(row: Row, keys: list[str], scoring: Scoring, limits: Media) -> ClipScores:
    """One stored clip through the media worker; if that dies, every scorer of the clip fails."""
    job = partial(score_clip, row["clip"]["bytes"], row["duration_s"], keys, scoring)
    result, _ = attempt(media_worker_for(limits), job, lambda stage, at_s: None)
    if isinstance(result, WorkerDiedError):
        return ClipScores(errors=dict.fromkeys(keys, f"{result.error_class}: {result.message}"))
    if isinstance(result, RuntimeError):
        return ClipScores(errors=dict.fromkeys(keys, str(result)[-500:]))
    return result


def ask(actor: Any, clips: dict[str, list[bytes]], timeout_s: float) -> dict[str, Row]:
    """A model's row for every clip; where it hangs or dies its clips are asked one by one."""
    if not clips:
        return {}
    call = actor.score.remote(list(clips.values()))
    try:
        return dict(zip(clips, ray.get(call, timeout=timeout_s), strict=True))
    except ray.exceptions.GetTimeoutError:
        ray.kill(actor, no_restart=False)  # a hanging call would hold all that wait behind it
        error = f"timeout: no score after {timeout_s:g} s"
    except ray.exceptions.RayActorError as death:
        error = f"crashed: the scorer's process died: {death}"[:500]
    # It starts anew; that is no hang of the clip that is asked about next.
    is_up = actor.ready.options(max_task_retries=MAX_RESTARTS).remote()
    ray.get(is_up, timeout=START_TIMEOUT_S)
    if len(clips) == 1:
        return {clip: {"error": error} for clip in clips}
    alone = [ask(actor, {clip: jpegs}, timeout_s) for clip, jpegs in clips.items()]
    return {clip: row for rows in alone for clip, row in rows.items()}


def checked(key: str, row: Row) -> Row:
    """A row whose scores are numbers or null; a scorer that gives NaN has failed."""
    for name in SCORES:
        value = row.get(name)
        if value is not None and not math.isfinite(value):
            return {"error": f"the scorer gave {value} for {name}"}
    return row


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
    pools = {k: cycle(start_actors(k, make, recipe)) for k, make in scoring.models.items()}
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


def start_actors(key: str, make: Callable[[], Model], recipe: Recipe) -> list[Any]:
    """The actors of one model, built and ready; RunError when it cannot be built.

    The text detector runs on CPUs, a thread each; the aesthetic one on a GPU where there is one.
    """
    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0)) if key == "aesthetic" else 0
    cpus = int(have.get("CPU", 1))
    number = recipe.models.num_workers or gpus or max(1, cpus // 2 if key == "text" else 1)
    # An actor that held CPUs could starve the tasks that feed it on a small machine.
    actor: Any = ray.remote(
        num_cpus=0, num_gpus=1 if gpus else 0, max_restarts=MAX_RESTARTS, max_task_retries=0
    )(ScorerActor)
    actors = [actor.remote(make) for _ in range(number)]
    try:
        ray.get([a.ready.remote() for a in actors], timeout=START_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RunError(f"a scorer did not start: {str(cause).strip().splitlines()[-1]}") from None
    return actors


def sweep(dataset: Dataset) -> None:
    """Delete the half-written score files that a killed run left."""
    selector = pafs.FileSelector(dataset.path("scores"), allow_not_found=True, recursive=True)
    for info in dataset.filesystem.get_file_info(selector):
        if info.base_name.startswith(".tmp-"):
            dataset.filesystem.delete_file(info.path)
