"""What latents and text states depend on besides clip and caption, and what differs from a run.

made_with.json holds `facts`, whose hash is the fingerprint, and `sources`: where the weights were
and a hash of their files, so that a run can compare them without loading anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.latents import SpaceToDepth
from model.texts import TinyText
from training.config import PRESETS, Config

FORMAT = 1  # of the files; a reader of another one refuses them
PARTS = ("latents", "text")
WEIGHTLESS = ("space_to_depth", "tiny")  # built here from nothing, in an instant
KEYS = ("latents", "latents_path", "text", "text_path", "num_frames", "height", "width", "buckets",
        "fps", "stride", "windows", "stored_dtype")  # fmt: skip


def facts_of(transform: dict[str, Any], config: Config, codec: Any, text: Any) -> dict[str, Any]:
    """Everything that stored values depend on besides clip and caption."""
    return {
        "format": FORMAT,
        "transform": transform,
        "stored_dtype": config.stored_dtype,
        "latents": {"kind": config.latents, "weights": codec_identity(codec)},
        "text": {"kind": config.text, "weights": text_identity(text)},
    }


def fingerprint_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def codec_identity(codec: Any) -> str:
    if isinstance(codec, SpaceToDepth):
        return f"factor {codec.factor}, scale {codec.scale:g}"
    return hash_of_tensors(codec.vae.state_dict(), str(codec.vae.config.scaling_factor))


def text_identity(text: Any) -> str:
    return hash_of_tensors(text.tower.state_dict())


def hash_of_tensors(tensors: Mapping[str, Tensor], *more: str) -> str:
    """A hash of the values that were loaded, whatever file they came from."""
    digest = hashlib.sha256(json.dumps(more).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def sources_of(config: Config) -> dict[str, dict[str, str | None]]:
    """For each part that has weights: its path, and a hash of the files if it is on this disk."""
    paths = {"latents": config.latents_path, "text": config.text_path}
    return {
        part: {"path": paths[part], "files": hash_of_files(weight_files(Path(paths[part])))}
        for part in PARTS
        if getattr(config, part) not in WEIGHTLESS
    }


def weight_files(path: Path) -> list[Path]:
    """The files of an autoencoder's folder, or of its parent with `vae/`; or the file itself."""
    if path.is_file():
        return [path]
    folder = path if (path / "config.json").is_file() else path / "vae"
    return sorted(p for p in folder.glob("*") if p.suffix in (".json", ".safetensors", ".bin"))


def hash_of_files(files: list[Path]) -> str | None:
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def differences(
    made: dict[str, Any], transform: dict[str, Any], config: Config, here: dict[str, Any]
) -> list[str]:
    """What differs between what was stored and what a run needs, as sentences; loads no weights.

    here: `sources_of` the run.
    """
    facts = made["facts"]
    if facts["format"] != FORMAT:
        return [f"its format is {facts['format']}, and this code reads {FORMAT}"]
    was = {**facts["transform"], "stored_dtype": facts["stored_dtype"]}
    now = {**transform, "stored_dtype": config.stored_dtype}
    for part in PARTS:
        was[part], now[part] = facts[part]["kind"], getattr(config, part)
    told = [
        f"{key} was {was.get(key)!r}, is {now.get(key)!r}"
        for key in [*now, *(key for key in was if key not in now)]
        if was.get(key) != now.get(key)
    ]
    same = [part for part in PARTS if was[part] == now[part]]
    return told + [why for part in same if (why := other_weights(part, made, config, here))]


def other_weights(
    part: str, made: dict[str, Any], config: Config, here: dict[str, Any]
) -> str | None:
    """How the weights of a codec or text encoder of the same kind differ; None if they do not."""
    if getattr(config, part) in WEIGHTLESS:
        is_now = codec_identity(SpaceToDepth()) if part == "latents" else text_identity(TinyText())
        was = made["facts"][part]["weights"]
        return None if was == is_now else f"{part}={getattr(config, part)} is built otherwise now"
    old, new = made["sources"][part], here[part]
    if old["files"] and new["files"]:
        same = old["files"] == new["files"]
        return None if same else f"the weights at {part}_path={new['path']} are others"
    same = old["path"] == new["path"]
    return None if same else f"{part}_path was {old['path']!r}, is {new['path']!r}"


def renewing(dataset: str, config: Config) -> str:
    """The command that makes what a run with this config needs."""
    default = {key: Config.model_fields[key].default for key in KEYS} | PRESETS[config.model]
    changed = [key for key in KEYS if getattr(config, key) != default[key]]
    sets = "".join(f" --set {key}={as_yaml(getattr(config, key))}" for key in changed)
    output = f" --output {config.precomputed}" if isinstance(config.precomputed, str) else ""
    return f"vf-precompute {dataset} --preset {config.model}{sets}{output}"


def as_yaml(value: Any) -> str:
    """A value as --set takes it, without a space."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else str(value)
