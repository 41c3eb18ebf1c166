"""What became of every source and clip: counted from the ledger, printed, kept in run.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from curation.shards import DROPPED, FAILED, KEPT, Dataset

FUNNEL_COLUMNS = [
    "level", "decision", "rule", "error_class", "duration", "stage_s", "start_s", "end_s",
]  # fmt: skip


@dataclass
class Level:
    """Counts of one level, videos or clips: `total` = kept + dropped + failed."""

    total: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by rule
    failed: dict[str, int] = field(default_factory=dict)  # by error class

    def add(self, decision: str, reason: str | None) -> None:
        self.total += 1
        if decision == KEPT:
            self.kept += 1
            return
        reasons = {DROPPED: self.dropped, FAILED: self.failed}[decision]
        reasons[reason or "no_clip"] = reasons.get(reason or "no_clip", 0) + 1

    @property
    def adds_up(self) -> bool:
        return self.total == self.kept + sum(self.dropped.values()) + sum(self.failed.values())


@dataclass
class Funnel:
    """A dataset in numbers; times in seconds."""

    videos: Level = field(default_factory=Level)
    clips: Level = field(default_factory=Level)
    source_s: float = 0.0  # length of the videos that were decoded
    kept_s: float = 0.0
    stage_cpu_s: dict[str, float] = field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        return sum(self.stage_cpu_s.values())

    def as_json(self) -> dict[str, Any]:
        per_s = self.cpu_s / self.source_s if self.source_s else None
        return asdict(self) | {"cpu_s": self.cpu_s, "cpu_s_per_source_s": per_s}


def count(ledger: pa.Table, rule_order: list[str]) -> Funnel:
    """The funnel of ledger rows; rules are listed in config order."""
    funnel = Funnel()
    for row in ledger.select(FUNNEL_COLUMNS).to_pylist():
        is_video = row["level"] == "video"
        level = funnel.videos if is_video else funnel.clips
        level.add(row["decision"], row["rule"] or row["error_class"])
        stages = dict(row["stage_s"] or [])
        for stage, seconds in stages.items():
            funnel.stage_cpu_s[stage] = funnel.stage_cpu_s.get(stage, 0.0) + seconds
        if is_video and "decode" in stages:
            funnel.source_s += row["duration"] or 0.0
        if not is_video and row["decision"] == KEPT:
            funnel.kept_s += row["end_s"] - row["start_s"]
    for level in (funnel.videos, funnel.clips):
        known = [rule for rule in rule_order if rule in level.dropped]
        rest = [rule for rule in level.dropped if rule not in rule_order]
        level.dropped = {rule: level.dropped[rule] for rule in known + rest}
    return funnel


def show(funnel: Funnel, dataset: Dataset, console: Console) -> None:
    """Print the funnel as a table, then its cost."""
    table = Table(title=f"[bold]{dataset.uri}[/bold]", title_justify="left")
    table.add_column("")
    table.add_column("videos", justify="right")
    table.add_column("clips", justify="right")
    videos, clips = funnel.videos, funnel.clips
    table.add_row("in", str(videos.total), str(clips.total), style="bold")
    for title, part in (("dropped", "dropped"), ("failed", "failed")):
        of_videos, of_clips = getattr(videos, part), getattr(clips, part)
        for reason in dict.fromkeys([*of_videos, *of_clips]):
            cells = [str(of.get(reason, "")) for of in (of_videos, of_clips)]
            table.add_row(f"  {title}: {reason}", *cells)
    table.add_row("kept", str(videos.kept), str(clips.kept), style="bold green", end_section=True)
    table.add_row("minutes kept", "", f"{funnel.kept_s / 60:.1f}")
    console.print(table)
    if funnel.source_s:
        stages = ", ".join(f"{name} {s:.1f}" for name, s in funnel.stage_cpu_s.items() if s >= 0.05)
        console.print(
            f"{funnel.cpu_s / funnel.source_s:.2f} CPU seconds per second of decoded video "
            f"({funnel.source_s:.0f} s decoded; CPU seconds: {stages})"
        )
