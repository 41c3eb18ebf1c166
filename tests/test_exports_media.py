"""vf-export-clips: trimmed, cropped and re-timed clips show exactly the frames they should."""

from __future__ import annotations

import json
import math
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import Frame, MakeVideo, Shot, num_packets, read_frames
from exporting import COUNTED, counted_frames, export, write_dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from curation.exports.fits import Demands, Fit, caption_of, fit, largest_count
from curation.exports.media import COPIED, ENCODED, JOINED, TRIMMED, Media, made
from curation.media.files import MediaError

NUM_FRAMES = 40
TMP = tempfile.gettempdir()
OPTIONS = {
    "no B-frames": ["-bf", 0],
    "B-frames": ["-bf", 3, "-b_strategy", 0],
    "B-pyramid": ["-bf", 8, "-b_strategy", 0, "-x264-params", "b-pyramid=normal"],
    "short groups": ["-bf", 2, "-b_strategy", 0, "-g", 8],
    "open groups": ["-bf", 3, "-g", 10, "-x264-params", "open-gop=1"],
    "HEVC": ["-c:v", "libx265", "-tag:v", "hvc1", "-x265-params", "log-level=error"],
}


@pytest.fixture(scope="module", params=OPTIONS)
def clip(request: pytest.FixtureRequest, make_video: MakeVideo) -> Path:
    """A clip of 40 frames as muxed by ffmpeg, with an edit list where it has B-frames."""
    options = OPTIONS[request.param]
    return make_video("trim.mp4", shots=[Shot("test", 1.6)], size="96x64", options=options)


def frames_of(media: Media, tmp: Path) -> list[Frame]:
    path = tmp / "made.mp4"
    path.write_bytes(media.data)
    assert num_packets(path) == len(read_frames(path))  # nothing hidden
    return read_frames(path)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(1, NUM_FRAMES))
@example(count=NUM_FRAMES)
@example(count=NUM_FRAMES - 1)
@example(count=1)
def test_a_trimmed_clip_is_exactly_its_first_frames(clip: Path, count: int, tmp_path: Path) -> None:
    whole = read_frames(clip)
    media = made(clip.read_bytes(), Fit(count, 96, 64), Demands(), TMP)
    frames = frames_of(media, tmp_path)
    assert [f.time_s for f in frames] == pytest.approx([f.time_s for f in whole[:count]], abs=1e-4)
    assert media.duration_s == pytest.approx(count / 25, abs=1e-4)
    same = [np.array_equal(a.picture, b.picture) for a, b in zip(frames, whole, strict=False)]
    if count == NUM_FRAMES:
        assert media.made == COPIED and media.data == clip.read_bytes()
    elif media.made == TRIMMED:
        assert all(same)  # the source's own packets
    else:  # what is not its own is alike
        assert media.made in (JOINED, ENCODED)
        for a, b in zip(frames, whole, strict=False):
            assert np.abs(a.picture.astype(int) - b.picture).mean() < 4


def test_without_b_frames_nothing_is_encoded(make_video: MakeVideo) -> None:
    path = make_video("trim.mp4", shots=[Shot("test", 1.6)], size="96x64", options=["-bf", 0])
    kinds = {
        made(path.read_bytes(), Fit(n, 96, 64), Demands(), TMP).made for n in range(1, NUM_FRAMES)
    }
    assert kinds == {TRIMMED}


def test_frames_at_a_rate_are_those_shown_then(make_video: MakeVideo, tmp_path: Path) -> None:
    options = ["-bf", 2, "-crf", 1]
    clip = make_video("rate.mp4", shots=[Shot(COUNTED, 1.6)], size="96x64", options=options)
    assert counted_frames(clip) == list(range(NUM_FRAMES))
    for text in ("16", "24000/1001", "10", "25"):
        fps = Fraction(text)
        row = {"num_frames": NUM_FRAMES, "duration_s": 1.6, "fps": 25.0, "width": 96, "height": 64}
        found = fit(row, "", Demands(fps=fps))
        assert isinstance(found, Fit) and found.num_frames == math.ceil(Fraction("1.6") * fps)
        media = made(clip.read_bytes(), found, Demands(fps=fps), TMP)
        frames = frames_of(media, tmp_path)
        times = [k / fps for k in range(found.num_frames)]
        assert [f.time_s for f in frames] == pytest.approx([float(t) for t in times], abs=1e-4)
        shown = [math.floor(time * 25) for time in times]
        assert counted_frames(tmp_path / "made.mp4") == shown
        assert media.made == (COPIED if text == "25" else ENCODED)


def test_times_that_vary_become_a_constant_rate(make_video: MakeVideo, tmp_path: Path) -> None:
    """Frames at 0, 1/25, then every fifth is held for three steps more."""
    filters = "setpts='(N+3*floor(N/5))/25/TB'"
    clip = make_video(
        "vary.mp4", shots=[Shot(COUNTED, 1.2)], size="96x64", options=["-crf", 1], filters=filters
    )
    starts = [Fraction(n + 3 * (n // 5), 25) for n in range(30)]
    frames = read_frames(clip)
    assert [f.time_s for f in frames] == pytest.approx([float(s) for s in starts], abs=1e-3)
    media = made(clip.read_bytes(), Fit(20, 96, 64), Demands(fps=Fraction(12)), TMP)
    frames_of(media, tmp_path)
    shown = [max(n for n, s in enumerate(starts) if s <= Fraction(k, 12)) for k in range(20)]
    assert counted_frames(tmp_path / "made.mp4") == shown


def test_the_middle_of_the_picture_is_kept(make_video: MakeVideo, tmp_path: Path) -> None:
    clip = make_video("crop.mp4", shots=[Shot("test", 0.4)], size="150x100", options=["-crf", 1])
    media = made(clip.read_bytes(), Fit(9, 128, 96), Demands(multiple_of=32), TMP)
    assert (media.width, media.height, media.made) == (128, 96, ENCODED)
    path = tmp_path / "made.mp4"
    path.write_bytes(media.data)
    found, whole = read_frames(path, "rgb24"), read_frames(clip, "rgb24")
    assert len(found) == 9
    for a, b in zip(found, whole, strict=False):
        middle = b.picture[2:98, 10:138].astype(int)  # to an even pixel
        assert a.picture.shape == (96, 128, 3) and np.abs(a.picture - middle).mean() < 6


def test_a_clip_that_is_broken_is_told(make_video: MakeVideo) -> None:
    data = make_video("crop.mp4", shots=[Shot("test", 0.4)], size="150x100", options=["-crf", 1])
    with pytest.raises(MediaError, match="its row says more"):
        made(data.read_bytes(), Fit(11, 150, 100), Demands(), TMP)
    with pytest.raises(MediaError, match="not an mp4"):
        made(b"no mp4", Fit(1, 150, 100), Demands(), TMP)


@given(
    count=st.integers(1, 400),
    step=st.integers(1, 16),
    rest=st.integers(0, 3),
    low=st.none() | st.integers(1, 100),
    high=st.none() | st.integers(1, 300),
)
def test_counts_are_the_largest_that_are_allowed(
    count: int, step: int, rest: int, low: int | None, high: int | None
) -> None:
    demands = Demands(frames=(step, rest), min_frames=low, max_frames=high)
    allowed = [
        n
        for n in range(1, count + 1)
        if (n - rest) % step == 0 and n >= step + rest and (low or 1) <= n <= (high or n)
    ]
    assert largest_count(count, demands) == max(allowed, default=None)


@given(text=st.text())
def test_a_caption_is_one_line_of_text(text: str) -> None:
    caption = caption_of({"caption": text}, "caption")
    assert len(caption.splitlines()) <= 1 and caption == caption.strip()
    assert caption.encode().decode() == caption
    assert json.loads(json.dumps(caption)) == caption


def test_why_clips_are_left_out() -> None:
    row = {"num_frames": 100, "duration_s": 4.0, "fps": 25.0, "width": 640, "height": 360}
    asked: list[tuple[Demands, Any]] = [
        (Demands(), Fit(100, 640, 360)),
        (Demands(frames=(8, 1), multiple_of=32), Fit(97, 640, 352)),
        (Demands(fps=Fraction(16), frames=(4, 1)), Fit(61, 640, 360)),
        (Demands(captioned_only=True), "without a caption"),
        (Demands(fps=Fraction(30)), "slower than --fps"),
        (Demands(fps=Fraction(30000, 1001), min_frames=2), "slower than --fps"),
        (Demands(min_frames=101), "too few frames"),
        (Demands(frames=(4, 1), min_frames=98), "too few frames"),
        (Demands(multiple_of=512), "smaller than --multiple-of"),
    ]
    for demands, wanted in asked:
        assert fit(row, "", demands) == wanted
    near = row | {"fps": 24000 / 1001, "duration_s": 100 * 1001 / 24000}
    assert fit(near, "", Demands(fps=Fraction(24))) == Fit(101, 640, 360)


def test_what_was_done_is_counted(make_video: MakeVideo, tmp_path: Path) -> None:
    dataset = write_dataset(str(tmp_path / "mine"), make_video)
    options = ["--frames", "4k+1", "--multiple-of", "16", "--fps", "12.5", "--min-frames", "6"]
    counts = export(dataset, "folder", tmp_path / "out", *options)
    # plain: 15 -> 13; bees: 20 -> 17; Bees, HEVC: 5; a/b.c is of 10 a second.
    assert counts["dropped"] == {"slower than --fps": 1, "too few frames": 2}
    assert (counts["exported"], counts["trimmed"], counts["frames"]) == (2, 2, 30)
    assert counts["made"] == {"encoded": 2}
    for path in (tmp_path / "out").glob("*.mp4"):
        with av.open(str(path)) as container:
            codec = container.streams.video[0].codec_context
            assert codec.width % 16 == codec.height % 16 == 0
            assert container.streams.video[0].average_rate == Fraction("12.5")
        assert len(read_frames(path)) in (13, 17)
