"""Shape buckets: which shape a clip goes to, who trains on it, what is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_media import FPS, TINY, clip, mp4, write_dataset

from curation.settings import ConfigError
from training.config import Config, load_config
from training.data.batches import Batches, Sample, bucket_table
from training.data.orders import deal
from training.data.rows import Rows, open_rows
from training.data.shapes import best_fit, shapes_of
from training.train import train as vf_train

WIDE, LONG, TALL = [4, 16, 32], [8, 16, 16], [4, 32, 16]
MIXED = f"buckets=[{WIDE}, {LONG}, {TALL}]"


def config(*overrides: str) -> Config:
    return load_config("tiny", [*TINY, "stride=null", f"fps={FPS}", *overrides])


# (frames, width, height) of a clip, and the shape it is trained in.
FITS = [
    ((4, 64, 32), WIDE),
    ((20, 64, 32), WIDE),  # the nearest aspect comes before more frames
    ((20, 32, 32), LONG),
    ((5, 32, 33), TALL),  # too short for the square one
    ((9, 16, 16), LONG),  # too small for the others
    ((9, 30, 16), LONG),  # though the wide one is nearer
    ((9, 20, 64), TALL),
    ((9, 30, 15), WIDE),  # too small for each: enlarged, by aspect
    ((3, 64, 32), None),
    ((1, 64, 32), [1, 16, 32]),
    ((1, 32, 64), [1, 32, 16]),
]


@pytest.mark.parametrize(("row", "shape"), FITS)
def test_a_row_goes_to_the_shape_that_fits_it_best(
    row: tuple[int, int, int], shape: list[int] | None
) -> None:
    shapes = shapes_of(config(MIXED))
    frames, width, height = row
    found = best_fit(shapes, frames, frames / FPS, width, height)
    got = None if found is None else shapes[found]
    assert shape == (got and [got.num_frames, got.height, got.width])


def test_more_frames_and_then_more_pixels_break_ties() -> None:
    shapes = shapes_of(config("buckets=[[4, 16, 32], [8, 16, 32], [8, 32, 64], [8, 8, 16]]"))
    assert best_fit(shapes, 20, 20 / FPS, 64, 32) == 2
    assert best_fit(shapes, 20, 20 / FPS, 40, 20) == 1
    assert best_fit(shapes, 5, 5 / FPS, 64, 32) == 0


def test_given_stills_are_the_only_ones() -> None:
    shapes = [(s.num_frames, s.height, s.width) for s in shapes_of(config())]
    assert shapes == [(2, 16, 16), (1, 16, 16)]
    stills = shapes_of(config("buckets=[[4, 16, 16], [1, 32, 32]]"))
    assert len(stills) == 2 and best_fit(stills, 1, 1 / FPS, 64, 64) == 1
    assert best_fit(stills, 2, 2 / FPS, 64, 64) is None  # a video is no still
    frames = shapes_of(config("num_frames=1"))  # but where there is nothing else, it is
    assert len(frames) == 1 and best_fit(frames, 2, 2 / FPS, 64, 64) == 0


def row(n: int, frames: int, size: tuple[int, int]) -> dict[str, object]:
    return clip(f"c{n}", mp4(frames, size), frames, width=size[0], height=size[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = [(32, 16), (16, 16), (32, 16), (16, 16), (32, 16), (64, 32), (16, 16), (32, 32)]
    frames = [4, 9, 5, 10, 6, 7, 8, 1]
    rows = [row(n, *each) for n, each in enumerate(zip(frames, sizes, strict=True))]
    return write_dataset(tmp_path_factory.mktemp("data") / "a", rows, per_commit=3)


def rows_of(data: Path, settings: Config) -> Rows:
    return open_rows(str(data), "a", 1, shapes_of(settings), 16, settings.held_out)


def test_the_same_samples_in_their_own_shapes(data: Path) -> None:
    """Buckets change how a clip is cut and never which clips a step has."""
    settings, plain = (config("held_out=0", "batch_size=4", *m) for m in ([MIXED], []))
    some, every = (
        Batches([rows_of(data, settings)], settings),
        Batches([rows_of(data, plain)], plain),
    )
    shapes = set()
    for n in range(16):
        bucketed, whole = some.read(n), every.read(n)
        assert isinstance(bucketed, Sample) and isinstance(whole, Sample)
        assert (bucketed.clip_id, bucketed.epoch) == (whole.clip_id, whole.epoch)
        assert bucketed.draws == whole.draws
        assert bucketed.shape[:3] == some.shape(n)  # as planned without decoding
        shapes.add(bucketed.shape[:3])
    assert shapes == {(4, 16, 32), (8, 16, 16), (1, 16, 16)}


def test_the_table_names_empty_buckets_and_the_cost(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [*TINY, "stride=null", f"fps={FPS}", MIXED, "batch_size=4", "held_out=0"]
    vf_train("tiny", [str(data)], tmp_path / "run", set_=sets, dry_run=True)
    told = capsys.readouterr().out
    assert "4 frames of 32x16: 4 clips" in told and "8 frames of 16x16: 3 clips" in told
    assert "4 frames of 16x32: no clips" in told
    assert "micro-batches a step and worker; 1 if all clips had one shape" in told
    assert "1 frame of 16x16: 1 clip\n" in told
    assert not (tmp_path / "run").exists()


def test_the_cost_is_that_of_the_steps(data: Path) -> None:
    settings = config(MIXED, "batch_size=4", "held_out=0")
    batches = Batches([rows_of(data, settings)], settings)
    shapes = [[batches.shape(4 * step + n) for n in range(4)] for step in range(6)]
    assert [batches.num_parts(step, 1) for step in range(6)] == [len(set(s)) for s in shapes]
    one = config("batch_size=4", "held_out=0", "num_frames=4", "micro_batch_size=2")
    assert bucket_table([rows_of(data, one)], one, 1)[0] == "4 frames of 16x16: 7 clips"


def test_small_clips_are_enlarged_and_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [*TINY, "width=48", "num_frames=6", "stride=1"]
    vf_train("tiny", [str(data)], tmp_path / "run", set_=sets, dry_run=True)
    assert "a: 4 clips, 2 of held-out videos, 2 too short, 5 enlarged" in capsys.readouterr().out


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_samples_are_dealt_once_each_and_evenly(world: int) -> None:
    shapes = [(8, 4, 4), (1, 4, 4)] * 6
    dealt = deal(shapes, world)
    assert sorted(n for places in dealt for n in places) == list(range(12))
    loads = [sum(shapes[n][0] for n in places) for places in dealt]
    assert max(loads) - min(loads) <= 8  # a sample at most
    assert deal(shapes, 1) == [list(range(12))]
    assert {len(places) for places in deal([(8, 4, 4)] * 2 * world, world)} == {2}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("buckets=[[4, 30, 32]]", "a bucket's height is 30: give a multiple of 4"),
        ("buckets=[[0, 32, 32]]", "at least 1, each shape once"),
        ("buckets=[[4, 32, 32], [4, 32, 32]]", "each shape once"),
        ("buckets=[[4, 32]]", "buckets.0.2"),
    ],
)
def test_mistakes_in_buckets_are_told(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(override)
