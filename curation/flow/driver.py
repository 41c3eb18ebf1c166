"""Sources -> a dataset folder: the whole flow on Ray.

    sources -> [identify] -> media -> (models) -> (captions) -> (models) -> commits

Ray Data moves videos from stage to stage; what a stage passes on is encoded clips and caption
frames, never raw ones. This driver handles references only, and groups finished videos into
commits by count, bytes and age. Progress lives in the dataset folder: a run that is killed is
continued by the same command.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext

from curation.captions import SOURCE_TEXT
from curation.commands import code_version
from curation.flow.actors import start_models
from curation.flow.holdings import Holdings
from curation.flow.spool import cpus_per_task, is_spooled
from curation.flow.stages import Captioner, Models, commit, curate_batch, identify
from curation.funnels import FUNNEL_COLUMNS, Funnel, count
from curation.pipelines import Captions, Pipeline
from curation.scores.chosen import build_models
from curation.scores.table import keys_where
from curation.settings import RunError
from curation.shards import Dataset
from curation.sources import Source
from curation.sources.source import fingerprinted, join, shown

MAX_COMMITS_IN_FLIGHT = 4
MAX_TASKS = 10_000  # videos beyond this many share tasks


# -- sources


def identify_all(sources: list[Source], pipeline: Pipeline) -> list[Source]:
    """The sources with ids where content or URL give one, and with the text beside them."""
    size = max(1, min(64, len(sources) // 16))
    chunks = [sources[i : i + size] for i in range(0, len(sources), size)]
    found = ray.get([identify.remote(chunk, pipeline) for chunk in chunks])
    return [source for chunk in found for source in chunk]


def joined(sources: list[Source], holdings: Holdings) -> tuple[list[Source], int]:
    """The distinct videos of identified sources; and how many sources were copies of others.

    Copies become one source, with the cuts and captions of all: the first one, or of URLs that one
    from which the video was curated before.
    """
    distinct: dict[str, Source] = {}
    recorded = holdings.recorded()
    for source in sources:
        key = source.id or (holdings.urls.get(source.url) if source.path is None else None)
        key = key or source.url
        known = distinct.get(key)
        if known is None:
            distinct[key] = source
            continue
        both = join(known, source)
        if known.path is None and source.path is None and source.url == recorded.get(key):
            both = replace(both, url=source.url, signed_url=source.signed_url)
        distinct[key] = both
    return list(fingerprinted(distinct.values())), len(sources) - len(distinct)


def todo(sources: list[Source], holdings: Holdings) -> list[Source]:
    """The sources that are not decided yet, or were when lists said other things of them."""
    return [source for source in sources if not holdings.holds(source)]


# -- the flow


def quiet_ray_data() -> None:
    """Keep Ray Data's own words and bars from the terminal: it has ours."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def flow(sources: list[Source], pipeline: Pipeline, tally: Any) -> ray.data.Dataset:
    """The stages as a Ray Data pipeline: a row per video in, a row per decided video out."""
    quiet_ray_data()
    spooled = is_spooled(sources, pipeline)
    size = -(-len(sources) // MAX_TASKS)  # one video a task, unless there are very many
    blobs = [pickle.dumps(source) for source in sources]
    blocks = [pa.table({"source": blobs[i : i + size]}) for i in range(0, len(blobs), size)]
    # Not from_arrow: that asks a Ray task for each block how many rows it has.
    results = ray.data.from_blocks(blocks).map_batches(
        curate_batch,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"pipeline": pipeline, "tally": tally, "spooled": spooled},
        num_cpus=cpus_per_task(pipeline, spooled),
    )
    models = build_models(pipeline.scorers, pipeline.scorers.models)
    actors = start_models(models, pipeline.scorers.num_workers, free_gpus(pipeline.captions))
    # What judges captions waits until they are there.
    later = {key: actors.pop(key) for key in keys_where("needs_caption") & actors.keys()}
    results = scored_late(results, actors, list(later), pipeline, tally)
    if pipeline.captions.model != SOURCE_TEXT:
        results = captioned(results, pipeline.captions, tally)
    return scored_late(results, later, [], pipeline, tally)


def scored_late(
    results: ray.data.Dataset,
    actors: dict[str, list[Any]],
    later: list[str],
    pipeline: Pipeline,
    tally: Any,
) -> ray.data.Dataset:
    """The results with what models say, and without what they reject; `later` are asked behind."""
    if not actors:
        return results
    return results.map_batches(
        Models,
        batch_size=1,  # a video's clips are decided together
        batch_format="pyarrow",
        fn_constructor_args=(actors, later, pipeline, tally),
        concurrency=pipeline.scorers.num_workers,
        num_cpus=0,  # for the captioner's reason, below
    )


def captioned(results: ray.data.Dataset, settings: Captions, tally: Any) -> ray.data.Dataset:
    return results.map_batches(
        Captioner,
        batch_size=8,  # videos; pictures are batched inside
        batch_format="pyarrow",
        fn_constructor_kwargs={"settings": settings, "tally": tally},
        concurrency=settings.num_workers,
        # A captioner that held CPUs could starve the stage that feeds it on a small machine.
        num_cpus=0,
        num_gpus=gpus_each(settings),
    )


def gpus_each(settings: Captions) -> float:
    """GPUs of a captioner."""
    if settings.num_gpus is not None:
        return settings.num_gpus
    return 1 if ray.cluster_resources().get("GPU") else 0


def free_gpus(settings: Captions) -> int:
    """Whole GPUs that no captioner takes."""
    taken = 0 if settings.model == SOURCE_TEXT else settings.num_workers * gpus_each(settings)
    return max(0, int(ray.cluster_resources().get("GPU", 0) - taken))


@dataclass
class Pending:
    """Finished videos that wait for their commit, by reference."""

    refs: list[Any] = field(default_factory=list)
    num_videos: int = 0
    num_bytes: int = 0
    since: float = field(default_factory=time.monotonic)

    def is_due(self, pipeline: Pipeline) -> bool:
        limits = pipeline.shards
        return bool(self.refs) and (
            self.num_videos >= limits.max_videos
            or self.num_bytes >= limits.max_bytes
            or time.monotonic() - self.since >= limits.max_age_s
        )


def curate(
    sources: list[Source], pipeline: Pipeline, dataset: Dataset, tally: Any, stop: threading.Event
) -> None:
    """Run the flow over sources and commit what comes out as it comes, until `stop` is set.

    Raises RunError when the dataset has as many bytes as the pipeline allows.
    """
    pending = Pending()
    writing: list[Any] = []
    most, num_bytes = pipeline.shards.max_total_bytes or math.inf, bytes_of(dataset)
    check_budget(dataset, num_bytes, most)
    results = flow(sources, pipeline, tally)  # holds the actors of models while it is read
    for bundle in results.iter_internal_ref_bundles():
        if stop.is_set():
            raise KeyboardInterrupt
        for block in bundle.blocks:
            if not pending.refs:
                pending.since = time.monotonic()
            pending.refs.append(block.ref)
            pending.num_videos += block.metadata.num_rows or 0
            pending.num_bytes += block.metadata.size_bytes or 0
            num_bytes += block.metadata.size_bytes or 0
        if num_bytes >= most:
            break
        if pending.is_due(pipeline):
            writing.append(commit.remote(dataset, pipeline, tally, *pending.refs))
            pending = Pending()
        while len(writing) >= MAX_COMMITS_IN_FLIGHT:
            done, writing = ray.wait(writing)
            ray.get(done)
    if pending.refs:
        writing.append(commit.remote(dataset, pipeline, tally, *pending.refs))
    ray.get(writing)
    check_budget(dataset, num_bytes, most)


def check_budget(dataset: Dataset, num_bytes: int, most: float) -> None:
    """Raise RunError where a dataset has as many bytes as it may have."""
    if num_bytes >= most:
        raise RunError(
            f"{dataset.uri} has the {most:,} bytes that shards.max_total_bytes allows; what is "
            "committed stays, and with a larger number the same command goes on"
        )


def bytes_of(dataset: Dataset) -> int:
    """Of all committed files."""
    return sum(file["bytes"] for commit in dataset.commits() for file in commit["files"].values())


# -- the record of a run


def write_run(dataset: Dataset, pipeline: Pipeline, facts: dict[str, Any]) -> Funnel:
    """Write run.json from the config and the whole ledger; returns the funnel."""
    funnel = count(dataset.ledgers(FUNNEL_COLUMNS), list(pipeline.rules))
    sources = [shown(each) for each in pipeline.sources]
    record = {
        "pipeline": pipeline.model_dump() | {"sources": sources},
        "fingerprints": pipeline.fingerprints(),
        "code": code_version(),
        "funnel": funnel.as_json(),
        **facts,
    }
    dataset.write_bytes(json.dumps(record, indent=1).encode(), "run.json")
    return funnel


def check_all_decided(dataset: Dataset, sources: list[Source], funnel: Funnel) -> None:
    """Raise RunError unless every source is decided and the funnel adds up."""
    known = {name for pair in dataset.decided() for name in pair}
    missing = [s.url for s in sources if s.id not in known and s.url not in known]
    if missing:
        raise RunError(f"{len(missing)} sources have no outcome, such as {missing[0]}; run again")
    if not (funnel.videos.adds_up and funnel.clips.adds_up):
        raise RunError("the ledger does not add up: kept + dropped + failed differ from the total")
