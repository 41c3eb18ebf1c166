"""Reads that are tried again, and the last few things read."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

WAITS_S = (0.2, 1.0, 5.0)  # before each further attempt: a hiccup, a busy store, a reconnect
# Errors that another attempt does not mend.
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError)


def retried(read: Callable[[], V]) -> V:
    """What a read gives, tried again where it fails as a network or an object store may."""
    for wait_s in WAITS_S:
        try:
            return read()
        except LASTING:
            raise
        except OSError:
            time.sleep(wait_s)
    return read()


class Kept(Generic[K, V]):
    """The last few things made, by key. Threads make different ones at once, each one once."""

    def __init__(self, make: Callable[[K], V], keep: int) -> None:
        self.make, self.keep = make, keep
        self.lock = threading.Lock()
        self.futures: OrderedDict[K, Future[V]] = OrderedDict()

    def get(self, key: K) -> V:
        """What was made of a key, or is made now; an error is raised and not kept."""
        with self.lock:
            future = self.futures.get(key)
            mine = future is None
            if future is None:
                future = self.futures[key] = Future()
                if len(self.futures) > self.keep:
                    self.futures.popitem(last=False)
            self.futures.move_to_end(key)
        if mine:
            try:
                future.set_result(self.make(key))
            except BaseException as error:
                with self.lock:
                    self.futures.pop(key, None)
                future.set_exception(error)
        return future.result()
