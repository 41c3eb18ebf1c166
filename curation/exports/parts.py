"""How far an export has come: a file for each stretch of rows that is whole, and their sums."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from curation.exports.asked import WORK
from curation.exports.layouts import Files
from curation.shards import NUM_READERS, Dataset

PREFIX = "part-"


@dataclass(frozen=True)
class Outcome:
    """What became of one row."""

    number: int
    dropped: str | None = None  # why it was left out
    files: Files | None = None
    made: str = ""
    data: bytes = b""  # of the mp4, where it is not written yet
    num_frames: int = 0
    duration_s: float = 0.0
    num_bytes: int = 0  # of the mp4
    is_trimmed: bool = False  # its end is left out
    is_captioned: bool = False


@dataclass
class Part:
    """The rows up to `end` that no earlier part has: their counts, and their lines of lists."""

    end: int
    num_clips: int = 0
    num_tars: int = 0
    num_frames: int = 0
    num_captioned: int = 0
    num_trimmed: int = 0
    num_bytes: int = 0
    duration_s: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Take the next row in."""
        self.end = outcome.number + 1
        if outcome.files is None:
            assert outcome.dropped is not None
            self.dropped[outcome.dropped] = self.dropped.get(outcome.dropped, 0) + 1
            return
        self.num_clips += 1
        self.num_frames += outcome.num_frames
        self.num_captioned += outcome.is_captioned
        self.num_trimmed += outcome.is_trimmed
        self.num_bytes += outcome.num_bytes
        self.duration_s += outcome.duration_s
        self.made[outcome.made] = self.made.get(outcome.made, 0) + 1
        for path, line in outcome.files.lines.items():
            self.lines.setdefault(path, []).append(line)

    def take(self, later: Part) -> None:
        """Add a later part's counts; its lines stay where they are."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.end = later.end
        self.dropped = dict(Counter(self.dropped) + Counter(later.dropped))
        self.made = dict(Counter(self.made) + Counter(later.made))

    def counts(self) -> dict[str, Any]:
        """What export.json says."""
        return {
            "total": self.end,
            "exported": self.num_clips,
            "without_caption": self.num_clips - self.num_captioned,
            "dropped": dict(sorted(self.dropped.items())),
            "trimmed": self.num_trimmed,
            "made": dict(sorted(self.made.items())),
            "frames": self.num_frames,
            "duration_s": round(self.duration_s, 6),
            "bytes": self.num_bytes,
        }


COUNTS = (
    *("num_clips", "num_tars", "num_frames", "num_captioned", "num_trimmed"),
    *("num_bytes", "duration_s"),
)


def write_part(out: Dataset, index: int, part: Part) -> None:
    """Say that the rows of a part are done: their files are all there."""
    out.write_bytes(json.dumps(asdict(part)).encode(), WORK, f"{PREFIX}{index:08d}.json")


def read_parts(out: Dataset) -> Iterator[Part]:
    """The parts that are done, in order."""
    names = [name for name in out.names(WORK, ".json") if name.startswith(PREFIX)]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for first in range(0, len(names), NUM_READERS):  # not all at once: they hold every line
            yield from pool.map(partial(read_part, out), names[first : first + NUM_READERS])


def read_part(out: Dataset, name: str) -> Part:
    return Part(**json.loads(out.read_bytes(WORK, f"{name}.json")))
