"""A run against a protocol: clips generated, measured in parts that survive a stop, scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation.settings import ConfigError
from model import VideoFactoryPipeline
from training.checkpoints.folders import code_version
from training.config import Config
from training.data.rows import Rows, held_out_long, open_rows
from training.data.shapes import shapes_of
from training.data.videos import REFERENCES, BadVideoError, brought_to, read_frames
from training.evaluation.clipsim import Clip, load_clip, similarity
from training.evaluation.fvd import bootstrap, extrapolate, fvd, mean_interval
from training.evaluation.i3d import Features, load_i3d, to_i3d, untrained_i3d
from training.evaluation.protocols import Protocol
from training.evaluation.references import (
    Item,
    Reference,
    TooFewError,
    checksum,
    reference,
    sampling_of,
)
from training.evaluation.temporal import measures

# Clips that are generated together and kept together. Ours: what a killed run loses at most.
PART = 4
MEMORY_BYTES = 1e9  # of row groups that are held while references are read
UNTRAINED, NONE = "untrained", "none"


@dataclass(frozen=True)
class Asked:
    """What a vf-eval was asked for; every worker is given the same.

    reference: a release's folder; of `dataset` a folder or URI.
    i3d: a weights file, None where the fetched one lies, or `untrained`.
    clip: a weights file, `openai`, `untrained`, or `none` for no CLIPSIM.
    """

    protocol: Protocol
    reference: str
    run: Path
    output: Path
    weights: str = "ema"
    steps: int | None = None
    guidance: float | None = None
    i3d: str | None = None
    clip: str = "openai"
    keep_clips: bool = False


@dataclass
class Measurer:
    """Everything loaded that measures a part. model: what a result tells of the weights."""

    asked: Asked
    config: Config
    pipe: VideoFactoryPipeline
    model: dict[str, Any]
    i3d: Features
    clip: Clip | None
    reference: Reference

    @staticmethod
    def load(asked: Asked, ids: list[str] | None = None) -> Measurer:
        """Of a run or export. ids: of the clips, where another process chose them."""
        config, pipe, model = load_run(asked)
        check_rate(asked.protocol, config, str(asked.run))
        device = pipe.unet.device
        i3d = load_features(asked.i3d, device)
        clip = None
        if asked.clip != NONE:
            weights = None if asked.clip == UNTRAINED else asked.clip
            clip = load_clip(weights, frames=asked.protocol.clip_frames, device=device)
        return Measurer(asked, config, pipe, model, i3d, clip, chosen(asked, config, ids))

    def items(self, part: int) -> list[Item]:
        return self.reference.items[part * PART : (part + 1) * PART]

    def measure(self, part: int) -> dict[str, np.ndarray]:
        """Features and measures of the real and the generated clips of a part, in its order."""
        return self.real(part) | self.generated(part)

    def real(self, part: int) -> dict[str, np.ndarray]:
        items, sampling = self.items(part), sampling_of(self.asked.protocol)
        media = [item.read() for item in items]
        try:
            clips = [read_frames(data, sampling, item.start, REFERENCES)
                     for data, item in zip(media, items, strict=True)]  # fmt: skip
        except BadVideoError as error:
            raise ConfigError(f"a clip of {self.asked.reference} {error}") from None
        told = {"media": np.array([hashlib.sha256(data).hexdigest() for data in media])}
        return told | self.of_clips("real", torch.from_numpy(np.stack(clips)), items)

    def generated(self, part: int) -> dict[str, np.ndarray]:
        items, sampling = self.items(part), sampling_of(self.asked.protocol)
        made = self.generate(items)
        if self.asked.keep_clips:
            self.keep(items, made)
        clips = np.stack([brought_to(clip.numpy(), sampling) for clip in made])
        return self.of_clips("generated", torch.from_numpy(clips), items)

    def generate(self, items: list[Item]) -> Tensor:
        """Clips uint8 [B, T, H, W, 3], each from its own seed; nothing is encoded in between."""
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.pipe.unet.device.type, torch.bfloat16, enabled=bf16):
            return self.pipe(
                [item.prompt for item in items],
                num_frames=self.asked.protocol.num_frames,
                num_inference_steps=self.asked.steps or self.config.sample_steps,
                guidance_scale=self.asked.guidance,
                generator=[torch.Generator().manual_seed(item.seed) for item in items],
                progress=False,
            ).frames

    def of_clips(self, side: str, clips: Tensor, items: list[Item]) -> dict[str, np.ndarray]:
        """Of clips [B, T, H, W, 3], real or generated: logits, similarities, temporal measures."""
        resize, device = self.asked.protocol.resize, self.pipe.unet.device
        logits = [self.i3d.network(to_i3d(clip[None], resize).to(device)) for clip in clips]
        out = {f"{side}_logits": torch.cat([each.float().cpu() for each in logits]).numpy()}
        if self.clip:
            prompts = self.clip.of_texts([item.prompt for item in items])
            values = [similarity(self.clip.of_frames(clip), prompt)
                      for clip, prompt in zip(clips, prompts, strict=True)]  # fmt: skip
            out[f"{side}_similarity"] = np.array(values)
        found = [measures(clip) for clip in clips]
        return out | {f"{side}_{name}": np.array([each[name] for each in found])
                      for name in found[0]}  # fmt: skip

    def keep(self, items: list[Item], made: Tensor) -> None:
        """Write generated clips to look at, and the prompts they are of."""
        from model.mp4 import write_mp4

        folder = self.asked.output / "clips"
        for item, clip in zip(items, made, strict=True):
            name = item.id.replace("/", "_")
            write_mp4(clip, folder / f"{name}.mp4", self.config.fps)
            (folder / f"{name}.txt").write_text(item.prompt + "\n")

    def facts(self) -> dict[str, Any]:
        """What a result tells of the model, the networks and the reference."""
        nets: dict[str, Any] = {"i3d": {"label": self.i3d.label, "sha256": self.i3d.sha256}}
        if self.clip:
            nets["clip"] = {"label": self.clip.label, "sha256": self.clip.sha256}
        steps = self.asked.steps or self.config.sample_steps
        scale = self.config.guidance if self.asked.guidance is None else self.asked.guidance
        return {
            "protocol": {**self.asked.protocol.model_dump(mode="json"),
                         "hash": self.asked.protocol.hash},
            "model": {**self.model, "steps": steps, "guidance": scale},
            "networks": nets,
            "items": checksum([i.id, i.prompt, i.start, i.seed] for i in self.reference.items),
            "too_short": self.reference.too_short,
        }  # fmt: skip


def load_run(asked: Asked) -> tuple[Config, VideoFactoryPipeline, dict[str, Any]]:
    """The config of a run or export, its pipeline, and what says which weights these are."""
    from model.pipelines import is_export
    from training.sample import check_checkpoint, load_export, load_pipeline

    if is_export(asked.run):
        folder = asked.run
        config, pipe = load_export(asked.run)
    else:
        folder = check_checkpoint(asked.run, asked.weights)
        config, pipe = load_pipeline(folder, asked.weights)
    if config.stage != "base":
        raise ConfigError(f"--run {asked.run} is an {config.stage}, which no prompt alone samples")
    sums = [hashlib.sha256(p.detach().cpu().numpy().tobytes()).hexdigest()
            for _, p in sorted(pipe.unet.named_parameters())]  # fmt: skip
    told = {"path": str(asked.run), "checkpoint": folder.name, "weights": asked.weights,
            "sha256": checksum(sums)}  # fmt: skip
    return config, pipe, told


def load_features(weights: str | None, device: torch.device) -> Features:
    """The I3D of a weights file, of the fetched one, or by name an untrained one."""
    if weights == UNTRAINED:
        return untrained_i3d(device=device)
    return load_i3d(Path(weights) if weights else None, device)


def check_rate(protocol: Protocol, config: Config, run: str) -> None:
    if config.fps != protocol.fps:
        raise ConfigError(
            f"{run} makes {config.fps:g} frames a second and {protocol} takes "
            f"{protocol.fps:g}: --set fps={config.fps:g} (another hash)"
        )


def chosen(asked: Asked, config: Config, ids: list[str] | None) -> Reference:
    """The real clips and prompts of what was asked for."""
    if asked.protocol.name != "dataset":
        return reference(asked.protocol, asked.reference, ids=ids)
    rows = open_rows(
        asked.reference, "reference", 1.0, shapes_of(config), MEMORY_BYTES, config.held_out
    )
    return of_dataset(asked.protocol, rows, config.held_out, asked.reference, ids)


def of_dataset(
    protocol: Protocol, rows: Rows, share: float, place: str, ids: list[str] | None = None
) -> Reference:
    """Clips of the videos that a run holds out, and how many of these are too short."""
    wanted = protocol.num_samples
    out, count, too_short = held_out_long(rows, share, sampling_of(protocol), wanted)
    if count < wanted:
        raise TooFewError(
            f"{place} has {count} clips of held-out videos that are long enough ({too_short} are "
            f"too short) and {protocol} takes {wanted}, of which some would have been trained on",
            count,
        )
    found = reference(protocol, place, replace(rows, held_out=out, latents=None), ids)
    return replace(found, too_short=found.too_short + too_short)


def part_path(output: Path, part: int) -> Path:
    return output / "parts" / f"{part:06d}.npz"


def measure_missing(measurer: Measurer, parts: list[int]) -> Iterator[int]:
    """Measure parts one by one; each file is whole or absent."""
    for part in parts:
        path = part_path(measurer.asked.output, part)
        unfinished = path.with_name(f".{path.name}")
        with unfinished.open("wb") as file:
            np.savez(file, **measurer.measure(part))  # type: ignore[arg-type]
        unfinished.replace(path)
        yield part


class Worker:
    """A process of Ray's that measures parts."""

    def __init__(self, asked: Asked, ids: list[str]) -> None:
        self.measurer = Measurer.load(asked, ids)

    def measure(self, part: int) -> int:
        return next(measure_missing(self.measurer, [part]))


def on_ray(asked: Asked, ids: list[str], parts: list[int], workers: int) -> Iterator[int]:
    """The same by several processes that Ray places; `asked.output` is a folder all share."""
    import ray

    from training.ray_workers import ray_here

    with ray_here(None, workers):
        remote: Any = ray.remote(Worker)
        remote = remote.options(num_gpus=1 if torch.cuda.is_available() else 0)
        pool = ray.util.ActorPool([remote.remote(asked, ids) for _ in parts[:workers]])
        yield from pool.map_unordered(lambda actor, part: actor.measure.remote(part), parts)


def evaluate(
    asked: Asked,
    workers: int | None,
    tell: Callable[[str], None],
    progress: Callable[[Iterator[int], int], Iterator[int]],
) -> dict[str, Any]:
    """Measure what is missing, score, write `output/result.json` and return it.

    Raises ConfigError where the folder holds parts of another evaluation.
    """
    measurer = Measurer.load(asked)
    facts = measurer.facts()
    (asked.output / "parts").mkdir(parents=True, exist_ok=True)
    begun = asked.output / "asked.json"
    if begun.exists() and unmoved(json.loads(begun.read_text())) != unmoved(facts):
        raise ConfigError(
            f"--output {asked.output} holds another evaluation (asked.json): give a new folder"
        )
    begun.write_text(json.dumps(facts, indent=1))
    count = -(-asked.protocol.num_samples // PART)
    missing = [n for n in range(count) if not part_path(asked.output, n).exists()]
    if len(missing) < count:
        tell(f"{count - len(missing)} of {count} parts are there already")
    if missing:
        ids = [item.id for item in measurer.reference.items]
        made = (on_ray(asked, ids, missing, workers) if workers
                else measure_missing(measurer, missing))  # fmt: skip
        for _ in progress(made, len(missing)):
            pass
    result = score(asked.protocol, facts, [np.load(part_path(asked.output, n))
                                           for n in range(count)])  # fmt: skip
    result["code"] = code_version()
    (asked.output / "result.json").write_text(json.dumps(result, indent=1))
    return result


def unmoved(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts without the place where the run lies."""
    return {**facts, "model": {k: v for k, v in facts["model"].items() if k != "path"}}


def score(protocol: Protocol, facts: dict[str, Any], parts: list[Any]) -> dict[str, Any]:
    """The result of an evaluation from its parts."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    real, made = whole["real_logits"], whole["generated_logits"]
    limit = extrapolate(real, made, protocol.covariance, protocol.seed)
    label = facts["networks"]["i3d"]["label"]
    scores: dict[str, Any] = {
        "fvd": {
            "features": label,
            "value": fvd(real, made, protocol.covariance),
            "interval": bootstrap(real, made, protocol.covariance, protocol.seed),
            "covariance": f"divided by {protocol.covariance}",
            "at_infinity": limit.at_infinity,
            "by_n": dict(zip(map(str, limit.counts), limit.values, strict=True)),
        }
    }
    if "generated_similarity" in whole:
        values = whole["generated_similarity"]
        scores["clipsim"] = {
            "features": facts["networks"]["clip"]["label"],
            "value": float(values.mean()),
            "interval": mean_interval(values, protocol.seed),
            "of_real_clips": float(whole["real_similarity"].mean()),
        }
    for name in ("frame_difference", "flicker", "motion_px"):
        values = whole[f"generated_{name}"]
        scores[name] = {
            "value": float(values.mean()),
            "interval": mean_interval(values, protocol.seed),
            "of_real_clips": float(whole[f"real_{name}"].mean()),
        }
    facts = facts | {"reference_sha256": checksum(whole["media"].tolist()), "n": len(made)}
    return {"name": str(protocol), "hash": protocol.hash, "scores": scores, **facts}
