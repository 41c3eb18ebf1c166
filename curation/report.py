"""One static page that shows what a dataset holds and why; or two datasets against each other.

vf-report runs/demo
vf-report runs/demo runs/stricter
vf-report runs/demo --card --clips 24
"""

from __future__ import annotations

from typing import Annotated

import pyarrow as pa
import typer

from curation.commands import (
    Command,
    command_app,
    examples,
    say,
    screen,
    told_errors,
    without_stdin,
)
from curation.places import open_dataset

app = command_app()


@app.command(cls=Command, epilog=examples(__doc__))
def report(
    dataset: Annotated[str, typer.Argument(help="A dataset folder or URI.")],
    other: Annotated[
        str | None, typer.Argument(help="A second one: compare it with the first.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="Where the page goes. Default: report.html in the (second) dataset."),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Also write README.md, a dataset card as hubs show it.")
    ] = False,
    clips: Annotated[
        int,
        typer.Option(
            min=0,
            help="Put so many kept clips into the page, to play at a click; it grows by them.",
        ),
    ] = 0,
) -> None:
    """Write a report as one HTML file that needs no network."""
    from curation.pages import page

    with told_errors(mistakes=(OSError, pa.ArrowException)):
        found = open_dataset(dataset, emptied=True)
        if other is None:
            written = [page.write_report(found, output, clips)]
        else:
            written = [page.write_comparison(found, open_dataset(other, emptied=True), output)]
        if card:
            written.append(page.write_card(found))
        for path in written:
            say(screen(), str(path))


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
