"""The media process itself: does one job after another, and ends with the process that started it.

What decodes is named and imported here alone, so a Ray process starts without any video library.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.flow.confinement import limit
from curation.records import Beat

if TYPE_CHECKING:
    from curation.flow.media_processes import Job


def main() -> None:
    """Serve jobs until the parent closes the connection.

    Arguments: two file descriptors, then bytes of memory and of the largest file.
    """
    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=end_with_parent, args=(lifeline,), daemon=True).start()
    limit(int(sys.argv[3]), int(sys.argv[4]))
    import av
    import cv2

    importlib.import_module("curation.videos")  # before there is work: it takes a second
    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)  # a video has the CPUs that a run gave it
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(serve(job, beats_to(connection)))


def serve(job: Job, beat: Beat) -> tuple[str, Any]:
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    try:
        return "done", job(folder, beat)
    except Exception:  # told to the parent, which puts it in the ledger
        return "error", traceback.format_exc()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def beats_to(connection: Connection) -> Beat:
    return lambda stage, at_s: connection.send(("beat", stage, at_s))


def end_with_parent(lifeline: int) -> None:
    """Block until the parent is gone, then end this whole process group, ffmpeg included."""
    os.read(lifeline, 1)
    shutil.rmtree(Path.cwd(), ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
