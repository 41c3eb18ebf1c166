"""A seeded sample of videos, balanced over categories, which does not depend on their order."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from curation.sources.source import Source, place

NONE = "none given"  # the category of videos without one


def sample(sources: Iterable[Source], size: int, seed: int, by: str | None) -> Iterator[Source]:
    """`size` of the sources, or all if there are fewer, in their order.

    With `by`, the name of a fact such as `category`, each of its values gives as many, and all that
    it has where that is less; videos without one are a category of their own. Which ones depends
    on the seed and on where each video is, and so neither on the order nor on other categories.
    Goes through the sources three times and holds a number for each that is taken.
    """
    sizes = shares(Counter(category(source, by) for source in sources), size)
    least: dict[str, list[int]] = {name: [] for name in sizes}  # heaps, the greatest first
    for source in sources:
        name, rank = category(source, by), -rank_of(source, seed)
        if len(least[name]) < sizes[name]:
            heapq.heappush(least[name], rank)
        elif least[name] and rank > least[name][0]:
            heapq.heapreplace(least[name], rank)
    taken = {-rank for ranks in least.values() for rank in ranks}
    return (source for source in sources if rank_of(source, seed) in taken)


def category(source: Source, by: str | None) -> str:
    return (getattr(source, by) or NONE) if by else ""


def rank_of(source: Source, seed: int) -> int:
    """A number in [0, 2^64) that is a video's by chance."""
    data = f"{seed} {place(source)}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def shares(counts: Mapping[str, int], size: int) -> dict[str, int]:
    """How many of `size` each category gives: alike, but for those that have less.

    >>> shares({"cats": 100, "dogs": 2, "birds": 100}, 11)
    {'dogs': 2, 'birds': 4, 'cats': 5}
    """
    found: dict[str, int] = {}
    for at, name in enumerate(sorted(counts, key=lambda name: (counts[name], name))):
        found[name] = min(counts[name], size // (len(counts) - at))
        size -= found[name]
    return found
