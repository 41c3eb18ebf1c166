"""Bytes of a text file -> its encoding."""

from __future__ import annotations

import codecs
from typing import BinaryIO

import charset_normalizer

BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's, so it is looked for first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What a text that is not Unicode is tried as, with the names that users know. The order decides
# between those that fit it alike, as measured on short texts (docs/decisions.md): western text is
# as good a Czech one to charset-normalizer, one line of Chinese as good a Korean one.
CHARSETS = {
    "cp1252": "Windows-1252",
    "cp1251": "Windows-1251",
    "euc_jp": "EUC-JP",
    "gb18030": "GB18030",
    "big5": "Big5",
    "cp932": "Shift-JIS",
    "cp949": "EUC-KR",
    "cp1250": "Windows-1250",
    "cp1253": "Windows-1253",
    "cp1256": "Windows-1256",
    "koi8_r": "KOI8-R",
    "cp1254": "Windows-1254",
    "cp1255": "Windows-1255",
}
# Shares of disorder this near count as alike. Ours: in Swedish the right encoding is 0.03 behind.
ALIKE = 0.03
NUM_HEAD = 4096  # bytes that tell of marks and of UTF-16
MAX_SAMPLE = 4096  # bytes of lines that are not UTF-8 that are looked at, whole ones if they fit
MAX_DISORDER = 0.5  # charset-normalizer's own 0.2 finds nothing in lines with many accents


def encoding_of(file: BinaryIO) -> str:
    """The encoding of a text file, as Python names it, by its bytes.

    A byte order mark tells it; else zero bytes tell UTF-16; else it is UTF-8 unless more lines
    are not than are beyond ASCII and UTF-8. What is left is told from those lines by
    charset-normalizer, and is Windows-1252 when it cannot be. Raises ValueError for zero bytes
    that are not UTF-16's.
    """
    head = file.read(NUM_HEAD)
    file.seek(0)
    for mark, name in BOMS.items():
        if head.startswith(mark):
            return name
    if b"\0" in head:
        return without_mark(head)
    num_utf_8 = num_others = size = 0
    sample: dict[bytes, None] = {}
    for line in file:
        if line.isascii():
            continue
        if is_utf_8(line):
            num_utf_8 += 1
            continue
        num_others += 1
        if size < MAX_SAMPLE and line not in sample:
            sample[line[: MAX_SAMPLE - size]] = None
            size += len(line)
    file.seek(0)
    return "utf-8" if num_utf_8 >= num_others else told(b"".join(sample))


def is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def without_mark(head: bytes) -> str:
    """UTF-16 of one order or the other, by where the zero bytes of its digits and line ends are."""
    first, second = head[::2].count(0), head[1::2].count(0)
    if max(first, second) * 16 > len(head):  # of its characters an eighth or more are ASCII
        if first * 8 < second:
            return "utf-16-le"
        if second * 8 < first:
            return "utf-16-be"
    raise ValueError("it holds zero bytes; save it as UTF-8 text")


def told(sample: bytes) -> str:
    """What a text that is not Unicode is encoded in."""
    fitting = charset_normalizer.from_bytes(
        sample,
        steps=1,  # in one piece: a cut in the middle of a character is disorder
        chunk_size=len(sample),
        threshold=MAX_DISORDER,
        cp_isolation=list(CHARSETS),
        enable_fallback=False,
    )
    found = {match.encoding: match.chaos for match in fitting if match.encoding in CHARSETS}
    # Encodings that give the same text are one match.
    for match in fitting:
        found |= {each: match.chaos for each in match.could_be_from_charset if each in CHARSETS}
    if not found:
        return "cp1252"
    least = min(found.values())
    return next(each for each in CHARSETS if found.get(each, 1.0) <= least + ALIKE)
