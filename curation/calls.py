"""Curation from Python: what the commands do, as functions that return and raise."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from curation.configs import default_config
from curation.settings import ConfigError
from curation.shards import LEDGER_SCHEMA, SHARD_SCHEMA, Dataset, conform, with_own

if TYPE_CHECKING:
    from curation.funnels import Funnel

Sources = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Curated:
    """A dataset folder after a run, and the funnel of all that it holds."""

    dataset: Dataset
    funnel: Funnel

    def clips(self, columns: Sequence[str] | None = None) -> pa.Table:
        """A row per kept clip (docs/shards.md), of all columns without the media by default."""
        names = list(columns or [name for name in SHARD_SCHEMA.names if name != "clip"])
        shards = [self.dataset.open_shard(name) for name in self.dataset.shards()]
        fields = [SHARD_SCHEMA.field(name) for name in names if name in SHARD_SCHEMA.names]
        own = [pa.field(name, pa.float64()) for name in names if name not in SHARD_SCHEMA.names]
        schema = pa.schema([*fields, *own])
        there = [[n for n in names if n in shard.schema_arrow.names] for shard in shards]
        tables = [conform(s.read(n), schema) for s, n in zip(shards, there, strict=True)]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def ledger(self, columns: Sequence[str] | None = None) -> pa.Table:
        """A row per video and candidate clip, dropped and failed ones, too (docs/shards.md)."""
        return self.dataset.ledger(list(columns) if columns else None)


@dataclass(frozen=True)
class CuratedVideo:
    """One video: its ledger rows, the first its own, and the kept clips with their mp4."""

    ledger: pa.Table
    clips: pa.Table


def curate(
    sources: Sources = (),
    pipeline: str = "web",
    *,
    output: str | Path | None = None,
    set: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
    limit: int | None = None,
    retry: Sequence[str] = (),
    ray_address: str | None = None,
    console: Console | None = None,
) -> Curated:
    """Curate videos into a dataset folder, as `vf-curate` does; called again it resumes.

    `sources` are files, folders, lists and URLs, none those of the pipeline; `output` is a folder
    or URI, `runs/<pipeline>` by default; `set` holds keys of the pipeline with their values, such
    as {"rules.duration.min": 3}; `config` is a pipelines.yaml, that of the working folder or ours
    by default. What is said on the way goes to `console`; nothing is printed without one. A Ray
    that this process runs is used; one that is started here stays until `ray.shutdown()`.

    Raises ConfigError or DatasetError for what was given wrongly, RunError for a run that cannot
    go on; what is committed by then stays.
    """
    from curation.commands import ray_runs, start_ray
    from curation.flow import plans
    from curation.places import check_reachable

    started, console = time.time(), console or Console(quiet=True)
    plan = plans.make_plan(
        [str(each) for each in in_list(sources)],
        pipeline,
        Path(config) if config else default_config(),
        str(output) if output else None,
        overrides(set or {}),
        limit,
        retry,
    )
    if plans.wants_ray(plan, ray_address):
        if not ray_runs():
            start_ray(ray_address)
        check_reachable(plan.dataset.uri)
    return Curated(plan.dataset, plans.execute(plan, console, started))


def curate_one(
    source: str | Path,
    pipeline: str = "web",
    *,
    set: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
) -> CuratedVideo:
    """Curate one file, URL or object without Ray and without writing anything.

    It runs in a process of its own under the limits of a run (docs/security.md). Raises ConfigError
    for what was given wrongly, and for a pipeline with models (BLIP-2, scorers that see pictures),
    which need `curate`. A video that fails has that in its ledger row.
    """
    from curation.downloads.objects import copied
    from curation.flow.media_processes import MediaWorker, curate_isolated
    from curation.pipelines import load_pipeline
    from curation.places import Scratch
    from curation.records import with_cost
    from curation.sources import Source, read_given

    asked = load_pipeline(
        Path(config) if config else default_config(), pipeline, overrides(set or {})
    )
    if asked.scorers.models or asked.captions.model == "blip2":
        named = [*asked.scorers.models, *(["captions.model"] * (asked.captions.model == "blip2"))]
        raise ConfigError(f"{', '.join(named)} asks a model; use curate(), or set it to none")
    found = read_given([str(source)], Path.cwd()).sources
    if len(found) != 1:
        raise ConfigError(f"{source} holds {len(found)} videos; curate_one() takes one")
    room = Scratch()
    try:
        result, spent_s = copied(found[0], asked, room.folder, unheard)
        if isinstance(result, Source):
            with MediaWorker(asked.media, asked.download.max_bytes) as worker:
                result = curate_isolated(worker, result, asked, unheard)
            result = with_cost(result, "fetch", spent_s)
    finally:
        room.remove()
    own = list(asked.scorers.own)
    return CuratedVideo(
        pa.Table.from_pylist(result.ledger, schema=with_own(LEDGER_SCHEMA, own)),
        pa.Table.from_pylist(
            [clip.shard_row() for clip in result.clips], schema=with_own(SHARD_SCHEMA, own)
        ),
    )


def unheard(stage: str, at_s: float) -> None: ...


def in_list(sources: Sources) -> Sequence[str | Path]:
    return [sources] if isinstance(sources, str | Path) else sources


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Keys and values as --set takes them.

    >>> overrides({"rules.duration.min": 3, "scorers.text": None})
    ['rules.duration.min=3', 'scorers.text=null']
    """
    return [f"{key}={json.dumps(value, default=str)}" for key, value in values.items()]
