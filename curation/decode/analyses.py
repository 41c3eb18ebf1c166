"""The one decode of a video: cuts, stillness, bars, overlays, tracks and kept frames together.

A source goes through it once, and so does a stored clip, of which less is asked.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from curation.captions import SOURCE_TEXT
from curation.decode.perceptual_hashes import PerceptualHashes
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
from curation.decode.shots import ShotFinder, TransitionTrack
from curation.decode.signatures import Signatures
from curation.decode.tracks import ClipScores, MakeTrack, Tracks, build_tracks
from curation.decode.transitions import split_evenly
from curation.decode.transnet import TransNetFinder
from curation.media.files import MediaError
from curation.media.frames import Timeline, decode
from curation.media.pictures import small_pictures, whole_luma
from curation.media.probes import Probe, Turn
from curation.pipelines import SHOTS, TRANSNET, Pipeline, Scenes, Scorers
from curation.records import Beat
from curation.scores import headers
from curation.scores.bars import Bars
from curation.scores.burnt_in_text import TEXT_SIDE_PX, text_times_s
from curation.scores.watermarks import Watermark, watermark_evidence
from curation.sources import Source, Span

# Bars are looked for this often, and in every frame that differs much from the one before, so
# that a scene of any length has a look of its own. Ours: a bar stays for a whole scene.
BAR_STEP_S = 0.5
# Grey levels, mean over the picture. Ours: above noise; a fainter cut waits for the next step.
BAR_CHANGE = 8.0


Finder = CutFinder | ShotFinder | TransNetFinder

# What lies before these is whole. Behind them is another video, joined to the one before, or
# pictures that may be built on damage.
BREAKS = {"size_changes", "clock_restarts", "corrupt"}


# -- what a source's pictures are like


class Overview:
    """Takes every frame of a source: stillness, bars, overlays, previews, perceptual hashes."""

    def __init__(self, turn: Turn, scorers: Scorers) -> None:
        self.turn = turn
        self.scorers = scorers
        self.steps: list[float] = []  # mean absolute luma step to the next frame, grey levels
        self.bars = Bars()
        self.bars_s = -math.inf  # when they were last looked for
        self.overlays: Spread[np.ndarray] = Spread(OVERLAY_STEP_S)
        self.previews = Previews(turn)
        self.hashes = PerceptualHashes(turn)
        self.last_gray: np.ndarray | None = None

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray, gray: np.ndarray) -> bool:
        """Take the next frame; returns whether it differs much from the one before."""
        if self.last_gray is not None:
            self.steps.append(cv2.norm(gray, self.last_gray, cv2.NORM_L1) / gray.size)
        self.last_gray = gray
        if self.scorers.watermark == "network" and self.overlays.wants(now_s):
            self.overlays.add(now_s, overlay_luma(frame, self.turn))
        changed = bool(self.steps) and self.steps[-1] > BAR_CHANGE
        if changed or now_s - self.bars_s >= BAR_STEP_S - 1e-6:
            luma, is_full = whole_luma(frame)
            self.bars.add(now_s, luma, is_full_range=is_full)
            self.bars_s = now_s
        self.previews.add(now_s, small, changed)
        self.hashes.add(now_s, gray)
        return changed

    def static(self, first: int, last: int) -> float | None:
        """The static score of frames [first, last)."""
        return headers.static(np.array(self.steps[first : last - 1]))

    def perceptual_hash(self, start_s: float, end_s: float) -> bytes | None:
        """The perceptual hash of [start_s, end_s); None where its bars are not known."""
        box = self.bars.picture(start_s, end_s)
        return None if box is None else self.hashes.of_clip(start_s, end_s, box)

    def watermark(self) -> Watermark:
        """What the network tells, or no score when a model is to tell or the evidence is thin."""
        if not self.overlays.items:
            return Watermark(None, None)
        found = watermark_evidence(np.stack([picture for _, picture in self.overlays.items]))
        return found if self.scorers.watermark_unsure == "drop" else found.or_clean()


# -- the engine


class Analyser:
    """Takes every frame of a video in order and shows it to everything that was asked for.

    tracks: scorers of frames. takers: what keeps frames for models. overview, finder and
    signatures: of a source alone; a finder ends the scenes that the takers sample, of which those
    longer than max_scene_s seconds are split evenly. size: of the small pictures, px; None: by the
    first frame.
    """

    def __init__(
        self,
        tracks: Tracks,
        takers: list[ClipFrames],
        overview: Overview | None = None,
        finder: Finder | None = None,
        size: tuple[int, int] | None = None,
        max_scene_s: float | None = None,
        signatures: Signatures | None = None,
    ) -> None:
        self.tracks = tracks
        self.takers = takers
        self.overview = overview
        self.finder = finder
        self.size = size
        self.max_scene_s = max_scene_s
        self.signatures = signatures
        self.scenes: list[tuple[int, int]] = []  # those found, as frames [first, last)

    def add(self, timeline: Timeline, frame: av.VideoFrame) -> None:
        now_s = timeline.time_s(timeline.num_frames - 1)
        changed = False
        if self.overview or self.tracks:
            self.size = self.size or analysis_size(frame.width, frame.height)
            small, luma, is_full_range = small_pictures(frame, self.size)
            gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
            if self.signatures:
                self.signatures.add(luma, is_full_range=is_full_range)
            if self.overview:
                changed = self.overview.add(now_s, frame, small, gray)
            self.tracks.add(now_s, frame, small, gray)
            if self.finder:
                self.close_scenes(timeline, self.finder.add(timeline, small))
                for taker in self.takers:
                    taker.settle(self.finder.settled_s(timeline))
        for taker in self.takers:
            taker.add(now_s, frame, changed)

    def close_scenes(self, timeline: Timeline, scenes: list[tuple[int, int]]) -> None:
        """Take in scenes that became known, long ones in parts."""
        for scene in scenes:
            for first, last in parts_of(timeline, *scene, self.max_scene_s):
                self.scenes.append((first, last))
                for taker in self.takers:
                    taker.close_scene(timeline.time_s(first), timeline.time_s(last))

    def finish(self, timeline: Timeline) -> list[tuple[int, int]]:
        """End the video; the scenes that were found, as frames [first, last)."""
        if self.finder:
            self.close_scenes(timeline, self.finder.finish(timeline))
        for taker in self.takers:
            taker.finish()
        return self.scenes


def parts_of(
    timeline: Timeline, first: int, last: int, max_s: float | None
) -> list[tuple[int, int]]:
    """Frames [first, last) as one part, or evenly as several of at most `max_s` seconds."""
    if max_s is None or timeline.span_s(first, last) <= max_s:
        return [(first, last)]
    times_s = np.array([timeline.time_s(i) for i in range(first, last + 1)])
    return [(first + a, first + b) for a, b in split_evenly(times_s, 0, last - first, max_s)]


def run(
    path: str | Path, analyser: Analyser, num_threads: int, beat: Callable[[float], None]
) -> tuple[Timeline, list[tuple[int, int]], MediaError | None]:
    """Decode a file once; its timeline, the scenes found, and what ended it early, if anything.

    `beat` gets the position in seconds about once a second. Raises MediaError as frames.decode
    does, but for BREAKS behind a first frame, and scorer where tracks are strict.
    """
    next_beat_s = 0.0
    timeline, broke = None, None
    try:
        for timeline, frame in decode(path, num_threads=num_threads):
            analyser.add(timeline, frame)
            now_s = timeline.time_s(timeline.num_frames - 1)
            if now_s >= next_beat_s:
                beat(now_s)
                next_beat_s = now_s + 1.0
    except MediaError as error:
        if error.error_class not in BREAKS or timeline is None:
            raise
        broke = error
    assert timeline is not None  # without a frame decode raises corrupt
    return timeline, analyser.finish(timeline), broke


# -- a source


@dataclass
class Analysis:
    """What the one decode of a source found."""

    timeline: Timeline
    signatures: Signatures
    spans: list[tuple[int, int]]  # frames [first, last) of every scene or given span
    outside: list[Span]  # given spans that hold no frame of the video
    overview: Overview
    watermark: Watermark
    tracks: Tracks
    caption_frames: ClipFrames  # empty where no model captions
    model_frames: ClipFrames  # for the models that score clips; empty where there is none
    broke: MediaError | None  # why only what lies before it was decoded


def analyse(
    source: Source, probe: Probe, pipeline: Pipeline, beat: Callable[[float], None]
) -> Analysis:
    """Decode a source's video once; `beat` as `run` has it.

    Raises MediaError corrupt (no frame decodes) or truncated, as frames.decode does, and scorer.
    """
    assert source.path is not None
    end_s = math.inf if probe.duration_s is None else probe.duration_s
    spans = [replace(span, end_s=min(span.end_s, end_s)) for span in source.spans]
    times_s = partial(caption_times_s, pipeline.captions.num_frames)
    longest_s = pipeline.scenes.max_s or math.inf
    captions, models = (
        ClipFrames(times, side_px, probe.turn, spans, max_clip_s=longest_s)
        for times, side_px in ((times_s, CAPTION_SIDE_PX), (text_times_s, TEXT_SIDE_PX))
    )
    takers = [captions] * (pipeline.captions.model != SOURCE_TEXT)
    takers += [models] * bool(pipeline.late_scores)
    makers = build_tracks(pipeline.scorers)
    if not spans and pipeline.scenes.detector == SHOTS:
        makers.setdefault("hidden_cut", TransitionTrack)
    tracks = Tracks(makers, strict=True)
    overview = Overview(probe.turn, pipeline.scorers)
    finder = None if spans else build_finder(pipeline.scenes, probe, tracks)
    turned = probe.turn.degrees in (90, 270)
    stored = (probe.height, probe.width) if turned else (probe.width, probe.height)
    signatures = Signatures(probe.turn)
    size, longest = analysis_size(*stored), pipeline.scenes.max_s
    analyser = Analyser(tracks, takers, overview, finder, size, longest, signatures)
    timeline, scenes_found, broke = run(source.path, analyser, pipeline.media.num_threads, beat)
    whole = num_whole(timeline, broke)
    found = [(first, min(last, whole)) for first, last in scenes_found if first < whole]
    given, outside = given_spans(source, timeline, whole)
    return Analysis(
        timeline=timeline,
        signatures=signatures,
        spans=found or given,
        outside=outside,
        overview=overview,
        watermark=overview.watermark(),
        tracks=tracks,
        caption_frames=captions,
        model_frames=models,
        broke=broke,
    )


def build_finder(scenes: Scenes, probe: Probe, tracks: Tracks) -> Finder:
    """What finds a source's scenes; that of shots asks the track of transitions."""
    if scenes.detector == SHOTS:
        track = tracks.running["hidden_cut"]
        assert isinstance(track, TransitionTrack)
        return ShotFinder(track, min_scene_s=scenes.min_scene_s, trim=scenes.trim)
    if scenes.detector == TRANSNET:
        return TransNetFinder(scenes.min_scene_s)
    detector = build_detector(scenes.detector, scenes.threshold, scenes.min_scene_s)
    return CutFinder(detector, probe.fps)


def num_whole(timeline: Timeline, broke: MediaError | None) -> int:
    """How many frames can be trusted: before damage those up to the last key frame.

    Decoders hide damage before they notice it, but no frame before a key frame is built on what
    comes behind it.
    """
    is_damaged = broke is not None and broke.error_class == "corrupt"
    return timeline.last_key if is_damaged else timeline.num_frames


def given_spans(
    source: Source, timeline: Timeline, num_frames: int
) -> tuple[list[tuple[int, int]], list[Span]]:
    """The source's own cuts as frames, and those that hold none of the first `num_frames`."""
    stamps = [timeline.time_s(i) for i in range(num_frames)] if source.spans else []
    spans, outside = [], []
    for span in source.spans:
        first, last = (bisect.bisect_left(stamps, t - 5e-7) for t in (span.start_s, span.end_s))
        if first >= last:
            outside.append(span)
        elif (first, last) not in spans:  # cuts that show the same frames are one clip
            spans.append((first, last))
    return spans, outside


# -- a stored clip


def score_clip(
    data: bytes,
    duration_s: float,
    tracks: dict[str, MakeTrack],
    wants_pictures: bool,
    folder: Path,
    beat: Beat,
) -> ClipScores:
    """Decode a stored clip once for all its scorers; a track that raises fails alone.

    A clip is one span that is known beforehand. Its pictures are those shown at the times that
    text is looked for at.
    """
    path = folder / "clip.mp4"
    path.write_bytes(data)
    running = Tracks(tracks, strict=False)
    whole = Span(0.0, duration_s)
    pictures = ClipFrames(text_times_s, TEXT_SIDE_PX, Turn(), [whole], as_shown=True)
    analyser = Analyser(running, [pictures] * wants_pictures)
    try:
        timeline, _, broke = run(path, analyser, 1, lambda at_s: beat("score", at_s))
    except MediaError as error:
        return ClipScores(error=str(error))
    if broke:
        return ClipScores(error=str(broke))
    rows = {key: running.row(key, 0.0, timeline.duration_s) for key in tracks}
    return ClipScores(rows, [jpeg for _, jpeg in pictures.of_clip(0.0, duration_s)])
