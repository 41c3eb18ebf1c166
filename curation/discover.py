"""Searches, playlists, channels and feeds -> a source list; no media is fetched.

vf-discover --output videos.parquet              15 categories: discovery/queries.yaml
vf-discover "surfing big waves" --category Sports --limit 20 --output surf.jsonl
vf-discover https://www.youtube.com/@channel --probe --license "creative commons" --output cc.csv
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curation.commands import Command, command_app, examples, told_errors, without_stdin
from curation.settings import ConfigError

app = command_app()


@app.command(cls=Command, epilog=examples(__doc__))
def command(
    queries: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to search for, addresses of playlists, channels, feeds."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The list: .parquet, .jsonl or .csv; new ones are added.")
    ] = None,
    queries_file: Annotated[
        Path | None,
        typer.Option("--queries", help="A YAML of categories; without queries: 15 of ours."),
    ] = None,
    category: Annotated[str | None, typer.Option(help="Of what the QUERIES find.")] = None,
    search: Annotated[str, typer.Option(help="yt-dlp's prefix for texts.")] = "ytsearch",
    limit: Annotated[int, typer.Option(min=1, help="New videos of one query at most.")] = 100,
    min_height: Annotated[int, typer.Option(min=0, help="Offered, px; 0 for any.")] = 720,
    min_duration: Annotated[float | None, typer.Option(min=0, help="Seconds.")] = None,
    max_duration: Annotated[float | None, typer.Option(min=0, help="Seconds.")] = None,
    license_: Annotated[
        list[str] | None,
        typer.Option("--license", help="Words of a licence, one of which it needs."),
    ] = None,
    seen: Annotated[
        list[str] | None,
        typer.Option(help="A list or dataset whose videos are left out; may be repeated."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Ask each video's page: height, licence.")
    ] = False,
    sleep: Annotated[float, typer.Option(min=0, help="Seconds between two requests.")] = 1.0,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Ask private addresses, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at the first 20, write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find videos on sites and write a list of them, which every command reads as a source."""
    with told_errors("what was found before is in the list; the same command again goes on"):
        if category and not queries:
            raise ConfigError("--category is for QUERIES; a file of queries has its own")
        if min_duration and max_duration and min_duration > max_duration:
            raise ConfigError("--min-duration is more than --max-duration")
        from curation.discovery.asked import discover  # loads yt-dlp
        from curation.discovery.filters import Bounds
        from curation.discovery.queries import DEFAULT_QUERIES, read_queries

        pairs: list[tuple[str | None, str]] = [(category, text) for text in queries or []]
        if queries_file or not queries:
            pairs += read_queries(queries_file or DEFAULT_QUERIES)
        discover(
            pairs,
            output,
            Bounds(min_height, min_duration, max_duration, tuple(license_ or ())),
            seen or [],
            search=search,
            limit=limit,
            probes=probe,
            sleep_s=sleep,
            dry_run=dry_run,
            allow_private=allow_private,
            as_json=as_json,
        )


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
