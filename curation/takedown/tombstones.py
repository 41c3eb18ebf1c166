"""What was taken down stays away: hashes and dates in a dataset's tombstones folder, no content.

    tombstones/<name>.json    {"taken_down": [{"kind": "video", "hash": "...", "date": "..."}, ...]}

A file for each vf-purge that added some, so that none is ever rewritten; <name> is a hash of what
is in it. The hash of a video's id, of a URL without secrets or of an uploader's name has to be
checkable without a key, so whoever guesses the text can see that it is the one (docs/takedown.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.shards import NUM_READERS, Dataset, DatasetError
from curation.sources import Source, is_remote

FOLDER = "tombstones"
Kind = Literal["video", "source", "uploader"]
Name = tuple[Kind, str]  # of what was taken down: a video's id, a URL, an uploader's name


class Tombstone(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    kind: Kind
    hash: str = Field(pattern="^[0-9a-f]{64}$")
    date: str = Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")


class File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    taken_down: list[Tombstone]


@dataclass(frozen=True)
class Tombstones:
    """Days (ISO 8601, UTC) on which things were taken down, by kind and hash."""

    dates: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.dates)

    def __or__(self, other: Tombstones) -> Tombstones:
        both = dict(self.dates)
        for key, date in other.dates.items():
            both[key] = min(date, both.get(key, date))
        return Tombstones(both)

    @cached_property
    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.dates}

    def number(self, kind: Kind) -> int:
        return sum(each == kind for each, _ in self.dates)

    def date(self, kind: Kind, value: str | None) -> str | None:
        """The day on which it was taken down; None if it was not."""
        if not value or kind not in self.kinds:
            return None
        return self.dates.get((kind, hash_of(kind, value)))

    def of_row(self, video: Mapping[str, Any]) -> str | None:
        """The day on which a video was taken down: by its id, that of the video that it is a copy
        of, its URL or its uploader."""
        url = video["source_url"]
        return (
            self.date("video", video["video_id"])
            or self.date("video", video["copy_of"])
            or (self.date("source", url) if is_remote(url) else None)
            or self.date("uploader", video["uploader"])
        )

    def of_source(self, source: Source) -> str | None:
        """The same of a source that is not worked on yet."""
        row = {"video_id": source.id, "copy_of": None, "source_url": source.url}
        return self.of_row(row | {"uploader": source.uploader})


NOTHING = Tombstones()


def hash_of(kind: Kind, value: str) -> str:
    """SHA-256 of a text, beginning so that it is that of nothing else."""
    text = f"videofactory taken down\0{kind}\0{value}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def of_names(taken_down: Iterable[Name]) -> Tombstones:
    """Tombstones of today."""
    date = today()
    return Tombstones({(kind, hash_of(kind, value)): date for kind, value in taken_down})


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def read(dataset: Dataset) -> Tombstones:
    """Every tombstone of a dataset; DatasetError for a file that holds something else."""
    found: dict[tuple[str, str], str] = {}
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for file in pool.map(lambda name: read_file(dataset, name), names(dataset)):
            for each in file.taken_down:
                key = each.kind, each.hash
                found[key] = min(each.date, found.get(key, each.date))
    return Tombstones(found)


def names(dataset: Dataset) -> list[str]:
    """Those of files that are whole: a killed vf-purge may have left a part of one."""
    return [name for name in dataset.names(FOLDER, ".json") if not name.startswith(".tmp-")]


def read_file(dataset: Dataset, name: str) -> File:
    try:
        return File.model_validate_json(dataset.read_bytes(FOLDER, f"{name}.json"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise DatasetError(
            f"{dataset.uri}: {FOLDER}/{name}.json does not say what was taken down "
            f"({where}: {first['msg'].lower()}); take that file from a copy of this dataset"
        ) from None


def add(dataset: Dataset, others: Tombstones) -> Tombstones:
    """Write tombstones that a dataset lacks; returns all that it has then."""
    known = read(dataset)
    new = sorted((k, h, date) for (k, h), date in others.dates.items() if (k, h) not in known.dates)
    if new:
        told = [{"kind": kind, "hash": digest, "date": date} for kind, digest, date in new]
        data = json.dumps({"taken_down": told}, indent=1).encode()
        dataset.write_bytes(data, FOLDER, f"{hashlib.sha256(data).hexdigest()[:16]}.json")
    return known | others
