"""What becomes of damaged files: mutated small videos through probe, decode and cut.

python benchmarks/fuzz.py --count 10000 --json

Small files of every container and codec that ffmpeg writes here are changed (bytes flipped, taken
out, put in, moved, the end cut off; half of the changes in the first or last kilobyte, where the
headers are) and curated in a media process under its limits, as a run does it. Every file must have
one of the three outcomes, none may be `internal`, and every clip that is kept must be what its row
and its previews say. Prints outcomes by container. `--json`: one object with num_files, outcomes,
num_broken (clips that are not what they say), died (files that killed the process, by class) and
max_s. A number is the seed of its file, so that one can be made again: --only.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio_ffmpeg
from rich.console import Console
from rich.table import Table

from curation.flow.media_processes import MediaWorker, curate_isolated
from curation.pipelines import Media, Pipeline
from curation.records import VideoResult
from curation.sources import Source
from curation.validation.clips import check_clip

VP8 = ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8")
X265 = ("-c:v", "libx265", "-x265-params", "log-level=none")
CONTAINERS: dict[str, tuple[str, ...]] = {
    "mp4": (),
    "fast.mp4": ("-movflags", "+faststart"),
    "fragments.mp4": ("-movflags", "+frag_keyframe+empty_moov"),
    "hevc.mp4": X265,
    "mov": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p"),
    "mkv": (),
    "webm": VP9,
    "vp8.webm": VP8,
    "avi": ("-c:v", "mpeg4"),
    "ts": (),
    "mpg": ("-c:v", "mpeg2video"),
    "flv": ("-c:v", "flv1"),
    "wmv": ("-c:v", "wmv2"),
    "3gp": ("-c:v", "mpeg4"),
    "ogv": ("-c:v", "libtheora"),
    "gif": ("-c:v", "gif", "-pix_fmt", "rgb8"),
    "h264": (),
}
PIPELINE = Pipeline(media=Media(timeout_s=60, stall_s=30, memory_gb=2))
MAX_CHANGES = 12


def make_seeds(folder: Path) -> dict[str, bytes]:
    """Half a second of two shots in every container."""
    picture = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=0.3")
    other = ("-f", "lavfi", "-i", "mandelbrot=s=96x64:r=25", "-t", "0.5")
    graph = ("-filter_complex", "[0:v][1:v]concat=n=2,format=yuv420p")
    seeds = {}
    for name, options in CONTAINERS.items():
        path = folder / f"seed.{name}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error"]
        command += [*picture, *other, *graph, "-t", "0.5", "-g", "8", *options]
        subprocess.run([*command, "-threads", "1", str(path)], check=True)
        seeds[name] = path.read_bytes()
    return seeds


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with one to MAX_CHANGES changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, MAX_CHANGES)):
        if len(out) < 16:
            break
        ends = (0, min(1024, len(out))), (max(0, len(out) - 1024), len(out))
        low, high = rng.choice([*ends, (0, len(out)), (0, len(out))])
        at = rng.randrange(low, high)
        size = rng.choice((1, 1, 2, 4, 16, 188))
        match rng.choice(("flip", "flip", "flip", "big", "out", "in", "move", "end")):
            case "flip":
                out[at] ^= 1 << rng.randrange(8)
            case "big":  # lengths and counts at their limits
                out[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4))
            case "out":
                del out[at : at + size]
            case "in":
                out[at:at] = rng.randbytes(size)
            case "move":
                piece = out[at : at + size]
                to = rng.randrange(len(out))
                out[to : to + len(piece)] = piece
            case "end" if rng.random() < 0.2:
                del out[at:]
    return bytes(out)


@dataclass
class Found:
    """What became of some files."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)  # by container
    died: list[str] = field(default_factory=list)  # number, container and class
    broken: list[str] = field(default_factory=list)  # number, container and what is wrong
    max_s: float = 0.0

    def add(self, number: int, name: str, result: VideoResult, wall_s: float) -> None:
        video = result.video
        outcome = video["error_class"] or video["decision"]
        if video["partial"]:
            outcome += ", partial"
        self.outcomes.setdefault(name, Counter())[outcome] += 1
        self.max_s = max(self.max_s, wall_s)
        if video["error_class"] in ("crashed", "stalled", "timeout", "memory", "internal"):
            said = (video["message"] or "").splitlines()[-1][-120:]
            self.died.append(f"{number} {name}: {video['error_class']}: {said}")
        previews = {row["clip_id"]: row["preview"] for row in result.ledger}
        for clip in result.clips:
            for says in check_clip(clip.shard_row(), previews[clip.clip_id] or ()):
                self.broken.append(f"{number} {name}: {says}")

    def total(self) -> Counter[str]:
        return sum(self.outcomes.values(), Counter())


def fuzz(seeds: dict[str, bytes], numbers: range, folder: Path, found: Found) -> Iterator[int]:
    """Curate the files of these numbers, one after another."""
    names = list(seeds)
    with MediaWorker(PIPELINE.media) as worker:
        for number in numbers:
            name = names[number % len(names)]
            path = folder / f"file.{name}"
            path.write_bytes(mutated(seeds[name], random.Random(number)))
            source = Source(url=name, path=str(path), id="v")
            started = time.perf_counter()
            result = curate_isolated(worker, source, PIPELINE, lambda stage, at_s: None)
            found.add(number, name, result, time.perf_counter() - started)
            yield number


@contextmanager
def folder_for(*, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    yield folder
    if not keep:
        shutil.rmtree(folder)


def show(found: Found) -> None:
    kinds = [kind for kind, _ in found.total().most_common()]
    table = Table("container", *kinds)
    for name, counts in found.outcomes.items():
        table.add_row(name, *(str(counts[kind] or "") for kind in kinds))
    console = Console(width=200)
    console.print(table)
    for line in [*found.died, *found.broken]:
        console.print(line, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--only", type=int, help="this file alone; it is left in the folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = Found()
    with folder_for(keep=options.only is not None) as folder:
        seeds = make_seeds(folder)
        one = options.only
        numbers = range(options.count) if one is None else range(one, one + 1)
        for number in fuzz(seeds, numbers, folder, found):
            if number % 500 == 499:
                print(f"{number + 1} of {options.count}: {len(found.died)} died", file=sys.stderr)
    show(found)
    if options.only is not None:
        print(folder)
    facts: dict[str, Any] = {
        "num_files": found.total().total(),
        "outcomes": dict(found.total()),
        "num_broken": len(found.broken),
        "died": dict(Counter(line.split(": ")[1] for line in found.died)),
        "max_s": round(found.max_s, 2),
    }
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
