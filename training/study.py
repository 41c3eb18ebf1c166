#!/usr/bin/env python3
"""Make a user study of two folders of clips, or score what raters saved.

vf-study --a ours --b theirs --output study.html
vf-study --a ours --b theirs --prompts prompts.json --output study.html
vf-study --score study-ann.json study-bob.json
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation.commands import Command, command_app, examples, say, without_stdin

if TYPE_CHECKING:
    from rich.console import Console

app = command_app()


@app.command(cls=Command, epilog=examples(__doc__))
def study(
    answers: Annotated[
        list[Path] | None, typer.Argument(help="With --score: raters' files.")
    ] = None,
    a: Annotated[Path | None, typer.Option(help="A folder of mp4s.")] = None,
    b: Annotated[Path | None, typer.Option(help="Another, with the same names.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON, name to prompt. Default: NAME.txt beside A's clips.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The page to write.")] = None,
    score: Annotated[bool, typer.Option("--score", help="Score answers.")] = False,
) -> None:
    """One page on which people say which of two clips is better, and what they said."""
    from curation.settings import ConfigError
    from training.commands import guarded
    from training.evaluation import studies

    def body(console: Console) -> None:
        tell = partial(say, console)
        if score:
            found = studies.read_answers(answers or [])
            tell(f"{len(found)} raters of study {found[0]['study']}")
            for question in studies.QUESTIONS:
                tell(str(studies.outcome(found, question)))
            return
        if a is None or b is None or output is None or answers:
            raise ConfigError("give --a, --b and --output, or --score and the files raters saved")
        pairs = studies.find_pairs(a, b, prompts)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(studies.page(pairs), encoding="utf-8")
        tell(f"{output}: {len(pairs)} pairs, {output.stat().st_size / 1e6:.1f} MB, clips included")

    guarded(body)


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
