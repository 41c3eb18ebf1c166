"""What sites list, through the real yt-dlp: a site of the tests' own, feeds and pages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tube import EXTRACTORS, Tube

from curation.discovery.discovered import Discovery, Tally
from curation.discovery.facts import video_of
from curation.discovery.filters import Bounds
from curation.discovery.listing import Lister
from curation.discovery.queries import DEFAULT_QUERIES, Query, queries_of, read_queries
from curation.downloads.connections import Refused
from curation.downloads.fetches import with_site_data
from curation.media.files import MediaError
from curation.settings import ConfigError
from curation.sources import Source

KEYS = {"ytsearch", "tubesearch", "bilisearch"}
ANY = Bounds(min_height_px=0)


@pytest.fixture
def tube() -> Iterator[Tube]:
    tube = Tube()
    yield tube
    tube.close()


def discover(
    target: str,
    bounds: Bounds = ANY,
    *,
    category: str | None = None,
    seen: set[str] | None = None,
    limit: int = 100,
    probes: bool = False,
    sleep_s: float = 0,
    max_listed: int = 1000,
    allow_private: bool = True,
) -> tuple[list[dict[str, Any]], Tally]:
    lister = Lister(sleep_s=sleep_s, allow_private=allow_private, extractors=EXTRACTORS)
    discovery = Discovery(
        lister, bounds, seen or set(), limit=limit, probes=probes, max_listed=max_listed
    )
    rows = list(discovery.rows(Query(target, target, category)))
    return rows, discovery.tallies[category]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["url"].rpartition("/")[2] for row in rows]


def numbers(tally: Tally) -> dict[str, int]:
    return {reason: number for reason, (number, _) in tally.left_out.items()}


# -- queries


def test_searches_that_yt_dlp_knows() -> None:
    assert {"ytsearch", "bilisearch", "tubesearch"} <= Lister(
        sleep_s=0, extractors=EXTRACTORS
    ).search_keys()


def test_the_default_queries_have_the_15_categories() -> None:
    pairs = read_queries(DEFAULT_QUERIES)
    assert len({category for category, _ in pairs}) == 15
    assert {"Travel & Events", "Howto & Style", "Pets & Animals"} <= {c for c, _ in pairs}
    assert len(queries_of(pairs, "ytsearch", KEYS)) == len(pairs)  # none twice, all are texts


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("big waves", "ytsearchall:big waves"),
        ("dogs: a story", "ytsearchall:dogs: a story"),
        ("ytsearch20:storms", "ytsearch20:storms"),
        ("tubesearchall:storms", "tubesearchall:storms"),
        (" https://host/list?a=b ", "https://host/list?a=b"),
    ],
)
def test_what_a_query_asks_for(text: str, target: str) -> None:
    assert queries_of([(None, text)], "ytsearch", KEYS)[0].target == target


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("  ", "no text"),
        ("www.youtube.com/@a", "https://www.youtube.com/@a"),
        ("\ud800", "no text"),
    ],
)
def test_what_is_no_query_is_told(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        queries_of([(None, text)], "ytsearch", KEYS)
    with pytest.raises(ConfigError, match="did you mean 'ytsearch'"):
        queries_of([(None, "a")], "ytserch", KEYS)


@pytest.mark.parametrize("text", ["", "- a\n- b", "Cats: 3", "Cats: []", "Cats: [{a: b}]", "a: ["])
def test_a_broken_file_of_queries_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "q.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"--queries .*q\.yaml"):
        read_queries(path)


# -- lists


def test_a_playlist_gives_what_it_says_and_no_media_is_asked(tube: Tube) -> None:
    facts = {"title": "One", "uploader": "Ann", "channel": "Ann's", "timestamp": 1704103200}
    entry = tube.entry("a1", duration=62, live_status="was_live", height=1080, **facts)
    rows, tally = discover(tube.put_list("p", [entry]), category="Sports")
    assert rows == [
        {
            "url": f"{tube.url}/watch/a1",
            "id": "tube-a1",
            "title": "One",
            "category": "Sports",
            "uploader": "Ann",
            "license": None,
            "upload_date": "2024-01-01",
            "duration_s": 62.0,
            "channel": "Ann's",
            "height": 1080,
            "live_status": "was_live",
            "query": f"{tube.url}/list/p",
        }
    ]
    assert (tally.queries, tally.listed, tally.found, tally.left_out) == (1, 1, 1, {})
    assert set(tube.asked) == {"/list/p.0.json"}


def test_a_search_asks_for_no_page_more_than_it_needs(tube: Tube) -> None:
    tube.put_list("big_waves", tube.entries(*"abcdefg"))
    rows, _ = discover("tubesearchall:big waves", limit=3)
    assert ids(rows) == ["a", "b", "c"] and tube.asked == ["/list/big_waves.0.json"]
    rows, _ = discover("tubesearchall:big waves", limit=4)
    assert ids(rows) == ["a", "b", "c", "d"] and tube.asked[-1] == "/list/big_waves.1.json"
    rows, tally = discover("tubesearchall:big waves", max_listed=5)
    assert ids(rows) == ["a", "b", "c", "d", "e"]
    assert numbers(tally) == {"queries that ended after 5 entries, whatever came behind": 1}


def test_the_lists_of_a_channel_are_opened(tube: Tube) -> None:
    shorts = tube.put_list("shorts", tube.entries("s1", "v2"))
    videos = tube.put_list("videos", tube.entries("v1", "v2"))
    gone = f"{tube.url}/list/gone"
    tabs = [{"_type": "url", "url": each} for each in (videos, gone, shorts)]
    rows, tally = discover(tube.put_list("channel", tabs))
    assert ids(rows) == ["v1", "v2", "s1"]
    assert numbers(tally) == {
        "lists in it that fail: gone": 1,
        "listed by this run already": 1,
    }


def test_a_list_that_holds_itself_ends(tube: Tube) -> None:
    url = f"{tube.url}/list/loop"
    tube.put_list("loop", [{"_type": "url", "url": url}, tube.entry("a")])
    rows, tally = discover(url)
    assert ids(rows)[-1] == "a" and not tally.failed
    assert len(tube.asked) < 20


def test_a_list_that_breaks_off_keeps_what_it_gave(tube: Tube) -> None:
    url = tube.put_list("p", tube.entries(*"abcd"))
    tube.answers["/list/p.1.json"] = 503
    rows, tally = discover(url)
    assert ids(rows) == ["a", "b", "c"]
    assert list(tally.failed) == [url] and tally.failed[url].startswith("network: ")
    assert "503" in tally.failed[url]


@pytest.mark.parametrize(("answer", "kind"), [(404, "gone"), (500, "network")])
def test_a_query_that_fails_is_told_with_its_class(tube: Tube, answer: int, kind: str) -> None:
    tube.answers["/list/p.0.json"] = answer
    rows, tally = discover(f"{tube.url}/list/p")
    assert rows == [] and tally.failed[f"{tube.url}/list/p"].startswith(f"{kind}: ")


def test_a_private_address_is_not_asked(tube: Tube) -> None:
    url = tube.put_list("p", tube.entries("a"))
    _, tally = discover(url, allow_private=False)
    assert tally.failed[url].startswith("private_address: ")
    assert "--allow-private" in tally.failed[url] and not tube.asked


def test_a_refusal_that_an_extractor_swallows_is_told() -> None:
    lister = Lister(sleep_s=0)
    swallowed = contextlib.suppress(Refused)
    with pytest.raises(MediaError, match="private address"), lister.told(), swallowed:
        lister.guard.check("host", ["10.0.0.8"])
    with lister.told():
        pass  # the next one begins anew


# -- filters


def test_what_is_left_out_and_why(tube: Tube) -> None:
    entries = [
        tube.entry("live", live_status="is_live"),
        tube.entry("live2", is_live=True),
        tube.entry("soon", live_status="is_upcoming"),
        tube.entry("just", live_status="post_live"),
        tube.entry("was", live_status="was_live", duration=60, height=720),
        tube.entry("low", height=719, duration=60),
        tube.entry("short", height=1080, duration=9.9),
        tube.entry("long", height=1080, duration=600.1),
        tube.entry("edges", height=720, duration=10),
        tube.entry("edge2", height=720, duration=600),
        tube.entry("unknown"),
        tube.entry("priv", title="[Private video]"),
        tube.entry("member", availability="subscriber_only"),
        None,
        {"_type": "url", "url": "file:///etc/passwd"},
        {"_type": "url", "url": "http:///nowhere"},
        tube.entry("edges"),
    ]
    bounds = Bounds(min_height_px=720, min_duration_s=10, max_duration_s=600)
    rows, tally = discover(tube.put_list("p", entries), bounds)
    assert ids(rows) == ["was", "edges", "edge2", "unknown"]
    assert numbers(tally) == {
        "live": 2,
        "upcoming": 1,
        "live until just now, no video yet": 1,
        "lower than --min-height 720": 1,
        "shorter than --min-duration 10": 1,
        "longer than --max-duration 600": 1,
        "private or removed": 2,
        "entries without an address": 3,
        "listed by this run already": 1,
    }
    assert tally.left_out["lower than --min-height 720"][1] == f"{tube.url}/watch/low: 719 px"
    assert {name: n for name, (n, _) in tally.not_told.items()} == {"height": 1, "duration_s": 1}
    assert tally.listed == len(entries) == tally.found + sum(numbers(tally).values())


def test_a_licence_that_is_not_told_is_not_one_that_is_asked_for(tube: Tube) -> None:
    entries = [
        tube.entry("cc", license="Creative Commons Attribution license (reuse allowed)"),
        tube.entry("std", license="Standard licence"),
        tube.entry("none"),
    ]
    rows, tally = discover(tube.put_list("p", entries), Bounds(0, licenses=("creative commons",)))
    assert ids(rows) == ["cc"]
    assert numbers(tally) == {"another licence": 1, "no licence told": 1}


@pytest.mark.parametrize("name", ["tube-a", "{url}/watch/a"])
def test_what_was_seen_is_out_and_does_not_count(tube: Tube, name: str) -> None:
    url = tube.put_list("p", [tube.entry("a", is_live=True), *tube.entries("b", "c", "d")])
    rows, tally = discover(url, seen={name.format(url=tube.url)}, limit=2)
    assert ids(rows) == ["b", "c"] and numbers(tally) == {"seen before": 1}


def test_ids_are_those_that_a_run_finds(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    info = {"id": "dQw4w9WgXcQ", "title": "T"}
    site_of = Lister(sleep_s=0).site_of
    for site, url in (
        ("Youtube", "https://youtu.be/dQw4w9WgXcQ?t=3"),
        ("Vimeo", "https://vimeo.com/76979871"),
    ):
        found = video_of(info | {"_type": "url", "url": url}, site_of, "q", None).row["id"]
        run = with_site_data(Source(url=url), info | {"extractor_key": site}, str(tmp_path / "f"))
        assert found == run.id
    of_file = info | {"_type": "url", "url": "https://host/a.mp4"}
    assert video_of(of_file, site_of, "q", None).row["id"] is None  # a run takes its content's


# -- pages


def test_pages_tell_heights_and_licences(tube: Tube) -> None:
    tube.put_page("high", 360, 1080, 720, license="CC BY", upload_date="20240131", duration=5)
    tube.put_page("low", 360, 480, license="CC BY")
    tube.put_page("other", 720, license="mine")
    tube.put_page("soon", live_status="is_upcoming")
    tube.put_page("mute")
    tube.answers["/watch/priv.json"] = {"error": "Private video. Sign in"}
    names = ("high", "low", "other", "soon", "priv", "mute")
    url = tube.put_list("p", [*tube.entries(*names), tube.entry("live", is_live=True)])
    rows, tally = discover(url, Bounds(licenses=("cc by",)), probes=True, category="Music")
    assert ids(rows) == ["high"]
    facts = {
        "id": "tube-high",
        "height": 1080,
        "license": "CC BY",
        "upload_date": "2024-01-31",
        "duration_s": 5.0,
    }
    assert rows[0].items() >= (facts | {"title": "Page high", "category": "Music"}).items()
    assert numbers(tally) == {
        "lower than --min-height 720": 1,
        "another licence": 1,
        "upcoming": 1,
        "page failed: private": 1,
        "no licence told": 1,
        "live": 1,
    }
    assert "Private video" in tally.left_out["page failed: private"][1]
    assert tally.pages_asked == 6  # none of what the list told to be live
    assert not [path for path in tube.asked if not path.endswith(".json")]  # and no media


def test_pages_that_are_refused_end_a_query(tube: Tube) -> None:
    names = [f"v{i}" for i in range(9)]
    for name in names:
        tube.answers[f"/watch/{name}.json"] = 429
    tube.put_page("v1", 720)
    url = tube.put_list("p", tube.entries(*names))
    rows, tally = discover(url, probes=True)
    assert ids(rows) == ["v1"] and tally.pages_asked == 7
    assert numbers(tally) == {"page failed: throttled": 6}
    assert tally.failed[url].startswith("throttled: 5 pages in a row were refused")


def test_pages_that_fail_for_their_own_reasons_do_not(tube: Tube) -> None:
    names = [f"v{i}" for i in range(7)]
    for name in names:
        tube.answers[f"/watch/{name}.json"] = {"error": "Private video"}
    tube.put_page("v6", 720)
    rows, tally = discover(tube.put_list("p", tube.entries(*names)), probes=True)
    assert ids(rows) == ["v6"] and not tally.failed
    assert numbers(tally) == {"page failed: private": 6}


def test_each_query_has_its_own_bytes(tube: Tube) -> None:
    lister = Lister(sleep_s=0, allow_private=True, extractors=EXTRACTORS)
    url = tube.put_list("p", tube.entries("a"))
    num_bytes = []
    for _ in range(2):
        assert len(list(lister.entries(url))) == 1
        num_bytes.append(lister.guard.num_bytes)
    assert num_bytes[0] == num_bytes[1] > 0


def test_a_single_video_is_a_list_of_itself(tube: Tube) -> None:
    tube.put_page("a", 720, categories=["Sport"])
    rows, tally = discover(f"{tube.url}/watch/a", Bounds(), probes=True)
    assert [(row["id"], row["height"], row["category"]) for row in rows] == [
        ("tube-a", 720, "Sport")
    ]
    assert tally.pages_asked == 0 and tube.asked == ["/watch/a.json"]


def test_requests_wait_for_each_other(tube: Tube, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of several queries, too: the clock stands still but for what is slept."""
    slept: list[float] = []
    monkeypatch.setattr("curation.downloads.connections.time.monotonic", lambda: sum(slept))
    monkeypatch.setattr("curation.downloads.connections.time.sleep", slept.append)
    lister = Lister(sleep_s=7, allow_private=True, extractors=EXTRACTORS)
    discovery = Discovery(lister, ANY, set(), limit=9, probes=True)
    for name in ("a", "b"):
        tube.put_page(name, 720)
        list(discovery.rows(Query(name, tube.put_list(name, tube.entries(name)))))
    assert slept == [7] * len(tube.asked) and len(tube.asked) == 6


# -- strangers


def test_what_sites_write_is_cleaned(tube: Tube) -> None:
    hostile = {
        "title": "\x1b[2J a\n b \ud83d",
        "uploader": ["no", "text"],
        "duration": "soon",
        "timestamp": 1e300,
        "height": 10**9,
        "live_status": {"a": 1},
        "formats": "none",
        "channel": "x" * 5000,
    }
    entries = [tube.entry("a", **hostile), tube.entry("b", url=f"{tube.url}/{'x' * 9000}")]
    rows, tally = discover(tube.put_list("p", entries), Bounds())
    assert rows[0]["title"] == "a b �" and len(rows[0]["channel"]) == 1000
    for name in ("uploader", "duration_s", "upload_date", "height", "live_status"):
        assert rows[0][name] is None, name
    assert numbers(tally) == {"addresses that are too long": 1}


@pytest.mark.parametrize("answer", ["<html>", "[[", '{"a": 1}', "[1, [2], {}]", '"text"'])
def test_a_broken_list_ends_nothing_but_itself(tube: Tube, answer: str) -> None:
    tube.answers["/list/p.0.json"] = answer
    rows, tally = discover(f"{tube.url}/list/p")
    assert rows == [] and (tally.failed or tally.left_out)


# -- what Generic reads

FEED = """<?xml version="1.0"?><rss version="2.0"
 xmlns:itunes="http://www.itunes.com/dtds/podcast-1.0.dtd"><channel><title>F</title>
<item><title>One</title><link>{url}/one.html</link><guid>g</guid>
<pubDate>Mon, 01 Jan 2024 10:00:00 GMT</pubDate><itunes:duration>1:02</itunes:duration></item>
<item><title>Two</title><enclosure url="{url}/two.mp4?token=s3cret" type="video/mp4"/></item>
</channel></rss>"""


def test_a_feed_is_a_list(tube: Tube) -> None:
    tube.answers["/feed.xml"] = FEED.format(url=tube.url)
    rows, tally = discover(f"{tube.url}/feed.xml", Bounds())
    facts = [(r["url"], r["id"], r["title"], r["duration_s"], r["upload_date"]) for r in rows]
    assert facts == [
        (f"{tube.url}/one.html", None, "One", 62.0, "2024-01-01"),
        (f"{tube.url}/two.mp4", None, "Two", None, None),
    ]
    assert tally.not_told["secrets of its url"] == (1, f"{tube.url}/two.mp4")
    assert tally.not_told["height"][0] == 2 and tube.asked == ["/feed.xml"]


def test_the_videos_of_a_page_are_told_apart(tube: Tube) -> None:
    """They have no pages of their own, and a run takes no page of several: their files count."""
    videos = '<video src="/a.mp4"></video><video><source src="/b.mp4" type="video/mp4"></video>'
    head = "<!DOCTYPE html><html><head><title>T</title></head><body>"
    tube.answers["/page.html"] = f"{head}{videos}</body></html>"
    rows, _ = discover(f"{tube.url}/page.html")
    assert [row["url"] for row in rows] == [f"{tube.url}/a.mp4", f"{tube.url}/b.mp4"]
    assert not [row["id"] for row in rows if row["id"]]
