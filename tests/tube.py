"""A site of videos for tests: its server on this machine, and its extractors for yt-dlp."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from yt_dlp.extractor.common import InfoExtractor, SearchInfoExtractor
from yt_dlp.utils import ExtractorError, OnDemandPagedList

HOST = r"http://127\.0\.0\.1:\d+"
PAGE_SIZE = 3


class Tube:
    """Serves JSON: pages of videos, and lists of three entries a page; notes what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}  # path: JSON, text, or an HTTP status
        self.asked: list[str] = []
        tube = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                tube.asked.append(self.path)
                found = tube.answers.get(self.path, 404)
                status = found if isinstance(found, int) else 200
                body = (found if isinstance(found, str) else json.dumps(found)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        SearchIE.url = self.url
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def entry(self, video_id: str, **facts: Any) -> dict[str, Any]:
        """A video as lists have it: no more than its link and what is said here."""
        return {"_type": "url", "url": f"{self.url}/watch/{video_id}", "id": video_id} | facts

    def entries(self, *video_ids: str) -> list[dict[str, Any]]:
        return [self.entry(each) for each in video_ids]

    def put_list(self, name: str, entries: list[Any]) -> str:
        """A list, a page of three after another; returns its address."""
        for start in range(0, len(entries) + PAGE_SIZE, PAGE_SIZE):
            number = start // PAGE_SIZE
            self.answers[f"/list/{name}.{number}.json"] = entries[start : start + PAGE_SIZE]
        return f"{self.url}/list/{name}"

    def put_page(self, video_id: str, *heights: int, **facts: Any) -> None:
        """The page of a video with formats of these heights, and one of sound."""
        formats = [{"url": f"{self.url}/{h}.mp4", "height": h, "vcodec": "avc1"} for h in heights]
        sound = {"url": f"{self.url}/a.m4a", "vcodec": "none", "height": 9999}
        page = {"id": video_id, "title": f"Page {video_id}", "formats": [sound, *formats]}
        self.answers[f"/watch/{video_id}.json"] = page | facts


class TubeIE(InfoExtractor):
    IE_NAME = "tube"
    _VALID_URL = HOST + r"/watch/(?P<id>\w+)$"
    _RETURN_TYPE = "video"

    def _real_extract(self, url: str) -> Any:
        video_id = self._match_id(url)
        page = self._download_json(f"{url}.json", video_id)
        if "error" in page:
            raise ExtractorError(page["error"], expected=True)
        return page


class TubeListIE(InfoExtractor):
    IE_NAME = "tube:list"
    _VALID_URL = HOST + r"/list/(?P<id>\w+)$"
    _RETURN_TYPE = "playlist"

    def _real_extract(self, url: str) -> Any:
        name = self._match_id(url)

        def page(number: int) -> Any:
            return self._download_json(f"{url}.{number}.json", name)

        page(0)  # that it is there
        return self.playlist_result(OnDemandPagedList(page, PAGE_SIZE), name)


class SearchIE(SearchInfoExtractor):
    IE_NAME = "tube:search"
    _SEARCH_KEY = "tubesearch"
    _RETURN_TYPE = "playlist"
    url: ClassVar[str]

    def _search_results(self, query: str) -> Iterator[Any]:
        number = 0
        address = f"{self.url}/list/{query.replace(' ', '_')}"
        while found := self._download_json(f"{address}.{number}.json", query):
            yield from found
            number += 1


EXTRACTORS = (TubeIE, TubeListIE, SearchIE)
