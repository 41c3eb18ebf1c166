"""ONE row a scorer: what it is called, what it gives, what it sees, what makes it.

Everything else asks this table: the schema of shards and ledger, the keys of `scorers` in
pipelines.yaml, the rules that wait for a model, the report's order and units. Nothing heavy is
imported here: a row names its code, which is loaded where it runs. How a user adds one without
a change of ours: docs/filters.md, "Write your own"; own.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Scorer:
    """One way to give some scores.

    key, name: `scorers.key: name` in pipelines.yaml switches it on; "": every run has it.
    columns: the scores it gives, each with its unit, "" for none.
    sees: `header` the probe, `decode` the frames of the source's one decode, `track` the frames
        of a source or of a stored clip, `pictures` a few pictures of a clip that is about to be
        kept, in a process of its own.
    make: `module:name` of what makes it, for `track` called without arguments, for `pictures`
        with the settings of `scorers`.
    check: `module:name` of what is called with the settings before any work; raises ConfigError.
    settings: further keys of `scorers` that are its own: what each may be, the first one being
        the default; (None,) is any text.
    """

    key: str
    name: str
    columns: Mapping[str, str]
    sees: Literal["header", "decode", "track", "pictures"]
    make: str = ""
    check: str = ""
    settings: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    is_default: bool = False
    of_video: bool = False  # one number for all clips of a video
    needs_caption: bool = False  # comes behind the captioner
    on_gpu: bool = True  # of `pictures`: takes a share of the GPUs that there are

    def wants(self, settings: Any) -> bool:
        """Whether these settings of `scorers` switch it on."""
        return not self.key or getattr(settings, self.key) == self.name


TABLE = (
    Scorer("", "", {"resolution": "px", "aspect": "width / height"}, "header"),
    Scorer("", "", {"duration": "s"}, "decode"),
    Scorer("", "", {"hdr": ""}, "header"),
    Scorer("", "", {"black_bars": "", "static": ""}, "decode"),
    Scorer(
        "hidden_cut",
        "network",
        {"hidden_cut": ""},
        "track",
        make="curation.decode.shots:TransitionTrack",
    ),
    Scorer(
        "interlaced",
        "fields",
        {"interlaced": ""},
        "track",
        make="curation.scores.combing:CombingTrack",
    ),
    Scorer(
        "watermark",
        "network",
        {"watermark": ""},
        "decode",
        settings={"watermark_unsure": ("pass", "drop")},  # drop: no score where little changes
        is_default=True,
        of_video=True,
    ),
    Scorer(
        "watermark",
        "classifier",
        {"watermark": ""},
        "pictures",
        make="curation.scores.classifiers:WatermarkScore",
        check="curation.scores.classifiers:check_classifier",
        settings={"watermark_checkpoint": (None,)},  # hub id or folder
        of_video=True,
    ),
    Scorer(
        "text",
        "rapidocr",
        {"text": ""},
        "pictures",
        make="curation.scores.burnt_in_text:TextScore",
        on_gpu=False,
    ),
    Scorer(
        "motion",
        "flow",
        {
            **{"motion": "sides/s", "camera_motion": "sides/s", "zoom": "", "slideshow": ""},
            "flicker": "grey levels",
        },
        "track",
        make="curation.scores.motions:MotionTrack",
    ),
    Scorer(
        "look",
        "pixels",
        {"sharpness": "", "exposure": "", "colourfulness": "", "blockiness": ""},
        "track",
        make="curation.scores.quality:LookTrack",
    ),
    Scorer(
        "aesthetic",
        "laion",
        {"aesthetic": ""},
        "pictures",
        make="curation.scores.aesthetics:AestheticScore",
        check="curation.scores.aesthetics:check_aesthetic",
        # CLIP's file, folder or hub id; the head's .pth file
        settings={"aesthetic_checkpoint": (None,), "aesthetic_head": (None,)},
    ),
    Scorer(
        "aesthetic",
        "technical_quality",
        {"aesthetic": ""},
        "track",
        make="curation.scores.quality:TechnicalQuality",
    ),
    Scorer(
        "caption",
        "clip",
        {"caption_score": "cosine"},
        "pictures",
        make="curation.scores.image_text:CaptionScore",
        check="curation.scores.image_text:check_caption",
        settings={"caption_checkpoint": (None,)},  # CLIP's file, folder or hub id
        needs_caption=True,
    ),
)

UNITS = {column: unit for row in TABLE for column, unit in row.columns.items()}
SCORES = tuple(UNITS)  # a column for each in shards and ledger, in this order; null = not scored
HEADER_SCORES = tuple(c for row in TABLE if row.sees == "header" for c in row.columns)


def implementations(key: str) -> list[str]:
    """What a key of `scorers` may name."""
    return [row.name for row in TABLE if row.key == key]


def known_settings() -> dict[str, tuple[str | None, ...]]:
    """Every key of `scorers` with what it may be, the first one being its default."""
    found: dict[str, tuple[str | None, ...]] = {}
    for row in TABLE:
        if row.key and row.key not in found:
            default = next((r.name for r in TABLE if r.key == row.key and r.is_default), None)
            found[row.key] = tuple(dict.fromkeys((default, *implementations(row.key))))
        found |= row.settings
    return found


def key_of(column: str) -> str | None:
    """The key of `scorers` that a score of the table belongs to; None: every run has it."""
    return next((row.key or None for row in TABLE if column in row.columns), None)


def keys_where(flag: str) -> set[str]:
    """The keys whose models have a flag: of_video, needs_caption, on_gpu."""
    return {row.key for row in TABLE if row.sees == "pictures" and getattr(row, flag)}


def columns_of(keys: Iterable[str]) -> list[str]:
    """The scores that some keys give, in order."""
    wanted = set(keys)
    return list(dict.fromkeys(c for row in TABLE if row.key in wanted for c in row.columns))


def load(place: str) -> Any:
    """What `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
