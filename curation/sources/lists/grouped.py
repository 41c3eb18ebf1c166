"""Mentions of videos, more than memory holds -> distinct sources in order of first mention.

Mentions go to files on disk by the hash of their place. A file at a time is joined in memory, and
the files are merged by the number of each video's first mention.
"""

from __future__ import annotations

import heapq
import pickle
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from curation.sources.source import Source, contradicts, join, place

# Ours: of 10 million videos 80,000 are in memory at once, about 50 MB, and 128 files are open.
NUM_PARTS = 128
NUM_TOGETHER = 64  # records of a part that are pickled as one


class Grouped:
    """Distinct sources with their numbers, kept in a folder; iterated as often as wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waiting: list[list[Any]] = [[] for _ in range(NUM_PARTS)]
        self.num_mentions = 0
        self.contradictions: dict[int, tuple[int, str]] = {}  # by whose: how many, where the first

    def add(self, source: Source, whose: int = 0, where: str = "") -> None:
        """Add a mention; `whose` and `where` say what list and row it is of."""
        data = place(source).encode("utf-8", "surrogateescape")
        part = zlib.crc32(data) % NUM_PARTS
        self.waiting[part].append((self.num_mentions, whose, where, source))
        self.num_mentions += 1
        if len(self.waiting[part]) == NUM_TOGETHER:
            self.write("mentions", part)

    def write(self, kind: str, part: int) -> None:
        if self.waiting[part]:
            with (self.folder / f"{kind}-{part}").open("ab") as file:
                pickle.dump(self.waiting[part], file, pickle.HIGHEST_PROTOCOL)
            self.waiting[part] = []

    def join_all(self) -> None:
        """Join the mentions of each video; none can be added any more."""
        for part in range(NUM_PARTS):
            self.write("mentions", part)
            mentions = self.folder / f"mentions-{part}"
            for each in self.joined(records(mentions)):
                self.waiting[part].append(each)
                if len(self.waiting[part]) == NUM_TOGETHER:
                    self.write("sources", part)
            self.write("sources", part)
            mentions.unlink(missing_ok=True)

    def joined(self, mentions: Iterable[Any]) -> list[tuple[int, Source]]:
        """The distinct sources of one part with the numbers of their first mentions, by those."""
        found: dict[str, tuple[int, Source]] = {}
        for number, whose, where, source in mentions:
            at = place(source)
            if at not in found:
                found[at] = number, source
                continue
            first, known = found[at]
            if contradicts(known, source):
                so_far, seen = self.contradictions.get(whose, (0, where))
                self.contradictions[whose] = so_far + 1, seen
            found[at] = first, join(known, source)
        return list(found.values())  # mentions come by number

    def __iter__(self) -> Iterator[Source]:
        parts = [records(self.folder / f"sources-{part}") for part in range(NUM_PARTS)]
        for _, source in heapq.merge(*parts, key=lambda record: record[0]):
            yield source


def records(path: Path) -> Iterator[Any]:
    """The records of a file in the order in which they were written; none where there is no file.

    Only files that this process wrote are read: pickle would run what a stranger put there.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        while True:
            try:
                together = pickle.load(file)
            except EOFError:
                return
            yield from together
