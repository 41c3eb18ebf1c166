"""python benchmarks/same_losses.py [--data DATASET] [--code CHECKOUT] [--set path=value]

The first ten losses of `vf-train --preset tiny`, every bit of them, and their sha256: two checkouts
that print the same train the same. The data are drawn here unless a dataset folder is given; losses
depend on its name and not on its place. `--code` is another checkout of this repository, such as a
`git worktree` of an earlier commit; this one by default.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from curation.shards import Dataset, write_commit  # noqa: E402

NUM_STEPS = 10
WIDTH, HEIGHT, FPS, NUM_FRAMES = 160, 96, 8, 12


def drawn(n: int) -> bytes:
    """An mp4 of a bright square that moves over a gradient; n says where and how fast."""
    sink = io.BytesIO()
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    with av.open(sink, "w", "mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "18", "threads": "1"}
        for t in range(NUM_FRAMES):
            picture = np.stack([columns, 2 * rows, columns + rows], -1).astype(np.uint8)
            x, y = (7 * n + 4 * t * (1 + n % 3)) % (WIDTH - 24), (11 * n + 3 * t) % (HEIGHT - 24)
            picture[y : y + 24, x : x + 24] = (250, 40 * (n % 6), 60)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def draw_dataset(folder: Path, num_clips: int = 8) -> Path:
    """A dataset folder of as many videos, a clip each."""
    clips, ledger = [], []
    for n in range(num_clips):
        video = {"video_id": f"video-{n}", "source_url": f"file:///video-{n}.mp4"}
        seconds = NUM_FRAMES / FPS
        clips.append(
            {"clip_id": f"clip-{n}", **video, "start_s": 0.0, "end_s": seconds,
             "duration_s": seconds, "fps": float(FPS), "num_frames": NUM_FRAMES, "width": WIDTH,
             "height": HEIGHT, "codec": "h264", "scene_index": 0, "caption": f"a square, {n}",
             "clip": {"bytes": drawn(n), "path": None}}
        )  # fmt: skip
        ledger.append({"level": "video", **video, "decision": "kept", "attempts": 1})
    write_commit(Dataset.at(folder), clips, ledger, {"cut": "drawn"})
    return folder


def losses_of(code: Path, data: Path, run: Path, sets: list[str]) -> list[float]:
    """The losses of the first steps, trained by the code of a checkout."""
    sets = [f"max_steps={NUM_STEPS}", "num_samples=0", "num_threads=1", *sets]
    command = [sys.executable, "-m", "training.train", "--preset", "tiny"]
    command += ["--data", str(data), "--output", str(run)]
    command += [part for each in sets for part in ("--set", each)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a dataset folder; default: drawn here")
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout that trains")
    parser.add_argument("--set", action="append", default=[], help="path=value inside the preset")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = given.data.absolute() if given.data else draw_dataset(Path(folder) / "drawn")
        found = losses_of(given.code.absolute(), data, Path(folder) / "run", given.set)
    for loss in found:
        print(repr(loss))
    print(hashlib.sha256(json.dumps(found).encode()).hexdigest())


if __name__ == "__main__":
    main()
