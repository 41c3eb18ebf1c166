"""What a manifest says of a commit; one may come from anyone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError


class File(BaseModel):
    model_config = ConfigDict(strict=True)
    bytes: NonNegativeInt
    sha256: str


class Manifest(BaseModel):
    """A commit as its manifest/NAME.json has it; what is optional came later than some datasets."""

    model_config = ConfigDict(strict=True)
    name: str
    fingerprints: dict[str, str]
    video_ids: list[str]
    num_clips: NonNegativeInt
    files: dict[Literal["shards", "ledger"], File]
    schema_version: str | int | None = None
    num_ledger_rows: NonNegativeInt = 0
    duration_s: NonNegativeFloat = 0.0
    own_scores: list[str] = []
    replaces: str | None = None


def parse(text: bytes, name: str) -> dict[str, Any]:
    """The manifest that a file holds, of the commit `name`; ValueError says what is wrong."""
    try:
        found = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        if not where:
            raise ValueError("it is not JSON with keys") from None
        if first["type"] == "missing":
            raise ValueError(f"it has no {where}") from None
        raise ValueError(f"its {where}: {first['msg'].lower()}") from None
    if found.name != name:
        raise ValueError(f"it is of the commit {found.name!r}")
    if bool(found.num_clips) != ("shards" in found.files) or "ledger" not in found.files:
        raise ValueError(f"it has {found.num_clips} clips and files of {sorted(found.files)}")
    return json.loads(text)


def replaced(commits: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of commits whose other form is there as well: a kill left them, or is about to.

    Two that name each other, of captions changed and changed back, hold the same videos: one stays.
    """
    by: dict[str, str] = {c["name"]: c.get("replaces") or "" for c in commits}
    return {
        old
        for name, old in by.items()
        if old in by and old != name and not (by[old] == name and old > name)
    }
