"""Protocols: everything that a score depends on besides the model and the data, named and hashed.

Two scores can be compared only if their protocols have one hash. Where the papers do not say how
they measured (frames, rate, size, I3D, repeats: VideoFactory's are not known), a value is ours.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.settings import ConfigError
from training.evaluation.clipsim import MODEL, Frames
from training.evaluation.fvd import Covariance
from training.evaluation.i3d import MIN_FRAMES, Resize

MIN_SAMPLES = 4  # fewer fit no line over 1/N

# What no setting changes and every number depends on; a change of it changes every hash.
FIXED = {
    "features": "Kinetics-400 logits of I3D, before the softmax, mean over time",
    "interpolation": "to 224x224 bilinear, half-pixel centres, no antialiasing; x / 127.5 - 1",
    "size": "clips are scaled to cover it (area when smaller, else bicubic), the middle kept",
    "clip": MODEL,
    "similarity": "raw cosine, mean over frames, then over prompts",
    "version": 1,
}


class Protocol(BaseModel):
    """How a model is measured. Lengths in frames, sizes in px.

    num_samples: real clips, and as many generated ones: one for the prompt of each.
    fps: at which frames are taken from real videos; generated clips have the run's.
    height, width: that real and generated clips are both brought to before any network sees them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["ucf101", "msrvtt", "webvid-val", "dataset"]
    prompts: str
    num_samples: int = Field(ge=MIN_SAMPLES)
    num_frames: int = Field(16, ge=MIN_FRAMES)
    fps: float = Field(8, gt=0)
    height: int = Field(ge=16)
    width: int = Field(ge=16)
    resize: Resize = "squash"
    covariance: Covariance = "N"
    clip_frames: Frames = "crop"
    seed: int = Field(0, ge=0)

    @property
    def hash(self) -> str:
        """12 hex digits that depend on every setting and on what is fixed."""
        told = json.dumps({**FIXED, **self.model_dump(mode="json")}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        frames = f"{self.num_samples}x{self.num_frames}@{self.fps:g}fps"
        return f"{self.name}/{frames}/{self.width}x{self.height}/{self.resize} [{self.hash}]"


# num_frames and fps are the authors' demo clips' (16 frames at 8 fps); the sizes are ours: of the
# public videos for the 4:3 sets, of the base model for the 16:9 ones.
PROTOCOLS: dict[str, dict[str, Any]] = {
    # Zero-shot, classes in equal numbers. The paper's count was about 10,000; 2,048 is
    # StyleGAN-V's fvd2048_16f. One sentence a class, ours: the words of its name.
    "ucf101": {
        "prompts": "a video of {class in words}, or prompts.json of the folder",
        "num_samples": 2048,
        "height": 240,
        "width": 320,
    },
    # Zero-shot, one caption of each test video drawn by the seed (as Make-A-Video and others).
    "msrvtt": {
        "prompts": "one caption of each test video, drawn by the seed",
        "num_samples": 2990,
        "height": 240,
        "width": 320,
    },
    # The validation split's 5,000 videos with their captions.
    "webvid-val": {
        "prompts": "the video's caption",
        "num_samples": 5000,
        "height": 192,
        "width": 344,
    },
    # The clips of a curated dataset that the run held out.
    "dataset": {
        "prompts": "the clip's caption",
        "num_samples": 128,
        "height": 192,
        "width": 344,
    },
}


def load_protocol(name: str, overrides: list[str]) -> Protocol:
    """A named protocol with `key=value` overrides; ConfigError for what is unknown."""
    if name not in PROTOCOLS:
        raise ConfigError(f"--protocol {name}: choose one of {', '.join(PROTOCOLS)}")
    tree = {"name": name, **PROTOCOLS[name]}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or key not in Protocol.model_fields or key == "name":
            close = difflib.get_close_matches(key, Protocol.model_fields, n=1)
            told = f"did you mean {close[0]}?" if close else ", ".join(Protocol.model_fields)
            raise ConfigError(f"--set {override}: not a setting of a protocol; {told}")
        tree[key] = yaml.safe_load(text)
    try:
        return Protocol(**tree)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"--set {key}={problem['input']}: {problem['msg']}") from None
