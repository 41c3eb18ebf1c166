"""A .json file of any size -> the items of its array or object, one after another.

The standard library's decoder on a buffer that grows until an item is whole. ijson reads a file as
fast, and refuses what pandas and Python write: NaN, half characters, bytes that are not UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

CHUNK_CHARS = 1 << 20  # read at once
# Of one item. Ours: a caption for every second of a day has 5 million; all sentences of MSR-VTT 18.
MAX_PIECE_CHARS = 64 << 20


class Buffer:
    """The part of a text file that is not read yet, from its next item on."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.text = file.read(CHUNK_CHARS)
        self.at = 0
        self.passed = 0  # characters before the buffer

    def more(self) -> bool:
        """Read on, as much again as an item has so far, so that none costs its square.

        False at the end.
        """
        if len(self.text) - self.at > MAX_PIECE_CHARS:
            raise ValueError(f"an item has more than {MAX_PIECE_CHARS:,} characters")
        read = self.file.read(max(CHUNK_CHARS, len(self.text) - self.at))
        self.passed += self.at
        self.text, self.at = self.text[self.at :] + read, 0
        return bool(read)

    def mark(self) -> str:
        """The next character that is no white space, which stays; "" at the end."""
        while True:
            found = SOLID.search(self.text, self.at)
            self.at = found.start() if found else len(self.text)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, wanted: str) -> None:
        if self.mark() != wanted or not wanted:
            raise ValueError(f"character {self.passed + self.at + 1}: {wanted!r} is missing")
        self.at += 1

    def is_broken(self, error: json.JSONDecodeError) -> bool:
        """Whether an error stays one whatever follows: neither an open string nor a cut-off end."""
        is_string = error.msg.startswith("Unterminated string")
        return not is_string and error.pos < len(self.text) - len("-Infinity")

    def value(self) -> Any:
        """The next value, whole."""
        self.mark()
        while True:
            try:
                found, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                where = self.passed + error.pos + 1
                if self.is_broken(error) or not self.more():
                    raise ValueError(f"character {where}: {error.msg}") from None
                continue
            # A number may go on behind the buffer.
            if end < len(self.text) or not self.more():
                self.at = end
                return found


SOLID = re.compile(r"\S")
DECODER = json.JSONDecoder()


def items(file: TextIO) -> Iterator[tuple[str, Any]]:
    """The items of the one array ("" as their key) or object in a file.

    Raises ValueError for what is neither, for broken JSON, and for an item that is too large.
    """
    buffer = Buffer(file)
    begins = buffer.mark()
    if begins not in ("[", "{"):
        raise ValueError("it holds neither an array nor an object")
    ends = "]" if begins == "[" else "}"
    buffer.take(begins)
    while buffer.mark() != ends:
        key = ""
        if begins == "{":
            key = buffer.value()
            if not isinstance(key, str):
                raise ValueError(f"character {buffer.passed + buffer.at}: a name is missing")
            buffer.take(":")
        yield key, buffer.value()
        if buffer.mark() != ends:
            buffer.take(",")
    buffer.take(ends)
    if buffer.mark():
        raise ValueError(f"character {buffer.passed + buffer.at + 1}: it goes on behind its end")
