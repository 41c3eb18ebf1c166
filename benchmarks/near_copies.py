"""Near copies: how well re-made copies are found among other shots, and what a million clips cost.

    python benchmarks/near_copies.py --media FILE [FILE ...] --work FOLDER [--json]
    python benchmarks/near_copies.py --million [--clips 1000000] [--json]

Every video is copied in each way of WAYS; the originals and each kind of copies are analysed as
curation analyses them, each with cuts of its own, and compared as vf-clean compares them. Copies
and what was found of them stay in the --work folder. Name no two videos that show the same.

cut alike: clips of a copy whose cuts are those of an original's clip (they share 90% of their time
together); found: of these, those nearer than --distance to it; recall: found / cut alike. false:
pairs nearer than that of clips that share no time; precision: true pairs / all pairs, both of what
shares time counted as true.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from filters import show

from curation.decode.analyses import analyse
from curation.media.probes import probe
from curation.pipelines import load_pipeline
from curation.sources import Source
from curation.subsets.near_copies import distances, near_pairs

CONFIG = Path(__file__).parents[1] / "pipelines.yaml"
SHORTEST_S = 1.0  # of the clips that are compared
CUT_ALIKE = 0.9
EVEN = "2*trunc(iw/4):2*trunc(ih/4)"  # half of the size
EVEN_SIDES = "scale=2*trunc(iw/2):2*trunc(ih/2)"
MARK = (
    "drawbox=x=iw*0.84:y=ih*0.05:w=iw*0.12:h=ih*0.1:c=white@0.8:t=fill,"
    "drawbox=x=iw*0.86:y=ih*0.07:w=iw*0.08:h=ih*0.06:c=red@0.9:t=fill"
)
# By name: ffmpeg's filter, crf and how much faster it is.
WAYS: dict[str, tuple[str, int, float]] = {
    "crf": ("null", 35, 1.0),
    "half": (f"scale={EVEN}", 30, 1.0),
    "crop": ("crop=iw*0.95:ih*0.95", 26, 1.0),
    "crop10": ("crop=iw*0.9:ih*0.9", 26, 1.0),
    "box": (f"pad=iw:ih*4/3:0:(oh-ih)/2,scale={EVEN}", 26, 1.0),
    "white": (f"pad=iw*1.1:ih*1.1:(ow-iw)/2:(oh-ih)/2:color=white,scale={EVEN}", 26, 1.0),
    "logo": (MARK, 26, 1.0),
    "retime": ("setpts=PTS/1.25,fps=30", 26, 1.25),
    "mirror": (f"hflip,scale={EVEN}", 26, 1.0),
}
TOLD = {
    "crf": "re-encoded, crf 35",
    "half": "half the size, crf 30",
    "crop": "cropped, 5% of each side's length",
    "crop10": "cropped, 10%",
    "box": "letterboxed into 4:3, half the size",
    "white": "white border of 5% all around",
    "logo": "opaque corner logo, 12% x 10%",
    "retime": "1.25 times as fast, 30 frames per second",
    "mirror": "mirrored (not supported)",
}


def copied(path: Path, way: str, folder: Path) -> Path:
    """A copy of a video, made once."""
    chain, crf, _ = WAYS[way]
    out = folder / f"{path.stem}.{way}.mp4"
    if not out.exists():
        scratch = folder / f"making.{way}.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error"]
        command += ["-i", str(path), "-an", "-vf", f"{chain},{EVEN_SIDES}", "-c:v", "libx264"]
        command += ["-preset", "ultrafast", "-crf", str(crf), str(scratch)]
        subprocess.run(command, check=True)
        scratch.rename(out)
    return out


def clips_of(path: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times float [N, 2] and hashes uint64 [N, 16] of a video's clips; decoded once."""
    stored = folder / f"{path.name}.pickle"
    if not stored.exists():
        pipeline = load_pipeline(CONFIG, "web", [])
        source = Source(url=str(path), path=str(path))
        found = analyse(source, probe(path), pipeline, lambda _: None)
        spans = [tuple(found.timeline.time_s(i) for i in span) for span in found.spans]
        boxes = [found.overview.bars.picture(*span) for span in spans]
        stored.write_bytes(pickle.dumps((found.overview.hashes, spans, boxes)))
    hashes, spans, boxes = pickle.loads(stored.read_bytes())
    long = [(s, b) for s, b in zip(spans, boxes, strict=True) if s[1] - s[0] >= SHORTEST_S and b]
    told = b"".join(hashes.of_clip(*span, box) for span, box in long)
    times = np.array([span for span, _ in long]).reshape(-1, 2)
    return times, np.frombuffer(told, "<u8").reshape(-1, 16)


def shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The share of their time together that clips [N, 2] and [M, 2] of one video share: [N, M]."""
    starts, ends = first[:, None], second[None]
    both = np.minimum(starts[..., 1], ends[..., 1]) - np.maximum(starts[..., 0], ends[..., 0])
    union = np.maximum(starts[..., 1], ends[..., 1]) - np.minimum(starts[..., 0], ends[..., 0])
    return np.maximum(both, 0) / union


def compare(way: str, media: list[Path], folder: Path, distance: float) -> dict[str, Any]:
    """One kind of copies against all originals."""
    times, hashes, video, is_copy = [], [], [], []
    for number, path in enumerate(media):
        for copy in (False, True):
            of_clips, of_hashes = clips_of(copied(path, way, folder) if copy else path, folder)
            times.append(of_clips * (WAYS[way][2] if copy else 1.0))
            hashes.append(of_hashes)
            video += [number] * len(of_clips)
            is_copy += [copy] * len(of_clips)
    all_times, all_hashes = np.concatenate(times), np.concatenate(hashes)
    videos, copies = np.array(video), np.array(is_copy)
    share = shared(all_times, all_times) * (videos[:, None] == videos[None])
    order = np.lexsort(all_hashes.T)  # as find_copies has them, but for those quite alike
    pairs = order[near_pairs(all_hashes[order], distance)[0]]
    near = np.zeros(share.shape, bool)
    near[pairs[:, 0], pairs[:, 1]] = near[pairs[:, 1], pairs[:, 0]] = True
    crossed = share * (copies[:, None] & ~copies[None])
    partner = crossed.argmax(axis=1)
    alike = np.flatnonzero(crossed.max(axis=1) >= CUT_ALIKE)
    far = distances(all_hashes[alike], all_hashes[partner[alike]])
    upper = np.triu(near, 1)
    true, false = int((upper & (share > 0)).sum()), int((upper & (share == 0)).sum())
    found = int(near[alike, partner[alike]].sum())
    return {
        "kind": TOLD[way],
        "clips": int(copies.sum()),
        "cut alike": len(alike),
        "found": found,
        "recall": found / len(alike) if len(alike) else None,
        "false": false,
        "precision": true / (true + false) if true + false else None,
        "farthest copy": float(far[np.isfinite(far)].max()) if np.isfinite(far).any() else None,
    }


def unlike(media: list[Path], folder: Path, distance: float) -> list[dict[str, Any]]:
    """The nearest pairs of different shots among the originals, by pictures alone and by all."""
    found = [clips_of(path, folder) for path in media]
    hashes = np.concatenate([each for _, each in found])
    first, second = np.triu_indices(len(hashes), 1)
    whole = distances(hashes[first], hashes[second])
    still = hashes.copy()
    still[:, 8:] = 0
    pictures = distances(still[first], still[second])
    rows = []
    for name, far in (("pictures alone", pictures), ("pictures and motion", whole)):
        rows.append(
            {
                "of": name, "clips": len(hashes), "pairs": len(far),
                "nearer": int((far < distance).sum()), "nearest": float(far.min()),
                "2nd": float(np.sort(far)[1]), "5th": float(np.sort(far)[4]),
                "median": float(np.median(far[np.isfinite(far)])),
            }
        )  # fmt: skip
    return rows


def million(number: int, distance: float) -> dict[str, Any]:
    """Seconds and peak memory of finding near copies among so many made-up clips.

    Every hundredth is a copy of another one with a tenth of its bits changed.
    """
    rng = np.random.default_rng(0)
    top = np.uint64(1 << 63)
    hashes = rng.integers(0, 1 << 63, (number, 16), dtype=np.uint64) | top
    copies = number // 100
    changed = hashes[:copies].copy()
    for bit in range(63):
        changed ^= (rng.random((copies, 16)) < 0.1).astype(np.uint64) << np.uint64(bit)
    hashes[-copies:] = changed
    started, cpu = time.perf_counter(), time.process_time()
    order = np.lexsort(hashes.T)
    pairs, _ = near_pairs(hashes[order], distance)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    sides = np.sort(order[pairs], axis=1)
    right = (sides[:, 0] < copies) & (sides[:, 1] == sides[:, 0] + number - copies)
    return {
        "clips": number, "wall_s": wall_s, "cpu_s": cpu_s,
        # ru_maxrss is in KiB on Linux.
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "copies": copies, "found": int(right.sum()), "false": int((~right).sum()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--media", type=Path, nargs="+", default=[])
    parser.add_argument("--work", type=Path, help="where copies stay; default: a temporary folder")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--distance", type=float, default=16.0)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    result: dict[str, Any] = {"distance": given.distance}
    if given.media:
        with tempfile.TemporaryDirectory() as scratch:
            folder = given.work or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            result["kinds"] = [
                compare(way, given.media, folder, given.distance) for way in given.ways
            ]
            result["unlike"] = unlike(given.media, folder, given.distance)
        show(f"copies, nearer than {given.distance:g} bits of 64", result["kinds"])
        show("different shots", result["unlike"])
    if given.million:
        result["million"] = million(given.clips, given.distance)
        show("many clips", [result["million"]])
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
