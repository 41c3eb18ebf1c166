"""Media work in a process group of its own, that can be killed without harm to the run.

`MediaWorker` starts media_serving.py once as a process and sends it one video after another. A
video that takes too long, stalls, eats memory or crashes costs that group and nothing else; when
the parent dies, however it dies, the group ends itself.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import psutil

from curation.flow.confinement import environment, is_short, memory_share
from curation.pipelines import Media, Pipeline
from curation.places import Scratch, sweep_scratch
from curation.records import Beat, VideoResult, failed_row, with_attempts
from curation.sources import Source

POLL_S = 0.5
STOPPED_S = 10.0  # a longer time between two looks is no time that was waited
MAX_FILE_BYTES = 4 << 30  # that a media process may write, where nothing else is said
ROOT = Path(__file__).resolve().parents[2]
MODULE = "curation.flow.media_serving"
# A crash may have been the machine's fault; the same video twice is the video's. A second wait
# of the whole wall-clock limit would cost more than it could find.
RETRIED = {"crashed", "stalled", "memory", "no_memory"}


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
    """The media process died or was killed: crashed, timeout, stalled, memory or no_memory."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(error_class, message)
        self.error_class = error_class
        self.message = message


class MediaWorker:
    """A child process for media work, started when needed and renewed after N videos."""

    def __init__(self, limits: Media, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        """`max_file_bytes`: of the largest file that it may write."""
        self.limits, self.max_file_bytes = limits, max_file_bytes
        self.process: subprocess.Popen[bytes] | None = None
        self.num_done = 0
        self.is_over = False

    def start(self) -> None:
        sweep_scratch()
        self.scratch = Scratch()
        ours, theirs = Pipe(duplex=True)
        # The child reads the lifeline's end; it comes to an end exactly when we are gone.
        lifeline, self.lifeline = os.pipe()
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.errors = self.scratch.folder / "stderr.log"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", MODULE, str(theirs.fileno()), str(lifeline)),
                    *(str(int(self.limits.memory_gb * 1e9)), str(self.max_file_bytes)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=self.scratch.folder,
                env=environment(os.environ, PYTHONPATH=python_path, OMP_NUM_THREADS="1"),
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

    def run(self, job: Job, beat: Beat, timeout_s: float | None = None) -> Any:
        """A job's result. What it names, and what it is called with, must be importable there.

        `timeout_s` is the job's own limit; None: that of a video. Raises WorkerDiedError when it
        was killed or took its process along, RuntimeError when it raised.
        """
        if self.process is None or self.num_done >= self.limits.recycle_after:
            self.stop()
            self.start()
        try:
            if self.is_over:
                raise WorkerDiedError("crashed", "the run was stopped")
            self.connection.send(job)
            result = self.wait(beat, timeout_s or self.limits.timeout_s)
        except (EOFError, OSError) as error:
            raise WorkerDiedError("crashed", self.last_words()) from error
        except pickle.UnpicklingError as error:
            raise WorkerDiedError("crashed", f"unreadable answer: {error}") from error
        finally:
            if sys.exc_info()[0] is not None:
                self.stop()
        self.num_done += 1
        return result

    def wait(self, beat: Beat, timeout_s: float) -> Any:
        """The worker's answer, under the limits of time, progress and memory.

        Time in which this process was stopped (Ctrl-Z) does not count.
        """
        waited_s = silent_s = 0.0
        before_s = time.monotonic()
        while True:
            if self.connection.poll(POLL_S):
                kind, *content = self.connection.recv()
                if kind == "done":
                    return content[0]
                if kind == "error":
                    raise RuntimeError(f"the media worker failed:\n{content[0]}")
                silent_s = 0.0
                beat(*content)
            now_s = time.monotonic()
            passed_s, before_s = min(now_s - before_s, STOPPED_S), now_s
            waited_s, silent_s = waited_s + passed_s, silent_s + passed_s
            if waited_s > timeout_s:
                raise WorkerDiedError("timeout", f"not done after {timeout_s:g} s")
            if silent_s > self.limits.stall_s:
                raise WorkerDiedError("stalled", f"no progress for {self.limits.stall_s:g} s")
            self.check_memory()

    def check_memory(self) -> None:
        """All it may have while the machine has it, its CPUs' share where the machine is short."""
        used_gb, most_gb = self.resident_bytes() / 1e9, self.limits.memory_gb
        if used_gb > most_gb:
            raise WorkerDiedError("memory", f"{used_gb:.1f} GB used of {most_gb:g} GB allowed")
        share_gb = memory_share(self.limits.cpus) / 1e9
        if used_gb > share_gb and is_short():
            says = f"{used_gb:.1f} GB used, {share_gb:.1f} GB are its share of this machine's"
            raise WorkerDiedError("no_memory", f"{says}, which has none left")

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
        self.scratch.remove()

    def end(self) -> None:
        """Kill what runs in another thread, which then stops this; no job is done any more."""
        self.is_over = True
        process = self.process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def __enter__(self) -> MediaWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# One media process per Ray worker process, reused from task to task.
media_worker: MediaWorker | None = None


def media_worker_for(limits: Media, max_file_bytes: int = MAX_FILE_BYTES) -> MediaWorker:
    """This process's worker, started anew where it has other limits."""
    global media_worker
    wanted = (limits, max_file_bytes)
    if media_worker is None or (media_worker.limits, media_worker.max_file_bytes) != wanted:
        if media_worker is not None:
            media_worker.stop()
        media_worker = MediaWorker(*wanted)
    return media_worker


def fetch_job(source: Source, pipeline: Pipeline, room: Path) -> Job:
    """The fetching of one video into `room`; its result is that of fetch_video."""
    return Job("curation.videos:fetch_video", (source, pipeline, room))


def fetch_isolated(
    worker: MediaWorker, source: Source, pipeline: Pipeline, room: Path, beat: Beat
) -> tuple[Source | VideoResult, float]:
    """The fetching of one video through the worker, as curate_isolated does the whole."""
    result, attempts = attempt(worker, fetch_job(source, pipeline, room), beat)
    if isinstance(result, WorkerDiedError | RuntimeError):
        return died(source, pipeline, result, attempts), 0.0
    return result


def curate_isolated(
    worker: MediaWorker, source: Source, pipeline: Pipeline, beat: Beat
) -> VideoResult:
    """One video through the worker: retried once if it killed its process, then failed.

    Always returns a result: a mistake of our own becomes a failed video of class internal.
    """
    result, attempts = attempt(worker, curate_job(source, pipeline), beat)
    if isinstance(result, WorkerDiedError | RuntimeError):
        return died(source, pipeline, result, attempts)
    return with_attempts(result, attempts)


def died(
    source: Source, pipeline: Pipeline, error: WorkerDiedError | RuntimeError, attempts: int
) -> VideoResult:
    """The result of a video that took its process along, or met a mistake of our own."""
    error_class, message = "internal", str(error)
    if isinstance(error, WorkerDiedError):
        replay = f"replay: vf-curate {source.url!r} --pipeline {pipeline.name} --output replay"
        error_class, message = error.error_class, f"{error.message}; {replay}"
    return VideoResult([failed_row(source, error_class, message, attempts=attempts)])


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
            if death.error_class not in RETRIED or attempts > 1 or worker.is_over:
                return death, attempts
        except RuntimeError as error:
            return error, attempts
