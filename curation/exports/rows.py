"""The clips of a dataset one after another, from any row on; and what their files are called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from curation.shards import Dataset

# Of a file's name without its suffix; 255 bytes are allowed by common file systems. Ours.
MAX_NAME = 120


def rows_from(
    dataset: Dataset, first: int, *, media: bool = True
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every kept clip with its number, from number `first` on; a row group in memory at a time."""
    number = 0
    for name in dataset.shards():
        with dataset.open_shard(name) as shard:
            columns = [c for c in shard.schema_arrow.names if c != "perceptual_hash"]
            columns = [c for c in columns if media or c != "clip"]
            for group in range(shard.num_row_groups):
                end = number + shard.metadata.row_group(group).num_rows
                if end > first:
                    rows = shard.read_row_group(group, columns=columns).to_pylist()
                    for i, row in enumerate(rows, start=number):
                        if i >= first:
                            yield i, row
                number = end


class Names:
    """What the files of clips are called: their ids, safe on every file system, each once."""

    def __init__(self, dataset: Dataset) -> None:
        self.total = 0
        seen = []
        for name in dataset.shards():
            with dataset.open_shard(name) as shard:
                ids = shard.read(columns=["clip_id"])["clip_id"].to_pylist()
            self.total += len(ids)
            seen.append(np.array([key_of(safe(each)) for each in ids], np.uint64))
        keys, counts = np.unique(
            np.concatenate([*seen, np.zeros(0, np.uint64)]), return_counts=True
        )
        self.taken_twice = set(keys[counts > 1].tolist())

    def of(self, clip_id: str) -> str:
        """The name for a clip; where another has it, in whatever case, both end in a hash."""
        name = safe(clip_id)
        return marked(name, clip_id) if key_of(name) in self.taken_twice else name


def safe(clip_id: str) -> str:
    """A clip's id where it is a safe name already, else one made of it.

    >>> safe("dQw4w9WgXcQ_00001000_00004000"), safe("a/b.c_0_1")
    ('dQw4w9WgXcQ_00001000_00004000', 'a-b-c_0_1-1444a33c')
    """
    name = re.sub("[^A-Za-z0-9_-]", "-", clip_id)
    # A name that begins with a dash is an option to many a command.
    if name == clip_id and len(name) <= MAX_NAME and not name.startswith("-"):
        return name
    return marked(name.lstrip("-"), clip_id)


def marked(name: str, clip_id: str) -> str:
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[:MAX_NAME]}-{digest}"


def key_of(name: str) -> int:
    """The same for names that are one file where case does not count; 8 bytes, so that many fit."""
    return int.from_bytes(hashlib.sha256(name.lower().encode()).digest()[:8], "big")
