"""Where commands read and write: is a folder what it should be, will it last, is it free; scratch.

Loads neither Ray nor a video library when it is imported; the trainer's commands use it too.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from curation.settings import ConfigError
from curation.shards import Dataset, DatasetError

RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the process that a job runs
# What has to be free where Ray keeps its logs and sockets. Ours: a session with one task leaves
# 0.2 MB (measured); the logs of a run and a download while it is cut come on top.
MIN_TEMP_BYTES = 64 << 20
# Of a Unix socket's path, without the closing zero: sun_path in unix(7).
MAX_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107


# -- datasets


def dataset_at(location: str) -> Dataset:
    """The folder or URI, whether there is a dataset or not; ConfigError for a URI of no kind."""
    try:
        return Dataset.at(location)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(
            f"{location}: {error}; give a folder or a URI such as s3://bucket/folder"
        ) from None


def open_dataset(location: str, *, emptied: bool = False) -> Dataset:
    """A dataset to read, its manifests checked; ConfigError or DatasetError.

    With `emptied` one will do of which everything was taken down.
    """
    dataset = dataset_at(location)
    if not commits_of(dataset):
        dataset.require(emptied=emptied)
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


@contextmanager
def only_writer(dataset: Dataset, another: str = "another run") -> Iterator[None]:
    """Hold a local dataset folder for one run; ConfigError when `another` has it."""
    if not dataset.is_local:
        yield
        return
    with held(Path(dataset.root), f"{another} is writing to {dataset.uri}"):
        yield


# -- folders of one machine


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


# -- Ray jobs and clusters


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


# -- scratch folders

SCRATCH_PREFIX = "videofactory-"
OWNED = ".owned"  # locked as long as the process lives that made the folder


class Scratch:
    """A folder of this process for the time that it lives; not inherited by what it starts."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
        new = self.folder / f"{OWNED}.new"
        self.lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        new.rename(self.folder / OWNED)  # nobody finds it unlocked

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


def sweep_scratch() -> None:
    """Remove scratch folders of processes that no longer live (a SIGKILL leaves them).

    A folder of a like name that is not ours, or another user's, stays.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*"):
        try:
            mark = os.open(folder / OWNED, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if folder.lstat().st_uid == os.getuid():  # of a link nothing is removed
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # held: its process lives; or gone meanwhile
            continue
        finally:
            os.close(mark)
