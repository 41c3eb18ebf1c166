"""The score `interlaced` on videos made combed, and on progressive ones that are hard to tell.

    python benchmarks/interlaced.py --media FOLDER --seconds 4 --json

Every kind is made of a few seconds of each video by ffmpeg, encoded, and decoded as curation does.
Combed ones have half of the frame rate, the fields of a frame being two frames. A row: how many
videos are over the bound of `web`, their scores, and how many looks had motion. The cost is that of
the track against the decode that feeds it, CPU seconds of one process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from curation.media.frames import decode
from curation.media.probes import probe
from curation.pipelines import load_pipeline
from curation.scores.combing import CombingTrack

ROOT = Path(__file__).parents[1]
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "23")
FLAGGED = ("-flags", "+ilme+ildct")
TFF = "tinterlace=interleave_top"
SOFT = "tinterlace=interleave_top:flags=vlpf"  # as cameras do it
WHOLE = "crop=iw:trunc(ih/4)*4"  # interlaced H.264 has lines in fours
STILL = "loop=-1:1,trim=end_frame=150,setpts=N/25/TB"
COMBED = {
    "top field first, flagged": (f"{TFF},setfield=tff", (*X264, *FLAGGED)),
    "bottom field first, flagged": ("tinterlace=interleave_bottom,setfield=bff", (*X264, *FLAGGED)),
    "lines softened, flagged": (SOFT, (*X264, *FLAGGED)),
    "encoded as progressive": (f"{TFF},setfield=prog", X264),
    "softened, as progressive": (f"{SOFT},setfield=prog", X264),
    "as progressive, crf 35": (TFF, (*X264, "-crf", "35")),
    "MPEG-2": (TFF, ("-c:v", "mpeg2video", "-q:v", "4", *FLAGGED)),
    "telecined 2:3": ("telecine=pattern=23", X264),
    "noisy": (f"{TFF},noise=alls=12:allf=t", X264),
    "scaled to 0.75 of its lines": (f"{TFF},scale=iw:trunc(ih*3/8)*2", X264),
}
PROGRESSIVE = {
    "as it is": ("null", X264),
    "flagged interlaced (PsF)": ("setfield=tff", (*X264, *FLAGGED)),
    "frames repeated": ("fps=60", X264),
    "noisy, flagged": ("noise=alls=12:allf=t,setfield=tff", (*X264, *FLAGGED)),
    "crf 35": ("null", (*X264, "-crf", "35")),
    "deinterlaced": (f"{TFF},bwdif=send_frame:tff:all", X264),
    **{
        f"page rolls by {n} px": (f"{STILL},scale=-2:720,scroll=vertical={n / 720}", X264)
        for n in (1, 2, 3)
    },
}
STRIPES = {
    f"stripes of {period} lines, by {step}": (period, step)
    for period in (2, 3, 4, 6, 8)
    for step in (1, 2, 3)
}


def ffmpeg(*arguments: object) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error"]
    subprocess.run([*command, *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def looked_at(path: Path) -> tuple[float, np.ndarray]:
    """A video's score, and how uneven its looks with motion are."""
    track = CombingTrack()
    for timeline, frame in decode(path, num_threads=1):
        now_s = timeline.time_s(timeline.num_frames - 1)
        track.add(now_s, frame, np.empty(0), np.empty(0))
    return track.between(0, np.inf)["interlaced"] or 0.0, np.abs(track.uneven(0, np.inf))


def row(kind: str, found: list[tuple[float, np.ndarray]], bound: float) -> int:
    """Print what was found of a kind's videos; how many are over the bound."""
    over = sum(score > bound for score, _ in found)
    told = " ".join(f"{score:.2f}" if len(looks) else "-" for score, looks in found)
    looks = sum(len(looks) for _, looks in found)
    print(f"| {kind} | {over} of {len(found)} | {told} | {looks} |", flush=True)
    return over


def cost(path: Path) -> float:
    """The track's CPU against that of the decode that feeds it."""
    cv2.setNumThreads(1)
    track, spent, start = CombingTrack(), 0.0, time.process_time()
    for timeline, frame in decode(path, num_threads=1):
        before = time.process_time()
        now_s = timeline.time_s(timeline.num_frames - 1)
        track.add(now_s, frame, np.empty(0), np.empty(0))
        spent += time.process_time() - before
        if now_s > 60:
            break
    return spent / (time.process_time() - start - spent)


def stripes(period: int, step: int, target: Path) -> None:
    """Stripes of `period` lines that go down by `step` lines a frame."""
    lines = f"if(lt(mod(Y-{step}*N+900,{period}),{period}/2),200,40)"
    picture = f"nullsrc=s=320x180:r=25:d=3,format=gray,geq=lum='{lines}',format=yuv420p"
    ffmpeg("-f", "lavfi", "-i", picture, *X264, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--media", type=Path, default=ROOT / "examples/media")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--start", type=float, default=0.0, help="seconds; of longer videos alone")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    bound = load_pipeline(ROOT / "pipelines.yaml", "web", []).rules["interlaced"].max or 0.0
    videos = sorted(p for p in given.media.iterdir() if p.suffix in (".mp4", ".mpg", ".mkv"))
    longest_s = {video: (probe(video).duration_s or 0) - given.seconds for video in videos}
    starts = {v: given.start if s > given.start else 0.0 for v, s in longest_s.items()}
    print(", ".join(video.name for video in videos))
    print("| kind | over | scores; -: nothing moves | looks |")
    print("|---|---|---|---|")
    totals = {"combed": [0, 0], "progressive": [0, 0]}
    with tempfile.TemporaryDirectory() as folder:
        for name, kinds in (("combed", COMBED), ("progressive", PROGRESSIVE)):
            for kind, (filters, options) in kinds.items():
                found = []
                for video in videos:
                    target = Path(folder) / "made.ts"
                    made = ("-vf", f"{WHOLE},{filters}", *options, target)
                    ffmpeg("-ss", starts[video], "-t", given.seconds, "-i", video, "-an", *made)
                    found.append(looked_at(target))
                totals[name][0] += row(f"{name}: {kind}", found, bound)
                totals[name][1] += len(found)
        for kind, (period, step) in STRIPES.items():
            target = Path(folder) / "stripes.mp4"
            stripes(period, step, target)
            totals["progressive"][0] += row(f"progressive: {kind}", [looked_at(target)], bound)
            totals["progressive"][1] += 1
    costs = {video.name: cost(video) for video in videos}
    for name, (over, of) in totals.items():
        print(f"{name}: {over} of {of} over {bound}")
    for name, share in costs.items():
        print(f"{name}: {share:.4f} decodes")
    if given.json:
        print(json.dumps({"over": totals, "cost_in_decodes": costs}))


if __name__ == "__main__":
    main()
