"""URL -> a local file with what the site says of it, by yt-dlp."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import imageio_ffmpeg
import yt_dlp
from yt_dlp.extractor.youtube import YoutubeIE
from yt_dlp.networking.exceptions import CertificateVerifyError, HTTPError, TransportError

from curation.media.files import MediaError
from curation.pipelines import Download
from curation.sources import Source, content_id
from curation.sources.source import storable


class SilentLogger:
    """Takes yt-dlp's messages: errors come as exceptions, and a worker has no terminal."""

    def debug(self, message: str) -> None: ...
    def info(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...


def download(source: Source, folder: Path, settings: Download, beat: Callable[[], None]) -> Source:
    """Fetch a source's video into `folder` and return the source with path, id and site data.

    Sound is not fetched: clips carry none. `beat` is called as bytes arrive.
    Raises MediaError: private_address, download_failed, unreachable.
    """
    if not settings.allow_private:
        refuse_private(source.url)
    highest = settings.max_height_px
    options = {
        # The largest up to the height asked for, with sound only where there is no other.
        "format": f"bv*[height<={highest}]/b[height<={highest}]/bv*/b",
        "outtmpl": str(folder / "video.%(ext)s"),  # never a name that the site chose
        "noplaylist": True,
        "socket_timeout": settings.timeout_s,
        "retries": 3,
        "ffmpeg_location": imageio_ffmpeg.get_ffmpeg_exe(),
        "cachedir": False,
        "quiet": True,
        "noprogress": True,
        "logger": SilentLogger(),
        "progress_hooks": [lambda _: beat()],
    }
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            info = downloader.extract_info(source.url, download=True)
    except yt_dlp.utils.YoutubeDLError as error:
        kind = "unreachable" if is_passing(error) else "download_failed"
        raise MediaError(kind, str(error).removeprefix("ERROR: ")) from error
    return with_site_data(source, info, downloaded_file(info))


def is_passing(error: BaseException | None) -> bool:
    """Whether a failed download tells of the network or of a server's bad moment, not of the video.

    Statuses: RFC 9110, 15.6; 408, 425 and 429 ask for another try, too.
    """
    while error is not None:
        if isinstance(error, HTTPError):
            return error.status >= 500 or error.status in (408, 425, 429)
        if isinstance(error, TransportError):
            return not isinstance(error, CertificateVerifyError)
        inner = getattr(error, "exc_info", None) or (None, None)
        error = error.__cause__ or inner[1]
    return False


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


def refuse_private(url: str) -> None:
    """Raise MediaError private_address for a host on this machine or on a private network."""
    host = urlsplit(url).hostname or ""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        passes = error.errno == socket.EAI_AGAIN  # what a lost network looks like
        kind = "unreachable" if passes else "download_failed"
        raise MediaError(kind, f"cannot find the host {host!r}: {error}") from error
    for address in addresses:
        if not ipaddress.ip_address(str(address).split("%")[0]).is_global:
            raise MediaError(
                "private_address",
                f"{host} is the private address {address}; "
                "allow it with --set download.allow_private=true",
            )
