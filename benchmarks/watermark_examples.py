"""Examples for the watermark network: samples of a scene, and in most of them a mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from watermark_marks import Sheet, resized, tiling

from curation.scores.watermarks import different

SIDE_PX = 160  # of an example, at the scale of the samples
CELL_PX = 4  # the network answers for cells of this side


@dataclass
class Footage:
    """Pictures to move over, and films as samples in order; uint8 grey."""

    pictures: list[np.ndarray]
    films: list[np.ndarray]  # [N, 360, W], two samples a second


def pictures(folder: Path) -> list[np.ndarray]:
    """The pictures of a folder, grey, short side at most 480 px; plain and tiny ones left out."""
    out = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
            continue
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if grey is None or min(grey.shape) < 240 or grey.std() < 20:
            continue
        scale = min(480 / min(grey.shape), 1.0)
        out.append(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return out


def films(named: Sequence[str]) -> list[np.ndarray]:
    """Two samples a second of FILE:START:END, short side 360 px."""
    out = []
    for name in named:
        path, start_s, end_s = name.rsplit(":", 2)
        samples: list[np.ndarray] = []
        with av.open(path) as container:
            for frame in container.decode(video=0):
                at_s = frame.time or 0.0
                if float(start_s) + len(samples) / 2 <= at_s < float(end_s):
                    grey = frame.to_ndarray(format="gray")
                    scale = 360 / min(grey.shape)
                    size = (round(grey.shape[1] * scale), round(grey.shape[0] * scale))
                    samples.append(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))
        out.append(np.stack(samples))
    return out


def discs(rng: np.random.Generator) -> np.ndarray:
    """Dead leaves: discs of every size over one another (Lee, Mumford and Huang 2001)."""
    out = np.full((480, 640), 128, np.uint8)
    for radius in np.sort(6 / rng.uniform(0.03, 1, 250))[::-1]:
        at = (int(rng.integers(640)), int(rng.integers(480)))
        cv2.circle(out, at, int(radius), int(rng.integers(10, 245)), -1, cv2.LINE_AA)
    return out


def shot(rng: np.random.Generator, footage: Footage, bank: list[Sheet], count: int) -> np.ndarray:
    """`count` samples of one camera over one picture, float32 [count, SIDE, SIDE] 0..255."""
    picture = discs(rng)
    if rng.random() < 0.9:
        picture = footage.pictures[rng.integers(len(footage.pictures))]
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    scale = rng.uniform(0.35, 1.1) * 480 / min(picture.shape)
    scale = max(scale, 1.05 * SIDE_PX / min(picture.shape))
    # Scaled by area first: a plain warp would alias.
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    room = np.array(picture.shape[::-1]) - SIDE_PX
    start = rng.uniform(0, 1, 2) * room
    if rng.random() < 0.3:
        picture = with_signs(rng, picture, bank, start)
    out = np.stack([
        cv2.warpAffine(
            picture, matrix, (SIDE_PX, SIDE_PX), flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        for matrix in camera(rng, start, count)
    ]).astype(np.float32)  # fmt: skip
    if rng.random() < 0.6:
        out = out * rng.uniform(0.5, 1.2) + rng.uniform(-25, 25)
    if rng.random() < 0.15:  # a fade
        ends = ((0.1, 1.0), (1.0, 0.1), (0.5, 1.0))[rng.integers(3)]
        out *= np.linspace(*ends, count)[:, None, None]
    return np.clip(out, 0, 255)


def camera(rng: np.random.Generator, start: np.ndarray, count: int) -> list[np.ndarray]:
    """Where a camera that stands, pans, zooms or shakes looks: `count` affine matrices."""
    speed, zoom, turn = np.zeros(2), 1.0, 0.0
    if rng.random() < 0.65:
        speed = rng.normal(0, 1, 2) * rng.choice([0.6, 3, 12])  # px a sample
        zoom = float(np.exp(rng.normal(0, 0.02)))
        turn = rng.normal(0, 0.6) * (rng.random() < 0.3)
    shake = rng.normal(0, rng.choice([0, 0, 0.5, 2]), (count, 2))
    slant = rng.normal(0, 3) * (rng.random() < 0.3)
    matrices = []
    for i in range(count):
        matrix = cv2.getRotationMatrix2D((0, 0), slant + turn * i, zoom**i)
        matrix[:, 2] -= start + speed * i + shake[i]
        matrices.append(matrix)
    return matrices


def with_signs(
    rng: np.random.Generator, picture: np.ndarray, bank: list[Sheet], start: np.ndarray
) -> np.ndarray:
    """Marks as things of the scene, near where the camera starts: they go where it goes."""
    out = picture.copy()
    for _ in range(rng.integers(1, 3)):
        luma, alpha = resized(bank[rng.integers(len(bank))], int(rng.integers(25, 150)))
        x, y = (start + rng.uniform(0, SIDE_PX, 2)).astype(int)
        part = out[y : y + luma.shape[0], x : x + luma.shape[1]]
        inside = tuple(slice(0, side) for side in part.shape)
        cover = alpha[inside] * rng.uniform(0.3, 1)
        part[:] = part * (1 - cover) + 255 * luma[inside] * cover
    return out


def film(rng: np.random.Generator, footage: Footage, count: int) -> np.ndarray:
    """Samples of real footage in order, at one place of the picture; as shot."""
    lengths = np.array([len(samples) for samples in footage.films])
    source = footage.films[rng.choice(len(lengths), p=lengths / lengths.sum())]
    step = max(min(int(rng.choice([1, 1, 2, 3])), (len(source) - 1) // count), 1)
    first = int(rng.integers(max(len(source) - step * count, 1)))
    part = source[np.minimum(first + step * np.arange(count), len(source) - 1)]
    side = int(SIDE_PX * rng.choice([1, 1, rng.uniform(0.6, 1.6)]))
    room = (part.shape[2] - side, part.shape[1] - side)
    if rng.random() < 0.3:  # in a corner, where logos are
        x, y = (int(rng.integers(2)) * span for span in room)
    else:
        x, y = (int(rng.integers(span + 1)) for span in room)
    part = part[:, y : y + side, x : x + side]
    if side != SIDE_PX:
        size = (SIDE_PX, SIDE_PX)
        part = np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in part])
    if rng.random() < 0.5:
        part = part[:, :, ::-1]
    return part.astype(np.float32)


# -- an example


def example(
    rng: np.random.Generator, footage: Footage, bank: list[Sheet], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples uint8 [count, SIDE, SIDE], and per cell 1 marked, 0 not, -1 do not judge."""
    luma, shots = scene(rng, footage, bank, count)
    if rng.random() < 0.4:
        titles(rng, luma, shots, bank)
    if rng.random() < 0.08:  # the bar of a letterbox
        (luma if rng.random() < 0.5 else luma[:, ::-1])[:, : rng.integers(8, 60)] = 16
    if rng.random() < 0.12:  # black, white and faded samples
        some = rng.random(count) < rng.uniform(0.1, 0.3)
        luma[some] = luma[some] * 0.03 + rng.choice([16.0, 235.0])
    label = np.zeros((SIDE_PX // CELL_PX,) * 2, np.int8)
    if rng.random() < 0.6:
        label = marked(rng, luma, shots, bank)
    luma = coded(rng, luma)
    looks = different(luma) if rng.random() < 0.6 else []
    if len(looks) >= 2:  # as in use, and else as where only another part of the picture moves
        luma = luma[np.take(looks, np.linspace(0, len(looks) - 1, count).round().astype(int))]
    return luma, label


def scene(
    rng: np.random.Generator, footage: Footage, bank: list[Sheet], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples of one or more shots, and the number of the shot that each one shows."""
    if rng.random() < 0.45:
        luma = film(rng, footage, count)
        cuts = np.abs(np.diff(luma, axis=0)).mean((1, 2)) > 15
        return luma, np.concatenate([[0], cuts.cumsum()])
    num = rng.choice([1, 2, 3, 4, 6, 9, 16], p=[0.1, 0.17, 0.17, 0.16, 0.15, 0.15, 0.1])
    num = min(int(num), count)
    starts = np.sort(rng.choice(np.arange(1, count), num - 1, replace=False))
    shots = np.searchsorted(starts, np.arange(count), side="right")
    if num >= 2 and rng.random() < 0.12:  # views that return
        shots = shots % max(num // 2, 2)
    luma = np.zeros((count, SIDE_PX, SIDE_PX), np.float32)
    for number in np.unique(shots):
        where = np.flatnonzero(shots == number)
        luma[where] = shot(rng, footage, bank, len(where))
        if rng.random() < 0.45:
            luma[where] = with_things(rng, footage, luma[where])
    return luma, shots


def with_things(rng: np.random.Generator, footage: Footage, luma: np.ndarray) -> np.ndarray:
    """Things that walk, sway and turn in front of a shot: what is beside them seems to stay."""
    out = luma.copy()
    for _ in range(rng.integers(1, 4)):
        side = int(rng.uniform(0.3, 1.3) * SIDE_PX)
        picture = footage.pictures[rng.integers(len(footage.pictures))]
        y, x = (int(rng.integers(max(s - side, 0) + 1)) for s in picture.shape)
        thing = cv2.resize(picture[y : y + side, x : x + side], (side, side)).astype(np.float32)
        angles = np.linspace(0, 2 * np.pi, 13)[:-1]
        radii = side * rng.uniform(0.2, 0.5, 12)
        corners = side / 2 + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        mask = np.zeros((side, side), np.float32)
        cv2.fillPoly(mask, [corners.astype(np.int32)], 1.0, cv2.LINE_AA)
        start, speed = rng.uniform(0, SIDE_PX, 2), rng.normal(0, 1, 2) * rng.choice([1, 4, 15])
        shake, turn = rng.choice([1, 4, 15]), rng.choice([2, 8, 30])
        for i in range(len(out)):
            at = start + speed * i + rng.normal(0, shake, 2)
            grown = float(np.exp(rng.normal(0, 0.06)))
            matrix = cv2.getRotationMatrix2D((side / 2, side / 2), rng.normal(0, turn), grown)
            matrix[:, 2] += at - side / 2
            cover = cv2.warpAffine(mask, matrix, (SIDE_PX, SIDE_PX))
            seen = cv2.warpAffine(thing, matrix, (SIDE_PX, SIDE_PX))
            out[i] = out[i] * (1 - cover) + seen * cover
    return out


def titles(
    rng: np.random.Generator, luma: np.ndarray, shots: np.ndarray, bank: list[Sheet]
) -> None:
    """Lines that come and go: subtitles, titles, credits that roll."""
    now, count = int(rng.integers(0, 3)), len(luma)
    width = int(rng.integers(60, 200))
    y = int(rng.integers(0, SIDE_PX - 16))
    over_cuts = rng.random() < 0.7
    roll = int(rng.integers(2, 14)) if rng.random() < 0.25 else 0
    while now < count:
        sheet = resized(bank[rng.integers(len(bank))], width)
        last = now + int(rng.integers(1, 7))
        x = int(rng.integers(-20, SIDE_PX - 30))
        for i in range(now, min(last, count)):
            if not over_cuts and shots[i] != shots[now]:
                break
            blend(luma[i : i + 1], sheet, x, y - roll * (i - now), 1.0)
        now = last + int(rng.integers(0, 3))
        y = y if rng.random() < 0.6 else int(rng.integers(0, SIDE_PX - 16))


def blend(luma: np.ndarray, sheet: Sheet, x: int, y: int, strength: float) -> np.ndarray:
    """Blend a mark over samples in place; returns how much it covers of each pixel."""
    cover = np.zeros(luma.shape[1:], np.float32)
    h, w = sheet[0].shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, SIDE_PX), min(y + h, SIDE_PX)
    if x1 <= x0 or y1 <= y0:
        return cover
    inside = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
    alpha = sheet[1][inside] * strength
    part = luma[:, y0:y1, x0:x1]
    part[:] = part * (1 - alpha) + 255 * sheet[0][inside] * alpha
    cover[y0:y1, x0:x1] = sheet[1][inside]
    return cover


def marked(
    rng: np.random.Generator, luma: np.ndarray, shots: np.ndarray, bank: list[Sheet]
) -> np.ndarray:
    """Blend one mark over the samples; returns the label of every cell."""
    on = presence(rng, len(luma))
    label = np.zeros((SIDE_PX // CELL_PX,) * 2, np.int8)
    moves = luma[on].std(axis=0).mean() >= 6 or len(np.unique(shots)) > 2
    if len(np.unique(shots[on])) < 2 and not moves:
        return label  # nobody could tell a mark from a sign: none is drawn
    sheet = bank[rng.integers(len(bank))]
    kept = luma[on]
    changes = cv2.blur(kept.std(axis=0), (48, 48))
    if rng.random() < 0.22:
        sheet = tiling(rng, resized(sheet, int(rng.integers(40, 130))), SIDE_PX)
        cover = blend(kept, sheet, 0, 0, rng.uniform(0.1, 0.4))
    else:
        sheet = resized(sheet, int(np.exp(rng.uniform(np.log(18), np.log(130)))))
        strength = 1.0 if rng.random() < 0.4 else rng.uniform(0.25, 1)
        x, y = (int(rng.integers(-s // 4, SIDE_PX - s * 3 // 4)) for s in sheet[0].shape[::-1])
        cover = blend(kept, sheet, x, y, strength)
    luma[on] = kept
    share = np.asarray(cv2.resize(cover, label.shape, interpolation=cv2.INTER_AREA))
    label[cv2.dilate(share, np.ones((3, 3))) > 0.02] = -1
    label[share > 0.12] = 1
    still = cv2.resize(changes, label.shape, interpolation=cv2.INTER_AREA) < 6
    label[(label == 1) & still] = -1  # nothing changes around it: a sign or a mark
    if not on.all() and len(np.unique(shots[on])) < 2:
        label[label == 1] = -1  # within one shot: a title or a mark
    return label


def presence(rng: np.random.Generator, count: int) -> np.ndarray:
    """Which samples show the mark: all, a stretch, or on and off; bool [count]."""
    on = np.ones(count, bool)
    if count < 6 or rng.random() >= 0.5:
        return on
    share = rng.uniform(0.25, 0.7)
    if rng.random() < 0.5:
        length = max(round(share * count), 2)
        first = (0, count - length, int(rng.integers(count - length + 1)))[rng.integers(3)]
        on[:] = False
        on[first : first + length] = True
        return on
    period = int(rng.integers(3, count))
    return (np.arange(count) + rng.integers(period)) % period < max(share * period, 1)


def coded(rng: np.random.Generator, luma: np.ndarray) -> np.ndarray:
    """What noise and coding leave of the samples, uint8."""
    noisy = luma + rng.normal(0, 1, luma.shape) * rng.choice([0, 0, 1, 3])
    out = np.clip(noisy, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        return out
    how = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 96))]
    jpegs = [cv2.imencode(".jpg", sample, how)[1] for sample in out]
    return np.stack([np.asarray(cv2.imdecode(j, cv2.IMREAD_GRAYSCALE)) for j in jpegs])
