"""Videos with known transitions: held-out shots joined and disturbed, and films seen by eye."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from scene_cases import DISTURBANCES, Transition, join

SIDES = (640, 360)  # px
FPS = 24
SHOT_FRAMES = (60, 96)  # of a shot of its own, beside its transitions
SHOTS = 8  # of a video
# kind and frames; of fades all that is mixed, half of either shot.
KINDS: dict[str, tuple[str, int]] = {
    "cut": ("cut", 0), "dissolve 6": ("dissolve", 6), "dissolve 12": ("dissolve", 12),
    "dissolve 24": ("dissolve", 24), "dissolve 48": ("dissolve", 48),
    "fade black 12": ("fade_black", 12), "fade black 24": ("fade_black", 24),
    "fade black 48": ("fade_black", 48), "fade white 24": ("fade_white", 24),
    "wipe 16": ("wipe", 16), "slide 12": ("slide", 12), "zoom 12": ("zoom", 12),
    "flash 4": ("flash", 4),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A video, what is in it, and its true transitions."""

    kind: str
    path: Path
    transitions: list[Transition]


def film_cases(media: Path, more: Path) -> list[Case]:
    """Films as they were edited. The frames were read off pictures of all frames in question."""
    cuts = {
        media / "big_buck_bunny_720p.mp4": [
            285, 378, 553, 1145, 1346, 1456, 1531, 1666, 1711, 1763, 1813, 1919, 2154, 2194, 2394,
            2494, 2704, 2831, 2901, 2963, 3045, 3513, 3578, 3744, 3860, 3895, 3919, 3989, 4032,
            4069, 4227, 4266, 4332, 4463, 4544, 4612, 4672, 4697, 4726, 4796, 4900, 4942, 4979,
            5013, 5079, 5131, 5292, 5307, 5371, 5430, 5518, 5579, 5809, 5844, 6018, 6048, 6088,
            6128, 6168, 6208, 6228, 6268, 6308, 6348, 6388,
        ],
        media / "big_buck_bunny_trailer_720p.mp4": [593, 864, 900, 988, 1049],
        media / "city_cc0_720x405.mpg": [116],
        more / "bikes.mp4": [30, 76, 137, 187, 242],
    }  # fmt: skip
    fades = {
        "big_buck_bunny_720p.mp4": [(0, 50)],
        "big_buck_bunny_trailer_720p.mp4": [(0, 28), (215, 265), (311, 363), (742, 796),
                                            (1098, 1172), (1200, 1252)],
    }  # fmt: skip
    dissolves = {"big_buck_bunny_720p.mp4": [(754, 808)]}
    out = []
    for path, at in cuts.items():
        if path.exists():
            known = [Transition("cut", frame, frame) for frame in at]
            known += [Transition("fade_black", *span) for span in fades.get(path.name, [])]
            known += [Transition("dissolve", *span) for span in dissolves.get(path.name, [])]
            out.append(Case("film", path, sorted(known, key=lambda one: one.first)))
    return out


def made_cases(listed: Path, folders: list[Path], per_kind: int, output: Path) -> list[Case]:
    """`per_kind` videos of every kind of transition, one less of every disturbance; made once."""
    output.mkdir(parents=True, exist_ok=True)
    wanted = [(k, i) for k in KINDS for i in range(per_kind)]
    wanted += [(k, i) for k in DISTURBANCES for i in range(per_kind - 1)]
    paths = {(k, i): output / f"{k.replace(' ', '_')}_{i}.mp4" for k, i in wanted}
    shots: list[np.ndarray] = []
    out = []
    for kind, i in wanted:
        path, known = paths[kind, i], paths[kind, i].with_suffix(".json")
        if not known.exists():
            shots = shots or held_out(listed, folders)
            rng = np.random.default_rng([zlib.crc32(kind.encode()), i])
            frames, found = (
                joined(rng, shots, kind) if kind in KINDS else disturbed(rng, shots, kind)
            )
            write(path, frames)
            known.write_text(json.dumps([asdict(one) for one in found]))
        found = [Transition(**one) for one in json.loads(known.read_text())]
        out.append(Case(kind, path, found))
    return out


def held_out(listed: Path, folders: list[Path]) -> list[np.ndarray]:
    """The shots named by lines FILE START END, in frames, at SIDES; uint8 BGR."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for line in listed.read_text().splitlines():
        if line and not line.startswith("#"):
            name, first, last = line.split()
            spans.setdefault(name, []).append((int(first), int(last)))
    out = []
    for name, wanted in spans.items():
        path = next((f / name for f in folders if (f / name).exists()), None)
        if path is None:
            print(f"{name} is in none of the folders: left out")
            continue
        with av.open(str(path)) as container:
            kept: list[list[np.ndarray]] = [[] for _ in wanted]
            for number, frame in enumerate(container.decode(video=0)):
                inside = [k for k, (a, b) in zip(kept, wanted, strict=True) if a <= number < b]
                for frames in inside:
                    picture = frame.to_ndarray(format="bgr24")
                    frames.append(cv2.resize(picture, SIDES, interpolation=cv2.INTER_AREA))
        out += [np.stack(frames) for frames in kept]
    return out


def part(rng: np.random.Generator, shot: np.ndarray, count: int) -> np.ndarray:
    """`count` frames of a shot, there and back again where it is shorter."""
    way = int(rng.integers(max(len(shot) - count, 0) + 1)) + np.arange(count)
    return shot[len(shot) - 1 - np.abs(way % (2 * len(shot) - 2) - (len(shot) - 1))]


def joined(
    rng: np.random.Generator, shots: list[np.ndarray], kind: str
) -> tuple[np.ndarray, list[Transition]]:
    """SHOTS different shots with one kind of transition between them."""
    name, length = KINDS[kind]
    chosen = rng.choice(len(shots), SHOTS, replace=False)
    lengths = rng.integers(*SHOT_FRAMES, SHOTS) + 2 * length
    whole = part(rng, shots[chosen[0]], int(lengths[0]))
    found = []
    for index, count in zip(chosen[1:], lengths[1:], strict=True):
        whole, one = join(rng, whole, part(rng, shots[index], int(count)), name, length)
        found.append(one)
    return whole, found


def disturbed(
    rng: np.random.Generator, shots: list[np.ndarray], kind: str
) -> tuple[np.ndarray, list[Transition]]:
    """SHOTS shots disturbed by what is no transition, with cuts between them."""
    chosen = rng.choice(len(shots), SHOTS, replace=False)
    parts = [
        DISTURBANCES[kind](rng, part(rng, shots[i], int(rng.integers(*SHOT_FRAMES))))
        for i in chosen
    ]
    cuts = np.cumsum([len(p) for p in parts])[:-1]
    return np.concatenate(parts), [Transition("cut", int(at), int(at)) for at in cuts]


def write(path: Path, frames: np.ndarray) -> None:
    """H.264 at CRF 23, as videos come."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", FPS, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *SIDES, "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())
