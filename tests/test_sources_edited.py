"""One identity whatever the spelling, and a list that was edited is heard."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curation.downloads.fetches import id_in
from curation.flow.driver import joined, todo
from curation.flow.holdings import Holdings, forget, retell, take_over
from curation.flow.local_flow import LocalFlow
from curation.pipelines import Pipeline
from curation.shards import DROPPED, KEPT, LEDGER_SCHEMA, SHARD_SCHEMA, Dataset, write_commit
from curation.sources import Source, Span
from curation.sources.source import NOTHING_SAID, differ, fingerprint, fingerprinted

SAID = Source(url="https://h/1", caption="a", title="T", spans=(Span(0, 1, "x"), Span(1, 2)))


def commit(dataset: Dataset, *sources: Source, clips: int = 1) -> dict[str, Any]:
    """A commit of decided sources, each with a kept clip or without."""
    media, ledger = [], []
    for source in fingerprinted(sources):
        facts = {
            "video_id": source.id or "hash",
            "source_url": source.url,
            "decision": KEPT if clips else DROPPED,
            "attempts": 1,
        }
        empty: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA.names)
        prints = {"source_fingerprint": source.fingerprint}
        ledger.append(empty | facts | prints | {"level": "video"})
        if clips:
            clip = {"clip_id": f"{source.id}_0", "start_s": 0.0, "end_s": 1.0}
            ledger.append(empty | facts | clip | {"level": "clip"})
            row = dict.fromkeys(SHARD_SCHEMA.names) | clip | facts
            row |= {"duration_s": 1.0, "fps": 1.0, "num_frames": 1, "width": 1, "height": 1}
            row |= {"codec": "h264", "scene_index": 0, "clip": {"bytes": b"x", "path": "x"}}
            media.append({name: row[name] for name in SHARD_SCHEMA.names})
    return write_commit(dataset, media, ledger, Pipeline().fingerprints())


def test_a_fingerprint_tells_cuts_facts_and_captions_apart() -> None:
    assert fingerprint(Source(url="https://h/1", path="/x", id="y")) == NOTHING_SAID
    assert not differ(None, NOTHING_SAID)  # datasets older than fingerprints
    # As it was before sources had channels.
    assert NOTHING_SAID == "4f53cda18c2b-17e71049fd76-cf1cbb66a638"
    assert fingerprint(SAID) == fingerprint(replace(SAID, id="z", url="https://h/2"))
    changes: list[tuple[int, dict[str, Any]]] = [
        (0, {"spans": (Span(0, 1.5, "x"), Span(1, 2))}),
        (1, {"title": "U"}),
        (1, {"channel": "C"}),
        (2, {"caption": "b"}),
        (2, {"other_captions": ("b",)}),
        (2, {"spans": (Span(0, 1, "y"), Span(1, 2))}),
    ]
    for place, change in changes:
        other = replace(SAID, **change)
        pairs = zip(fingerprint(SAID).split("-"), fingerprint(other).split("-"), strict=True)
        assert [a == b for a, b in pairs].index(False) == place


@pytest.mark.parametrize(
    "change",
    [
        {"caption": "b"},
        {"title": "U"},
        {"spans": (Span(0, 1, "x"), Span(1, 2), Span(2, 3))},
        {"spans": ()},
    ],
)
def test_an_edited_row_is_to_be_done_again(tmp_path: Path, change: dict[str, Any]) -> None:
    dataset = Dataset.at(tmp_path)
    one, two = replace(SAID, id="one"), Source(url="https://h/2", id="two")
    commit(dataset, one, two)
    holdings = take_over(dataset, Pipeline())
    same = list(fingerprinted([one, two]))
    assert todo(same, holdings) == [] and holdings.outdated(same) == set()
    edited = list(fingerprinted([replace(one, **change), two]))
    assert todo(edited, holdings) == edited[:1]
    assert holdings.outdated(edited) == {"one"}


def test_a_list_is_heard_of_a_url_without_an_id(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    commit(dataset, replace(SAID, id="content"))
    holdings = take_over(dataset, Pipeline())
    assert todo(list(fingerprinted([SAID])), holdings) == []
    edited = list(fingerprinted([replace(SAID, caption="b")]))
    assert todo(edited, holdings) == edited
    assert holdings.outdated(edited) == {"content"}


def test_a_file_that_was_missing_has_one_outcome_when_it_is_there(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    commit(dataset, Source(url="a.mp4", path="/x/a.mp4"), clips=0)
    holdings = take_over(dataset, Pipeline())
    there = [Source(url="a.mp4", path="/x/a.mp4", id="content")]
    assert todo(there, holdings) == there
    assert holdings.outdated(there) == {"hash"}


def test_what_was_decided_of_a_file_that_is_gone_stands(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    commit(dataset, Source(url="a.mp4", path="/x/a.mp4", id="content"))
    holdings = take_over(dataset, Pipeline())
    gone = list(fingerprinted([Source(url="a.mp4", path="/x/a.mp4", caption="new")]))
    assert todo(gone, holdings) == [] and holdings.outdated(gone) == set()


def test_a_copy_keeps_its_outcome_when_the_first_file_changes(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    commit(dataset, Source(url="a.mp4", path="/x/a.mp4", id="old"))
    holdings = take_over(dataset, Pipeline())
    changed = Source(url="a.mp4", path="/x/a.mp4", id="new")
    copy = Source(url="b.mp4", path="/x/b.mp4", id="old")
    assert todo([changed, copy], holdings) == [changed]
    assert holdings.outdated([changed, copy]) == set()


def test_videos_that_no_list_names_any_more_are_known(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    commit(dataset, Source(url="a.mp4", id="a"), Source(url="b.mp4", id="b"))
    holdings = take_over(dataset, Pipeline())
    assert holdings.unnamed([Source(url="other/a.mp4", id="a")]) == {"b"}
    assert holdings.unnamed([Source(url="a.mp4"), Source(url="b.mp4")]) == set()


def test_a_video_is_forgotten_and_its_neighbours_stay(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    commit(dataset, Source(url="a", id="a"), Source(url="b", id="b"))
    commit(dataset, Source(url="c", id="c"))
    forget(dataset, {"a", "c"})
    [left] = dataset.commits()
    assert left["video_ids"] == ["b"] and left["num_clips"] == 1
    assert [row["clip"]["bytes"] for row in dataset.rows()] == [b"x"]
    assert dataset.ledger().column("video_id").to_pylist() == ["b", "b"]
    forget(dataset, {"b"})
    assert dataset.commits() == []


def test_a_kill_while_forgetting_leaves_no_video_twice(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path / "d")
    old = commit(dataset, Source(url="a", id="a"), Source(url="b", id="b"))
    shutil.copytree(tmp_path / "d", tmp_path / "before")
    forget(dataset, {"a"})
    for path in (tmp_path / "before").rglob(f"{old['name']}.*"):  # it was not deleted yet
        shutil.copy(path, tmp_path / "d" / path.relative_to(tmp_path / "before"))
    assert take_over(dataset, Pipeline()).decided == {"b"}
    [left] = dataset.commits()
    assert left["video_ids"] == ["b"]


def captions_in(dataset: Dataset) -> list[tuple[str, str | None, list[str] | None]]:
    found = dataset.rows(["video_id", "caption", "captions"])
    return sorted((r["video_id"], r["caption"], r["captions"]) for r in found)


def test_captions_alone_are_written_anew_where_only_they_changed(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    one, two = replace(SAID, id="one", spans=()), Source(url="https://h/2", id="two", caption="c")
    three = Source(url="https://h/3", id="three", caption="d")
    old = commit(dataset, one, two, three)
    edited = [
        replace(one, caption="b", other_captions=("e",)),  # captions alone
        replace(two, title="T", caption="f"),  # a fact too
        replace(three, caption=None),  # its clip has none of the list any more
    ]
    sources = list(fingerprinted(edited))
    holdings = take_over(dataset, Pipeline())
    assert retell(dataset, Pipeline(), holdings, sources) == {"one"}
    assert todo(sources, holdings) == sources[1:]
    assert captions_in(dataset) == [
        ("one", "b", ["b", "e"]),
        ("three", None, None),
        ("two", None, None),
    ]
    ledger = dataset.ledger(["level", "video_id", "caption"]).to_pylist()
    assert {"level": "clip", "video_id": "one", "caption": "b"} in ledger
    [left] = dataset.commits()
    assert left["name"] != old["name"] and left["replaces"] == old["name"]
    again = take_over(dataset, Pipeline())
    assert retell(dataset, Pipeline(), again, sources) == set()
    assert todo(sources, again) == sources[1:]


def test_captions_of_a_model_are_not_a_list_s(tmp_path: Path) -> None:
    dataset = Dataset.at(tmp_path)
    commit(dataset, replace(SAID, id="one"))
    holdings = take_over(dataset, Pipeline())
    edited = list(fingerprinted([replace(SAID, id="one", caption="b")]))
    blip2 = Pipeline.model_validate({"captions": {"model": "blip2", "checkpoint": "x"}})
    assert retell(dataset, blip2, holdings, edited) == set()


def test_copies_become_one_source_with_the_cuts_and_captions_of_all(
    tmp_path: Path,
) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"the same")
    a, b = (Source(url=n, path=str(tmp_path / n)) for n in ("a.mp4", "b.mp4"))
    given = [
        replace(a, spans=(Span(0, 1, "first"),), caption="whole"),
        replace(b, spans=(Span(0, 1, "again"), Span(1, 2, "second")), license="CC0"),
        Source(url="https://youtu.be/dQw4w9WgXcQ", caption="one"),
        Source(url="https://www.youtube.com/watch?v=dQw4w9WgXcQ&t=15s", caption="two"),
    ]
    with LocalFlow(Pipeline(), given) as flow:
        found = flow.identify(given)
    [file, site], num_copies = joined(found, Holdings())
    assert num_copies == 2
    assert (file.url, file.license, file.caption) == ("a.mp4", "CC0", "whole")
    assert file.spans == (Span(0, 1, "first", ("again",)), Span(1, 2, "second"))
    assert file.fingerprint == fingerprint(file) != NOTHING_SAID
    assert (site.id, site.captions) == ("dQw4w9WgXcQ", ("one", "two"))


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://www.youtube.com/watch?app=desktop&v=dQw4w9WgXcQ&t=15s", "dQw4w9WgXcQ"),
        ("https://www.youtube.com/shorts/dQw4w9WgXcQ", "dQw4w9WgXcQ"),
        ("https://www.youtube.com/playlist?list=PLx", None),
        ("https://host/watch?v=dQw4w9WgXcQ", None),
    ],
)
def test_a_url_of_youtube_names_its_video(url: str, found: str | None) -> None:
    assert id_in(url) == found


def test_holdings_without_anything_hold_nothing() -> None:
    assert not Holdings().holds(SAID)


A, B = Source(url="https://h/a"), Source(url="https://h/b")
# B was curated as the video x; A is a copy of it, in the row y.
KNOWN = Holdings({"x", "y"}, {A.url: "x", B.url: "x"}, copies={A.url: "y"})


def test_copies_are_joined_under_the_url_that_the_video_was_fetched_from() -> None:
    one, two = replace(A, caption="one"), replace(B, caption="two")
    [both], num_copies = joined([one, two], KNOWN)
    assert (both.url, both.captions, num_copies) == (B.url, ("one", "two"), 1)
    assert KNOWN.unnamed([both]) == set()


def test_the_row_of_a_copy_goes_when_its_video_is_gone() -> None:
    known = replace(KNOWN, decided={"y"})
    assert not known.holds(A) and known.outdated([A]) == {"y"}
    assert KNOWN.holds(A) and KNOWN.outdated([A]) == set()
