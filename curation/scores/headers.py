"""What is measured of a video or clip besides overlays: one small function per score."""

from __future__ import annotations

import numpy as np

from curation.media.probes import Probe

# Mean absolute luma step, in grey levels, below which two frames show the same picture. Ours:
# re-encoded stills stay under 0.15, the slowest real motion tried (a turning globe) over 0.3.
SAME_PICTURE_STEP = 0.2
# A bar's brightest pixel, in grey levels: black is 16 in limited range, and coding noise goes on
# top. Ours: twice the black.
BAR_LEVEL = 32


def header_scores(probe: Probe) -> dict[str, float | None]:
    """resolution (display height, px), aspect (width / height) and hdr (1 for PQ or HLG)."""
    return {
        "resolution": float(probe.height),
        "aspect": probe.width / probe.height,
        "hdr": float(probe.transfer is not None),
    }


def static(steps: np.ndarray) -> float | None:
    """Share of frame-to-frame steps that show the same picture again, 0..1.

    `steps`: [T - 1] mean absolute luma differences in grey levels. A single frame is static: 1.
    """
    if len(steps) == 0:
        return 1.0
    return float(np.mean(steps < SAME_PICTURE_STEP))


def black_bars(row_max: np.ndarray, column_max: np.ndarray) -> float:
    """Share of the picture's area under black bars at its edges, 0..1.

    `row_max` [H] and `column_max` [W]: the brightest luma of each line over the clip's samples.
    A clip that is black all over is all bars: 1.
    """
    rows, columns = lit_extent(row_max), lit_extent(column_max)
    return 1.0 - rows * columns


def lit_extent(line_max: np.ndarray) -> float:
    """Share of the lines between the first and the last that ever lit up, 0..1."""
    lit = np.flatnonzero(line_max > BAR_LEVEL)
    return 0.0 if len(lit) == 0 else float(lit[-1] - lit[0] + 1) / len(line_max)
