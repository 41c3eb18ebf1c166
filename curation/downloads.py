"""URL -> a local file with what the site says of it, by yt-dlp."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yt_dlp
import yt_dlp.globals
from yt_dlp.extractor.youtube import YoutubeIE
from yt_dlp.networking.exceptions import CertificateVerifyError, HTTPError, TransportError

from curation.connections import Guard, GuardedYoutubeDL, Refused
from curation.media.files import MediaError
from curation.pipelines import Download
from curation.sources import Source, content_id
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

# What a server's answer made yt-dlp raise beside its own errors.
BROKEN = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


def download(source: Source, folder: Path, settings: Download, beat: Callable[[], None]) -> Source:
    """Fetch a source's video into `folder` and return the source with path, id and site data.

    Sound is not fetched: clips carry none. `beat` is called as bytes arrive.
    Raises MediaError: private_address, too_large, download_failed, unreachable; no message has a
    secret of the URL.
    """
    try:
        return fetched(source, folder, settings, beat)
    except MediaError as error:
        message = told_without(error.message, source.signed_url or source.url)
        raise MediaError(error.error_class, message) from None


def fetched(source: Source, folder: Path, settings: Download, beat: Callable[[], None]) -> Source:
    url = source.signed_url or source.url
    check_host(url)
    guard = Guard(allow_private=settings.allow_private, max_bytes=settings.max_bytes)
    try:
        with GuardedYoutubeDL(options_of(folder, settings, beat), guard) as downloader:
            info = downloader.extract_info(url, download=True)
    except Refused as refused:
        raise refused.error from None
    except yt_dlp.utils.YoutubeDLError as error:
        if guard.refused:
            raise guard.refused.error from error
        kind = "unreachable" if is_passing(error) else "download_failed"
        raise MediaError(kind, str(error).removeprefix("ERROR: ")) from error
    except BROKEN as error:
        says = f"yt-dlp cannot read what the server sent: {type(error).__name__}: {error}"
        raise MediaError("download_failed", says) from error
    if guard.refused:
        raise guard.refused.error
    return with_site_data(source, info, downloaded_file(info))


def options_of(folder: Path, settings: Download, beat: Callable[[], None]) -> dict[str, Any]:
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
        "retries": 3,
        # No ffmpeg: it would open what a server sent in any format, and follow that.
        "ffmpeg_location": str(folder / "none"),
        "fixup": "never",
        "hls_prefer_native": True,
        "cachedir": False,
        "quiet": True,
        "noprogress": True,
        "logger": SilentLogger(),
        "progress_hooks": [lambda _: beat()],
    }


def check_host(url: str) -> None:
    """Raise MediaError download_failed for a URL that names no host."""
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise MediaError("download_failed", f"is no URL: {error}") from None
    if not host:
        raise MediaError("download_failed", "is a URL without a host")


def is_passing(error: BaseException | None) -> bool:
    """Whether a failed download tells of the network or of a server's bad moment, not of the video.

    Statuses: RFC 9110, 15.6; 408, 425 and 429 ask for another try, too. A name that no server
    knows is no bad moment; a lost network is told by another error (EAI_AGAIN).
    """
    passes = False
    while error is not None:
        if isinstance(error, HTTPError):
            return error.status >= 500 or error.status in (408, 425, 429)
        if isinstance(error, socket.gaierror):
            return error.errno == socket.EAI_AGAIN
        if isinstance(error, TransportError):
            passes = not isinstance(error, CertificateVerifyError)
        inner = getattr(error, "exc_info", None) or (None, None)
        error = error.__cause__ or inner[1]
    return passes


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
    site = info.get("extractor_key", "Generic")
    if site == "Youtube":
        found_id = info["id"]
    elif site == "Generic":  # its id is a file name
        found_id = content_id(path)
    else:
        found_id = f"{site.lower()}-{info['id']}"
    # A bare file has no site data: its title is its name, its date the server's Last-Modified.
    date = None if site == "Generic" else info.get("upload_date")  # YYYYMMDD
    found = {
        "title": None if site == "Generic" else info.get("title"),
        "category": (info.get("categories") or [None])[0],
        "uploader": info.get("uploader"),
        "license": info.get("license"),
        "upload_date": f"{date[:4]}-{date[4:6]}-{date[6:]}" if date else None,
    }
    missing: dict[str, Any] = {
        k: storable(v) for k, v in found.items() if v and getattr(source, k) is None
    }
    return replace(source, path=path, id=source.id or found_id, **missing)
