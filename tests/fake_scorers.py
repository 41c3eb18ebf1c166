"""Scorers with the interfaces of the real ones whose answers are known, and that can misbehave.

A module of its own, since Ray's processes and media workers import what they run by name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from curation.decode.tracks import Scoring
from curation.scores.models import Seen

# A media worker looks for modules where PYTHONPATH says; tests/ is not there by itself.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
)
# Clips of this height are the ones that a scorer stumbles over.
ODD_HEIGHT_PX = 72


class Brightness:
    """A motion track whose motion is the clip's mean brightness, 0..1."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray, gray: np.ndarray) -> None:
        assert gray.ndim == 2 and gray.dtype == np.uint8
        self.means.append(float(gray.mean()) / 255)

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        return {"motion": float(np.mean(self.means)), "zoom": 0.25}


class Stumbling:
    """A look track that raises, hangs, crashes or gives NaN for clips of ODD_HEIGHT_PX."""

    def __init__(self, how: str, gate: str = "") -> None:
        self.how = how
        self.gate = Path(gate)
        self.is_odd = False

    def add(self, now_s: float, frame: av.VideoFrame, small: np.ndarray, gray: np.ndarray) -> None:
        self.is_odd = frame.height == ODD_HEIGHT_PX
        if not self.is_odd:
            return
        if self.how == "raise":
            raise ValueError("this clip is odd")
        if self.how == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        while self.how == "hang" or (self.how == "gate" and not self.gate.exists()):
            time.sleep(0.05)

    def between(self, start_s: float, end_s: float) -> dict[str, float | None]:
        if self.is_odd and self.how in ("nan", "null"):
            return {"sharpness": float("nan") if self.how == "nan" else None}
        return {"sharpness": 0.5}


class Reds:
    """A text model whose text is the share of red in a clip's pictures; may stumble too."""

    def __init__(self, how: str = "") -> None:
        self.how = how

    def __call__(self, looks: Sequence[Seen]) -> list[dict[str, Any]]:
        if any(p.shape[0] == ODD_HEIGHT_PX for look in looks for p in look.pictures):
            if self.how == "raise":
                raise RuntimeError("the batch holds an odd clip")
            if self.how == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            while self.how == "hang":
                time.sleep(0.05)
        return [
            {
                "text": float(np.mean([p[..., 2].mean() / 255 for p in look.pictures])),
                "text_boxes": [[0.0, 0.0, 0.5, 0.25]],
            }
            for look in looks
        ]


def fakes(look: str = "", gate: str = "", text: str = "") -> Scoring:
    return Scoring(
        tracks={"motion": Brightness, "look": partial(Stumbling, look, gate)},
        models={"text": partial(Reds, text)},
    )


class NoWeights:
    """A model that cannot be built."""

    def __init__(self) -> None:
        raise FileNotFoundError("no weights in /nowhere")
