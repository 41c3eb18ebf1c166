"""Downloads from one busy host by two workers: are its limits kept and all entries accounted for?

python benchmarks/downloads.py --entries 300 --json

A server of this machine has a short video under most numbers, and says of every third or so that it
is gone (404), for others alone (403), or busy for the first two times (503). A run of two workers
fetches all from a list with `--max-per-host` and `--requests-per-s`, then the same again. Printed:
what became of the entries, requests per second over the whole and the busiest ten seconds, the most
videos asked for at once, what vf-validate says, and requests of the second run.
"""

from __future__ import annotations

import argparse
import http.server
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from curation.commands import start_ray
from curation.flow.plans import execute, make_plan
from curation.shards import Dataset

ROOT = Path(__file__).parents[1]
WINDOW_S = 10.0


class Site:
    """Numbered videos, of which 1 in 5 is gone, 1 in 20 private, 1 in 20 comes at the third try."""

    def __init__(self, video: bytes) -> None:
        self.asked: list[tuple[float, int]] = []  # when, which
        self.inside: Counter[int] = Counter()
        self.most = 0
        self.lock = threading.Lock()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                number = int(self.path[1:].split(".")[0])
                with site.lock:
                    site.asked.append((time.monotonic(), number))
                    site.inside[number] += 1
                    site.most = max(site.most, len(+site.inside))
                    tries = sum(which == number for _, which in site.asked)
                threading.Event().wait(0.02)  # the way to it
                status = site.status(number, tries)
                body = video + str(number).encode() if status == 200 else b""
                self.send_response(status)
                self.send_header("Content-Type", "video/mp4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True
                with site.lock:
                    site.inside[number] -= 1

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @staticmethod
    def status(number: int, tries: int) -> int:
        if number % 5 == 1:
            return 404
        if number % 20 == 2:
            return 403
        return 503 if number % 20 == 3 and tries < 3 else 200

    def rates(self) -> tuple[float, float]:
        """Requests per second over all, and over the busiest ten seconds."""
        times = [when for when, _ in self.asked]
        busiest = max(sum(t <= each < t + WINDOW_S for each in times) for t in times)
        return len(times) / (times[-1] - times[0]), busiest / WINDOW_S


def small_video(folder: Path) -> bytes:
    path = folder / "small.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi"]
    command += ["-i", "testsrc2=size=320x180:rate=25:duration=1", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=300)
    parser.add_argument("--max-per-host", type=int, default=2)
    parser.add_argument("--requests-per-s", type=float, default=8.0)
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(given, Path(folder))
    for name, value in facts.items():
        print(f"{name:28} {value}")
    if given.json:
        print(json.dumps(facts))


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from rich.console import Console

    site = Site(small_video(folder))
    entries = folder / "list.txt"
    entries.write_text("".join(f"{site.url}/{number}.mp4\n" for number in range(given.entries)))
    overrides = [
        "download.allow_private=true",
        f"download.max_per_host={given.max_per_host}",
        f"download.requests_per_s={given.requests_per_s}",
        "rules={}",  # what is fetched is kept, small as it is
    ]
    output = folder / "out"
    start_ray("local", num_cpus=2)
    seconds = []
    for _ in range(2):
        before = len(site.asked)
        started = time.monotonic()
        plan = make_plan([str(entries)], "web", ROOT / "pipelines.yaml", str(output), overrides,
                         None, [])  # fmt: skip
        execute(plan, Console(quiet=True), time.time())
        seconds.append(time.monotonic() - started)
        if before == 0:
            overall, busiest = site.rates()
            first = len(site.asked)
    rows = [row for row in Dataset.at(output).ledger().to_pylist() if row["level"] == "video"]
    outcomes = Counter(row["error_class"] or row["decision"] for row in rows)
    command = [sys.executable, "-m", "curation.validate", str(output)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {
        "entries": given.entries,
        "outcomes": dict(outcomes),
        "accounted": sum(outcomes.values()),
        "requests": first,
        "requests_per_s": round(overall, 2),
        "busiest_requests_per_s": round(busiest, 2),
        "allowed_requests_per_s": given.requests_per_s,
        "videos_at_once": site.most,
        "allowed_at_once": given.max_per_host,
        "vf_validate_exit_code": checked.returncode,
        "requests_of_second_run": len(site.asked) - first,
        "run_s": [round(each, 1) for each in seconds],
    }


if __name__ == "__main__":
    main()
