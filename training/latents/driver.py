"""The body of vf-precompute: what is left to encode, by whom, and what came of it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import ray
import torch
from rich.console import Console
from rich.progress import Progress

from curation.commands import FAILED_RUN, say, start_ray
from curation.places import check_lasting, check_reachable, only_writer
from curation.settings import ConfigError, counted
from curation.shards import Dataset, DatasetError
from model.texts import CONTEXT
from training.commands import guarded
from training.config import Config, load_config
from training.data.shapes import shapes_of, transform_of
from training.latents.encoders import (
    ShardOutcome,
    encode_all,
    latents_of,
    load_all,
    start_encoders,
)
from training.latents.files import EMPTY, MADE_WITH, STATES, Stored, problems_of
from training.latents.fingerprints import fingerprint_of, sources_of
from training.learning.starts import make_codec, make_text


def precompute(
    location: str,
    preset: str,
    overrides: list[str],
    output: str | None,
    workers: int | None,
    ray_address: str | None,
    dry_run: bool,
) -> None:
    """The body of `vf-precompute`."""

    def body(console: Console) -> None:
        config = load_config(preset, overrides)
        config = config.model_copy(update={"windows": config.windows or 1, "precomputed": False})
        if output:
            check_lasting(output)
        dataset, commits = committed(location)
        latents = output or f"{location.rstrip('/')}/latents"
        tell = partial(say, console)
        if dry_run:
            tell(plan(config, commits, latents))
            return
        if not ray.is_initialized():
            start_ray(ray_address)
        check_reachable(latents)
        encoders = start_encoders(config, workers, len(commits))
        try:
            facts = load_all(encoders)
            folder = Dataset.at(f"{latents.rstrip('/')}/{fingerprint_of(facts)}")
            with only_writer(folder, "another vf-precompute"):
                prepare(folder, facts, config, encoders[0])
                if output is None:
                    remove_strays(folder, {commit["name"] for commit in commits})
                run(encoders, dataset, commits, folder, console)
        finally:
            for encoder in encoders:
                ray.kill(encoder)
        given = [*overrides, f"precomputed={output or 'true'}"]
        tell(f"train on it: vf-train --preset {preset} --data {location} --output RUN "
            f"{' '.join(f'--set {each}' for each in given)}")  # fmt: skip

    guarded(body)


def committed(location: str) -> tuple[Dataset, list[dict[str, Any]]]:
    """A dataset and those of its commits that hold clips; ConfigError without any."""
    try:
        dataset = Dataset.at(location).require()
        commits = [commit for commit in dataset.commits() if commit["num_clips"]]
    except (DatasetError, pa.ArrowException, OSError) as error:
        raise ConfigError(f"{location}: {error}") from None
    if not commits:
        raise ConfigError(f"{location} holds no clips: its videos were all dropped (vf-why)")
    return dataset, commits


def plan(config: Config, commits: list[dict[str, Any]], latents: str) -> str:
    """What would be written; no weights are read for it."""
    device = torch.device("cpu")
    codec, text = make_codec(config, device, lazy=True), make_text(config, device, lazy=True)
    latent = latents_of(shapes_of(config), codec, config.stored_dtype)[0]
    states = Stored((CONTEXT, text.width), config.stored_dtype)
    size, clips = latent.num_bytes + states.num_bytes, sum(c["num_clips"] for c in commits)
    return (
        f"{json.dumps(transform_of(config))}\n"
        f"latents {config.latents} {list(latent.shape)} (windows, channels, frames, rows, "
        f"columns), {STATES} {config.text} {list(states.shape)}, both {config.stored_dtype}\n"
        f"{counted(len(commits), 'shards')}, {counted(clips, 'clips')}, {size / 1e6:.2f} MB each, "
        f"{clips * size / 1e9:.2f} GB in {latents}"
    )


def prepare(folder: Dataset, facts: dict[str, Any], config: Config, encoder: Any) -> None:
    """Say what everything in a folder is made with, and store the empty prompt."""
    if not folder.exists(f"{EMPTY}.parquet"):
        ray.get(encoder.encode_empty.remote(folder))
    folder.write_bytes(json.dumps(made_with(facts, config), indent=1).encode(), MADE_WITH)


def made_with(facts: dict[str, Any], config: Config) -> dict[str, Any]:
    return {"fingerprint": fingerprint_of(facts), "facts": facts, "sources": sources_of(config)}


def remove_strays(folder: Dataset, live: set[str]) -> None:
    """Delete what killed runs left, and files of commits that are no more."""
    for info in folder.filesystem.get_file_info(pafs.FileSelector(folder.root)):
        stray = info.base_name.endswith(".parquet") and Path(info.base_name).stem not in live
        if info.base_name.startswith(".tmp-") or (stray and Path(info.base_name).stem != EMPTY):
            folder.filesystem.delete_file(info.path)


def run(
    encoders: list[Any],
    dataset: Dataset,
    commits: list[dict[str, Any]],
    folder: Dataset,
    console: Console,
) -> None:
    """Encode the shards that are not there as they are now, and tell what came of it."""
    tell = partial(say, console)
    todo = problems_of(folder, commits)
    left = [commit for commit in commits if commit["name"] in todo]
    tell(f"{folder.uri}: shards: {len(commits) - len(left)} there, {len(left)} to do")
    reports, failed = [], []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoding", total=sum(commit["num_clips"] for commit in left))
        for done in encode_all(encoders, dataset, left, folder):
            if not isinstance(done, ShardOutcome):
                failed.append(done)
                continue
            reports.append(done)
            bar.advance(task, done.num_clips)
            tell(f"{len(reports)}/{len(left)} {done.name}: {counted(done.num_clips, 'clips')}, "
                f"{done.num_bytes / 1e6:.1f} MB")  # fmt: skip
            for clip_id, reason in done.bad:
                tell(f"bad row {clip_id}: {reason}")
    bad = sum(len(report.bad) for report in reports)
    tell(f"{counted(sum(r.num_clips for r in reports), 'clips')} encoded, {bad} bad, "
        f"{sum(r.num_too_short for r in reports)} too short")  # fmt: skip
    if failed:
        tell(f"{counted(len(failed), 'shards')} failed, such as {failed[0][0]}: {failed[0][1]}; "
            "the same command tries them again")  # fmt: skip
        raise SystemExit(FAILED_RUN)
