"""What vf-discover was asked: the list it adds to, the queries one by one, what is told of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from yt_dlp.extractor.common import InfoExtractor

from curation.commands import interruptible, say, screen
from curation.discovery.discovered import Discovery, Tally
from curation.discovery.facts import SCHEMA
from curation.discovery.filters import Bounds, names_of, seen_in, taken_down_in
from curation.discovery.listing import MAX_LISTED, Lister
from curation.discovery.queries import Query, queries_of
from curation.settings import ConfigError, counted
from curation.sources.lists.cells import RowError
from curation.sources.lists.rows import read_rows
from curation.sources.notes import Notes
from curation.sources.source import storable
from curation.sources.written import write_rows

SUFFIXES = (".parquet", ".jsonl", ".csv")
# Listed of each query in a dry run. Ours: what the first page of a search has.
DRY_RUN_LIMIT = 20
NO_CATEGORY = "no category"
UNTOLD = {
    "height": "of unknown height: the list does not tell it, --probe asks each video's page",
    "duration_s": "of unknown duration",
    "secrets of its url": "whose addresses have secrets, which are not kept: they may not open",
}


# -- the list


def rows_there(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that a list has already; ConfigError for a list that this command did not write."""
    if not path.exists():
        return
    for where, row in read_rows(path, Notes(str(path))):
        if isinstance(row, RowError):
            says = str(row)
        elif strange := [name for name in row if name not in SCHEMA.names]:
            says = f"the column {strange[0]!r}"
        else:
            says = "" if row.get("url") else "no url"
        if says or isinstance(row, RowError):
            raise ConfigError(
                f"--output {path}: {where}: {says}: not a list that vf-discover wrote; "
                "name another, and give this one with --seen"
            )
        yield {name: storable(c) if isinstance(c, str) else c for name, c in row.items()}


def append(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows behind those of a list: all of it, or nothing."""
    write_rows(chain(rows_there(path), rows), path, SCHEMA)


def check(output: Path | None, dry_run: bool) -> None:
    """Raise ConfigError for an output that cannot be written."""
    if output is None:
        if not dry_run:
            raise ConfigError("--output FILE is needed, unless it is a --dry-run")
        return
    if output.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output {output}: a list is written as {', '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder; name a file")


# -- what is told


def lines_of(category: str | None, tally: Tally, dry_run: bool) -> Iterator[tuple[str, str]]:
    """What became of a category's queries: lines, each with a style."""
    pages = f", {counted(tally.pages_asked, 'pages')} asked" if tally.pages_asked else ""
    kept = "would be written" if dry_run else "written"
    yield (
        f"{category or NO_CATEGORY}: {counted(tally.queries, 'queries')}, "
        f"{tally.listed:,} listed{pages}, {tally.found:,} {kept}",
        "bold",
    )
    for reason, (number, first) in tally.left_out.items():
        yield f"  left out: {number:,} {reason} (first: {first})", ""
    for name, (number, first) in tally.not_told.items():
        yield f"  among those kept: {number:,} {UNTOLD[name]} (first: {first})", "yellow"
    for query, says in tally.failed.items():
        yield f"  query failed: {query}: {says}", "red"


def told(
    discovery: Discovery, output: Path | None, num_before: int, dry_run: bool
) -> dict[str, Any]:
    """All that is told, for --json."""

    def counts(of: dict[str, tuple[int, str]]) -> dict[str, Any]:
        return {why: {"number": number, "first": first} for why, (number, first) in of.items()}

    tallies = discovery.tallies.items()
    return {
        "output": str(output) if output else None,
        "dry_run": dry_run,
        "lacking": discovery.lacking,
        "there_before": num_before,
        "written": 0 if dry_run else sum(tally.found for _, tally in tallies),
        "categories": {
            name or NO_CATEGORY: asdict(tally)
            | {"left_out": counts(tally.left_out), "not_told": counts(tally.not_told)}
            for name, tally in tallies
        },
    }


# -- the command


def ask_all(
    discovery: Discovery, queries: Sequence[Query], output: Path | None, errors: Console
) -> None:
    """Ask every query; what one found is in the list before the next is asked, stopped or not."""
    for number, query in enumerate(queries, 1):
        rows: list[dict[str, Any]] = []
        try:
            for row in discovery.rows(query):
                rows.append(row)
        finally:
            if rows and output:
                append(rows, output)
        tally = discovery.tallies[query.category]
        failed = f"; failed: {tally.failed[query.text]}" if query.text in tally.failed else ""
        say(errors, f"{number}/{len(queries)} {query.text}: {len(rows):,} found{failed}", "dim")


def discover(
    pairs: list[tuple[str | None, str]],
    output: Path | None,
    bounds: Bounds,
    seen: list[str],
    *,
    search: str = "ytsearch",
    limit: int = 100,
    probes: bool = False,
    sleep_s: float = 1.0,
    dry_run: bool = False,
    allow_private: bool = False,
    as_json: bool = False,
    extractors: Sequence[type[InfoExtractor]] = (),
) -> None:
    """What the command does; `pairs` are (category, query), `extractors` asked before yt-dlp's own.

    Raises ConfigError and DatasetError, and SystemExit 1 if every query failed.
    """
    check(output, dry_run)
    lister = Lister(sleep_s=sleep_s, allow_private=allow_private, extractors=extractors)
    queries = queries_of(pairs, search, lister.search_keys())
    known: set[str] = set()
    num_before = 0
    for row in rows_there(output) if output else ():
        known |= names_of(row.get("id") or None, row["url"])
        num_before += 1
    for video_id, url in seen_in(seen):
        known |= names_of(video_id, url)
    max_listed = DRY_RUN_LIMIT if dry_run else MAX_LISTED
    discovery = Discovery(
        lister,
        bounds,
        known,
        limit=limit,
        probes=probes,
        max_listed=max_listed,
        stones=taken_down_in(seen),
    )
    with interruptible():
        ask_all(discovery, queries, None if dry_run else output, Console(stderr=True))
    result = told(discovery, output, num_before, dry_run)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        show(discovery, result)
    if sum(len(tally.failed) for tally in discovery.tallies.values()) == len(queries):
        raise SystemExit(1)


def show(discovery: Discovery, result: dict[str, Any]) -> None:
    console = screen()
    for name, tally in discovery.tallies.items():
        for line, style in lines_of(name, tally, result["dry_run"]):
            say(console, line, style)
    if discovery.lacking:
        says = f"{discovery.lacking}; heights that were told are too low, so videos were left out"
        say(console, says, "red")
    if result["dry_run"]:
        says = (
            f"dry run: the first {DRY_RUN_LIMIT} of each query were looked at, nothing is written"
        )
    elif not result["written"]:
        says = "nothing new"
    else:
        total = result["there_before"] + result["written"]
        path = result["output"]
        says = f"{result['written']:,} new, {counted(total, 'videos')} -> {path}; vf-curate {path}"
    say(console, says, "bold")
