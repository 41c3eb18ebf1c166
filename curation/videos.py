"""One video through every stage that touches media: fetch, probe, decode once, decide, cut.

Runs inside a media process (flow/media_processes.py), so a crash or a hang here costs one video.
"""

from __future__ import annotations

import errno
import math
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from curation.captions import SOURCE_TEXT, source_caption
from curation.cuts.clips import cut
from curation.cuts.encodes import Clip
from curation.decode.analyses import Analysis, analyse
from curation.decode.tracks import scoring
from curation.media import probes
from curation.media.files import MediaError
from curation.media.frames import Timeline
from curation.media.subtitle_tracks import track_cues
from curation.pipelines import Pipeline, Rule
from curation.records import (
    Beat,
    Candidate,
    KeptClip,
    VideoResult,
    clip_id,
    clip_row,
    decided,
    failed_row,
    failure,
    outcome_of,
    outside_row,
    shard_row,
    video_row,
)
from curation.rules import judge, judge_headers, video_verdict
from curation.scores.combing import CombingTrack, FieldOrder
from curation.scores.headers import header_scores
from curation.sources import Source, stamp_of
from curation.sources.identified import with_content_id
from curation.sources.subtitles import Cue, read_cues, with_subtitles


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
        result = curate_file(source, pipeline, watch, beat)
        if found := written_to(source):
            raise found
        return result
    except (MediaError, OSError, MemoryError) as error:
        return failed(source, error, watch)


def fetch_video(
    source: Source, pipeline: Pipeline, room: Path, folder: Path, beat: Beat
) -> tuple[Source | VideoResult, float]:
    """The first step of `curate_video` alone, so that others can be decoded meanwhile.

    Returns the source with a file in `room`, or the result of one that has failed; and the CPU
    seconds it took, for `with_cost`.
    """
    watch = Stopwatch()
    try:
        with watch.stage("fetch"):
            beat("fetch", 0.0)
            source = fetch(source, pipeline, room, beat)
    except (MediaError, OSError, MemoryError) as error:
        return failed(source, error, watch), 0.0
    return source, watch.stage_s["fetch"]


def failed(
    source: Source, met: MediaError | OSError | MemoryError, watch: Stopwatch
) -> VideoResult:
    """The result of a video that met an error; what is our own mistake is raised."""
    error = written_to(source) or met if isinstance(met, MediaError) else machine_error(met)
    if error is None:
        raise met
    row = failed_row(source, error.error_class, error.message, stage_s=watch.stage_s)
    return VideoResult([row])


def machine_error(error: OSError | MemoryError) -> MediaError | None:
    """The fault of the machine that an error tells of, or None."""
    if isinstance(error, MemoryError):
        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return MediaError("memory", "it wants more than its process may have (media.memory_gb)")
        return MediaError("no_memory", "the machine has no memory left for this video")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MediaError("disk_full", f"{error}; give TMPDIR more room")
    return None


def fetch(source: Source, pipeline: Pipeline, folder: Path, beat: Beat) -> Source:
    """The source with a local path, an id and the hash of its file."""

    def going_on() -> None:
        beat("fetch", time.monotonic())

    if source.path is None:
        from curation.downloads.fetches import download  # loads yt-dlp: 0.3 s

        return with_content_id(download(source, folder, pipeline.download, going_on), going_on)
    source = with_content_id(source, going_on)
    wants_text = pipeline.captions.model == SOURCE_TEXT and source.subtitles is None
    return with_subtitles(source) if wants_text else source  # where identify died of the file


def written_to(source: Source) -> MediaError | None:
    """The fault of a file that is not as it was when its id was taken; None when it is."""
    if source.stamp is None or source.path is None or stamp_of(source.path) == source.stamp:
        return None
    message = f"{Path(source.path).name} was written to in the meantime"
    return MediaError("changing", f"{message}; the next run tries again")


def curate_file(source: Source, pipeline: Pipeline, watch: Stopwatch, beat: Beat) -> VideoResult:
    path = source.path
    assert path is not None
    with watch.stage("probe"):
        probe = probes.probe(path)
    source = replace(source, title=source.title or probe.title)
    header = header_scores(probe)
    too_short = judge_headers({}, rules_of_length(pipeline), probe.duration_s)
    if probe.duration_s and (too_short or any(s.end_s > probe.duration_s for s in source.spans)):
        # A header may say less than there is: FLV's is often never filled in.
        length_s = max(probe.duration_s, probes.packets_s(path))
        probe = replace(probe, duration_s=length_s)
    # Given spans may lie anywhere, so only the video's own length is a bound on theirs.
    verdict = judge_headers(header, pipeline.rules, probe.duration_s)
    if verdict:
        scores = header | {"duration": probe.duration_s}
        return VideoResult([video_row(source, scores, decided(verdict), watch.stage_s)])
    with watch.stage("decode"):
        analysis = analyse(source, probe, pipeline, lambda at_s: beat("decode", at_s))
    candidates = judge_clips(source, analysis, header, pipeline)
    spans = [c.span for c in candidates if c.is_kept]
    with watch.stage("cut"):
        timeline, signatures = analysis.timeline, analysis.signatures
        beat_cut = partial(beat, "cut", 0.0)
        orders = field_orders(analysis, candidates, pipeline.combed_over)
        cuts = cut(path, probe, timeline, signatures, spans, pipeline.cut, beat_cut, orders)
    made = dict(zip(spans, cuts, strict=True))
    clips = {span: clip for span, clip in made.items() if isinstance(clip, Clip)}
    errors = {span: error for span, error in made.items() if isinstance(error, MediaError)}
    candidates = [replace(c, error=c.error or errors.get(c.span)) for c in candidates]
    scores = dict(header) | {
        "duration": analysis.timeline.duration_s,
        "watermark": analysis.watermark.score,
    }
    outcome = video_outcome(analysis, candidates, pipeline)
    outcome |= {"partial": str(analysis.broke) if analysis.broke else None}
    video = video_row(source, scores, outcome, watch.stage_s, analysis.watermark.box)
    cues = []
    if pipeline.captions.model == SOURCE_TEXT:
        cues = cues_of(source, probe, analysis.timeline)
    return collect(source, video, analysis, candidates, clips, cues, pipeline)


def rules_of_length(pipeline: Pipeline) -> dict[str, Rule]:
    """The rules that a header's duration can break."""
    return {name: rule for name, rule in pipeline.rules.items() if name == "duration"}


# -- decisions


def judge_clips(
    source: Source, analysis: Analysis, header: Mapping[str, float | None], pipeline: Pipeline
) -> list[Candidate]:
    """Every scene, or given span, of a video with its scores and the first rule it breaks."""
    candidates = []
    early = {n: rule for n, rule in pipeline.bounds.items() if n not in pipeline.late_scores}
    for index, (first, last) in enumerate(analysis.spans):
        start_s, end_s = analysis.timeline.time_s(first), analysis.timeline.time_s(last)
        scores = dict(header) | {
            "duration": analysis.timeline.span_s(first, last),
            "static": analysis.overview.static(first, last),
            "black_bars": analysis.overview.bars.between(start_s, end_s),
            "watermark": analysis.watermark.score,
        }
        error = None
        try:
            scores |= track_scores(analysis, start_s, end_s)
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
                perceptual_hash=analysis.overview.perceptual_hash(start_s, end_s),
            )
        )
    return candidates


def track_scores(analysis: Analysis, start_s: float, end_s: float) -> dict[str, float | None]:
    """The scores of a clip by the tracks that are switched on.

    Raises MediaError scorer, also for a score that is no number.
    """
    scores: dict[str, float | None] = {}
    with scoring():
        for track in analysis.tracks.running.values():
            scores |= track.between(start_s, end_s)
        for name, value in scores.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
    return scores


def field_orders(
    analysis: Analysis, candidates: list[Candidate], combed_over: float | None
) -> dict[tuple[int, int], FieldOrder]:
    """The order of fields of every kept clip whose score `interlaced` is over a bound, by span."""
    if combed_over is None:
        return {}
    track = analysis.tracks.running["interlaced"]
    assert isinstance(track, CombingTrack)
    combed = [c for c in candidates if c.is_kept and (c.scores["interlaced"] or 0) > combed_over]
    return {c.span: track.field_order(c.start_s, c.end_s) for c in combed}


# -- what comes of it


def video_outcome(
    analysis: Analysis, candidates: list[Candidate], pipeline: Pipeline
) -> dict[str, Any]:
    """The outcome columns of a decoded video: those of the clip that came furthest."""
    if not candidates and analysis.broke and analysis.broke.error_class == "corrupt":
        return failure("corrupt", analysis.broke.message)  # what was given may lie behind it
    if not candidates:
        return outside(analysis)
    lost = [c for c in candidates if c.error and c.error.error_class == "encode"]
    if lost and not any(c.is_kept for c in candidates):
        return outcome_of(lost[0])
    scored = [c for c in candidates if c.error is None]
    if not scored:
        return outcome_of(candidates[0])
    return decided(video_verdict([c.verdict for c in scored], pipeline.rules))


def cues_of(source: Source, probe: probes.Probe, timeline: Timeline) -> list[Cue]:
    """The timed text of a video: of the file beside it, else of a track in it."""
    if source.path is None or source.captions:  # a list's captions come first
        return []
    cues = read_cues(source.subtitles.path) if source.subtitles else []
    if not cues and probe.has_subtitles:
        cues = track_cues(source.path, float(timeline.pts[0] * timeline.time_base))
    return cues


def outside(analysis: Analysis) -> dict[str, Any]:
    """The outcome of a given span, or of a video with no other, that holds no frame."""
    end_s = analysis.timeline.duration_s
    return failure("outside", f"no frame of the video is inside; it ends at {end_s:.3f} s")


def collect(
    source: Source,
    video: dict[str, Any],
    analysis: Analysis,
    candidates: list[Candidate],
    clips: Mapping[tuple[int, int], Clip],
    cues: list[Cue],
    pipeline: Pipeline,
) -> VideoResult:
    """The rows of a decided video: the video's, every candidate's, and the kept clips.

    `clips` are those cut, by their span of frames; `cues` what is said in the video.
    """
    nowhere = outside(analysis)
    ledger = [video]
    ledger += [outside_row(source, s.start_s, s.end_s, nowhere) for s in analysis.outside]
    kept = []
    for candidate in candidates:
        caption = None
        if pipeline.captions.model == SOURCE_TEXT:
            caption = source_caption(source, cues, candidate.start_s, candidate.end_s)
        preview = analysis.overview.previews.of_clip(candidate.start_s, candidate.end_s)
        box = analysis.watermark.box
        ledger.append(clip_row(source, candidate, caption, box, preview))
        if candidate.is_kept:
            clip = clips[candidate.span]
            kept.append(keep(source, candidate, clip, caption, analysis, pipeline))
    return VideoResult(ledger, kept)


def keep(
    source: Source,
    candidate: Candidate,
    clip: Clip,
    caption: str | None,
    analysis: Analysis,
    pipeline: Pipeline,
) -> KeptClip:
    """A clip with its row, its media and the frames that later stages ask for."""
    start_s, end_s = candidate.start_s, candidate.end_s
    row = shard_row(source, candidate, clip)
    captions, models = [], []
    if pipeline.captions.model == SOURCE_TEXT:
        row |= {"caption": caption, "caption_model": SOURCE_TEXT if caption else None}
        given = source.captions_at(start_s, end_s)
        row["captions"] = list(given) if len(given) > 1 else None
    else:
        captions = analysis.caption_frames.of_clip(start_s, end_s)
        row["caption_frame_s"] = [time_s for time_s, _ in captions]
    if pipeline.late_scores:
        models = analysis.model_frames.of_clip(start_s, end_s)
    return KeptClip(row, clip.data, [j for _, j in captions], [j for _, j in models])
