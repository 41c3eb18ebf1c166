"""Clips -> stored latents and text states, on Ray: an encoder per worker, a shard at a time.

Progress lives in the files: one that is there is whole, and a run that was killed is continued by
the same command.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from curation.settings import ConfigError
from curation.shards import Dataset
from model.latents import to_pixels
from model.texts import CONTEXT
from training.config import Config
from training.data.indexes import FACTS, open_shard
from training.data.reads import retried
from training.data.shapes import best_fit, shapes_of, transform_of
from training.data.videos import BadVideoError, SampleShape, read_frames
from training.latents.files import (
    EMPTY,
    Encoded,
    Stored,
    write_file,
)
from training.latents.fingerprints import facts_of
from training.learning.starts import device_of, make_codec, make_text

COLUMNS = ["clip_id", "caption", *FACTS, "clip"]
TEXTS = 16  # captions encoded at once: their states are 5 MB in fp32
TASK_RETRIES = 2  # of a shard whose process was lost; one that kills thrice is at fault itself
TOO_SHORT = "too short"


# -- one clip


def frames_of(row: dict[str, Any], shapes: Sequence[SampleShape]) -> torch.Tensor | str:
    """The frames of every window of a clip, uint8 [K, T, H, W, 3], or why there are none."""
    fit = best_fit(shapes, *(row[name] for name in FACTS))
    if fit is None:
        return TOO_SHORT
    if row["media"] is None:
        return "a row without media"
    shape = shapes[fit]
    # An image looks the same wherever it begins.
    windows = 1 if row["num_frames"] == 1 else shape.windows or 1
    try:
        frames = [read_frames(row["media"], shape, (n + 0.5) / windows) for n in range(windows)]
    except (BadVideoError, ValueError) as error:
        return str(error)
    return torch.from_numpy(np.stack(frames))


# -- one shard


@dataclass
class ShardOutcome:
    """What came of one shard."""

    name: str
    num_clips: int = 0
    num_bytes: int = 0
    num_too_short: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)  # clip id, reason


class Encoder:
    """A codec and a text encoder on the device of their process; one for each worker."""

    def __init__(self, config: Config) -> None:
        self.config, self.shapes = config, shapes_of(config)
        self.codec: Any = None
        self.text: Any = None

    def load(self) -> dict[str, Any]:
        """Read the weights; returns the facts that everything stored here depends on.

        Raises ConfigError without weights.
        """
        device = device_of(self.config)
        self.codec, self.text = make_codec(self.config, device), make_text(self.config, device)
        return facts_of(transform_of(self.config), self.config, self.codec, self.text)

    def encode_empty(self, folder: Dataset) -> None:
        """Write the text states of the empty prompt, which training drops captions for."""
        empty = Encoded(EMPTY, "", None, torch.zeros(()), self.text.encode([""])[0])
        write_file(folder, EMPTY, [empty], [Stored((), "float32")], self.states, "")

    def encode_shard(
        self, dataset: Dataset, commit: dict[str, Any], folder: Dataset
    ) -> ShardOutcome:
        """Encode every clip of a shard and write its file."""
        if self.codec is None:
            self.load()  # in the process that took over from one that was lost
        report = ShardOutcome(commit["name"], commit["num_clips"])
        rows = self.noted(self.encode(shard_rows(dataset, commit["name"])), report)
        sha256 = commit["files"]["shards"]["sha256"]
        latents = latents_of(self.shapes, self.codec, self.config.stored_dtype)
        report.num_bytes = write_file(folder, report.name, rows, latents, self.states, sha256)
        return report

    @property
    def states(self) -> Stored:
        return Stored((CONTEXT, self.text.width), self.config.stored_dtype)

    def encode(self, rows: Iterator[dict[str, Any]]) -> Iterator[Encoded]:
        """Rows of a shard to rows of its file, in order; clips are decoded ahead by threads."""
        with ThreadPoolExecutor(self.config.loader_threads) as pool:
            read = partial(frames_of, shapes=self.shapes)
            decoded = ahead(pool, read, rows, 2 * self.config.loader_threads)
            while part := list(islice(decoded, TEXTS)):
                captions = [row["caption"] or "" for row, _ in part]
                for (row, raw), states in zip(part, self.text.encode(captions), strict=True):
                    if isinstance(raw, str):
                        yield Encoded(row["clip_id"], row["caption"], raw)
                        continue
                    latents = self.codec.encode(to_pixels(raw))
                    yield Encoded(row["clip_id"], row["caption"], None, latents, states)

    def noted(self, rows: Iterator[Encoded], report: ShardOutcome) -> Iterator[Encoded]:
        for row in rows:
            if row.reason == TOO_SHORT:
                report.num_too_short += 1
            elif row.reason:
                report.bad.append((row.clip_id, row.reason))
            yield row


def latents_of(shapes: Sequence[SampleShape], codec: Any, dtype: str) -> list[Stored]:
    """How latents are stored: every window of a video's, and the one of an image's."""
    stored: list[tuple[int, ...]] = []
    for shape in shapes:
        size = shape.height // codec.factor, shape.width // codec.factor
        windows = [shape.windows or 1] + [1] * (shape.num_frames == 1)
        stored += [(K, codec.channels, shape.num_frames, *size) for K in windows]
    return [Stored(each, dtype) for each in dict.fromkeys(stored)]


def shard_rows(dataset: Dataset, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a shard, their media as buffers; a row group in memory at a time."""
    with open_shard(dataset, name) as file:
        for group in range(file.num_row_groups):
            table = retried(partial(file.read_row_group, group, COLUMNS)).combine_chunks()
            media = table["clip"].chunk(0).field("bytes")
            for n, row in enumerate(table.drop_columns("clip").to_pylist()):
                yield row | {"media": media[n].as_buffer()}


def ahead(
    pool: ThreadPoolExecutor, do: Callable[[Any], Any], items: Iterator[Any], depth: int
) -> Iterator[tuple[Any, Any]]:
    """Each item with what `do` gives for it, in order, up to `depth` of them worked on ahead."""
    coming: deque[tuple[Any, Future[Any]]] = deque()
    for item in items:
        coming.append((item, pool.submit(do, item)))
        if len(coming) > depth:
            item, future = coming.popleft()
            yield item, future.result()
    for item, future in coming:
        yield item, future.result()


# -- every shard, on Ray


def start_encoders(config: Config, workers: int | None, num_shards: int) -> list[Any]:
    """Encoder actors, each with a GPU where Ray has any; ConfigError for more than Ray has."""
    resources = ray.cluster_resources()
    kind = "GPU" if resources.get("GPU") else "CPU"
    there = int(resources[kind])
    if workers and workers > there:
        raise ConfigError(f"--workers {workers}: Ray has {there} {kind}s; give at most {there}")
    options = {
        "num_cpus": 1,
        "num_gpus": int(kind == "GPU"),
        "max_restarts": -1,  # bounded by the retries of each shard
        "max_task_retries": TASK_RETRIES,
    }
    actor = ray.remote(Encoder).options(**options)
    return [actor.remote(config) for _ in range(min(workers or there, num_shards))]


def load_all(encoders: list[Any]) -> dict[str, Any]:
    """The facts of the encoders; ConfigError where they have no weights, or not the same."""
    try:
        facts = ray.get([encoder.load.remote() for encoder in encoders])
    except RayTaskError as error:
        if isinstance(error.cause, ConfigError):
            raise ConfigError(str(error.cause)) from None
        raise
    except RayError as error:
        raise ConfigError(f"no encoder could be started: {one_line(error)}") from None
    if any(each != facts[0] for each in facts):
        raise ConfigError(
            "the machines of this cluster hold other weights under the same paths: "
            f"{'; '.join(sorted({json.dumps(each) for each in facts}))}"
        )
    return facts[0]


def encode_all(
    encoders: list[Any], dataset: Dataset, commits: list[dict[str, Any]], folder: Dataset
) -> Iterator[ShardOutcome | tuple[str, str]]:
    """A report for each shard as it is done, or (name, why it failed)."""
    waiting = deque(sorted(commits, key=lambda commit: -commit["num_clips"]))
    free = list(encoders)
    busy: dict[Any, tuple[Any, str]] = {}
    while waiting or busy:
        while waiting and free:
            encoder, commit = free.pop(), waiting.popleft()
            busy[encoder.encode_shard.remote(dataset, commit, folder)] = encoder, commit["name"]
        (done,), _ = ray.wait(list(busy), num_returns=1)
        encoder, name = busy.pop(done)
        free.append(encoder)
        try:
            yield ray.get(done)
        except RayTaskError as error:
            yield name, str(error.cause).splitlines()[0]
        except RayError as error:
            yield name, f"its process was lost {TASK_RETRIES + 1} times: {one_line(error)}"


def one_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
