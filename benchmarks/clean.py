"""What deciding over a big dataset costs: `vf-clean --dry-run` on a generated ledger.

python benchmarks/clean.py --rows 1000000 --json

The ledger is as curation writes it (ten candidate clips a video, seven kept, 10 000 rows a commit);
text and aesthetic stand in it, what the motion scorer finds (motion, slideshow, zoom, flicker)
beside it in scores/, so that every rule of the recipe has clips to decide on. The command runs as a
process of its own; its wall-clock time and the peak of its resident memory are what is measured.
`--json` prints one object with wall_s and peak_memory_mb.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from curation.shards import LEDGER_SCHEMA, Dataset, conform, write_table, write_tables
from curation.subsets.gathered import score_schema
from curation.subsets.recipes import load_recipe, score_folder

ROOT = Path(__file__).parents[1]
ROWS_A_COMMIT = 10_000
CLIPS_A_VIDEO = 10
KEPT_A_VIDEO = 7


def make_ledger(first_video: int, num_rows: int, rng: np.random.Generator) -> pa.Table:
    """The ledger of a commit: for every video its row and those of its clips."""
    a_video = CLIPS_A_VIDEO + 1
    n = num_rows // a_video * a_video
    place = np.arange(n) % a_video  # 0: the video's own row
    video = first_video + np.arange(n) // a_video
    is_clip = place > 0
    kept = place <= KEPT_A_VIDEO
    ids = [f"{v:020x}" for v in video]
    scores = {name: rng.random(n) for name in ("text", "aesthetic", "sharpness", "black_bars")}
    known = {
        "level": np.where(is_clip, "clip", "video"),
        "video_id": ids,
        "clip_id": [
            f"{v}_{p:08d}_{p + 1:08d}" if p else None for v, p in zip(ids, place, strict=True)
        ],
        "source_url": [f"https://example.org/watch?v={v}" for v in ids],
        "start_s": np.where(is_clip, place * 5.0, np.nan),
        "end_s": np.where(is_clip, place * 5.0 + 5.0, np.nan),
        "caption": ["a clip of something that moves in front of something else"] * n,
        "decision": np.where(kept, "kept", "dropped"),
        "rule": np.where(kept, None, "static"),
        "attempts": np.ones(n, np.int32),
        "duration": np.full(n, 5.0),
        **scores,
    }
    columns = {k: pa.array(v, LEDGER_SCHEMA.field(k).type) for k, v in known.items()}
    return conform(pa.table(columns), LEDGER_SCHEMA)


def make_dataset(folder: Path, num_rows: int) -> Dataset:
    """A dataset of ledgers with motion scores beside them; its shards hold no media."""
    dataset = Dataset.at(folder)
    rng = np.random.default_rng(0)
    recipe = load_recipe(ROOT / "pipelines.yaml", "hd-vg-clean", [])
    key = score_folder(recipe.scorers, "motion")
    for first in range(0, num_rows, ROWS_A_COMMIT):
        ledger = make_ledger(first, min(ROWS_A_COMMIT, num_rows - first), rng)
        videos = pa.compute.unique(ledger["video_id"]).to_pylist()
        name = write_tables(dataset, videos, [], ledger, {"benchmark": "1"})["name"]
        kept = pa.compute.and_(
            pa.compute.is_valid(ledger["clip_id"]), pa.compute.equal(ledger["decision"], "kept")
        )
        ids = ledger.filter(kept)["clip_id"].combine_chunks()
        schema = score_schema("motion")
        names = [field.name for field in schema if field.type == pa.float64()]
        scores = {name: rng.random(len(ids)) for name in names}
        found = {"clip_id": ids, "scored": np.ones(len(ids), bool), **scores}
        write_table(dataset, f"scores/{key}", name, [conform(pa.table(found), schema)], schema)
    run = {"scorers": recipe.scorers.model_dump()}
    dataset.write_bytes(json.dumps(run).encode(), "run.json")
    return dataset


def measure(dataset: Dataset) -> tuple[float, float, str]:
    """Seconds and MB of one dry run, and what it printed."""
    command = [sys.executable, "-m", "curation.clean", dataset.root, "--dry-run"]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--set", "rules.text.max=0.9"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    wall_s = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"the dry run failed:\n{done.stdout}{done.stderr}")
    # ru_maxrss is in KiB on Linux; the largest child so far is the one just measured.
    return wall_s, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "dataset", arguments.rows)
        wall_s, peak_memory_mb, said = measure(dataset)
    console = Console()
    console.print(said, markup=False, highlight=False)
    table = Table("rows", "commits", "wall_s", "peak_memory_mb")
    num_commits = -(-arguments.rows // ROWS_A_COMMIT)
    table.add_row(f"{arguments.rows:,}", str(num_commits), f"{wall_s:.1f}", f"{peak_memory_mb:.0f}")
    console.print(table)
    if arguments.json:
        found = {"rows": arguments.rows, "wall_s": wall_s, "peak_memory_mb": peak_memory_mb}
        print(json.dumps(found))


if __name__ == "__main__":
    main()
