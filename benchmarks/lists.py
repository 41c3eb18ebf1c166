"""Peak memory and CPU of reading a long list: vf-sources, and what a run holds of it.

python benchmarks/lists.py --rows 1000000 --json
python benchmarks/lists.py --rows 10000000 --command sources --kind csv

A list of so many rows is written: clips of videos that have four rows each, the rows of one video
far apart, as `url, start, end, caption, category`. It is read by `vf-sources LIST --output`
(sources), and by `curation/run.py LIST --dry-run` (run), each in a process of its own, whose peak
resident memory is the kernel's. The ratio is CPU to that of Python's csv reading the same rows.
`--json` prints one object: rows, and for each command and kind peak_mb, cpu_s, ratio_to_csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
CLIPS_PER_VIDEO = 4
NAMES = ("url", "start", "end", "caption", "category")


def rows(number: int) -> Iterator[tuple[Any, ...]]:
    num_videos = max(1, number // CLIPS_PER_VIDEO)
    for at in range(number):
        clip, video = divmod(at, num_videos)
        words = f"clip {clip} of video {video}: somebody walks along the beach while a dog runs"
        yield (
            f"https://h.example/watch/{video}.mp4",
            clip * 5,
            clip * 5 + 4.5,
            words,
            f"c{video % 15}",
        )


def write(path: Path, number: int) -> None:
    """A list of that many rows, of the kind that the suffix says."""
    if path.suffix == ".parquet":
        kinds = (pa.string(), pa.float64(), pa.float64(), pa.string(), pa.string())
        schema = pa.schema(list(zip(NAMES, kinds, strict=True)))
        with pq.ParquetWriter(path, schema) as writer:
            waiting: list[dict[str, Any]] = []
            for row in rows(number):
                waiting.append(dict(zip(NAMES, row, strict=True)))
                if len(waiting) == 10_000:
                    writer.write_table(pa.Table.from_pylist(waiting, schema))
                    waiting = []
            writer.write_table(pa.Table.from_pylist(waiting, schema))
        return
    with path.open("w", newline="") as file:
        if path.suffix == ".csv":
            out = csv.writer(file)
            out.writerow(NAMES)
            out.writerows(rows(number))
            return
        is_array = path.suffix == ".json"
        for at, row in enumerate(rows(number)):
            line = json.dumps(dict(zip(NAMES, row, strict=True)))
            file.write(("[" if at == 0 else ",\n") + line if is_array else line + "\n")
        file.write("]" if is_array else "")


def measure(command: list[str]) -> tuple[float, float]:
    """Peak resident MB and CPU seconds of a command's process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    kilo = 1 if sys.platform == "darwin" else 1024
    return used.ru_maxrss * kilo / 1e6, used.ru_utime + used.ru_stime


def csv_cpu_s(number: int, folder: Path) -> float:
    """CPU seconds of Python's csv on a million of the rows at most, for all of them."""
    path = folder / "plain.csv"
    some = min(number, 1_000_000)
    write(path, some)
    began = time.process_time()
    with path.open(newline="") as file:
        for _ in csv.reader(file):
            pass
    spent = time.process_time() - began
    path.unlink()
    return spent * number / some


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kind", action="append", choices=["csv", "jsonl", "json", "parquet"])
    parser.add_argument("--command", action="append", choices=["sources", "run"])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, Any] = {"rows": asked.rows}
    print(f"{asked.rows:,} rows\n{'':18}{'peak MB':>9}{'CPU s':>9}{'x csv':>8}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base_s = csv_cpu_s(asked.rows, folder)
        for kind in asked.kind or ["csv", "parquet"]:
            path = folder / f"list.{kind}"
            write(path, asked.rows)
            commands = {
                "sources": ["-m", "curation.sources", str(path), "--output", f"{name}/o.parquet"],
                "run": ["curation/run.py", str(path), "--pipeline", "web", "--dry-run"],
            }
            for command in asked.command or ["sources", "run"]:
                peak_mb, cpu_s = measure([sys.executable, *commands[command]])
                (folder / "o.parquet").unlink(missing_ok=True)
                ratio = cpu_s / base_s
                print(
                    f"{command + ' ' + kind:18}{peak_mb:9.0f}{cpu_s:9.1f}{ratio:8.1f}", flush=True
                )
                found[f"{command}_{kind}"] = {
                    "peak_mb": round(peak_mb),
                    "cpu_s": round(cpu_s, 1),
                    "ratio_to_csv": round(ratio, 1),
                }
            path.unlink()
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
