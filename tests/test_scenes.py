"""Cuts found in videos whose cuts are known, right to one frame in seconds from the stamps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scenedetect.detectors
from conftest import THREE_SHOTS, MakeVideo, Shot, ffmpeg
from scenedetect import FrameTimecode

from curation.decode.analyses import Analysis, analyse
from curation.decode.scenes import analysis_size, build_detector, frame_at
from curation.media.frames import Timeline
from curation.media.probes import probe
from curation.pipelines import Pipeline, Scenes
from curation.sources import Source

MIXED_RATES = (
    *(Shot("test", 1.2, 30), Shot("bars", 1.5, 10), Shot("gradient", 1.0, 30)),
    *(Shot("life", 1.0, 15), Shot("still", 1.0), Shot("fractal", 0.52)),
)
BFRAMES = ("-bf", 3, "-x264-params", "b-adapt=0:b-pyramid=normal")


def starts(path: Path, **scenes: object) -> list[float]:
    """When every found scene begins, and when the last one ends, in seconds."""
    found = analysis_of(path, **scenes)
    ends = [found.timeline.time_s(last) for _, last in found.spans]
    begins = [found.timeline.time_s(first) for first, _ in found.spans]
    assert begins[1:] == ends[:-1]
    return [*begins, ends[-1]]


def analysis_of(path: Path, **scenes: object) -> Analysis:
    source = Source(url=str(path), path=str(path))
    pipeline = Pipeline(scenes=Scenes(**scenes))  # type: ignore[arg-type]
    return analyse(source, probe(path), pipeline, lambda at_s: None)


def bounds(shots: tuple[Shot, ...]) -> list[float]:
    return [sum(s.duration_s for s in shots[:i]) for i in range(len(shots) + 1)]


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_hard_cuts_at_a_constant_rate(make_video: MakeVideo, detector: str) -> None:
    found = starts(make_video("bframes.mp4", options=BFRAMES), detector=detector)
    assert found == pytest.approx(bounds(THREE_SHOTS), abs=1e-3)


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_hard_cuts_at_mixed_rates(make_video: MakeVideo, detector: str) -> None:
    """One file of 30, 10, 15 and 25 fps: frame number over average rate is off by half a second."""
    found = starts(make_video("rates.mp4", shots=MIXED_RATES), detector=detector)
    assert found == pytest.approx(bounds(MIXED_RATES), abs=1e-3)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_late_first_stamp_moves_no_cut(make_video: MakeVideo, suffix: str) -> None:
    path = make_video(f"late.{suffix}", options=("-output_ts_offset", 5))
    assert starts(path) == pytest.approx(bounds(THREE_SHOTS), abs=2e-3)


@pytest.mark.parametrize("degrees", [90, 270])
def test_cuts_of_a_rotated_video(make_video: MakeVideo, degrees: int) -> None:
    source = make_video("plain.mp4")
    path = source.with_name(f"turned{degrees}.mp4")
    ffmpeg("-display_rotation", degrees, "-i", source, "-c", "copy", path)
    assert starts(path) == pytest.approx(bounds(THREE_SHOTS), abs=1e-3)


def test_cuts_of_a_video_with_oblong_pixels(make_video: MakeVideo) -> None:
    path = make_video("oblong.mp4", size="240x180", filters="setsar=4/3")
    assert starts(path) == pytest.approx(bounds(THREE_SHOTS), abs=1e-3)


def test_fades_through_black_need_the_threshold_detector(make_video: MakeVideo) -> None:
    fade = "fade=t=out:st=1:d=0.4:enable='lt(t,1.4)',fade=t=in:st=1.4:d=0.4:enable='gte(t,1.4)'"
    path = make_video("fades.mp4", shots=(Shot("still", 2.8),), filters=fade)
    begins = starts(path, detector="threshold")
    assert len(begins) == 3
    assert begins[1] == pytest.approx(1.4, abs=0.2)
    assert len(starts(path, detector="adaptive")) == 2


def test_a_video_without_cuts_is_one_scene(make_video: MakeVideo) -> None:
    assert starts(make_video("single.mp4", shots=(Shot("fractal", 1.6),))) == pytest.approx(
        [0, 1.6]
    )
    assert starts(make_video("one.mp4", shots=(Shot("test", 0.04),))) == pytest.approx([0, 0.04])


def test_scenes_shorter_than_the_least_join_a_neighbour(make_video: MakeVideo) -> None:
    shots = (Shot("test", 1.2), Shot("bars", 0.16), Shot("gradient", 0.4), Shot("fractal", 1.0))
    path = make_video("flash.mp4", shots=shots)
    assert starts(path, min_scene_s=0) == pytest.approx(bounds(shots), abs=1e-3)
    assert starts(path, min_scene_s=0.3) == pytest.approx([0, 1.2, 1.76, 2.76], abs=1e-3)


@pytest.mark.parametrize("name", ["adaptive", "content"])
def test_scores_are_those_of_pyscenedetect_to_the_last_bit(name: str) -> None:
    """On what it calls itself, and without a change of its own."""
    detectors = scenedetect.detectors
    own = {"adaptive": detectors.AdaptiveDetector, "content": detectors.ContentDetector}[name]
    ours, theirs = build_detector(name, None, 0.2), own(min_scene_len=0.2)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (36, 64, 3), np.uint8) for _ in range(9)]
    pictures += [pictures[-1], *[p // 3 for p in pictures[:9]]]
    for n, picture in enumerate(pictures):
        now = FrameTimecode(n, fps=25.0)
        assert ours.process_frame(now, picture) == theirs.process_frame(now, picture)
        assert ours._frame_score == theirs._frame_score  # type: ignore[attr-defined]
        assert len(ours.planes) == 3  # type: ignore[attr-defined]
        assert ours._last_frame is None  # type: ignore[attr-defined]  # its own was not asked
    assert detectors.content_detector._mean_pixel_distance.__module__.startswith("scenedetect")


def test_a_higher_threshold_finds_fewer_cuts(make_video: MakeVideo) -> None:
    path = make_video("plain.mp4")
    assert len(starts(path, detector="content", threshold=250)) < 4


def test_times_become_the_first_frame_at_or_after_them() -> None:
    timeline = Timeline(Fraction(1, 10))
    for pts in (5, 7, 10, 20):
        timeline.append(pts, 5)
    assert [frame_at(timeline, t) for t in (0, 0.2, 0.3, 1.5, 9.9)] == [0, 1, 2, 3, 4]


def test_an_unknown_detector_is_named() -> None:
    with pytest.raises(ValueError, match="'sharp' is no detector"):
        build_detector("sharp", None, 0.2)


@pytest.mark.parametrize("size", [(1280, 720), (720, 1280), (321, 181), (2, 2), (4000, 2)])
def test_pictures_for_analysis_are_even_and_small(size: tuple[int, int]) -> None:
    width, height = analysis_size(*size)
    assert width % 2 == height % 2 == 0
    assert min(width, height) >= 2 and max(width, height) <= 256
