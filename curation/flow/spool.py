"""Videos of elsewhere, fetched ahead of their decoding: a bounded spool on each machine.

A task fetches first and decodes then, and both are slow: there are more tasks at once than a
machine can decode, and each that has its file waits here for one of the machine's turns.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from curation.pipelines import Pipeline
from curation.places import SCRATCH_PREFIX
from curation.sources import Source

POLL_S = 0.05  # ours: of a decode of seconds it is nothing
TURN_PREFIX = f"{SCRATCH_PREFIX}turn-"


def is_spooled(sources: Iterable[Source], pipeline: Pipeline) -> bool:
    """Whether a run fetches ahead: it has something to fetch, and may."""
    return pipeline.download.ahead > 0 and any(source.path is None for source in sources)


def cpus_per_task(pipeline: Pipeline, spooled: bool) -> float:
    """What Ray is told that a video takes: a share of what decoding it takes, where it may wait.

    Above one CPU Ray counts whole ones.
    """
    cpus = pipeline.media.cpus
    if not spooled:
        return cpus
    share = cpus / (1 + pipeline.download.ahead)
    return share if share < 1 else float(int(share))


class Turns(NamedTuple):
    """`number` of them are shared by all processes of this machine that give the same `name`."""

    number: int
    name: str


@contextmanager
def turn(number: int, name: str) -> Iterator[None]:
    """Hold one of `Turns`; wait for it.

    A turn is a lock on a file, which the system takes back from a process that dies.
    """
    sweep_turns()
    paths = [Path(tempfile.gettempdir()) / f"{TURN_PREFIX}{name}-{n}" for n in range(number)]
    while (held := next(filter(None, map(locked, paths)), None)) is None:
        time.sleep(POLL_S)
    file, path = held
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: nobody locks what is gone
        os.close(file)


def sweep_turns() -> None:
    """Remove the files of turns that nobody holds: a SIGKILL leaves them."""
    for path in Path(tempfile.gettempdir()).glob(f"{TURN_PREFIX}*"):
        with suppress(PermissionError):  # another user's
            if left := locked(path):
                path.unlink(missing_ok=True)
                os.close(left[0])


def locked(path: Path) -> tuple[int, Path] | None:
    """A file that is made and locked; None where another process holds it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), path.lstat()):  # else its holder took it away
            return file, path
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(file)
    return None
