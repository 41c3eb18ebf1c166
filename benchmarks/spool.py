"""Videos of a slow server: does decoding wait for downloads, or downloads for decoding?

python benchmarks/spool.py --videos 12 --transfer-s 4 --json

A server of this machine takes `--transfer-s` for each video, as many at once as are asked for. A
Ray of two CPUs curates them with `download.ahead` 0 and 2, and from files that are here already:
what decoding alone takes. Printed: seconds of each run; of the run with `ahead`, by looking at its
turns every 50 ms from the first file that arrived to the last turn's end, the share of time in
which both turns were taken and one was; when each video's transfer began and ended; and by how much
each run is over the longer of decoding alone and of all transfers in as many lanes as it had.
"""

from __future__ import annotations

import argparse
import http.server
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from curation.commands import start_ray
from curation.flow.plans import execute, make_plan
from curation.flow.spool import TURN_PREFIX
from curation.shards import Dataset

ROOT = Path(__file__).parents[1]
VIDEO = ROOT / "examples/media/meadow.mp4"
NUM_CPUS, AHEAD = 2, 2
LOOK_S = 0.05
STEPS = 40  # in which a transfer comes


class Slow:
    """Serves a video under any number, each with bytes of its own, in a set time."""

    def __init__(self, transfer_s: float) -> None:
        self.transfers: dict[int, tuple[float, float]] = {}  # the whole ones: begin, end
        slow, data = self, VIDEO.read_bytes()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                number = int(self.path[1:].split(".")[0])
                body = data + str(number).encode()
                self.send_response(200)
                self.send_header("Content-Type", "video/mp4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                began, size = time.monotonic(), -(-len(body) // STEPS)
                try:
                    for start in range(0, len(body), size):
                        self.wfile.write(body[start : start + size])
                        threading.Event().wait(transfer_s / STEPS)
                except OSError:  # yt-dlp has seen what it is
                    self.close_connection = True
                    return
                slow.transfers[number] = began, time.monotonic()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


class Watch:
    """Looks how many turns are taken."""

    def __init__(self) -> None:
        self.looks: list[tuple[float, int]] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self) -> None:
        folder = Path(tempfile.gettempdir())
        while not self.done.wait(LOOK_S):
            self.looks.append((time.monotonic(), len(list(folder.glob(f"{TURN_PREFIX}*")))))

    def shares(self, since: float) -> dict[str, float]:
        """The share of time in which none, one, both turns were taken, up to the last one's end."""
        self.done.set()
        until = max(when for when, number in self.looks if number)
        taken = [min(number, NUM_CPUS) for when, number in self.looks if since <= when <= until]
        return {str(n): round(taken.count(n) / len(taken), 3) for n in range(NUM_CPUS + 1)}


def curate(given: list[str], output: Path, ahead: int) -> float:
    overrides = ["download.allow_private=true", "rules={}", f"download.ahead={ahead}"]
    plan = make_plan(given, "web", ROOT / "pipelines.yaml", str(output), overrides, None)
    started = time.monotonic()
    execute(plan, Console(quiet=True), time.time())
    wall_s = time.monotonic() - started
    rows = [row for row in Dataset.at(output).ledger().to_pylist() if row["level"] == "video"]
    assert len(rows) == len(given) and {row["decision"] for row in rows} == {"kept"}
    return wall_s


def measure(num_videos: int, transfer_s: float, folder: Path) -> dict[str, Any]:
    start_ray("local", num_cpus=NUM_CPUS)
    here = []
    for number in range(num_videos):
        here.append(str(folder / f"{number}.mp4"))
        shutil.copy(VIDEO, here[-1])
        with Path(here[-1]).open("ab") as file:
            file.write(f"-{number}".encode())
    curate(here[:NUM_CPUS], folder / "warm", 0)  # what is loaded once is loaded
    decode_s = curate(here, folder / "here", 0)
    facts: dict[str, Any] = {"videos": num_videos, "transfer_s": transfer_s}
    facts["decode_alone_s"] = round(decode_s, 1)
    for ahead in (0, AHEAD):
        slow, watch = Slow(transfer_s), Watch()
        urls = [f"{slow.url}/{number}.mp4" for number in range(num_videos)]
        wall_s = curate(urls, folder / f"ahead-{ahead}", ahead)
        lanes = NUM_CPUS * (1 + ahead)
        longest_s = max(decode_s, -(-num_videos // lanes) * transfer_s)
        facts[f"ahead_{ahead}_s"] = round(wall_s, 1)
        facts[f"ahead_{ahead}_ratio_to_longer"] = round(wall_s / longest_s, 2)
        first = min(end for _, end in slow.transfers.values())
        if ahead:
            facts["turns_taken_share"] = watch.shares(first)
            began = min(begin for begin, _ in slow.transfers.values())
            facts["transfers_s"] = [
                [round(begin - began, 1), round(end - began, 1)]
                for begin, end in sorted(slow.transfers.values())
            ]
        watch.done.set()
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--transfer-s", type=float, default=4.0)
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(given.videos, given.transfer_s, Path(folder))
    for name, value in facts.items():
        print(f"{name:28} {value}")
    if given.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
