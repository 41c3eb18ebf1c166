"""Overlays burnt into real footage: the labelled corpus of watermarks and text, and what is found.

Windows of clean footage get logos, tiled marks and subtitles of many sizes, opacities and places
burnt in by ffmpeg; beside them stand their clean twins and what only looks like an overlay. Each
case becomes an mp4 that goes through the decode that curation uses.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from curation.analyses import Analysis, analyse
from curation.frames import probe
from curation.samples import bgr_from_jpeg
from curation.pipelines import Pipeline, Scorers
from curation.sources import Source
from curation.texts import TextDetector, text_score

WIDTH, HEIGHT = 1280, 720
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


# -- pictures


def font(size_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


WORDS = ("STOCKVIDEO", "Channel 7", "@travel.clips", "NEWS24", "FilmArchive.org", "sample")


def logo(rng: np.random.Generator, width_px: int) -> np.ndarray:
    """A wordmark, an emblem or both, about `width_px` wide: uint8 RGBA, opaque where drawn."""
    word = WORDS[rng.integers(len(WORDS))]
    style = ("word", "outlined", "emblem", "both", "plate")[rng.integers(5)]
    ink = ((255, 255, 255), (255, 255, 255), (235, 200, 40), (200, 200, 200))[rng.integers(4)]
    big = Image.new("RGBA", (1600, 500))  # drawn large, then shrunk: smooth edges
    draw = ImageDraw.Draw(big)
    letters = font(150)
    if style == "plate":
        left, top, right, bottom = draw.textbbox((60, 60), word, font=letters)
        draw.rectangle((left - 40, top - 30, right + 40, bottom + 30), fill=(190, 30, 40, 255))
        draw.text((60, 60), word, font=letters, fill=(255, 255, 255, 255))
    elif style in ("word", "outlined"):
        edge = 8 if style == "outlined" else 0
        draw.text((60, 60), word, font=letters, fill=ink, stroke_width=edge, stroke_fill=(0, 0, 0))
    else:
        angles = np.linspace(0, 2 * np.pi, 11)[:-1]
        radii = np.where(np.arange(10) % 2, 55, 115)
        star = [
            (200 + r * np.sin(a), 200 - r * np.cos(a)) for a, r in zip(angles, radii, strict=True)
        ]
        draw.ellipse((50, 50, 350, 350), outline=ink, width=26)
        draw.polygon(star, fill=ink)
        if style == "both":
            draw.text((390, 110), word, font=letters, fill=ink)
    drawn = big.crop(big.getbbox())
    if style == "emblem":
        width_px = max(width_px // 2, 40)
    size = (width_px, max(round(drawn.height * width_px / drawn.width), 8))
    return np.asarray(drawn.resize(size, Image.Resampling.LANCZOS))


def faint(picture: np.ndarray, alpha: float) -> np.ndarray:
    out = picture.copy()
    out[..., 3] = np.round(out[..., 3] * alpha)
    return out


CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))


def placed(mark: np.ndarray, corner: tuple[int, int], margin: float) -> np.ndarray:
    """A canvas of the whole picture with a mark in a corner, `margin` of the sides away."""
    height, width = mark.shape[:2]
    gap_x, gap_y = round(margin * WIDTH), round(margin * HEIGHT)
    x = WIDTH - gap_x - width if corner[0] else gap_x
    y = HEIGHT - gap_y - height if corner[1] else gap_y
    canvas = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    canvas[y : y + height, x : x + width] = mark
    return canvas


def tiled(rng: np.random.Generator, alpha: float) -> np.ndarray:
    """A word over and over the whole picture, slanted."""
    canvas = Image.new("RGBA", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(canvas)
    word = WORDS[rng.integers(len(WORDS))]
    letters = font(float(rng.integers(28, 49)))
    step_x = draw.textlength(word, font=letters) * rng.uniform(1.3, 2.0)
    step_y = rng.uniform(90, 170)
    for row in range(-1, int(HEIGHT * 2 / step_y)):
        for column in range(-1, int(WIDTH / step_x) + 2):
            at = (column * step_x + row % 2 * step_x / 2, row * step_y - HEIGHT / 2)
            draw.text(at, word, font=letters, fill=(255, 255, 255, 255))
    turned = canvas.rotate(float(rng.uniform(15, 35)), resample=Image.Resampling.BICUBIC)
    turned = turned.resize(
        (WIDTH, HEIGHT), box=(WIDTH * 0.15, HEIGHT * 0.15, WIDTH * 0.85, HEIGHT * 0.85)
    )
    return faint(np.asarray(turned), alpha)


LINES = (
    "I thought you would never come back.",
    "The rabbit sleeps until noon.",
    "Wait for me, the river is too wide",
    "- Who is there? - Nobody.",
    "They left the valley long ago,\nbefore the first snow fell.",
    "Quelle belle journée aujourd'hui",
)


def subtitle(line: str, size_px: int, ink: tuple[int, int, int]) -> np.ndarray:
    canvas = Image.new("RGBA", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(canvas)
    at = (WIDTH / 2, HEIGHT * 0.93)
    draw.multiline_text(
        at, line, font=font(size_px), fill=ink, anchor="md", align="center",
        stroke_width=max(size_px // 14, 1), stroke_fill=(0, 0, 0),
    )  # fmt: skip
    return np.asarray(canvas)


# -- the corpus


def find(name: str, media: list[Path]) -> Path | None:
    return next((folder / name for folder in media if (folder / name).is_file()), None)


def stretches(half: str, media: list[Path]) -> list[Window]:
    """The clean footage of a half that is there; the repository's samples where there is none."""
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
    rng = np.random.default_rng([seed, half == "report"])
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
    for name, start_s, end_s in TITLED[half]:
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
    subprocess.run([*command, "-threads", "2", str(path)], check=True)
    for picture in pictures:
        picture.unlink()


# -- what is found

MAX_WATERMARK = 0.5  # rules.watermark.max of pipelines.yaml
MAX_TEXT = 0.005  # share of the picture: a line of 13 letters of 30 px in 720. Ours, not tuned
LOOKED_AT = 2  # the longest clips of a video are enough to tell whether text is found


def look(case: Case, path: Path) -> dict[str, Any]:
    """Take a case through the one decode; returns what it is and what was found."""
    if not path.exists():
        unfinished = path.with_name(f"unfinished_{path.name}")
        make(case, unfinished)
        unfinished.rename(path)
    pipeline = Pipeline(scorers=Scorers(text="rapidocr", watermark_unsure="drop"))
    source = Source(url=str(path), path=str(path))
    found = analyse(source, probe(path), pipeline, lambda at_s: None)
    truth = case.overlays[0].box if case.watermark else None
    row = {
        "kind": case.kind, "name": case.name, "duration_s": case.duration_s,
        "is_watermark": case.watermark, "is_text": case.text, "text": None,
        "watermark": found.watermark.score, "box": found.watermark.box, "truth": truth,
        "path": str(path),
    }  # fmt: skip
    if case.text is not None:
        row["text"] = max(text_of_clips(found), default=None)
    return row


def text_of_clips(found: Analysis) -> Iterator[float]:
    detector = TextDetector()
    times = [(found.timeline.time_s(a), found.timeline.time_s(b)) for a, b in found.spans]
    for start_s, end_s in sorted(times, key=lambda t: t[0] - t[1])[:LOOKED_AT]:
        looks = found.overlay_frames.of_clip(start_s, end_s)
        yield text_score(detector([bgr_from_jpeg(jpeg) for _, jpeg in looks]))[0]


def run(
    media: list[Path], seed: int, half: str, per_kind: int, jobs: int, folder: Path
) -> list[dict[str, Any]]:
    """Make and look at every case of a half; what `folder` already holds is not made again."""
    cases = list(corpus(half, media, seed, per_kind))
    paths = [folder / f"{half}_{i:03}.mp4" for i in range(len(cases))]
    with ProcessPoolExecutor(jobs) as pool:
        rows = list(pool.map(look, cases, paths))
    (folder / f"{half}.json").write_text(json.dumps(rows))
    return rows


def tables(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Recall and precision of watermark and text, by kind.

    Precision is that of a collection with as many marked as clean videos: recall / (recall + false
    rate), the false rate over every negative of the corpus.
    """
    return {name: table(rows, name, bound) for name, bound in BOUNDS.items()}


BOUNDS = {"watermark": MAX_WATERMARK, "text": MAX_TEXT}


def table(rows: list[dict[str, Any]], name: str, bound: float) -> list[dict[str, Any]]:
    judged = [row for row in rows if row[f"is_{name}"] is not None]
    negatives = [row for row in judged if not row[f"is_{name}"]]
    false_rate = sum(over(row, name, bound) for row in negatives) / max(len(negatives), 1)
    out = []
    for kind in dict.fromkeys(row["kind"] for row in judged):
        ours = [row for row in judged if row["kind"] == kind]
        hits = [over(row, name, bound) for row in ours]
        line: dict[str, Any] = {"kind": kind, "videos": len(ours), "over": sum(hits)}
        if name == "watermark":
            line["unsure"] = sum(row["watermark"] is None for row in ours)
            long = [row for row in ours if row["duration_s"] >= 15]
            line |= {"over, 15 s up": sum(over(r, name, bound) for r in long), "15 s up": len(long)}
        if ours[0][f"is_{name}"]:
            recall = sum(hits) / len(ours)
            line |= {"recall": recall, "precision": recall / max(recall + false_rate, 1e-9)}
        out.append(line)
    return out


def over(row: dict[str, Any], name: str, bound: float) -> bool:
    """Whether a rule would drop the video for what was found; no score is nothing found."""
    return row[name] is not None and row[name] > bound


def failures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every case that a rule would judge wrongly."""
    wrong = []
    for name, bound in BOUNDS.items():
        for row in rows:
            if row[f"is_{name}"] is not None and over(row, name, bound) != row[f"is_{name}"]:
                wrong.append({"score": name} | {k: row[k] for k in ("kind", "name", name, "box")})
    return wrong
