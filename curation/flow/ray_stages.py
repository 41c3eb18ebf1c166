"""The stages as Ray runs them.

A row is a video: everything light about it pickled, its clips' media beside it.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from curation.captions import Blip2, caption_each
from curation.decode.jpegs import picture_from_jpeg
from curation.flow import stages
from curation.flow.actors import ask
from curation.flow.media_processes import MediaWorker, media_worker_for
from curation.flow.spool import Turns
from curation.flow.stages import MAX_STARTS
from curation.flow.tally import Tally
from curation.pipelines import Captions, Pipeline
from curation.records import VideoResult, with_captions, with_cost, with_late_scores
from curation.scores.models import Row, of_video
from curation.scores.table import keys_where
from curation.shards import Dataset
from curation.sources import Source
from curation.takedown.tombstones import Tombstones

TASK_RETRIES = 3  # of our own Ray tasks
OF_VIDEO = keys_where("of_video")
MODEL_TIMEOUT_S = 300.0  # for the frames of a few clips. Ours: a slow model takes 3 s


class SharedTally:
    """A Tally in an actor of its own, asked by all processes of a run as if it were here."""

    def __init__(self, held: dict[str, str], max_per_host: int, stones: Tombstones) -> None:
        self.actor: Any = ray.remote(num_cpus=0)(Tally).remote(held, max_per_host, stones)

    def start(self, stage: str, video: str) -> int:
        return ray.get(self.actor.start.remote(stage, video))

    def claim(self, video_id: str, url: str, uploader: str | None = None) -> str | None:
        return ray.get(self.actor.claim.remote(video_id, url, uploader))

    def enter(self, url: str) -> tuple[float, str | None]:
        return ray.get(self.actor.enter.remote(url))

    # Nobody waits for these.

    def leave(self, url: str, error_class: str | None) -> None:
        self.actor.leave.remote(url, error_class)

    def at(self, video: str, stage: str, position_s: float) -> None:
        self.actor.at.remote(video, stage, position_s)

    def left(self, video: str, stage: str) -> None:
        self.actor.left.remote(video, stage)

    def passed(self, stage: str, num_videos: int) -> None:
        self.actor.passed.remote(stage, num_videos)

    # What the driver asks.

    def look(self) -> dict[str, Any] | None:
        """As Tally; None when Ray is going down under us."""
        try:
            return ray.get(self.actor.look.remote(), timeout=5)
        except (ray.exceptions.RayError, RuntimeError):
            return None

    def num_copies(self) -> int:
        return ray.get(self.actor.num_copies.remote())

    def refused_urls(self) -> set[str]:
        return ray.get(self.actor.refused_urls.remote())


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


def worker_of(pipeline: Pipeline) -> MediaWorker:
    """The media process of this Ray process."""
    return media_worker_for(pipeline.media, stages.max_file_bytes(pipeline))


@ray.remote(max_retries=TASK_RETRIES)
def identify(sources: list[Source], pipeline: Pipeline) -> list[Source]:
    return [stages.identify(source, pipeline, worker_of(pipeline)) for source in sources]


def num_turns(cpus_per_video: float) -> int:
    """How many videos this Ray node decodes at once."""
    here = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == here)
    return max(1, int(cpus / cpus_per_video))


def curate_batch(
    batch: pa.Table, pipeline: Pipeline, tally: Any, spooled: bool
) -> Iterator[pa.Table]:
    """The media stage: every source of a batch through a media worker, a row out per video.

    Where it is `spooled`, more of them run at once than may decode.
    """
    worker = worker_of(pipeline)
    turns = None
    if spooled:
        turns = Turns(num_turns(pipeline.media.cpus), ray.get_runtime_context().get_node_id())
    for blob in batch["source"].to_pylist():
        result = stages.curate(pickle.loads(blob), pipeline, worker, tally, turns)
        yield to_row(result) if result else RESULT_SCHEMA.empty_table()


class Models:
    """The stage of models that score clips to be kept: those they reject go no further.

    `actors` are those of each model by scorer key; every instance of the stage takes one of each.
    `later` are the keys of the models that a stage behind this one asks.
    """

    def __init__(
        self, actors: dict[str, list[Any]], later: list[str], pipeline: Pipeline, tally: Any
    ) -> None:
        self.name = f"models: {', '.join(actors)}"
        turn = tally.start(self.name, "")
        self.actors = {key: some[turn % len(some)] for key, some in actors.items()}
        key_of = pipeline.scorers.key_of
        self.rules = {n: r for n, r in pipeline.bounds.items() if key_of(n) not in later}
        self.is_last = not later
        self.tally = tally

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for result in from_rows(batch):
            url = result.video["source_url"]
            if self.tally.start(self.name, url) > MAX_STARTS:
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
        if self.tally.start("caption", first) > MAX_STARTS:
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
        self.tally.passed("caption", len(results))


@ray.remote(num_cpus=0, max_retries=TASK_RETRIES)
def commit(dataset: Dataset, pipeline: Pipeline, tally: Any, *tables: pa.Table) -> str:
    results = (result for table in tables for result in from_rows(table))
    return stages.commit(dataset, pipeline, tally, results)
