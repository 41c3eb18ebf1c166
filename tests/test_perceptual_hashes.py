"""What a clip looks like: the same for copies, another for other shots, nothing for flat ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import MakeVideo, Shot, ffmpeg

from curation.decode import perceptual_hashes
from curation.decode.analyses import analyse
from curation.decode.perceptual_hashes import NUM_BYTES, PerceptualHashes
from curation.media.probes import Turn, probe
from curation.pipelines import Pipeline
from curation.sources import Source, Span
from curation.subsets.near_copies import distances

ROOT = Path(__file__).parents[1]
WHOLE = (0.0, 0.0, 1.0, 1.0)
UPRIGHT = Turn()
RNG = np.random.default_rng(5)


def moving(number: int, seed: int, size: tuple[int, int] = (160, 96)) -> list[np.ndarray]:
    """Frames of a smooth random picture that drifts over a smooth random background."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (2, 7, 9)).astype(np.uint8)
    back, front = (cv2.resize(each, size, interpolation=cv2.INTER_CUBIC) for each in coarse)
    shifted = [np.roll(front, 3 * i, axis=1).astype(np.float32) for i in range(number)]
    return [(0.5 * back + 0.5 * each).clip(0, 255).astype(np.uint8) for each in shifted]


def hash_of(
    frames: list[np.ndarray], fps: float = 25, box: tuple[float, ...] = WHOLE, turn: Turn = UPRIGHT
) -> np.ndarray:
    hashes = PerceptualHashes(turn)
    for number, frame in enumerate(frames):
        hashes.add(number / fps, frame)
    x0, y0, x1, y1 = box
    found = hashes.of_clip(0.0, len(frames) / fps, (x0, y0, x1, y1))
    assert len(found) == NUM_BYTES
    return np.frombuffer(found, "<u8")


def apart(first: np.ndarray, second: np.ndarray) -> float:
    return float(distances(first[None], second[None])[0])


def test_speed_and_frame_rate_change_nothing() -> None:
    frames = moving(48, seed=1)
    found = hash_of(frames)
    assert (found != 0).all()
    assert apart(hash_of(frames, fps=15), found) < 3
    assert apart(hash_of(frames, fps=50), found) < 3
    assert apart(hash_of([f for f in frames for _ in range(3)], fps=60), found) < 3


def test_another_picture_is_as_far_as_chance() -> None:
    far = [apart(hash_of(moving(48, seed=1)), hash_of(moving(48, seed=s))) for s in range(2, 12)]
    assert min(far) > 22 and 28 < np.mean(far) < 36


def test_the_same_view_with_other_motion_is_no_copy() -> None:
    frames = moving(48, seed=1)
    still = np.mean(frames, axis=0)
    other = [np.uint8(0.85 * still + 0.15 * f[::-1, ::-1]) for f in frames]
    first, second = hash_of(frames), hash_of(other)
    pictures = np.bitwise_count(first ^ second)[:8].mean()
    motions = np.bitwise_count(first ^ second)[8:].mean()
    assert pictures < 14 and motions > 24
    assert apart(first, second) > 16


def test_bars_are_left_out() -> None:
    frames = moving(48, seed=1)
    boxed = [cv2.copyMakeBorder(f, 20, 12, 0, 0, cv2.BORDER_CONSTANT, value=0) for f in frames]
    found = hash_of(frames)
    assert apart(hash_of(boxed, box=(0, 20 / 128, 1, 116 / 128)), found) < 5
    assert apart(hash_of(boxed), found) > 8
    sides = [cv2.copyMakeBorder(f, 0, 0, 8, 32, cv2.BORDER_CONSTANT, value=0) for f in frames]
    assert apart(hash_of(sides, box=(8 / 200, 0, 168 / 200, 1)), found) < 5


@pytest.mark.parametrize("turn", [Turn(90), Turn(180), Turn(270), Turn(180, True)])
def test_it_is_of_the_picture_as_it_is_shown(turn: Turn) -> None:
    frames = moving(16, seed=3, size=(96, 96))
    stored = [np.rot90(f, -turn.degrees // 90) for f in frames]
    if turn.is_mirrored:
        stored = [f[:, ::-1] for f in stored]
    found = hash_of([np.ascontiguousarray(f) for f in stored], turn=turn)
    assert apart(found, hash_of(frames)) < 1.5
    assert apart(hash_of(stored), hash_of(frames)) > 16


@pytest.mark.parametrize("level", [0, 16, 128, 255])
def test_flat_pictures_tell_nothing(level: int) -> None:
    flat = [np.full((96, 160), level, np.uint8)] * 20
    noisy = [(f + RNG.integers(-1, 2, f.shape)).clip(0, 255).astype(np.uint8) for f in flat]
    for frames in (flat, noisy):
        found = hash_of(frames)
        assert not found.any()
        assert apart(found, found) == np.inf


def test_a_still_picture_tells_of_itself_alone() -> None:
    found = hash_of(moving(1, seed=4) * 20)
    assert (found[:8] != 0).all() and not found[8:].any()
    assert apart(found, found) == 0.0
    assert apart(found, hash_of(moving(1, seed=5))) > 22


def test_a_long_video_keeps_fewer_thumbnails(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = moving(64, seed=1)
    found = hash_of(frames)
    monkeypatch.setattr(perceptual_hashes, "MAX_THUMBNAILS", 30)
    hashes = PerceptualHashes(Turn())
    for number, frame in enumerate(frames):
        hashes.add(number / 25, frame)
    assert hashes.times_s == pytest.approx([4 * i / 25 for i in range(16)])  # not 2 * i
    assert apart(np.frombuffer(hashes.of_clip(0.0, 64 / 25, WHOLE), "<u8"), found) < 8


def hashes_of(path: Path, *spans: Span) -> tuple[np.ndarray, list[Span]]:
    """The hashes uint64 [N, 16] of a video's shots, or of given ones, and when those are."""
    source = Source(url=str(path), path=str(path), spans=spans)
    found = analyse(source, probe(path), Pipeline(), lambda _: None)
    times = [Span(*(found.timeline.time_s(i) for i in span)) for span in found.spans]
    told = [found.overview.perceptual_hash(each.start_s, each.end_s) for each in times]
    return np.stack([np.frombuffer(one or b"", "<u8") for one in told]), times


def test_two_encodes_of_real_shots_are_near_and_different_shots_are_not(tmp_path: Path) -> None:
    """A film's shots of one scene; the copy is small, poor, cropped, letterboxed and has a logo."""
    source, copy = ROOT / "examples/media/meadow.mp4", tmp_path / "copy.mp4"
    changes = "crop=iw*0.97:ih*0.97,drawbox=x=iw*0.84:y=ih*0.05:w=iw*0.1:h=ih*0.1:c=white:t=fill,"
    changes += "scale=512:288,pad=512:384:0:48"
    ffmpeg("-i", source, "-an", "-vf", changes, "-preset", "ultrafast", "-crf", 35, copy)
    first, shots = hashes_of(source)
    second, _ = hashes_of(copy, *shots)
    assert len(first) == len(second) >= 5
    far = np.array([[apart(a, b) for b in second] for a in first])
    assert np.diag(far).max() < 12
    others = far[~np.eye(len(far), dtype=bool)]
    assert others.min() > 20


def test_black_shots_of_a_video_are_no_copies(make_video: MakeVideo) -> None:
    black = "color=black:s={size}:r={fps}"
    shots = [Shot(black, 1.0), Shot("test", 1.0), Shot("color=navy:s={size}:r={fps}", 1.0)]
    found, _ = hashes_of(make_video("flats.mp4", shots=shots))
    told = (found != 0).any(axis=1)
    assert told.sum() == 1
