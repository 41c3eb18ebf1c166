"""A few bytes of every frame, kept from the one decode: what is cut is held against them.

A signature is the mean brightness of 8x8 fields of the picture, 64 bytes. Two decoders of one file
may disagree without a word: a seek in a container without an index lands between keyframes, and
grey or torn pictures come out with right times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from curation.decode.scenes import analysis_size
from curation.media.files import MediaError
from curation.media.pictures import FULL, small_pictures, upright
from curation.media.probes import Turn

if TYPE_CHECKING:
    import av

GRID = 8
# Two measures, grey levels of 0 to 255: the mean over the fields and the worst of them. Measured on
# the 448 clips of tests/test_clips.py and test_joins.py, right ones: at most 0.5 and 2. Of two bad
# seeks into MPEG-4: 7.8 and 46, 1.2 and 21.
MAX_MEAN = 2.0
MAX_FIELD = 8.0


class Signatures:
    """The signatures of a video's frames, in order, as they are shown: turned upright."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.fields = bytearray()

    def add(self, luma: np.ndarray, *, is_full_range: bool) -> None:
        """Take the next frame's brightness, uint8 [H, W], as stored."""
        self.fields += signature(luma, is_full_range=is_full_range).tobytes()

    def of(self, first: int, last: int) -> np.ndarray:
        """Those of frames [first, last), uint8 [N, 8, 8]."""
        size = GRID * GRID
        stored = np.frombuffer(bytes(self.fields[first * size : last * size]), np.uint8)
        return np.stack([upright(one, self.turn) for one in stored.reshape(-1, GRID, GRID)])


def signature(luma: np.ndarray, *, is_full_range: bool) -> np.ndarray:
    """The mean brightness of 8x8 fields, uint8 [8, 8], full range."""
    fields = cv2.resize(luma, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return fields if is_full_range else FULL[fields]


def signature_of(frame: av.VideoFrame) -> np.ndarray:
    """The signature of a frame as it is stored, made as the analysis makes it."""
    _, luma, is_full_range = small_pictures(frame, analysis_size(frame.width, frame.height))
    return signature(luma, is_full_range=is_full_range)


def check_same(found: np.ndarray, wanted: np.ndarray, numbers: np.ndarray) -> None:
    """Raise MediaError encode where signatures [N, 8, 8] are not those wanted.

    `numbers` are the frames' in their clip, for the message.
    """
    if len(found) != len(wanted):
        raise MediaError("encode", f"{len(found)} pictures to compare, of {len(wanted)}")
    apart = np.abs(found.astype(np.int16) - wanted).reshape(len(found), -1)
    mean, worst = apart.mean(axis=1), apart.max(axis=1)
    wrong = (mean > MAX_MEAN) | (worst > MAX_FIELD)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise MediaError(
            "encode",
            f"frame {numbers[at]} of the clip is another picture than was analysed: "
            f"{mean[at]:.1f} grey levels apart, {worst[at]} where most",
        )
