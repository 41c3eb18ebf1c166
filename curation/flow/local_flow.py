"""The flow on this machine alone, without Ray: what a few videos that no model looks at need.

Ray takes 5 s to start and 1.8 GB beside the work (docs/decisions.md, 2026-11-27). Here videos run
in threads, each with a media process of its own; stages, tally, commits and ledger are the same.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from curation.captions import SOURCE_TEXT
from curation.flow import stages
from curation.flow.confinement import machine_cpus
from curation.flow.driver import Budget, Pending
from curation.flow.media_processes import MediaWorker
from curation.flow.spool import Turns, is_spooled
from curation.flow.tally import Tally
from curation.pipelines import Pipeline
from curation.records import VideoResult
from curation.shards import Dataset
from curation.sources import Source
from curation.takedown.tombstones import Tombstones

# Sources. Ours: of as many, Ray's start is a hundredth of the time that they take.
MOST = 100
POLL_S = 0.2  # between looks at whether to stop
END_S = 5.0  # for threads whose media process was killed

T = TypeVar("T")
Made = TypeVar("Made")


def is_enough(sources: list[Source], pipeline: Pipeline) -> bool:
    """Whether a run needs no Ray: few sources, and nothing that asks a model."""
    no_model = not pipeline.scorers.models and pipeline.captions.model == SOURCE_TEXT
    return no_model and len(sources) <= MOST


class LocalFlow:
    """Threads of this process with a media process each, from `with` to its end."""

    def __init__(self, pipeline: Pipeline, sources: Sequence[Source]) -> None:
        self.pipeline = pipeline
        self.num_decoders = num_threads = max(1, int(machine_cpus() / pipeline.media.cpus))
        self.turns = None
        if is_spooled(sources, pipeline):
            num_threads *= 1 + pipeline.download.ahead
            self.turns = Turns(self.num_decoders, f"run-{os.getpid()}")
        largest = stages.max_file_bytes(pipeline)
        self.workers = [
            MediaWorker(pipeline.media, largest) for _ in range(min(num_threads, len(sources)))
        ]

    def __enter__(self) -> LocalFlow:
        # They load their libraries while this process goes on; others start when there is work.
        for worker in self.workers[: self.num_decoders]:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()

    def identify(self, sources: list[Source]) -> list[Source]:
        """The sources with ids where content or URL give one, and with the text beside them."""

        def work(n: int, worker: MediaWorker) -> tuple[int, Source]:
            return n, stages.identify(sources[n], self.pipeline, worker)

        found = dict(self.each(range(len(sources)), work))
        return [found[n] for n in range(len(sources))]

    def tally(self, held: dict[str, str], stones: Tombstones) -> Tally:
        return Tally(held, self.pipeline.download.max_per_host, stones)

    def curate(
        self, sources: list[Source], dataset: Dataset, tally: Tally, stop: threading.Event
    ) -> None:
        """As RayFlow.curate."""
        pipeline, pending, budget = self.pipeline, Pending(), Budget(dataset, self.pipeline)
        budget.check()

        def work(source: Source, worker: MediaWorker) -> VideoResult | None:
            return stages.curate(source, pipeline, worker, tally, self.turns)

        with contextlib.closing(self.each(sources, work, stop)) as results:
            for result in results:
                if result is not None:
                    num_bytes = sum(len(clip.media) for clip in result.clips)
                    pending.add(result, 1, num_bytes)
                    budget.num_bytes += num_bytes
                if budget.is_spent:
                    break
                if pending.is_due(pipeline):
                    stages.commit(dataset, pipeline, tally, pending.videos)
                    pending = Pending()
        stages.commit(dataset, pipeline, tally, pending.videos)
        budget.check()

    def each(
        self,
        items: Sequence[T],
        work: Callable[[T, MediaWorker], Made],
        stop: threading.Event | None = None,
    ) -> Generator[Made, None, None]:
        """What `work` makes of each, as it is done; an error in it is raised here.

        Where it ends before, by `stop` or by who reads, media processes are killed.
        """
        left: queue.SimpleQueue[T] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        over = threading.Event()

        def serve(worker: MediaWorker) -> None:
            while not over.is_set():
                try:
                    item = left.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((work(item, worker), None))
                except BaseException as error:
                    done.put((None, error))

        for item in items:
            left.put(item)
        threads = [
            threading.Thread(target=serve, args=(worker,), daemon=True)
            for worker in self.workers[: len(items)]
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in items:
                yield next_of(done, stop)
        except BaseException:
            over.set()
            for worker in self.workers:
                worker.end()
            raise
        finally:
            for thread in threads:
                thread.join(END_S)


def next_of(
    done: queue.SimpleQueue[tuple[Any, BaseException | None]], stop: threading.Event | None
) -> Any:
    """What is done next; KeyboardInterrupt as soon as `stop` is set."""
    while not (stop and stop.is_set()):
        with contextlib.suppress(queue.Empty):
            made, error = done.get(timeout=POLL_S)
            if error is not None:
                raise error
            return made
    raise KeyboardInterrupt
