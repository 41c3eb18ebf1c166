"""Near copies: who is in a group, which of it is kept, and what vf-clean says and writes of it."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import without_column
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from curation import clean, report, why
from curation.pipelines import Scorers
from curation.shards import LEDGER_SCHEMA, SHARD_SCHEMA, Dataset, write_commit
from curation.subsets.asked import Order, make_plan
from curation.subsets.cleaned import execute
from curation.subsets.decided import decide, rows
from curation.subsets.gathered import LOOKS, Clips
from curation.subsets.near_copies import distances, find_copies, groups_of
from curation.subsets.recipes import NearCopies, Recipe
from curation.validation.commits import check_commit

FIRST = 1 << 63  # a hash of which nothing but the highest bit, which all have, is set
RECIPE = Recipe(near_copies=NearCopies(min_distance=16))
MIN = 16.0


def unlike(number: int, seed: int = 0) -> np.ndarray:
    """Hashes uint64 [N, 16] of clips that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, FIRST, (number, 16), dtype=np.uint64) | np.uint64(FIRST)


def changed(hashes: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    """A hash uint64 [16] or several with so many bits of each of its numbers changed."""
    rng = np.random.default_rng(seed)
    out = hashes.copy()
    for place in np.ndindex(out.shape):
        for bit in rng.choice(63, bits, replace=False):
            out[place] ^= np.uint64(1 << int(bit))
    return out


def make_clips(hashes: list[np.ndarray | None], place: str = "/one", **known: Any) -> Clips:
    """Clips of 720p and 4 s with these hashes, ids by number unless told."""
    n = len(hashes)
    columns = {
        "clip_id": [f"c{i:04d}" for i in range(n)],
        "perceptual_hash": [None if h is None else h.tobytes() for h in hashes],
        **{"resolution": [720.0] * n, "aspect": [16 / 9] * n, "black_bars": [0.0] * n},
        **{"duration": [4.0] * n, "sharpness": [None] * n},
    } | known
    looks = pa.table({c: pa.array(columns[c], LEDGER_SCHEMA.field(c).type) for c in LOOKS})
    duration_s = np.array(columns["duration"])
    return Clips(looks["clip_id"], duration_s, {}, {}, {}, {"one": slice(0, n)}, place, looks)


def kept_of(clips: list[Clips], number: int = 0) -> list[str]:
    return clips[number].ids.filter(decide(clips[number], RECIPE, others(clips, number)).kept)


def others(clips: list[Clips], number: int) -> list[Clips]:
    return clips[:number] + clips[number + 1 :]


# -- who is a copy


def test_distance_is_the_mean_over_what_either_tells() -> None:
    one = unlike(1)[0]
    assert distances(one[None], changed(one, 5)[None]).tolist() == [5.0]
    black = one.copy()
    black[:2] = 0
    told = np.bitwise_count(one[:2]).sum()
    assert distances(one[None], black[None])[0] == pytest.approx(told / 16)
    black[2:] = 0
    black[5:8] = one[5:8]
    assert distances(black[None], black[None]).tolist() == [np.inf]  # three hashes are too few
    black[8] = one[8]
    assert distances(black[None], black[None]).tolist() == [0.0]


def test_copies_are_found_and_strangers_are_not() -> None:
    hashes = unlike(3000)
    copies = changed(hashes[:300], 6)
    clips = make_clips([*hashes, *copies])
    found = find_copies([clips], MIN)
    assert (found.best[3000:] == np.arange(300)).mean() >= 0.99
    assert (found.best[:3000] == np.arange(3000)).all()
    assert np.isinf(found.distance[300:3000]).all()
    assert set(found.distance[3000:][np.isfinite(found.distance[3000:])]) == {6.0}


def test_what_is_at_the_bound_is_no_copy() -> None:
    one = unlike(1)[0]
    clips = make_clips([one, changed(one, 4)])
    assert find_copies([clips], 4.0).best.tolist() == [0, 1]
    assert find_copies([clips], 4.5).best.tolist() == [0, 0]


def test_flat_clips_and_clips_without_a_hash_are_no_copies() -> None:
    flat, known = np.zeros(16, np.uint64), unlike(1)[0]
    nearly = flat.copy()
    nearly[:3] = known[:3]
    hashes = [flat, flat, nearly, nearly, None, None, known]
    assert find_copies([make_clips(hashes)], MIN).best.tolist() == list(range(7))
    assert find_copies([make_clips([None, None])], MIN).best.tolist() == [0, 1]
    assert find_copies([make_clips([])], MIN).best.tolist() == []


def test_a_crowd_of_like_clips_is_one_group() -> None:
    """More than a band compares with each other, half of them the same to the bit."""
    one = unlike(1)[0]
    crowd = [changed(one, 2, seed=n // 2) for n in range(400)]
    found = find_copies([make_clips(crowd)], MIN)
    assert (found.best == 0).all() and (found.distance == 0).all()


def test_copies_of_copies_are_of_one_group() -> None:
    one = unlike(1)[0]
    two = changed(one, 6, seed=1)
    three = changed(two, 6, seed=2)
    assert distances(one[None], three[None])[0] > 8
    found = find_copies([make_clips([three, one, two])], 8.0)
    assert found.best.tolist() == [0, 0, 0]
    assert found.distance.tolist() == [6.0, 6.0, 6.0]


def test_groups_are_found_however_long_their_chains_are() -> None:
    order = np.random.default_rng(0).permutation(60)
    chains = [order[:40], order[40:]]
    pairs = np.concatenate([np.stack([c[:-1], c[1:]], axis=1) for c in chains])
    found = groups_of(60, np.sort(pairs, axis=1))
    for chain in chains:
        assert set(found[chain]) == {chain.min()}


# -- which is kept


@pytest.mark.parametrize(
    "known",
    [
        {"resolution": [480.0, 720.0, 360.0]},
        {"aspect": [4 / 3, 16 / 9, 4 / 3]},
        {"black_bars": [0.25, 0.0, 0.1]},
        {"duration": [3.0, 5.0, 4.0]},
        {"sharpness": [0.2, 0.5, None]},
        {"clip_id": ["b", "a", "c"]},
        {"resolution": [720.0, 1080.0, 720.0], "duration": [9.0, 4.0, 9.0]},
        {"duration": [4.0, 5.0, 4.0], "sharpness": [0.9, 0.1, 0.9]},
        {"duration": [4.2, 4.0, 3.8], "sharpness": [0.1, 0.9, 0.1]},  # as long, to the second
    ],
)
def test_the_best_is_kept(known: dict[str, Any]) -> None:
    clips = make_clips([changed(unlike(1)[0], 3, seed=s) for s in range(3)], **known)
    decisions = decide(clips, RECIPE)
    assert decisions.kept.tolist() == [False, True, False]
    [first, _, _] = rows(clips, decisions, "one").to_pylist()
    assert (first["rule"], first["threshold"], first["failed"]) == ("near_copies", 16.0, False)
    assert first["value"] <= 6 and first["near_copy_of"] == clips.ids[1].as_py()
    [step] = decisions.steps
    assert (step.rule, step.came, step.dropped, step.left, step.min) == ("near_copies", 3, 2, 1, 16)


@settings(max_examples=25, deadline=None)
@given(st.randoms(), st.integers(0, 1 << 30), st.integers(1, 3))
def test_the_order_of_clips_and_datasets_changes_nothing(
    random: Any, seed: int, num_datasets: int
) -> None:
    """One of every group is kept, over all datasets, each of them cleaned against the others."""
    rng = np.random.default_rng(seed)
    hashes = [*unlike(6, seed), *[np.zeros(16, np.uint64)] * 2]
    hashes += [changed(hashes[rng.integers(6)], int(rng.integers(0, 7)), n) for n in range(10)]
    ids = [f"c{i:02d}" for i in range(len(hashes))]
    sizes = rng.choice([360.0, 720.0], len(hashes)).tolist()
    home = rng.integers(0, num_datasets, len(hashes))

    def kept(order: list[int], datasets: list[int]) -> set[str]:
        clips = []
        for number in datasets:
            here = [i for i in order if home[i] == number]
            known = {"clip_id": [ids[i] for i in here], "resolution": [sizes[i] for i in here]}
            clips.append(make_clips([hashes[i] for i in here], f"/{number}", **known))
        return {each.as_py() for n in range(len(clips)) for each in kept_of(clips, n)}

    order, datasets = list(range(len(hashes))), list(range(num_datasets))
    expected = kept(order, datasets)
    assert len(expected) == 6 + 2
    for _ in range(2):
        random.shuffle(order)
        random.shuffle(datasets)
        assert kept(order, datasets) == expected


def test_between_datasets_ids_come_before_places() -> None:
    hashes = unlike(1)[0]
    one = make_clips([hashes], "/a", clip_id=["y"])
    two = make_clips([hashes], "/b", clip_id=["x"])
    assert [len(kept_of([one, two], n)) for n in (0, 1)] == [0, 1]


def test_one_clip_in_two_datasets_is_kept_in_one_of_them() -> None:
    one, two = (make_clips([unlike(1)[0]], place) for place in ("/a", "/b"))
    for clips in ([one, two], [two, one]):
        kept = {c.place: len(kept_of(clips, n)) for n, c in enumerate(clips)}
        assert kept == {"/a": 1, "/b": 0}


def test_copies_are_told_before_the_best_are_kept_and_behind_rules() -> None:
    """The larger of two copies breaks a rule, so the other stays; `keep` counts without copies."""
    one, two = unlike(2)
    clips = make_clips([one, one, two, two], resolution=[2160.0, 720.0, 720.0, 480.0])
    clips.scores["resolution"] = np.array([2160.0, 720.0, 720.0, 480.0])
    rules: Any = {"resolution": {"max": 1080}}
    recipe = Recipe(rules=rules, scorers=Scorers(), keep=3, near_copies=RECIPE.near_copies)
    decisions = decide(clips, recipe)
    assert decisions.kept.tolist() == [False, True, True, False]
    found = [row["rule"] for row in rows(clips, decisions, "one").to_pylist()]
    assert found == ["resolution", None, None, "near_copies"]
    assert [step.rule for step in decisions.steps] == ["resolution", "near_copies", "keep"]


# -- the command


def make_dataset(folder: Path, clips: dict[str, tuple[np.ndarray, float]]) -> Dataset:
    """A dataset of one commit: by clip id a hash and a height in px; every clip is a video's."""
    dataset = Dataset.at(folder)
    stored, ledger = [], []
    for clip_id, (hashes, height) in clips.items():
        both = {"video_id": clip_id[0], "source_url": f"{clip_id[0]}.mp4", "duration": 4.0}
        known = both | {"clip_id": clip_id, "start_s": 0.0, "end_s": 4.0, "black_bars": 0.0}
        known |= {"resolution": height, "aspect": 16 / 9, "perceptual_hash": hashes.tobytes()}
        outcome = {"decision": "kept", "attempts": 1}
        ledger.append(dict.fromkeys(LEDGER_SCHEMA.names) | both | outcome | {"level": "video"})
        ledger.append(dict.fromkeys(LEDGER_SCHEMA.names) | known | outcome | {"level": "clip"})
        shown = {"duration_s": 4.0, "fps": 25.0, "num_frames": 100, "width": 64, "height": 36}
        shown |= {"codec": "h264", "scene_index": 0, "clip": {"bytes": b"x", "path": "x.mp4"}}
        stored.append(dict.fromkeys(SHARD_SCHEMA.names) | known | shown)
    write_commit(dataset, stored, ledger, {"cut": "test", "rules": "test"})
    return dataset


@pytest.fixture
def two(tmp_path: Path) -> tuple[Dataset, Dataset, Path]:
    """Two datasets: a, b and d are copies of each other, e is one of c; and a config."""
    one, other = unlike(2)
    first = {"a_0": (one, 480.0), "b_0": (changed(one, 4), 720.0), "c_0": (other, 480.0)}
    second = {"d_0": (changed(one, 5, seed=9), 360.0), "e_0": (changed(other, 2), 1080.0)}
    config = tmp_path / "pipelines.yaml"
    config.write_text("recipes: {copies: {near_copies: {min_distance: 16}}, nothing: {}}")
    return make_dataset(tmp_path / "1", first), make_dataset(tmp_path / "2", second), config


def clean_it(dataset: Dataset, config: Path, output: Path, *against: Dataset) -> str:
    """Run the command's body in this process; returns what it printed."""
    others = tuple(each.root for each in against)
    order = Order(dataset.root, str(output), "copies", config, [], against=others)
    console = Console(record=True, width=160, file=io.StringIO())
    execute(make_plan(order), console, time.time())
    return console.export_text()


def outcomes(folder: Path) -> dict[str, tuple[str, str | None, str | None]]:
    found = Dataset.at(folder).ledger().to_pylist()
    wanted = [row for row in found if row["level"] == "clip"]
    return {r["clip_id"]: (r["decision"], r["rule"], r["near_copy_of"]) for r in wanted}


def test_near_copies_of_several_datasets(
    two: tuple[Dataset, Dataset, Path], tmp_path: Path, local_ray: None
) -> None:
    first, second, config = two
    kept, said = ("kept", None, None), "near_copies"
    text = clean_it(first, config, tmp_path / "alone")
    assert outcomes(tmp_path / "alone")["c_0"] == kept and "perceptual" not in text
    text = clean_it(first, config, tmp_path / "out", second)
    assert outcomes(tmp_path / "out") == {
        "a_0": ("dropped", said, "b_0"), "b_0": kept, "c_0": ("dropped", said, "e_0"),
    }  # fmt: skip
    assert "near_copies" in text and ">= 16" in text
    clean_it(second, config, tmp_path / "out2", first)
    assert outcomes(tmp_path / "out2") == {"d_0": ("dropped", said, "b_0"), "e_0": kept}
    told = CliRunner().invoke(why.app, [str(tmp_path / "out"), "a_0"]).output
    assert "dropped by near_copies: a near copy of b_0" in told
    assert "4 of 64 bits" in told and "below the bound 16" in told
    assert CliRunner().invoke(report.app, [str(tmp_path / "out")]).exit_code == 0
    assert "near_copies" in (tmp_path / "out" / "report.html").read_text()
    out = Dataset.at(tmp_path / "out")
    assert [check_commit(out, commit, decode=False) for commit in out.commits()] == [[]]
    [shard_row] = Dataset.at(tmp_path / "out").rows()
    assert shard_row["perceptual_hash"] == changed(unlike(2)[0], 4).tobytes()


def test_a_dataset_older_than_the_hashes_passes_and_is_told_of(
    two: tuple[Dataset, Dataset, Path], tmp_path: Path, local_ray: None
) -> None:
    first, second, config = two
    without_column(Path(first.root), "perceptual_hash")
    text = clean_it(first, config, tmp_path / "out", second)
    assert {each[0] for each in outcomes(tmp_path / "out").values()} == {"kept"}
    assert "3 of 3 clips have no perceptual hash" in " ".join(text.split())
    for app, arguments in ((report.app, [first.root]), (why.app, [first.root, "a_0"])):
        assert CliRunner().invoke(app, arguments).exit_code == 0


@pytest.mark.parametrize(
    ("recipe", "against", "says"),
    [
        ("copies", "1", "is the dataset itself; name other ones"),
        ("copies", "3", "3"),
        ("nothing", "2", "add --set near_copies.min_distance=16, or leave --against out"),
    ],
)
def test_mistakes_are_told(
    two: tuple[Dataset, Dataset, Path], recipe: str, against: str, says: str
) -> None:
    first, _, config = two
    folder = Path(first.root).parent
    options = ["--config", str(config), "--recipe", recipe, "--dry-run"]
    done = CliRunner().invoke(clean.app, [first.root, *options, "--against", str(folder / against)])
    assert done.exit_code == 2 and says in " ".join(done.output.split())


def test_a_distance_that_would_join_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 24"):
        NearCopies(min_distance=32)
