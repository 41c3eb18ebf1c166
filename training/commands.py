"""What training's commands share: errors to one line and an exit code, signals.

SIGTERM and Ctrl-C: an end at once before there is anything to save, and a saved one after.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from curation.commands import screen, told_errors

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(RuntimeError):
    """A run was asked to stop and has saved what it had."""


def guarded(body: Callable[[Console], None]) -> None:
    """Run a command's body; a mistake exits 2 and a failed run 1, each with one line."""
    with told_errors("the same command goes on from the last checkpoint", stops=(StoppedError,)):
        body(screen())


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


def how_to_sample(model: Path, stage: str) -> str:
    """What to do with a trained or exported model."""
    if stage == "upsampler":
        return f'use it: vf-sample BASE --upsampler {model} --prompt "..." --output out.mp4'
    return f'sample it: vf-sample {model} --prompt "..." --output out.mp4'
