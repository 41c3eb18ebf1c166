"""Take videos down: out of datasets and their subsets, never to come back.

vf-purge runs/mine runs/mine-clean --video dQw4w9WgXcQ
vf-purge runs/mine --uploader "Some Name" --dry-run
vf-purge s3://bucket/mine --url-file notice.txt
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import typer
from rich.console import Console

from curation.commands import (
    GOES_ON,
    Command,
    command_app,
    examples,
    say,
    screen,
    told_errors,
    without_stdin,
)
from curation.places import check_writable, dataset_at, only_writer
from curation.settings import ConfigError, counted
from curation.shards import Dataset

if TYPE_CHECKING:
    from curation.takedown.removal import Amount
    from curation.takedown.tombstones import Name

app = command_app()


@app.command(cls=Command, epilog=examples(__doc__))
def purge(
    datasets: Annotated[
        list[str], typer.Argument(help="Dataset folders or URIs; subsets of them as well.")
    ],
    video: Annotated[
        list[str] | None, typer.Option(help="A video's id (vf-why tells it); may be repeated.")
    ] = None,
    uploader: Annotated[
        list[str] | None,
        typer.Option(help="All videos of an uploader, future ones too; may be repeated."),
    ] = None,
    url: Annotated[list[str] | None, typer.Option(help="A URL; may be repeated.")] = None,
    url_file: Annotated[
        Path | None, typer.Option(help="A text file of URLs, one a line, known ones or not.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go and stop.")
    ] = False,
) -> None:
    """Take videos down. There is no way back; the same command again ends one that was killed."""
    with told_errors(GOES_ON, mistakes=(pa.ArrowException,)):
        if not (video or uploader or url or url_file):
            raise ConfigError("nothing to take down; give --video, --uploader, --url or --url-file")
        from curation.takedown import asked

        urls = [asked.recorded(each) for each in url or []]
        listed = asked.read_urls(url_file) if url_file else []
        wanted = asked.Asked(video or [], uploader or [], urls, listed)
        places = {each.root: each for each in map(dataset_at, datasets)}  # each once
        opened = [asked.open_any(each) for each in places.values()]
        found = asked.find(opened, wanted)
        console = screen()
        if found.unknown_urls:
            says = (
                f"{len(found.unknown_urls)} of {len(listed)} listed URLs are in no dataset given;"
            )
            say(console, f"{says} they have to stay away as well", "yellow")
        take_down(opened, found.names, dry_run, console)


def take_down(datasets: list[Dataset], names: list[Name], dry_run: bool, console: Console) -> None:
    """Leave tombstones in every dataset first, then take out what has one; say what went."""
    from curation.takedown.removal import LATENTS, amount, remove, side_folders, sweep, tell_run
    from curation.takedown.tombstones import add, of_names, read

    if dry_run:
        for each in datasets:
            tell(each, amount(each, read(each) | of_names(names)), "would go", console)
        return
    with ExitStack() as held:
        for each in datasets:
            check_writable(each)
            each.check_ours()
            held.enter_context(only_writer(each))
            for folder in side_folders(each, LATENTS):
                inside = replace(each, root=each.path(folder), uri=f"{each.uri}/{folder}")
                held.enter_context(only_writer(inside, "vf-precompute"))
        left = []
        for each in datasets:
            each.claim()
            left.append(add(each, of_names(names)))
        for each, stones in zip(datasets, left, strict=True):
            gone = amount(each, stones)
            remove(each, stones)
            num_files = sweep(each)
            tell_run(each, stones)
            tell(each, gone, "taken down", console)
            if num_files:
                say(console, f"  {counted(num_files, 'files')} of no commit removed")
            if gone.latents:
                shards = counted(gone.latents, "shards")
                say(console, f"  latents to be made again (vf-precompute): {shards}")
    if later := [name for kind, name in names if kind == "uploader"]:
        say(console, f"later videos of {', '.join(later)} are left out as well")
    say(console, "they stay away: runs into these folders leave them out. What else may have them, "
        "such as copies, caches and trained models: docs/takedown.md")  # fmt: skip


def tell(dataset: Dataset, gone: Amount, how: str, console: Console) -> None:
    say(
        console,
        f"{dataset.uri}: {counted(gone.videos, 'videos')} {how}, "
        f"with {counted(gone.clips, 'clips')} "
        f"({gone.minutes:.1f} min)",
        "bold",
    )


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
