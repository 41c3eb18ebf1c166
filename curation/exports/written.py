"""The body of `vf-export-clips` behind its checked plan: clip by clip, resumable, marked when done.

Rows are done in order, in parts: the files of a part first, then a note that it is done. A run that
is killed leaves the part it was at to the next one, which writes the same files again.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from curation.commands import code_version
from curation.exports.asked import BEGUN, DONE, WORK, Plan
from curation.exports.cards import card
from curation.exports.fits import TAKEN_DOWN, caption_of, fit
from curation.exports.layouts import Exported, Files
from curation.exports.media import made
from curation.exports.parts import Outcome, Part, read_parts, write_part
from curation.exports.rows import Names, rows_from
from curation.media.files import MediaError
from curation.places import Scratch, held, sweep_scratch
from curation.records import TRIED_AGAIN
from curation.settings import RunError
from curation.shards import Dataset
from curation.shards.folders import AtomicFile

PART_ROWS = 64  # what is done again at most when a run is killed
CARD = "README.md"
# What a run that was killed was writing.
UNFINISHED = re.compile(r"\.tmp-[0-9a-f]{32}-.+")
# Of a tar: a header before each file, files in whole blocks, and the end (POSIX ustar).
BLOCK_BYTES, END_BYTES = 512, 10240

Told = Callable[[int, int], None]  # rows done, of how many


def foresee(plan: Plan) -> Part:
    """What an export would hold, told from rows alone; how clips would be made is not known."""
    part = Part(0)
    for number, row in rows_from(plan.dataset, 0, media=False):
        found = judged(plan, number, row)
        part.add(found if isinstance(found, Outcome) else foreseen(found))
    return replace(part, made={}, num_bytes=0, lines={})


def foreseen(clip: Exported) -> Outcome:
    trimmed = clip.num_frames < clip.row["num_frames"]
    return Outcome(
        clip.number,
        files=Files(""),
        num_frames=clip.num_frames,
        duration_s=clip.duration_s,
        is_trimmed=trimmed,
        is_captioned=bool(clip.caption),
    )


def judged(plan: Plan, number: int, row: dict[str, Any], name: str = "") -> Exported | Outcome:
    """What of a row is exported, but for its media, or why it is left out."""
    if plan.taken_down and plan.taken_down.of_row({"copy_of": None, "uploader": None} | row):
        return Outcome(number, dropped=TAKEN_DOWN)
    caption = caption_of(row, plan.caption_column)
    found = fit(row, caption, plan.demands)
    if isinstance(found, str):
        return Outcome(number, dropped=found)
    fps = float(plan.demands.fps or row["fps"])
    size = found.num_frames, found.width, found.height
    return Exported(name, number, caption, row, *size, found.num_frames / fps, 0, plan.root)


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
            write = tars if plan.layout.in_tars else stretches
            for part in write(plan, outcomes, sums):
                write_part(out, parts, part)
                parts += 1
                sums.take(part)
                told(sums.end, names.total)
        if not sums.num_clips:
            why = ", ".join(f"{why}: {number}" for why, number in sums.dropped.items())
            raise RunError(f"none of {sums.end} clips is left to export ({why or 'no clips'})")
        finish(plan, out, sums)
    return sums


@contextmanager
def only_exporter(out: Dataset) -> Iterator[None]:
    """Hold a local folder for one export; the lock is gone with its folder when that is done."""
    if not out.is_local:
        yield
        return
    with held(Path(out.path(WORK)), f"another export is writing to {out.uri}"):
        yield


def sweep(out: Dataset) -> None:
    """Delete what a killed run was writing, by names that only we give."""
    if not out.is_local:  # an object is there whole or not
        return
    selector = pafs.FileSelector(out.root, recursive=True)
    for info in out.filesystem.get_file_info(selector):
        if UNFINISHED.fullmatch(info.base_name):
            out.filesystem.delete_file(info.path)


# -- clips


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder of this run; one that a killed run leaves is swept by the next of our commands."""
    scratch = Scratch()
    try:
        yield str(scratch.folder)
    finally:
        scratch.remove()


def in_order(
    rows: Iterator[tuple[int, dict[str, Any]]],
    make: Callable[[int, dict[str, Any]], Outcome],
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[Outcome]:
    """What becomes of every row, in order; `ahead` rows are worked on at once."""
    waiting: deque[Future[Outcome]] = deque()
    try:
        for number, row in rows:
            waiting.append(pool.submit(make, number, row))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@dataclass(frozen=True)
class Work:
    """What clips are made with."""

    plan: Plan
    names: Names
    scratch: str
    folders: set[str] = field(default_factory=set)  # of the export that are there

    def put(self, path: str, content: bytes) -> None:
        """Write a file of the export; a folder is made once, not with every file of it."""
        assert self.plan.out is not None
        out, folder = self.plan.out, path.rpartition("/")[0]
        if folder not in self.folders:
            out.filesystem.create_dir(out.path(folder).rstrip("/"), recursive=True)
            self.folders.add(folder)
        with AtomicFile(out, out.path(path)) as sink:
            sink.write(content)


def outcome_of(work: Work, number: int, row: dict[str, Any]) -> Outcome:
    """Make one clip, and write its files where they are not for a tar. Raises RunError."""
    plan = work.plan
    data = (row.pop("clip") or {}).get("bytes") or b""
    clip = judged(plan, number, row, work.names.of(row["clip_id"]))
    if isinstance(clip, Outcome):
        return clip
    wanted = fit(row, clip.caption, plan.demands)
    assert not isinstance(wanted, str)
    try:
        media = made(data, wanted, plan.demands, work.scratch)
    except MediaError as error:
        if error.error_class in TRIED_AGAIN:  # of the machine, not of the clip
            raise RunError(error.message) from error
        raise RunError(
            f"clip {row['clip_id']} cannot be exported: {error}; look into it: "
            f"vf-validate {plan.dataset.uri}"
        ) from error
    clip = replace(
        clip,
        width=media.width,
        height=media.height,
        duration_s=media.duration_s,
        num_bytes=len(media.data),
    )
    files = plan.layout.files(clip)
    if not plan.layout.in_tars:
        for path, content in {files.video: media.data, **files.beside}.items():
            work.put(path, content)
    return Outcome(
        number,
        files=files,
        made=media.made,
        data=media.data if plan.layout.in_tars else b"",
        num_frames=clip.num_frames,
        duration_s=clip.duration_s,
        num_bytes=clip.num_bytes,
        is_trimmed=clip.num_frames < row["num_frames"],
        is_captioned=bool(clip.caption),
    )


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


class List:
    """A list file that is being written: lines, one below the other; in a .json, items of a list."""

    def __init__(self, out: Dataset, path: str) -> None:
        self.file = out.replacing(path)
        self.is_array = path.endswith(".json")
        self.is_empty = True

    def __enter__(self) -> List:
        self.sink = self.file.__enter__()
        self.sink.write(b"[\n" if self.is_array else b"")
        return self

    def __exit__(self, error_type: type | None, *rest: object) -> None:
        self.sink.write(b"\n]\n" if self.is_array else b"")
        self.file.__exit__(error_type, *rest)

    def add(self, lines: list[str]) -> None:
        """Write the next lines."""
        for line in lines:
            before = ",\n" if self.is_array and not self.is_empty else ""
            self.sink.write(f"{before}{line}{'' if self.is_array else chr(10)}".encode())
            self.is_empty = False


def tidy(out: Dataset) -> None:
    """Delete what only an unfinished export needs."""
    if out.exists(WORK):
        out.filesystem.delete_dir(out.path(WORK))
