"""What the one decode keeps: caption frames of the right moment and shot, stillness, bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import THREE_SHOTS, MakeVideo, Shot, ffmpeg, read_frames

from curation.decode.analyses import Analysis, analyse, score_clip
from curation.decode.jpegs import picture_from_jpeg
from curation.decode.samples import MAX_SAMPLES, Spread, nearest, shown_at
from curation.media.probes import probe
from curation.pipelines import Captions, Pipeline
from curation.sources import Source, Span

SHORT_SHOTS = (
    *(Shot("test", 1.2), Shot("bars", 0.2), Shot("gradient", 0.6), Shot("fractal", 0.24)),
    *(Shot("bars", 2.0), Shot("test", 0.4)),
)
FRAME_S = 1 / 25


def analysis_of(path: Path, *spans: Span, num_frames: int = 1) -> Analysis:
    source = Source(url=str(path), path=str(path), spans=spans)
    captions = Captions(model="blip2", checkpoint="none", num_frames=num_frames)
    return analyse(source, probe(path), Pipeline(captions=captions), lambda at_s: None)


def clips_of(found: Analysis) -> list[tuple[float, float, list[tuple[float, bytes]]]]:
    """Start, end and caption frames of every span."""
    times = [(found.timeline.time_s(a), found.timeline.time_s(b)) for a, b in found.spans]
    return [(a, b, found.caption_frames.of_clip(a, b)) for a, b in times]


def expect_picture(path: Path, time_s: float, jpeg: bytes) -> None:
    """The JPEG shows the source's frame of that time."""
    frame = next(f for f in read_frames(path, "rgb24") if abs(f.time_s - time_s) < 1e-3)
    assert np.abs(picture_from_jpeg(jpeg).astype(int) - frame.picture).mean() < 6


@pytest.mark.parametrize("shots", [THREE_SHOTS, SHORT_SHOTS], ids=["long", "short"])
def test_middle_frames_of_found_scenes(make_video: MakeVideo, shots: tuple[Shot, ...]) -> None:
    path = make_video(f"{len(shots)}shots.mp4", shots=shots)
    clips = clips_of(analysis_of(path))
    assert len(clips) == len(shots)
    for start_s, end_s, pictures in clips:
        [(time_s, jpeg)] = pictures
        assert start_s <= time_s < end_s
        assert abs(time_s - (start_s + end_s) / 2) <= 1 / 8 + FRAME_S
        expect_picture(path, time_s, jpeg)


def test_middle_frames_of_short_scenes_at_a_high_rate(make_video: MakeVideo) -> None:
    shots = (Shot("test", 1.0, 60), Shot("bars", 0.2, 60), Shot("fractal", 1.0, 60))
    clips = clips_of(analysis_of(make_video("fast60.mp4", shots=shots)))
    assert [len(pictures) for *_, pictures in clips] == [1, 1, 1]


def test_middle_frames_of_given_spans_are_exact(make_video: MakeVideo) -> None:
    path = make_video("plain.mp4")
    spans = [Span(0.0, 1.2), Span(1.2, 2.2), Span(1.0, 1.04), Span(2.05, 2.19), Span(0.2, 0.62)]
    clips = clips_of(analysis_of(path, *spans))
    for span, (start_s, end_s, pictures) in zip(spans, clips, strict=True):
        [(time_s, jpeg)] = pictures
        middle_s = (span.start_s + span.end_s) / 2
        assert start_s <= time_s < end_s
        assert abs(time_s - middle_s) <= FRAME_S / 2 + 1e-6
        expect_picture(path, time_s, jpeg)


def test_a_given_span_behind_the_end_still_has_a_frame(make_video: MakeVideo) -> None:
    found = analysis_of(make_video("plain.mp4"), Span(2.6, 99.0), Span(50.0, 60.0))
    [(start_s, end_s, pictures)] = clips_of(found)
    assert (start_s, end_s) == pytest.approx((2.6, 3.6))
    assert [time_s for time_s, _ in pictures] == pytest.approx([3.1], abs=FRAME_S)


def test_several_caption_frames_are_spread_over_the_clip(make_video: MakeVideo) -> None:
    path = make_video("plain.mp4")
    for found in (analysis_of(path, num_frames=2), analysis_of(path, Span(0, 1.2), num_frames=2)):
        start_s, end_s, pictures = clips_of(found)[0]
        wanted = [start_s + share * (end_s - start_s) for share in (0.25, 0.75)]
        assert [t for t, _ in pictures] == pytest.approx(wanted, abs=1 / 8 + FRAME_S)


def test_caption_frames_are_upright(make_video: MakeVideo) -> None:
    source = make_video("plain.mp4")
    path = source.with_name("upright.mp4")
    ffmpeg("-display_rotation", 90, "-i", source, "-c", "copy", path)
    [(_, stored)] = clips_of(analysis_of(source))[0][2]
    [(_, shown)] = clips_of(analysis_of(path))[0][2]
    turned = np.rot90(picture_from_jpeg(stored))  # 90 degrees counter-clockwise, as ffmpeg counts
    assert np.abs(picture_from_jpeg(shown).astype(int) - turned).mean() < 6
    upright = path.with_name("upright.png")
    ffmpeg("-ss", 0.52, "-i", path, "-frames:v", 1, upright)  # ffmpeg's own idea of upright
    assert np.abs(read_frames(upright, "rgb24")[0].picture.astype(int) - turned).mean() < 30


def test_no_caption_frames_are_kept_when_no_model_asks(make_video: MakeVideo) -> None:
    path = make_video("plain.mp4")
    source = Source(url=str(path), path=str(path))
    found = analyse(source, probe(path), Pipeline(), lambda at_s: None)
    assert found.caption_frames.taken == []


def test_letterboxes_are_measured_in_every_scene(make_video: MakeVideo) -> None:
    bars = "drawbox=h=23:c=black:t=fill:enable='gte(t,1.2)',drawbox=y=157:h=23:c=black:t=fill:"
    path = make_video("boxed.mp4", filters=bars + "enable='gte(t,1.2)'")
    found = analysis_of(path)
    shares = [found.overview.bars.between(start_s, end_s) for start_s, end_s, _ in clips_of(found)]
    assert shares[0] == 0
    assert shares[1:] == pytest.approx([46 / 180] * 2, abs=2.01 / 180)  # coding smears it
    assert found.overview.bars.between(90.0, 91.0) is None


def test_steps_tell_still_from_moving(make_video: MakeVideo) -> None:
    found = analysis_of(make_video("still.mp4", shots=(Shot("still", 1.2), Shot("test", 1.2))))
    (first, cut), (_, last) = found.spans
    steps = np.array(found.overview.steps)
    assert np.mean(steps[first : cut - 1] < 0.2) > 0.95
    assert np.mean(steps[cut : last - 1] < 0.2) < 0.05


def test_beats_come_about_once_a_second(make_video: MakeVideo) -> None:
    path = make_video("plain.mp4")
    beats: list[float] = []
    analyse(Source(url="x", path=str(path)), probe(path), Pipeline(), beats.append)
    assert beats == pytest.approx([0, 1, 2, 3])


def test_samples_stay_bounded_and_even() -> None:
    samples: Spread[int] = Spread(0.25)
    for index in range(10_000):
        if samples.wants(index * 0.04):
            samples.add(index * 0.04, index)
    gaps = np.diff([time_s for time_s, _ in samples.items])
    assert MAX_SAMPLES / 2 <= len(samples.items) <= MAX_SAMPLES
    assert gaps.max() <= 2 * gaps.min()


def test_the_frame_on_the_screen_is_not_always_the_nearest() -> None:
    frames = [(0.0, "a"), (0.4, "b"), (1.0, "c")]
    times_s = (0.0, 0.3, 0.4, 0.69, 0.71, 1.0, 9.0)
    assert "".join(nearest(frames, t)[1] for t in times_s) == "abbbccc"
    assert "".join(shown_at(frames, t)[1] for t in times_s) == "aabbbcc"
    assert shown_at(frames[1:], 0.1) == (0.4, "b")  # before the first there is only the first


def test_a_stored_clips_pictures_are_those_shown_at_their_times(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    """One, three and five sixths of a clip, a frame as often as it is on the screen then."""
    shots = [Shot("test", 0.08), Shot("bars", 0.04)]
    for num_frames, wanted in ((3, [0, 1, 2]), (2, [0, 1, 1])):
        path = make_video(f"{num_frames}frames.mp4", shots[: num_frames - 1])
        assert len(read_frames(path)) == num_frames
        duration_s = num_frames * FRAME_S
        found = score_clip(path.read_bytes(), duration_s, {}, True, tmp_path, lambda stage, t: None)
        assert len(found.pictures) == 3 and found.error is None
        for picture, index in zip(found.pictures, wanted, strict=True):
            expect_picture(path, index * FRAME_S, picture)
        assert len(set(found.pictures)) == num_frames


def test_a_damaged_clip_has_an_error_and_no_scores(tmp_path: Path) -> None:
    found = score_clip(b"no mp4", 1.0, {}, True, tmp_path, lambda stage, at_s: None)
    assert (found.rows, found.pictures) == ({}, [])
    assert found.error is not None and found.error.startswith("not_video")
