"""A cell of a list -> text, a list, seconds, a cut; what is wrong with one is told by kind."""

from __future__ import annotations

import ast
import datetime
import json
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from curation.sources.source import Span, span_of

NULLS = {"nan", "NaN", "null", "NULL", "None"}  # what pandas and str() write for nothing
TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
# A duration as schema.org and WebVid write it; ISO 8601, without days.
ISO_DURATION = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?")


class RowError(ValueError):
    """A row that cannot be used; `reason` is what all of its kind have in common."""

    def __init__(self, reason: str, says: str) -> None:
        super().__init__(says)
        self.reason = reason


def num_chars(cell: Any) -> int:
    """Characters or bytes of a cell and of what is in it."""
    if isinstance(cell, str | bytes):
        return len(cell)
    return sum(map(num_chars, cell)) + len(cell) if isinstance(cell, list | tuple) else 0


def is_nothing(cell: Any) -> bool:
    return cell is None or str(cell).strip() in ("", *NULLS)


def one_value(cell: Any, name: str) -> str:
    """A cell's value as text; "" for null and NaN.

    Raises RowError for several values, and for a map of them.
    """
    if isinstance(cell, list | tuple) and len(cell) < 2:
        return one_value(cell[0] if cell else None, name)
    if isinstance(cell, list | tuple | dict):
        says = f"{name} holds {len(cell)} values; one text is read"
        raise RowError(f"several values in {name}", says)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():  # ids, beside rows that have none
        return str(int(cell))
    if isinstance(cell, datetime.datetime):
        cell = cell.date()
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    return str(cell)


def list_in(cell: Any) -> list[Any] | None:
    """The list that a cell is, or is written in one of text: JSON or Python; None for others."""
    if isinstance(cell, list | tuple):
        return list(cell)
    text = cell.strip() if isinstance(cell, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) else None
    return None  # such as [music]


def checked_span(start: Any, end: Any, captions: Iterable[str]) -> Span:
    """A span of cells; RowError unless it is one of seconds that go forward."""
    try:
        start_s, end_s = seconds(start), seconds(end)
    except (TypeError, ValueError):
        raise RowError(
            "cuts that are no times",
            f"start {start!r} and end {end!r} must both be seconds, or times such as 1:02:03.5",
        ) from None
    if not 0 <= start_s < end_s < math.inf:  # NaN is not
        raise RowError(
            "cuts that do not go forward",
            f"start {start_s} is not before end {end_s}; both are seconds from the first frame",
        )
    return span_of(start_s, end_s, captions)


def seconds(cell: Any) -> float:
    """Seconds that a cell says: a number, or a time as m:ss, h:mm:ss, with or without fraction.

    >>> seconds("1:02:03.5"), seconds("0:03"), seconds("7")
    (3723.5, 3.0, 7.0)
    """
    if isinstance(cell, datetime.timedelta):
        return cell.total_seconds()
    if isinstance(cell, datetime.time):
        return seconds(cell.isoformat())
    if isinstance(cell, str):
        if found := TIME.fullmatch(cell.strip()):
            hours, minutes, rest = found[1], int(found[2]), float(found[3].replace(",", "."))
            if rest >= 60 or (hours and minutes >= 60):
                raise ValueError(f"{cell} is no time")
            return int(hours or 0) * 3600 + minutes * 60 + rest
        return float(cell)
    if isinstance(cell, bool) or not isinstance(cell, int | float | Decimal):
        raise TypeError(f"{cell!r} is no time")
    return float(cell)


def duration_s(cell: Any) -> float | None:
    """How long a video is by a cell, in seconds; None where it says nothing that is a duration.

    >>> duration_s("PT00H01M02S"), duration_s("1:02"), duration_s(62.0), duration_s("long")
    (62.0, 62.0, 62.0, None)
    """
    found = ISO_DURATION.fullmatch(cell.strip()) if isinstance(cell, str) else None
    try:
        if found and any(found.groups()):
            hours, minutes, rest = (float(part or 0) for part in found.groups())
            length = hours * 3600 + minutes * 60 + rest
        else:
            length = seconds(cell)
    except (TypeError, ValueError):
        return None
    return length if 0 < length < math.inf else None
