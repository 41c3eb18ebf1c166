"""How much is asked of a host at once, by all workers together, and when it is left alone.

Held by the one tally that all workers ask (flow/tally.py): a site sees a cluster as one visitor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# Ours. A busy site refuses many visitors a few times in a row; five are its word on all of us.
MAX_REFUSALS = 5
CLOSED_S, MAX_CLOSED_S = 60.0, 900.0  # how long it is left alone, doubled each time
REFUSALS = {"throttled", "bot_check", "network"}
FULL_S = 0.5  # until somebody asks again for a place


@dataclass
class Host:
    inside: set[str] = field(default_factory=set)  # the URLs that are being fetched
    refusals: int = 0  # in a row
    refusal: str = ""  # the class of the last one
    closed: int = 0  # how often in a row
    closed_until_s: float = 0.0


class Hosts:
    """Who may ask which host now; times by `clock`, in seconds."""

    def __init__(self, max_per_host: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_per_host = max_per_host
        self.clock = clock
        self.hosts: dict[str, Host] = {}

    def enter(self, url: str) -> tuple[float, str | None]:
        """(0, None): the URL may be fetched now. Else how long to wait, in seconds, and, where its
        host refuses everybody, the class of that.

        A URL that is inside and enters again, of a task that was lost, has its place.
        """
        host = self.hosts.setdefault(host_of(url), Host())
        left_s = host.closed_until_s - self.clock()
        if left_s > 0:
            return left_s, host.refusal
        # One alone may try whether a host that was closed answers again.
        most = 1 if host.closed else self.max_per_host
        if len(host.inside - {url}) >= most:
            return FULL_S, None
        host.inside.add(url)
        return 0.0, None

    def leave(self, url: str, error_class: str | None) -> None:
        """The fetch of a URL is over, well (None) or not; said twice, the first counts."""
        host = self.hosts.setdefault(host_of(url), Host())
        if url not in host.inside:
            return
        host.inside.remove(url)
        if error_class not in REFUSALS:
            host.refusals = host.closed = 0
            return
        host.refusals += 1
        host.refusal = str(error_class)
        if host.refusals >= MAX_REFUSALS or host.closed:
            wait_s = min(CLOSED_S * 2**host.closed, MAX_CLOSED_S)
            host.closed_until_s = self.clock() + wait_s
            host.closed += 1
            host.refusals = 0


def host_of(url: str) -> str:
    """The name of a URL's host; "" where it has none.

    >>> host_of("https://user@Example.org:8080/a"), host_of("http://[::1/a")
    ('example.org', '')
    """
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
