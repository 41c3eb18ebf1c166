"""One video through every stage that touches media: fetch, probe, decode once, decide, cut.

Runs inside a media worker (workers.py), so a crash or a hang here costs one video.
"""

from __future__ import annotations

import hashlib
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curation import frames
from curation.captions import SOURCE_TEXT, read_cues, source_caption
from curation.cuts.clips import Clip, cut
from curation.decode.analyses import Analysis, analyse, scoring
from curation.downloads import download
from curation.flow.holdings import decided, video_verdict
from curation.frames import MediaError, Probe
from curation.pipelines import Pipeline, Rule
from curation.rules import Verdict, judge, judge_headers
from curation.scores.headers import header_scores, static
from curation.scores.quality import technical_quality
from curation.shards import DROPPED, FAILED, KEPT, LEDGER_SCHEMA, SCORES, SHARD_SCHEMA
from curation.sources import Source, content_id

# Called with the stage and the position in the video, in seconds, whenever there is progress.
Beat = Callable[[str, float], None]


@dataclass
class VideoResult:
    """Everything decided about one video: ledger rows, and kept clips apart from their media."""

    ledger: list[dict[str, Any]]
    clips: list[dict[str, Any]] = field(default_factory=list)  # SHARD_SCHEMA rows, clip still None
    media: list[bytes] = field(default_factory=list)  # mp4 per clip, same order
    caption_frames: dict[str, list[bytes]] = field(default_factory=dict)  # JPEGs by clip_id
    overlay_frames: dict[str, list[bytes]] = field(default_factory=dict)  # likewise


class Stopwatch:
    """CPU seconds of this process and its children, by stage."""

    def __init__(self) -> None:
        self.stage_s: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        before = cpu_s()
        try:
            yield
        finally:
            self.stage_s[name] = self.stage_s.get(name, 0.0) + cpu_s() - before


def cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def curate_video(source: Source, pipeline: Pipeline, folder: Path, beat: Beat) -> VideoResult:
    """Take one source through fetch, probe, decode, rules and cut.

    `folder` is scratch space of this video's own. An unusable input comes back as a result whose
    video is failed, with its class; only our own mistakes raise.
    """
    watch = Stopwatch()
    try:
        with watch.stage("fetch"):
            beat("fetch", 0.0)
            source = fetch(source, pipeline, folder, beat)
        return curate_file(source, pipeline, watch, beat)
    except MediaError as error:
        row = failed_row(source, error.error_class, error.message, stage_s=watch.stage_s)
        return VideoResult([row])


def fetch(source: Source, pipeline: Pipeline, folder: Path, beat: Beat) -> Source:
    """The source with a local path and an id."""
    if source.path is None:
        return download(source, folder, pipeline.download, lambda: beat("fetch", time.monotonic()))
    if source.id is None and Path(source.path).is_file():
        return replace(source, id=content_id(source.path))
    return source


def curate_file(source: Source, pipeline: Pipeline, watch: Stopwatch, beat: Beat) -> VideoResult:
    path = source.path
    assert path is not None
    with watch.stage("probe"):
        probe = frames.probe(path)
    source = replace(source, title=source.title or probe.title)
    header = header_scores(probe)
    # Given spans may lie anywhere, so only the video's own length is a bound on theirs.
    verdict = judge_headers(header, pipeline.rules, probe.duration_s)
    if verdict:
        scores = header | {"duration": probe.duration_s}
        return VideoResult([video_row(source, scores, verdict, watch.stage_s)])
    with watch.stage("decode"):
        analysis = analyse(source, probe, pipeline, lambda at_s: beat("decode", at_s))
    candidates = judge_clips(source, analysis, header, pipeline)
    kept = [c for c in candidates if c.is_kept]
    with watch.stage("cut"):
        clips = cut(
            path,
            probe,
            analysis.timeline,
            [c.span for c in kept],
            pipeline.cut,
            lambda: beat("cut", 0.0),
        )
    return collect(source, probe, analysis, candidates, clips, pipeline, header, watch.stage_s)


# -- decisions


@dataclass(frozen=True)
class Candidate:
    """A stretch of frames that is a clip if every rule is met."""

    clip_id: str
    scene_index: int
    span: tuple[int, int]  # frames [first, last)
    start_s: float
    end_s: float
    scores: dict[str, float | None]
    verdict: Verdict | None
    error: MediaError | None = None  # it could not be scored

    @property
    def is_kept(self) -> bool:
        return self.verdict is None and self.error is None


def judge_clips(
    source: Source, analysis: Analysis, header: Mapping[str, float | None], pipeline: Pipeline
) -> list[Candidate]:
    """Every scene, or given span, of a video with its scores and the first rule it breaks."""
    candidates = []
    early = {n: rule for n, rule in pipeline.rules.items() if n not in pipeline.late_scores}
    for index, (first, last) in enumerate(analysis.spans):
        start_s, end_s = analysis.timeline.time_s(first), analysis.timeline.time_s(last)
        scores = dict(header) | {
            "duration": analysis.timeline.span_s(first, last),
            "static": static(analysis.steps[first : last - 1]),
            "black_bars": analysis.black_bars(start_s, end_s),
            "watermark": analysis.watermark.score,
        }
        error = None
        try:
            scores |= track_scores(analysis, start_s, end_s, pipeline)
        except MediaError as met:
            error = met
        candidates.append(
            Candidate(
                clip_id=clip_id(source.id or "", start_s, end_s),
                scene_index=index,
                span=(first, last),
                start_s=start_s,
                end_s=end_s,
                scores=scores,
                verdict=None if error else judge(scores, early),
                error=error,
            )
        )
    return candidates


def track_scores(
    analysis: Analysis, start_s: float, end_s: float, pipeline: Pipeline
) -> dict[str, float | None]:
    """The scores of a clip that scorers.motion, look and aesthetic switch on.

    Raises MediaError scorer, also for a score that is no number.
    """
    scores: dict[str, float | None] = {}
    with scoring():
        if analysis.motion is not None:
            scores |= analysis.motion.between(start_s, end_s)
        if analysis.look is not None:
            look = analysis.look.between(start_s, end_s)
            scores |= look
            if pipeline.scorers.aesthetic == "technical_quality":
                scores["aesthetic"] = technical_quality(look)
        for name, value in scores.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
    return scores


def clip_id(video_id: str, start_s: float, end_s: float) -> str:
    """The id of a cut of a video: its times to the millisecond, so any machine makes the same."""
    return f"{video_id}_{round(start_s * 1000):08d}_{round(end_s * 1000):08d}"


# -- rows


def collect(
    source: Source,
    probe: Probe,
    analysis: Analysis,
    candidates: list[Candidate],
    clips: list[Clip],
    pipeline: Pipeline,
    header: Mapping[str, float | None],
    stage_s: dict[str, float],
) -> VideoResult:
    """The rows of a decided video: the video's, every candidate's, and the kept clips'."""
    scored = [c for c in candidates if c.error is None]
    verdict = video_verdict([c.verdict for c in scored], pipeline.rules)
    box = analysis.watermark.box
    scores = dict(header) | {
        "duration": analysis.timeline.duration_s,
        "watermark": analysis.watermark.score,
    }
    result = VideoResult([video_row(source, scores, verdict, stage_s, box)])
    result.ledger += outside_rows(source, analysis)
    if not candidates:
        result.ledger[0] |= outside_error(analysis)
    elif not scored:
        result.ledger[0] |= scorer_error(candidates[0])
    cues = read_cues(source.path or "")
    media = iter(clips)
    for candidate in candidates:
        caption = source_caption(source, cues, candidate.start_s, candidate.end_s)
        if pipeline.captions.model != SOURCE_TEXT:
            caption = None
        preview = analysis.previews.of_clip(candidate.start_s, candidate.end_s)
        result.ledger.append(clip_row(source, candidate, caption, box, preview))
        if candidate.is_kept:
            clip = next(media)
            row = shard_row(source, probe, candidate, clip)
            if pipeline.captions.model == SOURCE_TEXT:
                row |= {"caption": caption, "caption_model": SOURCE_TEXT if caption else None}
            else:
                pictures = analysis.caption_frames.of_clip(candidate.start_s, candidate.end_s)
                row["caption_frame_s"] = [t for t, _ in pictures]
                result.caption_frames[candidate.clip_id] = [jpeg for _, jpeg in pictures]
            if pipeline.late_scores:
                looks = analysis.overlay_frames.of_clip(candidate.start_s, candidate.end_s)
                result.overlay_frames[candidate.clip_id] = [jpeg for _, jpeg in looks]
            result.clips.append(row)
            result.media.append(clip.data)
    return result


def ledger_row(source: Source, **known: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA.names)
    # A source that failed before it had an id is known by where it is.
    video_id = source.id or hashlib.sha256(source.url.encode()).hexdigest()[:20]
    return empty | {"video_id": video_id, "source_url": source.url, "attempts": 1} | known


def video_row(
    source: Source,
    scores: Mapping[str, float | None],
    verdict: Verdict | None,
    stage_s: dict[str, float],
    box: tuple[float, ...] | None = None,
) -> dict[str, Any]:
    return ledger_row(
        source, level="video", stage_s=stage_s, watermark_box=box, **scores, **decided(verdict)
    )


def clip_row(
    source: Source,
    candidate: Candidate,
    caption: str | None,
    box: tuple[float, ...] | None,
    preview: list[bytes],
) -> dict[str, Any]:
    return ledger_row(
        source,
        level="clip",
        clip_id=candidate.clip_id,
        start_s=candidate.start_s,
        end_s=candidate.end_s,
        caption=caption,
        watermark_box=box,
        preview=preview,
        **candidate.scores,
        **(scorer_error(candidate) if candidate.error else decided(candidate.verdict)),
    )


def scorer_error(candidate: Candidate) -> dict[str, Any]:
    """The outcome of a clip that could not be scored, or of a video that has no other."""
    assert candidate.error is not None
    message = candidate.error.message[:2000]
    return {"decision": FAILED, "error_class": candidate.error.error_class, "message": message}


def failed_row(source: Source, error_class: str, message: str, **known: Any) -> dict[str, Any]:
    """The ledger row of a video that could not be curated."""
    return ledger_row(
        source,
        level="video",
        decision=FAILED,
        error_class=error_class,
        message=message[:2000],
        **known,
    )


def outside_error(analysis: Analysis) -> dict[str, Any]:
    """The outcome of a given span, or of a video with no other, that holds no frame."""
    message = f"no frame of the video is inside; it ends at {analysis.timeline.duration_s:.3f} s"
    return {"decision": FAILED, "error_class": "outside", "message": message}


def outside_rows(source: Source, analysis: Analysis) -> list[dict[str, Any]]:
    """The ledger rows of given spans that hold no frame of the video."""
    return [
        ledger_row(
            source,
            level="clip",
            clip_id=clip_id(source.id or "", span.start_s, span.end_s),
            start_s=span.start_s,
            end_s=span.end_s,
            **outside_error(analysis),
        )
        for span in analysis.outside
    ]


def shard_row(source: Source, probe: Probe, candidate: Candidate, clip: Clip) -> dict[str, Any]:
    first, last = candidate.span
    duration_s = candidate.scores["duration"]
    assert duration_s is not None
    empty: dict[str, Any] = dict.fromkeys(SHARD_SCHEMA.names)
    return empty | dict(
        clip_id=candidate.clip_id,
        video_id=source.id,
        source_url=source.url,
        title=source.title,
        category=source.category,
        uploader=source.uploader,
        license=source.license,
        upload_date=source.upload_date,
        start_s=candidate.start_s,
        end_s=candidate.end_s,
        duration_s=duration_s,
        fps=(last - first) / duration_s,
        num_frames=last - first,
        width=clip.width,
        height=clip.height,
        codec=clip.codec,
        scene_index=candidate.scene_index,
        **candidate.scores,
    )


def with_late_scores(
    result: VideoResult, found: Mapping[str, Mapping[str, Any]], rules: Mapping[str, Rule]
) -> VideoResult:
    """A result with the columns that models scored, joined by clip id, and decided anew.

    `found` holds by clip id the ledger columns of a kept clip, or the `error` that a scorer met. A
    clip whose scorer failed is failed, of class scorer, and so is a video that keeps none because
    of it; what a rule does not meet is dropped, its media with it.
    """
    kept = {row["clip_id"] for row in result.clips}
    failed = 0
    for row in result.ledger:
        if row["clip_id"] not in kept:
            continue
        columns = found[row["clip_id"]]
        if "error" in columns:
            failed += 1
            row |= {"decision": FAILED, "error_class": "scorer", "message": columns["error"]}
            continue
        row |= columns
        row |= decided(judge(row, rules))
    clip_rows = [row for row in result.ledger if row["level"] == "clip"]
    by_clip = {row["clip_id"]: row for row in clip_rows}
    pairs = [
        (row | scores_in(by_clip[row["clip_id"]]), data)
        for row, data in zip(result.clips, result.media, strict=True)
        if by_clip[row["clip_id"]]["decision"] == KEPT
    ]
    if kept and not pairs:
        judged = [row for row in clip_rows if row["decision"] == DROPPED]
        verdicts: list[Verdict | None] = [
            Verdict(row["rule"], row["value"], row["threshold"]) for row in judged
        ]
        lost = {"decision": FAILED, "error_class": "scorer"}
        result.ledger[0] |= lost if failed else decided(video_verdict(verdicts, rules))
    return left_of(result, pairs)


def scores_in(ledger_row: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of a ledger row, users' own among them."""
    others = set(LEDGER_SCHEMA.names) - set(SCORES)
    return {name: value for name, value in ledger_row.items() if name not in others}


def with_captions(
    result: VideoResult, captions: Mapping[str, Sequence[str | Exception]], model: str
) -> VideoResult:
    """A result with a model's captions, joined by clip id; several frames' are told once each.

    A kept clip that could not be captioned is failed, of class caption, and so is a video that
    keeps no clip because of it.
    """
    texts = {c: [t for t in given if isinstance(t, str) and t] for c, given in captions.items()}
    errors = {c: e for c, given in captions.items() for e in given if isinstance(e, Exception)}
    errors |= {
        row["clip_id"]: MediaError("caption", "no frame was taken from this clip")
        for row in result.clips
        if row["clip_id"] not in captions
    }
    for row in result.ledger:
        if error := errors.get(row["clip_id"]):
            row |= {"decision": FAILED, "error_class": "caption", "message": str(error)[:2000]}
        elif row["clip_id"] in texts:
            row["caption"] = "; ".join(dict.fromkeys(texts[row["clip_id"]])) or None
    by_clip = {row["clip_id"]: row for row in result.ledger if row["level"] == "clip"}
    pairs = [
        (row | {"caption": by_clip[row["clip_id"]]["caption"], "caption_model": model}, data)
        for row, data in zip(result.clips, result.media, strict=True)
        if row["clip_id"] not in errors
    ]
    if result.clips and not pairs:
        result.ledger[0] |= {"decision": FAILED, "error_class": "caption"}
    return replace(left_of(result, pairs), caption_frames={})


def left_of(result: VideoResult, pairs: list[tuple[dict[str, Any], bytes]]) -> VideoResult:
    """A result with the clips and media that are left, and their frames."""
    left = {row["clip_id"] for row, _ in pairs}
    frames = [
        {clip_id: jpegs for clip_id, jpegs in each.items() if clip_id in left}
        for each in (result.caption_frames, result.overlay_frames)
    ]
    return VideoResult(result.ledger, [r for r, _ in pairs], [data for _, data in pairs], *frames)
