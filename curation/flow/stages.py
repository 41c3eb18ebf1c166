"""What happens to videos between sources and dataset: each stage as Ray runs it.

A row is a video: everything light about it pickled, its clips' media beside it.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from curation.captions import SOURCE_TEXT, Blip2, caption_each
from curation.decode.samples import picture_from_jpeg
from curation.flow.actors import ask
from curation.flow.media_processes import MediaWorker, curate_isolated
from curation.pipelines import Captions, Pipeline
from curation.scores.models import Row, of_video
from curation.scores.table import keys_where
from curation.shards import Dataset, write_commit
from curation.videos import VideoResult, failed_row, with_captions, with_late_scores

# Ray Data starts a lost task again for ever (max_retries -1 in 2.60, and the arguments that bound
# it go away in 2.64), so the tally counts starts and a video is given up after this many.
MAX_STARTS = 4
TASK_RETRIES = 3  # of our own Ray tasks
OF_VIDEO = keys_where("of_video")
LOOK_TIMEOUT_S = 300.0  # of a model, for the pictures of a few clips. Ours: a slow look takes 3 s

RESULT_SCHEMA = pa.schema(
    [("record", pa.large_binary()), ("media", pa.large_list(pa.large_binary()))]
)


def to_row(result: VideoResult) -> pa.Table:
    """A video's result as one row: everything light pickled, its media beside it."""
    record = pickle.dumps(replace(result, media=[]))
    return pa.table({"record": [record], "media": [result.media]}, schema=RESULT_SCHEMA)


def from_rows(table: pa.Table) -> Iterator[VideoResult]:
    for row in table.to_pylist():
        yield replace(pickle.loads(row["record"]), media=row["media"])


# One media process per Ray worker process, reused from task to task.
media_worker: MediaWorker | None = None


def curate_batch(batch: pa.Table, pipeline: Pipeline, tally: Any) -> Iterator[pa.Table]:
    """The media stage: every source of a batch through a media worker, a row out per video."""
    global media_worker
    if media_worker is None or media_worker.limits != pipeline.media:
        if media_worker is not None:
            media_worker.stop()
        media_worker = MediaWorker(pipeline.media)
    # The source's own text is read with the media; a model's captions are a stage of their own.
    done = "caption" if pipeline.captions.model == SOURCE_TEXT else "cut"
    for blob in batch["source"].to_pylist():
        source = pickle.loads(blob)
        if ray.get(tally.start.remote("media", source.url)) > MAX_STARTS:
            message = f"its Ray task was lost {MAX_STARTS} times"
            result = VideoResult([failed_row(source, "lost", message, attempts=MAX_STARTS)])
        else:
            beat = partial(tally.at.remote, source.url)
            result = curate_isolated(media_worker, source, pipeline, beat)
        tally.left.remote(source.url, done)
        yield to_row(result)


class Looks:
    """The stage of models that look at clips to be kept: those they reject go no further.

    `actors` are those of each model by scorer key; every instance of the stage takes one of each.
    """

    def __init__(self, actors: dict[str, list[Any]], pipeline: Pipeline, tally: Any) -> None:
        self.name = f"looks: {', '.join(actors)}"
        turn = ray.get(tally.start.remote(self.name, ""))
        self.actors = {key: some[turn % len(some)] for key, some in actors.items()}
        models = pipeline.scorers.models
        later = models[models.index(list(actors)[-1]) + 1 :]
        key_of = pipeline.scorers.key_of
        self.rules = {n: r for n, r in pipeline.rules.items() if key_of(n) not in later}
        self.is_last = not later
        self.tally = tally

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for result in from_rows(batch):
            url = result.ledger[0]["source_url"]
            if ray.get(self.tally.start.remote(self.name, url)) > MAX_STARTS:
                raise RuntimeError(f"scoring {url} ended its process {MAX_STARTS} times")
            found = self.look(result)
            spent = ray.get([actor.spent_s.remote() for actor in self.actors.values()])
            result = with_late_scores(result, found, self.rules)
            stages = dict(result.ledger[0]["stage_s"] or {})
            result.ledger[0]["stage_s"] = stages | {"looks": stages.get("looks", 0.0) + sum(spent)}
            yield to_row(replace(result, overlay_frames={}) if self.is_last else result)

    def look(self, result: VideoResult) -> dict[str, Row]:
        """What every model says of the kept clips, by clip id."""
        frames = result.overlay_frames
        clips = {r["clip_id"]: (frames[r["clip_id"]], r["caption"]) for r in result.clips}
        found: dict[str, Row] = {clip_id: {} for clip_id in clips}
        for key, actor in self.actors.items() if clips else ():
            rows = ask(actor, clips, LOOK_TIMEOUT_S)
            if key in OF_VIDEO:
                rows = of_video(
                    rows, {clip_id: len(jpegs) for clip_id, (jpegs, _) in clips.items()}
                )
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
        first = results[0].ledger[0]["source_url"]
        if ray.get(self.tally.start.remote("caption", first)) > MAX_STARTS:
            raise RuntimeError(
                f"captioning the batch of {first} ended its process {MAX_STARTS} times"
            )
        frames = [item for result in results for item in result.caption_frames.items()]
        pictures = [(clip_id, jpeg) for clip_id, jpegs in frames for jpeg in jpegs]
        texts = caption_each(self.blip2, [picture_from_jpeg(jpeg) for _, jpeg in pictures])
        captions: dict[str, list[str | Exception]] = {}
        for (clip_id, _), text in zip(pictures, texts, strict=True):
            captions.setdefault(clip_id, []).append(text)
        for result in results:
            yield to_row(with_captions(result, captions, self.name))
        self.tally.passed.remote("caption", len(results))


@ray.remote(num_cpus=0, max_retries=TASK_RETRIES)
def commit(dataset: Dataset, pipeline: Pipeline, tally: Any, *tables: pa.Table) -> str:
    """Write finished videos as one commit; returns its name."""
    results = [result for table in tables for result in from_rows(table)]
    clips = []
    for result in results:
        for row, data in zip(result.clips, result.media, strict=True):
            clips.append(row | {"clip": {"bytes": data, "path": f"{row['clip_id']}.mp4"}})
    ledger = [row for result in results for row in result.ledger]
    own = list(pipeline.scorers.own)
    manifest = write_commit(dataset, clips, ledger, pipeline.fingerprints(), own)
    tally.passed.remote("commit", len(results))
    return manifest["name"]
