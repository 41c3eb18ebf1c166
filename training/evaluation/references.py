"""The real clips and prompts of a protocol, read from the files of the public releases.

ucf101      FOLDER/UCF-101/CLASS/v_CLASS_g01_c01.avi, and if you like FOLDER/prompts.json, which
            maps each class to a sentence
msrvtt      FOLDER/test_videodatainfo.json, FOLDER/TestVideo/video7010.mp4
webvid-val  FOLDER/results_2M_val.csv, FOLDER/videos/PAGE_DIR/VIDEOID.mp4
dataset     a curated dataset, the --data of the run
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from curation.settings import ConfigError
from training.data.orders import digest, draw
from training.data.rows import Rows
from training.data.videos import BadVideoError, SampleShape, fits
from training.evaluation.protocols import MIN_SAMPLES, Protocol

UCF_CLASSES = 101


@dataclass(frozen=True)
class Item:
    """One real clip and the prompt that a clip is generated for.

    start: in [0, 1), where in the video the real clip begins.
    seed: of the generated one.
    """

    id: str
    prompt: str
    read: Callable[[], bytes]
    start: float
    seed: int


@dataclass(frozen=True)
class Found:
    """A video of a release before the protocol has chosen among them."""

    id: str
    prompts: list[str]
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Reference:
    """The items of a protocol in order, and how many videos before them were too short."""

    items: list[Item]
    too_short: int


class TooFewError(ConfigError):
    """A reference with fewer clips than a protocol takes. count: how many it has."""

    def __init__(self, told: str, count: int) -> None:
        self.told, self.count = told, count
        super().__init__(f"{told}: {enough('num_samples', count)}")


def enough(key: str, count: int) -> str:
    """What to do where a reference has `count` clips for what `key` asks."""
    if count < MIN_SAMPLES:
        return f"no fewer than {MIN_SAMPLES} will do; give more clips"
    return f"give more clips, or --set {key}={count} (another hash)"


def sampling_of(protocol: Protocol) -> SampleShape:
    return SampleShape(protocol.num_frames, protocol.height, protocol.width, protocol.fps)


def reference(
    protocol: Protocol,
    folder: str | Path,
    held_out: Rows | None = None,
    ids: list[str] | None = None,
) -> Reference:
    """The first `num_samples` videos, in the protocol's order, that are long enough.

    held_out: for `dataset`, the rows as the run indexed them.
    ids: what another process chose before; then nothing is opened.

    Raises ConfigError for a folder that does not hold enough of them.
    """
    found = candidates(protocol, folder, held_out)
    if ids is not None:
        by_id = {each.id: each for each in found}
        return Reference([item_of(by_id[name], protocol) for name in ids], 0)
    chosen: list[Found] = []
    too_short = 0
    for each in found:
        if len(chosen) == protocol.num_samples:
            break
        try:
            long = fits(each.read(), sampling_of(protocol))
        except BadVideoError as error:
            raise ConfigError(f"--reference {folder}: {each.id} {error}") from None
        too_short += not long
        chosen += [each] * long
    if len(chosen) < protocol.num_samples:
        raise TooFewError(
            f"--reference {folder}: {len(found)} clips of which {too_short} are too short for "
            f"{protocol.num_frames} frames at {protocol.fps:g} a second, and {protocol} takes "
            f"{protocol.num_samples}",
            len(chosen),
        )
    return Reference([item_of(each, protocol) for each in chosen], too_short)


def candidates(protocol: Protocol, place: str | Path, held_out: Rows | None) -> list[Found]:
    """Every video of a reference in the protocol's order."""
    if protocol.name == "dataset":
        assert held_out is not None
        return from_rows(held_out)
    folder = Path(place)
    if not folder.is_dir():
        raise ConfigError(f"--reference {folder} is no folder; {layout(protocol)}")
    return READERS[protocol.name](folder, protocol)


def item_of(found: Found, protocol: Protocol) -> Item:
    """Prompt, start and seed, drawn from the protocol's seed and the video's id alone."""
    draws = draw(protocol.seed, protocol.name, "evaluation", found.id)
    prompt = found.prompts[int(draws.caption * len(found.prompts))]
    return Item(found.id, prompt, found.read, draws.start, draws.noise_seed)


def layout(protocol: Protocol) -> str:
    """What a folder must hold, from the text at the top of this file."""
    assert __doc__
    match = re.search(rf"^{protocol.name}  .*?(?=^\S|\Z)", __doc__, re.S | re.M)
    assert match
    return "it must hold " + " ".join(match[0].split()[1:])


def in_random_order(found: Iterable[Found], seed: int) -> list[Found]:
    return sorted(found, key=lambda each: digest("reference", seed, each.id))


def needed(paths: list[Path], folder: Path, protocol: Protocol) -> None:
    """ConfigError that tells how many of the files are missing, and the first of them."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        first = ", ".join(str(path.relative_to(folder)) for path in missing[:3])
        raise ConfigError(
            f"--reference {folder}: {len(missing)} of {len(paths)} files are missing ({first}); "
            f"{layout(protocol)}"
        )


def parsed(path: Path, read: Callable[[Path], Any], protocol: Protocol) -> Any:
    """What a list of a release says; ConfigError for another or a damaged file."""
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not as released ({type(error).__name__}: {error}); {layout(protocol)}"
        ) from None


def from_ucf101(folder: Path, protocol: Protocol) -> list[Found]:
    """Videos of every class by turns, so that any number of them is balanced to one."""
    classes = sorted(p for p in (folder / "UCF-101").glob("*") if p.is_dir())
    bare = [p.name for p in classes if not any(p.glob("*.avi"))]
    few = protocol.num_samples >= UCF_CLASSES > len(classes)  # fewer samples are a trial
    if not classes or bare or few:
        told = f"no videos in {', '.join(bare[:3])}" if bare else f"{len(classes)} classes"
        raise ConfigError(
            f"--reference {folder}: {told}, of {UCF_CLASSES} classes; {layout(protocol)}"
        )
    given = folder / "prompts.json"
    prompts = {}
    if given.exists():
        prompts = parsed(given, lambda path: dict(json.loads(path.read_text())), protocol)
    unknown = set(prompts) - {p.name for p in classes}
    if prompts and (unknown or len(prompts) < len(classes)):
        raise ConfigError(f"{given} has sentences for {len(prompts)} classes of {len(classes)}")
    by_class = []
    for path in classes:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.name).lower()
        prompt = prompts.get(path.name, f"a video of {words}")
        videos = [Found(f"{path.name}/{v.stem}", [prompt], v.read_bytes)
                  for v in sorted(path.glob("*.avi"))]  # fmt: skip
        by_class.append(in_random_order(videos, protocol.seed))
    return [each for turn in zip_longest(*by_class) for each in turn if each]


def from_msrvtt(folder: Path, protocol: Protocol) -> list[Found]:
    """The test videos, each with all of its captions."""
    listed = folder / "test_videodatainfo.json"
    needed([listed], folder, protocol)
    captions: dict[str, list[tuple[int, str]]] = {}

    def sentences(path: Path) -> list[tuple[str, int, str]]:
        every = json.loads(path.read_text())["sentences"]
        return [(each["video_id"], int(each["sen_id"]), each["caption"]) for each in every]

    for video, number, caption in parsed(listed, sentences, protocol):
        captions.setdefault(video, []).append((number, caption))
    paths = {name: folder / "TestVideo" / f"{name}.mp4" for name in sorted(captions)}
    needed(list(paths.values()), folder, protocol)
    return in_random_order(
        (Found(name, [text for _, text in sorted(captions[name])], path.read_bytes)
         for name, path in paths.items()),
        protocol.seed,
    )  # fmt: skip


def from_webvid(folder: Path, protocol: Protocol) -> list[Found]:
    """The videos of the validation list with their captions."""
    listed = folder / "results_2M_val.csv"
    needed([listed], folder, protocol)

    def rows(path: Path) -> list[tuple[str, str, str]]:
        with path.open(newline="") as file:
            return [(r["videoid"], r["page_dir"], r["name"]) for r in csv.DictReader(file)]

    every = parsed(listed, rows, protocol)
    paths = [folder / "videos" / page / f"{video}.mp4" for video, page, _ in every]
    needed(paths, folder, protocol)
    return in_random_order(
        (Found(video, [caption], path.read_bytes)
         for (video, _, caption), path in zip(every, paths, strict=True)),
        protocol.seed,
    )  # fmt: skip


def from_rows(rows: Rows) -> list[Found]:
    """The clips that a run held out, in the order of rows: each row group is read once."""

    def media_of(row: int) -> bytes:
        return bytes(rows.fetch(row).media)

    found = []
    for number in rows.held_out:
        row = rows.fetch(number)
        found.append(Found(row.clip_id, [row.caption], partial(media_of, number)))
    return found


READERS: dict[str, Callable[[Path, Protocol], list[Found]]] = {
    "ucf101": from_ucf101,
    "msrvtt": from_msrvtt,
    "webvid-val": from_webvid,
}


def checksum(parts: Iterable[Any]) -> str:
    """SHA-256 of a list of plain values."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()
