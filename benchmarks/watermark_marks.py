"""Draws marks: logos, words, emblems on plates or with shadows, and tilings of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Sheet = tuple[np.ndarray, np.ndarray]  # luma and coverage of a mark, float32 [H, W], 0..1

SYLLABLES = re.findall("..", "bacodefigohujakelimonapequirosutaviwexayozetvek")
SIDE_PX = 90  # of a sign
PER_FAMILY = 8  # fonts of one folder, so that a family of forty does not crowd out the others


@dataclass(frozen=True)
class Fonts:
    """Fonts of letters, and icon fonts, whose signs lie from U+F000 on."""

    letters: list[Path]
    icons: list[Path]

    @staticmethod
    def of(folder: Path) -> Fonts:
        """The fonts of a folder and its folders that can be opened."""
        letters: dict[Path, list[Path]] = {}
        icons = []
        for path in sorted([*folder.rglob("*.ttf"), *folder.rglob("*.otf")]):
            try:
                ImageFont.truetype(path, 40)
            except OSError:  # a broken link
                continue
            if "awesome" in path.name.lower():
                icons.append(path)
            else:
                letters.setdefault(path.parent, []).append(path)
        return Fonts([p for family in letters.values() for p in family[:PER_FAMILY]], icons)


def word(rng: np.random.Generator) -> str:
    """Something a channel, a site or a person may be called."""
    name = "".join(rng.choice(SYLLABLES, rng.integers(1, 5)))
    name = (name, name.upper(), name.title(), name.title())[rng.integers(4)]
    tail = ("", "", "", "", "", ".com", ".tv", " TV", " 24", "HD", " " + name.title())[
        rng.integers(11)
    ]
    return ("@" if rng.random() < 0.1 else "") + name + tail


def glyphs(text: str, font: ImageFont.FreeTypeFont, width: int = 0) -> np.ndarray:
    """The coverage of a line of text, uint8 [H, W]; [0, 0] for what the font does not have."""
    left, top, right, bottom = font.getbbox(text, stroke_width=width)
    image = Image.new("L", (max(int(right - left), 1), max(int(bottom - top), 1)))
    ImageDraw.Draw(image).text((-left, -top), text, fill=255, font=font, stroke_width=width)
    return np.asarray(image)


def emblem(rng: np.random.Generator, side: int) -> np.ndarray:
    """A few shapes over one another, uint8 [side, side]."""
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        (left, top), (right, bottom) = np.sort(rng.uniform(0, side, (2, 2)), axis=0)
        if min(right - left, bottom - top) < side / 6:
            continue
        fill = int(rng.choice([0, 255, 255])) if rng.random() < 0.6 else None
        width = int(rng.integers(side // 24 + 1, side // 7))
        match ("ellipse", "rectangle", "polygon", "star")[rng.integers(4)]:
            case "ellipse":
                draw.ellipse((left, top, right, bottom), fill=fill, outline=255, width=width)
            case "rectangle":
                draw.rectangle((left, top, right, bottom), fill=fill, outline=255, width=width)
            case "polygon":
                corners = rng.uniform(0, side, (rng.integers(3, 6), 2))
                draw.polygon([(x, y) for x, y in corners], fill=255)
            case _:
                points = 2 * int(rng.integers(4, 9))
                turn = np.arange(points) / points * 2 * np.pi
                radius = np.where(np.arange(points) % 2, rng.uniform(0.3, 0.7), 1.0) * side / 2
                tips = np.stack([radius * np.sin(turn), -radius * np.cos(turn)], 1) + side / 2
                draw.polygon([(x, y) for x, y in tips], fill=255)
    return np.asarray(image)


KINDS = {"text": 0.4, "lines": 0.15, "both": 0.2, "sign": 0.25}


def mark(rng: np.random.Generator, fonts: Fonts) -> Sheet:
    """One logo, 90 px high or so: words, a sign, both, on a plate, with outline or shadow."""
    while True:
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        parts = []
        if kind in ("sign", "both"):
            parts.append(sign(rng, fonts))
        if kind != "sign":
            path = fonts.letters[rng.integers(len(fonts.letters))]
            font = ImageFont.truetype(path, int(rng.integers(50, 90)))
            parts += [glyphs(word(rng), font) for _ in range(2 if kind == "lines" else 1)]
        if all((part > 128).sum() > 100 for part in parts):  # else: a font without such letters
            down = kind == "lines" or (kind == "both" and rng.random() < 0.3)
            return dressed(rng, joined(parts, gap=int(rng.integers(4, 30)), down=down))


def sign(rng: np.random.Generator, fonts: Fonts) -> np.ndarray:
    """An icon of a font, or shapes."""
    if not fonts.icons or rng.random() < 0.6:
        return emblem(rng, SIDE_PX)
    font = ImageFont.truetype(fonts.icons[rng.integers(len(fonts.icons))], SIDE_PX)
    return glyphs(chr(0xF000 + int(rng.integers(0x2E0))), font)


def joined(parts: list[np.ndarray], gap: int, down: bool) -> np.ndarray:
    """Parts beside or under one another, centred; float32 0..1."""
    if down:
        return np.ascontiguousarray(joined([p.T for p in parts], gap, False).T)
    high = max(p.shape[0] for p in parts)
    out = np.zeros((high, sum(p.shape[1] + gap for p in parts) - gap), np.float32)
    x = 0
    for p in parts:
        y = (high - p.shape[0]) // 2
        out[y : y + p.shape[0], x : x + p.shape[1]] = p / 255.0
        x += p.shape[1] + gap
    return out


def dressed(rng: np.random.Generator, cover: np.ndarray) -> Sheet:
    """Ink for a mark's shape, and behind it a plate, an outline, a shadow, or nothing."""
    cover = np.pad(cover, 14)
    ink = float(rng.choice([1.0, 1.0, 1.0, 0.8, 0.0, rng.uniform()]))
    other = (ink - 0.6 if ink > 0.5 else ink + 0.6) + rng.uniform(-0.2, 0.2)
    behind = np.zeros_like(cover)
    match rng.choice(
        ["plain", "outline", "shadow", "plate", "hollow"], p=[0.5, 0.15, 0.15, 0.15, 0.05]
    ):
        case "plate":
            behind[:] = 1.0 if rng.random() < 0.7 else rng.uniform(0.3, 0.9)
        case "outline":
            behind = cv2.dilate(cover, np.ones((7, 7)))
        case "shadow":
            moved = np.roll(cover, (4, 4), (0, 1))
            behind = cv2.GaussianBlur(moved, (0, 0), rng.uniform(1, 4)) * rng.uniform(0.4, 1)
        case "hollow":
            cover = np.clip(cover - cv2.erode(cover, np.ones((5, 5))), 0, 1)
    both = cover + behind * (1 - cover)
    luma = (ink * cover + other * behind * (1 - cover)) / np.maximum(both, 1e-3)
    return np.clip(luma, 0, 1).astype(np.float32), both.astype(np.float32)


def resized(sheet: Sheet, width: int) -> Sheet:
    height = max(round(sheet[0].shape[0] * width / sheet[0].shape[1]), 6)
    luma, alpha = (cv2.resize(s, (width, height), interpolation=cv2.INTER_AREA) for s in sheet)
    return luma, alpha


def tiling(rng: np.random.Generator, sheet: Sheet, side: int) -> Sheet:
    """A mark over and over, turned: [side, side]."""
    gaps = [(0, int(side * gap)) for gap in rng.uniform(0.05, 0.45, 2)]
    cells = [np.pad(s, gaps) for s in sheet]
    if rng.random() < 0.5:  # every second row moved
        cells = [np.vstack([c, np.roll(c, c.shape[1] // 2, axis=1)]) for c in cells]
    cells = [np.tile(c, [2 * side // length + 1 for length in c.shape]) for c in cells]
    turn = cv2.getRotationMatrix2D((side, side), rng.uniform(-45, 45) * (rng.random() < 0.5), 1)
    turn[:, 2] = turn[:, 2] - rng.uniform(0, side, 2)
    luma, alpha = (cv2.warpAffine(c, turn, (side, side), borderMode=cv2.BORDER_WRAP) for c in cells)
    return luma, alpha
