"""What is measured of a video or clip besides overlays: one small function per score."""

from __future__ import annotations

import numpy as np

from curation.media.probes import Probe

# Mean absolute luma step, in grey levels, below which two frames show the same picture. Ours:
# re-encoded stills stay under 0.15, the slowest real motion tried (a turning globe) over 0.3.
SAME_PICTURE_STEP = 0.2


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
