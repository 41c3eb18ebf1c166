"""Work in a thread of its own while training goes on: the writing of checkpoints."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from torch import Tensor

from training.parallel import Team


@dataclass
class Saver:
    """Writes checkpoints in a thread of its own, one at a time, while training goes on.

    team: with the first one, ranks with a group of their own, as training's is busy meanwhile.
    """

    team: Team | None = None
    room: dict[str, Tensor] = field(default_factory=dict)  # of `take`
    pending: Future[None] | None = None
    facts: list[dict[str, Any]] = field(default_factory=list)

    def begin(
        self, step: int, started: float, write: Callable[[], None], what: str = "checkpoint"
    ) -> None:
        """Write on while this returns; raises what the one before raised, when it has ended.

        started: on time.monotonic(), when training began to wait.
        """
        self.wait()
        end: Future[None] = Future()
        blocked_s = time.monotonic() - started

        def work() -> None:
            try:
                write()
                written_s = time.monotonic() - started
                self.facts.append({"step": step, f"{what}_blocked_s": blocked_s,
                                   f"{what}_written_s": written_s})  # fmt: skip
                end.set_result(None)
            except BaseException as error:
                end.set_exception(error)

        self.pending = end
        # A daemon, so that a second Ctrl-C ends the process at once.
        threading.Thread(target=work, daemon=True).start()

    def failed(self) -> bool:
        """Whether the last one has ended otherwise than on the disk; `wait` raises it."""
        end = self.pending
        return end is not None and end.done() and end.exception() is not None

    def wait(self) -> None:
        """Return when nothing is being written; raises RunError where that failed."""
        end, self.pending = self.pending, None
        if end:
            end.result()

    def finished(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl for what was written since the last call."""
        found, self.facts = self.facts, []
        return found

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, KeyboardInterrupt):  # that one is in a hurry
            self.wait()
