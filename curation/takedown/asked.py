"""What vf-purge was asked to take down -> the names that get tombstones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.settings import ConfigError
from curation.shards import NUM_READERS, Dataset
from curation.sources import is_remote, is_url
from curation.sources.source import remote
from curation.subsets.indexed import INDEX
from curation.takedown.tombstones import Name, Tombstones, read
from curation.takedown.videos import VIDEO, videos_of


@dataclass(frozen=True)
class Asked:
    """What vf-purge was asked to take down, by the names that the user gave."""

    video_ids: Sequence[str] = ()
    uploaders: Sequence[str] = ()
    urls: Sequence[str] = ()  # without secrets
    listed_urls: Sequence[str] = ()  # likewise; of these not every one needs to be there


@dataclass(frozen=True)
class Found:
    """What that is: names to leave tombstones of, and which of the listed URLs were not there."""

    names: list[Name] = field(default_factory=list)
    unknown_urls: list[str] = field(default_factory=list)


def recorded(url: str) -> str:
    """A URL, or a path, as datasets have it in source_url."""
    return remote(url.strip()).url if is_remote(url.strip()) else url


def read_urls(path: Path) -> list[str]:
    """The URLs of a text file, one a line, each once; ConfigError for a line of something else.

    Empty lines and those that begin with # are left out.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        says = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"--url-file {path}: {says}; give a text file of URLs") from None
    urls: dict[str, None] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            if not is_remote(line):
                raise ConfigError(
                    f"--url-file {path}, line {number}: {line!r} is no URL; ids and "
                    "uploaders are given by --video and --uploader"
                )
            urls[recorded(line)] = None
    if not urls:
        raise ConfigError(f"--url-file {path} holds no URL")
    return list(urls)


def open_any(dataset: Dataset) -> Dataset:
    """A dataset, a subset, or a subset without media; DatasetError for a folder that is none."""
    if not dataset.exists(INDEX):
        dataset.require(emptied=True)
    return dataset


def find(datasets: Sequence[Dataset], asked: Asked) -> Found:
    """What was asked for, and its copies under other URLs.

    Raises ConfigError for what is in no dataset and has no tombstone either, naming the nearest.
    """
    known = reduce(or_, map(read, datasets))
    videos = pa.concat_tables([all_videos(each, bool(asked.uploaders)) for each in datasets])
    ids = {url: id_of(url) for url in [*asked.urls, *asked.listed_urls]}
    check_known(videos, asked, ids, known)
    by_id = pa.array([*asked.video_ids, *filter(None, ids.values())], pa.string())
    by_url = pa.array([*ids], pa.string())
    by_uploader = pa.array(asked.uploaders, pa.string())
    meant = videos.filter(
        pc.or_(
            pc.or_(pc.is_in(videos["video_id"], by_id), pc.is_in(videos["copy_of"], by_id)),
            pc.or_(
                pc.is_in(videos["source_url"], by_url), pc.is_in(videos["uploader"], by_uploader)
            ),
        )
    )
    # A copy's row says which video it is; the other copies of that one are meant, too.
    targets = pc.unique(pc.coalesce(meant["copy_of"], meant["video_id"]))
    is_meant = pc.or_(pc.is_in(videos["video_id"], targets), pc.is_in(videos["copy_of"], targets))
    urls = {url for url in videos.filter(is_meant)["source_url"].to_pylist() if is_remote(url)}
    names: list[Name] = [("video", each) for each in targets.to_pylist()]
    names += [("video", each) for each in asked.video_ids if known.date("video", each)]
    names += [("uploader", each) for each in asked.uploaders]
    for url in filter(is_remote, [*urls, *ids]):
        found_id = id_of(url)
        names.append(("source", url))
        if found_id:
            names.append(("video", found_id))
    there = known_urls(videos, asked.listed_urls, ids)
    unknown = [url for url in asked.listed_urls if url not in there]
    return Found(list(dict.fromkeys(names)), unknown)


def id_of(url: str) -> str | None:
    """The id that a URL itself names, whatever else is in it."""
    from curation.downloads.fetches import id_in  # yt-dlp, which takes a second to load

    return id_in(url) if is_url(url) else None


def date_of(stones: Tombstones, wanted: str) -> str | None:
    """The day on which the video was taken down that an id, a clip's id or a URL names."""
    if not stones:
        return None
    if is_remote(wanted):
        return stones.date("source", recorded(wanted)) or stones.date("video", id_of(wanted))
    return stones.date("video", wanted) or stones.date("video", wanted.rsplit("_", 2)[0])


def known_urls(videos: pa.Table, urls: Iterable[str], ids: Mapping[str, str | None]) -> set[str]:
    """Those of some URLs from which there is a video."""
    there = {*videos["source_url"].to_pylist(), *videos["video_id"].to_pylist()}
    return {url for url in urls if url in there or (ids[url] and ids[url] in there)}


def check_known(
    videos: pa.Table, asked: Asked, ids: Mapping[str, str | None], known: Tombstones
) -> None:
    """Raise ConfigError for a name that is in no dataset and has no tombstone yet."""
    for video_id in asked.video_ids:
        if not known.date("video", video_id):
            one_of(videos["video_id"], video_id, "--video", of_clip(videos, video_id))
    for uploader in asked.uploaders:
        if not known.date("uploader", uploader):
            one_of(videos["uploader"], uploader, "--uploader")
    there = known_urls(videos, asked.urls, ids)
    for url in asked.urls:
        if url not in there and not known.date("source", url):
            one_of(videos["source_url"], url, "--url")


def of_clip(videos: pa.Table, clip_id: str) -> str:
    """A hint where a clip's id was given: whole videos are taken down."""
    video_id = clip_id.rsplit("_", 2)[0]
    if video_id == clip_id or not pc.any(pc.equal(videos["video_id"], video_id)).as_py():
        return ""
    return f"; it is a clip of a video, and whole videos are taken down: --video {video_id}"


def one_of(column: pa.ChunkedArray, name: str, option: str, hint: str = "") -> None:
    """Raise ConfigError unless a name is in a column; `hint` is told in place of the nearest."""
    there = pc.unique(column).drop_null().to_pylist()
    if name in there:
        return
    close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    hint = hint or (f"; did you mean {close[0]!r}?" if close else "")
    raise ConfigError(f"{option} {name!r} is in no dataset given{hint}")


# -- what is there


def indexed(dataset: Dataset) -> pa.Table:
    """The videos of a subset without media, as VIDEO has them."""
    if not dataset.exists(INDEX):
        return VIDEO.empty_table()
    with pq.ParquetFile(dataset.path(INDEX), filesystem=dataset.filesystem) as file:
        rows = file.read(["video_id", "source_url"]).group_by(["video_id", "source_url"])
    table = rows.aggregate([])
    nulls = pa.nulls(len(table), pa.string())
    return pa.table([table["video_id"], table["source_url"], nulls, nulls], schema=VIDEO)


def all_videos(dataset: Dataset, uploaders: bool) -> pa.Table:
    """Those of a whole dataset."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        one = partial(videos_of, dataset, uploaders=uploaders)
        return pa.concat_tables([indexed(dataset), *pool.map(one, dataset.manifests())])
