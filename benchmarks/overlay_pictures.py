"""Pictures to lay over a video: logos, tiled marks, subtitles; uint8 RGBA."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1280, 720  # px of every video made


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
