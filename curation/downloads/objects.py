"""An object of a store -> a local file for as long as it is worked on.

Media processes see no credentials, so it is the Ray worker that copies, and hands the copy on.
"""

from __future__ import annotations

import datetime
import errno
import random
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from curation.pipelines import Download, Pipeline
from curation.records import Beat, VideoResult, failed_row
from curation.sources import Source
from curation.sources.signed import told_without
from curation.sources.stores import FAULTS, ObjectError, fault, opened
from curation.sources.uris import is_object, parts_of

ANOTHER_TRY = {"network", "throttled"}  # in the same run
POLL_S = 0.2
# Of one request. Ours: a part is what came in about a second so far, so that a slow store is not
# taken for a dead one; 16 MiB are a quarter second at 500 Mbit/s, and few requests.
MIN_PART_BYTES, MAX_PART_BYTES = 1 << 12, 16 << 20


def copied(
    source: Source, pipeline: Pipeline, room: Path, beat: Beat
) -> tuple[Source | VideoResult, float]:
    """A source that is an object as a file in `room`, without secrets; others as they are.

    Or the result of one that cannot be had. And the CPU seconds that took.
    """
    if source.path is not None or not is_object(source.url):
        return source, 0.0
    suffix = PurePosixPath(parts_of(source.url).key.decode("ascii", "replace")).suffix
    is_plain = suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) < 8
    target = room / f"video{suffix if is_plain else ''}"  # never a name of the store
    uri = source.signed_url or source.url
    try:
        spent_s = fetch(uri, target, pipeline.download, pipeline.media.timeout_s, beat)
    except ObjectError as error:
        return VideoResult([failed_row(source, error.error_class, error.message)]), 0.0
    except Exception as error:  # a mistake of ours costs one video, as in a media process
        message = told_without("".join(traceback.format_exception(error)), uri)
        return VideoResult([failed_row(source, "internal", message)]), 0.0
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return replace(source, path=str(target), signed_url=None, downloaded_at=now), spent_s


def fetch(uri: str, target: Path, settings: Download, timeout_s: float, beat: Beat) -> float:
    """Copy an object to a file; what can heal is tried again. Returns the CPU seconds it took.

    `timeout_s` is for all attempts together. Raises ObjectError, of a class of docs/shards.md.
    """
    started = time.monotonic()

    def told() -> None:
        beat("fetch", time.monotonic() - started)
        if time.monotonic() - started > timeout_s:
            raise ObjectError("timeout", f"not copied after {timeout_s:g} s")

    for attempt in range(1, settings.attempts + 1):
        # A file of its own: the thread of an attempt that was given up may still write.
        part = target.with_name(f"{attempt}.part")
        try:
            spent_s = copy(uri, part, settings, told)
            part.replace(target)
            return spent_s
        except ObjectError as error:
            part.unlink(missing_ok=True)
            if error.error_class in ANOTHER_TRY and attempt < settings.attempts:
                wait(settings.retry_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5), told)
                continue
            tries = f" ({attempt} attempts in {time.monotonic() - started:.0f} s)"
            message = error.message + (tries if attempt > 1 else "")
            raise ObjectError(error.error_class, message) from None
    raise AssertionError("the last attempt returns or raises")


def wait(wait_s: float, told: Callable[[], None]) -> None:
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        told()
        time.sleep(min(left, POLL_S))


def copy(uri: str, target: Path, settings: Download, told: Callable[[], None]) -> float:
    """One attempt; `told` is called while it goes on, and may raise. Raises ObjectError.

    pyarrow's calls end when they like and cannot be broken off, so a thread makes them, which is
    left alone once it has had no bytes for `download.timeout_s`.
    """
    copying = Copying(uri, target, settings)
    copying.start()
    num_bytes, came = 0, time.monotonic()
    try:
        while not copying.ended.wait(POLL_S):
            told()
            if copying.num_bytes != num_bytes:
                num_bytes, came = copying.num_bytes, time.monotonic()
            if time.monotonic() - came > settings.timeout_s:
                says = f"no more than {num_bytes:,} bytes, and none for {settings.timeout_s:g} s"
                raise ObjectError("network", says)
    finally:
        copying.is_given_up = True
    if copying.error is not None:
        raise copying.error
    return copying.spent_s


class Copying(threading.Thread):
    """Copies an object in parts: `ended` is set when it has, with the `error` if there was one."""

    def __init__(self, uri: str, target: Path, settings: Download) -> None:
        super().__init__(daemon=True)
        self.uri, self.target, self.settings = uri, target, settings
        self.ended = threading.Event()
        self.num_bytes = 0
        self.is_given_up = False
        self.error: Exception | None = None
        self.spent_s = 0.0  # of CPU

    def run(self) -> None:
        try:
            self.copy()
            self.spent_s = time.thread_time()
        except ObjectError as error:
            self.error = error
        except MemoryError:
            self.error = ObjectError("no_memory", "the machine has no memory left for this video")
        except FAULTS as error:
            self.error = self.named(error)
        except Exception as error:  # a mistake of ours, for the one who waits
            self.error = error
        finally:
            self.ended.set()

    def named(self, error: Exception) -> ObjectError:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ObjectError("disk_full", f"{error.strerror}; give TMPDIR more room")
        return fault(error, self.uri)

    def copy(self) -> None:
        filesystem, path = opened(self.uri)
        with filesystem.open_input_file(path) as stream:
            facts = facts_of(stream)
            self.check_room(stream.size())
            with self.target.open("wb") as file:
                self.parts(stream, file)
        if self.num_bytes != facts[0]:
            raise ObjectError("network", f"{self.num_bytes:,} of {facts[0]:,} bytes came")
        with filesystem.open_input_file(path) as stream:
            if facts_of(stream) != facts:
                raise ObjectError(
                    "changing", "was written to in the meantime; the next run tries again"
                )

    def check_room(self, size: int) -> None:
        """Raise ObjectError for an object that is too large, for the settings or the disk."""
        if size > self.settings.max_bytes:
            says = f"has {size:,} bytes; download.max_bytes is {self.settings.max_bytes:,}"
            raise ObjectError("too_large", says)
        free = shutil.disk_usage(self.target.parent).free
        if size > free:
            says = f"{free:,} bytes are free, and it has {size:,}; give TMPDIR more room"
            raise ObjectError("disk_full", says)

    def parts(self, stream: Any, file: Any) -> None:
        """Copy all bytes, as fast as `download.max_bytes_per_s` lets."""
        settings = self.settings
        most = min(MAX_PART_BYTES, settings.max_bytes_per_s or MAX_PART_BYTES)
        size = least = min(
            most, max(MIN_PART_BYTES, int(settings.min_bytes_per_s * settings.timeout_s))
        )
        while not self.is_given_up:
            started = time.monotonic()
            part = stream.read(size)
            if not part:
                return
            file.write(part)
            self.num_bytes += len(part)
            took_s = time.monotonic() - started
            size = min(most, max(least, int(len(part) / max(took_s, 1e-3))))
            if settings.max_bytes_per_s:
                time.sleep(max(0.0, len(part) / settings.max_bytes_per_s - took_s))


def facts_of(stream: Any) -> tuple[int, Any]:
    """What changes when an object is written anew: its size, and what its store says of it."""
    return stream.size(), stream.metadata()
