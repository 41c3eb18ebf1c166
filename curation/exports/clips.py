"""A row of a dataset -> what becomes of it in an export: its files, or why there are none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from curation.exports.asked import Plan
from curation.exports.fits import TAKEN_DOWN, caption_of, fit
from curation.exports.layouts import Exported, Files
from curation.exports.media import made
from curation.exports.parts import Outcome, Part
from curation.exports.rows import Names, rows_from
from curation.media.files import MediaError
from curation.records import TRIED_AGAIN
from curation.settings import RunError
from curation.shards.folders import AtomicFile


def foresee(plan: Plan) -> Part:
    """What an export would hold, told from rows alone; how clips would be made is not known."""
    part = Part(0)
    for number, row in rows_from(plan.dataset, 0, media=False):
        found = judged(plan, number, row)
        part.add(found if isinstance(found, Outcome) else foreseen(found))
    return replace(part, made={}, num_bytes=0, lines={})


def foreseen(clip: Exported) -> Outcome:
    return Outcome(
        clip.number,
        files=Files(""),
        num_frames=clip.num_frames,
        duration_s=clip.duration_s,
        is_trimmed=clip.is_trimmed,
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
    duration_s = found.num_frames / fps
    return Exported(
        *(name, number, caption, row, *size, duration_s), 0, found.is_trimmed, plan.root
    )


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
        is_trimmed=clip.is_trimmed,
        is_captioned=bool(clip.caption),
    )
