"""Why a video or a clip was kept, dropped or failed, from the ledger.

vf-why runs/demo 8653475a7c3b35aa0357
vf-why runs/demo examples/media/meadow_logo.mp4
vf-why s3://bucket/mine "https://youtu.be/dQw4w9WgXcQ"
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer
from pydantic import BaseModel, ValidationError
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
from curation.pipelines import Rule
from curation.places import open_dataset
from curation.rules import others_broken
from curation.scores.table import SCORES
from curation.settings import ConfigError
from curation.shards import DROPPED, FAILED, LEDGER_SCHEMA, Dataset
from curation.takedown import tombstones
from curation.takedown.asked import date_of, recorded

app = command_app()


def find(ledger: pa.Table, wanted: str) -> list[dict[str, Any]]:
    """The rows of the video or clip named by id, by the start of an id, or by source.

    A clip's id gives its row alone, everything else the video's rows with its clips.
    """
    for column, value in (
        *(("clip_id", wanted), ("video_id", wanted)),
        ("source_url", recorded(wanted)),
    ):
        found = ledger.filter(pc.equal(ledger[column], value))
        if len(found):
            return found.to_pylist()
    starts = ledger.filter(pc.starts_with(ledger["video_id"], wanted))
    if len(pc.unique(starts["video_id"])) == 1:
        return starts.to_pylist()
    return []


def reason(row: dict[str, Any]) -> str:
    """A row's outcome as a sentence."""
    if row["decision"] == FAILED:
        return f"failed: {row['error_class']}: {row['message'] or 'its clips failed'}"
    if row["decision"] == DROPPED:
        if row["rule"] is None:
            return "dropped: it has no clip"
        if row["near_copy_of"]:
            return (
                f"dropped by {row['rule']}: a near copy of {row['near_copy_of']} that is kept; "
                f"{row['value']:g} of 64 bits from the nearest like it, below the bound "
                f"{row['threshold']:g}"
            )
        value = "not scored" if row["value"] is None else f"{row['value']:g}"
        side = "below" if row["value"] is None or row["value"] < row["threshold"] else "above"
        return f"dropped by {row['rule']}: {value} is {side} the bound {row['threshold']:g}"
    return "kept"


class Rules(BaseModel):
    rules: dict[str, Rule] = {}


class Run(BaseModel):
    """What is read of a run.json."""

    pipeline: Rules | None = None
    resolved: dict[str, Rule] = {}  # of a recipe


def rules_of(dataset: Dataset) -> dict[str, Rule]:
    """The rules of the last run that wrote a dataset, a recipe's resolved to numbers."""
    if not dataset.exists("run.json"):
        return {}
    try:
        run = Run.model_validate_json(dataset.read_bytes("run.json"))
    except ValidationError:  # a stranger's may hold anything; the ledger tells the verdict itself
        return {}
    return (run.pipeline.rules if run.pipeline else {}) | run.resolved


def also(row: dict[str, Any], rules: dict[str, Rule]) -> str:
    """The other rules that a dropped clip breaks, as a sentence; "" for none."""
    if row["rule"] is None:  # kept, or failed
        return ""
    found = [
        f"{v.rule} ({v.value:g}, bound {v.threshold:g})"
        for v in others_broken(row, rules, row["rule"])
    ]
    return f"it also breaks {', '.join(found)}" if found else ""


def show(
    rows: list[dict[str, Any]], names: list[str], rules: dict[str, Rule], console: Console
) -> None:
    """Print what is known of a video and its clips; `names` are those of scores."""
    clips = [row for row in rows if row["level"] == "clip"]
    for row in rows:
        if row["level"] == "video":
            say(console, f"{row['video_id']}  {row['source_url']}", "bold")
            say(console, reason(row))
            if row["message"] and row["decision"] != FAILED:
                say(console, row["message"])
            stages = ", ".join(f"{stage} {s:.2f}" for stage, s in row["stage_s"] or [])
            say(console, f"attempts {row['attempts']}; CPU seconds: {stages}", "dim")
            if row["watermark_box"]:
                box = ", ".join(f"{x:.2f}" for x in row["watermark_box"])
                say(console, f"overlay found at x0, y0, x1, y1 = {box} of the picture")
    for row in clips:
        times = f"{row['start_s']:.2f} to {row['end_s']:.2f} s"
        say(console, f"\n{row['clip_id']}  {times}", "bold")
        say(console, f"  {reason(row)}")
        if others := also(row, rules):
            say(console, f"  {others}")
        scores = [f"{name} {row[name]:.3g}" for name in names if row[name] is not None]
        say(console, f"  {', '.join(scores)}", "dim")
        if row["caption"]:
            say(console, f"  {row['caption']}", "italic")


@app.command(cls=Command, epilog=examples(__doc__))
def why(
    dataset: Annotated[str, typer.Argument(help="A dataset folder or URI.")],
    wanted: Annotated[str, typer.Argument(metavar="ID", help="A clip id, video id or source.")],
) -> None:
    """Tell why a video or clip was kept, dropped or failed."""
    with told_errors(mistakes=(OSError, pa.ArrowException)):
        found = open_dataset(dataset, emptied=True)
        own = found.own_scores()
        ledger = found.ledger([*LEDGER_SCHEMA.names, *own])
        rows = find(ledger, wanted)
        date = None if rows else date_of(tombstones.read(found), wanted)
        if date:
            say(screen(), f"taken down on {date}: nothing of it is left here, and it stays away")
            return
        if not rows:
            known = [*pc.unique(ledger["source_url"]).to_pylist(), *ledger["clip_id"].to_pylist()]
            close = difflib.get_close_matches(wanted, [k for k in known if k], n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}" if close else ""
            raise ConfigError(f"no video, clip or source {wanted!r} in {dataset}{hint}")
        show(rows, [*SCORES, *own], rules_of(found), screen())


def main() -> None:
    with without_stdin():
        app()


if __name__ == "__main__":
    main()
