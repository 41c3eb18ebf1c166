"""Transitions made over real shots, and what only looks like one, each with its true frames.

A shot is uint8 [T, H, W, 3]. `join` mixes the end of one with the beginning of the next as an
editor does, both still playing; `DISTURBANCES` change one shot without ending it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

GRADUAL = ("dissolve", "fade_black", "fade_white", "wipe", "slide", "zoom", "flash")
KINDS = ("cut", *GRADUAL)


@dataclass(frozen=True)
class Transition:
    """Frames [first, last) mix two shots; a hard cut has none: both are its new shot's first."""

    kind: str
    first: int
    last: int


def join(
    rng: np.random.Generator, before: np.ndarray, after: np.ndarray, kind: str, num_frames: int
) -> tuple[np.ndarray, Transition]:
    """Two shots as one stretch, and the transition in it.

    `num_frames` frames of both are mixed; a fade and a flash show `num_frames` frames in all, the
    first half of one and the second of the other.
    """
    if kind == "cut":
        return np.concatenate([before, after]), Transition(kind, len(before), len(before))
    if kind in ("fade_black", "fade_white", "flash"):
        out = num_frames // 2
        hold = int(rng.integers(0, max(num_frames // 4, 1) + 1)) if kind != "flash" else 0
        tail, head = before[len(before) - out :], after[: num_frames - out]
        level = 0.0 if kind == "fade_black" else 255.0
        gone = np.full((hold, *before.shape[1:]), level, np.uint8)
        mixed = np.concatenate([dimmed(tail, level), gone, dimmed(head[::-1], level)[::-1]])
        body = [before[: len(before) - out], mixed, after[num_frames - out :]]
        first = len(before) - out
        return np.concatenate(body), Transition(kind, first, first + len(mixed))
    tail, head = before[len(before) - num_frames :], after[:num_frames]
    share = (np.arange(num_frames) + 1) / (num_frames + 1)
    if rng.random() < 0.3:  # eased as editors do
        share = share * share * (3 - 2 * share)
    mixed = MIXERS[kind](rng, tail, head, share)
    first = len(before) - num_frames
    stretch = np.concatenate([before[:first], mixed, after[num_frames:]])
    return stretch, Transition(kind, first, first + num_frames)


def dimmed(shot: np.ndarray, level: float) -> np.ndarray:
    """A shot that goes to an even level: its last frame is nearly gone."""
    share = ((np.arange(len(shot)) + 1) / (len(shot) + 0.5))[:, None, None, None]
    return (shot * (1 - share) + level * share).astype(np.uint8)


def blended(before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`share` of the second picture, per frame or per pixel."""
    share = share.astype(np.float32)
    return (before + (after.astype(np.float32) - before) * share).round().astype(np.uint8)


def dissolve(
    rng: np.random.Generator, before: np.ndarray, after: np.ndarray, share: np.ndarray
) -> np.ndarray:
    return blended(before, after, share[:, None, None, None])


def wipe(
    rng: np.random.Generator, before: np.ndarray, after: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """An edge, sharp or soft, that goes over the picture: straight, round or as a clock's hand."""
    height, width = before.shape[1:3]
    y, x = np.mgrid[0:height, 0:width]
    x, y = (x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5
    form = rng.integers(3)
    angle = rng.choice([0, 90, 180, 270, rng.uniform(0, 360)]) / 180 * np.pi
    way = x * np.cos(angle) + y * np.sin(angle)
    if form == 1:
        way = np.hypot(x, y) * rng.choice([-1, 1])
    if form == 2:
        way = np.arctan2(y, x) * rng.choice([-1, 1])
    way = (way - way.min()) / (np.ptp(way) + 1e-6)
    soft = rng.choice([0.01, 0.05, 0.25])
    edge = share[:, None, None] * (1 + soft)
    return blended(before, after, np.clip((edge - way) / soft, 0, 1)[..., None])


def slide(
    rng: np.random.Generator, before: np.ndarray, after: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """The next shot comes in from a side, over the first or pushing it out."""
    axis, back, push = int(rng.integers(1, 3)), rng.random() < 0.5, rng.random() < 0.5
    out = []
    for one, two, part in zip(before, after, share, strict=True):
        side = one.shape[axis - 1]
        moved = round(part * side)
        one, two = (np.flip(p, axis - 1) if back else p for p in (one, two))
        if axis == 2:
            one, two = one.transpose(1, 0, 2), two.transpose(1, 0, 2)
        kept = one[moved:] if push else one[: side - moved]
        new = two[:moved] if push else two[side - moved :] if moved else two[:0]
        both = np.concatenate([kept, new])
        if axis == 2:
            both = both.transpose(1, 0, 2)
        out.append(np.flip(both, axis - 1) if back else both)
    return np.stack(out)


def zoom(
    rng: np.random.Generator, before: np.ndarray, after: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """The first shot grows, the next comes out of it or shrinks to its size."""
    most = rng.uniform(1.5, 4)
    width = rng.choice([0.15, 0.5, 1.0])  # of the blend, in shares of the transition
    one = np.stack([zoomed(p, 1 + (most - 1) * s) for p, s in zip(before, share, strict=True)])
    two = np.stack([zoomed(p, most - (most - 1) * s) for p, s in zip(after, share, strict=True)])
    return blended(one, two, np.clip((share - 0.5) / width + 0.5, 0, 1)[:, None, None, None])


def zoomed(picture: np.ndarray, scale: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """The picture enlarged about its middle and shifted by shares of its sides."""
    height, width = picture.shape[:2]
    matrix = np.array([
        [scale, 0, width * ((1 - scale) / 2 + x)], [0, scale, height * ((1 - scale) / 2 + y)]
    ])  # fmt: skip
    return cv2.warpAffine(
        picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )


Mixer = Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
MIXERS: dict[str, Mixer] = {"dissolve": dissolve, "wipe": wipe, "slide": slide, "zoom": zoom}


def clipped(shot: np.ndarray) -> np.ndarray:
    return np.clip(shot, 0, 255).astype(np.uint8)


def flashes(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """One to four lights of one to four frames each: a camera's flash, lightning."""
    light = np.zeros(len(shot), np.float32)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(len(shot))), int(rng.integers(1, 5))
        light[at : at + length] = (
            rng.uniform(0.3, 1) * np.linspace(1, 0.4, length)[: len(shot) - at]
        )
    field = slope(rng, shot)
    return clipped(shot + (255.0 - shot * 0.7) * light[:, None, None, None] * field)


def slope(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """Light that falls from one side, [H, W, 1], mean about 1."""
    height, width = shot.shape[1:3]
    across = np.linspace(-1, 1, width)[None] * rng.normal(0, 0.3)
    return (1 + across + np.linspace(-1, 1, height)[:, None] * rng.normal(0, 0.3))[..., None]


def strobe(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """A light that goes on and off for the whole shot."""
    period = int(rng.integers(2, 9))
    on = (np.arange(len(shot)) // max(period // 2, 1)) % 2 == 0
    low = rng.uniform(0.1, 0.6)
    gain = np.where(on, rng.uniform(1, 1.6), low)[:, None, None, None]
    return clipped(shot * gain)


def shake(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """A hand-held camera hit by something."""
    size = rng.uniform(0.01, 0.06) * np.exp(-np.arange(len(shot)) / rng.uniform(5, 200))
    x, y = rng.normal(0, 1, (2, len(shot))) * size
    return np.stack([zoomed(p, 1.1, dx, dy) for p, dx, dy in zip(shot, x, y, strict=True)])


def whip(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """A fast pan to another part of the same place, blurred by its speed."""
    length = min(int(rng.integers(4, 16)), len(shot))
    start = int(rng.integers(0, len(shot) - length + 1))
    at = np.clip((np.arange(len(shot)) - start) / length, 0, 1)
    at = at * at * (3 - 2 * at)
    speed = np.abs(np.gradient(at))
    reach = rng.uniform(0.2, 0.45) * rng.choice([-1, 1])
    width = shot.shape[2]
    out = []
    for picture, place, step in zip(shot, at, speed, strict=True):
        moved = zoomed(picture, 1.9, reach * (2 * place - 1))
        blur = int(abs(step * 2 * reach) * width)
        out.append(cv2.blur(moved, (blur, 1)) if blur > 1 else moved)
    return np.stack(out)


def explosion(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """A ball of fire that grows in some frames and leaves smoke."""
    height, width = shot.shape[1:3]
    y, x = np.mgrid[0:height, 0:width]
    start, centre = int(rng.integers(len(shot))), rng.uniform(0.2, 0.8, 2)
    growth, life = rng.uniform(0.03, 0.15), rng.uniform(6, 30)
    radius = np.hypot(x / width - centre[0], (y / height - centre[1]) * height / width)
    rough = cv2.resize(
        rng.uniform(0.6, 1.4, (5, 8)), (width, height), interpolation=cv2.INTER_CUBIC
    )
    out = shot.astype(np.float32)
    for i in range(start, len(shot)):
        age = i - start
        inside = np.clip((growth * (age + 1) ** 0.7 * rough - radius) * 12, 0, 1)[..., None]
        fire = np.array([60, 170, 255]) * np.exp(-age / life) + 70 * (1 - np.exp(-age / life))
        cover = inside * np.exp(-age / (4 * life))
        out[i] = out[i] * (1 - cover) + fire * cover + 120 * np.exp(-age / 2.5)
    return clipped(out)


def passer(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """Something large and near goes through the picture: what is behind it comes back."""
    height, width = shot.shape[1:3]
    length = int(rng.integers(6, 40))
    start = int(rng.integers(-length // 2, len(shot)))
    wide = rng.uniform(0.2, 0.9)
    colour = rng.uniform(0, 200, 3)
    texture = rng.uniform(0.5, 1.5, (6, 6, 1)) * colour
    thing = cv2.resize(clipped(texture), (max(int(wide * width), 2), height))
    out, side = shot.copy(), rng.random() < 0.5
    top = int(rng.uniform(0, 0.5) * height)
    for i in range(max(start, 0), min(start + length, len(shot))):
        left = int((-wide + (i - start) / length * (1 + wide)) * width)
        low, high = max(left, 0), min(left + thing.shape[1], width)
        if low < high:
            out[i, top:, low:high] = thing[top:, low - left : high - left]
    return out[:, :, ::-1] if side else out


def title(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """Words or a box that come and go over a shot that goes on, at once or by a blend."""
    height, width = shot.shape[1:3]
    start, length = int(rng.integers(len(shot))), int(rng.integers(10, 80))
    soft = rng.choice([0.5, 4, 12])
    at = np.arange(len(shot))
    share = np.clip(np.minimum(at - start, start + length - at) / soft, 0, 1)
    sheet = np.zeros((height, width), np.uint8)
    tall, wide = rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.9)
    y, x = int(rng.uniform(0, 1 - tall) * height), int(rng.uniform(0, 1 - wide) * width)
    box = (slice(y, y + max(int(tall * height), 1)), slice(x, x + max(int(wide * width), 1)))
    sheet[box] = 255 if rng.random() < 0.3 else rng.choice([0, 255], sheet[box].shape)
    cover = (sheet / 255.0)[..., None] * share[:, None, None, None] * rng.uniform(0.4, 1)
    return clipped(shot * (1 - cover) + rng.uniform(0, 255, 3) * cover)


def exposure(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """A camera that finds its exposure anew, or a lamp that is turned on: never to black."""
    at, length = int(rng.integers(len(shot))), int(rng.choice([1, 3, 10, 40]))
    ramp = np.clip((np.arange(len(shot)) - at) / length, 0, 1)
    gains = rng.uniform(0.45, 1.5, 2)
    gain = (gains[0] + (gains[1] - gains[0]) * ramp)[:, None, None, None]
    return clipped(shot * gain)


def focus(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """The picture goes out of focus and comes back."""
    at, length = int(rng.integers(len(shot))), int(rng.integers(5, 40))
    depth = np.exp(-(((np.arange(len(shot)) - at) / length) ** 2)) * rng.uniform(0.02, 0.1)
    sigmas = depth * shot.shape[2]
    return np.stack([
        cv2.GaussianBlur(p, (0, 0), float(s)) if s > 0.3 else p
        for p, s in zip(shot, sigmas, strict=True)
    ])  # fmt: skip


def stutter(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """Frames shown twice and more, and others left out."""
    at = np.arange(len(shot))
    hold = int(rng.integers(2, 6))
    if rng.random() < 0.5:
        return shot[at // hold * hold]
    start, length = int(rng.integers(len(shot))), int(rng.integers(3, 20))
    return shot[np.where((at >= start) & (at < start + length), start, at)]


def lapse(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """A time-lapse: every fourth to twelfth frame, there and back again to fill the shot."""
    step = int(rng.integers(4, 13))
    way = np.abs((np.arange(len(shot)) * step) % (2 * len(shot) - 2) - (len(shot) - 1))
    return shot[way]


Disturbance = Callable[[np.random.Generator, np.ndarray], np.ndarray]
DISTURBANCES: dict[str, Disturbance] = {
    "flashes": flashes, "strobe": strobe, "shake": shake, "whip": whip, "explosion": explosion,
    "passer": passer, "title": title, "exposure": exposure, "focus": focus, "stutter": stutter,
    "lapse": lapse,
}  # fmt: skip
