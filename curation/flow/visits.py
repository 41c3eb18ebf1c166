"""A worker's place at a host, asked of the tally that all workers ask."""

from __future__ import annotations

import time
from typing import Any

from curation.downloads.hosts import host_of
from curation.sources import Source

STEP_S = 5.0  # of a long wait


class Visit:
    """The download of one source; `tally` as in stages.py."""

    def __init__(self, tally: Any, source: Source) -> None:
        self.tally = tally
        self.url = source.url
        self.is_inside = False

    def enter(self, max_wait_s: float) -> tuple[str, str] | None:
        """Wait for a place at the host; where it refuses everybody, for `max_wait_s` at the most.

        Returns the class and message of a source that is not fetched now, else None.
        """
        waited_s = 0.0
        while True:
            wait_s, refusal = self.tally.enter(self.url)
            self.is_inside = wait_s == 0
            if self.is_inside:
                return None
            if refusal and waited_s + wait_s > max_wait_s:
                host = host_of(self.url)
                message = f"{host} refused several downloads in a row and was not asked for this"
                return refusal, message
            waited_s += wait_s if refusal else 0
            while wait_s > 0:
                time.sleep(min(wait_s, STEP_S))
                wait_s -= STEP_S

    def leave(self, error_class: str | None) -> None:
        """The fetch is over: well (None), or as that class."""
        if self.is_inside:
            self.is_inside = False
            self.tally.leave(self.url, error_class)
