"""A site's subtitles in chosen languages: which are taken, and that none of them fails a video."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeVideo
from tube import Tube, TubeIE

from curation.downloads import texts
from curation.downloads.connections import Guard
from curation.downloads.fetches import download
from curation.downloads.sections import SectionsYoutubeDL
from curation.downloads.texts import Offer, fetch_text
from curation.pipelines import Download, Pipeline, load_pipeline
from curation.records import VideoResult
from curation.settings import ConfigError
from curation.sources import Source, Span
from curation.sources.source import fingerprint
from curation.sources.subtitles import Cue, read_cues
from curation.videos import curate_video

VTT = "WEBVTT\n\n00:00.000 --> 00:03.600\n{}\n"
CONFIG = Path(__file__).parents[1] / "pipelines.yaml"


class Site(Tube):
    """A site with one video, at /watch/film."""

    def __init__(self, film: str) -> None:
        super().__init__()
        self.film = film

    def put(self, spoken: dict[str, Any], heard: dict[str, Any] | None = None) -> None:
        """Give the film subtitles: by language a text, a status, or yt-dlp's list of formats.

        `heard` are those that a machine made.
        """
        format = {"url": self.film, "height": 180, "vcodec": "avc1"}
        page: dict[str, Any] = {"id": "film", "title": "T", "formats": [format]}
        for key, offered in (("subtitles", spoken), ("automatic_captions", heard or {})):
            page[key] = {}
            for language, answer in offered.items():
                path = f"/{key}/{language}.vtt"
                page[key][language] = [{"url": f"{self.url}{path}", "ext": "vtt"}]
                if isinstance(answer, list):
                    page[key][language] = answer
                else:
                    self.answers[path] = VTT.format(answer) if isinstance(answer, str) else answer
        self.answers["/watch/film.json"] = page

    def asked_for(self, part: str) -> list[str]:
        return [path for path in self.asked if part in path]


@pytest.fixture
def site(
    make_video: MakeVideo, serve: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    own = SectionsYoutubeDL.add_default_info_extractors

    def with_tube(self: SectionsYoutubeDL) -> None:
        self.add_info_extractor(TubeIE())
        own(self)

    monkeypatch.setattr(SectionsYoutubeDL, "add_default_info_extractors", with_tube)
    url, served = serve
    shutil.copy(make_video("plain.mp4"), served / "film.mp4")
    made = Site(f"{url}/film.mp4")
    yield made
    made.close()


def settings(*languages: str) -> Download:
    return Download(allow_private=True, retry_s=0.001, subtitles=list(languages))


def fetch(site: Site, folder: Path, *languages: str, **known: Any) -> Source:
    folder.mkdir(exist_ok=True)
    source = Source(url=f"{site.url}/watch/film", **known)
    got = download(source, folder, settings(*languages), lambda: None)
    assert got.path and Path(got.path).is_file() and got.id == "tube-film"
    return got


def words(source: Source) -> str:
    return read_cues(source.subtitles.path)[0].text if source.subtitles else ""


def curated(site: Site, folder: Path, *languages: str, **known: Any) -> VideoResult:
    folder.mkdir()
    pipeline = Pipeline(download=settings(*languages))
    source = Source(url=f"{site.url}/watch/film", **known)
    return curate_video(source, pipeline, folder, lambda stage, at_s: None)


@pytest.mark.parametrize(
    ("languages", "wanted", "says"),
    [
        (("en", "de"), "Hallo", "subtitles: de"),
        (("pt",), "Olá", "subtitles: pt-BR"),
        (("en",), "Hello", "subtitles: en-orig (automatic)"),
        (("DE",), "Hallo", "subtitles: de"),
        (("fr", "nl"), "", "the site has no subtitles in fr, nl"),
    ],
)
def test_the_first_language_that_people_wrote_is_taken(
    site: Site, tmp_path: Path, languages: tuple[str, ...], wanted: str, says: str
) -> None:
    """What machines heard comes second, and is told."""
    heard = {"en": "Hello by way of German", "en-orig": "Hello", "de": "Hallo, gehört"}
    site.put({"de": "Hallo", "pt-BR": "Olá", "frr": "none of these"}, heard)
    got = fetch(site, tmp_path / "scratch", *languages)
    assert (words(got), got.note) == (wanted, says)
    assert len(site.asked_for(".vtt")) == bool(wanted)


def test_none_is_asked_for_by_default(site: Site, tmp_path: Path) -> None:
    site.put({"en": "Hello"})
    got = fetch(site, tmp_path / "scratch")
    assert (got.subtitles, got.note) == (None, None)
    assert site.asked_for("subtitles") == []


@pytest.mark.parametrize(
    "known",
    [
        {"caption": "mine"},
        {"spans": (Span(0, 1, "mine"),)},
    ],
)
def test_none_is_asked_for_where_a_list_says_it_all(
    site: Site, tmp_path: Path, known: dict[str, Any]
) -> None:
    site.put({"en": "Hello"})
    assert fetch(site, tmp_path / "scratch", "en", **known).subtitles is None
    assert site.asked_for("subtitles") == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (404, "not used: HTTP Error 404"),
        (503, "not used"),
        ("", "they say nothing"),
        ([{"url": "http://127.0.0.1:9/en.vtt?token=sesame", "ext": "vtt"}], "not used"),
        ([{"ext": "vtt"}], "not used"),
        ([{"url": "rtmp://127.0.0.1/a", "ext": "vtt", "protocol": "rtmp"}], "come by rtmp"),
        ([{"url": "file:///etc/hosts", "ext": "vtt"}], "not used"),
    ],
)
def test_what_cannot_be_fetched_fails_nothing_and_is_told(
    site: Site, tmp_path: Path, answer: Any, says: str
) -> None:
    site.put({"en": answer, "de": "Hallo"})
    got = fetch(site, tmp_path / "scratch", "en", "de")
    assert words(got) == "Hallo"
    assert got.note and says.casefold() in got.note.casefold() and "subtitles: de" in got.note
    assert "sesame" not in got.note
    kept = {p.name for p in (tmp_path / "scratch").iterdir()}
    assert kept == {"video.mp4", "subtitles_2.vtt"}


def test_their_addresses_are_judged_as_the_videos_are(site: Site, tmp_path: Path) -> None:
    guard = Guard(allow_private=False, max_bytes=10**9, min_bytes_per_s=0, window_s=30)
    facts = {"url": f"{site.url}/subtitles/en.vtt", "ext": "vtt"}
    options = {"quiet": True, "retries": 0}
    with SectionsYoutubeDL(options, guard, (), None, lambda: None) as downloader:
        failed = fetch_text(Offer("en", False, facts), {}, downloader, tmp_path / "en.vtt")
    assert str(failed).startswith("private_address")
    assert site.asked == [] and not (tmp_path / "en.vtt").exists()


def test_those_in_segments_are_put_together(site: Site, tmp_path: Path) -> None:
    segments = "".join(f"#EXTINF:2,\n{site.url}/{n}.vtt\n" for n in range(2))
    site.answers["/en.m3u8"] = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n{segments}#EXT-X-ENDLIST\n"
    site.answers["/0.vtt"] = "WEBVTT\n\n00:00.000 --> 00:01.000\nHello\n"
    site.answers["/1.vtt"] = "WEBVTT\n\n00:02.000 --> 00:03.000\nthere\n"
    facts = {"url": f"{site.url}/en.m3u8", "ext": "vtt", "protocol": "m3u8_native"}
    site.put({"en": [facts]})
    got = fetch(site, tmp_path / "scratch", "en")
    assert got.subtitles, got.note
    assert [cue.text for cue in read_cues(got.subtitles.path)] == ["Hello", "there"]


def test_they_have_a_largest_size(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MAX_TEXT_BYTES", 1000)
    site.put({"en": "a" * 2000, "de": "Hallo"})
    got = fetch(site, tmp_path / "scratch", "en", "de")
    assert words(got) == "Hallo" and "too_large" in str(got.note)


def test_words_that_come_with_the_page_and_other_formats(site: Site, tmp_path: Path) -> None:
    """The format that is read; never under a name of the site's."""
    unread = {"url": f"{site.url}/a.json3", "ext": "json3"}
    srt = {"data": "1\n00:00:00,000 --> 00:00:02,000\nServus\n", "ext": "srt", "name": "../../x"}
    site.put({"en": [unread], "de": [unread, srt]})
    got = fetch(site, tmp_path / "scratch", "en", "de")
    assert words(got) == "Servus" and got.subtitles is not None
    assert got.subtitles.path == str(tmp_path / "scratch" / "subtitles_1.srt")
    assert "/a.json3" not in site.asked


def test_clips_are_captioned_by_what_is_said(site: Site, tmp_path: Path) -> None:
    site.put({"en": "Hello"})
    result = curated(site, tmp_path / "a", "en", fingerprint="as before")
    assert {row["caption"] for row in result.ledger if row["level"] == "clip"} == {"Hello"}
    assert result.video["message"] == "subtitles: en"
    assert {row["source_fingerprint"] for row in result.ledger} == {"as before"}
    titled = curated(site, tmp_path / "b")
    assert {row["caption"] for row in titled.ledger if row["level"] == "clip"} == {"T"}
    spoken = curated(site, tmp_path / "c", "en", spans=(Span(0, 1, "mine"), Span(1, 2)))
    assert [row["caption"] for row in spoken.ledger[1:]] == ["mine", "Hello"]


def test_what_was_decided_of_a_source_does_not_depend_on_them() -> None:
    """The fingerprint is of what was given, so the next run, which has no file, finds the same."""
    source = Source(url="u")
    assert fingerprint(source) == fingerprint(Source(url="u", note="subtitles: en"))
    before, after = Pipeline().fingerprints(), Pipeline(download=settings("en")).fingerprints()
    assert before == after


def test_cues_are_read_as_those_of_files(site: Site, tmp_path: Path) -> None:
    site.put({"en": "<c>Hello</c> there"})
    got = fetch(site, tmp_path / "scratch", "en")
    assert got.subtitles and read_cues(got.subtitles.path) == [Cue(0.0, 3.6, "Hello there")]


# -- settings


@pytest.mark.parametrize("code", ["english", "e", "en_US", "../en", "", "en-"])
def test_what_is_no_language_is_told(code: str) -> None:
    with pytest.raises(ConfigError, match=r"is no code of a language; .*such as en, de, pt-BR"):
        load_pipeline(CONFIG, "web", [f"download.subtitles=['{code}']"])


def test_where_they_would_not_be_read_they_are_refused() -> None:
    overrides = ["download.subtitles=[en]", "captions.model=blip2"]
    with pytest.raises(
        ConfigError, match=r"captions of captions.model source_text, and it is blip2"
    ):
        load_pipeline(CONFIG, "web", overrides)
    assert load_pipeline(CONFIG, "web", overrides[:1]).download.subtitles == ["en"]


def test_sections_are_off_or_auto() -> None:
    assert load_pipeline(CONFIG, "web", ["download.sections=auto"]).download.sections == "auto"
    with pytest.raises(ConfigError, match=r"download.sections is 'always'.*'off' or 'auto'"):
        load_pipeline(CONFIG, "web", ["download.sections=always"])
