"""The first result: `curation/run.py` on the sample videos, from command to funnel.

python benchmarks/first_result.py [--repeats 3] [--json]

Without Ray, as few videos run, and on a Ray of its own (`--ray-address local`), in turns. For each:
seconds by the clock; CPU seconds and, summed over all processes of the run, the largest resident
memory without what they share (USS), looked at every 50 ms; the kept clips, which must be the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
WAYS = {"without Ray": [], "with Ray": ["--ray-address", "local"]}
LOOK_S = 0.05


def measured(output: Path, how: list[str]) -> dict[str, Any]:
    """One run: wall_s, cpu_s, memory_mb, kept."""
    command = [sys.executable, "curation/run.py", "--output", str(output), "--json", *how]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    cpu_s: dict[int, float] = {}
    most = 0
    while process.poll() is None:
        most = max(most, look(psutil.Process(process.pid), cpu_s))
        time.sleep(LOOK_S)
    wall_s = time.monotonic() - started
    assert process.stdout is not None and process.returncode == 0
    result = json.loads(process.stdout.read())
    return {
        "wall_s": round(wall_s, 2),
        "cpu_s": round(sum(cpu_s.values()), 1),
        "memory_mb": round(most / 1e6),
        "kept": result["funnel"]["clips"]["kept"],
    }


def look(process: psutil.Process, cpu_s: dict[int, float]) -> int:
    """Memory of a process and all that it started, bytes; notes what CPU each has used."""
    total = 0
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for each in tree:
        try:
            times = each.cpu_times()
            cpu_s[each.pid] = times.user + times.system
            total += each.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for n in range(given.repeats):
            for name, how in WAYS.items():
                found[name].append(measured(Path(folder, f"{name}-{n}"), how))
    assert len({run["kept"] for runs in found.values() for run in runs}) == 1
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'median of ' + str(given.repeats):14}{'wall s':>9}{'CPU s':>9}{'MB':>7}")
    for name, runs in found.items():
        middle = [statistics.median(run[key] for run in runs) for key in ("wall_s", "cpu_s")]
        memory_mb = statistics.median(run["memory_mb"] for run in runs)
        print(f"{name:14}{middle[0]:9.1f}{middle[1]:9.1f}{memory_mb:7.0f}")


if __name__ == "__main__":
    main()
