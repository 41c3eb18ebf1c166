"""Examples for the network of transitions: shots, disturbed and joined, at the network's size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from scene_cases import DISTURBANCES, GRADUAL, Transition, clipped, join

from curation.decode.transitions import shrunken

SIDES = (64, 36)  # px; examples are made at this size and shrunk to the network's
STORED = (96, 54)  # px; leaves room to crop
LENGTHS = (6, 10, 16, 24, 40, 60, 90, 140)  # frames of a shot
SHARES = {
    "cut": 0.38, "dissolve": 0.22, "fade_black": 0.09, "fade_white": 0.04, "wipe": 0.07,
    "slide": 0.08, "zoom": 0.07, "flash": 0.05,
}  # fmt: skip
HARDEST = ("whip", "explosion", "passer", "focus")  # made more often
LIKE = 6.0  # grey levels; pictures that differ less may be joined unseen, and are not judged


@dataclass
class Footage:
    """Shots of film, uint8 [T, 54, 96, 3], and pictures [H, W, 3] to move over."""

    shots: list[np.ndarray]
    pictures: list[np.ndarray]

    @classmethod
    def of(cls, listed: Path, media: Path, pictures: Path) -> Footage:
        """The shots named by lines FILE START END, in frames, of files in `media`."""
        spans: dict[str, list[tuple[int, int]]] = {}
        for line in listed.read_text().splitlines():
            if line and not line.startswith("#"):
                name, first, last = line.split()
                spans.setdefault(name, []).append((int(first), int(last)))
        shots = []
        for name, wanted in spans.items():
            frames = read(media / name, STORED)
            shots += [frames[first:last] for first, last in wanted]
        return cls(shots, stills(pictures))


def read(path: Path, size: tuple[int, int]) -> np.ndarray:
    """All frames of a video at `size` = (width, height): uint8 BGR [T, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([
            cv2.resize(f.to_ndarray(format="bgr24"), size, interpolation=cv2.INTER_AREA)
            for f in container.decode(video=0)
        ])  # fmt: skip


def stills(folder: Path) -> list[np.ndarray]:
    """The pictures of a folder, 240 px high; plain ones left out."""
    out = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and not path.is_symlink():
            picture = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_4)
            if picture is not None and min(picture.shape[:2]) >= 240 and picture.std() > 15:
                width = round(picture.shape[1] * 240 / picture.shape[0])
                out.append(cv2.resize(picture, (width, 240), interpolation=cv2.INTER_AREA))
    return out


def filmed(rng: np.random.Generator, footage: Footage, count: int) -> np.ndarray:
    """A part of a real shot, mirrored, cropped, fast or backwards; there and back if too short."""
    sizes = np.array([min(len(s), 400) for s in footage.shots], float)
    shot = footage.shots[rng.choice(len(sizes), p=sizes / sizes.sum())]
    speed = int(rng.choice([1, 1, 1, 1, 1, 2, 3]))
    at = int(rng.integers(len(shot))) + np.arange(count) * speed
    if rng.random() < 0.15:  # as drawn films, or a rate that was doubled
        at = at // 2
    way = np.abs((at % max(2 * len(shot) - 2, 1)) - (len(shot) - 1))
    part = shot[way if rng.random() < 0.5 else len(shot) - 1 - way]
    scale = rng.uniform(1, 96 / 64)
    width, height = round(64 * scale), round(36 * scale)
    x, y = int(rng.integers(0, 97 - width)), int(rng.integers(0, 55 - height))
    part = part[:, y : y + height, x : x + width]
    if rng.random() < 0.5:
        part = part[:, :, ::-1]
    return np.stack([cv2.resize(p, SIDES, interpolation=cv2.INTER_AREA) for p in part])


def panned(rng: np.random.Generator, picture: np.ndarray, count: int) -> np.ndarray:
    """A camera that stands, pans, zooms or shakes over a picture."""
    scale = 36 / 240 * rng.uniform(1.05, 3)
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    room = np.array(small.shape[1::-1]) - SIDES
    start = rng.uniform(0, 1, 2) * np.maximum(room, 0)
    speed, zoom = np.zeros(2), 1.0
    if rng.random() < 0.75:
        speed = rng.normal(0, 1, 2) * rng.choice([0.05, 0.2, 0.6, 2])  # px a frame
        zoom = float(np.exp(rng.normal(0, rng.choice([0.0005, 0.003, 0.01]))))
    jitter = rng.normal(0, rng.choice([0, 0, 0.15, 0.6]), (count, 2))
    out = []
    for i in range(count):
        matrix = cv2.getRotationMatrix2D((SIDES[0] / 2, SIDES[1] / 2), 0, zoom**i)
        matrix[:, 2] -= zoom**i * (start + speed * i + jitter[i])
        out.append(
            cv2.warpAffine(
                small, matrix, SIDES, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            )
        )
    return np.stack(out)


def moving(rng: np.random.Generator, ground: np.ndarray, footage: Footage) -> np.ndarray:
    """Pieces of pictures that move, turn and grow in front of a shot, as people and animals do."""
    out = ground.copy()
    height, width = ground.shape[1:3]
    for _ in range(rng.integers(1, 5)):
        picture = footage.pictures[rng.integers(len(footage.pictures))]
        side = int(rng.integers(8, 40)) * int(rng.choice([1, 1, 2]))
        y, x = (int(rng.integers(0, n - 60)) for n in picture.shape[:2])
        piece = cv2.resize(
            picture[y : y + 60, x : x + 60], (side, side), interpolation=cv2.INTER_AREA
        )
        grid = np.mgrid[0:side, 0:side] / (side - 1) * 2 - 1
        cover = (np.hypot(*grid) < rng.uniform(0.7, 1.2)).astype(np.float32)
        at, speed = (
            rng.uniform(0, 1, 2) * (width, height),
            rng.normal(0, rng.choice([0.2, 1, 4]), 2),
        )
        swing, beat, turn = rng.uniform(0, 6), rng.uniform(0.05, 0.6), rng.normal(0, 3)
        for i in range(len(out)):
            matrix = cv2.getRotationMatrix2D(
                (side / 2, side / 2), turn * i, 1 + 0.2 * np.sin(beat * i)
            )
            matrix[:, 2] += at + speed * i + swing * np.sin(beat * i) - side / 2
            thing = cv2.warpAffine(piece, matrix, (width, height))
            mask = cv2.warpAffine(cover, matrix, (width, height))[..., None]
            out[i] = out[i] * (1 - mask) + thing * mask
    return out


def drawn(rng: np.random.Generator, count: int) -> np.ndarray:
    """Discs over one another that drift: dead leaves (Lee, Mumford and Huang 2001)."""
    number = int(rng.integers(5, 60))
    at, speed = (
        rng.uniform(0, 1, (number, 2)) * SIDES,
        rng.normal(0, rng.choice([0.1, 1]), (number, 2)),
    )
    radii = np.sort(2 / rng.uniform(0.08, 1, number))[::-1]
    colours = rng.uniform(0, 255, (number, 3))
    out = np.empty((count, SIDES[1], SIDES[0], 3), np.uint8)
    out[:] = rng.uniform(0, 255, 3)
    for i, picture in enumerate(out):
        for place, radius, colour in zip(at + speed * i, radii, colours, strict=True):
            centre = tuple(int(v * 8) for v in place)
            cv2.circle(picture, centre, int(radius * 8), colour.tolist(), -1, cv2.LINE_AA, 3)
    return out


def slide_of_text(rng: np.random.Generator, count: int) -> np.ndarray:
    """Lines of words on an even ground, still: a slide, a card, a screen."""
    ground = rng.choice([0, 16, 40, 128, 230, 255])
    sheet = np.empty((SIDES[1] * 4, SIDES[0] * 4, 3), np.uint8)
    sheet[:] = clipped(ground + rng.normal(0, 4, 3))
    ink = rng.uniform(0, 255, 3)
    for _ in range(rng.integers(1, 9)):
        at = (int(rng.integers(0, 160)), int(rng.integers(15, 140)))
        word = "".join(chr(int(c)) for c in rng.integers(97, 123, rng.integers(3, 14)))
        cv2.putText(
            sheet, word, at, 0, rng.uniform(0.4, 1.5), ink.tolist(), int(rng.integers(1, 4))
        )
    still = cv2.resize(sheet, SIDES, interpolation=cv2.INTER_AREA)
    return np.repeat(still[None], count, 0)


def shot(rng: np.random.Generator, footage: Footage, count: int) -> np.ndarray:
    """`count` frames of one shot, as graded, uint8 [T, 36, 64, 3]."""
    draw = rng.random()
    if draw < 0.5:
        out = filmed(rng, footage, count)
    elif draw < 0.87:
        out = panned(rng, footage.pictures[rng.integers(len(footage.pictures))], count)
    elif draw < 0.95:
        out = drawn(rng, count)
    else:
        return slide_of_text(rng, count)
    if rng.random() < 0.3:
        out = moving(rng, out, footage)
    return graded(rng, out) if rng.random() < 0.6 else out


def graded(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """Other colours, contrast and brightness, the same for a whole shot; some are grey."""
    keep = rng.choice([0, rng.uniform(0.3, 1.4)], p=[0.15, 0.85])
    mixed = np.eye(3) * keep + (1 - keep) / 3
    curve = 255 * np.linspace(0, 1, 256) ** rng.uniform(0.6, 2) * rng.uniform(0.3, 1.1)
    table = clipped(curve + rng.uniform(-5, 15))
    tall = frames.reshape(-1, frames.shape[2], 3)
    return cv2.LUT(cv2.transform(tall, mixed), table).reshape(frames.shape)


def example(
    rng: np.random.Generator, footage: Footage, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames uint8 [T, 18, 32, 3]; labels and weights float32 [T, 2]: cut here, inside."""
    whole, found, alike = stretch(rng, footage, count)
    labels, weights = np.zeros((len(whole), 2), np.float32), np.ones((len(whole), 2), np.float32)
    for one, like in zip(found, alike, strict=True):
        if one.kind == "cut":
            labels[one.first, 0] = 1
            weights[one.first, 0] = 0 if like else 4
        else:
            labels[one.first : one.last, 1] = 1
            weights[max(one.first - 1, 0) : one.last + 1, 0] = 0.2
            if like:
                weights[one.first : one.last] = 0
    start = int(rng.integers(0, max(len(whole) - count, 0) + 1))
    part = slice(start, start + count)
    frames = np.stack([shrunken(picture) for picture in noisy(rng, whole[part])])
    missing = count - len(frames)
    assert missing == 0
    return frames, labels[part], weights[part]


def stretch(
    rng: np.random.Generator, footage: Footage, count: int
) -> tuple[np.ndarray, list[Transition], list[bool]]:
    """Shots joined to `count` frames or more, the transitions, and which join like pictures."""
    whole = one_shot(rng, footage, 0)
    found: list[Transition] = []
    alike: list[bool] = []
    while len(whole) < count:
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        length = num_frames_of(rng, kind)
        length = min(length, len(whole) - (found[-1].last if found else 0) - 2)
        if kind != "cut" and length < 2:
            kind = "cut"
        after = one_shot(rng, footage, length)
        joined, one = join(rng, whole, after, kind, max(length, 2))
        apart = np.abs(whole[-1].astype(np.float32) - after[0]).mean()
        if kind in ("cut", *GRADUAL[:1], "wipe", "slide", "zoom"):
            alike.append(bool(apart < LIKE))
        else:
            alike.append(False)
        found.append(one)
        whole = joined
    if rng.random() < 0.25:  # the video's end and beginning, as the detector pads them
        whole, found = held(rng, whole, found)
    return whole, found, alike


def held(
    rng: np.random.Generator, whole: np.ndarray, found: list[Transition]
) -> tuple[np.ndarray, list[Transition]]:
    """The same after a first frame that is held for a while."""
    lead = int(rng.integers(10, 80))
    moved = [Transition(t.kind, t.first + lead, t.last + lead) for t in found]
    return np.concatenate([np.repeat(whole[:1], lead, 0), whole]), moved


def one_shot(rng: np.random.Generator, footage: Footage, least: int) -> np.ndarray:
    """A shot of at least `least` + 4 frames, in four of ten disturbed."""
    count = least + 4 + int(rng.choice(LENGTHS))
    out = shot(rng, footage, count)
    if rng.random() < 0.4:
        names = [*DISTURBANCES, *HARDEST, *HARDEST]
        out = DISTURBANCES[names[rng.integers(len(names))]](rng, out)
    return out


def num_frames_of(rng: np.random.Generator, kind: str) -> int:
    if kind == "cut":
        return 0
    if kind == "flash":
        return int(rng.integers(2, 9))
    if kind in ("wipe", "slide", "zoom"):
        return int(rng.integers(4, 36))
    return int(np.exp(rng.uniform(np.log(4), np.log(100))))


def noisy(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """Bars, a logo that stays, and noise over all."""
    out = frames.copy()
    if rng.random() < 0.15:
        bar = int(rng.integers(1, 8))
        if rng.random() < 0.6:
            out[:, :bar] = out[:, -bar:] = 0
        else:
            out[:, :, : 2 * bar] = out[:, :, -2 * bar :] = 0
    if rng.random() < 0.15:
        y, x = int(rng.integers(0, 30)), int(rng.integers(0, 54))
        out[:, y : y + 5, x : x + 9] = rng.uniform(0, 255, 3)
    if rng.random() < 0.4:
        noise = rng.standard_normal(out.shape, np.float32) * rng.uniform(1, 6)
        out = clipped(out + noise)
    return out
