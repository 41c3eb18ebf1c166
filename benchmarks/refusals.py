"""What a hostile or busy server costs: behaviour, class, requests, seconds.

python benchmarks/refusals.py --json

The server of tests/test_downloads_refused.py, asked with the settings that a run has by default
(three attempts, waits of about 2 and 4 s, 30 s without a byte).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from curation.downloads.fetches import download
from curation.media.files import MediaError
from curation.pipelines import Download
from curation.sources import Source

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # where the server is


def small_video(folder: Path) -> bytes:
    path = folder / "small.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi"]
    command += ["-i", "testsrc2=size=320x180:rate=25:duration=1", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path.read_bytes()


def measure(folder: Path) -> list[dict[str, Any]]:
    from test_downloads_refused import ANSWERS, Server

    server = Server(small_video(folder))
    rows = []
    for name in ANSWERS:
        place = folder / name
        place.mkdir()
        server.asked.clear()
        started = time.monotonic()
        source = Source(url=f"{server.url}/{name}.mp4")
        try:
            download(source, place, Download(allow_private=True), lambda: None)
            outcome = "fetched"
        except MediaError as error:
            outcome = error.error_class
        seconds, requests = time.monotonic() - started, len(server.asked)
        rows.append({"server": name, "outcome": outcome, "requests": requests, "seconds": seconds})
        print(f"{name:10} {outcome:16} {requests:3} requests {seconds:7.1f} s", flush=True)
    server.server.shutdown()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    if given.json:
        print(json.dumps({"behaviours": rows}))


if __name__ == "__main__":
    main()
