"""What moves in a clip: the scene, the camera, one zoom over a still, a slideshow, the light.

Speeds are in sides per second, a side being the picture's longer one (the width of a widescreen
picture), so that neither size nor frame rate matters. "Measured": benchmarks/filter_motions.py,
the half that is for tuning. Weight-free, and free of Ray: any decode may feed it.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from curation.scores.cameras import (
    camera_field,
    common_step,
    corner_shift,
    field,
    gained,
    textured,
    warp,
)

if TYPE_CHECKING:
    import av

# Two frames are compared this far apart: one frame at 12 fps, two at 24 and 25, five at 60.
# Ours: over less a slow motion is smaller than the error of flow.
SHORT_S = 0.08
LONG_S = 0.25  # where little moved, also this far: three times the path, a third of the noise
STEP_S = 0.5  # from pair to pair. Ours: two pairs a second cost 0.3 decodes (docs/filters.md)
LATE_S = 1e-3  # times come from rounded stamps

# Textured cells; a picture with fewer is blank and nothing moves in it. Ours: under 2% of it.
MIN_CELLS = 40
# A camera that moves corners more is taken away and flow measured again. Ours: INLIER_PX thrice.
ALIGN_PX = 1.5
# A camera that moves corners more over SHORT_S moves them a tenth of the picture over LONG_S.
FAR_PX = 8.0
NEAR_PX = 1.0  # residual motion that is compared over LONG_S too: three times NOISE_PX
NOISE_PX = 0.3  # residual flow below is noise of flow and coding. Measured.
GAIN = 2.0  # grey levels by which motion must explain a place better than the camera. Measured.
# Share of the textured cells whose mean speed is `motion`. Ours: what moves is often a small part.
FASTEST = 0.1

PURE_SHARE = 0.02  # textured cells that may move otherwise over a still. Measured.
SLOW = 0.004  # sides per second; a slower camera stands. Measured.
# Relative change of the camera's velocity between pairs of one zoom. Ours: zooms ease in and out.
STEADY = 0.5

# px; what cuts, dissolves and the light are sought in. Ours: both fill the picture
SMALL = (64, 36)
# Grey levels that a pixel of a small picture changes by. Ours: coding noise is less.
TURN_LEVEL = 6.0
TURN_SHARE = 0.5  # of them must change when a picture is replaced. Measured.
TURN_OFF = 0.15  # of the change may lie off the line between two pictures. Measured.
LED = 0.7  # share of the difference that a camera may leave where it leads there. Measured.

FLICKER_S = 1.0  # window of the running median taken from the light: slower is a fade, no flicker
# The picture in 4 x 4: what moves changes fewer than half of the parts, light all of them.
LIGHT_PARTS = 4


class Pair(NamedTuple):
    """What two frames tell; speeds in sides per second, zoom and roll in e-folds and radians."""

    start_s: float
    end_s: float
    motion: float
    x: float
    y: float
    zoom: float
    roll: float
    others: float  # share of the textured cells that do not follow the camera


class Turn(NamedTuple):
    """How the picture changed over three frames, the light's change taken away."""

    start_s: float
    end_s: float
    changed: float  # share of the picture between the first and the last
    off: float  # share of that change that is no mixture of the two in the middle

    @property
    def replaces(self) -> bool:
        """Whether one picture gives way to another, in a cut or a dissolve."""
        return self.changed >= TURN_SHARE and self.off <= TURN_OFF


class MotionTrack:
    """Takes every frame of a video in order and answers for any stretch of it.

    Holds an earlier picture, 16 bytes a frame and at most 320 bytes a second of video.
    """

    def __init__(self) -> None:
        self.flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self.times_s = array("d")
        self.light = array("d")  # change of brightness from the frame before, grey levels
        self.last_parts: np.ndarray | None = None
        self.pairs = array("d")  # rows of Pair; a long one follows the short one that it betters
        self.turns = array("d")  # rows of Turn
        self.first: tuple[float, np.ndarray] | None = None  # the frame that this pair began with
        self.held: list[np.ndarray] = []  # the same small, and the middle one
        self.measured = self.wants_long = False
        self.reach = 0.0  # of zoom and roll: root mean square distance to the centre, sides

    def add(
        self, now_s: float, frame: av.VideoFrame | None, small: np.ndarray | None, gray: np.ndarray
    ) -> None:
        """Take the next frame, as decode.tracks.Track has it; only its brightness is looked at."""
        tiny = cv2.resize(gray, SMALL, interpolation=cv2.INTER_AREA)
        self.add_light(now_s, tiny)
        if self.first is None:
            height, width = gray.shape
            self.reach = math.hypot(width, height) / math.sqrt(12) / max(width, height)
            self.first, self.held = (now_s, gray), [tiny]
            return
        start_s, first = self.first
        passed_s = now_s - start_s + LATE_S
        if not self.measured and passed_s >= SHORT_S:
            pair, shift_px, residual_px = self.compare(first, gray, start_s, now_s)
            self.pairs.extend(pair)
            self.measured = True
            self.wants_long = shift_px <= FAR_PX and residual_px <= NEAR_PX
        elif self.wants_long and passed_s >= LONG_S:
            self.pairs.extend(self.compare(first, gray, start_s, now_s)[0])
            self.wants_long = False
        if len(self.held) == 1 and passed_s >= STEP_S / 2:
            self.held.append(tiny)
        if passed_s >= STEP_S:
            change = turn(self.held[0], self.held[1], tiny, start_s, now_s)
            if change.replaces and self.leads(first, gray):
                change = change._replace(changed=0.0)
            self.turns.extend(change)
            self.first, self.held = (now_s, gray), [tiny]
            self.measured = self.wants_long = False

    def add_light(self, now_s: float, small: np.ndarray) -> None:
        rows, columns = (side // LIGHT_PARTS for side in small.shape)
        parts = small.reshape(LIGHT_PARTS, rows, LIGHT_PARTS, columns).mean(axis=(1, 3)).ravel()
        changes = parts - (parts if self.last_parts is None else self.last_parts)
        self.last_parts = parts
        self.times_s.append(now_s)
        self.light.append(float(np.median(changes)))

    def compare(
        self, before: np.ndarray, after: np.ndarray, start_s: float, end_s: float
    ) -> tuple[Pair, float, float]:
        """A pair, how far its camera moves a corner and how far the rest moves, in px."""
        nothing = Pair(start_s, end_s, 0, 0, 0, 0, 0, 0)
        camera = np.eye(3)
        cells = textured(before)
        if len(cells) < MIN_CELLS:
            return nothing, 0.0, 0.0
        steps = self.steps(before, after, cells)
        fit = common_step(cells, steps, before.shape)
        if fit is not None and corner_shift(fit, before.shape) > ALIGN_PX:
            # What is left is small, and small flow is precise.
            camera, before = fit, warp(before, fit)
            cells = textured(before, inside=warp(np.full_like(before, 255), fit))
            if len(cells) < MIN_CELLS:  # the camera turned away from all there was
                return nothing, math.inf, 0.0
            steps = self.steps(before, after, cells)
            fit = common_step(cells, steps, before.shape)
        follows = np.zeros_like(steps)
        if fit is not None:
            follows, fit = camera_field(cells, steps, fit, before.shape)
            camera = fit @ camera
        speeds = np.linalg.norm(steps - follows, axis=1)
        speeds[(speeds < NOISE_PX) | (gained(before, after, cells, steps, follows) < GAIN)] = 0
        fastest = np.sort(speeds)[-max(1, round(FASTEST * len(speeds))) :]
        height, width = before.shape
        unit = max(width, height) * (end_s - start_s)
        x, y = field(camera, np.array([[width / 2, height / 2]]))[0] / unit
        zoom = math.log(math.hypot(camera[0, 0], camera[1, 0])) / (end_s - start_s)
        roll = math.atan2(camera[1, 0], camera[0, 0]) / (end_s - start_s)
        others, motion = float(np.mean(speeds > 0)), float(fastest.mean()) / unit
        pair = Pair(start_s, end_s, motion, float(x), float(y), zoom, roll, others)
        return pair, corner_shift(camera, before.shape), float(np.quantile(speeds, 0.98))

    def leads(self, before: np.ndarray, after: np.ndarray) -> bool:
        """Whether a camera's motion leads from one picture to the other."""
        cells = textured(before)
        if len(cells) < MIN_CELLS:
            return False
        fit = common_step(cells, self.steps(before, after, cells), before.shape)
        if fit is None:
            return False
        left = cv2.norm(warp(before, fit), after, cv2.NORM_L1)
        return left < LED * cv2.norm(before, after, cv2.NORM_L1)

    def steps(self, before: np.ndarray, after: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """How far the middles of cells went, [N, 2] in px."""
        flow = self.flow.calc(before, after, None)  # type: ignore[call-overload]
        columns, rows = cells.astype(int).T
        return flow[rows, columns]

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        """The scores of the clip [start_s, end_s); all None where it holds no pair of frames.

        motion: mean speed of the fastest tenth of the textured picture once the camera's motion is
        taken away, sides per second. camera_motion: root mean square speed of the camera's shift,
        zoom and roll over the picture, sides per second. zoom: share of the clip in which one
        steady zoom or pan explains everything that moves, 0..1. slideshow: share of the clip that
        holds or replaces a still picture, 0..1; 0 where none is replaced. flicker: standard
        deviation of the light from its running median, grey levels. The definitions are ours;
        how well they tell clips apart is measured in docs/filters.md.
        """
        pairs = self.pairs_between(start_s, end_s)
        if not pairs:
            return dict.fromkeys(("motion", "camera_motion", "zoom", "slideshow", "flicker"))
        replaced = self.replaced(pairs, end_s)
        # What leads from one picture to another is no motion.
        moving = [p for p, over in zip(pairs, replaced, strict=True) if not over] or pairs
        return {
            "motion": float(np.mean([pair.motion for pair in moving])),
            "camera_motion": float(np.mean(np.linalg.norm(self.cameras(moving), axis=1))),
            "zoom": zoom(moving, self.cameras(moving)),
            "slideshow": slideshow(pairs, replaced),
            "flicker": self.flicker(start_s, end_s),
        }

    def pairs_between(self, start_s: float, end_s: float) -> list[Pair]:
        """The pairs inside a stretch, the longer one where two begin with one frame."""
        return list({row[0]: Pair(*row) for row in inside(self.pairs, 8, start_s, end_s)}.values())

    def cameras(self, pairs: list[Pair]) -> np.ndarray:
        """The camera's velocity [N, 4] whose length is its root mean square speed, sides/s."""
        fields = [[p.x, p.y, self.reach * p.zoom, self.reach * p.roll] for p in pairs]
        return np.array(fields)

    def replaced(self, pairs: list[Pair], end_s: float) -> np.ndarray:
        """Whether one picture gives way to another from each pair to the next, bool [N]."""
        rows = [Turn(*row) for row in inside(self.turns, 4, pairs[0].start_s, end_s)]
        turned = {row.start_s for row in rows if row.replaces}
        return np.array([pair.start_s in turned for pair in pairs])

    def flicker(self, start_s: float, end_s: float) -> float:
        times_s = np.array(self.times_s)
        first, last = np.searchsorted(times_s, [start_s - LATE_S / 2, end_s - LATE_S / 2])
        light = np.cumsum(self.light[first:last])
        step_s = (times_s[last - 1] - times_s[first]) / (len(light) - 1)
        reach = min(round(FLICKER_S / step_s / 2), (len(light) - 1) // 2)
        padded = np.pad(light, reach, mode="reflect", reflect_type="odd")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
        return float(np.std(light - np.median(windows, axis=1)))


def inside(rows: array[float], width: int, start_s: float, end_s: float) -> list[list[float]]:
    """The rows that begin and end with a frame of [start_s, end_s)."""
    table = np.array(rows).reshape(-1, width)
    begun = table[:, 0] >= start_s - LATE_S / 2
    return table[begun & (table[:, 1] < end_s - LATE_S / 2)].tolist()


def zoom(pairs: list[Pair], cameras: np.ndarray) -> float:
    """Share of pairs in which everything follows one steady camera, 0..1."""
    speeds = np.linalg.norm(cameras, axis=1)
    pure = (speeds > SLOW) & (np.array([pair.others for pair in pairs]) <= PURE_SHARE)
    change = np.linalg.norm(np.diff(cameras, axis=0), axis=1)
    kept = change <= STEADY * np.maximum(speeds[1:], speeds[:-1])
    # Towards the pair before or after: a zoom may begin, hold and end.
    steady = np.r_[False, kept] | np.r_[kept, False] if len(pairs) > 1 else np.array([True])
    return float(np.mean(pure & steady))


def slideshow(pairs: list[Pair], replaced: np.ndarray) -> float:
    """Share of pairs that hold a picture or replace it, 0..1; 0 where none is replaced.

    A picture is held while nothing moves but a camera over it; it is replaced by a cut or a
    dissolve between two that are held, or at an end of the clip.
    """
    held = np.array([pair.others <= PURE_SHARE for pair in pairs]) & ~replaced
    shown = np.zeros(len(pairs), dtype=bool)
    edges = np.flatnonzero(np.diff(np.r_[False, replaced, False]))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        # A dissolve begins and ends inside a pair.
        first -= first > 0 and not held[first - 1]
        last += last < len(pairs) and not held[last]
        before, after = held[:first][-1:], held[last:][:1]
        if before.all() and after.all() and (before.size or after.size):
            shown[first:last] = True
    return float(np.mean(held | shown)) if shown.any() else 0.0


def turn(
    first: np.ndarray, middle: np.ndarray, last: np.ndarray, start_s: float, end_s: float
) -> Turn:
    """How three small pictures follow each other: motion does not mix the outer ones."""
    first, middle, last = (p - p.mean() for p in (first, middle, last))
    change, part = last - first, middle - first
    power = float(np.vdot(change, change))
    share = np.clip(np.vdot(part, change) / max(power, 1e-6), 0, 1)
    off = float(np.sum((part - share * change) ** 2)) / max(power, 1e-6)
    return Turn(start_s, end_s, float(np.mean(np.abs(change) > TURN_LEVEL)), off)
