"""A file of a server as one to seek in: parts of it by HTTP range, all of one state of the file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from yt_dlp.networking import Request, Response
from yt_dlp.networking.exceptions import HTTPError
from yt_dlp.utils.networking import HTTPHeaderDict

from curation.media.files import MediaError

# Of one request. Ours: what is next to a part that was asked for is probably wanted, too, so that
# each one has twice the bytes of the one before; a jump begins anew.
MIN_PART_BYTES, MAX_PART_BYTES = 256 << 10, 4 << 20
PIECE_BYTES = 64 << 10  # between two beats: a minute at the least rate (download.min_bytes_per_s)
HELD_BYTES = 32 << 20  # in memory, of the newest parts
MAX_SHORT = 3  # answers that broke off; each is gone on with. Ours, as download.attempts
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")  # RFC 9110, 14.4


class WholeError(Exception):
    """Why a file is fetched whole after all, as the end of a sentence."""


class Opener(Protocol):
    """What sends a request and follows redirects: yt-dlp with a guard."""

    def urlopen(self, req: Request) -> Response: ...


class RemoteFile:
    """What a demuxer reads from; every part is known to be of the state that the first one has.

    `most_bytes`: of all parts; None: the whole file may come. `beat` is called as bytes arrive.
    Raises WholeError where the server gives no ranges, others than asked, no state to hold them
    to (an ETag or a Last-Modified), or another state. What failed once fails again, since a demuxer
    may pass over an error: `failure` has it.
    """

    def __init__(
        self,
        opener: Opener,
        url: str,
        headers: Mapping[str, str],
        beat: Callable[[], None],
        max_bytes_per_s: int | None = None,
    ) -> None:
        self.opener, self.url, self.headers = opener, url, headers
        self.beat = beat
        self.max_bytes_per_s = max_bytes_per_s
        self.most_bytes: int | None = None
        self.came_bytes = 0
        self.num_short = 0
        self.failure: Exception | None = None
        self.state: tuple[str | None, str | None, int] | None = None  # ETag, Last-Modified, size
        self.parts: dict[int, bytes] = {}  # by their first byte, the newest last
        self.at = 0
        self.step_bytes = MIN_PART_BYTES
        self.parts[0] = self.ask(0, MIN_PART_BYTES)

    @property
    def num_bytes(self) -> int:
        return self.state[2] if self.state else MIN_PART_BYTES

    # -- as a file

    def read(self, size: int) -> bytes:
        """At most `size` bytes from here on; b"" at the end."""
        if self.failure:
            raise self.failure
        if not 0 <= self.at < self.num_bytes:
            return b""
        try:
            first, part = self.part_with(self.at)
        except Exception as error:
            self.failure = error
            raise
        data = part[self.at - first :][:size]
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begins = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.num_bytes}
        self.at = begins[whence] + offset
        return self.at

    def tell(self) -> int:
        return self.at

    # -- from the server

    def part_with(self, at: int) -> tuple[int, bytes]:
        """The part that holds byte `at`, and its first byte."""
        for first, part in self.parts.items():
            if first <= at < first + len(part):
                return first, part
        newest = next(reversed(self.parts))
        goes_on = at == newest + len(self.parts[newest])
        most = min(MAX_PART_BYTES, self.max_bytes_per_s or MAX_PART_BYTES)
        self.step_bytes = min(2 * self.step_bytes, most) if goes_on else MIN_PART_BYTES
        part = self.ask(at, min(at + self.step_bytes, self.num_bytes))
        self.parts[at] = part
        while sum(map(len, self.parts.values())) > HELD_BYTES and len(self.parts) > 1:
            del self.parts[next(iter(self.parts))]
        return at, part

    def ask(self, first: int, stop: int) -> bytes:
        """Bytes [first, stop) of the file, or the beginning of them; at least one."""
        if self.most_bytes is not None and self.came_bytes + stop - first > self.most_bytes:
            raise WholeError("its sections would need too much of it")
        asked = {"Accept-Encoding": "identity", "Range": f"bytes={first}-{stop - 1}"}
        if self.state:
            asked["If-Range"] = if_range(self.state)
        request = Request(self.url, headers=HTTPHeaderDict(self.headers, asked))
        try:
            response = self.opener.urlopen(request)
        except HTTPError as error:
            if error.status == 416:  # no such range (RFC 9110, 15.5.17)
                raise WholeError("the server gives no ranges") from None
            raise
        with response:
            self.check(response, first, stop)
            data = self.body(response, min(stop, self.num_bytes) - first)
        self.came_bytes += len(data)
        return data

    def check(self, response: Response, first: int, stop: int) -> None:
        """Raise WholeError unless this is the range asked for, of the state that is known."""
        found = RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if response.status != 206 or found is None:
            changed = (
                "the file changed on the server" if self.state else "the server gives no ranges"
            )
            raise WholeError(changed)
        size = int(found[3])
        if (int(found[1]), int(found[2]) + 1) != (first, min(stop, size)):
            raise WholeError("the server gives other ranges than asked for")
        state = response.headers.get("ETag"), response.headers.get("Last-Modified"), size
        if not state[0] and not state[1]:
            raise WholeError("the server does not tell one state of the file from another")
        self.state = self.state or state
        if state != self.state:
            raise WholeError("the file changed on the server")

    def body(self, response: Response, num_bytes: int) -> bytes:
        data = bytearray()
        started = time.monotonic()
        while piece := response.read(min(PIECE_BYTES, num_bytes - len(data))):
            data += piece
            self.beat()
            if self.max_bytes_per_s:
                due_s = len(data) / self.max_bytes_per_s
                time.sleep(max(0.0, started + due_s - time.monotonic()))
            if len(data) == num_bytes:
                return bytes(data)
        self.num_short += 1
        if not data or self.num_short > MAX_SHORT:
            raise MediaError("network", f"the server sent {len(data):,} bytes of {num_bytes:,}")
        return bytes(data)


def if_range(state: tuple[str | None, str | None, int]) -> str:
    """What If-Range (RFC 9110, 13.1.5) may hold of a state: no weak ETag.

    >>> if_range(('W/"1"', "Thu, 01 Jan 1970 00:00:00 GMT", 5)), if_range(('"1"', None, 5))
    ('Thu, 01 Jan 1970 00:00:00 GMT', '"1"')
    """
    etag, modified, _ = state
    if etag and not (etag.startswith("W/") and modified):
        return etag
    return modified or ""
