"""From shards to samples: frames by time, crop, held-out clips, bad rows, mixtures."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from training_media import FPS, TINY, clip, level, mp4, small_dataset, write_dataset

from curation.settings import ConfigError
from curation.shards import is_held_out
from training.config import Config, load_config
from training.data import indexes, reads
from training.data import rows as training_rows
from training.data.batches import HANDFUL, BadRow, BadRows, Batches, Sample, TooManyBadError
from training.data.batches import held_out_samples as held_out_of
from training.data.indexes import spread_over_videos
from training.data.reads import Kept, retried
from training.data.rows import Rows, open_rows, parse_data
from training.data.shapes import shapes_of
from training.data.videos import BadVideoError, SampleShape, read_frames


def sampling(**changes: Any) -> SampleShape:
    return SampleShape(**{"num_frames": 3, "height": 16, "width": 16, "fps": FPS, **changes})


def greys(frames: np.ndarray) -> list[float]:
    return frames.mean((1, 2, 3)).tolist()


def same_frames(frames: np.ndarray, numbers: list[int]) -> bool:
    wanted = [level(n) for n in numbers]
    return max(abs(a - b) for a, b in zip(greys(frames), wanted, strict=True)) < 4


@pytest.mark.parametrize(
    ("changes", "start", "numbers"),
    [
        ({}, 0.0, [0, 1, 2]),
        ({}, 0.999, [9, 10, 11]),  # room: 12/8 s less 2/8 s, the last frame's time included
        ({"fps": FPS / 2}, 0.0, [0, 2, 4]),
        ({"fps": 2 * FPS}, 0.0, [0, 0, 1]),  # a frame is shown until the next one
        ({"stride": 4}, 0.0, [0, 4, 8]),
        ({"stride": 4}, 0.99, [3, 7, 11]),
        ({"stride": 1}, 0.5, [5, 6, 7]),
    ],
)
def test_the_frames_asked_for(changes: dict[str, Any], start: float, numbers: list[int]) -> None:
    assert same_frames(read_frames(mp4(12), sampling(**changes), start), numbers)


def test_times_come_from_pts() -> None:
    """Frames 0..5 are shown at 0, 1, 2, 6, 7, 8 eighths of a second."""
    media = mp4(6, times=[0, 1, 2, 6, 7, 8])
    assert same_frames(read_frames(media, sampling(num_frames=8), 0.0), [0, 1, 2, 2, 2, 2, 3, 4])


def test_starts_cover_the_whole_clip() -> None:
    media = mp4(12)
    first = {
        round((greys(read_frames(media, sampling(stride=1), n / 40))[0] - 30) / 12)
        for n in range(40)
    }
    assert first == set(range(10))


def test_the_picture_is_covered_and_its_centre_kept() -> None:
    import io

    import av

    sink = io.BytesIO()
    picture = np.zeros((32, 128, 3), np.uint8)
    picture[:, 48:80] = 255  # the middle square of a wide picture
    with av.open(sink, "w", "mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 128, 32, "yuv420p"
        stream.options = {"crf": "1"}
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    frames = read_frames(sink.getvalue(), sampling(num_frames=8), 0.3)
    assert frames.shape == (1, 16, 16, 3)  # one frame is an image, whatever is asked for
    assert frames.mean() > 240


@pytest.mark.parametrize("media", [b"", b"no video at all", mp4(12)[:-400], mp4(2)])
def test_bad_media_is_told_as_such(media: bytes) -> None:
    with pytest.raises(BadVideoError):
        read_frames(media, sampling(), 0.9)


def config(*overrides: str) -> Config:
    return load_config("tiny", [*TINY, *overrides])


def rows_of(folder: Path, name: str = "a", weight: float = 1.0, held_out: float = 0) -> Rows:
    return open_rows(str(folder), name, weight, [sampling(num_frames=2, stride=1)], 8, held_out)


def take(batches: Batches, count: int, step: int = 0) -> list[Sample | BadRow]:
    got = itertools.islice(batches.start_at(step), count)
    return [each for batch in got for each in (*batch.samples, *batch.bad)]


def test_an_epoch_holds_every_clip_once_but_those_held_out(tmp_path: Path) -> None:
    rows = rows_of(small_dataset(tmp_path / "a"), held_out=0.1)
    out = [s for s in held_out_of([rows], config()) if isinstance(s, Sample)]
    batches = Batches([rows], config("batch_size=3"))
    samples = take(batches, 4)
    ids = [sample.clip_id for sample in samples]
    assert set(Counter(ids).values()) == {2} and len(ids) == 12
    assert [s.clip_id for s in out] == list({f"c{n}" for n in range(7)} - set(ids))
    assert batches.epochs(1) == {"a": 0} and batches.epochs(2) == {"a": 1}


def of_videos(count: int, each: int) -> list[dict[str, Any]]:
    """Rows of as many videos with `each` clips."""
    return [
        clip(f"v{n}-{k}", mp4(4), 4, video_id=f"v{n}", start_s=float(k))
        for n in range(count)
        for k in range(each)
    ]


def ids_of(rows: Rows, which: Any) -> set[str]:
    return {rows.fetch(int(row)).clip_id for row in which}


def test_no_clip_of_a_held_out_video_is_trained_on(tmp_path: Path) -> None:
    rows = rows_of(write_dataset(tmp_path / "a", of_videos(12, 3)), held_out=0.3)
    trained, out = ids_of(rows, rows.trained), ids_of(rows, rows.held_out)
    videos = [{name.split("-")[0] for name in names} for names in (trained, out)]
    assert not videos[0] & videos[1] and len(videos[0] | videos[1]) == 12
    assert len(trained) + len(out) == 36
    assert videos[1] == {f"v{n}" for n in range(12) if is_held_out(f"v{n}", 0.3)}


def test_a_subset_holds_out_what_its_parent_did(tmp_path: Path) -> None:
    """However it is sharded, and whatever was left out of it."""
    clips = of_videos(12, 3)
    parent = rows_of(write_dataset(tmp_path / "parent", clips), held_out=0.3)
    subset = rows_of(write_dataset(tmp_path / "subset", clips[::-2], 5), held_out=0.3)
    assert not ids_of(subset, subset.held_out) & ids_of(parent, parent.trained)
    assert not ids_of(subset, subset.trained) & ids_of(parent, parent.held_out)


def test_the_window_of_the_shuffle_follows_the_memory(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", of_videos(12, 3), per_commit=3)
    shapes = [sampling(num_frames=2, stride=1)]
    # Twelve row groups, one of each video.
    size = sum(path.stat().st_size for path in (folder / "shards").iterdir()) / 12
    for groups in (1, 3, 12):
        rows = open_rows(str(folder), "a", 1, shapes, 2 * size * groups + 1, 0)
        assert rows.window == groups
        batches = Batches([rows], config("batch_size=12"))
        assert all(len(ids_of(rows, [batches.place(12 * step + n)[2] for n in range(12)])) == 12
                   for step in range(3))  # fmt: skip
        assert batches.num_videos(3) == 4 if groups == 1 else batches.num_videos(3) >= 4
    assert batches.num_videos(3) > 7  # of a full shuffle


def test_precomputed_rows_are_shuffled_fully(tmp_path: Path) -> None:
    rows = open_rows(str(write_dataset(tmp_path / "a", of_videos(12, 3), per_commit=3)), "a", 1,
                     [sampling(num_frames=2, stride=1)], 1, 0)  # fmt: skip
    assert Batches([rows], config("batch_size=12")).num_videos(3) == 4
    rows.latents = cast(Any, "precomputed")
    assert Batches([rows], config("batch_size=12")).num_videos(3) > 7


def test_what_is_evaluated_is_of_as_many_videos_as_can_be() -> None:
    video = np.array([5, 5, 5, 9, 9, 2, 5], np.uint64)
    assert spread_over_videos(video, 3).tolist() == [0, 3, 5]
    assert spread_over_videos(video, 4).tolist() == [0, 1, 3, 5]
    assert spread_over_videos(video, 99).tolist() == list(range(7))
    assert spread_over_videos(video[:0], 3).tolist() == []


def test_a_batch_is_the_same_wherever_reading_begins(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path / "a")
    once = take(Batches([rows_of(folder)], config("loader_threads=1")), 6)
    later = take(Batches([rows_of(folder)], config("loader_threads=3", "prefetch=4")), 3, step=3)
    for a, b in zip(once[6:], later, strict=True):
        assert isinstance(a, Sample) and isinstance(b, Sample)
        assert (a.clip_id, a.epoch, a.draws) == (b.clip_id, b.epoch, b.draws)
        assert torch.equal(a.raw, b.raw)


def test_two_datasets_have_exact_shares_and_epochs_of_their_own(tmp_path: Path) -> None:
    datasets = [rows_of(small_dataset(tmp_path / name, count, name), name, weight)
                for name, count, weight in (("a", 7, 0.75), ("b", 2, 0.25))]  # fmt: skip
    samples = take(Batches(datasets, config("batch_size=4")), 14)
    by_name = {name: [s for s in samples if s.dataset == name] for name in "ab"}
    assert {name: len(each) for name, each in by_name.items()} == {"a": 42, "b": 14}
    for name, size in (("a", 7), ("b", 2)):
        for epoch in range(5):
            seen = [s.clip_id for s in by_name[name] if s.epoch == epoch]
            assert len(seen) == len(set(seen)) == size


def test_null_captions_are_the_empty_prompt(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", [clip("x", mp4(4), 4, caption=None)])
    assert rows_of(folder).fetch(0).caption == ""


def test_an_epoch_draws_one_of_several_captions(tmp_path: Path) -> None:
    """Each as likely, the same in every run; of one caption that one."""
    captions = {f"x{n}": ["a dog", "a hound", "ein Hund"] for n in range(40)} | {"y": None}
    rows = [
        clip(name, mp4(4), 4, caption=several[0] if several else "a cat", captions=several)
        for name, several in captions.items()
    ]
    folder = write_dataset(tmp_path / "a", rows, per_commit=41)
    first, again = (
        [s for s in take(Batches([rows_of(folder)], config("batch_size=41")), 4)
         if isinstance(s, Sample)] for _ in range(2)
    )  # fmt: skip
    told = {(s.epoch, s.clip_id): s.caption for s in first}
    assert told == {(s.epoch, s.clip_id): s.caption for s in again} and len(told) == 4 * 41
    counts = Counter(caption for (_, name), caption in told.items() if name != "y")
    # 160 draws of a third each: 53 expected, 6 the standard deviation.
    assert set(counts) == {"a dog", "a hound", "ein Hund"} and min(counts.values()) > 29
    assert {told[epoch, "y"] for epoch in range(4)} == {"a cat"}
    per_clip = [{told[epoch, name] for epoch in range(4)} for name in captions if name != "y"]
    assert sum(len(each) > 1 for each in per_clip) > 30  # not one a clip for ever


def test_images_are_videos_of_one_frame_and_short_clips_are_left_out(tmp_path: Path) -> None:
    rows = [clip("image", mp4(1), 1), clip("short", mp4(2), 2), clip("long", mp4(9), 9)]
    folder = write_dataset(tmp_path / "a", rows)
    wanted = config("stride=2", "num_frames=3")
    opened = open_rows(str(folder), "a", 1, shapes_of(wanted), 8, 0)
    assert (opened.num_trained, opened.too_short) == (2, 1)
    batches = Batches([opened], wanted)
    assert {s.clip_id: len(s.raw) for s in take(batches, 1)} == {"image": 1, "long": 3}


def test_bad_rows_are_skipped_and_named(tmp_path: Path) -> None:
    rows = [clip(f"c{n}", mp4(4), 4) for n in range(3)] + [clip("broken", b"junk", 4)]
    batches = Batches([rows_of(write_dataset(tmp_path / "a", rows))], config("batch_size=4"))
    batch = next(iter(batches.start_at(0)))
    assert {s.clip_id for s in batch.samples} == {"c0", "c1", "c2"}
    assert [(bad.dataset, bad.clip_id) for bad in batch.bad] == [("a", "broken")]
    assert "does not decode" in batch.bad[0].reason


def test_too_many_bad_rows_stop_a_run() -> None:
    bad = BadRows()
    for n in range(HANDFUL):
        assert bad.add(BadRow("a", str(n), "why"))
    assert not bad.add(BadRow("a", "0", "why"))  # a row is counted once
    bad.check(num_seen=HANDFUL)
    bad.add(BadRow("a", "one more", "why"))
    bad.check(num_seen=1000)  # six of a thousand
    with pytest.raises(TooManyBadError, match=r"6 of 500 .*one more: why.*vf-validate"):
        bad.check(num_seen=500)


def test_data_arguments() -> None:
    assert parse_data(["runs/a:0.7", "runs/b/:0.3"]) == [
        ("runs/a", "a", 0.7),
        ("runs/b/", "b", 0.3),
    ]
    assert parse_data(["s3://bucket/x", "other/x:2"]) == [
        ("s3://bucket/x", "x", 1.0),
        ("other/x", "x#2", 2.0),
    ]
    for wrong in ("a:0", "a:-1", "a:nan"):
        with pytest.raises(ConfigError, match="weight"):
            parse_data([wrong])


def test_no_dataset_and_no_clip_left_are_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a dataset folder"):
        rows_of(tmp_path)
    with pytest.raises(ConfigError, match="no clip to train on: 7 are long enough"):
        rows_of(small_dataset(tmp_path / "a"), held_out=1.0)


def test_windows_are_the_middles_of_equal_parts() -> None:
    assert [sampling(windows=1).begin(x) for x in (0.0, 0.99)] == [0.5, 0.5]
    assert [sampling(windows=4).begin(x) for x in (0.0, 0.3, 0.999)] == [0.125, 0.375, 0.875]
    assert sampling().begin(0.3) == 0.3
    frames = read_frames(mp4(12), sampling(stride=1, windows=2), 0.1)
    assert same_frames(frames, [2, 3, 4])  # a quarter of ten places


def test_an_outage_is_waited_out_and_is_no_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(small_dataset(tmp_path / "a"))
    open_shard, waits, failing = training_rows.open_shard, [], [3]

    def flaky(*given: Any) -> Any:
        if failing[0]:
            failing[0] -= 1
            raise OSError("503 slow down")
        return open_shard(*given)

    monkeypatch.setattr(training_rows, "open_shard", flaky)
    monkeypatch.setattr(reads.time, "sleep", waits.append)
    batches = Batches([rows], config())
    assert isinstance(batches.read(0), Sample) and waits == [0.2, 1.0, 5.0]
    failing[0] = 4
    rows.tables.futures.clear()
    got = batches.read(0)
    assert isinstance(got, BadRow) and "503" in got.reason
    assert isinstance(batches.read(0), Sample)  # a failure is not kept
    failing[0], waits[:] = 0, []
    with pytest.raises(FileNotFoundError):
        retried(lambda: open(tmp_path / "nowhere"))  # noqa: PTH123, SIM115
    assert waits == []


def test_a_group_is_read_once_however_many_threads_ask() -> None:
    made: list[int] = []
    together = threading.Barrier(4)

    def make(key: int) -> int:
        made.append(key)
        return -key

    kept = Kept(make, keep=2)

    def ask(_: int) -> int:
        together.wait()
        return kept.get(7)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [-7] * 4
    assert made == [7]
    assert [kept.get(n) for n in (8, 7, 9)] == [-8, -7, -9]  # 8 is the oldest now
    kept.get(7)
    assert made == [7, 8, 9]
    kept.get(8)
    assert made == [7, 8, 9, 8]


def test_an_index_is_read_once_and_mapped_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(tmp_path / "a", of_videos(5, 3), per_commit=6)
    shapes = [sampling(num_frames=2, stride=1)]

    def opened(run: Path | None) -> Rows:
        return open_rows(str(folder), "a", 1, shapes, 1e9, 0.3, run=run)

    plain = opened(None)
    assert not (folder / "index").exists()
    first = opened(tmp_path / "run")

    def read_shard(*_: Any) -> None:
        raise AssertionError("the shards need not be read")

    monkeypatch.setattr(indexes, "read_shard", read_shard)
    again = opened(tmp_path / "other run")
    assert isinstance(again.index.video, np.memmap)
    for rows in (first, again):
        assert rows.trained.tolist() == plain.trained.tolist()
        assert rows.held_out == plain.held_out and rows.fits.tolist() == plain.fits.tolist()
        assert [rows.index.place_in_shard(n) for n in range(15)] == [
            plain.index.place_in_shard(n) for n in range(15)
        ]
    monkeypatch.undo()
    write_dataset(folder, [clip("more", mp4(4), 4)])  # another dataset, another index
    assert opened(tmp_path / "run").index.num_rows == 16


def test_where_a_dataset_cannot_be_written_the_run_keeps_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(tmp_path / "a", of_videos(2, 2))
    monkeypatch.setattr(indexes.os, "access", lambda *_: False)
    open_rows(str(folder), "a", 1, [sampling(num_frames=2, stride=1)], 1e9, 0, run=tmp_path / "run")
    assert (tmp_path / "run" / ".index").is_dir() and not (folder / "index").exists()
