"""vf-purge: what is taken down is gone from everything, for good, and never half."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curation import clean, purge, report, validate, why
from curation.flow.holdings import ledger_rows, write_anew
from curation.flow.plans import allowed, tidy
from curation.places import open_dataset
from curation.shards import LEDGER_SCHEMA, SHARD_SCHEMA, Dataset, write_commit, write_table
from curation.shards.folders import AtomicFile
from curation.shards.manifests import replaced
from curation.sources.source import remote
from curation.takedown import removal, tombstones
from curation.takedown.asked import Asked, find
from curation.takedown.tombstones import hash_of
from curation.validation.commits import check_commit, check_dataset, read_manifests

COMMITS = (("ant", "bee"), ("cow", "dog", "elk"))
UPLOADERS = {"ant": "Ann", "bee": "Ben", "cow": "Ann", "dog": "Dora"}  # of elk nothing is known
DROPPED = "cow"  # it has no kept clip, so no shard tells its uploader
COPY = "0" * 20  # a URL that led to ant
CLIPS = {"ant": 2, "bee": 1, "dog": 2, "elk": 1}
DAY = "2026-11-26"


def url(video: str) -> str:
    return f"http://host/{video}.mp4"


def rows_of(video: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Clips and ledger rows of a video; everything in them has its name."""
    empty = dict.fromkeys(LEDGER_SCHEMA.names)
    both = {"video_id": video, "source_url": url(video), "attempts": 1, "decision": "kept"}
    if video == DROPPED:
        both |= {"decision": "dropped", "rule": "static", "value": 1.0, "threshold": 0.5}
    about = {"uploader": UPLOADERS.get(video), "title": f"a {video}"}
    ledger, clips = [empty | both | about | {"level": "video", "duration": 60.0}], []
    for n in range(CLIPS.get(video, 1)):
        known = {"clip_id": f"{video}_{n:08d}_{n + 1:08d}", "caption": f"the {video}"}
        times = {"start_s": 1.0 * n, "end_s": n + 30.0, "duration": 30.0}
        preview = [f"preview of {video}".encode()]
        ledger.append(empty | both | known | times | {"level": "clip", "preview": preview})
        if video != DROPPED:
            where = {k: v for k, v in (both | known | times | about).items()
                     if k in SHARD_SCHEMA.names}  # fmt: skip
            clip = {"bytes": f"media of {video} {n}".encode(), "path": f"{video}.mp4"}
            size = {"fps": 25.0, "num_frames": 750, "width": 64, "height": 36, "codec": "h264"}
            row = dict.fromkeys(SHARD_SCHEMA.names) | where | size
            clips.append(row | {"duration_s": 30.0, "scene_index": n, "clip": clip})
    return clips, ledger


def copy_row() -> dict[str, Any]:
    known = {"level": "video", "video_id": COPY, "source_url": "http://host/ant-again.mp4"}
    failed = {"decision": "failed", "error_class": "copy", "copy_of": "ant", "attempts": 1}
    return dict.fromkeys(LEDGER_SCHEMA.names) | known | failed


def make(dataset: Dataset, commits: tuple[tuple[str, ...], ...] = COMMITS) -> Dataset:
    """A dataset with scores, latents and a report beside its commits."""
    dataset.claim()
    for number, videos in enumerate(commits):
        each = [rows_of(video) for video in videos]
        clips, ledger = ([row for both in each for row in both[n]] for n in (0, 1))
        ledger += [copy_row()] * (number == 1)
        name = write_commit(dataset, clips, ledger, {"cut": "x"})["name"]
        ids = pa.table({"clip_id": [c["clip_id"] for c in clips], "look": [0.5] * len(clips)})
        write_table(dataset, "scores/look-1", name, [ids], ids.schema)
        dataset.write_bytes(f"latents of {videos}".encode(), "latents", "f1", f"{name}.parquet")
    dataset.write_bytes(b"no clip", "latents", "f1", "empty.parquet")
    dataset.write_bytes(b"ant and bee", "report.html")
    run = {"funnel": {}, "pipeline": {"sources": [url("ant"), "list.csv"], "rules": {}}}
    dataset.write_bytes(json.dumps(run).encode(), "run.json")
    return dataset


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make(Dataset.at(tmp_path_factory.mktemp("takedown") / "data")).root)


@pytest.fixture
def dataset(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dataset]:
    monkeypatch.setattr(tombstones, "today", lambda: DAY)
    return Dataset.at(shutil.copytree(original, tmp_path / "data"))


def ordered(app: Any, *arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "400"})
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done.exit_code, done.output


def purged(*arguments: object) -> str:
    code, said = ordered(purge.app, *arguments)
    assert code == 0, said
    return said


def mentions(dataset: Dataset, word: str) -> set[str]:
    """The files of a dataset that hold a word, in any column."""
    found = set()
    for path in Path(dataset.root).rglob("*"):
        if path.is_file():
            told = path.read_bytes()
            if path.suffix == ".parquet" and told[:4] == b"PAR1":
                told = repr(pq.read_table(path).to_pylist()).encode()
            if word.encode() in told:
                found.add(str(path.relative_to(dataset.root)))
    return found


def clips(dataset: Dataset) -> Counter[str]:
    return Counter(row["video_id"] for row in dataset.rows(["video_id"]))


def videos(dataset: Dataset) -> list[str]:
    return sorted(video_id for video_id, _ in dataset.decided())


def problems(dataset: Dataset) -> list[str]:
    """What vf-validate --no-decode says, without its bar."""
    commits, found = read_manifests(dataset)
    found += check_dataset(dataset, commits)
    found += [each for one in commits for each in check_commit(dataset, one, decode=False)]
    return [str(each) for each in found]


def scores(dataset: Dataset) -> list[str]:
    """The clips that scores are stored of; these and latents all under names of commits."""
    live = {commit["name"] for commit in dataset.manifests()} | {"empty"}
    for folder in ("scores/look-1", "latents/f1"):
        names = dataset.names(folder, ".parquet")
        assert {name for name in names if not name.startswith(".tmp-")} <= live
    files = [pq.read_table(path) for path in Path(dataset.root).glob("scores/look-1/*.parquet")]
    return sorted(clip_id for file in files for clip_id in file["clip_id"].to_pylist())


# -- what goes


def test_a_video_is_gone_from_everything_and_its_neighbours_stay(dataset: Dataset) -> None:
    before = {row["clip_id"]: row for row in dataset.rows()}
    assert len(mentions(dataset, "ant")) == 8
    said = purged(dataset.root, "--video", "ant")
    assert f"{dataset.uri}: 2 videos taken down, with 2 clips (1.0 min)" in said
    assert "latents to be made again (vf-precompute): 2 shards" in said
    assert mentions(dataset, "ant") == set()
    assert videos(dataset) == ["bee", "cow", "dog", "elk"]
    left = {row["clip_id"]: row for row in dataset.rows()}
    assert left == {k: row for k, row in before.items() if row["video_id"] != "ant"}
    assert scores(dataset) == sorted(left)
    assert dataset.names("latents/f1", ".parquet") == ["empty"]
    record = json.loads(dataset.read_bytes("run.json"))
    assert record["pipeline"]["sources"] == ["list.csv"]
    assert record["funnel"]["videos"]["total"] == 4
    assert problems(dataset) == []


def test_commits_that_are_not_meant_are_not_touched(dataset: Dataset) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(dataset.root).rglob("*") if p.is_file()}
    purged(dataset.root, "--video", "elk")
    name = next(c["name"] for c in dataset.commits() if "ant" in c["video_ids"])
    same = [p for p in before if p.stem == name]
    assert len(same) == 5 and all(p.stat().st_mtime_ns == before[p] for p in same)


def test_a_tombstone_holds_hashes_and_a_day_and_nothing_else(dataset: Dataset) -> None:
    purged(dataset.root, "--video", "dog")
    (path,) = Path(dataset.root, "tombstones").iterdir()
    told = json.loads(path.read_text())
    wanted = [{"kind": "source", "hash": hash_of("source", url("dog")), "date": DAY},
              {"kind": "video", "hash": hash_of("video", "dog"), "date": DAY}]  # fmt: skip
    assert told == {"taken_down": wanted}
    # As docs/takedown.md says that it is made.
    by_hand = hashlib.sha256(b"videofactory taken down\0video\0dog").hexdigest()
    assert hash_of("video", "dog") == by_hand


@pytest.mark.parametrize("how", [["--url", url("ant")], ["--url", "http://me:pw@host/ant.mp4"],
                                 ["--url", "http://host/ant-again.mp4"], ["--video", COPY]],
                         ids=["url", "with a secret", "of a copy", "a copy's id"])  # fmt: skip
def test_every_name_of_a_video_takes_it_down_with_its_copies(
    dataset: Dataset, how: list[str]
) -> None:
    purged(dataset.root, *how)
    assert mentions(dataset, "ant") == set()
    stones = tombstones.read(dataset)
    for each in (url("ant"), "http://host/ant-again.mp4"):
        assert stones.of_source(remote(each)) == DAY
    assert stones.of_source(remote(url("bee"))) is None
    of_a_file = {"video_id": "1", "copy_of": "ant", "source_url": "ant.mp4", "uploader": None}
    assert stones.of_row(of_a_file) == DAY


def test_of_youtube_the_id_counts_however_its_url_is_written(tmp_path: Path) -> None:
    dataset = make(Dataset.at(tmp_path / "data"), (("dQw4w9WgXcQ", "bee"),))
    purged(dataset.root, "--url", "https://youtu.be/dQw4w9WgXcQ?t=3")
    assert videos(dataset) == ["bee"]
    assert tombstones.read(dataset).of_source(replace(remote(url("x")), id="dQw4w9WgXcQ"))


def test_all_of_an_uploader_goes_kept_or_not_and_stays_away(dataset: Dataset) -> None:
    said = purged(dataset.root, "--uploader", "Ann")
    assert "3 videos taken down, with 2 clips" in said
    assert "later videos of Ann are left out as well" in said
    assert videos(dataset) == ["bee", "dog", "elk"]
    assert mentions(dataset, "ant") | mentions(dataset, "cow") | mentions(dataset, "Ann") == set()
    source = remote("http://host/new.mp4")
    stones = tombstones.read(dataset)
    assert allowed([replace(source, uploader="Ann"), source], stones) == [source]
    assert stones.number("video") == 2 and stones.number("uploader") == 1


def test_of_an_older_dataset_kept_clips_tell_the_uploader(dataset: Dataset) -> None:
    """Ledgers had no uploader: the columns are taken out of those files."""
    for commit in dataset.commits():
        path = Path(dataset.path("ledger", f"{commit['name']}.parquet"))
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["uploader", "title"]), path)
    purged(dataset.root, "--uploader", "Ann")
    assert videos(dataset) == ["bee", "cow", "dog", "elk"]
    assert clips(dataset) == {"bee": 1, "dog": 2, "elk": 1}
    assert problems(dataset) == []  # the rewritten files have the columns, and no values


def test_listed_urls_need_not_be_there(dataset: Dataset, tmp_path: Path) -> None:
    listed = tmp_path / "notice.txt"
    listed.write_text(f"# a notice\n{url('bee')}\n\nhttp://host/never-seen.mp4\n{url('bee')}\n")
    said = purged(dataset.root, "--url-file", listed)
    assert "1 of 2 listed URLs are in no dataset given; they have to stay away as well" in said
    assert "1 video taken down" in said and "bee" not in videos(dataset)
    assert tombstones.read(dataset).of_source(remote("http://host/never-seen.mp4")) == DAY


@pytest.mark.parametrize(
    ("text", "says"),
    [("# none", "holds no URL"), (f"{url('bee')}\nbee", "line 2: 'bee' is no URL")],
)
def test_a_list_of_something_else_is_an_error(
    dataset: Dataset, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "notice.txt").write_text(text)
    code, said = ordered(purge.app, dataset.root, "--url-file", tmp_path / "notice.txt")
    assert code == 2 and says in said and "bee" in videos(dataset)


def test_subsets_that_are_named_are_purged_and_others_are_not(
    dataset: Dataset, tmp_path: Path
) -> None:
    subset, other = (Dataset.at(shutil.copytree(dataset.root, tmp_path / n)) for n in ("s", "o"))
    places = dataset.root, subset.root, f"{subset.root}/"
    said = purged(*places, "--video", "ant", "--video", "bee")
    assert said.count("3 videos taken down, with 3 clips") == 2
    assert videos(dataset) == videos(subset) == ["cow", "dog", "elk"]
    assert "ant" in videos(other)


def test_a_dataset_at_a_uri_of_which_nothing_is_left(tmp_path: Path) -> None:
    dataset = make(Dataset.at(f"file://{tmp_path}/data"), (("ant",),))
    purged(dataset.uri, "--video", "ant")
    assert dataset.commits() == [] and mentions(dataset, "ant") == set()
    for app, code in ((validate.app, 0), (report.app, 0), (why.app, 2)):
        assert ordered(app, dataset.uri, *(["bee"] if app is why.app else []))[0] == code
    purged(dataset.uri, "--video", "ant")
    code, said = ordered(clean.app, dataset.uri, "--output", tmp_path / "subset")
    assert code == 2 and "holds no manifest" in said
    assert "taken down" in ordered(why.app, dataset.uri, "ant")[1]


def test_an_object_store_has_no_lock_and_no_renames(original: Path, tmp_path: Path) -> None:
    """As one is to our code: files appear under their names, nothing is local."""
    shutil.copytree(original, tmp_path / "bucket" / "data")
    store = pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem())
    dataset = Dataset(store, "data", "store://bucket/data")
    assert not dataset.is_local
    found = find([dataset], Asked(video_ids=["ant"]))
    purge.take_down([dataset], found.names, False, purge.screen())
    assert videos(dataset) == ["bee", "cow", "dog", "elk"] and problems(dataset) == []
    assert mentions(Dataset.at(tmp_path / "bucket"), "ant") == set()


# -- what is told


def test_dry_run_changes_nothing(dataset: Dataset) -> None:
    before = {p: p.read_bytes() for p in Path(dataset.root).rglob("*") if p.is_file()}
    assert "2 videos would go, with 2 clips (1.0 min)" in purged(
        dataset.root, "--video", "ant", "--dry-run"
    )
    assert {p: p.read_bytes() for p in Path(dataset.root).rglob("*") if p.is_file()} == before


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "give --video, --uploader, --url or --url-file"),
    "an id": (["--video", "antt"], "did you mean 'ant'"),
    "a clip's id": (["--video", "ant_00000000_00000001"], "--video ant"),
    "an uploader": (["--uploader", "Anne"], "did you mean 'Ann'"),
    "a url": (["--url", "http://host/ant.mp3"], "did you mean 'http://host/ant.mp4'"),
    "no file": (["--url-file", "none.txt"], "none.txt: No such file"),
    "one of two": (["--video", "bee", "--video", "yak"], "'yak' is in no dataset given"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_matches_nothing_is_an_error_and_takes_nothing(dataset: Dataset, mistake: str) -> None:
    how, says = MISTAKES[mistake]
    code, said = ordered(purge.app, dataset.root, *how)
    assert code == 2 and says in said
    assert "bee" in videos(dataset) and not dataset.exists("tombstones")


def test_every_command_tells_what_was_taken_down(dataset: Dataset) -> None:
    purged(dataset.root, "--video", "ant", "--video", "bee")
    for wanted in ("ant", "ant_00000000_00000001", url("ant"), "http://host/ant-again.mp4"):
        assert ordered(why.app, dataset.root, wanted)[1].startswith(f"taken down on {DAY}")
    assert (
        "taken down, and gone: 2 videos"
        in ordered(validate.app, dataset.root, "--no-decode", "--workers", 1)[1]
    )
    ordered(report.app, dataset.root, "--card")
    page, card = (dataset.read_bytes(name).decode() for name in ("report.html", "README.md"))
    assert '<b id="taken-down">2</b>' in page
    assert "vf-purge" in card and "2 videos have been taken down so far" in card


def test_another_writer_stops_it_before_anything_is_written(dataset: Dataset) -> None:
    from curation.places import only_writer

    inside = Dataset.at(dataset.path("latents", "f1"))
    for held, says in ((dataset, "another run is writing"), (inside, "vf-precompute is writing")):
        with only_writer(held):
            code, said = ordered(purge.app, dataset.root, "--video", "ant")
        assert code == 2 and says in said and not dataset.exists("tombstones")


@pytest.mark.parametrize("odd", [b"{", b"[]", b'{"taken_down": [{"kind": "video"}]}'])
def test_a_broken_tombstone_is_told_and_never_skipped(dataset: Dataset, odd: bytes) -> None:
    dataset.write_bytes(odd, "tombstones", f"{'0' * 16}.json")
    code, said = ordered(purge.app, dataset.root, "--video", "ant")
    assert code == 2 and "does not say what was taken down" in said
    assert any("tombstones/0000" in each for each in problems(dataset))


# -- a kill


class KilledError(BaseException):
    pass


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Raise before the step-th file that is put in place or deleted; returns: was there one?"""
    left = [step]

    def counted(do: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KilledError
            return do(*arguments)

        return stepped

    for owner, name in ((AtomicFile, "__exit__"), (Dataset, "delete")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    monkeypatch.setattr(Dataset, "sweep", counted(Dataset.sweep))
    return lambda: left[0] <= 0


def check_whole(dataset: Dataset) -> None:
    """What readers see: every video whole or not at all, none twice, and none but ant missing."""
    found, known = clips(dataset), videos(dataset)
    assert found["ant"] in (0, 2)
    assert {k: n for k, n in found.items() if k != "ant"} == {"bee": 1, "dog": 2, "elk": 1}
    rows = dataset.ledger(["level", "video_id", "clip_id", "decision"]).to_pylist()
    kept = Counter(r["video_id"] for r in rows if r["level"] == "clip" and r["decision"] == "kept")
    assert kept == +found
    assert [v for v in known if v not in ("ant", COPY)] == ["bee", "cow", "dog", "elk"]
    expected = ("was taken down on", "taken its place", "belongs to no manifest", "manifest/.tmp-")
    assert [p for p in problems(dataset) if not any(e in p for e in expected)] == []
    if len(known) < 6 or found["ant"] == 0:
        assert tombstones.read(dataset).date("video", "ant") == DAY


def test_readers_see_no_half_state_and_the_same_command_ends_it(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step; between every second and its end there is a curation run."""
    monkeypatch.setattr(tombstones, "today", lambda: DAY)
    console = purge.screen()
    for step in range(1, 100):
        dataset = Dataset.at(shutil.copytree(original, tmp_path / str(step)))
        with pytest.MonkeyPatch.context() as patch:
            was_killed = killed_at(step, patch)
            with contextlib.suppress(KilledError):
                purged(dataset.root, "--video", "ant")
            if not was_killed():
                break
        check_whole(dataset)
        if step % 2 and tombstones.read(dataset):
            tidy(dataset, console)
            assert "ant" not in videos(dataset) and COPY not in videos(dataset)
            assert all("belongs to no" in says for says in problems(dataset))
            scores(dataset)
        purged(dataset.root, "--video", "ant")
        assert mentions(dataset, "ant") == set()
        assert problems(dataset) == [] and not list(Path(dataset.root).rglob(".tmp-*"))
        assert scores(dataset) == sorted(row["clip_id"] for row in dataset.rows(["clip_id"]))
        assert len(scores(dataset)) == 4
    assert step > 20


def test_what_another_kill_left_does_not_come_back(dataset: Dataset) -> None:
    """A run was killed when it had made room for the cow; purged is the dog beside it."""
    (old,) = [commit for commit in dataset.commits() if "cow" in commit["video_ids"]]
    left = [row for row in ledger_rows(dataset, old) if row["video_id"] != "cow"]
    write_anew(dataset, old, left, {})
    assert videos(dataset) == [COPY, "ant", "bee", "dog", "elk"]
    purged(dataset.root, "--video", "dog")
    assert videos(dataset) == [COPY, "ant", "bee", "elk"] and problems(dataset) == []
    assert clips(dataset) == {"ant": 2, "bee": 1, "elk": 1} and len(scores(dataset)) == 4


NAMES: dict[str, tuple[dict[str, str | None], set[str]]] = {
    "none": ({"a": None, "b": None}, set()),
    "one": ({"a": None, "b": "a"}, {"a"}),
    "a chain": ({"a": None, "b": "a", "c": "b"}, {"a", "b"}),
    "one that is gone": ({"b": "a", "c": None}, set()),
    "itself": ({"a": "a"}, set()),
    "each other": ({"a": "b", "b": "a"}, {"a"}),
}


@pytest.mark.parametrize("case", NAMES)
def test_of_a_commit_and_its_new_form_one_counts(case: str) -> None:
    named, old = NAMES[case]
    assert replaced([{"name": n, "replaces": other} for n, other in named.items()]) == old


def test_once_more_is_no_error_and_changes_nothing(dataset: Dataset) -> None:
    purged(dataset.root, "--video", "ant")
    dataset.write_bytes(b"newer", "report.html")
    before = {p: p.read_bytes() for p in Path(dataset.root).rglob("*") if p.is_file()}
    assert "0 videos taken down" in purged(dataset.root, "--video", "ant")
    assert {p: p.read_bytes() for p in Path(dataset.root).rglob("*") if p.is_file()} == before


def test_what_was_left_of_older_commits_goes_too(dataset: Dataset) -> None:
    dataset.write_bytes(b"of an ant", "latents", "f1", f"{'a' * 16}.parquet")
    dataset.write_bytes(b"of an ant", "scores", "look-1", f"{'a' * 16}.parquet")
    dataset.write_bytes(b"of an ant", "scores", "look-1", "mine.txt")
    purged(dataset.root, "--video", "ant")
    assert mentions(dataset, "ant") == {"scores/look-1/mine.txt"}  # a name that we never write


def test_links_are_not_followed(dataset: Dataset, tmp_path: Path) -> None:
    shutil.move(dataset.path("latents", "f1"), tmp_path / "mine")
    Path(dataset.path("latents", "f1")).symlink_to(tmp_path / "mine")
    code, said = ordered(purge.app, dataset.root, "--video", "ant")
    assert code == 2 and "is a link" in said
    assert len(list((tmp_path / "mine").iterdir())) >= 3 and "ant" in videos(dataset)


def test_vf_validate_repairs_what_a_copied_back_commit_holds(dataset: Dataset) -> None:
    stones = tombstones.of_names([("video", "ant")])
    tombstones.add(dataset, stones)
    assert sum("the video ant was taken down" in says for says in problems(dataset)) == 1
    ordered(validate.app, dataset.root, "--no-decode", "--workers", 1, "--repair")
    assert "ant" not in videos(dataset) and problems(dataset) == []
    assert open_dataset(dataset.root) and removal.remove(dataset, stones) == set()
