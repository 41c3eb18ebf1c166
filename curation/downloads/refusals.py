"""Why a download failed, by class: from what yt-dlp raised, down to what the server answered."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from yt_dlp.networking.exceptions import CertificateVerifyError, HTTPError, TransportError
from yt_dlp.utils import GeoRestrictedError, UnsupportedError, UserNotLive

# RFC 9110, 15.5 and 15.6; 425 is RFC 8470's, 429 RFC 6585's, 451 RFC 7725's. What else a server
# answers is no word on the video.
STATUSES = {
    **dict.fromkeys((401, 402, 403, 407), "private"),
    **dict.fromkeys((404, 410), "gone"),
    **dict.fromkeys((408, 425), "network"),
    429: "throttled",
    451: "geo",
}
# What sites say, as yt-dlp hands it on; the first that is found counts.
WORDS = [
    (error_class, re.compile(pattern, re.IGNORECASE))
    for error_class, pattern in (
        ("network", r"bytes, expected|timed out|did not get any data"),
        ("bot_check", r"not a bot|captcha|unusual traffic"),
        ("age", r"confirm your age|age[- ]restrict|inappropriate for some"),
        ("geo", r"(in|from) your (country|location|region)|geo[- ]?restrict|geo[- ]?block"),
        ("drm", r"\bDRM\b"),
        ("live", r"live event|premieres? (in|will)|will begin|has not started|not currently live"),
        ("throttled", r"rate[- ]?limit|too many requests|try again later"),
        ("private", r"private|members[- ]only|join this channel|registered users|\blog ?in\b"
                    r"|sign in|subscribers? only|purchase|requires payment"),
        ("format", r"requested format is not available|no video formats|no formats"),
        ("gone", r"unavailable|removed|deleted|terminated|not exist|no longer|not found|closed"),
    )
]  # fmt: skip
ANOTHER_TRY = frozenset({"network", "throttled"})  # in the same run


@dataclass(frozen=True)
class Refusal:
    """The class of a failed download, and what the server said of another try, in seconds."""

    error_class: str
    retry_after_s: float | None = None


def refusal_of(error: BaseException) -> Refusal:
    """Why a download failed: what is surest of an error and its causes first."""
    causes = list(causes_of(error))
    for cause in causes:
        if isinstance(cause, HTTPError):
            said = STATUSES.get(cause.status, "network" if cause.status >= 500 else None)
            if said:
                return Refusal(said, retry_after_s(cause.response.headers.get("Retry-After")))
        elif isinstance(cause, GeoRestrictedError):
            return Refusal("geo")
        elif isinstance(cause, UserNotLive):
            return Refusal("live")
        elif isinstance(cause, UnsupportedError):
            return Refusal("not_a_video")
        elif isinstance(cause, socket.gaierror):
            # A name that no server knows is gone; a lost network is told by another error.
            return Refusal("network" if cause.errno == socket.EAI_AGAIN else "gone")
        elif isinstance(cause, CertificateVerifyError):
            return Refusal("download_failed")
    if any(isinstance(cause, TransportError | TimeoutError) for cause in causes):
        return Refusal("network")
    text = str(error)
    return Refusal(next((name for name, words in WORDS if words.search(text)), "download_failed"))


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, as Python and yt-dlp note it."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = getattr(error, "exc_info", None) or (None, None)
        error = error.__cause__ or inner[1]


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After (RFC 9110, 10.2.3): a number of them, or a date.

    >>> retry_after_s("120"), retry_after_s("soon"), retry_after_s("Thu, 01 Jan 1970 00:00:00 GMT")
    (120.0, None, 0.0)
    """
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
