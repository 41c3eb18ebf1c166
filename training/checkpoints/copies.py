"""Checkpoints of a run at a URI too: copied when they are complete, fetched where a run has none.

URI/step-00000100/        the files of a checkpoint; run/: what else a run goes on with
URI/step-00000100.json    written last and deleted first: without it the folder is no checkpoint
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.fs as pafs

from curation.places import dataset_at
from curation.settings import RunError
from curation.shards import Dataset
from training.checkpoints.folders import STEP, latest, sync, to_drop

# metrics.jsonl so that a run that goes on elsewhere has every step; card.json makes it a run.
RUN_FILES = ("card.json", "start.json", "config.yaml", "metrics.jsonl")


def names_at(place: Dataset) -> list[str]:
    """The complete checkpoints at a place, oldest first."""
    selector = pafs.FileSelector(place.root, allow_not_found=True)
    files = [info.base_name for info in place.filesystem.get_file_info(selector)]
    names = [name.removesuffix(".json") for name in files if name.endswith(".json")]
    return sorted((n for n in names if STEP.fullmatch(n)), key=lambda n: int(n[len("step-") :]))


def put(checkpoint: Path, uri: str, keep: int, milestone_every: int | None) -> None:
    """Copy a complete checkpoint there, then drop old ones by the rule of those here."""
    place, run, name = dataset_at(uri), checkpoint.parents[1], checkpoint.name
    there = place.path(name)
    place.filesystem.delete_dir_contents(there, missing_dir_ok=True)  # a half one of a killed run
    copied = [(checkpoint / path, path) for path in files_below(checkpoint)]
    own = [*RUN_FILES, f"train_signal/{name}.json"]
    copied += [(run / each, f"run/{each}") for each in own if (run / each).exists()]
    for source, path in copied:
        target = f"{there}/{path}"
        place.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        pafs.copy_files(str(source.absolute()), target, source_filesystem=pafs.LocalFileSystem(),
                        destination_filesystem=place.filesystem)  # fmt: skip
    with place.filesystem.open_output_stream(place.path(f"{name}.json")) as stream:
        stream.write(json.dumps({"files": [path for _, path in copied]}).encode())
    for old in to_drop(names_at(place), keep, milestone_every):
        place.filesystem.delete_file(place.path(f"{old}.json"))
        place.filesystem.delete_dir(place.path(old))


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def fetch(run: Path, uri: str) -> str | None:
    """Copy the latest checkpoint from there into a run that has none; returns its name.

    The run's own files come first, so that a killed fetch leaves a run that fetches again.
    """
    place = dataset_at(uri)
    names = [] if latest(run) else names_at(place)
    if not names:
        return None
    name, target = names[-1], run / "checkpoints" / names[-1]
    written = target.with_name(f".tmp-{name}")
    shutil.rmtree(written, ignore_errors=True)
    with place.filesystem.open_input_stream(place.path(f"{name}.json")) as stream:
        files = json.loads(stream.read())["files"]
    if any(".." in path.split("/") or path.startswith("/") for path in files):
        raise RunError(f"{name}.json at its URI names files outside of the run: it is not ours")
    for path in sorted(files, key=lambda path: not path.startswith("run/")):
        own = path.removeprefix("run/")
        local = written / path if own == path else run / own
        local.parent.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(place.path(name, path), str(local.absolute()),
                        source_filesystem=place.filesystem,
                        destination_filesystem=pafs.LocalFileSystem())  # fmt: skip
        sync(local)
    if sorted(path for path in files if not path.startswith("run/")) != files_below(written):
        raise RunError(f"{name} at its URI is not whole; delete {name}.json there, or this run's "
                       "checkpoint_to")  # fmt: skip
    written.rename(target)
    sync(target.parent)
    return name
