"""Interlaced video: what is combed is told from the lines, dropped by rule, or deinterlaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import MakeVideo, Shot, analysed, ffmpeg, read_frames

from curation.cuts.clips import cut
from curation.cuts.encodes import Clip
from curation.media.files import MediaError
from curation.media.frames import decode
from curation.media.probes import probe
from curation.pipelines import Cut, Pipeline, Rule, Scorers, load_pipeline
from curation.scores.combing import CombingTrack, teeth_of
from curation.settings import ConfigError
from curation.sources import Source
from curation.videos import curate_video

MOVES = [Shot("test", 3.0, 50)]  # 50 moments a second, which fields of 25 frames show
PROGRESSIVE = [Shot("test", 3.0, 25)]
FLAGGED = ("-flags", "+ilme+ildct")
TOP, BOTTOM = "tinterlace=interleave_top", "tinterlace=interleave_bottom"
MPEG2 = ("-c:v", "mpeg2video", "-enc_time_base", "1/25", "-q:v", 3, *FLAGGED)
TEN_BITS = ("-c:v", "ffv1", "-pix_fmt", "yuv422p10")
CONFIG = Path(__file__).parents[1] / "pipelines.yaml"
WEB = load_pipeline(CONFIG, "web", [])
RULES = {"interlaced": WEB.rules["interlaced"]}
BOUND = RULES["interlaced"].max or 0.0


def looked_at(path: Path) -> CombingTrack:
    track = CombingTrack()
    for timeline, frame in decode(path, num_threads=1):
        now_s = timeline.time_s(timeline.num_frames - 1)
        track.add(now_s, frame, np.empty(0), np.empty(0))
    return track


def score(path: Path) -> float:
    found = looked_at(path).between(0, 99)["interlaced"]
    assert found is not None
    return found


@pytest.fixture
def combed(make_video: MakeVideo) -> Path:
    """Bottom field first, which no flag tells."""
    return make_video("combed.mp4", MOVES, filters=f"{BOTTOM},setfield=prog")


# -- the score


@pytest.mark.parametrize(
    ("name", "filters", "options", "order"),
    [
        ("tff.mp4", f"{TOP},setfield=tff", FLAGGED, "tff"),
        ("bff.mp4", f"{BOTTOM},setfield=bff", FLAGGED, "bff"),
        ("unflagged.mp4", f"{TOP},setfield=prog", (), "tff"),
        ("wrong_flag.mp4", f"{BOTTOM},setfield=tff", FLAGGED, "bff"),
        ("mpeg2.mpg", f"{TOP},setfield=tff", MPEG2, "tff"),
        ("ten_bits.mkv", f"{TOP},setfield=prog", TEN_BITS, "tff"),
    ],
)
def test_combed_pictures_are_found_whatever_the_flags_say(
    make_video: MakeVideo, name: str, filters: str, options: tuple[object, ...], order: str
) -> None:
    path = make_video(name, MOVES, options=options, filters=filters)
    track = looked_at(path)
    assert score(path) > BOUND
    assert track.field_order(0, 99) == order


def test_a_telecined_film_is_combed_in_part(make_video: MakeVideo) -> None:
    film = [Shot("test", 4.0, 24)]
    assert BOUND < score(make_video("film.mp4", film, filters="telecine=pattern=23")) < 1


@pytest.mark.parametrize(
    ("name", "filters", "options"),
    [
        ("plain.mp4", "null", ()),
        ("flagged.mp4", "setfield=tff", FLAGGED),  # progressive segmented frame
        ("repeats.mp4", "fps=60", ()),
        ("repeats_flagged.mp4", "fps=60,setfield=bff", FLAGGED),
    ],
)
def test_progressive_pictures_are_not_whatever_the_flags_say(
    make_video: MakeVideo, name: str, filters: str, options: tuple[object, ...]
) -> None:
    path = make_video(name, PROGRESSIVE, options=options, filters=filters)
    assert len(looked_at(path).uneven(0, 99)) > 1  # something moves
    assert score(path) < BOUND


def test_a_still_of_interlaced_video_is_not_combed(make_video: MakeVideo) -> None:
    filters = f"{TOP},setfield=tff"
    assert (
        score(make_video("still.mp4", [Shot("still", 2.0, 50)], options=FLAGGED, filters=filters))
        == 0
    )


def drawn(draw: Callable[[int], np.ndarray]) -> float:
    """The score of frames that show `draw(i)`, true for bright, [180, 320]."""
    track = CombingTrack()
    for i in range(20):
        picture = np.where(draw(i), 200, 40).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="gray")
        track.add(i / 25, frame, np.empty(0), np.empty(0))
    return track.between(0, 99)["interlaced"] or 0.0


Y, X = np.mgrid[:180, :320]


@pytest.mark.parametrize("slope", [0, 1 / 7])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("period", [2, 3, 4, 6, 8])
def test_stripes_that_go_down_are_not_combed(period: int, step: int, slope: float) -> None:
    height = Y + (slope * X).astype(int)
    assert drawn(lambda i: (height - step * i) % period < period / 2) < 0.1


def test_level_lines_and_pages_that_roll_by_two_lines_are_not_combed() -> None:
    """Their fields fit in one order alone, as if interlaced; but no teeth are to be seen."""
    fine = (Y % 2 == 0) & (X % 64 < 8)  # teeth of its own
    assert drawn(lambda i: np.where(X < 160, (Y - 2 * i) % 8 < 4, fine)) < 0.1
    page = np.random.default_rng(0).random((23, 20)).repeat(8, 0).repeat(16, 1)[:180] < 0.5
    assert drawn(lambda i: np.roll(page, 2 * i, axis=0)) < 0.1


def test_teeth_are_what_sticks_out_of_the_lines_around() -> None:
    top = np.full((3, 4), 100, np.uint8)
    assert teeth_of(top, np.full((3, 4), 130, np.uint8)) == 30
    assert teeth_of(top, np.full((3, 4), 60, np.uint8)) == 40
    ramp = np.arange(6, dtype=np.uint8)[:, None] * np.ones((1, 4), np.uint8)
    assert teeth_of(ramp[0::2], ramp[1::2]) == 0
    assert teeth_of(top[:1], top[:1]) == 0


def test_a_clip_is_judged_by_its_own_frames(make_video: MakeVideo) -> None:
    interlaced = make_video("first.mp4", MOVES, filters=f"{TOP},setfield=prog")
    plain = make_video("second.mp4", PROGRESSIVE)
    both = interlaced.with_name("both.mp4")
    graph = "[0:v]settb=1/90000[a];[1:v]settb=1/90000[b];[a][b]concat"
    ffmpeg("-i", interlaced, "-i", plain, "-filter_complex", graph, both)
    track = looked_at(both)
    first, second = (track.between(t, t + 3)["interlaced"] or 0.0 for t in (0, 3))
    assert first > 2 * BOUND > 2 * second
    # Too short for a look of their own: the nearest one's.
    assert (track.between(0.5, 0.6)["interlaced"] or 0.0) > 2 * BOUND
    assert (track.between(5.7, 5.8)["interlaced"] or 1.0) < BOUND
    assert CombingTrack().between(0, 1) == {"interlaced": 0}


# -- the rule, and what is made of it


def curated(path: Path, folder: Path, **settings: object) -> tuple[list[dict], list]:
    pipeline = Pipeline(scorers=Scorers(interlaced="fields"), rules=RULES, **settings)
    source = Source(url=str(path), path=str(path))
    result = curate_video(source, pipeline, folder, lambda stage, at_s: None)
    return result.ledger, result.clips


def test_web_drops_it_by_rule(combed: Path, tmp_path: Path) -> None:
    assert WEB.scorers.interlaced == "fields"
    (video, clip), kept = curated(combed, tmp_path)
    assert (video["decision"], clip["rule"], kept) == ("dropped", "interlaced", [])
    assert clip["value"] == clip["interlaced"] == pytest.approx(score(combed))


def test_deinterlaced_it_is_kept_with_every_frame(combed: Path, tmp_path: Path) -> None:
    """The order is the measured one: what is left is the earlier field of each frame."""
    (_, row), [clip] = curated(combed, tmp_path, cut=Cut(deinterlace=True))
    assert (row["decision"], row["rule"]) == ("kept", None)
    assert row["interlaced"] == clip.row["interlaced"] == pytest.approx(score(combed))  # as seen
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.media)
    assert score(path) < 0.1
    found, wanted = read_frames(path), read_frames(combed)
    assert [f.time_s for f in found] == pytest.approx([f.time_s for f in wanted], abs=1e-3)
    top, bottom = (
        np.mean([np.abs(a.picture[i:180:2] - b.picture[i:180:2].astype(int)) for a, b in pairs])
        for i, pairs in ((0, zip(found, wanted, strict=True)), (1, zip(found, wanted, strict=True)))
    )
    assert bottom < top / 2


def test_what_is_deinterlaced_is_never_copied(make_video: MakeVideo) -> None:
    path = make_video("groups.mp4", MOVES, options=("-g", 10), filters=f"{TOP},setfield=prog")
    spans = [(0, 20), (20, 40)]
    seen = (str(path), probe(path), *analysed(path))
    made = cut(*seen, spans, Cut(), lambda: None, {spans[1]: "tff"})
    assert [clip.made for clip in made if isinstance(clip, Clip)] == ["copied", "encoded"]
    turned = path.with_name("turned.mp4")
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", turned)
    seen = (str(turned), probe(turned), *analysed(turned))
    [failed] = cut(*seen, [(0, 20)], Cut(), lambda: None, {(0, 20): "tff"})
    assert isinstance(failed, MediaError) and "shown turned" in str(failed)


def test_one_frame_is_one_frame(combed: Path) -> None:
    seen = (str(combed), probe(combed), *analysed(combed))
    [clip] = cut(*seen, [(7, 8)], Cut(), lambda: None, {(7, 8): "bff"})
    assert isinstance(clip, Clip)


def test_the_bound_that_would_drop_is_the_one_that_deinterlaces() -> None:
    on = load_pipeline(CONFIG, "web", ["cut.deinterlace=true"])
    assert (WEB.combed_over, on.combed_over) == (None, 0.3)
    assert (WEB.bounds["interlaced"], on.bounds["interlaced"]) == (Rule(max=0.3), Rule())
    assert list(on.bounds) == list(WEB.rules) == list(on.rules)
    other = load_pipeline(CONFIG, "web", ["cut.deinterlace=true", "rules.interlaced.max=0.5"])
    prints = [each.fingerprints()["cut"] for each in (WEB, on, other)]
    assert len(set(prints)) == 3  # another bound cuts other clips anew


def test_what_was_cut_before_there_was_the_key_stays() -> None:
    assert Pipeline().fingerprints()["cut"] == "a409b4044914"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["cut.deinterlace=maybe"], "cut.deinterlace is 'maybe': .*valid boolean"),
        (
            ["cut.deinterlace=true", "rules.interlaced.max=null"],
            r"cut.deinterlace needs rules.interlaced.max, .*--set rules.interlaced.max=0.3",
        ),
        (["scorers.interlaced=null"], "rules.interlaced needs scorers.interlaced.*=fields$"),
    ],
)
def test_mistakes_are_told(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_pipeline(CONFIG, "web", overrides)
