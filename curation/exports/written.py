"""The body of `vf-export-clips` behind its checked plan: clip by clip, resumable, marked when done.

Rows are done in order, in parts: the files of a part first, then a note that it is done. A run that
is killed leaves the part it was at to the next one, which writes the same files again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from curation.commands import code_version
from curation.exports.asked import BEGUN, DONE, WORK, Plan
from curation.exports.cards import card
from curation.exports.clips import Work, in_order, outcome_of
from curation.exports.lists import List
from curation.exports.parts import Outcome, Part, read_parts, write_part
from curation.exports.rows import Names, rows_from
from curation.places import Scratch, held, sweep_scratch
from curation.settings import RunError
from curation.shards import Dataset

PART_ROWS = 64  # what is done again at most when a run is killed
CARD = "README.md"
# What a run that was killed was writing.
UNFINISHED = re.compile(r"\.tmp-[0-9a-f]{32}-.+")
# Of a tar: a header before each file, files in whole blocks, and the end (POSIX ustar).
BLOCK_BYTES, END_BYTES = 512, 10240

Told = Callable[[int, int], None]  # rows done, of how many


def export(plan: Plan, num_workers: int, told: Told) -> Part:
    """Write the export; returns the sums of its parts. Raises RunError."""
    assert plan.out is not None
    out = plan.out
    with only_exporter(out):
        sums = Part(0)
        parts = 0
        if out.exists(WORK, BEGUN):
            for part in read_parts(out):
                sums.take(part)
                parts += 1
            sweep(out)
        else:
            out.write_bytes(json.dumps(plan.begun).encode(), WORK, BEGUN)
        names = Names(plan.dataset)
        told(sums.end, names.total)
        sweep_scratch()
        with scratch_folder() as scratch, ThreadPoolExecutor(num_workers) as pool:
            make = partial(outcome_of, Work(plan, names, scratch))
            outcomes = in_order(rows_from(plan.dataset, sums.end), make, pool, 2 * num_workers)
            outcomes = watched(outcomes, told, names.total)
            write = tars if plan.layout.in_tars else stretches
            for part in write(plan, outcomes, sums):
                write_part(out, parts, part)
                parts += 1
                sums.take(part)
        if not sums.num_clips:
            why = ", ".join(f"{why}: {number}" for why, number in sums.dropped.items())
            raise RunError(f"none of {sums.end} clips is left to export ({why or 'no clips'})")
        finish(plan, out, sums)
    return sums


def watched(outcomes: Iterator[Outcome], told: Told, total: int) -> Iterator[Outcome]:
    """The same outcomes, each told of: a part of them may take minutes."""
    for outcome in outcomes:
        told(outcome.number + 1, total)
        yield outcome


@contextmanager
def only_exporter(out: Dataset) -> Iterator[None]:
    """Hold a local folder for one export; the lock is gone with its folder when that is done."""
    if not out.is_local:
        yield
        return
    with held(Path(out.path(WORK)), f"another export is writing to {out.uri}"):
        yield


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder of this run; one that a killed run leaves is swept by the next of our commands."""
    scratch = Scratch()
    try:
        yield str(scratch.folder)
    finally:
        scratch.remove()


def sweep(out: Dataset) -> None:
    """Delete what a killed run was writing, by names that only we give."""
    if not out.is_local:  # an object is there whole or not
        return
    selector = pafs.FileSelector(out.root, recursive=True)
    for info in out.filesystem.get_file_info(selector):
        if UNFINISHED.fullmatch(info.base_name):
            out.filesystem.delete_file(info.path)


# -- parts


def stretches(plan: Plan, outcomes: Iterator[Outcome], sums: Part) -> Iterator[Part]:
    """A part for every PART_ROWS rows, whose files are there."""
    part = Part(sums.end)
    for outcome in outcomes:
        part.add(outcome)
        if part.end % PART_ROWS == 0:
            yield part
            part = Part(part.end)
    if part.num_clips or part.dropped:
        yield part


def tars(plan: Plan, outcomes: Iterator[Outcome], sums: Part) -> Iterator[Part]:
    """A part for every tar; one is at most as large as asked, but for a single clip that is not."""
    assert plan.out is not None
    number = sums.num_tars
    outcome = next(outcomes, None)
    while outcome is not None:
        part = Part(outcome.number)
        while outcome is not None and outcome.files is None:
            part.add(outcome)
            outcome = next(outcomes, None)
        if outcome is not None:
            with plan.out.replacing(f"clips-{number:06d}.tar") as sink:
                outcome = fill(sink, outcome, outcomes, part, plan.shard_bytes)
            part.num_tars = 1
            number += 1
        yield part


def fill(
    sink: Any, outcome: Outcome | None, outcomes: Iterator[Outcome], part: Part, most: int
) -> Outcome | None:
    """Write clips into a tar until it is full; returns the first one that is not in it."""
    from webdataset import TarWriter

    size = END_BYTES
    # The time is fixed, so that the same clips are the same bytes.
    with TarWriter(sink, encoder=False, mtime=0, compress=False) as tar:
        while outcome is not None:
            if outcome.files is not None:
                contents = {outcome.files.video: outcome.data, **outcome.files.beside}
                size += sum(
                    BLOCK_BYTES * (1 + -(-len(c) // BLOCK_BYTES)) for c in contents.values()
                )
                if part.num_clips and size > most:
                    return outcome
                key = outcome.files.video.rsplit(".", 1)[0]
                named = {path.rsplit(".", 1)[1]: content for path, content in contents.items()}
                tar.write({"__key__": key, **named})
            part.add(outcome)
            outcome = next(outcomes, None)
    return None


# -- the end


def finish(plan: Plan, out: Dataset, sums: Part) -> None:
    """Write the lists from their parts, the card, and at last the mark that all is there."""
    with ExitStack() as stack:
        lists: dict[str, List] = {}
        for part in read_parts(out):
            for path, lines in part.lines.items():
                if path not in lists:
                    lists[path] = stack.enter_context(List(out, path))
                lists[path].add(lines)
    record = plan.begun | {"clips": sums.counts(), "code": code_version()}
    if plan.layout.card_files:
        out.write_bytes(card(plan, record["clips"]).encode(), CARD)
    out.write_bytes(json.dumps(record, indent=1).encode(), DONE)
    tidy(out)


def tidy(out: Dataset) -> None:
    """Delete what only an unfinished export needs."""
    if out.exists(WORK):
        out.filesystem.delete_dir(out.path(WORK))
