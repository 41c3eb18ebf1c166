"""Media work in a process group of its own, that can be killed without harm to the run.

`MediaWorker` starts this module once as a process and sends it one video after another. A video
that takes too long, stalls, eats memory or crashes costs that group and nothing else; when the
parent dies, however it dies, the group ends itself. What decodes is named and imported there alone,
so a Ray process starts without any video library.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from curation.pipelines import Media, Pipeline
from curation.records import Beat, VideoResult, failed_row, with_attempts
from curation.sources import Source

POLL_S = 0.5
SCRATCH_PREFIX = "videofactory-"
ROOT = Path(__file__).resolve().parents[2]
MODULE = "curation.flow.media_processes"  # by name: __name__ is another in the child
# A crash may have been the machine's fault; the same video twice is the video's. A second wait
# of the whole wall-clock limit would cost more than it could find.
RETRIED = {"crashed", "stalled", "memory"}


@dataclass(frozen=True)
class Job:
    """What a worker runs: a function by its name, and what it is called with.

    Behind the arguments it gets a scratch folder and a Beat; it returns something that pickles.
    """

    function: str  # package.module:function
    arguments: tuple[Any, ...] = ()

    def __call__(self, folder: Path, beat: Beat) -> Any:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)(*self.arguments, folder, beat)


def curate_job(source: Source, pipeline: Pipeline) -> Job:
    """One video through every stage that touches media; its result is a VideoResult."""
    return Job("curation.videos:curate_video", (source, pipeline))


class WorkerDiedError(Exception):
    """The media process died or was killed; class crashed, timeout, stalled or memory."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(error_class, message)
        self.error_class = error_class
        self.message = message


class MediaWorker:
    """A child process for media work, started when needed and renewed after N videos."""

    def __init__(self, limits: Media) -> None:
        self.limits = limits
        self.process: subprocess.Popen[bytes] | None = None
        self.num_done = 0

    def start(self) -> None:
        sweep_scratch()
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-"))
        ours, theirs = Pipe(duplex=True)
        # The child reads the lifeline's end; it comes to an end exactly when we are gone.
        lifeline, self.lifeline = os.pipe()
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.errors = self.scratch / "stderr.log"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    MODULE,
                    str(theirs.fileno()),
                    str(lifeline),
                ],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=self.scratch,
                env=os.environ | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
                pass_fds=(theirs.fileno(), lifeline),
                start_new_session=True,
            )
        theirs.close()
        os.close(lifeline)
        self.connection = ours
        self.num_done = 0

    def curate(self, source: Source, pipeline: Pipeline, beat: Beat) -> VideoResult:
        """Run one video; WorkerDiedError when it was killed or took its process along."""
        return self.run(curate_job(source, pipeline), beat)

    def run(self, job: Job, beat: Beat) -> Any:
        """A job's result. What it names, and what it is called with, must be importable there.

        Raises WorkerDiedError when it was killed or took its process along, RuntimeError when it
        raised.
        """
        if self.process is None or self.num_done >= self.limits.recycle_after:
            self.stop()
            self.start()
        try:
            self.connection.send(job)
            result = self.wait(beat)
        except (EOFError, OSError) as error:
            raise WorkerDiedError("crashed", self.last_words()) from error
        except pickle.UnpicklingError as error:
            raise WorkerDiedError("crashed", f"unreadable answer: {error}") from error
        finally:
            if sys.exc_info()[0] is not None:
                self.stop()
        self.num_done += 1
        return result

    def wait(self, beat: Beat) -> Any:
        """The worker's answer, under the limits of time, progress and memory."""
        started = last_beat = time.monotonic()
        while True:
            if self.connection.poll(POLL_S):
                kind, *content = self.connection.recv()
                if kind == "done":
                    return content[0]
                if kind == "error":
                    raise RuntimeError(f"the media worker failed:\n{content[0]}")
                last_beat = time.monotonic()
                beat(*content)
            now = time.monotonic()
            if now - started > self.limits.timeout_s:
                raise WorkerDiedError("timeout", f"not done after {self.limits.timeout_s:g} s")
            if now - last_beat > self.limits.stall_s:
                raise WorkerDiedError("stalled", f"no progress for {self.limits.stall_s:g} s")
            used_gb = self.resident_bytes() / 1e9
            if used_gb > self.limits.memory_gb:
                raise WorkerDiedError(
                    "memory", f"{used_gb:.1f} GB used of {self.limits.memory_gb:g} GB allowed"
                )

    def resident_bytes(self) -> int:
        assert self.process is not None
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            child = psutil.Process(self.process.pid)
            for process in [child, *child.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
        return total

    def last_words(self) -> str:
        """How the dead worker ended: signal or exit code, and the end of its error output."""
        assert self.process is not None
        code = self.process.wait(timeout=30)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        said = self.errors.read_text(errors="replace").strip()[-300:]
        return f"the media process was {how}" + (f": {said}" if said else "")

    def stop(self) -> None:
        """Kill the worker's process group, reap it and remove its scratch folder."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        self.connection.close()
        os.close(self.lifeline)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __enter__(self) -> MediaWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def sweep_scratch() -> None:
    """Remove scratch folders of processes that no longer live (a SIGKILL leaves them)."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*-*"):
        owner = folder.name.removeprefix(SCRATCH_PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def curate_isolated(
    worker: MediaWorker, source: Source, pipeline: Pipeline, beat: Beat
) -> VideoResult:
    """One video through the worker: retried once if it killed its process, then failed.

    Always returns a result: a mistake of our own becomes a failed video of class internal.
    """
    result, attempts = attempt(worker, curate_job(source, pipeline), beat)
    if isinstance(result, WorkerDiedError):
        replay = f"replay: vf-curate {source.url!r} --pipeline {pipeline.name} --output replay"
        message = f"{result.message}; {replay}"
        return VideoResult([failed_row(source, result.error_class, message, attempts=attempts)])
    if isinstance(result, RuntimeError):
        return VideoResult([failed_row(source, "internal", str(result), attempts=attempts)])
    return with_attempts(result, attempts)


def attempt(worker: MediaWorker, job: Job, beat: Beat) -> tuple[Any, int]:
    """A job's result, or the error that ended it, and how often it was tried.

    It is tried again if it killed its process once.
    """
    attempts = 0
    while True:
        attempts += 1
        try:
            return worker.run(job, beat), attempts
        except WorkerDiedError as death:
            if death.error_class not in RETRIED or attempts > 1:
                return death, attempts
        except RuntimeError as error:
            return error, attempts


# -- the child's side


def main() -> None:
    """Serve jobs until the parent closes the connection. Arguments: two file descriptors."""
    import av
    import cv2

    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=end_with_parent, args=(lifeline,), daemon=True).start()
    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)  # a video has the CPUs that Ray gave it
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
