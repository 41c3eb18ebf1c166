"""What happens to videos between sources and dataset: each stage as Ray runs it.

A row is a video: everything light about it pickled, its clips' media beside it.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from curation.captions import SOURCE_TEXT, Blip2, caption_each
from curation.decode.jpegs import picture_from_jpeg
from curation.downloads.objects import copied
from curation.flow.actors import ask
from curation.flow.media_processes import (
    Job,
    MediaWorker,
    WorkerDiedError,
    curate_isolated,
    fetch_isolated,
    media_worker_for,
)
from curation.flow.spool import num_turns, turn
from curation.flow.visits import Visit
from curation.pipelines import Captions, Pipeline
from curation.places import Scratch
from curation.records import (
    Beat,
    VideoResult,
    copy_row,
    failed_row,
    with_captions,
    with_cost,
    with_late_scores,
)
from curation.scores.models import Row, of_video
from curation.scores.table import keys_where
from curation.shards import Dataset, write_commit
from curation.sources import Source

# Ray Data starts a lost task again for ever (max_retries -1 in 2.60, and the arguments that bound
# it go away in 2.64), so the tally counts starts and a video is given up after this many.
MAX_STARTS = 4
TASK_RETRIES = 3  # of our own Ray tasks
OF_VIDEO = keys_where("of_video")
MODEL_TIMEOUT_S = 300.0  # for the frames of a few clips. Ours: a slow model takes 3 s

# What is light of a result pickled; the media of its clips beside it, so that they are copied less.
RESULT_SCHEMA = pa.schema(
    [
        ("record", pa.large_binary()),
        ("media", pa.large_list(pa.struct([("clip_id", pa.string()), ("mp4", pa.large_binary())]))),
    ]
)


def to_row(result: VideoResult) -> pa.Table:
    """A video's result as one row."""
    light = replace(result, clips=[replace(clip, media=b"") for clip in result.clips])
    media = [{"clip_id": clip.clip_id, "mp4": clip.media} for clip in result.clips]
    row = {"record": [pickle.dumps(light)], "media": [media]}
    return pa.table(row, schema=RESULT_SCHEMA)


def from_rows(table: pa.Table) -> Iterator[VideoResult]:
    """The results again; KeyError when the media of a clip are not there."""
    for row in table.to_pylist():
        light = pickle.loads(row["record"])
        media = {each["clip_id"]: each["mp4"] for each in row["media"]}
        clips = [replace(clip, media=media[clip.clip_id]) for clip in light.clips]
        yield replace(light, clips=clips)


IDENTIFY_TIMEOUT_S = 600.0  # of one file. Ours: 300 GB at 500 MB/s; else the media stage tries


@ray.remote(max_retries=TASK_RETRIES)
def identify(sources: list[Source], pipeline: Pipeline) -> list[Source]:
    """Give local files the id of their content and URLs the one that they name.

    Where captions are the source's own, local files get the timed text beside them. What cannot be
    read in time is left for the media stage.
    """
    needs_text = pipeline.captions.model == SOURCE_TEXT
    out = []
    for source in sources:
        if source.path is None:
            # Loads yt-dlp, which few of Ray's processes need.
            from curation.downloads.fetches import id_in

            source = replace(source, id=source.id or id_in(source.url))
        elif source.id is None or needs_text:
            job = Job("curation.sources.identified:identify", (source, needs_text))
            with contextlib.suppress(WorkerDiedError):
                source = worker_of(pipeline).run(job, lambda *_: None, IDENTIFY_TIMEOUT_S)
        out.append(source)
    return out


def worker_of(pipeline: Pipeline) -> MediaWorker:
    """It may write what is downloaded, and a clip as large as it can hold."""
    largest = max(pipeline.download.max_bytes, int(pipeline.media.memory_gb * 1e9))
    return media_worker_for(pipeline.media, largest)


def curate_batch(
    batch: pa.Table, pipeline: Pipeline, tally: Any, spooled: bool
) -> Iterator[pa.Table]:
    """The media stage: every source of a batch through a media worker, a row out per video.

    Where it is `spooled`, more of them run at once than may decode.
    """
    media_worker = worker_of(pipeline)
    # The source's own text is read with the media; a model's captions are a stage of their own.
    done = "caption" if pipeline.captions.model == SOURCE_TEXT else "cut"
    for blob in batch["source"].to_pylist():
        source = pickle.loads(blob)
        if ray.get(tally.start.remote("media", source.url)) > MAX_STARTS:
            message = f"its Ray task was lost {MAX_STARTS} times"
            tally.leave.remote(source.url, None)  # where it was when it was lost
            result = VideoResult([failed_row(source, "lost", message, attempts=MAX_STARTS)])
        else:
            result = curate_one(media_worker, source, pipeline, tally, spooled)
            # Only now is it known which video a URL led to.
            video_id = result.video["video_id"]
            uploader = result.video["uploader"]
            first_url = ray.get(tally.claim.remote(video_id, source.url, uploader))
            if first_url is None:  # it was taken down: nothing of it is passed on
                tally.left.remote(source.url, done)
                yield RESULT_SCHEMA.empty_table()
                continue
            if first_url != source.url:
                result = VideoResult([copy_row(source, video_id, first_url)])
        tally.left.remote(source.url, done)
        yield to_row(result)


def curate_one(
    worker: MediaWorker, source: Source, pipeline: Pipeline, tally: Any, spooled: bool
) -> VideoResult:
    """One video through the media worker: fetched, and decoded when it is its turn."""

    def beat(stage: str, at_s: float) -> None:
        tally.at.remote(source.url, stage, at_s)

    with arrived(worker, source, pipeline, tally, beat) as (got, spent_s):
        if isinstance(got, VideoResult):
            return got
        beat("decode", 0.0)
        with turn(num_turns(pipeline.media.cpus)) if spooled else contextlib.nullcontext():
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


class Models:
    """The stage of models that score clips to be kept: those they reject go no further.

    `actors` are those of each model by scorer key; every instance of the stage takes one of each.
    `later` are the keys of the models that a stage behind this one asks.
    """

    def __init__(
        self, actors: dict[str, list[Any]], later: list[str], pipeline: Pipeline, tally: Any
    ) -> None:
        self.name = f"models: {', '.join(actors)}"
        turn = ray.get(tally.start.remote(self.name, ""))
        self.actors = {key: some[turn % len(some)] for key, some in actors.items()}
        key_of = pipeline.scorers.key_of
        self.rules = {n: r for n, r in pipeline.bounds.items() if key_of(n) not in later}
        self.is_last = not later
        self.tally = tally

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for result in from_rows(batch):
            url = result.video["source_url"]
            if ray.get(self.tally.start.remote(self.name, url)) > MAX_STARTS:
                raise RuntimeError(f"scoring {url} ended its process {MAX_STARTS} times")
            found = self.score(result)
            spent = ray.get([actor.spent_s.remote() for actor in self.actors.values()])
            done = with_cost(with_late_scores(result, found, self.rules), "models", sum(spent))
            if self.is_last:
                done = replace(done, clips=[replace(clip, model_frames=[]) for clip in done.clips])
            yield to_row(done)

    def score(self, result: VideoResult) -> dict[str, Row]:
        """What every model says of the kept clips, by clip id."""
        shown = {clip.clip_id: (clip.model_frames, clip.row["caption"]) for clip in result.clips}
        found: dict[str, Row] = {clip_id: {} for clip_id in shown}
        for key, actor in self.actors.items() if shown else ():
            rows = ask(actor, shown, MODEL_TIMEOUT_S)
            if key in OF_VIDEO:
                rows = of_video(rows, {c: len(jpegs) for c, (jpegs, _) in shown.items()})
            for clip_id, row in rows.items():
                found[clip_id] |= row
        return found


class Captioner:
    """The caption stage: a BLIP-2 per actor, pictures of several videos in one batch."""

    def __init__(self, settings: Captions, tally: Any) -> None:
        self.blip2 = Blip2(settings)
        self.name = f"{settings.model}:{settings.checkpoint}"
        self.tally = tally

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        results = list(from_rows(batch))
        first = results[0].video["source_url"]
        if ray.get(self.tally.start.remote("caption", first)) > MAX_STARTS:
            raise RuntimeError(
                f"captioning the batch of {first} ended its process {MAX_STARTS} times"
            )
        frames = [
            (clip.clip_id, jpeg)
            for result in results
            for clip in result.clips
            for jpeg in clip.caption_frames
        ]
        texts = caption_each(self.blip2, [picture_from_jpeg(jpeg) for _, jpeg in frames])
        captions: dict[str, list[str | Exception]] = {}
        for (clip_id, _), text in zip(frames, texts, strict=True):
            captions.setdefault(clip_id, []).append(text)
        for result in results:
            yield to_row(with_captions(result, captions, self.name))
        self.tally.passed.remote("caption", len(results))


@ray.remote(num_cpus=0, max_retries=TASK_RETRIES)
def commit(dataset: Dataset, pipeline: Pipeline, tally: Any, *tables: pa.Table) -> str:
    """Write finished videos as one commit; returns its name, "" where all were taken down."""
    results = [result for table in tables for result in from_rows(table)]
    if not results:
        return ""
    clips = [clip.shard_row() for result in results for clip in result.clips]
    ledger = [row for result in results for row in result.ledger]
    own = list(pipeline.scorers.own)
    manifest = write_commit(dataset, clips, ledger, pipeline.fingerprints(), own)
    tally.passed.remote("commit", len(results))
    return manifest["name"]
