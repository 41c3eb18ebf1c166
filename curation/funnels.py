"""What became of every source and clip: counted from the ledger, printed, kept in run.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from curation.commands import plain, say
from curation.shards import DROPPED, FAILED, KEPT, Dataset
from curation.subsets.decided import Step

FUNNEL_COLUMNS = [
    *("level", "decision", "rule", "error_class", "duration", "stage_s", "source_url", "message"),
    "caption",
]
MAX_EXAMPLE = 160  # characters of a message


@dataclass
class Level:
    """Counts of one level, videos or clips: `total` = kept + dropped + failed."""

    total: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by rule
    failed: dict[str, int] = field(default_factory=dict)  # by error class

    def add(self, decision: str, reason: str | None, number: int) -> None:
        self.total += number
        if decision == KEPT:
            self.kept += number
            return
        reasons = {DROPPED: self.dropped, FAILED: self.failed}[decision]
        reasons[reason or "no_clip"] = reasons.get(reason or "no_clip", 0) + number

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
    num_uncaptioned: int = 0  # of the kept clips
    stage_cpu_s: dict[str, float] = field(default_factory=dict)
    # Of every class of failed videos one, as (source, message); shown, and not kept.
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        return sum(self.stage_cpu_s.values())

    def as_json(self) -> dict[str, Any]:
        per_s = self.cpu_s / self.source_s if self.source_s else None
        facts = asdict(self)
        del facts["examples"]
        return facts | {"cpu_s": self.cpu_s, "cpu_s_per_source_s": per_s}


def count(ledgers: Iterable[pa.Table], rule_order: list[str]) -> Funnel:
    """The funnel of ledgers, by columns since there may be millions; rules in config order."""
    funnel = Funnel()
    for ledger in ledgers:
        add_ledger(funnel, ledger)
    for level in (funnel.videos, funnel.clips):
        known = [rule for rule in rule_order if rule in level.dropped]
        rest = sorted(rule for rule in level.dropped if rule not in rule_order)
        level.dropped = {rule: level.dropped[rule] for rule in known + rest}
    return funnel


def add_ledger(funnel: Funnel, ledger: pa.Table) -> None:
    """Add one commit's ledger to a funnel."""
    groups = ledger.group_by(["level", "decision", "rule", "error_class"]).aggregate(
        [("level", "count"), ("duration", "sum"), ("caption", "count")]
    )
    for row in groups.to_pylist():
        level = funnel.videos if row["level"] == "video" else funnel.clips
        level.add(row["decision"], row["rule"] or row["error_class"], row["level_count"])
        if row["level"] == "clip" and row["decision"] == KEPT:
            funnel.kept_s += row["duration_sum"]
            funnel.num_uncaptioned += row["level_count"] - row["caption_count"]
    videos = ledger.filter(pc.equal(ledger["level"], "video"))
    failed = videos.filter(pc.equal(videos["decision"], FAILED))
    firsts = failed.group_by("error_class", use_threads=False)
    for row in firsts.aggregate([("source_url", "first"), ("message", "first")]).to_pylist():
        example = (row["source_url_first"], row["message_first"] or "")
        funnel.examples.setdefault(row["error_class"], example)
    for duration, stages in zip(
        videos["duration"].to_pylist(), videos["stage_s"].to_pylist(), strict=True
    ):
        for stage, seconds in stages or []:
            funnel.stage_cpu_s[stage] = funnel.stage_cpu_s.get(stage, 0.0) + seconds
            if stage == "decode":
                funnel.source_s += duration or 0.0


def show(funnel: Funnel, dataset: Dataset, console: Console) -> None:
    """Print the funnel as a table, then its cost."""
    say(console, dataset.uri, "bold")
    table = Table()
    table.add_column("")
    table.add_column("videos", justify="right")
    table.add_column("clips", justify="right")
    videos, clips = funnel.videos, funnel.clips
    table.add_row("in", str(videos.total), str(clips.total), style="bold")
    for title, part in (("dropped", "dropped"), ("failed", "failed")):
        of_videos, of_clips = getattr(videos, part), getattr(clips, part)
        for reason in dict.fromkeys([*of_videos, *of_clips]):
            cells = [str(of.get(reason, "")) for of in (of_videos, of_clips)]
            table.add_row(plain(f"  {title}: {reason}"), *cells)
    table.add_row("kept", str(videos.kept), str(clips.kept), style="bold green", end_section=True)
    table.add_row("length kept", "", length(funnel.kept_s))
    console.print(table)
    if funnel.num_uncaptioned:
        say(console, without_captions(funnel.num_uncaptioned, clips.kept), "yellow")
    for error_class, (source, message) in funnel.examples.items():
        says = " ".join(message.split())[:MAX_EXAMPLE]
        say(
            console, f"failed: {error_class}, such as {source}: {says or 'its clips failed'}", "dim"
        )
    if funnel.source_s:
        stages = ", ".join(f"{name} {s:.1f}" for name, s in funnel.stage_cpu_s.items() if s >= 0.05)
        say(
            console,
            f"{funnel.cpu_s / funnel.source_s:.2f} CPU seconds per second of decoded video "
            f"({funnel.source_s:.0f} s decoded; CPU seconds: {stages})",
        )


def without_captions(number: int, num_clips: int) -> str:
    """How many clips would be trained as the empty prompt."""
    which = "the kept clip has" if num_clips == 1 else f"{number} of {num_clips} kept clips have"
    return f"{which} no caption: trained as the empty prompt (docs/captions.md)"


def show_steps(
    title: str, num_clips: int, seconds: float, steps: Iterable[Step], console: Console
) -> None:
    """Print a recipe's funnel: clips and their length before and after each rule."""
    steps = list(steps)
    names = ["bound", "before", "dropped", "failed", "after", "length"]
    if any(step.not_scored for step in steps):
        names.insert(4, "not scored")
    say(console, title, "bold")
    table = Table()
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="left" if name == "bound" else "right")

    def add(first: str, cells: dict[str, Any], style: str = "") -> None:
        table.add_row(*map(plain, [first, *[str(cells.get(n, "")) for n in names]]), style=style)

    add("clips", {"after": num_clips, "length": length(seconds)}, "bold")
    for step in steps:
        cells = {"bound": bound(step), "before": step.came, "dropped": step.dropped}
        cells |= {"failed": step.failed or "", "not scored": step.not_scored or ""}
        add(step.rule, cells | {"after": step.left, "length": length(step.left_s)})
    table.add_section()
    left, left_s = (steps[-1].left, steps[-1].left_s) if steps else (num_clips, seconds)
    share = f"{left / num_clips:.1%}" if num_clips else ""
    add("kept", {"bound": share, "after": left, "length": length(left_s)}, "bold green")
    console.print(table)


def length(seconds: float) -> str:
    """A length in the unit that fits it.

    >>> length(2.04), length(99.9), length(330), length(44_640), length(1.3e9)
    ('2.0 s', '99.9 s', '5.5 min', '12.4 h', '361,111.1 h')
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def bound(step: Step) -> str:
    """A rule's bounds, and what the user wrote where that was not a number: >= 0.31 (p20)."""
    asked = {side: text for side, text in step.asked.items() if isinstance(text, str)}
    parts = []
    for side, sign in (("min", ">="), ("max", "<=")):
        value = getattr(step, side)
        if value is not None or side in asked:
            number = "?" if value is None else f"{value:.4g}"
            parts.append(f"{sign} {number}" + (f" ({asked[side]})" if side in asked else ""))
    if "keep" in step.asked:
        parts.append(f"the best {step.asked['clips']} ({step.asked['keep']:g})")
    return ", ".join(parts)
