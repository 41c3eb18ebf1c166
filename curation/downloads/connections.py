"""Every connection that yt-dlp makes: to public addresses alone, and for no more bytes than said.

All its requests, those of redirects and of segments too, go through one handler, which looks an
address up once, judges what came of it and connects to just that: a second answer of a name server
(DNS rebinding) is never asked for. It stands on yt-dlp's urllib handler; the others, which open
connections of their own, are not there.
"""

from __future__ import annotations

import functools
import http.client
import io
import ipaddress
import itertools
import socket
import ssl
import time
import urllib.request
import urllib.response
import zlib
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

import yt_dlp
from yt_dlp.networking import RequestDirector
from yt_dlp.networking._urllib import HTTPHandler, UrllibRH
from yt_dlp.utils.networking import select_proxy

from curation.media.files import MediaError

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
# Global by Python's tables, or by those of some of its versions, and still of one network: the
# IETF's block with its odd metadata service, 6to4's relays (RFC 7526), Azure's host, site-local
# addresses (RFC 3879).
SPECIAL = [
    ipaddress.ip_network(each)
    for each in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "fec0::/10")
]
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
# Of what yt-dlp reads whole: pages, playlists, manifests. Ours: YouTube's pages have 1 to 2 MB,
# and the manifest of a day of 1 s segments about 10.
MAX_PAGE_BYTES = 64 << 20


class Refused(yt_dlp.utils.DownloadCancelled):
    """What ends a download; as DownloadCancelled it is not tried again.

    yt-dlp may hand on another error for it: `Guard.refused` has what it was.
    """

    def __init__(self, error: MediaError) -> None:
        super().__init__(error.message)
        self.error = error


class Guard:
    """What one download may do; the first refusal stands, whatever becomes of the error.

    With `allow_private` any address may be connected to. `max_bytes` are those of every answer
    together; over each `window_s` that is spent waiting for bytes, `min_bytes_per_s` have to come.
    Requests are `interval_s` apart, the first one from the beginning: so downloads that follow one
    another keep it, too. The texts say what a user may do about a refusal.
    """

    def __init__(
        self,
        *,
        allow_private: bool,
        max_bytes: int,
        min_bytes_per_s: int,
        window_s: float,
        interval_s: float = 0.0,
        allowed_by: str = "--set download.allow_private=true",
        size_hint: str | None = None,
    ) -> None:
        self.interval_s = interval_s
        self.asked_s = time.monotonic()
        self.allow_private = allow_private
        self.max_bytes = max_bytes
        self.min_bytes_per_s, self.window_s = min_bytes_per_s, window_s
        self.allowed_by = allowed_by
        self.size_hint = size_hint or (
            f"download.max_bytes allows {max_bytes:,}; set it higher if the video is so long"
        )
        self.num_bytes = 0
        self.read_s = 0.0  # of this window, and what had come before it
        self.bytes_before = 0
        self.refused: Refused | None = None

    def refuse(self, error_class: str, message: str) -> NoReturn:
        self.refused = self.refused or Refused(MediaError(error_class, message))
        raise self.refused

    def renew(self) -> None:
        """Count bytes anew, for what comes next; the pace goes on."""
        self.num_bytes = self.bytes_before = 0
        self.read_s = 0.0

    def pace(self) -> None:
        """Wait until another request may be made."""
        time.sleep(max(0.0, self.asked_s + self.interval_s - time.monotonic()))
        self.asked_s = time.monotonic()

    def check(self, host: str, addresses: list[str]) -> None:
        """Refuse a host that has an address which is not a public one."""
        for address in addresses if not self.allow_private else ():
            if not is_public(address):
                self.refuse(
                    "private_address",
                    f"{host} is the private address {address}; allow it with {self.allowed_by}",
                )

    def connect(
        self, address: tuple[str, int], timeout: Any = None, source_address: Any = None
    ) -> socket.socket:
        """As socket.create_connection, to addresses that were judged before any byte went out."""
        host, port = address
        peers = [str(each[4][0]) for each in look_up(host, port)]
        self.check(host, peers)
        error: OSError = OSError(f"{host} has no address")
        for peer in peers:
            try:
                return socket.create_connection((peer, port), timeout, source_address)
            except OSError as met:
                error = met
        raise error

    def check_by_name(self, host: str) -> None:
        """Refuse a host that a proxy is to connect to, if it is private as seen from here."""
        try:
            found = look_up(host, None)
        except OSError:
            return  # known to the proxy alone
        self.check(host, [str(each[4][0]) for each in found])

    def expect(self, num_bytes: int) -> None:
        """Refuse an answer that says that it is too long."""
        if self.num_bytes + num_bytes > self.max_bytes:
            self.refuse_size(f"the server has {num_bytes:,} bytes to send")

    def count(self, num_bytes: int, read_s: float) -> None:
        """Note bytes that came, and how long they were waited for."""
        self.num_bytes += num_bytes
        self.read_s += read_s
        if self.read_s >= self.window_s:
            came = self.num_bytes - self.bytes_before
            if came < self.min_bytes_per_s * self.read_s:
                says = f"{came:,} bytes came in {self.read_s:.0f} s"
                self.refuse("network", f"{says}; download.min_bytes_per_s has the least")
            self.read_s, self.bytes_before = 0.0, self.num_bytes
        if self.num_bytes > self.max_bytes:
            self.refuse_size(f"more than {self.max_bytes:,} bytes came")

    def refuse_size(self, says: str) -> NoReturn:
        self.refuse("too_large", f"{says}, and {self.size_hint}")


def look_up(host: str, port: int | None) -> list[Any]:
    return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, and not of this machine or of some network.

    An address that stands for an IPv4 one (v4-mapped, NAT64, 6to4) is judged as that one.

    >>> is_public("93.184.215.14"), is_public("::ffff:10.0.0.8"), is_public("224.0.0.1")
    (True, False, False)
    """
    ip: IP = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        ip = inner or ip.ipv4_mapped or ip.sixtofour or ip
    special = any(ip in network for network in SPECIAL)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or special)


# -- inside yt-dlp


class CountedResponse(http.client.HTTPResponse):
    """An answer whose bytes are counted as they come; what is read whole is a page at most."""

    def __init__(self, guard: Guard, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = guard

    def begin(self) -> None:
        super().begin()
        self.guard.expect(self.length or 0)

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            parts = bytearray()
            while len(parts) < amt and (part := self.read_some(amt - len(parts))):
                parts += part
            return bytes(parts)
        data = self.read(MAX_PAGE_BYTES + 1)
        if len(data) > MAX_PAGE_BYTES:
            refuse_page(self.guard)
        return data + super().read()  # nothing more, unless the answer was cut off: it raises

    def read_some(self, most: int) -> bytes:
        """What there is: who waited for more would not notice how slowly it comes."""
        started = time.monotonic()
        data = self.read1(most)
        self.guard.count(len(data), time.monotonic() - started)
        return data


def refuse_page(guard: Guard) -> NoReturn:
    guard.refuse("too_large", f"a page or playlist has more than {MAX_PAGE_BYTES:,} bytes")


class GuardedHandler(urllib.request.AbstractHTTPHandler):
    """Opens the connections of an opener; in front of yt-dlp's handler, which it takes over."""

    handler_order = 400  # yt-dlp's: 500

    def __init__(self, guard: Guard, context: ssl.SSLContext, proxies: dict[str, Any]) -> None:
        super().__init__()
        self.guard = guard
        self.context = context
        self.proxies = proxies

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self.connection(http.client.HTTPConnection, request), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        made = self.connection(http.client.HTTPSConnection, request)
        return self.do_open(made, request, context=self.context)

    def connection(
        self, kind: type[http.client.HTTPConnection], request: urllib.request.Request
    ) -> Callable[..., http.client.HTTPConnection]:
        """What makes the connection of a request; one to the user's proxy is not judged."""
        self.guard.pace()
        is_proxied = select_proxy(request.full_url, self.proxies) is not None
        if is_proxied:
            self.guard.check_by_name(urlsplit(request.full_url).hostname or "")
        kind = HTTPHandler._make_conn_class(kind, request)  # one through SOCKS where that is asked

        def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
            made: Any = kind(*args, **kwargs)
            made.response_class = functools.partial(CountedResponse, self.guard)
            if not is_proxied:
                made._create_connection = self.guard.connect
            return made

        return make

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        """An answer without its compression, which could be of any size when it is gone."""
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding in ("identity", ""):
            return response
        if encoding != "gzip":  # nothing else is asked for
            says = f"the server answers in the encoding {encoding!r}, which was not asked for"
            self.guard.refuse("download_failed", says)
        packed = zlib.decompressobj(zlib.MAX_WBITS | 16)
        data = packed.decompress(response.read(), MAX_PAGE_BYTES)
        if packed.unconsumed_tail:
            refuse_page(self.guard)
        del response.headers["Content-Encoding"]
        plain: Any = urllib.response.addinfourl(
            io.BytesIO(data), response.headers, response.url, response.code
        )
        plain.msg = response.msg
        return plain

    https_response = http_response


class GuardedRH(UrllibRH):
    """The one request handler; its name ends as yt-dlp wants it to."""

    _SUPPORTED_URL_SCHEMES = ("http", "https", "data")

    def __init__(self, *, guard: Guard, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.guard = guard

    def _create_instance(
        self, proxies: dict[str, Any], cookiejar: Any, legacy_ssl_support: bool | None = None
    ) -> urllib.request.OpenerDirector:
        opener = super()._create_instance(
            proxies=proxies, cookiejar=cookiejar, legacy_ssl_support=legacy_ssl_support
        )
        context = self._make_sslcontext(legacy_ssl_support=legacy_ssl_support)
        opener.add_handler(GuardedHandler(self.guard, context, proxies))
        return opener

    def _prepare_headers(self, _: Any, headers: Any) -> None:
        headers.setdefault("Accept-Encoding", "gzip")


class GuardedYoutubeDL(yt_dlp.YoutubeDL):
    """yt-dlp with that handler alone, for one video that has an end."""

    def __init__(self, options: dict[str, Any], guard: Guard) -> None:
        self.guard = guard
        super().__init__(options)

    @functools.cached_property
    def _request_director(self) -> RequestDirector:
        return self.build_request_director([functools.partial(GuardedRH, guard=self.guard)])

    def process_video_result(self, info_dict: dict[str, Any], download: bool = True) -> Any:
        """As yt-dlp's, but a live stream is refused before anything of it is fetched."""
        if info_dict.get("is_live") or info_dict.get("live_status") == "is_live":
            self.guard.refuse("live", "is a live stream, which has no end")
        return super().process_video_result(info_dict, download)

    def process_ie_result(
        self, ie_result: Any, download: bool = True, extra_info: Any = None
    ) -> Any:
        """As yt-dlp's, but a playlist is refused before anything of its entries is fetched.

        One of a single entry is that entry: some sites have no other form.
        """
        if ie_result.get("_type") not in ("playlist", "multi_video"):
            return super().process_ie_result(ie_result, download, extra_info)
        entries = ie_result.get("entries") or []
        if isinstance(entries, yt_dlp.utils.PagedList):  # a page at a time, over the network
            entries = entries.getslice(0, 2)
        first = list(itertools.islice(entries, 2))
        if len(first) == 1:
            return self.process_ie_result(first[0], download, extra_info)
        known = len(entries) if isinstance(entries, list) else ie_result.get("playlist_count")
        count = ie_result.get("playlist_count") or known or "several"
        self.guard.refuse(
            "not_a_video",
            f"is a playlist of {count} videos; give the address of each"
            if first
            else "is a page or playlist without a video",
        )
