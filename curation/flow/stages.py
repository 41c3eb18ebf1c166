"""What happens to a video between its source and the dataset, wherever it runs.

`tally` is a Tally, or one that an actor holds (ray_stages.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from curation.captions import SOURCE_TEXT
from curation.downloads.objects import copied
from curation.flow.media_processes import (
    Job,
    MediaWorker,
    WorkerDiedError,
    curate_isolated,
    fetch_isolated,
)
from curation.flow.spool import Turns, turn
from curation.flow.visits import Visit
from curation.pipelines import Pipeline
from curation.places import Scratch
from curation.records import Beat, VideoResult, copy_row, failed_row, with_cost
from curation.shards import Dataset, write_commit
from curation.sources import Source

# A task of Ray Data that is lost is started again for ever (max_retries -1 in 2.60, and the
# arguments that bound it go away in 2.64), so the tally counts starts and a video is given up
# after this many.
MAX_STARTS = 4
IDENTIFY_TIMEOUT_S = 600.0  # of one file. Ours: 300 GB at 500 MB/s; else the media stage tries


def max_file_bytes(pipeline: Pipeline) -> int:
    """A media process may write what is downloaded, and a clip as large as it can hold."""
    return max(pipeline.download.max_bytes, int(pipeline.media.memory_gb * 1e9))


def identify(source: Source, pipeline: Pipeline, worker: MediaWorker) -> Source:
    """Give a local file the id of its content, and a URL the one that it names.

    Where captions are the source's own, a local file gets the timed text beside it. What cannot be
    read in time is left for the media stage.
    """
    needs_text = pipeline.captions.model == SOURCE_TEXT
    if source.path is None:
        # Loads yt-dlp, which few processes need.
        from curation.downloads.fetches import id_in

        return replace(source, id=source.id or id_in(source.url))
    if source.id is None or needs_text:
        job = Job("curation.sources.identified:identify", (source, needs_text))
        with contextlib.suppress(WorkerDiedError):
            return worker.run(job, lambda *_: None, IDENTIFY_TIMEOUT_S)
    return source


def curate(
    source: Source, pipeline: Pipeline, worker: MediaWorker, tally: Any, turns: Turns | None
) -> VideoResult | None:
    """The media stage of one video; None where it turned out to be one that was taken down.

    `turns`: those that it waits for before it is decoded; None where none has to wait.
    """
    # The source's own text is read with the media; a model's captions are a stage of their own.
    done = "caption" if pipeline.captions.model == SOURCE_TEXT else "cut"
    if tally.start("media", source.url) > MAX_STARTS:
        message = f"its Ray task was lost {MAX_STARTS} times"
        tally.leave(source.url, None)  # where it was when it was lost
        result = VideoResult([failed_row(source, "lost", message, attempts=MAX_STARTS)])
    else:
        result = curate_one(worker, source, pipeline, tally, turns)
        # Only now is it known which video a URL led to.
        video_id, uploader = result.video["video_id"], result.video["uploader"]
        first_url = tally.claim(video_id, source.url, uploader)
        if first_url is None:  # it was taken down: nothing of it is passed on
            tally.left(source.url, done)
            return None
        if first_url != source.url:
            result = VideoResult([copy_row(source, video_id, first_url)])
    tally.left(source.url, done)
    return result


def curate_one(
    worker: MediaWorker, source: Source, pipeline: Pipeline, tally: Any, turns: Turns | None
) -> VideoResult:
    """One video through the media worker: fetched, and decoded when it is its turn."""

    def beat(stage: str, at_s: float) -> None:
        tally.at(source.url, stage, at_s)

    with arrived(worker, source, pipeline, tally, beat) as (got, spent_s):
        if isinstance(got, VideoResult):
            return got
        beat("decode", 0.0)
        with turn(*turns) if turns else contextlib.nullcontext():
            result = curate_isolated(worker, got, pipeline, beat)
        return with_cost(result, "fetch", spent_s)


@contextlib.contextmanager
def arrived(
    worker: MediaWorker, source: Source, pipeline: Pipeline, tally: Any, beat: Beat
) -> Iterator[tuple[Source | VideoResult, float]]:
    """A source with its file on this machine, until the block ends; or why there is none.

    And the CPU seconds that fetching it took.
    """
    if source.path is not None:
        yield source, 0.0
        return
    visit = Visit(tally, source)
    if refused := visit.enter(pipeline.download.max_wait_s):
        yield VideoResult([failed_row(source, *refused, attempts=0)]), 0.0
        return
    room = Scratch()
    try:
        got, copy_s = copied(source, pipeline, room.folder, beat)
        spent_s = 0.0
        if isinstance(got, Source):
            got, spent_s = fetch_isolated(worker, got, pipeline, room.folder, beat)
        visit.leave(got.video["error_class"] if isinstance(got, VideoResult) else None)
        yield got, copy_s + spent_s
    finally:
        room.remove()


def commit(dataset: Dataset, pipeline: Pipeline, tally: Any, results: Iterable[VideoResult]) -> str:
    """Write finished videos as one commit; returns its name, "" where all were taken down."""
    results = list(results)
    if not results:
        return ""
    clips = [clip.shard_row() for result in results for clip in result.clips]
    ledger = [row for result in results for row in result.ledger]
    own = list(pipeline.scorers.own)
    manifest = write_commit(dataset, clips, ledger, pipeline.fingerprints(), own)
    tally.passed("commit", len(results))
    return manifest["name"]
