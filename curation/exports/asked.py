"""What `vf-export-clips` was asked to do, checked before any work."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from curation.exports.fits import Demands, parse_fps, parse_frames
from curation.exports.media import SETTINGS
from curation.exports.table import Layout, layout_named
from curation.places import check_folder, check_lasting, dataset_at, open_dataset
from curation.settings import ConfigError, nearest
from curation.shards import SHARD_SCHEMA, Dataset
from curation.takedown.tombstones import Tombstones, read

DONE = "export.json"  # written last
WORK = ".export"  # what a run that is killed goes on from; gone when it is done
BEGUN = "begun.json"
MADE_BY = "vf-export-clips"
MIN_MULTIPLE = 2  # px, for 4:2:0
MB = 1_000_000  # bytes
# Of a tar, which is what a killed run does again at most. Ours.
DEFAULT_SHARD_MB = 512


@dataclass(frozen=True)
class Order:
    """What the user asked for, unchecked; None is the layout's default."""

    dataset: str
    to: str
    output: str | None
    caption_column: str = "caption"
    captioned_only: bool | None = None
    frames: str | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    multiple_of: int | None = None
    fps: str | None = None
    shard_mb: int | None = None
    root: str | None = None


@dataclass(frozen=True)
class Plan:
    """A checked export."""

    dataset: Dataset
    layout: Layout
    out: Dataset | None  # the folder that is written; None: a dry run that named none
    caption_column: str
    demands: Demands
    shard_bytes: int
    root: str  # of jsonl
    taken_down: Tombstones
    is_done: bool = False  # the folder holds this export already, whole

    @property
    def begun(self) -> dict[str, Any]:
        """What an export is of and how it is made: another one does not go on from it."""
        demands = asdict(self.demands)
        demands["fps"] = None if self.demands.fps is None else str(self.demands.fps)
        demands["frames"] = "{}k+{}".format(*self.demands.frames) if self.demands.frames else "any"
        settings = {"caption_column": self.caption_column, **demands}
        if self.layout.in_tars:
            settings["shard_bytes"] = self.shard_bytes
        if self.layout.name == "jsonl":
            settings["root"] = self.root
        return {
            "made_by": MADE_BY,
            "layout": self.layout.name,
            "dataset": fingerprint(self.dataset, self.taken_down),
            "settings": settings,
            "encoder": {"codec": "libx264", "crf": SETTINGS.crf, "preset": SETTINGS.preset},
        }


def make_plan(order: Order, dry_run: bool = False) -> Plan:
    """Check everything that can be checked before any work; ConfigError or DatasetError."""
    layout = layout_named(order.to)
    demands = demands_of(order, layout)
    shard_bytes = shard_bytes_of(order, layout)
    if order.root is not None and layout.name != "jsonl":
        raise ConfigError(f"--root is for --to jsonl; the lists of {layout.name} have no roots")
    dataset = open_dataset(order.dataset)
    check_column(dataset, order.caption_column)
    if order.output is None and not dry_run:
        raise ConfigError("--output is missing: the folder or URI of the export")
    out = None if order.output is None else open_folder(order.output, dataset)
    plan = Plan(
        *(dataset, layout, out, order.caption_column, demands, shard_bytes),
        root_of(order, out),
        read(dataset),
    )
    if out is None:
        return plan
    return Plan(**{**vars(plan), "is_done": check_same(out, plan.begun)})


def demands_of(order: Order, layout: Layout) -> Demands:
    """What is demanded of clips, a layout's defaults where nothing was given; ConfigError."""
    given = order.captioned_only
    low, high = order.min_frames, order.max_frames
    if low is not None and high is not None and low > high:
        raise ConfigError(f"--min-frames {low} is more than --max-frames {high}")
    multiple = order.multiple_of
    if multiple is not None and multiple % MIN_MULTIPLE:
        raise ConfigError(f"--multiple-of {multiple} is odd; 4:2:0 video has even sides")
    frames = parse_frames(order.frames or layout.frames)
    if frames and high is not None and high < sum(frames):
        raise ConfigError(
            f"--max-frames {high} leaves no count of {frames[0]}k+{frames[1]} frames; "
            f"give {sum(frames)} or more"
        )
    return Demands(
        *(frames, low, high, multiple),
        fps=None if order.fps is None else parse_fps(order.fps),
        captioned_only=layout.captioned_only if given is None else given,
        plays_in_browsers=layout.plays_in_browsers,
    )


def shard_bytes_of(order: Order, layout: Layout) -> int:
    """The most bytes of a tar; ConfigError where there is none, or nothing to write one."""
    if not layout.in_tars:
        if order.shard_mb is not None:
            raise ConfigError(f"--shard-mb is for --to webdataset; {layout.name} has no shards")
        return 0
    if importlib.util.find_spec("webdataset") is None:
        raise ConfigError(
            f"--to {layout.name} needs the webdataset package; pip install videofactory[webdataset]"
        )
    return (order.shard_mb or DEFAULT_SHARD_MB) * MB


def check_column(dataset: Dataset, column: str) -> None:
    """Raise ConfigError unless the first shard has a column of texts of that name."""
    texts = {f.name for f in SHARD_SCHEMA if f.type == pa.string()}
    for name in dataset.shards()[:1]:
        with dataset.open_shard(name) as shard:
            schema = shard.schema_arrow
        texts = {field.name for field in schema if field.type == pa.string()}
    if column not in texts:
        raise ConfigError(
            f"--caption-column {column} is no column of texts{nearest(column, texts)}"
        )


def open_folder(output: str, dataset: Dataset) -> Dataset:
    """The folder of --output; ConfigError where it cannot be written or is the dataset's own."""
    check_lasting(output)
    out = dataset_at(output)
    if out.is_local:
        check_folder(Path(out.root), out.uri)
    ours, theirs = (Path(d.root).resolve() if d.is_local else Path(d.root) for d in (out, dataset))
    if out.is_local == dataset.is_local and (ours == theirs or theirs in ours.parents):
        raise ConfigError(
            f"--output {output} is the dataset itself or lies inside it; give another folder"
        )
    return out


def root_of(order: Order, out: Dataset | None) -> str:
    """What stands before the names of files in jsonl, "" or ending in a slash."""
    if order.root is not None:
        return order.root.rstrip("/") + "/" if order.root else ""
    return f"{out.root}/" if out is not None and out.is_local else ""


def check_same(out: Dataset, begun: dict[str, Any]) -> bool:
    """Whether a folder holds this export, whole.

    Raises ConfigError where it holds something else: files of the user, an export of other
    settings, or of a dataset that has changed since.
    """
    for parts in ((DONE,), (WORK, BEGUN)):
        if not out.exists(*parts):
            continue
        try:
            there = json.loads(out.read_bytes(*parts))
            known = {key: there[key] for key in begun}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{out.uri}/{'/'.join(parts)} is not of an export; {ELSEWHERE}"
            ) from None
        check_settings(out, known, begun)
        return parts == (DONE,)
    selector = pafs.FileSelector(out.root, allow_not_found=True)
    strange = sorted(i.base_name for i in out.filesystem.get_file_info(selector))
    strange = [name for name in strange if name != WORK]
    if strange:
        raise ConfigError(f"{out.uri} is not empty: it holds {strange[0]!r}; {ELSEWHERE}")
    return False


ELSEWHERE = "give a new folder, so that no file of yours is written over"


def check_settings(out: Dataset, there: dict[str, Any], begun: dict[str, Any]) -> None:
    """Raise ConfigError that names the first difference of two exports."""
    if there == begun:
        return
    if there["dataset"] != begun["dataset"]:
        raise ConfigError(
            f"{out.uri} holds an export of another dataset, or of this one before it changed; "
            "give another folder"
        )
    flat, ours = ({**each, **each["settings"]} for each in (there, begun))
    key = next(k for k in ours if k != "settings" and flat.get(k) != ours[k])
    raise ConfigError(
        f"{out.uri} holds an export with {key} {flat.get(key)!r}, not {ours[key]!r}; "
        "give another folder, or the same options again"
    )


def fingerprint(dataset: Dataset, taken_down: Tombstones) -> str:
    """A hash of what a dataset holds: the files of its commits, and what was taken down of it."""
    commits = [[commit["name"], commit["files"]] for commit in dataset.commits()]
    known = [sorted(commits), sorted(taken_down.dates)]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
