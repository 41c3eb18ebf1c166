"""The one decode of a video: cuts, stillness, bars, overlays and caption frames together."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import av
import cv2
import numpy as np

from curation.captions import SOURCE_TEXT
from curation.decode.previews import Previews
from curation.decode.samples import (
    CAPTION_SIDE_PX,
    OVERLAY_STEP_S,
    ClipFrames,
    Spread,
    caption_times_s,
    overlay_luma,
)
from curation.decode.scenes import CutFinder, analysis_size, build_detector
from curation.frames import MediaError, Probe, Timeline, decode, small_bgr
from curation.pipelines import Pipeline
from curation.scores import headers
from curation.scores.burnt_in_text import TEXT_SIDE_PX, text_times_s
from curation.scores.motions import MotionTrack
from curation.scores.quality import LookTrack
from curation.scores.watermarks import Watermark, watermark_evidence
from curation.sources import Source, Span

# Bars are looked for this often, and in every frame that differs much from the one before, so
# that a scene of any length has a look of its own. Ours; a bar stays for a whole scene.
BAR_STEP_S = 0.25
BAR_CHANGE = 8.0  # grey levels, mean over the picture


@dataclass
class Analysis:
    """What the one decode of a video found."""

    timeline: Timeline
    spans: list[tuple[int, int]]  # frames [first, last) of every scene or given span
    outside: list[Span]  # given spans that hold no frame of the video
    steps: np.ndarray  # [T - 1] mean absolute luma step to the next frame, grey levels
    line_max: list[tuple[float, np.ndarray, np.ndarray]]  # time, brightest of each row and column
    watermark: Watermark
    caption_frames: ClipFrames
    model_frames: ClipFrames  # for the models that score clips
    previews: Previews
    motion: MotionTrack | None
    look: LookTrack | None

    def black_bars(self, start_s: float, end_s: float) -> float | None:
        """The black_bars score of a stretch, from the looks inside it; None without a look."""
        inside = [look for look in self.line_max if start_s - 1e-6 <= look[0] < end_s]
        if not inside:
            return None
        rows = np.max([look[1] for look in inside], axis=0)
        columns = np.max([look[2] for look in inside], axis=0)
        return headers.black_bars(rows, columns)


@contextmanager
def scoring() -> Iterator[None]:
    """Whatever goes wrong in a scorer fails what it scores, as MediaError scorer, and no more."""
    try:
        yield
    except Exception as error:
        raise MediaError("scorer", f"{type(error).__name__}: {error}") from error


class Analyser:
    """Takes every frame of a video in order and adds up what there is to know."""

    def __init__(self, source: Source, probe: Probe, pipeline: Pipeline) -> None:
        settings = pipeline.scenes
        self.source = source
        self.rotation = probe.rotation
        turned = probe.rotation in (90, 270)
        stored = (probe.height, probe.width) if turned else (probe.width, probe.height)
        self.size = analysis_size(*stored)
        detector = build_detector(settings.detector, settings.threshold, settings.min_scene_s)
        self.finder = CutFinder(detector, probe.fps)
        end_s = math.inf if probe.duration_s is None else probe.duration_s
        spans = [replace(span, end_s=min(span.end_s, end_s)) for span in source.spans]
        times_s = partial(caption_times_s, pipeline.captions.num_frames)
        self.for_captions = ClipFrames(times_s, CAPTION_SIDE_PX, probe.rotation, spans)
        self.for_models = ClipFrames(text_times_s, TEXT_SIDE_PX, probe.rotation, spans)
        self.takers = [self.for_captions] * (pipeline.captions.model != SOURCE_TEXT)
        self.takers += [self.for_models] * bool(pipeline.late_scores)
        self.scorers = pipeline.scorers
        self.overlays: Spread[np.ndarray] = Spread(OVERLAY_STEP_S)
        self.previews = Previews(probe.rotation)
        self.steps: list[float] = []
        self.line_max: list[tuple[float, np.ndarray, np.ndarray]] = []
        self.last_gray: np.ndarray | None = None
        self.motion = MotionTrack() if pipeline.scorers.motion else None
        self.look = LookTrack() if pipeline.scorers.look else None

    def add(self, timeline: Timeline, frame: av.VideoFrame) -> None:
        now_s = timeline.time_s(timeline.num_frames - 1)
        small = small_bgr(frame, self.size)
        gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        if self.last_gray is not None:
            self.steps.append(cv2.norm(gray, self.last_gray, cv2.NORM_L1) / gray.size)
        self.last_gray = gray
        if self.scorers.watermark == "network" and self.overlays.wants(now_s):
            self.overlays.add(now_s, overlay_luma(frame, self.rotation))
        changed = bool(self.steps) and self.steps[-1] > BAR_CHANGE
        if changed or not self.line_max or now_s - self.line_max[-1][0] >= BAR_STEP_S:
            self.line_max.append((now_s, gray.max(axis=1), gray.max(axis=0)))
        self.previews.add(now_s, small, changed)
        if not self.source.spans:
            for cut_s in self.finder.add(timeline, small):
                self.close_scene(cut_s)
        for taker in self.takers:
            taker.add(now_s, frame, changed)
        with scoring():
            if self.motion is not None:
                self.motion.add(now_s, gray)
            if self.look is not None:
                self.look.add(now_s, frame, small)

    def close_scene(self, cut_s: float) -> None:
        for taker in self.takers:
            taker.close_scene(cut_s)

    def finish(self, timeline: Timeline) -> Analysis:
        outside: list[Span] = []
        if self.source.spans:
            spans, outside = self.given_spans(timeline)
        else:
            spans = self.found_spans(timeline)
        for taker in self.takers:
            taker.finish(timeline.duration_s)
        return Analysis(
            timeline,
            spans,
            outside,
            np.array(self.steps),
            self.line_max,
            self.watermark(),
            self.for_captions,
            self.for_models,
            self.previews,
            self.motion,
            self.look,
        )

    def watermark(self) -> Watermark:
        """What the network tells, or no score when a model is to tell or the evidence is thin."""
        if not self.overlays.items:
            return Watermark(None, None)
        found = watermark_evidence(np.stack([picture for _, picture in self.overlays.items]))
        return found if self.scorers.watermark_unsure == "drop" else found.or_clean()

    def found_spans(self, timeline: Timeline) -> list[tuple[int, int]]:
        known = len(self.finder.cut_times_s)
        cuts = self.finder.finish(timeline)
        for cut_s in self.finder.cut_times_s[known:]:
            self.close_scene(cut_s)
        return list(zip(cuts, [*cuts[1:], timeline.num_frames], strict=True))

    def given_spans(self, timeline: Timeline) -> tuple[list[tuple[int, int]], list[Span]]:
        """The source's own cuts as frames, and those that hold no frame of the video."""
        stamps = [timeline.time_s(i) for i in range(timeline.num_frames)]
        spans, outside = [], []
        for span in self.source.spans:
            first, last = (bisect.bisect_left(stamps, t - 5e-7) for t in (span.start_s, span.end_s))
            if first < last:
                spans.append((first, last))
            else:
                outside.append(span)
        return spans, outside


def analyse(
    source: Source, probe: Probe, pipeline: Pipeline, beat: Callable[[float], None]
) -> Analysis:
    """Decode a source's video once; `beat` gets the position in seconds about once a second.

    Raises MediaError corrupt or truncated, as frames.decode does, and scorer.
    """
    assert source.path is not None
    analyser = Analyser(source, probe, pipeline)
    next_beat_s = 0.0
    for timeline, frame in decode(source.path, num_threads=pipeline.media.num_threads):
        analyser.add(timeline, frame)
        now_s = timeline.time_s(timeline.num_frames - 1)
        if now_s >= next_beat_s:
            beat(now_s)
            next_beat_s = now_s + 1.0
    return analyser.finish(timeline)
