"""What a run does besides its flow: which sources are left to do, when to commit, what to record.

The flow itself is on Ray (ray_flow.py) or, of a few videos, on this machine alone (local_flow.py):

    sources -> [identify] -> media -> (models) -> (captions) -> (models) -> commits

Progress lives in the dataset folder: a run that is killed is continued by the same command.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from curation.commands import code_version
from curation.flow.holdings import Holdings
from curation.funnels import FUNNEL_COLUMNS, Funnel, count
from curation.pipelines import Pipeline
from curation.settings import RunError
from curation.shards import Dataset
from curation.sources import Source
from curation.sources.source import fingerprinted, join, shown

# -- sources


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


# -- commits


@dataclass
class Pending:
    """Finished videos that wait for their commit: themselves, or references to them."""

    videos: list[Any] = field(default_factory=list)
    num_videos: int = 0
    num_bytes: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, video: Any, num_videos: int, num_bytes: int) -> None:
        if not self.videos:
            self.since = time.monotonic()
        self.videos.append(video)
        self.num_videos += num_videos
        self.num_bytes += num_bytes

    def is_due(self, pipeline: Pipeline) -> bool:
        limits = pipeline.shards
        return bool(self.videos) and (
            self.num_videos >= limits.max_videos
            or self.num_bytes >= limits.max_bytes
            or time.monotonic() - self.since >= limits.max_age_s
        )


class Budget:
    """The bytes that a dataset may have, and has."""

    def __init__(self, dataset: Dataset, pipeline: Pipeline) -> None:
        self.uri = dataset.uri
        self.most = pipeline.shards.max_total_bytes or math.inf
        self.num_bytes = sum(
            file["bytes"] for commit in dataset.commits() for file in commit["files"].values()
        )

    @property
    def is_spent(self) -> bool:
        return self.num_bytes >= self.most

    def check(self) -> None:
        """Raise RunError where a dataset has as many bytes as it may have."""
        if self.is_spent:
            raise RunError(
                f"{self.uri} has the {self.most:,} bytes that shards.max_total_bytes allows; what "
                "is committed stays, and with a larger number the same command goes on"
            )


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
