"""Overlays burnt into real footage: the labelled corpus of watermarks and text.

Windows of clean footage get logos, tiled marks and subtitles of many sizes, opacities and places
burnt in by ffmpeg; beside them stand their clean twins and what only looks like an overlay.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from overlay_pictures import CORNERS, HEIGHT, LINES, WIDTH, faint, logo, placed, subtitle, tiled
from PIL import Image

from curation.media.probes import probe

Box = tuple[float, float, float, float]  # x0, y0, x1, y1, fractions of the picture

# Stretches without burnt-in text, seconds. A long film is split in two halves that are far apart;
# other videos belong to one half as a whole.
FOOTAGE = {
    "tune": [
        ("big_buck_bunny_720p.mp4", 32.0, 130.0),
        ("city_cc0_720x405.mpg", 0.0, 7.5),
        ("birds_drawn_720p.mp4", 0.0, 1.0),
    ],
    "report": [
        ("big_buck_bunny_720p.mp4", 145.0, 269.0),
        ("world_480x270.mp4", 0.0, 29.0),
        ("dog_phone_1080p.mp4", 0.0, 1.6),
    ],
}
TITLED = {  # real titles and credits: text, and no overlay that stays while scenes change
    "tune": [("big_buck_bunny_trailer_720p.mp4", 0.0, 27.0)],
    "report": [
        ("big_buck_bunny_credits_720p.mp4", 0.0, 25.0),
        ("big_buck_bunny_trailer_720p.mp4", 27.0, 54.0),
        ("thanks_card_1080p.mp4", 0.0, 7.0),
        ("screencast_720p.mp4", 0.0, 8.0),
    ],
}
STILLS = "stills.mp4"  # photographs that a camera moves over, made here
SAMPLES = {"tune": [("meadow.mp4", 10.0, 40.0)], "report": [("meadow.mp4", 40.0, 68.0)]}
LENGTHS_S = (8.0, 12.0, 20.0, 30.0)


@dataclass(frozen=True)
class Window:
    """A stretch of a video."""

    path: Path
    start_s: float
    duration_s: float


@dataclass(frozen=True)
class Overlay:
    """A transparent picture [HEIGHT, WIDTH, 4] over stretches of time, seconds; () is always."""

    picture: np.ndarray
    times_s: tuple[tuple[float, float], ...] = ()

    @property
    def box(self) -> Box:
        rows, columns = np.nonzero(self.picture[..., 3])
        x0, x1 = columns.min() / WIDTH, (columns.max() + 1) / WIDTH
        return (float(x0), float(rows.min() / HEIGHT), float(x1), float((rows.max() + 1) / HEIGHT))


@dataclass(frozen=True)
class Case:
    """A video to make: windows one after another, a filter, overlays; and what it truly is."""

    name: str
    kind: str
    windows: tuple[Window, ...]
    watermark: bool | None  # None: not judged
    text: bool | None
    overlays: tuple[Overlay, ...] = field(default=(), repr=False)
    filters: str = "null"

    @property
    def duration_s(self) -> float:
        return sum(window.duration_s for window in self.windows)


def find(name: str, media: list[Path]) -> Path | None:
    return next((folder / name for folder in media if (folder / name).is_file()), None)


def stretches(half: str, media: list[Path]) -> list[Window]:
    """The clean footage of a half that is there; the repository's samples where there is none."""
    if half == "stills":
        film = find(STILLS, media)
        assert film is not None, "film_of made it"
        duration_s = probe(film).duration_s
        assert duration_s is not None, "an mp4 says how long it is"
        return [Window(film, 0.0, duration_s)]
    for footage in (FOOTAGE, SAMPLES):
        found = [(find(n, media), start_s, end_s) for n, start_s, end_s in footage[half]]
        there = [Window(path, start_s, end_s - start_s) for path, start_s, end_s in found if path]
        if there:
            return there
    return []


def windows(half: str, media: list[Path]) -> list[Window]:
    """Windows of different lengths of the half's longest footage, overlapping."""
    base = max(stretches(half, media), key=lambda window: window.duration_s)
    out = []
    for length_s in LENGTHS_S:
        step_s = max(length_s / 2, 8.0)
        starts = np.arange(0, base.duration_s - length_s + 1e-6, step_s)
        out += [Window(base.path, base.start_s + float(s), length_s) for s in starts]
    return out


def corpus(half: str, media: list[Path], seed: int, per_kind: int) -> Iterator[Case]:
    """Every case of a half, the same for the same arguments."""
    rng = np.random.default_rng([seed, ["tune", "report", "stills"].index(half)])
    all_windows = windows(half, media)
    long = [w for w in all_windows if w.duration_s >= 20]

    def draw(pool: list[Window], count: int) -> list[Window]:
        return [pool[i] for i in rng.permutation(len(pool))[:count]]

    for window in draw(all_windows, 2 * per_kind):
        yield Case(label(window), "clean", (window,), False, False)
    for kind in MARKS:
        pool = long if kind in ("hopping", "half the time") else all_windows
        for window in draw(pool, per_kind):
            overlays = MARKS[kind](rng, window.duration_s)
            yield Case(label(window), kind, (window,), True, None, overlays)
    for window in draw(all_windows, per_kind):
        overlays = subtitles(rng, window.duration_s)
        yield Case(label(window), "subtitles", (window,), None, True, overlays)
    yield from hard_negatives(half, media, rng, draw(long, per_kind // 2))


def label(window: Window) -> str:
    return f"{window.path.stem}_{window.start_s:05.1f}_{window.duration_s:04.1f}"


def corner_mark(rng: np.random.Generator, alpha: float) -> tuple[Overlay, ...]:
    mark = faint(logo(rng, int(rng.uniform(0.06, 0.16) * WIDTH)), alpha)
    return (Overlay(placed(mark, CORNERS[rng.integers(4)], rng.uniform(0.02, 0.06))),)


def hopping_mark(rng: np.random.Generator, duration_s: float) -> tuple[Overlay, ...]:
    """A mark that goes to another corner every few seconds, between two corners or around four."""
    mark = faint(logo(rng, int(rng.uniform(0.08, 0.16) * WIDTH)), rng.uniform(0.5, 1))
    corners = CORNERS if rng.random() < 0.5 else (CORNERS[0], CORNERS[3])
    step_s, margin = rng.uniform(4, 7), rng.uniform(0.02, 0.06)
    starts = np.arange(0, duration_s, step_s)
    return tuple(
        Overlay(
            placed(mark, corner, margin),
            tuple((float(s), float(s + step_s)) for s in starts[i :: len(corners)]),
        )
        for i, corner in enumerate(corners)
        if len(starts) > i
    )


def half_time_mark(rng: np.random.Generator, duration_s: float) -> tuple[Overlay, ...]:
    """A channel bug over half of the time: the first or second half, or on and off."""
    [mark] = corner_mark(rng, rng.uniform(0.5, 1))
    middle_s = duration_s / 2
    times = (
        ((0.0, middle_s),),
        ((middle_s, duration_s),),
        tuple((float(s), float(s + 5)) for s in np.arange(0, duration_s, 10)),
    )[rng.integers(3)]
    return (Overlay(mark.picture, times),)


MARKS = {
    "logo": lambda rng, duration_s: corner_mark(rng, 1.0),
    "faint logo": lambda rng, duration_s: corner_mark(rng, rng.uniform(0.3, 0.6)),
    "tiled": lambda rng, duration_s: (Overlay(tiled(rng, rng.uniform(0.15, 0.3))),),
    "hopping": hopping_mark,
    "half the time": half_time_mark,
}


def subtitles(rng: np.random.Generator, duration_s: float) -> tuple[Overlay, ...]:
    """Lines of 2 to 4 s with gaps between, of one size and colour."""
    size_px, ink = int(rng.integers(26, 49)), ((255, 255, 255), (250, 230, 80))[rng.integers(2)]
    out, now_s = [], float(rng.uniform(0, 1.5))
    while now_s < duration_s - 1:
        end_s = min(now_s + float(rng.uniform(2, 4)), duration_s)
        line = LINES[rng.integers(len(LINES))]
        out.append(Overlay(subtitle(line, size_px, ink), ((now_s, end_s),)))
        now_s = end_s + float(rng.uniform(0.2, 1.0))
    return tuple(out)


def hard_negatives(
    half: str, media: list[Path], rng: np.random.Generator, long: list[Window]
) -> Iterator[Case]:
    """What only looks like an overlay."""
    for window in stretches(half, media):
        if window.duration_s < 60:  # other videos whole: still cameras, slow motion, phones
            yield Case(label(window), "other videos", (window,), False, False)
    for name, start_s, end_s in TITLED.get(half, []):
        if path := find(name, media):
            window = Window(path, start_s, end_s - start_s)
            yield Case(label(window), "titles and credits", (window,), False, True)
    for window in long:
        name = label(window)
        yield Case(name, "letterbox", (window,), False, False, (), LETTERBOX)
        yield Case(name, "fades, black and white frames", (window,), False, False, (), FADES)
        sign = placed(logo(rng, 200), CORNERS[rng.integers(4)], 0.05)
        yield Case(name, "still camera", (window,), False, None, (Overlay(sign),), STILL)
        a, b = (Window(window.path, window.start_s + s, 3.0) for s in (0.0, window.duration_s - 3))
        yield Case(name, "views that return", (a, b) * 3, False, False)


LETTERBOX = f"crop={WIDTH}:536,pad={WIDTH}:{HEIGHT}:0:92:black"
FADES = (
    "drawbox=c=black:t=fill:enable='lt(mod(t,6),0.7)',"
    "drawbox=c=white:t=fill:enable='between(mod(t,6),3,3.6)'"
)
# The first frame for the whole time, under noise and slow changes of light, with something that
# passes: the overlay of the case is a sign in this room.
STILL = (
    "loop=loop=-1:size=1:start=0,noise=alls=6:allf=t,eq=brightness='0.04*sin(t)':eval=frame,"
    "drawbox=x='mod(t*160,1400)-120':y=200:w=120:h=400:c=0x705030:t=fill"
)


# -- making the videos


def film_of(pictures: Path, path: Path, seed: int) -> None:
    """Make a film of 1280x720 of a folder's pictures: 3 to 6 s each, a third of them unmoving."""
    rng = np.random.default_rng(seed)
    parts, inputs = [], []
    files = sorted(p for p in pictures.iterdir() if p.suffix in (".png", ".jpg", ".jpeg"))
    for i, file in enumerate(files):
        inputs += ["-loop", "1", "-framerate", "24", "-t", f"{rng.uniform(3, 6):.2f}"]
        inputs += ["-i", str(file)]
        wide, speeds = rng.uniform(1.1, 1.5), rng.uniform(-40, 40, 2) * (rng.random() < 0.67)
        size = f"{int(WIDTH * wide)}:{int(HEIGHT * wide)}"
        x, y = (f"(in_{s}-out_{s})/2+t*{v:.1f}" for s, v in zip("wh", speeds, strict=True))
        parts.append(
            f"[{i}:v]scale={size}:force_original_aspect_ratio=increase,"
            f"crop={WIDTH}:{HEIGHT}:{x}:{y},setsar=1,format=yuv420p[v{i}]"
        )
    graph = ";".join(parts) + ";" + "".join(f"[v{i}]" for i in range(len(files)))
    graph += f"concat=n={len(files)}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-v", "error", *inputs]
    command += ["-filter_complex", graph, "-c:v", "libx264", "-preset", "veryfast", "-crf", "18"]
    subprocess.run([*command, "-threads", "1", str(path)], check=True)


def make(case: Case, path: Path) -> None:
    """Encode a case as an mp4 of 1280x720."""
    inputs: list[str] = []
    for window in case.windows:
        inputs += ["-ss", str(window.start_s), "-t", str(window.duration_s), "-i", str(window.path)]
    pictures = []
    for i, overlay in enumerate(case.overlays):
        pictures.append(path.with_suffix(f".{i}.png"))
        Image.fromarray(overlay.picture).save(pictures[-1], compress_level=1)
        inputs += ["-i", str(pictures[-1])]
    num = len(case.windows)
    shape = f"fps=24,scale={WIDTH}:{HEIGHT},setsar=1,format=yuv420p"
    graph = "".join(f"[{i}:v]{shape}[w{i}];" for i in range(num))
    graph += "".join(f"[w{i}]" for i in range(num)) + f"concat=n={num},{case.filters}[v0]"
    for i, overlay in enumerate(case.overlays):
        on = "+".join(f"between(t,{a:.3f},{b - 1e-3:.3f})" for a, b in overlay.times_s) or "1"
        graph += f";[v{i}][{num + i}:v]overlay=enable='{on}'[v{i + 1}]"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-v", "error", *inputs]
    command += ["-filter_complex", graph, "-map", f"[v{len(case.overlays)}]", "-an"]
    command += ["-t", str(case.duration_s), "-c:v", "libx264", "-preset", "ultrafast", "-crf", "21"]
    subprocess.run([*command, "-threads", "1", str(path)], check=True)
    for picture in pictures:
        picture.unlink()
