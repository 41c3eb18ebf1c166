"""What filters find of overlays: every case of overlay_cases.py through the one decode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from overlay_cases import Case, corpus, make

from curation.decode.analyses import Analysis, analyse
from curation.decode.jpegs import bgr_from_jpeg
from curation.media.probes import probe
from curation.pipelines import Pipeline, Scorers
from curation.scores.burnt_in_text import TextDetector, text_score
from curation.sources import Source

MAX_WATERMARK = 0.5  # rules.watermark.max of pipelines.yaml
MAX_TEXT = 0.005  # share of the picture: a line of 13 letters of 30 px in 720. Ours, not tuned
LOOKED_AT = 2  # the longest clips of a video are enough to tell whether text is found


def look(case: Case, path: Path) -> dict[str, Any]:
    """Take a case through the one decode; returns what it is and what was found."""
    if not path.exists():
        unfinished = path.with_name(f"unfinished_{path.name}")
        make(case, unfinished)
        unfinished.rename(path)
    pipeline = Pipeline(scorers=Scorers(text="rapidocr", watermark_unsure="drop"))
    source = Source(url=str(path), path=str(path))
    found = analyse(source, probe(path), pipeline, lambda at_s: None)
    truth = case.overlays[0].box if case.watermark else None
    row = {
        "kind": case.kind, "name": case.name, "duration_s": case.duration_s,
        "is_watermark": case.watermark, "is_text": case.text, "text": None,
        "watermark": found.watermark.score, "box": found.watermark.box, "truth": truth,
        "path": str(path),
    }  # fmt: skip
    if case.text is not None:
        row["text"] = max(text_of_clips(found), default=None)
    return row


def text_of_clips(found: Analysis) -> Iterator[float]:
    detector = TextDetector()
    times = [(found.timeline.time_s(a), found.timeline.time_s(b)) for a, b in found.spans]
    for start_s, end_s in sorted(times, key=lambda t: t[0] - t[1])[:LOOKED_AT]:
        looks = found.model_frames.of_clip(start_s, end_s)
        yield text_score(detector([bgr_from_jpeg(jpeg) for _, jpeg in looks]))[0]


def run(
    media: list[Path], seed: int, half: str, per_kind: int, jobs: int, folder: Path
) -> list[dict[str, Any]]:
    """Make and look at every case of a half; what `folder` already holds is not made again."""
    cases = list(corpus(half, media, seed, per_kind))
    paths = [folder / f"{half}_{i:03}.mp4" for i in range(len(cases))]
    with ProcessPoolExecutor(jobs) as pool:
        rows = list(pool.map(look, cases, paths))
    (folder / f"{half}.json").write_text(json.dumps(rows))
    return rows


def tables(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Recall and precision of watermark and text, by kind.

    Precision is that of a collection with as many marked as clean videos: recall / (recall + false
    rate), the false rate over every negative of the corpus.
    """
    return {name: table(rows, name, bound) for name, bound in BOUNDS.items()}


BOUNDS = {"watermark": MAX_WATERMARK, "text": MAX_TEXT}


def table(rows: list[dict[str, Any]], name: str, bound: float) -> list[dict[str, Any]]:
    judged = [row for row in rows if row[f"is_{name}"] is not None]
    negatives = [row for row in judged if not row[f"is_{name}"]]
    false_rate = sum(over(row, name, bound) for row in negatives) / max(len(negatives), 1)
    out = []
    for kind in dict.fromkeys(row["kind"] for row in judged):
        ours = [row for row in judged if row["kind"] == kind]
        hits = [over(row, name, bound) for row in ours]
        line: dict[str, Any] = {"kind": kind, "videos": len(ours), "over": sum(hits)}
        if name == "watermark":
            line["unsure"] = sum(row["watermark"] is None for row in ours)
            long = [row for row in ours if row["duration_s"] >= 15]
            line |= {"over, 15 s up": sum(over(r, name, bound) for r in long), "15 s up": len(long)}
        if ours[0][f"is_{name}"]:
            recall = sum(hits) / len(ours)
            line |= {"recall": recall, "precision": recall / max(recall + false_rate, 1e-9)}
        out.append(line)
    return out


def over(row: dict[str, Any], name: str, bound: float) -> bool:
    """Whether a rule would drop the video for what was found; no score is nothing found."""
    return row[name] is not None and row[name] > bound


def failures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every case that a rule would judge wrongly."""
    wrong = []
    for name, bound in BOUNDS.items():
        for row in rows:
            if row[f"is_{name}"] is not None and over(row, name, bound) != row[f"is_{name}"]:
                wrong.append({"score": name} | {k: row[k] for k in ("kind", "name", name, "box")})
    return wrong
