"""What is told of a folder or a list: what was read of it, and what was not, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from curation.settings import counted
from curation.sources.charsets import CHARSETS

MAX_NAMES = 12  # of columns or suffixes in a line. Ours: a line stays one


@dataclass
class Notes:
    """Counts of one folder or list; filled while it is read."""

    name: str
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)  # reason: how many, first
    no_videos: Counter[str] = field(default_factory=Counter)  # files of a folder, by suffix
    unread: dict[str, None] = field(default_factory=dict)  # columns, in order
    read: dict[str, None] = field(default_factory=dict)  # columns, in order
    encoding: str | None = None  # of a list that is not Unicode, as Python names it
    layout: str | None = None  # the published one that its columns are of
    layout_columns: list[str] = field(default_factory=list)  # those that told it or are read
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)  # rows, as left_out
    counts: dict[str, int] = field(default_factory=dict)  # rows, spans, captions ...

    def count(self, what: str, more: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + more

    def leave_out(self, reason: str, first: str) -> None:
        """Count one thing that is not used; `first` says where the first of its kind is."""
        so_far, where = self.left_out.get(reason, (0, first))
        self.left_out[reason] = (so_far + 1, where)

    def refuse(self, reason: str, first: str) -> None:
        """Count one row that cannot be used; `first` says where it is and why."""
        so_far, where = self.refused.get(reason, (0, first))
        self.refused[reason] = (so_far + 1, where)

    def refusals(self) -> list[str]:
        """The rows that could not be used, a line for each reason."""
        return [
            f"{self.name}: {counted(number, 'rows')} refused: {reason} (first: {where})"
            for reason, (number, where) in self.refused.items()
        ]

    def recognised(self) -> str | None:
        """Whose columns a list has, in one line; None where they are ours."""
        if not self.layout:
            return None
        return f"{self.name}: {self.layout} columns: {some(self.layout_columns)}"

    def ignored(self) -> str | None:
        """What was not used, in one line; None when everything was."""
        parts = [f"{reason}: {n:,} (first: {at})" for reason, (n, at) in self.left_out.items()]
        if self.no_videos:
            kinds = some(f"{n} {suffix}" for suffix, n in self.no_videos.most_common())
            parts.append(f"files that are no videos: {kinds}")
        if self.encoding:
            parts.insert(0, f"read as {CHARSETS[self.encoding]}, since it is not UTF-8")
        if self.unread:
            parts.insert(0, f"columns not read: {some(self.unread)}")
        return f"{self.name}: {'; '.join(parts)}" if parts else None

    def summary(self) -> str:
        """What was found, in one line: the columns that were read, and every count."""
        parts = [counted(number, what) for what, number in self.counts.items()]
        if self.read:
            parts.append(f"columns read: {some(self.read)}")
        return f"{self.name}: {'; '.join(parts) or 'nothing'}"


def some(names: Iterable[str]) -> str:
    """Names with commas between them, the first few of many."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
