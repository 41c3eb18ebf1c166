"""The motion scores on labelled clips: are the kinds of motion told apart?

    python benchmarks/filter_motions.py --media DIR --json

Each shot of the real videos in DIR gives a clip of itself and, made from its frames, a still, a
zoom over a still, slideshows, an object before a still scene, a panning and a shaking camera over
one, and itself with flicker. All are encoded, decoded, and scored as curation does. The split is by
source and fixed: thresholds are tuned on Big Buck Bunny (TUNE) and reported on everything else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from curation.decode.scenes import CutFinder, analysis_size, build_detector
from curation.media.frames import decode
from curation.media.pictures import small_bgr
from curation.media.probes import probe
from curation.scores.motions import MotionTrack

ROOT = Path(__file__).parents[1]
TUNE = ("big_buck_bunny", "meadow")
# They hardly move, or are full of fades and captions: they give stills, and no footage.
STILLS_ONLY = ("big_buck_bunny_credits", "big_buck_bunny_trailer", "screencast", "thanks_card")
SKIPPED = ("meadow_logo",)  # its clean twin is there
SIZE = (640, 360)
LENGTH_S = 3.0
SHOTS = 8  # per source at most, spread evenly

# What a kind may be told as. An optical zoom over a still and a camera that turns over a still
# scene are one thing to any eye; footage may be taken with a still or a moving camera.
KINDS = {
    "still": ("still",),
    "zoom over a still": ("steady camera",),
    "pan over a still scene": ("steady camera",),
    "shake over a still scene": ("unsteady camera",),
    "slideshow, cuts": ("slideshow",),
    "slideshow, dissolves": ("slideshow",),
    "object, still camera": ("moving scene",),
    "footage": ("moving scene",),
    "footage with shake": ("moving scene",),
    "footage with flicker": ("flicker",),
}
# Tuned on the TUNE half.
SLIDESHOW, FLICKER, ZOOM, MOTION, CAMERA = 0.5, 2.5, 0.5, 0.008, 0.006


def told(scores: dict[str, float | None]) -> str:
    """The kind that simple thresholds make of a clip's scores."""
    motion, camera, zoom, slides, flicker = (scores[n] for n in scores)
    if motion is None or camera is None or zoom is None or slides is None or flicker is None:
        return "too short"
    if slides >= SLIDESHOW:
        return "slideshow"
    if flicker >= FLICKER:
        return "flicker"
    if zoom >= ZOOM:
        return "steady camera"
    if motion >= MOTION:
        return "moving scene"
    return "still" if camera < CAMERA else "unsteady camera"


# -- sources


@dataclass
class Shot:
    """One shot of a real video: BGR frames at most 1280 wide, and their rate."""

    name: str
    half: str
    fps: float
    frames: list[np.ndarray]

    @property
    def middle(self) -> np.ndarray:
        return self.frames[len(self.frames) // 2]


def shots_of(path: Path) -> Iterator[Shot]:
    """Up to SHOTS shots of a video, LENGTH_S long where they can be, spread evenly."""
    about = probe(path)
    size = analysis_size(about.width, about.height)
    finder = CutFinder(build_detector("adaptive", None, 0.2), about.fps)
    scenes = []
    for timeline, frame in decode(path, num_threads=2):
        scenes += finder.add(timeline, small_bgr(frame, size))
    scenes += finder.finish(timeline)
    num = round(LENGTH_S * about.fps)
    spans = [
        (at, min(last, at + num)) for first, last in scenes for at in range(first, last, 2 * num)
    ]
    whole = [s for s in spans if s[1] - s[0] >= num] or [max(spans, key=lambda s: s[1] - s[0])]
    picked = [whole[i * len(whole) // SHOTS] for i in range(SHOTS)]
    half = "tune" if path.stem.startswith(TUNE) else "held out"
    kept: dict[tuple[int, int], list[np.ndarray]] = {span: [] for span in dict.fromkeys(picked)}
    for index, (_, frame) in enumerate(decode(path, num_threads=2)):
        for (first, last), frames in kept.items():
            if first <= index < last:
                frames.append(frame.to_ndarray(format="bgr24"))
    for (first, _), frames in kept.items():
        yield Shot(f"{path.stem}@{first / about.fps:.1f}s", half, about.fps, frames)


# -- clips made from a shot: BGR frames of SIZE


Maker = Callable[[Shot, np.random.Generator], list[np.ndarray]]


def num_frames(shot: Shot) -> int:
    return max(len(shot.frames), round(LENGTH_S * shot.fps))


def fitted(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA)


def view(picture: np.ndarray, x: float, y: float, scale: float) -> np.ndarray:
    """A picture seen through a frame that is shifted (shares of the width) and scaled."""
    width, height = SIZE
    fit = width / picture.shape[1] * scale
    step = np.array(
        [
            [fit, 0, width / 2 - fit * picture.shape[1] / 2 - x * width],
            [0, fit, height / 2 - fit * picture.shape[0] / 2 - y * width],
        ]
    )
    flags = cv2.INTER_AREA if fit < 0.7 else cv2.INTER_LINEAR
    return cv2.warpAffine(picture, step, SIZE, flags=flags, borderMode=cv2.BORDER_REFLECT)


def still(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    return [fitted(shot.middle)] * num_frames(shot)


def zoomed(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    """3% to 25% in or out, with a shift of the frame by up to 5% of the width."""
    much, count = rng.uniform(0.03, 0.25), num_frames(shot)
    x, y = rng.uniform(-0.05, 0.05, 2) / 2
    ramp = np.linspace(0, 1, count)
    if rng.random() < 0.5:
        ramp = 1 - ramp
    return [view(shot.middle, x * t, y * t, 1.1 + much * t) for t in ramp]


def panned(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    """A camera 60 degrees wide turns before a still scene, 2% to 10% of the width a second."""
    speed = rng.uniform(0.02, 0.1) * rng.choice([-1, 1])
    focal = SIZE[0] / 2 / np.tan(np.radians(30))
    base = cv2.resize(shot.middle, (SIZE[0] * 3 // 2, SIZE[1] * 3 // 2))
    camera = np.array([[focal, 0, SIZE[0] / 2], [0, focal, SIZE[1] / 2], [0, 0, 1]])
    scene = np.array([[focal, 0, base.shape[1] / 2], [0, focal, base.shape[0] / 2], [0, 0, 1]])
    out = []
    for i in range(num_frames(shot)):
        angle = speed * (i / shot.fps - LENGTH_S / 2) * SIZE[0] / focal
        turn = cv2.Rodrigues(np.array([0.0, angle, 0.0]))[0]
        step = camera @ turn @ np.linalg.inv(scene)
        out.append(cv2.warpPerspective(base, step, SIZE, borderMode=cv2.BORDER_REFLECT))
    return out


def hand(shot: Shot, rng: np.random.Generator, count: int) -> np.ndarray:
    """A hand's path [count, 2]: noise below 6 Hz, 0.5% to 1.5% of the width."""
    noise = np.fft.rfft(rng.normal(size=(count, 2)), axis=0)
    hertz = np.fft.rfftfreq(count, 1 / shot.fps)[:, None]
    path = np.fft.irfft(noise * (hertz > 0.5) * (hertz < 6) / (1 + hertz), count, axis=0)
    return path / path.std() * rng.uniform(0.005, 0.015)


def shaken(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    path = hand(shot, rng, num_frames(shot))
    return [view(shot.middle, x, y, 1.1) for x, y in path]


def shaken_footage(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    path = hand(shot, rng, len(shot.frames))
    return [view(f, x, y, 1.1) for f, (x, y) in zip(shot.frames, path, strict=True)]


def slides(shot: Shot, rng: np.random.Generator, dissolve_s: float) -> list[np.ndarray]:
    """Three parts of a frame, at random mirrored, each shown for about a second."""
    pictures = []
    for i in range(3):
        picture = shot.frames[i * (len(shot.frames) - 1) // 2]
        x, y = (-0.2, 0.2, 0.0)[i], rng.uniform(-0.1, 0.1)
        part = view(picture, x, y, rng.uniform(1.5, 1.8))
        pictures.append(part[:, ::-1] if rng.random() < 0.5 else part)
    count = num_frames(shot)
    out = []
    for i in range(count):
        at = min(i / count * 3, 2.999)
        slide, passed_s = int(at), (at - int(at)) * count / 3 / shot.fps
        share = 1.0 if slide == 0 or passed_s >= dissolve_s else passed_s / dissolve_s
        last = pictures[max(slide - 1, 0)]
        out.append(cv2.addWeighted(pictures[slide], share, last, 1 - share, 0))
    return out


def slides_cut(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    return slides(shot, rng, 1e-9)


def slides_dissolved(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    return slides(shot, rng, rng.uniform(0.3, 0.7))


def with_object(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    """A disc cut from the frame, 15% to 30% of the width, crosses it at 5% to 40% a second."""
    back = fitted(shot.middle)
    radius = int(rng.uniform(0.075, 0.15) * SIZE[0])
    disc = view(shot.frames[0], rng.uniform(-0.2, 0.2), 0.05, 1.4)[:, ::-1]
    disc = disc[180 - radius : 180 + radius, 320 - radius : 320 + radius]
    mask = np.zeros((2 * radius, 2 * radius, 1), np.float32)
    cv2.circle(mask, (radius, radius), radius - 3, 1.0, -1, cv2.LINE_AA)
    speed = rng.uniform(0.05, 0.4) * SIZE[0] / shot.fps
    travel = SIZE[0] - 2 * radius - 2
    top = int(rng.integers(0, SIZE[1] - 2 * radius))
    out = []
    for i in range(num_frames(shot)):
        x = abs((i * speed + 50) % (2 * travel) - travel)
        left = int(x)
        step = np.array([[1, 0, x - left], [0, 1, 0]])
        size = (2 * radius, 2 * radius)
        moved, alpha = cv2.warpAffine(disc, step, size), cv2.warpAffine(mask, step, size)
        frame = back.copy()
        place = frame[top : top + 2 * radius, left : left + 2 * radius]
        place[:] = place * (1 - alpha[..., None]) + moved * alpha[..., None]
        out.append(frame)
    return out


def footage(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    return [fitted(frame) for frame in shot.frames]


def flickering(shot: Shot, rng: np.random.Generator) -> list[np.ndarray]:
    """Brightness that swings by 4% to 15% at 4 to 10 Hz."""
    much, hertz = rng.uniform(0.04, 0.15), rng.uniform(4, 10)
    gains = 1 + much * np.sin(2 * np.pi * hertz * np.arange(len(shot.frames)) / shot.fps)
    return [
        cv2.convertScaleAbs(fitted(frame), alpha=0.85 * gain)
        for frame, gain in zip(shot.frames, gains, strict=True)
    ]


MAKERS: dict[str, Maker] = {
    "still": still,
    "zoom over a still": zoomed,
    "pan over a still scene": panned,
    "shake over a still scene": shaken,
    "slideshow, cuts": slides_cut,
    "slideshow, dissolves": slides_dissolved,
    "object, still camera": with_object,
    "footage": footage,
    "footage with shake": shaken_footage,
    "footage with flicker": flickering,
}


# -- scoring


def encode(frames: list[np.ndarray], fps: float, path: Path) -> None:
    """H.264 at crf 23: stills flicker with their keyframes as real ones do."""
    with av.open(str(path), "w") as out:
        options = {"crf": "23", "preset": "veryfast", "threads": "1"}
        stream = out.add_stream("libx264", Fraction(fps).limit_denominator(1001), options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for picture in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        out.mux(stream.encode())


def scores_of(path: Path) -> dict[str, float | None]:
    """The motion scores of a whole file."""
    track = MotionTrack()
    for timeline, frame in decode(path, num_threads=1):
        small = small_bgr(frame, analysis_size(frame.width, frame.height))
        gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        track.add(timeline.time_s(timeline.num_frames - 1), frame, small, gray)
    return track.between(0.0, timeline.duration_s)


def run(media: list[Path], seed: int) -> list[dict[str, Any]]:
    """One row per clip: source, half, kind, its scores, what it was told as and whether right."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        for path in sorted(media):
            if path.stem.startswith(SKIPPED):
                continue
            for shot in shots_of(path):
                for kind, make in MAKERS.items():
                    if kind.startswith("footage") and path.stem.startswith(STILLS_ONLY):
                        continue
                    rng = np.random.default_rng([seed, zlib.crc32(f"{shot.name} {kind}".encode())])
                    encode(make(shot, rng), shot.fps, clip)
                    scores = scores_of(clip)
                    as_kind = told(scores)
                    rows.append(
                        {
                            "source": shot.name,
                            "half": shot.half,
                            "kind": kind,
                            "told": as_kind,
                            "right": as_kind in KINDS[kind],
                            **scores,
                        }
                    )
    return rows


def table(rows: list[dict[str, Any]], half: str) -> str:
    """Kinds against what they were told as, in Markdown."""
    here = [row for row in rows if row["half"] == half]
    names = ["still", "steady camera", "unsteady camera", "slideshow", "flicker", "moving scene"]
    lines = [f"| {half} | " + " | ".join(names) + " | right |", "|---" * (len(names) + 2) + "|"]
    for kind in KINDS:
        counts = Counter(row["told"] for row in here if row["kind"] == kind)
        right = sum(row["right"] for row in here if row["kind"] == kind)
        cells = " | ".join(str(counts[name] or "") for name in names)
        lines.append(f"| {kind} | {cells} | {right}/{sum(counts.values())} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--media", type=Path, default=ROOT / "examples/media", help="a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    rows = run([p for p in given.media.iterdir() if p.suffix in (".mp4", ".mpg")], given.seed)
    for half in ("tune", "held out"):
        print(table(rows, half) + "\n")
    for row in rows:
        if not row["right"]:
            scores = {name: row[name] for name in list(row)[5:]}
            shown = " ".join(f"{n} {v:.4f}" for n, v in scores.items() if v is not None)
            print(f"{row['half']}: {row['source']}, {row['kind']}, told {row['told']}: {shown}")
    if given.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
