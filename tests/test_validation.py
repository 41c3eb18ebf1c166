"""vf-validate finds what is planted and names the file; --repair leaves the rest as it was."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from training_media import FPS, clip, level, mp4
from typer.testing import CliRunner

from curation import validate
from curation.decode.previews import small_jpeg
from curation.shards import LEDGER_SCHEMA, Dataset, own_scores, write_commit

VIDEOS = (("a", "b"), ("c", "d"))  # of two commits, a clip each
NUM_FRAMES = {"a": 8, "b": 10, "c": 12, "d": 8}
PRINTS = {"cut": "x"}
Rows = list[dict[str, Any]]


def preview(frame: int) -> bytes:
    return small_jpeg(np.full((16, 32, 3), level(frame), np.uint8))


def ledger_of(name: str) -> Rows:
    """The rows of a video and of its one clip."""
    empty = dict.fromkeys(LEDGER_SCHEMA.names)
    known = {"video_id": name, "source_url": f"{name}.mp4", "decision": "kept", "attempts": 1}
    num_frames = NUM_FRAMES[name]
    about = {
        "clip_id": f"{name}_0",
        "caption": f"clip {name}_0",
        "start_s": 0.0,
        "end_s": num_frames / FPS,
        "preview": [preview(0), preview(num_frames - 1)],
    }
    return [empty | known | {"level": "video"}, empty | known | about | {"level": "clip"}]


def shard_of(name: str) -> dict[str, Any]:
    media = mp4(NUM_FRAMES[name])
    where = {"video_id": name, "source_url": f"{name}.mp4"}
    return clip(f"{name}_0", media, NUM_FRAMES[name], **where)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "data"
    dataset = Dataset.at(folder)
    dataset.claim()
    for names in VIDEOS:
        ledger = [row for name in names for row in ledger_of(name)]
        write_commit(dataset, [shard_of(name) for name in names], ledger, PRINTS)
    return folder


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Dataset:
    return Dataset.at(shutil.copytree(sound, tmp_path / "data"))


def commit_of(dataset: Dataset, video_id: str) -> dict[str, Any]:
    return next(m for m in dataset.commits() if video_id in m["video_ids"])


def written_wrong(dataset: Dataset, change: Callable[[Rows, Rows], Any]) -> None:
    """The commit of a and b as if it had been written so; `change` gets clips and ledger."""
    commit = commit_of(dataset, "a")
    with dataset.open_shard(commit["name"]) as shard:
        clips = shard.read().to_pylist()
    ledger = dataset.ledger_of(commit["name"]).to_pylist()
    dataset.delete_commit(commit["name"])
    change(clips, ledger)
    write_commit(dataset, clips, ledger, PRINTS, own_scores(commit))


def file_of(dataset: Dataset, folder: str) -> Path:
    suffix = "json" if folder == "manifest" else "parquet"
    return Path(dataset.root) / folder / f"{commit_of(dataset, 'a')['name']}.{suffix}"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def in_two_commits(dataset: Dataset) -> None:
    write_commit(dataset, [shard_of("c")], ledger_of("c"), PRINTS)


def orphan(dataset: Dataset) -> None:
    shard = file_of(dataset, "shards")
    shutil.copy(shard, shard.with_name(f"{'0' * 16}.parquet"))


def with_sound(data: bytes) -> bytes:
    """A clip with a silent audio stream beside its packets."""
    sink = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(sink, "w", "mp4") as made:
        video = made.add_stream_from_template(source.streams.video[0])
        audio = made.add_stream("aac", rate=8000)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                made.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        made.mux([*audio.encode(frame), *audio.encode()])
    return sink.getvalue()


def media(value: bytes) -> Callable[[Rows, Rows], Any]:
    return lambda clips, ledger: clips[0].update(clip={"bytes": value, "path": None})


def shard(**changes: Any) -> Callable[[Rows, Rows], Any]:
    return lambda clips, ledger: clips[0].update(changes)


def ledger(number: int, **changes: Any) -> Callable[[Rows, Rows], Any]:
    """Rows 0 and 1 are video a and its clip."""
    return lambda clips, rows: rows[number].update(changes)


# What is planted: the folder that is named, what is said of it, and the videos that are redone.
FILES = {
    "a byte of a shard": (lambda d: flip(file_of(d, "shards")), "shards", "sha256", "ab"),
    "the end of a shard": (lambda d: cut_short(file_of(d, "shards")), "shards", "bytes, the", "ab"),
    "no shard": (lambda d: file_of(d, "shards").unlink(), "shards", "is missing", "ab"),
    "a byte of a ledger": (lambda d: flip(file_of(d, "ledger")), "ledger", "sha256", "ab"),
    "no ledger": (lambda d: file_of(d, "ledger").unlink(), "ledger", "is missing", "ab"),
    "half a manifest": (lambda d: cut_short(file_of(d, "manifest")), "manifest", "not JSON", "ab"),
    "another count": (
        lambda d: edited(file_of(d, "manifest"), num_clips=3), "shards", "says 3", "ab"
    ),
    "another video": (
        lambda d: edited(file_of(d, "manifest"), video_ids=["a", "e"]), "ledger", "not those", "ab"
    ),
    "one video twice": (in_two_commits, "manifest", "the video c is in", ""),
    "a file of no commit": (orphan, "shards", "belongs to no manifest", ""),
}  # fmt: skip
ROWS = {
    "other pictures": (media(mp4(8, first=5)), "shards", "other pictures than were analysed"),
    "a damaged clip": (media(mp4(8)[:900]), "shards", "it does not decode"),
    "no media": (media(b""), "shards", "it has no media"),
    "sound": (media(with_sound(mp4(8))), "shards", "an audio stream"),
    "a frame too many": (media(mp4(9)), "shards", "num_frames 8"),
    "another size": (shard(width=64), "shards", "pictures of {(32, 16)}"),
    "another codec": (shard(codec="hevc"), "shards", "its codec is h264"),
    "another caption": (shard(caption="a hat"), "shards", "its caption is 'a hat'"),
    "another length": (shard(duration_s=3.0), "shards", "0.000 to 1.000 s are no 3.000 s"),
    "another clip": (shard(clip_id="a_9"), "shards", "the ledger does not keep it"),
    "a clip twice": (lambda clips, rows: clips.append(clips[0]), "shards", "stored 2 times"),
    "a clip lost": (lambda clips, rows: clips.pop(0), "shards", "stored 0 times"),
    "a verdict lost": (ledger(0, decision="dropped"), "ledger", "a is dropped with 1 kept clips"),
    "a class lost": (ledger(1, decision="failed"), "ledger", "failed without an error class"),
    "a row twice": (lambda clips, rows: rows.append(rows[1]), "ledger", "is there 2 times"),
}


@pytest.mark.parametrize("planted", ROWS)
def test_what_is_wrong_with_rows_is_found_and_mended(dataset: Dataset, planted: str) -> None:
    """The other video of the commit stays."""
    change, folder, says = ROWS[planted]
    written_wrong(dataset, change)
    expect(dataset, folder, says, "a")


@pytest.mark.parametrize("planted", FILES)
def test_what_is_wrong_with_files_is_found_and_mended(dataset: Dataset, planted: str) -> None:
    plant, folder, says, redone = FILES[planted]
    plant(dataset)
    expect(dataset, folder, says, redone)


def expect(dataset: Dataset, folder: str, says: str, redone: str) -> None:
    """It is told in a line that names a file of the folder, and gone after --repair."""
    code, lines = validated(dataset)
    assert code == 1
    told = [line for line in lines if line.startswith(f"{folder}/") and says in line]
    assert told, lines
    assert validated(dataset, "--repair")[0] == 0
    assert validated(dataset)[0] == 0
    assert {video_id for video_id, _ in dataset.decided()} == set("abcd") - set(redone)
    assert {row["video_id"] for row in dataset.rows(["video_id"])} == set("abcd") - set(redone)


def validated(dataset: Dataset, *options: str) -> tuple[int, list[str]]:
    done = CliRunner().invoke(validate.app, [dataset.root, "--workers", "1", *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output.splitlines()
