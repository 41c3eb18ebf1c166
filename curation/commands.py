"""What all commands share: the terminal, errors, the place of the output, the start of Ray.

Loads neither Ray nor a video library when it is imported; the trainer's commands use it too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from curation.settings import ConfigError, RunError
from curation.shards import Dataset, DatasetError

USAGE, FAILED_RUN = 2, 1  # exit codes
GOES_ON = "what is committed stays, and the same command goes on from there"
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the process that a job runs
# What has to be free where Ray keeps its logs and sockets. Ours: a session with one task leaves
# 0.2 MB (measured); the logs of a run and a download while it is cut come on top.
MIN_TEMP_BYTES = 64 << 20
# Of a Unix socket's path, without the closing zero: sun_path in unix(7).
MAX_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107


# -- the terminal


def screen() -> Console:
    """Standard output; tables in a log are not squeezed into 80 columns."""
    return Console(soft_wrap=not sys.stdout.isatty())


UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(text: str, style: str = "") -> Text:
    """Text as it is: no markup or emoji code in it is read, what would steer a terminal is shown.

    >>> plain("My talk [dQw4w9WgXcQ].mp4\x1b[2J").plain
    'My talk [dQw4w9WgXcQ].mp4\\x1b[2J'
    """
    return Text(UNSHOWN.sub(lambda found: repr(found[0])[1:-1], text), style)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line that may hold users' text: whole, as it is, and broken by the terminal alone."""
    console.print(plain(text, style), soft_wrap=True)


@contextmanager
def without_stdin() -> Iterator[None]:
    """Inside, standard input is empty for this process and for all that it starts.

    ffmpeg sets the terminal's attributes when its standard input is one. A process that does so
    outside the terminal's foreground group, as Ray's workers are, is stopped by the kernel
    (SIGTTOU) and waits for ever. Importing scenedetect runs ffmpeg.
    """
    before = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Inside, Ctrl-C and SIGTERM raise KeyboardInterrupt, and set an event that is to be looked at.

    Raised while Ray calls back into Python, the interrupt is lost there: a run went on to its end.
    """
    stop = threading.Event()

    def interrupt(number: int, frame: Any) -> None:
        stop.set()
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- errors

Kinds = tuple[type[BaseException], ...]


@contextmanager
def told_errors(
    goes_on: str = "", *, mistakes: Kinds = (), failures: Kinds = (), stops: Kinds = ()
) -> Iterator[None]:
    """Tell an error in one line and exit: 2 for a user's mistake, 1 for a run that failed.

    A mistake is a ConfigError, a DatasetError or one of `mistakes`; a failure a RunError, an error
    of Ray or of the operating system, or one of `failures`; a stop is Ctrl-C or one of `stops`.
    `goes_on` says what stays after a failure or a stop and how to go on. A Ray that was started
    inside is left. Everything else is a fault of ours and keeps its traceback.
    """
    ours = not ray_runs()
    mistakes = (ConfigError, DatasetError, *mistakes)
    stops = (KeyboardInterrupt, *stops)
    try:
        yield
    except mistakes as error:
        end(USAGE, f"error: {one_line(error)}")
    except stops as error:
        end(FAILED_RUN, "; ".join(filter(None, [one_line(error) or "stopped", goes_on])))
    except BaseException as error:
        if not isinstance(error, (RunError, OSError, *ray_errors(), *failures)):
            raise
        end(FAILED_RUN, f"the run failed: {one_line(error)}", goes_on)
    finally:
        if ours and ray_runs():
            sys.modules["ray"].shutdown()


def end(code: int, *lines: str) -> NoReturn:
    errors = Console(stderr=True)
    for line in filter(None, lines):
        say(errors, line, "red")
    raise SystemExit(code) from None


def one_line(error: BaseException) -> str:
    """What an error says. Of one in a task of Ray that we foresee, without the task's traceback."""
    cause = getattr(error, "cause", None)
    foreseen = isinstance(cause, ConfigError | DatasetError | RunError | OSError)
    text = str(cause if foreseen else error)
    return text if is_task_error(error) and not foreseen else " ".join(text.splitlines())


def is_task_error(error: BaseException) -> bool:
    return "ray" in sys.modules and isinstance(error, sys.modules["ray"].exceptions.RayTaskError)


def ray_errors() -> Kinds:
    """Ray's errors; none where Ray is not loaded, which costs a second."""
    return (sys.modules["ray"].exceptions.RayError,) if "ray" in sys.modules else ()


def ray_runs() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


# -- the place of the output


def in_packaged_job() -> bool:
    """Whether this is a Ray job whose folder is a copy that Ray deletes when the job ends."""
    config = json.loads(os.environ.get(RAY_JOB, "{}"))
    return bool((config.get("runtime_env") or {}).get("working_dir"))


def check_lasting(output: str) -> None:
    """Raise ConfigError for a relative output in a folder that Ray deletes."""
    if in_packaged_job() and "://" not in output and not Path(output).is_absolute():
        raise ConfigError(
            f"--output {output} is relative, and this Ray job runs in a copy of the working "
            "directory that Ray deletes; give an absolute path or a URI such as s3://bucket/folder"
        )


def default_output(name: str) -> str:
    """Where runs/NAME is when the user names no output.

    In a job with a packaged working directory it is in VIDEOFACTORY_HOME, or else ~/videofactory,
    of the machine that runs this process.
    """
    if not in_packaged_job():
        return f"runs/{name}"
    home = os.environ.get("VIDEOFACTORY_HOME") or Path.home() / "videofactory"
    return str(Path(home) / "runs" / name)


def dataset_at(location: str) -> Dataset:
    """The folder or URI, whether there is a dataset or not; ConfigError for a URI of no kind."""
    try:
        return Dataset.at(location)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(
            f"{location}: {error}; give a folder or a URI such as s3://bucket/folder"
        ) from None


def open_dataset(location: str) -> Dataset:
    """A dataset to read, its manifests checked; ConfigError or DatasetError."""
    dataset = dataset_at(location)
    if not commits_of(dataset):
        dataset.require()
    return dataset


def open_output(output: str) -> tuple[Dataset, list[dict[str, Any]]]:
    """A dataset to write, and the manifests of what it holds; nothing is made or changed.

    Raises ConfigError or DatasetError for what is no folder, cannot be written to, would be lost,
    or holds manifests of something else.
    """
    check_lasting(output)
    dataset = dataset_at(output)
    check_writable(dataset)
    commits = commits_of(dataset)
    dataset.check_ours()
    return dataset, commits


def commits_of(dataset: Dataset) -> list[dict[str, Any]]:
    """The manifests of every commit; DatasetError where they cannot be read or a file is none."""
    try:
        return dataset.commits()
    except OSError as error:
        raise DatasetError(f"{dataset.uri} cannot be read: {error}") from None


def check_writable(dataset: Dataset) -> None:
    """Raise ConfigError where a local folder cannot be made or written to; makes nothing."""
    if not dataset.is_local:
        return
    root = Path(dataset.root)
    check_folder(root, dataset.uri)
    for part in ("shards", "ledger", "manifest", "scores"):
        if os.path.lexists(root / part):
            check_folder(root / part, f"{dataset.uri}/{part}")


def check_folder(folder: Path, given: str) -> None:
    """Raise ConfigError unless files can be made in a folder or, without it, where it would be.

    `given` is what the user gave for it.
    """
    try:
        there = nearest_above(folder)
        if not there.is_dir():
            says = "is a file" if there.exists() else "is a link to nothing"
            where = f"{given} {says}" if there == folder else f"{given}: {there} {says}"
            raise ConfigError(f"{where}; give a folder")
        with tempfile.TemporaryFile(dir=there) as file:  # has no name where that can be had
            file.write(bytes(4096))
    except OSError as error:
        raise ConfigError(
            f"{given} cannot be written to: {error.strerror}; give a folder that can"
        ) from None


def nearest_above(path: Path) -> Path:
    """The path itself or the first one above it that is there, if only as a link."""
    for each in (path, *path.parents):
        try:
            each.lstat()
            return each
        except (FileNotFoundError, NotADirectoryError):
            continue
    return path


@contextmanager
def only_writer(dataset: Dataset) -> Iterator[None]:
    """Hold a local dataset folder for one run; ConfigError when another run has it."""
    if not dataset.is_local:
        yield
        return
    with held(Path(dataset.root), f"another run is writing to {dataset.uri}"):
        yield


@contextmanager
def held(folder: Path, taken: str) -> Iterator[None]:
    """Hold a local folder, made if need be; ConfigError that begins with `taken` if it is held."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / ".lock").is_symlink():  # it would hold, or make, a file somewhere else
            raise ConfigError(f"{folder / '.lock'} is a link; remove it")
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{taken}; wait for it or stop it") from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be locked: {error}") from None
    try:
        yield
    finally:
        lock.release()


def code_version() -> str:
    """The package's version and a hash of the curation code itself."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    with contextlib.suppress(metadata.PackageNotFoundError):
        return f"{metadata.version('videofactory')}+{digest.hexdigest()[:10]}"
    return f"uninstalled+{digest.hexdigest()[:10]}"


# -- Ray


def start_ray(address: str | None, num_cpus: int | None = None) -> None:
    """Join the cluster at `address` or at RAY_ADDRESS (set inside a Ray job), or start one here.

    A cluster that happens to run on this machine is not joined unasked. `num_cpus` is of one
    that is started here, all of the machine's by default. Raises ConfigError when there is no
    cluster at the address or no place for one here.
    """
    check_temp(address)
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        # A local Ray is for this process alone. Without this, Ray 2.60 leaves a token file in
        # the home folder that makes a later `ray start` and `ray job submit` disagree.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # When this process is killed, a worker that was just starting looks for its head this
        # long before it gives up; 60 s otherwise.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        options |= {"include_dashboard": False, "num_cpus": num_cpus}
    try:
        with without_stdin():
            ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {error}") from None


def check_temp(address: str | None) -> None:
    """Raise ConfigError where a Ray that is started here has no place for its logs and sockets."""
    if (address or os.environ.get("RAY_ADDRESS") or "local") != "local":
        return
    name = next((each for each in ("RAY_TMPDIR", "TMPDIR") if each in os.environ), "TMPDIR")
    folder = Path(os.environ.get(name, "/tmp"))
    otherwise = f"give another folder, such as {name}=/tmp"
    check_folder(folder.absolute(), f"{name}={folder}")
    free = shutil.disk_usage(nearest_above(folder.absolute())).free
    if free < MIN_TEMP_BYTES:
        raise ConfigError(
            f"{name}={folder} has {free >> 20} MB free, and Ray and downloads need at least "
            f"{MIN_TEMP_BYTES >> 20} MB there; {otherwise}"
        )
    # As Ray names its session and the longer of its two sockets.
    session = f"session_2026-01-01_00-00-00_000000_{os.getpid()}"
    num_bytes = len(os.fsencode(folder / "ray" / session / "sockets/plasma_store"))
    if num_bytes > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"{name}={folder} is too long: Ray's sockets below it would have paths of {num_bytes} "
            f"bytes, {MAX_SOCKET_PATH_BYTES} are allowed; {otherwise}"
        )


def check_reachable(output: str) -> None:
    """Raise ConfigError for a folder of one machine as the output of a cluster of several."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and "://" not in output:
        raise ConfigError(
            f"--output {output} is a folder of one machine, and this Ray has {len(nodes)} nodes: "
            f"give a URI such as s3://bucket/folder, or file://{Path(output).absolute()} "
            "if it is a folder that all of them share"
        )
