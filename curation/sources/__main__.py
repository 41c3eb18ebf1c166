"""What lists hold: layout, videos, clips, hours, rows refused; a normalised list; a sample.

vf-sources videos.csv more.jsonl
vf-sources videos.csv --output videos.parquet
vf-sources videos.csv --sample 1000 --seed 7 --by category --output sample.parquet
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from curation.commands import (
    Command,
    command_app,
    examples,
    say,
    screen,
    told_errors,
    without_stdin,
)
from curation.settings import ConfigError, counted, nearest
from curation.sources.given import sources_of
from curation.sources.lists.columns import columns_of
from curation.sources.lists.grouped import Grouped
from curation.sources.notes import Notes
from curation.sources.samples import NONE, category, sample
from curation.sources.source import FACTS, Source, shown
from curation.sources.written import write_list

app = command_app()
TOLD_EVERY = 1_000_000  # mentions. Ours: about a minute
MAX_CATEGORIES = 10_000  # that are counted by name; a list may have one for each video
MAX_SHOWN = 12
OTHERS = "others"


@dataclass
class Tally:
    """What distinct videos there are."""

    videos: int = 0
    videos_without_cuts: int = 0
    clips: int = 0
    captions: int = 0
    clip_hours: float = 0.0
    videos_of_known_length: int = 0
    video_hours: float = 0.0  # of those
    categories: Counter[str] = field(default_factory=Counter)

    def add(self, source: Source) -> None:
        self.videos += 1
        self.videos_without_cuts += not source.spans
        self.clips += len(source.spans)
        self.captions += len(source.captions) + sum(len(s.captions) for s in source.spans)
        self.clip_hours += sum(s.end_s - s.start_s for s in source.spans) / 3600
        if source.duration_s is not None:
            self.videos_of_known_length += 1
            self.video_hours += source.duration_s / 3600
        name = category(source, "category")
        is_counted = name in self.categories or len(self.categories) < MAX_CATEGORIES
        self.categories[name if is_counted else OTHERS] += 1

    def lines(self) -> list[str]:
        clips = f"{counted(self.clips, 'clips')}, {self.clip_hours:,.2f} hours"
        clips = clips if self.clips else "no cuts"
        if self.clips and self.videos_without_cuts:
            clips += f"; {counted(self.videos_without_cuts, 'videos')} without cuts"
        shown = [f"{name} {n:,}" for name, n in self.categories.most_common(MAX_SHOWN)]
        more = len(self.categories) - len(shown)
        captions = counted(self.captions, "captions")
        lines = [f"{counted(self.videos, 'videos')}; {clips}; {captions}"]
        if self.videos_of_known_length:
            known = f"{self.videos_of_known_length:,} of {self.videos:,}"
            lines.append(f"length of whole videos: {self.video_hours:,.2f} hours, known of {known}")
        if set(self.categories) != {NONE}:
            more_of = f" and {more:,} more" if more else ""
            lines.append(f"categories: {', '.join(shown)}{more_of}")
        return lines


def tally(sources: Iterable[Source]) -> Tally:
    found = Tally()
    for source in sources:
        found.add(source)
    return found


def gather(lists: list[str], columns: dict[str, str], grouped: Grouped) -> list[Notes]:
    """Read all that was given, row by row; returns what is to be told of each.

    Raises ConfigError for what cannot be read at all.
    """
    notes: list[Notes] = []
    errors = Console(stderr=True)
    for text in lists:
        for source, about, where in sources_of(text, Path.cwd(), notes, columns, is_tolerant=True):
            if source.signed_url:
                if about:
                    about.leave_out("urls whose secrets are not kept", where)
                source = replace(source, signed_url=None)
            grouped.add(source, len(notes) - 1 if about else -1, where)
            if grouped.num_mentions % TOLD_EVERY == 0:
                say(errors, f"{grouped.num_mentions:,} rows read", "dim")
    grouped.join_all()
    for whose, (number, where) in grouped.contradictions.items():
        if whose >= 0:
            reason = "rows that name a video again with other facts, not used"
            notes[whose].left_out[reason] = number, where
    return notes


def told(notes: list[Notes], found: Tally, num_written: int | None) -> dict[str, Any]:
    """All that is told, for --json."""
    lists = [
        {
            "name": each.name,
            "layout": each.layout,
            "columns_read": each.layout_columns or list(each.read),
            "columns_not_read": list(each.unread),
            **each.counts,
            "refused": {why: {"rows": n, "first": at} for why, (n, at) in each.refused.items()},
            "left_out": {why: {"number": n, "first": at} for why, (n, at) in each.left_out.items()},
        }
        for each in notes
    ]
    return {"lists": lists, **vars(found), "written": num_written}


def show(notes: list[Notes], found: Tally, console: Console) -> None:
    for each in notes:
        if line := each.recognised():
            say(console, line)
        say(console, each.summary())
        for line in filter(None, [each.ignored(), *each.refusals()]):
            say(console, line, "yellow")
    for line in found.lines():
        say(console, line, "bold")


def check(output: Path | None, size: int | None, seed: int | None, by: str | None) -> None:
    """Raise ConfigError for options that do not fit together."""
    if by is not None and by not in FACTS:
        raise ConfigError(f"--by {by}: no such fact of a video{nearest(by, FACTS)}")
    if size is None and (by or seed is not None):
        raise ConfigError("--by and --seed are for --sample N")
    if size is not None and output is None:
        raise ConfigError("--sample needs --output FILE.parquet to write the sample to")
    if output is None:
        return
    if output.suffix.lower() != ".parquet":
        raise ConfigError(f"--output {output}: a list is written as .parquet")
    if output.exists():
        raise ConfigError(f"--output {output} is there already; remove it or name another")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}")


@app.command(cls=Command, epilog=examples(__doc__))
def sources(
    lists: Annotated[
        list[str],
        typer.Argument(help="Lists (.txt .csv .tsv .jsonl .json .parquet), folders, files, URLs."),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Write a .parquet list with a row for each video.")
    ] = None,
    sample_: Annotated[
        int | None, typer.Option("--sample", min=1, help="Write N videos, drawn by chance.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sample; 0 by default.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Balance the sample by this fact, such as category.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns under other names: url=link,caption=text.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what lists hold; rows of one video are joined, those that cannot be used are counted."""
    console = screen()
    with told_errors(), tempfile.TemporaryDirectory(prefix="vf-sources-") as folder:
        check(output, sample_, seed, by)
        grouped = Grouped(Path(folder))
        notes = gather(lists, columns_of(columns), grouped)
        found = tally(grouped)
        if not found.videos:
            why = [line for each in notes for line in [each.ignored(), *each.refusals()] if line]
            given = ", ".join(map(shown, lists))
            raise ConfigError("; ".join([f"no videos found in {given}", *why]))
        num_written = None
        if output:
            drawn = sample(grouped, sample_, seed or 0, by) if sample_ else grouped
            num_written = write_list(drawn, output)
        if as_json:
            typer.echo(json.dumps(told(notes, found, num_written)))
            return
        show(notes, found, console)
        if output:
            say(console, f"{counted(num_written or 0, 'videos')} -> {output}; vf-curate {output}")


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
