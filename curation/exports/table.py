"""ONE row a layout: its name, who loads it, what they demand by default, its function.

A new one is a function in layouts.py and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from curation.exports import layouts
from curation.exports.layouts import Exported, Files
from curation.settings import ConfigError, nearest


@dataclass(frozen=True)
class Layout:
    """One way to lay clips out.

    name: of `--to`.
    trainers: who loads it.
    files: what is written of one clip.
    frames: the default of `--frames`.
    captioned_only: the default of `--captioned-only`.
    plays_in_browsers: clips that browsers may not play are encoded to ones that they do.
    in_tars: its files are in tars of bounded size.
    card_files: README.md tells hubs, and `datasets`, that these files hold its rows.
    card_columns: and what a row has.
    """

    name: str
    trainers: str
    files: Callable[[Exported], Files]
    frames: str = "any"
    captioned_only: bool = False
    plays_in_browsers: bool = False
    in_tars: bool = False
    card_files: tuple[str, ...] = ()
    card_columns: str = ""


TABLE = (
    Layout("folder", "diffusion-pipe, musubi-tuner, ai-toolkit, SimpleTuner", layouts.folder),
    Layout("jsonl", "musubi-tuner", layouts.jsonl),
    Layout("finetrainers", "finetrainers", layouts.finetrainers),
    # Its validator drops clips without a caption.
    Layout("fastvideo", "FastVideo", layouts.fastvideo, captioned_only=True),
    # Its buckets have 8k+1 frames, and of a clip it takes the first ones.
    Layout("ltx", "ltx-trainer of LTX-2, LTX-Video-Trainer", layouts.ltx, frames="8k+1"),
    Layout("videox-fun", "VideoX-Fun", layouts.videox_fun),
    Layout(
        "webdataset",
        "webdataset, datasets, finetrainers",
        layouts.webdataset,
        in_tars=True,
        card_files=("*.tar",),
        card_columns="`mp4`, `txt` (the caption) and `json` (what is known of it)",
    ),
    Layout(
        "hf",
        "datasets, the Hugging Face hub, finetrainers",
        layouts.hugging_face,
        plays_in_browsers=True,
        card_files=("metadata.jsonl", "data/**"),
        card_columns="`video`, `caption` and what is known of it",
    ),
)


def layout_named(name: str) -> Layout:
    """The layout of `--to`; ConfigError."""
    found = {layout.name: layout for layout in TABLE}
    if name not in found:
        raise ConfigError(f"--to {name} is no layout{nearest(name, found)}")
    return found[name]
