"""URL -> a local file with what the site says of it, by yt-dlp."""

from __future__ import annotations

import datetime
import hashlib
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yt_dlp
import yt_dlp.globals
from yt_dlp.extractor.youtube import YoutubeIE

from curation.downloads.connections import Guard, GuardedYoutubeDL, Refused
from curation.downloads.refusals import ANOTHER_TRY, Refusal, refusal_of
from curation.media.files import MediaError
from curation.pipelines import Download
from curation.sources import Source
from curation.sources.signed import told_without
from curation.sources.source import storable


class SilentLogger:
    """Takes yt-dlp's messages: errors come as exceptions, and a worker has no terminal."""

    def debug(self, message: str) -> None: ...
    def info(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...


# Code in the user's home, or beside Python's modules, that yt-dlp would run. There is no option.
yt_dlp.globals.plugin_dirs.value = []
# What yt-dlp fetches itself: others it hands to ffmpeg or rtmpdump, which ask nobody.
FETCHED = "[protocol~='^(https?|m3u8|m3u8_native|http_dash_segments)$']"

# Extractors of files and pages of any host: the ids that they give are names of files.
NO_SITES = {"Generic", "HTML5MediaEmbed", "QuotedHTML"}
# What a server's answer made yt-dlp raise beside its own errors.
BROKEN = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


def download(source: Source, folder: Path, settings: Download, beat: Callable[[], None]) -> Source:
    """Fetch a source's video into `folder` and return the source with path and site data.

    The id is the site's; of a bare file there is none. Sound is not fetched: clips carry none.
    `beat` is called as bytes arrive, and while it waits for another try. Raises MediaError of a
    class of docs/shards.md; no message has a secret of the URL.
    """
    started = time.monotonic()
    for attempt in range(1, settings.attempts + 1):
        try:
            return fetched(source, folder, settings, beat)
        except FailedError as failed:
            wait_s = failed.refusal.retry_after_s
            if wait_s is None:
                wait_s = settings.retry_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            again = failed.refusal.error_class in ANOTHER_TRY and attempt < settings.attempts
            if again and wait_s <= settings.max_wait_s:
                wait(wait_s, beat)
                continue
            message = told_without(failed.message, source.signed_url or source.url)
            if again:
                message += f" (it asks to wait {wait_s:.0f} s)"
            elif attempt > 1:
                message += f" ({attempt} attempts in {time.monotonic() - started:.0f} s)"
            raise MediaError(failed.refusal.error_class, message) from None
    raise AssertionError("the last attempt returns or raises")


class FailedError(Exception):
    """An attempt that failed, and why."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.message = message


def wait(wait_s: float, beat: Callable[[], None]) -> None:
    """Sleep, and let the one who watches know that it is no stall."""
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        beat()
        time.sleep(min(left, 5.0))


def fetched(source: Source, folder: Path, settings: Download, beat: Callable[[], None]) -> Source:
    """One attempt; raises FailedError."""
    url = source.signed_url or source.url
    guard = Guard(
        allow_private=settings.allow_private,
        max_bytes=settings.max_bytes,
        min_bytes_per_s=settings.min_bytes_per_s,
        window_s=settings.timeout_s,
        interval_s=settings.request_interval_s,
    )
    try:
        check_host(url)
        with GuardedYoutubeDL(options_of(url, folder, settings, beat), guard) as downloader:
            info = downloader.extract_info(url, download=True)
        if not guard.refused:
            return with_site_data(source, info, downloaded_file(info))
    except MediaError as error:
        raise FailedError(Refusal(error.error_class), error.message) from None
    except Refused as refused:
        guard.refused = refused
    except yt_dlp.utils.YoutubeDLError as error:
        if not guard.refused:
            raise FailedError(refusal_of(error), in_words(error)) from error
    except BROKEN as error:
        says = f"yt-dlp cannot read what the server sent: {type(error).__name__}: {error}"
        raise FailedError(Refusal("download_failed"), says) from error
    assert guard.refused is not None
    raise FailedError(Refusal(guard.refused.error.error_class), guard.refused.error.message)


def in_words(error: BaseException) -> str:
    """What yt-dlp says of an error, without its marks of a terminal."""
    return str(error).removeprefix("ERROR: ").strip().removeprefix("[download] Got error: ")


def options_of(
    url: str, folder: Path, settings: Download, beat: Callable[[], None]
) -> dict[str, Any]:
    """How yt-dlp is asked for one video; it reads no configuration of its own."""
    highest = f"[height<={settings.max_height_px}]"
    return {
        # The largest up to the height asked for, with sound only where there is no other.
        "format": "/".join(
            f"{kind}{FETCHED}" for kind in (f"bv*{highest}", f"b{highest}", "bv*", "b")
        ),
        "outtmpl": str(folder / "video.%(ext)s"),  # never a name that the site chose
        "noplaylist": True,
        "socket_timeout": settings.timeout_s,
        "retries": 1,  # at once; download() waits between its own
        # No ffmpeg: it would open what a server sent in any format, and follow that.
        "ffmpeg_location": str(folder / "none"),
        "fixup": "never",
        "hls_prefer_native": True,
        "cachedir": False,
        "quiet": True,
        "noprogress": True,
        "logger": SilentLogger(),
        "progress_hooks": [lambda _: beat()],
        **asked_as(url, folder, settings),
    }


def asked_as(url: str, folder: Path, settings: Download) -> dict[str, Any]:
    """Who asks: the proxy, cookies and user agent of the settings, as options of yt-dlp.

    A URL has the same proxy each time. yt-dlp writes cookies back when it ends, so it is given a
    copy. Raises MediaError where the cookies cannot be read.
    """
    asked: dict[str, Any] = {}
    if settings.proxies:
        number = int(hashlib.sha256(url.encode()).hexdigest(), 16)
        asked["proxy"] = settings.proxies[number % len(settings.proxies)].get_secret_value()
    if settings.user_agent:
        asked["http_headers"] = {"User-Agent": settings.user_agent}
    if settings.max_bytes_per_s:
        asked["ratelimit"] = settings.max_bytes_per_s
    if settings.cookies:
        try:
            shutil.copyfile(settings.cookies, folder / "cookies.txt")
        except OSError as error:
            message = f"download.cookies cannot be read: {error.strerror}"
            raise MediaError("download_failed", message) from None
        asked["cookiefile"] = str(folder / "cookies.txt")
    return asked


def check_host(url: str) -> None:
    """Raise MediaError download_failed for a URL that names no host."""
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise MediaError("download_failed", f"is no URL: {error}") from None
    if not host:
        raise MediaError("download_failed", "is a URL without a host")


def id_in(url: str) -> str | None:
    """The id that a URL itself names, whatever else is in it: YouTube's; None elsewhere.

    >>> id_in("https://youtu.be/dQw4w9WgXcQ?t=15"), id_in("https://host/a.mp4")
    ('dQw4w9WgXcQ', None)
    """
    found = YoutubeIE._match_valid_url(url)
    return found["id"] if found else None


def downloaded_file(info: dict[str, Any]) -> str:
    """Where yt-dlp put the file; its own word, since it may change the suffix."""
    for item in info.get("requested_downloads") or []:
        path = item.get("filepath")
        if path and Path(path).is_file():
            return path
    raise MediaError("download_failed", "yt-dlp reported success but left no file")


def with_site_data(source: Source, info: dict[str, Any], path: str) -> Source:
    """The source with the file and the site's metadata; what a list gave stands."""
    now = datetime.datetime.now(datetime.UTC)
    found = {
        "category": (info.get("categories") or [None])[0],
        "uploader": info.get("uploader"),
        "channel": info.get("channel"),
        "license": info.get("license"),
        "downloaded_at": now.isoformat(timespec="seconds"),
    }
    site = info.get("extractor_key", "Generic")
    # A bare file has no site data: its id and title are its name, its date the Last-Modified of
    # the server, its format a guess.
    if site not in NO_SITES:
        date = info.get("upload_date")  # YYYYMMDD
        found |= {
            "id": info["id"] if site == "Youtube" else f"{site.lower()}-{info['id']}",
            "title": info.get("title"),
            "upload_date": f"{date[:4]}-{date[4:6]}-{date[6:]}" if date else None,
            "format": info.get("format"),
        }
    missing: dict[str, Any] = {
        name: storable(value)
        for name, value in found.items()
        if value and getattr(source, name) is None
    }
    return replace(source, path=path, **missing)
