"""Clips that show nearly the same: found by their perceptual hashes, one of each group is kept.

A million clips are never compared each with each. Clips whose hashes agree in one of NUM_BANDS
choices of BAND_BITS bits come side by side (locality-sensitive hashing by sampled bits: Gionis,
Indyk and Motwani, "Similarity search in high dimensions via hashing", VLDB 1999), and those are
compared as a whole. Measured: docs/filters.md, Near copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.subsets.gathered import Clips, floats

HASH_BITS = 64  # of one part of a clip; two unlike ones differ in half of them
NUM_PARTS = 8  # a clip's first hashes, those of its pictures: the others say what moves
# Ours, measured on a million: 20 bits leave half an unrelated pair a clip and band to compare, and
# of copies with a tenth of all bits changed 64 bands miss 3 in 2,000, with 15% 1 in 8.
BAND_BITS, NUM_BANDS = 20, 64
# In a band a clip is compared with so many neighbours: a crowd of like hashes would else be
# compared each with each. Ours: neighbours are near in the next band, too; each band has others.
MAX_NEIGHBOURS = 16
MIN_TOLD = 4  # hashes of a clip's 16 that both of two clips must have. Ours: half of its pictures
CHUNK = 1 << 19  # pairs compared at once by a thread, 64 MB on either side
NUM_THREADS = 2  # numpy's sorting and counting run side by side. Ours: memory grows with them


@dataclass(frozen=True)
class Copies:
    """What is known of some clips as copies of each other; arrays [number of clips]."""

    best: np.ndarray  # int64, the place of the clip that stands for it; its own if no other does
    distance: np.ndarray  # float32, to the nearest clip of its group; infinite where it is alone


# -- two clips


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far the clips of hashes uint64 [N, 16] are from each other, two by two: float32 [N].

    The mean Hamming distance over the hashes that either has, bits of 64. Where one alone has one
    the distance is the number of its bits that are set: by chance half of them. Infinite where
    fewer than MIN_TOLD are had by both.
    """
    ours, theirs = told(first), told(second)
    apart = np.bitwise_count(first ^ second).sum(axis=1, dtype=np.uint16)
    mean = apart / np.maximum(np.bitwise_count(ours | theirs), 1).astype(np.float32)
    return np.where(np.bitwise_count(ours & theirs) >= MIN_TOLD, mean, np.float32(np.inf))


def told(hashes: np.ndarray) -> np.ndarray:
    """Which hashes of uint64 [N, 16] tell something, are not 0: bits of uint16 [N]."""
    return np.packbits(hashes != 0, axis=1).view(np.uint16)[:, 0]


# -- a million


def near_pairs(hashes: np.ndarray, min_distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [number, 2] of clips less than `min_distance` apart, and how far each is.

    hashes: uint64 [N, 16], no two alike and in order, so that nothing depends on what came first.
    """
    columns = np.ascontiguousarray(hashes[:, :NUM_PARTS].T)

    def of_band(number: int) -> tuple[np.ndarray, np.ndarray]:
        key, following = keys[number], keys[(number + 1) % NUM_BANDS]
        found, far = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
        for places in neighbours(key, following):
            apart = distances(hashes[places[:, 0]], hashes[places[:, 1]])
            near = apart < min_distance
            found.append(places[near])
            far.append(apart[near])
        return np.concatenate(found), np.concatenate(far)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        keys = list(pool.map(partial(band_keys, columns), chosen_bits()))
        found, far = zip(*pool.map(of_band, range(NUM_BANDS)), strict=True)
    pairs, where = np.unique(np.concatenate(found), axis=0, return_index=True)
    return pairs, np.concatenate(far)[where]


def neighbours(key: np.ndarray, following: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of places [number, 2] with the same key uint32 [N], at most CHUNK at once.

    Of many with the same key those that are near in the `following` one.
    """
    # Numbers of 64 bits that end in a clip's place: they sort ten times as fast as places by a key.
    place = np.arange(len(key), dtype=np.uint64)
    last = np.uint64((1 << len(key).bit_length()) - 1)
    shift = np.uint64(64 - BAND_BITS), np.uint64(64 - 2 * BAND_BITS)
    wanted = (key.astype(np.uint64) << shift[0]) | (following.astype(np.uint64) << shift[1])
    numbers = np.sort((wanted & ~last) | place)
    order = (numbers & last).astype(np.int64)
    ordered = numbers >> shift[0]
    for step in range(1, min(MAX_NEIGHBOURS, len(key) - 1) + 1):
        same = np.flatnonzero(ordered[:-step] == ordered[step:])
        for start in range(0, len(same), CHUNK):
            at = same[start : start + CHUNK]
            yield np.sort(np.stack([order[at], order[at + step]], axis=1), axis=1)


def chosen_bits() -> np.ndarray:
    """The bits of every band, (part, bit): int [NUM_BANDS, BAND_BITS, 2].

    Each bit of a band is another frequency: one that a crop or a logo changes is changed in all
    parts of a clip alike. The highest bit of a hash is none.
    """
    rng = np.random.default_rng(0)
    bits = [rng.choice(HASH_BITS - 1, BAND_BITS, replace=False) for _ in range(NUM_BANDS)]
    parts = rng.integers(0, NUM_PARTS, (NUM_BANDS, BAND_BITS))
    return np.stack([parts, np.stack(bits)], axis=2)


def band_keys(columns: np.ndarray, band: np.ndarray) -> np.ndarray:
    """The bits of a band [BAND_BITS, 2] of every clip, as numbers uint32 [N].

    columns: the hashes, uint64 [parts, N].
    """
    keys = np.zeros(columns.shape[1], np.uint32)
    for place, (part, bit) in enumerate(band):
        one = (columns[part] >> np.uint64(bit)).astype(np.uint32) & np.uint32(1)
        keys |= one << np.uint32(place)
    return keys


def groups_of(number: int, pairs: np.ndarray) -> np.ndarray:
    """The smallest place in the group of each of `number` things, some of which are joined in
    pairs [*, 2]: int64 [number]."""
    group = np.arange(number)
    while True:
        before = group.copy()
        least = np.minimum(group[pairs[:, 0]], group[pairs[:, 1]])
        for side in (0, 1):
            np.minimum.at(group, group[pairs[:, side]], least)
        group = group[group]
        if np.array_equal(group, before):
            return group


# -- which of them stays


def find_copies(clips: Sequence[Clips], min_distance: float) -> Copies:
    """The groups of near copies among the clips of several datasets, and the best of each.

    Two clips are in one group if they, or others between them, are less than `min_distance` bits
    of 64 apart. A clip without a hash is in no group.
    """
    table = pa.concat_tables([each.looks for each in clips if each.looks is not None])
    places = np.repeat([each.place for each in clips], [len(each) for each in clips])
    known = np.flatnonzero(pc.is_valid(table["perceptual_hash"]).to_numpy())
    hashes = as_numbers(table["perceptual_hash"].drop_null())
    enough = (hashes != 0).sum(axis=1) >= MIN_TOLD  # black and flat clips resemble nothing
    known, hashes = known[enough], hashes[enough]
    best = np.arange(len(table))
    distance = np.full(len(table), np.inf, np.float32)
    if len(known) < 2:
        return Copies(best, distance)
    order = np.lexsort(hashes.T)
    ordered = hashes[order]
    is_new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    node = np.empty(len(order), np.int64)  # of every clip: those with the same hash are one
    node[order] = np.cumsum(is_new) - 1
    pairs, far = near_pairs(ordered[is_new], min_distance)
    of_node = np.full(int(is_new.sum()), np.inf, np.float32)
    for side in (0, 1):
        np.minimum.at(of_node, pairs[:, side], far)
    of_node[np.bincount(node) > 1] = 0.0
    distance[known] = of_node[node]
    group = groups_of(len(of_node), pairs)[node]
    joined = np.flatnonzero(np.isfinite(of_node[node]))
    first = best_first(table.take(known[joined]), places[known[joined]])
    _, leads = np.unique(group[joined][first], return_index=True)
    stands = np.full(len(of_node), -1)
    stands[group[joined][first[leads]]] = known[joined][first[leads]]
    best[known[joined]] = stands[group[joined]]
    return Copies(best, distance)


def as_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of perceptual hashes as uint64 [N, 16]."""
    size = column.type.byte_width // 8
    parts = [
        np.frombuffer(chunk.buffers()[1], "<u8", len(chunk) * size, chunk.offset * size * 8)
        for chunk in map(pa.array, column.chunks)
        if len(chunk)
    ]
    return np.concatenate([np.empty(0, "<u8"), *parts]).reshape(-1, size)


def best_first(looks: pa.Table, places: np.ndarray) -> np.ndarray:
    """The order in which clips are worth keeping: int64 [N], whatever order they came in.

    The largest picture between its bars, in px; the longest, in whole seconds; the sharpest, where
    that was scored; the smallest id, and of one clip in two datasets the one whose place is
    smaller.
    """
    area = floats(looks["resolution"]) ** 2 * floats(looks["aspect"])
    area = area * (1 - np.nan_to_num(floats(looks["black_bars"])))
    table = pa.table(
        {
            "area": np.nan_to_num(area),
            "duration": np.round(floats(looks["duration"])),
            "sharpness": np.nan_to_num(floats(looks["sharpness"]), nan=-1.0),
            "id": looks["clip_id"],
            "place": pa.array(places.tolist(), pa.string()),
        }
    )
    keys = [(name, "descending") for name in ("area", "duration", "sharpness")]
    keys += [(name, "ascending") for name in ("id", "place")]
    return pc.sort_indices(table, keys).to_numpy().astype(np.int64)
