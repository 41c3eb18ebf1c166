"""Cuts to look at: what lies on both sides of them, the least sure ones first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.pages.facts import Facts
from curation.pages.pictures import data_uri, decoded, stored
from curation.shards import Dataset

# All ours. A gradual transition lies between two clips, trimmed from both: of 48 frames it has
# 2 s. More of a gap than this, and something else was left out there.
MAX_GAP_S = 3.0
MAX_CUTS = 60  # shown
MAX_COMPARED = 600  # whose pictures are read and compared; a second or so
COMPARED_SIZE = (32, 18)  # px; what moves a little between two previews is the same there


@dataclass(frozen=True)
class Cut:
    """Two neighbouring clips of a video, as ledger rows with `pictures`, data URIs.

    after: None for a clip without a neighbour that the rule hidden_cut dropped.
    difference: of the pictures beside the cut, grey levels; None where one is not there.
    """

    before: dict[str, Any]
    after: dict[str, Any] | None
    difference: float | None

    @property
    def hidden_cut(self) -> float | None:
        """The larger score of both."""
        found = [clip["hidden_cut"] for clip in self.clips if clip["hidden_cut"] is not None]
        return max(found, default=None)

    @property
    def clips(self) -> list[dict[str, Any]]:
        return [self.before] if self.after is None else [self.before, self.after]

    @property
    def unsure(self) -> tuple[bool, float, float]:
        """Smaller is less sure: dropped for it, a higher score to a tenth, more alike pictures."""
        score = -1.0 if self.hidden_cut is None else round(self.hidden_cut, 1)
        alike = np.inf if self.difference is None else self.difference
        return (not any(map(is_dropped, self.clips)), -score, alike)


def is_dropped(clip: dict[str, Any]) -> bool:
    return clip["rule"] == "hidden_cut"


def unsure_cuts(dataset: Dataset, found: Facts) -> tuple[list[Cut], int]:
    """The cuts to look at, and how many there are in all."""
    clips, pairs = neighbours(found.clips)
    rows: list[list[dict[str, Any]]] = [
        clips.take([n for n in pair if n >= 0]).to_pylist() for pair in pairs[:MAX_COMPARED]
    ]
    ids = [clip["clip_id"] for pair in rows for clip in pair]
    pictures = {row["clip_id"]: row["preview"] for row in stored(dataset, ids)}
    cuts = [cut_of(pair, pictures) for pair in rows]
    return sorted(cuts, key=lambda cut: cut.unsure)[:MAX_CUTS], len(pairs)


def neighbours(clips: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Clips in order of their videos, and the pairs of them [pairs, 2] with a cut between.

    Pairs come by the rule hidden_cut and by that score, the least sure first; -1 is no clip: a
    dropped one without a neighbour stands alone.
    """
    columns = ["clip_id", "video_id", "start_s", "end_s", "decision", "rule", "hidden_cut"]
    clips = clips.select(columns)
    clips = clips.take(
        pc.sort_indices(clips, [("video_id", "ascending"), ("start_s", "ascending")])
    )
    start_s, end_s, score = (
        clips[name].to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("start_s", "end_s", "hidden_cut")
    )
    same = np.diff(clips["video_id"].combine_chunks().dictionary_encode().indices.to_numpy()) == 0
    gap_s = start_s[1:] - end_s[:-1]
    first = np.flatnonzero(same & (gap_s > -MAX_GAP_S / 30) & (gap_s <= MAX_GAP_S))
    dropped = pc.fill_null(pc.equal(clips["rule"], "hidden_cut"), False).to_numpy()
    alone = np.setdiff1d(np.flatnonzero(dropped), [first, first + 1])
    pairs = np.concatenate(
        [np.stack([first, first + 1], 1), np.stack([alone, np.full_like(alone, -1)], 1)]
    )
    is_there = pairs >= 0
    scored = np.where(is_there & np.isfinite(score[pairs]), score[pairs], -1).max(axis=1)
    for_it = (is_there & dropped[pairs]).any(axis=1)
    return clips, pairs[np.lexsort((-scored, ~for_it))]


def cut_of(pair: list[dict[str, Any]], pictures: dict[str, list[bytes]]) -> Cut:
    seen = [pictures.get(clip["clip_id"], []) for clip in pair]
    shown = [
        clip | {"pictures": [data_uri(jpeg) for jpeg in jpegs]}
        for clip, jpegs in zip(pair, seen, strict=True)
    ]
    beside = len(pair) == 2 and all(seen)
    difference = difference_of(seen[0][-1], seen[1][0]) if beside else None
    return Cut(shown[0], shown[1] if len(shown) == 2 else None, difference)


def difference_of(a: bytes, b: bytes) -> float | None:
    """Mean absolute difference of two JPEGs, 0..255 over all colours, at COMPARED_SIZE; None
    where one is no picture."""
    pictures = [picture for picture in (decoded(a), decoded(b)) if picture is not None]
    if len(pictures) < 2:
        return None
    first, second = (
        cv2.resize(picture, COMPARED_SIZE, interpolation=cv2.INTER_AREA).astype(np.float64)
        for picture in pictures
    )
    return float(np.abs(first - second).mean())
