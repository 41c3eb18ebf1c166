"""The flow on Ray.

Ray Data moves videos from stage to stage; what a stage passes on is encoded clips and caption
frames, never raw ones. The driver handles references only, and groups finished videos into
commits by count, bytes and age.
"""

from __future__ import annotations

import logging
import pickle
import threading
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext

from curation.captions import SOURCE_TEXT
from curation.flow.actors import start_models
from curation.flow.driver import Budget, Pending
from curation.flow.ray_stages import (
    Captioner,
    Models,
    SharedTally,
    commit,
    curate_batch,
    identify,
)
from curation.flow.spool import cpus_per_task, is_spooled
from curation.pipelines import Captions, Pipeline
from curation.scores.chosen import build_models
from curation.scores.table import keys_where
from curation.shards import Dataset
from curation.sources import Source
from curation.takedown.tombstones import Tombstones

MAX_COMMITS_IN_FLIGHT = 4
MAX_TASKS = 10_000  # videos beyond this many share tasks


class RayFlow:
    """The Ray that this process runs."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def __enter__(self) -> RayFlow:
        return self

    def __exit__(self, *_: object) -> None:
        pass  # who started Ray ends it

    def identify(self, sources: list[Source]) -> list[Source]:
        """The sources with ids where content or URL give one, and with the text beside them."""
        size = max(1, min(64, len(sources) // 16))
        chunks = [sources[i : i + size] for i in range(0, len(sources), size)]
        found = ray.get([identify.remote(chunk, self.pipeline) for chunk in chunks])
        return [source for chunk in found for source in chunk]

    def tally(self, held: dict[str, str], stones: Tombstones) -> SharedTally:
        return SharedTally(held, self.pipeline.download.max_per_host, stones)

    def curate(
        self, sources: list[Source], dataset: Dataset, tally: SharedTally, stop: threading.Event
    ) -> None:
        """Run the flow over sources and commit what comes out as it comes, until `stop` is set.

        Raises RunError when the dataset has as many bytes as the pipeline allows.
        """
        pipeline, pending, writing = self.pipeline, Pending(), []
        budget = Budget(dataset, pipeline)
        budget.check()
        results = flow(sources, pipeline, tally)  # holds the actors of models while it is read
        for bundle in results.iter_internal_ref_bundles():
            if stop.is_set():
                raise KeyboardInterrupt
            for block in bundle.blocks:
                num_bytes = block.metadata.size_bytes or 0
                pending.add(block.ref, block.metadata.num_rows or 0, num_bytes)
                budget.num_bytes += num_bytes
            if budget.is_spent:
                break
            if pending.is_due(pipeline):
                writing.append(commit.remote(dataset, pipeline, tally, *pending.videos))
                pending = Pending()
            while len(writing) >= MAX_COMMITS_IN_FLIGHT:
                done, writing = ray.wait(writing)
                ray.get(done)
        if pending.videos:
            writing.append(commit.remote(dataset, pipeline, tally, *pending.videos))
        ray.get(writing)
        budget.check()


def quiet_ray_data() -> None:
    """Keep Ray Data's own words and bars from the terminal: it has ours."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def flow(sources: list[Source], pipeline: Pipeline, tally: SharedTally) -> ray.data.Dataset:
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
    tally: SharedTally,
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


def captioned(
    results: ray.data.Dataset, settings: Captions, tally: SharedTally
) -> ray.data.Dataset:
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
