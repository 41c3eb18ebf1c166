"""Whether two versions of the code give the same dataset: a hash of everything that a run decides.

    python benchmarks/same_results.py examples/media --set scorers.motion=flow --json
    python benchmarks/same_results.py SOURCE --code ../older --json

Curates a source into a temporary folder and makes a subset of it with vf-clean, with the code in
`--code` (a checkout of any commit; this one by default) and by the public commands alone. Two
versions agree where every line agrees. Left out are what a run costs and how often it was tried.
A score that curation was not told to make, vf-clean makes of the stored clips.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
COSTS = {"stage_s", "attempts"}
# Everything that stored clips can be scored by without weights.
CLEAN = ("scorers.aesthetic=technical_quality", "scorers.look=pixels", "rules.sharpness.min=0")


def run(code: Path, module: str, *arguments: str | Path) -> None:
    """One of our commands with the code of a checkout; ends the benchmark when it fails."""
    environment = os.environ | {"PYTHONPATH": str(code)}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=code, env=environment, stdout=sys.stderr)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")


def rows_of(files: list[Path]) -> list[dict[str, Any]]:
    """The rows of Parquet files, in an order that does not depend on how they were committed."""
    rows = [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]
    return sorted(rows, key=lambda row: (row.get("video_id") or "", row["clip_id"] or ""))


def digest(rows: list[dict[str, Any]]) -> str:
    text = json.dumps(rows, sort_keys=True, default=lambda data: hashlib.sha256(data).hexdigest())
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def of_dataset(folder: Path, name: str) -> dict[str, str | int]:
    """Hashes of a dataset folder: ledger rows, shard rows without media, and the media."""
    ledger = rows_of([*(folder / "ledger").glob("*.parquet")])
    shards = rows_of([*(folder / "shards").glob("*.parquet")])
    media = [{"clip_id": row["clip_id"], "clip": row.pop("clip")} for row in shards]
    return {
        f"{name} ledger rows": len(ledger),
        f"{name} clips": len(shards),
        f"{name} ledger": digest([{k: row[k] for k in row.keys() - COSTS} for row in ledger]),
        f"{name} shard rows": digest(shards),
        f"{name} media": digest(media),
    }


def of_scores(folder: Path) -> dict[str, str | int]:
    """A hash of what vf-clean measured of stored clips, by scorer."""
    found: dict[str, str | int] = {}
    for scorer in sorted(folder.glob("*")):
        key = scorer.name.rsplit("-", 1)[0]
        found[f"scored {key}"] = digest(rows_of([*scorer.glob("*.parquet")]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="+")
    parser.add_argument("--pipeline", default="web")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--recipe", default="hd-vg-clean")
    parser.add_argument("--clean-set", action="append", default=[*CLEAN], metavar="PATH=VALUE")
    parser.add_argument("--code", type=Path, default=ROOT, help="a checkout; default: this one")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    code = given.code.resolve()
    sources = [str(Path(s).resolve()) if Path(s).exists() else s for s in given.source]
    with tempfile.TemporaryDirectory() as folder:
        dataset, subset = Path(folder) / "dataset", Path(folder) / "subset"
        sets = [f"--set={override}" for override in given.set]
        how = ["--pipeline", given.pipeline, *sets]
        run(code, "curation.run", *sources, "--output", dataset, *how)
        sets = [f"--set={override}" for override in given.clean_set]
        run(code, "curation.clean", dataset, "--output", subset, "--recipe", given.recipe, *sets)
        found = of_dataset(dataset, "curated") | of_scores(dataset / "scores")
        found |= of_dataset(subset, "subset")
    for name, value in found.items():
        print(f"{name:24} {value}")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
