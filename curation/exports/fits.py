"""What a trainer demands of a clip -> which frames and pixels of it are exported, or why none.

Told from a clip's row alone, so that a dry run and a run decide alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from curation.settings import ConfigError

# Why a clip is left out.
TAKEN_DOWN = "taken down"
UNCAPTIONED = "without a caption"
SLOW = "slower than --fps"
SHORT = "too few frames"
SMALL = "smaller than --multiple-of"
ANY = "any"
# A clip of fewer frames a second than asked repeats some: at most one in a hundred. Ours: so 23.976
# is taken for 24, and 15 not for 16.
RATE_SLACK = Fraction(1, 100)
# Of a frame: durations of rows are rounded to floats.
ROUNDING = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class Demands:
    """What is asked of every clip; None: nothing."""

    frames: tuple[int, int] | None = None  # (step, rest): step * k + rest frames, k at least 1
    min_frames: int | None = None
    max_frames: int | None = None
    multiple_of: int | None = None  # px, of width and height
    fps: Fraction | None = None
    captioned_only: bool = False
    plays_in_browsers: bool = False  # H.264 of 8 bits, 4:2:0


@dataclass(frozen=True)
class Fit:
    """What of a clip is exported: its first frames, and the middle of its picture."""

    num_frames: int
    width: int  # px
    height: int  # px
    is_trimmed: bool = field(default=False, compare=False)  # its end is left out


def parse_frames(text: str) -> tuple[int, int] | None:
    """What `--frames` says; ConfigError.

    >>> parse_frames("4k+1"), parse_frames("8k"), parse_frames("any")
    ((4, 1), (8, 0), None)
    """
    found = re.fullmatch(r"([1-9]\d{0,3})k(?:\+(\d{1,4}))?", text)
    if text == ANY or not found:
        if text == ANY:
            return None
        raise ConfigError(
            f"--frames {text!r} is no count of frames; give one such as 4k+1 or 8k+1, or {ANY}"
        )
    return int(found[1]), int(found[2] or 0)


def parse_fps(text: str) -> Fraction:
    """What `--fps` says; ConfigError.

    >>> parse_fps("16"), parse_fps("30000/1001")
    (Fraction(16, 1), Fraction(30000, 1001))
    """
    try:
        fps = Fraction(text)
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if not 1 <= fps <= 240:
        raise ConfigError(f"--fps {text!r} is not a rate from 1 to 240, such as 16 or 30000/1001")
    return fps


def fit(row: Mapping[str, Any], caption: str, demands: Demands) -> Fit | str:
    """What of a clip is exported, or why it is left out; `row` is one of a shard."""
    if demands.captioned_only and not caption:
        return UNCAPTIONED
    count = row["num_frames"]
    if demands.fps is not None:
        if Fraction(row["fps"]) < demands.fps * (1 - RATE_SLACK):
            return SLOW
        count = math.ceil(Fraction(row["duration_s"]) * demands.fps - ROUNDING)
    most = largest_count(count, demands)
    if most is None:
        return SHORT
    step = demands.multiple_of or 1
    width, height = (side // step * step for side in (row["width"], row["height"]))
    return Fit(most, width, height, most < count) if width and height else SMALL


def largest_count(count: int, demands: Demands) -> int | None:
    """The most of `count` frames that are as many as is demanded, or None.

    >>> largest_count(100, Demands(frames=(4, 1))), largest_count(100, Demands(frames=(8, 1)))
    (97, 97)
    >>> largest_count(100, Demands(frames=(4, 1), max_frames=82)), largest_count(4, Demands((4, 1)))
    (81, None)
    """
    if demands.max_frames is not None:
        count = min(count, demands.max_frames)
    if demands.frames is not None:
        step, rest = demands.frames
        # With k = 0 a trainer would take what is left for a picture.
        if count < step + rest:
            return None
        count = (count - rest) // step * step + rest
    return count if count >= max(1, demands.min_frames or 1) else None


def caption_of(row: Mapping[str, Any], column: str) -> str:
    r"""A caption as it goes into a line of a file: no control characters, no ends of lines.

    >>> caption_of({"caption": " A dog\r\nruns\x00,\u2028 fast. "}, "caption")
    'A dog runs , fast.'
    """
    text = row.get(column) or ""
    # A half of a surrogate pair is in no file that is UTF-8.
    text = re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]", " ", text)
    return " ".join(text.split())
