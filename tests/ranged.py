"""A server of one file by ranges, honest or not, that counts what it sends."""

from __future__ import annotations

import contextlib
import http.server
import threading
from pathlib import Path


class Ranged:
    """Serves `data` at /NAME; what it does wrong is said by `lies`.

    num_bytes: of the answers to requests with a range. ranges: those asked for, in their order.
    """

    def __init__(self) -> None:
        self.data = b""
        self.lies: set[str] = set()
        self.changed: bytes | None = None  # what the file is from the third range on
        self.num_bytes = 0
        self.num_whole = 0  # answers with the whole file
        self.ranges: list[tuple[int, int]] = []
        self.if_ranges: list[str | None] = []
        ranged = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # the other side had enough
                    ranged.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def serve(self, path: Path, *lies: str) -> str:
        """Serve a file from now on; returns its address."""
        self.data, self.lies, self.changed = path.read_bytes(), set(lies), None
        self.num_bytes = self.num_whole = 0
        self.ranges.clear()
        self.if_ranges.clear()
        return f"{self.url}/{path.name}"

    def answer(self, to: http.server.BaseHTTPRequestHandler) -> None:
        asked = to.headers["Range"]
        if asked and self.changed is not None and len(self.ranges) == 2:
            self.data, self.changed = self.changed, None
        etag = f'"{hash(self.data)}"'
        if asked:
            first, last = (int(each or -1) for each in asked.removeprefix("bytes=").split("-"))
            last = min(last, len(self.data) - 1) if last >= 0 else len(self.data) - 1
            self.ranges.append((first, last + 1))
            self.if_ranges.append(to.headers["If-Range"])
            stale = to.headers["If-Range"] not in (None, etag) and "if_range" not in self.lies
        if not asked or stale or "no_ranges" in self.lies:
            self.num_whole += 1
            self.send(to, 200, self.data, etag)
            return
        if "gone" in self.lies and len(self.ranges) > 2:
            self.send(to, 404, b"", None)
            return
        shift = 1000 if "shifted" in self.lies else 0
        body = self.data[first + shift : last + 1 + shift]
        said = f"bytes {first + shift}-{last + shift}/{len(self.data)}"
        sent = body[: len(body) // 2] if "short" in self.lies else body
        self.num_bytes += len(sent)
        self.send(to, 200 if "status" in self.lies else 206, sent, etag, said, len(body))

    def send(
        self,
        to: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        etag: str | None,
        said: str | None = None,
        length: int | None = None,
    ) -> None:
        to.send_response(status)
        to.send_header("Content-Type", "video/mp4")
        if etag and "no_state" not in self.lies:
            to.send_header("ETag", etag)
        if said:
            to.send_header("Content-Range", said)
        to.send_header("Content-Length", str(len(body) if length is None else length))
        to.end_headers()
        to.wfile.write(body)
