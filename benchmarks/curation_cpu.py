"""CPU seconds of curating a video, clips written, against one plain ffmpeg decode of it.

    python benchmarks/curation_cpu.py VIDEO --rounds 5 --set scorers.motion=flow --json

Both sides alternate in one run and the medians are compared. Counted are the media worker and all
its children for the whole video, and writing the commit; not counted is starting Python and Ray,
which is paid once and not per video.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg

from curation.flow.media_processes import MediaWorker
from curation.pipelines import Pipeline, load_pipeline
from curation.shards import Dataset, write_commit
from curation.sources import Source, content_id

ROOT = Path(__file__).parents[1]


def cpu_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def decode_s(video: str) -> float:
    """CPU seconds of `ffmpeg -threads 2 -i VIDEO -an -f null -`."""
    before = cpu_s(resource.RUSAGE_CHILDREN)
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-threads", "2", "-i", video, "-an", "-f", "null", "-"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return cpu_s(resource.RUSAGE_CHILDREN) - before


def curate_s(video: str, worker: MediaWorker, pipeline: Pipeline) -> tuple[dict[str, float], int]:
    """CPU seconds by stage of curating a video into a fresh dataset folder, and clips written."""
    source = Source(url=video, path=video, id=content_id(video))
    result = worker.curate(source, pipeline, lambda stage, at_s: None)
    before = cpu_s(resource.RUSAGE_SELF)
    with tempfile.TemporaryDirectory() as folder:
        clips = [clip.shard_row() for clip in result.clips]
        write_commit(Dataset.at(folder), clips, result.ledger, pipeline.fingerprints())
    stages = dict(result.video["stage_s"]) | {"write": cpu_s(resource.RUSAGE_SELF) - before}
    return stages, len(clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = str(ROOT / "examples/media/meadow.mp4")
    parser.add_argument("video", nargs="?", default=default)
    parser.add_argument("--pipeline", default="web")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    given = parser.parse_args()
    given.video = str(Path(given.video).resolve())  # the worker is in a folder of its own
    pipeline = load_pipeline(ROOT / "pipelines.yaml", given.pipeline, given.set)
    decodes, curations = [], []
    with MediaWorker(pipeline.media) as worker:
        curate_s(given.video, worker, pipeline)  # warm: imports are not the video's cost
        for _ in range(given.rounds):
            decodes.append(decode_s(given.video))
            curations.append(curate_s(given.video, worker, pipeline))
    decode = statistics.median(decodes)
    totals = [sum(stages.values()) for stages, _ in curations]
    ratio = statistics.median(t / d for t, d in zip(totals, decodes, strict=True))
    settings = " ".join([f"pipeline {given.pipeline}", *given.set])
    print(f"{given.video}, {settings}, {given.rounds} rounds, medians")
    print(f"{'ffmpeg decode, 2 threads':28} {decode:8.2f} CPU s")
    for stage in curations[0][0]:
        print(f"{stage:28} {statistics.median(s[stage] for s, _ in curations):8.2f} CPU s")
    print(f"{'curated':28} {statistics.median(totals):8.2f} CPU s, {curations[0][1]} clips written")
    print(f"{'ratio to decode':28} {ratio:8.2f}")
    if given.json:
        print(json.dumps({"cpu_ratio_to_decode": ratio, "decode_cpu_s": decode}))


if __name__ == "__main__":
    main()
