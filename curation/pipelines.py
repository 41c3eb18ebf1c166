"""pipelines.yaml -> one validated Pipeline, with the fingerprints that resume compares."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from curation.settings import ConfigError, explain, nearest, set_path
from curation.shards import SCORES

# The scorer that a rule needs, where there is one to switch on.
SCORER_OF = {
    "text": "text",
    **dict.fromkeys(("motion", "camera_motion", "zoom", "slideshow", "flicker"), "motion"),
    **dict.fromkeys(("sharpness", "exposure", "colourfulness", "blockiness"), "look"),
    "aesthetic": "aesthetic",
    "caption_score": "caption",
}
# The implementations that are models: they look at a few pictures of clips that are to be kept.
MODELS = {"text": "rapidocr", "watermark": "classifier", "aesthetic": "laion", "caption": "clip"}

# Raise a number when the code of a stage changes what it produces: old results are then redone.
STAGE_VERSIONS = {"scenes": 1, "scores": 4, "cut": 2, "captions": 1}


class Section(BaseModel):
    """One part of a pipeline; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Download(Section):
    allow_private: bool = False  # let URLs point to this machine or a private network
    max_height_px: int = Field(1080, gt=0)  # the largest format asked for
    timeout_s: float = Field(30, gt=0)  # without a byte from the server


class Scenes(Section):
    detector: Literal["adaptive", "content", "threshold"] = "adaptive"
    threshold: float | None = None  # None: PySceneDetect's own default
    min_scene_s: float = Field(0.2, ge=0)


class Rule(Section):
    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)


class Scorers(Section):
    """Which implementation gives each score; None: none does."""

    watermark: Literal["network", "classifier"] = "network"
    watermark_unsure: Literal["pass", "drop"] = "pass"  # drop: no score where too little changes
    watermark_checkpoint: str | None = None  # of classifier: hub id or folder
    text: Literal["rapidocr"] | None = None
    motion: Literal["flow"] | None = None
    look: Literal["pixels"] | None = None
    aesthetic: Literal["laion", "technical_quality"] | None = None
    aesthetic_checkpoint: str | None = None  # of laion: CLIP's file, folder or hub id
    aesthetic_head: str | None = None  # of laion: a .pth file
    caption: Literal["clip"] | None = None  # whether the caption fits the pictures: caption_score
    caption_checkpoint: str | None = None  # of clip: its file, folder or hub id
    num_workers: int = Field(1, ge=1)  # of each model, in vf-curate

    @property
    def models(self) -> list[str]:
        """The keys that name a model, in the order in which clips come to them."""
        return [key for key, model in MODELS.items() if getattr(self, key) == model]


class Cut(Section):
    joins: bool = True  # copy what can be copied of a clip; false: encode the whole of it
    crf: int = Field(18, ge=0, le=51)
    preset: str = "veryfast"


class Captions(Section):
    model: Literal["source_text", "blip2"] = "source_text"
    checkpoint: str | None = None  # hub id or folder; needed by blip2
    prompt: str | None = None
    num_frames: int = Field(1, ge=1, le=8)  # 1 is the middle frame
    batch_size: int = Field(16, ge=1)
    max_new_tokens: int = Field(40, ge=1)
    device: str = "auto"  # auto: cuda where there is one, else cpu
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    num_workers: int = Field(1, ge=1)
    num_gpus: float | None = Field(None, ge=0)  # per worker; None: 1 where Ray has a GPU, else 0


class Media(Section):
    num_threads: int = Field(1, ge=1)  # of the decoder, per video
    timeout_s: float = Field(7200, gt=0)  # wall clock per video
    stall_s: float = Field(120, gt=0)  # without any progress
    memory_gb: float = Field(6, gt=0)  # resident, of the video's process group
    recycle_after: int = Field(100, ge=1)  # videos, then a fresh worker: decoders leak
    cpus: float = Field(1, gt=0)  # Ray CPUs per video


class Shards(Section):
    max_videos: int = Field(64, ge=1)  # per commit
    max_bytes: int = Field(1 << 30, gt=0)  # of media per commit, unless one video is larger
    max_age_s: float = Field(300, gt=0)  # a finished video waits no longer for its commit


class Pipeline(Section):
    """A resolved pipeline: what to read, what to decide, what to write."""

    name: str = ""
    description: str = ""
    sources: list[str] = []
    download: Download = Download()
    scenes: Scenes = Scenes()
    rules: dict[str, Rule] = {}
    scorers: Scorers = Scorers()
    cut: Cut = Cut()
    captions: Captions = Captions()
    media: Media = Media()
    shards: Shards = Shards()

    @field_validator("rules")
    @classmethod
    def known_rules(cls, rules: dict[str, Rule]) -> dict[str, Rule]:
        return check_rules(rules)

    @model_validator(mode="after")
    def scored_rules(self) -> Pipeline:
        """Every rule has the scorer that it needs, and every scorer what it is made from."""
        for name, rule in self.rules.items():
            scorer = SCORER_OF.get(name)
            if scorer and rule != Rule() and getattr(self.scorers, scorer) is None:
                allowed = get_args(get_args(Scorers.model_fields[scorer].annotation)[0])
                raise ValueError(
                    f"rules.{name} needs scorers.{scorer}, which is not set; "
                    f"add --set scorers.{scorer}={' or '.join(allowed)}"
                )
        if self.scorers.aesthetic == "technical_quality" and self.scorers.look is None:
            raise ValueError(
                "scorers.aesthetic technical_quality is made from the look; "
                "add --set scorers.look=pixels"
            )
        return self

    @property
    def late_scores(self) -> set[str]:
        """Scores made by models behind the media stage, of clips that all other rules keep."""
        return {name for name in SCORES if SCORER_OF.get(name, name) in self.scorers.models}

    def fingerprints(self) -> dict[str, str]:
        """Short hashes of what each stage's results depend on, by stage, rules included."""
        stages: dict[str, Any] = {
            "scenes": self.scenes.model_dump(),
            # A scorer that is not set changes nothing of what older versions stored.
            "scores": self.scorers.model_dump(exclude_none=True, exclude={"num_workers"}),
            # In config order: the first failing rule is the one that is recorded.
            "rules": [[name, rule.model_dump()] for name, rule in self.rules.items()],
            "cut": self.cut.model_dump(),
            "captions": self.captions.model_dump(
                include={"model", "checkpoint", "prompt", "num_frames", "max_new_tokens"}
            ),
        }
        return {
            stage: hashlib.sha256(
                json.dumps([STAGE_VERSIONS.get(stage, 0), value]).encode()
            ).hexdigest()[:12]
            for stage, value in stages.items()
        }


def check_rules(rules: dict[str, Any]) -> dict[str, Any]:
    """The same rules, if each one's name is a score; ValueError otherwise."""
    for name in rules:
        if name not in SCORES:
            raise ValueError(f"unknown rule {name!r}{nearest(name, SCORES)}")
    return rules


def load_pipeline(config: Path, name: str, overrides: list[str]) -> Pipeline:
    """The pipeline called `name` in a pipelines.yaml, with `path=value` overrides applied.

    Raises ConfigError for a missing file, pipeline or key, and for a value out of range.
    """
    return load_named(config, "pipelines", name, overrides, Pipeline)


Named = TypeVar("Named", bound=Section)


def load_named(
    config: Path, kind: str, name: str, overrides: list[str], section: type[Named]
) -> Named:
    """One of the `pipelines` or `recipes` of a config, as `section`, with overrides applied."""
    merged = resolve(read_config(config, kind), name, kind)
    for override in overrides:
        set_path(merged, override)
    try:
        if "name" in merged:  # the key above it is the name
            raise ConfigError(f"{config}: {kind}.{name}: unknown key 'name'")
        return section.model_validate({"name": name, **merged})
    except ValidationError as error:
        raise ConfigError(f"{config}: {kind}.{name}: {explain(error, section)}") from None


def read_config(config: Path, kind: str) -> dict[str, Any]:
    """The map of pipelines or recipes of a config file."""
    if not config.is_file():
        raise ConfigError(f"no config file {config}; run from the repository or give --config")
    try:
        tree = yaml.safe_load(config.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{config} is not valid YAML: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get(kind), dict):
        raise ConfigError(f"{config} holds no map of {kind}")
    return tree[kind]


def resolve(
    tree: dict[str, Any], name: str, kind: str, extended_by: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The own keys of a pipeline or recipe over those of the one it extends."""
    one = kind.removesuffix("s")
    if name not in tree:
        raise ConfigError(f"unknown {one} {name!r}{nearest(name, tree)}")
    if name in extended_by:
        raise ConfigError(f"the {one} {name!r} extends itself")
    if not isinstance(tree[name] or {}, dict):
        raise ConfigError(f"{kind}.{name} is not a map of keys")
    own = dict(tree[name] or {})
    base = own.pop("extends", None)
    return merge(resolve(tree, base, kind, (*extended_by, name)), own) if base else own


def merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`, map by map; lists and scalars replace."""
    out = dict(base)
    for key, value in own.items():
        both_maps = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both_maps else value
    return out
