"""What training's commands share: errors to one line and an exit code, signals, the lock.

SIGTERM and Ctrl-C: an end at once before there is anything to save, and a saved one after.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from curation.settings import ConfigError, RunError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FAILED, MISTAKE = 1, 2  # exit codes


class StoppedError(RuntimeError):
    """A run was asked to stop and has saved what it had."""


def guarded(body: Callable[[Console], None]) -> None:
    """Run a command's body; a mistake exits 2 and a failed run 1, each with one line."""
    errors = Console(stderr=True, soft_wrap=True)

    def end(line: str, code: int, style: str | None = None) -> SystemExit:
        errors.print(line, style=style, markup=False, highlight=False)
        return SystemExit(code)

    try:
        body(Console(soft_wrap=not sys.stdout.isatty()))
    except ConfigError as error:
        raise end(f"error: {error}", MISTAKE, "red") from None
    except RunError as error:
        raise end(f"the run failed: {error}", FAILED, "red") from None
    except StoppedError as error:
        raise end(f"{error}; the same command goes on from there", FAILED) from None
    except KeyboardInterrupt:
        told = "stopped; the same command goes on from the last checkpoint"
        raise end(told, FAILED) from None


@contextmanager
def locked(folder: Path, taken: str) -> Iterator[None]:
    """Hold a local folder, made if need be; ConfigError that begins with `taken` if it is held."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(f"{taken}; wait for it or stop it") from None


@contextmanager
def handled(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Inside, both signals call a handler; another thread than the main one gets none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Inside, both raise KeyboardInterrupt."""
    with handled(signal.default_int_handler):
        yield


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that both set; a second one raises KeyboardInterrupt."""
    stop = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            signal.default_int_handler(number, frame)
        stop.set()

    with handled(ask):
        yield stop
