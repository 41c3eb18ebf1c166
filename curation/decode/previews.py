"""Small pictures kept from the one decode, so that every clip can be looked at, dropped or not."""

from __future__ import annotations

import cv2
import numpy as np

from curation.media.pictures import upright
from curation.media.probes import Turn

# All ours, so that a clip's four pictures take about 10 kB: a tenth of a percent or so of the clip.
PREVIEW_PICTURES = 4
PREVIEW_WIDTH_PX = 160
PREVIEW_QUALITY = 60
PREVIEW_STEP_S = 0.5
MAX_PREVIEWS = 16_384  # of one video; beyond it every other one goes: 2.3 hours at 0.5 s


class Previews:
    """Takes small pictures while a video is decoded; a clip's preview is some of them."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.step_s = PREVIEW_STEP_S
        self.items: list[tuple[float, bytes]] = []

    def add(self, time_s: float, small: np.ndarray, changed: bool) -> None:
        """Take the next frame, uint8 BGR [H, W, 3] as stored.

        `changed`: it differs much from the one before, so it may open a scene shorter than a step.
        """
        if self.items and not changed and time_s - self.items[-1][0] < self.step_s - 1e-6:
            return
        self.items.append((time_s, small_jpeg(upright(small, self.turn))))
        if len(self.items) > MAX_PREVIEWS:
            del self.items[1::2]
            self.step_s *= 2

    def of_clip(self, start_s: float, end_s: float) -> list[bytes]:
        """JPEGs spread evenly over [start_s, end_s), in order; fewer for a short clip."""
        inside = [item for item in self.items if start_s - 1e-6 <= item[0] < end_s - 1e-6]
        places = np.linspace(0, len(inside) - 1, min(PREVIEW_PICTURES, len(inside)))
        return [inside[round(place)][1] for place in places]


def small_jpeg(picture: np.ndarray) -> bytes:
    """An upright picture uint8 BGR [H, W, 3] as a JPEG of PREVIEW_WIDTH_PX."""
    height = max(1, round(picture.shape[0] * PREVIEW_WIDTH_PX / picture.shape[1]))
    small = cv2.resize(picture, (PREVIEW_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY])[1].tobytes()
