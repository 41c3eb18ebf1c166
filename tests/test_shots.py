"""`scenes.detector: shots` in the one decode: real footage whose transitions are known."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from conftest import ffmpeg, num_packets
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.decode import samples, transitions
from curation.decode.analyses import Analysis, analyse, parts_of, score_clip
from curation.decode.samples import MAX_SAMPLES, MAX_WAITING, ClipFrames
from curation.decode.shots import ShotFinder, TransitionTrack
from curation.decode.tracks import build_tracks
from curation.decode.transitions import MARGIN
from curation.media.frames import Timeline
from curation.media.probes import Turn, probe
from curation.pipelines import Captions, Pipeline, Scenes, Scorers, load_pipeline
from curation.records import VideoResult
from curation.sources import Source, Span
from curation.videos import curate_video

ROOT = Path(__file__).parents[1]
FPS = 24
SHOTS = Scenes(detector="shots")
# Two shots of 3 s, joined; and the frames that mix them, [first, last).
JOINS = {
    "none": ("[b]nullsink;[a]null", (72, 72)),
    "cut": ("[a][b]concat", (72, 72)),
    "dissolve": ("[a][b]xfade=transition=fade:duration=0.5:offset=2.5", (60, 72)),
    "black": ("[a][b]xfade=transition=fadeblack:duration=1:offset=2", (48, 72)),
}
MakeJoin = Callable[[str], Path]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> MakeJoin:
    """joined(name): a video of JOINS, 320x180."""
    folder = tmp_path_factory.mktemp("joined")

    def make(name: str) -> Path:
        path = folder / f"{name}.mp4"
        if not path.exists():
            film = ROOT / "examples/media/meadow.mp4"
            shot = f"scale=320:180,settb=1/{FPS},setpts=N,format=yuv420p"
            graph = f"[0:v]{shot}[a];[1:v]{shot}[b];{JOINS[name][0]}[v]"
            inputs = ("-ss", 14.25, "-t", 3, "-i", film, "-ss", 23, "-t", 3, "-i", film)
            coded = ("-r", FPS, "-c:v", "libx264", "-preset", "veryfast")
            ffmpeg(*inputs, "-filter_complex", graph, "-map", "[v]", *coded, path)
        return path

    return make


def analysis_of(path: Path, *spans: Span, scenes: Scenes = SHOTS, model: bool = False) -> Analysis:
    captions = Captions(model="blip2", checkpoint="none") if model else Captions()
    pipeline = Pipeline(scenes=scenes, captions=captions)
    source = Source(url=str(path), path=str(path), spans=spans)
    return analyse(source, probe(path), pipeline, lambda at_s: None)


def curated(path: Path, *spans: Span) -> VideoResult:
    """A video through `web`, for pictures of this size and clips from a second on."""
    smaller = ["rules.resolution.min=180", "rules.duration.min=1"]
    pipeline = load_pipeline(ROOT / "pipelines.yaml", "web", smaller)
    source = Source(url=str(path), path=str(path), id="v", spans=spans)
    return curate_video(source, pipeline, path.parent, lambda stage, at_s: None)


# -- what is found


@pytest.mark.parametrize("name", ["cut", "dissolve", "black"])
def test_two_shots_hold_no_frame_of_the_transition_between_them(
    joined: MakeJoin, name: str
) -> None:
    found = analysis_of(joined(name))
    (start, end), (begin, last) = found.spans
    first_mixed, first_after = JOINS[name][1]
    assert (start, last) == (0, found.timeline.num_frames)
    assert end <= first_mixed and begin >= first_after
    lost = 0 if name == "cut" else 8  # the margin, and frames that are mixed by less than a tenth
    assert end >= first_mixed - lost and begin <= first_after + lost


def test_a_video_of_one_shot_is_one_scene(joined: MakeJoin) -> None:
    assert analysis_of(joined("none")).spans == [(0, 72)]


def test_shots_that_are_not_trimmed_touch(joined: MakeJoin) -> None:
    found = analysis_of(joined("dissolve"), scenes=Scenes(detector="shots", trim=False))
    (start, end), (begin, last) = found.spans
    assert (start, last) == (0, 132) and 60 <= end == begin <= 72


def test_a_video_that_is_no_shot_is_judged_whole(tmp_path: Path) -> None:
    path = tmp_path / "night.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=black:s=320x180:r=24:d=2", path)
    result = curated(path)
    assert [row["rule"] for row in result.ledger] == ["black_bars"] * 2


def test_shots_shorter_than_a_scene_are_left_out(joined: MakeJoin) -> None:
    found = analysis_of(joined("dissolve"), scenes=Scenes(detector="shots", min_scene_s=2.25))
    assert [first for first, _ in found.spans] == [0]


@pytest.mark.parametrize("detector", ["shots", "adaptive"])
def test_long_takes_are_split_evenly(
    joined: MakeJoin, detector: Literal["shots", "adaptive"]
) -> None:
    scenes = Scenes(detector=detector, max_s=1.25)
    found = analysis_of(joined("cut"), scenes=scenes, model=True)
    assert found.spans == list(itertools.pairwise(range(0, 145, 24)))
    timeline = found.timeline
    times = [(timeline.time_s(a), timeline.time_s(b)) for a, b in found.spans]
    assert all(len(found.caption_frames.of_clip(*time)) == 1 for time in times)
    assert parts_of(timeline, 0, 144, None) == [(0, 144)]


# -- told while it is decoded


@settings(deadline=None, max_examples=300)
@given(
    pieces=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.05, 0.3, 0.9]),
            st.sampled_from([0.0, 0.0, 0.7]),
            st.sampled_from([1, 1, 2, 3, 4, 5, 40]),
        ),
        min_size=1,
        max_size=20,
    ),
    news=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    trim=st.booleans(),
)
def test_shots_are_the_same_however_many_frames_are_judged_at_once(
    pieces: list[tuple[float, float, int]], news: list[int], trim: bool
) -> None:
    told = np.concatenate([np.tile([cut, inside], (n, 1)) for inside, cut, n in pieces])
    levels = np.tile([100.0, 50.0, 5.0], (len(told), 1))
    levels[told[:, 0] == 0.7, :2] = (16.0, 1.0)  # some black frames, too
    timeline, track = Timeline(Fraction(1, FPS)), TransitionTrack()
    finder = ShotFinder(track, min_scene_s=0, trim=trim)
    found = []
    for count in (*news, len(told)):
        done = track.finder.num_judged
        for pts in range(done, min(done + count, len(told))):
            timeline.append(pts, 1)
            track.finder.probabilities.extend(array("f", told[pts]))
            track.finder.levels.extend(array("f", levels[pts]))
        track.finder.num_judged = timeline.num_frames
        found += finder.add(timeline, np.empty(0))
    found += finder.finish(timeline)
    shots = track.judgement.shots(trim=trim)
    assert found == (shots or [(0, len(told))])


def test_a_shot_is_told_when_what_ends_it_cannot_change() -> None:
    track, timeline = TransitionTrack(), Timeline(Fraction(1, FPS))
    finder = ShotFinder(track, min_scene_s=0, trim=True)
    told = np.zeros((200, 2), np.float32)
    told[60, 0] = told[100:120, 1] = 0.9
    news: list[list[tuple[int, int]]] = []
    for until in (50, 61, 66, 118, 123, 200):
        for pts in range(timeline.num_frames, until):
            timeline.append(pts, 1)
            track.finder.probabilities.extend(array("f", told[pts]))
            track.finder.levels.extend((100.0, 50.0, 5.0))
        track.finder.num_judged = until
        news.append(finder.add(timeline, np.empty(0)))
    assert news == [[], [], [(0, 60)], [], [], [(60, 100 - MARGIN)]]
    assert finder.finish(timeline) == [(120 + MARGIN, 200)]


@pytest.mark.parametrize("chunk", [7, 40])
def test_the_network_finds_the_same_in_other_chunks(
    joined: MakeJoin, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = analysis_of(joined("dissolve"), model=True)
    monkeypatch.setattr(transitions, "CHUNK", chunk)
    parts = analysis_of(joined("dissolve"), model=True)
    assert parts.spans == whole.spans
    assert parts.caption_frames.taken == whole.caption_frames.taken
    both = [a.tracks.running["hidden_cut"].between(0, 9)["hidden_cut"] for a in (whole, parts)]
    assert both[0] == pytest.approx(both[1], abs=1e-4)


@pytest.mark.parametrize("waiting", [MAX_WAITING, 2])
def test_every_shot_has_its_middle_frame(
    joined: MakeJoin, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its end is known late; `waiting` samples of it wait as they came."""
    monkeypatch.setattr(samples, "MAX_WAITING", waiting)
    for name in ("cut", "dissolve"):
        found = analysis_of(joined(name), model=True)
        for first, last in found.spans:
            start_s, end_s = found.timeline.time_s(first), found.timeline.time_s(last)
            [(time_s, picture)] = found.caption_frames.of_clip(start_s, end_s)
            assert abs(time_s - (start_s + end_s) / 2) <= 1 / 8 + 1 / FPS
            assert picture.startswith(b"\xff\xd8")


def test_a_clip_has_no_frame_of_the_transition_before_it() -> None:
    frames = ClipFrames(lambda start_s, end_s: [start_s], 16, Turn(), [])
    for index in range(5 * FPS):
        frames.add(index / FPS, av.VideoFrame(16, 16, "rgb24"))
    frames.close_scene(0.0, 2.0)
    frames.settle(3.5)  # only then is it known that the next scene opens at 3.1 s
    frames.close_scene(3.1, 5.0)
    assert [time_s for time_s, _ in frames.taken] == [0.0, 3.25]  # not that of 3 s, which is nearer


def test_nothing_is_settled_that_a_later_scene_ends_before(
    joined: MakeJoin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transitions, "CHUNK", 20)
    settled, ended = [0.0], []
    settle, close = ClipFrames.settle, ClipFrames.close_scene

    def note_settled(self: ClipFrames, until_s: float) -> None:
        settled.append(until_s)
        settle(self, until_s)

    def note_closed(self: ClipFrames, start_s: float, end_s: float) -> None:
        ended.append((max(settled), end_s))
        close(self, start_s, end_s)

    monkeypatch.setattr(ClipFrames, "settle", note_settled)
    monkeypatch.setattr(ClipFrames, "close_scene", note_closed)
    analysis_of(joined("cut"), model=True)
    assert len(ended) == 2 and all(before <= end_s for before, end_s in ended)
    assert ended[1][0] > 3.0  # and yet most of the second shot is settled before its end


def test_what_waits_stays_bounded() -> None:
    """An hour without a word of a scene's end, then one take of two hours in parts of 10 s."""
    frames = ClipFrames(lambda a, b: [(a + b) / 2], 16, Turn(), [], max_clip_s=10.0)
    picture = av.VideoFrame(16, 16, "rgb24")
    for second in range(3600):
        frames.add(float(second), picture)
    assert sum(not isinstance(p, bytes) for _, p in frames.recent) == MAX_WAITING
    for second in range(3600, 7200):
        frames.settle(float(second))
        frames.add(float(second), picture)
    assert len(frames.recent) <= 2
    assert sum(not isinstance(p, bytes) for _, p in frames.scene.items) <= MAX_SAMPLES + 1
    for start_s in range(0, 7200, 10):
        frames.close_scene(start_s, start_s + 10)
    assert len(frames.taken) == 720


def test_motion_does_not_fill_the_memory_with_samples() -> None:
    frames = ClipFrames(lambda a, b: [(a + b) / 2], 16, Turn(), [])
    for index in range(240):
        frames.add(index / FPS, av.VideoFrame(16, 16, "rgb24"), changed=index >= 24)
    assert len(frames.recent) == pytest.approx(10 * 4, abs=2)


# -- given cuts, stored clips, a whole run


def test_a_given_cut_that_hides_one_of_its_own_is_dropped(joined: MakeJoin) -> None:
    result = curated(joined("cut"), Span(0, 2), Span(1, 4), Span(3, 6))
    clean, hides, next_one = result.ledger[1:]
    assert (hides["rule"], hides["threshold"]) == ("hidden_cut", 0.5)
    assert hides["hidden_cut"] == hides["value"] > 0.9
    assert clean["decision"] == next_one["decision"] == "kept"  # 3 s is the new shot's first frame
    assert clean["hidden_cut"] < 0.1 and next_one["hidden_cut"] < 0.1


def test_a_stored_clip_tells_what_it_hides(joined: MakeJoin, tmp_path: Path) -> None:
    tracks = build_tracks(Scorers(hidden_cut="network"))
    hidden = {}
    for name in JOINS:
        data = joined(name).read_bytes()
        found = score_clip(data, 5.0, tracks, False, tmp_path, lambda stage, at_s: None)
        hidden[name] = found.rows["hidden_cut"]["hidden_cut"]
    assert hidden["none"] < 0.1 and min(v for k, v in hidden.items() if k != "none") > 0.9


def test_a_dissolve_leaves_two_clips_without_a_frame_of_it(
    joined: MakeJoin, tmp_path: Path
) -> None:
    result = curated(joined("dissolve"))
    assert [row["decision"] for row in result.ledger] == ["kept"] * 3
    one, two = result.clips
    assert one.row["start_s"] == 0 and one.row["end_s"] <= 60 / FPS
    assert two.row["start_s"] >= 72 / FPS and two.row["end_s"] == 132 / FPS
    assert (one.row["scene_index"], two.row["scene_index"]) == (0, 1)
    for clip in (one, two):
        assert clip.row["hidden_cut"] < 0.5
        path = tmp_path / f"{clip.clip_id}.mp4"
        path.write_bytes(clip.media)
        span = clip.row["end_s"] - clip.row["start_s"]
        assert num_packets(path) == clip.row["num_frames"] == round(span * FPS)
