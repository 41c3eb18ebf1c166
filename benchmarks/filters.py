"""Precision and recall of the filters on a labelled corpus made from real footage.

    python benchmarks/filters.py --media FOLDER --part overlays --json
    python benchmarks/filters.py --media FOLDER --half tune      # the half that constants come from

Videos are split by source, or by stretches far apart where one film is all there is: constants are
tuned on one half, and the other is what docs/filters.md reports. --sheet draws every video that was
judged wrongly, with the box that was found.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import av
import cv2
import filter_overlays
import numpy as np
import overlay_cases

ROOT = Path(__file__).parents[1]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of one kind of dict as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[cell(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    print(f"\n{title}")
    for line in [names, *cells]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


def cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, tuple):
        return " ".join(f"{side:.2f}" for side in value)
    return "" if value is None else str(value)


def overlays(given: argparse.Namespace) -> dict[str, Any]:
    """Run part overlays and print its tables; returns them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        film = folder / overlay_cases.STILLS
        if given.stills and not film.exists():
            overlay_cases.film_of(given.stills, film, given.seed)
        rows = filter_overlays.run(
            [folder] if given.stills else given.media,
            given.seed,
            given.half,
            given.per_kind,
            given.jobs,
            folder,
        )
        if given.sheet:
            given.sheet.mkdir(parents=True, exist_ok=True)
            draw(rows, given.sheet / "overlays.jpg")
    tables = filter_overlays.tables(rows)
    for name, table in tables.items():
        show(f"{name}, half {given.half}, over {filter_overlays.BOUNDS[name]}", table)
    wrong = filter_overlays.failures(rows)
    show("judged wrongly", wrong)
    return {**tables, "wrong": wrong}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A contact sheet of what was judged wrongly: the middle frame, and the box that was found."""
    wrong = {row["name"] + row["kind"] for row in filter_overlays.failures(rows)}
    pictures = []
    for row in rows:
        if row["name"] + row["kind"] not in wrong:
            continue
        with av.open(row["path"]) as container:
            container.seek(int(row["duration_s"] / 2 * av.time_base))
            picture = next(container.decode(video=0)).to_ndarray(format="bgr24")
        picture = cv2.resize(picture, (640, 360), interpolation=cv2.INTER_AREA)
        for box, ink in ((row["box"], (0, 0, 255)), (row["truth"], (0, 255, 0))):
            if box:
                x0, y0, x1, y1 = (round(s * n) for s, n in zip(box, (640, 360) * 2, strict=True))
                cv2.rectangle(picture, (x0, y0), (x1, y1), ink, 1)
        label = f"{row['kind']} {row['name']} {cell(row['watermark'])} {cell(row['text'])}"
        cv2.putText(picture, label, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1)
        pictures.append(picture)
    if pictures:
        pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % 3)
        sheet = [np.hstack(pictures[i : i + 3]) for i in range(0, len(pictures), 3)]
        cv2.imwrite(str(path), np.vstack(sheet))


def motion(given: argparse.Namespace) -> dict[str, Any]:
    """Run part motion and print its rows; returns them."""
    rows = importlib.import_module("filter_motions").run(given.media, given.seed)
    show("motion", rows)
    return {"motion": rows}


PARTS = {"overlays": overlays, "motion": motion}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--media", type=Path, action="append", help="folder of footage; may repeat")
    parser.add_argument("--part", choices=PARTS, help="one part; all without it")
    parser.add_argument("--half", choices=("tune", "report"), default="report")
    parser.add_argument("--stills", type=Path, help="folder of pictures: a film of them instead")
    parser.add_argument("--per-kind", type=int, default=8, help="videos of every kind of overlay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="videos worked on at once")
    parser.add_argument("--work", type=Path, help="keep the videos made here, and use them again")
    parser.add_argument("--sheet", type=Path, help="draw what was judged wrongly into this folder")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    if given.stills:
        given.half = "stills"
    given.media = given.media or [ROOT / "examples/media"]
    out: dict[str, Any] = {}
    for name in [given.part] if given.part else PARTS:
        out |= PARTS[name](given)
    if given.json:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
