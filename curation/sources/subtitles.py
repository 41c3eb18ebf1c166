"""Timed text beside a video: which file it is, and what it says when."""

from __future__ import annotations

import hashlib
import html
import io
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, zip_longest
from pathlib import Path

import pysubs2

from curation.sources.charsets import encoding_of
from curation.sources.source import Source, Subtitles, short_hash, storable

KINDS = (".srt", ".vtt", ".ass", ".ssa")  # those that are read; the first is preferred
ENGLISH = ("en", "eng", "english")
# What players and yt-dlp put behind the language.
MARKS = {"forced", "sdh", "cc", "hi", "default", "orig"}
LANGUAGE = re.compile(r"[a-z]{2,3}([-_][\w-]*)?|english")


@dataclass(frozen=True)
class Cue:
    """One timed line of text, in seconds."""

    start_s: float
    end_s: float
    text: str


# -- which file


def lacks_captions(source: Source) -> bool:
    """Whether a clip of a source may have no caption of a list's."""
    cuts_say_all = source.spans and all(span.captions for span in source.spans)
    return not (source.captions or cuts_say_all)


def with_subtitles(source: Source) -> Source:
    """A local source with the timed text beside it, where clips may need it for captions."""
    if source.path is None or not lacks_captions(source):
        return source
    path = Path(source.path)
    try:
        names = subtitle_names(str(path.parent), path.parent.stat().st_mtime_ns)
        found = next(iter(beside(path.name, names)), None)
        if found is None:
            return source
        text = path.with_name(found)
        with text.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return source
    return replace(source, subtitles=Subtitles(str(text), short_hash(digest)))


@lru_cache(maxsize=8)  # videos of one folder come one after another
def subtitle_names(folder: str, changed_ns: int) -> list[str]:
    """The names of timed text in a folder, sorted; `changed_ns` is when it last changed."""
    with os.scandir(folder) as entries:
        return sorted(each.name for each in entries if is_subtitle(each.name) and each.is_file())


def is_subtitle(name: str) -> bool:
    return name.lower().endswith(KINDS)


def beside(video: str, names: Sequence[str]) -> list[str]:
    """Those of sorted names that are a video's timed text, the best first.

    The video's own name comes first, then English, then other languages by the alphabet, forced
    ones (foreign lines alone) last; then .srt before .vtt, .ass and .ssa.

    >>> beside("a.mp4", ["a.b.srt", "a.de.srt", "a.en-orig.vtt", "a.en.VTT", "a.mp4.srt"])
    ['a.mp4.srt', 'a.en.VTT', 'a.en-orig.vtt', 'a.de.srt']
    """
    stem, suffix = os.path.splitext(video)  # noqa: PTH122
    found = []
    for at in range(bisect_left(names, f"{stem}."), len(names)):
        name = names[at]
        if not name.startswith(f"{stem}."):
            break
        *tags, kind = name[len(stem) + 1 :].casefold().split(".")
        if tags and f".{tags[0]}" == suffix.casefold():  # a.mp4.srt
            tags = tags[1:]
        languages = [tag for tag in tags[:1] if tag not in MARKS]
        if MARKS.issuperset(tags[len(languages) :]) and all(map(LANGUAGE.fullmatch, languages)):
            rank = ("forced" in tags, *rank_of(*languages), len(tags), KINDS.index(f".{kind}"))
            found.append((rank, name))
    return [name for _, name in sorted(found)]


def rank_of(language: str = "") -> tuple[int, str]:
    """A language's place among several; none at all is first."""
    is_english = re.split("[-_]", language)[0] in ENGLISH
    return (1 if is_english else 2) if language else 0, language


# -- what it says


def read_cues(path: str) -> list[Cue]:
    """The cues of a file of timed text in any encoding; [] when it cannot be read or says none."""
    try:
        data = Path(path).read_bytes()
        encoding = encoding_of(io.BytesIO(data))
    except (OSError, ValueError):
        return []
    kind = Path(path).suffix.lower().removeprefix(".")
    return parse_cues(data.decode(encoding, "replace"), kind)


def parse_cues(text: str, kind: str = "srt") -> list[Cue]:
    """The cues of SubRip, WebVTT or SubStation text by time, without markup; [] if it is broken.

    `kind` is srt, vtt, ass or ssa; text that begins with WEBVTT is that.

    >>> parse_cues("1\\n00:00:01,500 --> 00:00:02,000\\n<i>Hello</i>\\nyou")
    [Cue(start_s=1.5, end_s=2.0, text='Hello you')]
    """
    text = re.sub("\r\n?", "\n", text.removeprefix("\ufeff"))
    if text.startswith("WEBVTT"):
        kind = "vtt"
    return said_once(styled_cues(text, kind) if kind in ("ass", "ssa") else plain_cues(text, kind))


def styled_cues(text: str, kind: str) -> list[Cue]:
    """The cues of SubStation text, lines apart."""
    try:
        file = pysubs2.SSAFile.from_string(text, kind)
    except (ValueError, pysubs2.Pysubs2Error):
        return []
    return [
        Cue(e.start / 1000, e.end / 1000, storable(e.plaintext)) for e in file.get_text_events()
    ]


def plain_text(styled: str) -> str:
    """A SubStation line without its markup; "" for a drawing."""
    event = pysubs2.SSAEvent(text=styled)
    return "" if event.is_drawing else event.plaintext


# Of SubRip and WebVTT. People also write one dash, or a colon before the fraction.
TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,:](\d{1,3}))?"
TIMES = re.compile(rf"^[ \t]*{TIME}[ \t]*[-–—]{{1,2}}>[ \t]*{TIME}(?![\d:]).*$", re.MULTILINE)
# Tags, times in the words of YouTube's captions, and SubStation's codes, which SubRip may hold.
TAGS = re.compile(r"</?[a-zA-Z][^<>\n]*>|<[\d:.]+>|\{\\[^}]*\}")


def plain_cues(text: str, kind: str) -> list[Cue]:
    """The cues of SubRip or WebVTT text, lines apart.

    By our own hand: pysubs2 1.8 takes a cue's name and a note for words, a last line that is a
    number for the next cue's, and times in words for those of a cue.
    """
    marks = list(TIMES.finditer(text))
    is_numbered = bool(marks) and text[: marks[0].start()].rstrip("\n")[-1:].isdigit()
    cues = []
    for mark, behind in zip_longest(marks, marks[1:]):
        lines = text[mark.end() : behind.start() if behind else None].split("\n")[1:]
        if behind:
            lines.pop()  # what stands before the next times on their line: nothing
            if is_numbered and lines and lines[-1].strip().isdigit():
                lines.pop()
        if kind == "vtt" and "" in lines:  # what follows a blank line is a note, or a cue's name
            lines = lines[: lines.index("")]
        words = "\n".join(html.unescape(TAGS.sub("", line)) for line in lines)
        start_s, end_s = time_s(*mark.groups()[:4]), time_s(*mark.groups()[4:])
        cues.append(Cue(start_s, end_s, storable(words)))
    return cues


def time_s(hours: str | None, minutes: str, whole: str, fraction: str | None) -> float:
    milliseconds = int((fraction or "0").ljust(3, "0"))
    return (int(hours or 0) * 3600 + int(minutes) * 60 + int(whole)) + milliseconds / 1000


# -- said once

# How far behind another a cue begins that goes on with it, in seconds. Ours: what converters and
# frame rates round.
TOUCH_S = 0.1
# Of the words of a file that is no rolling one, the share that repeats those before. Ours: of
# rolling captions in two lines half of the words are repeated; of spoken text next to none.
ROLLING = 1 / 3
NUM_SURE = 3  # words in a row that repeat those before by no chance. Ours


def said_once(cues: Iterable[Cue]) -> list[Cue]:
    """Cues by time, each text on one line, without what is only shown again.

    A text that stays while another cue begins is one cue. Where captions roll, as YouTube's and
    television's do, each cue repeats the lines before it: it keeps the words that are new. What is
    said again later stays.
    """
    known = united(cues)
    repeated = [0] * bool(known) + [overlap(a, b) for a, b in pairwise(known)]
    num_words = sum(len(cue.text.split()) for cue in known[1:])
    rolls = num_words > 0 and sum(repeated) >= ROLLING * num_words
    said = []
    for cue, number in zip(known, repeated, strict=True):
        if words := cue.text.split()[number if rolls else 0 :]:
            said.append(replace(cue, text=" ".join(words)))
    return said


def united(cues: Iterable[Cue]) -> list[Cue]:
    """Cues with words by time, those with one text that touch as one, lines apart."""
    found: list[Cue] = []
    places: dict[str, int] = {}  # of the last cue with a text
    for cue in sorted(cues, key=lambda cue: cue.start_s):
        lines = [" ".join(line.split()) for line in cue.text.split("\n")]
        cue = replace(cue, text="\n".join(filter(None, lines)))
        if not cue.text:
            continue
        at = places.get(cue.text)
        if at is not None and cue.start_s <= found[at].end_s + TOUCH_S:
            found[at] = replace(found[at], end_s=max(found[at].end_s, cue.end_s))
        else:
            places[cue.text] = len(found)
            found.append(cue)
    return found


def overlap(before: Cue, cue: Cue) -> int:
    """How many words at the beginning of a cue repeat the end of the one that it follows at once.

    They are whole lines of the one before, the whole cue, or too many for chance.
    """
    if cue.start_s > before.end_s + TOUCH_S:
        return 0
    lines = [line.split() for line in before.text.split("\n")]
    whole = {sum(map(len, lines[at:])) for at in range(len(lines))}
    shown, words = before.text.split(), cue.text.split()
    for number in range(min(len(shown), len(words)), 0, -1):
        is_meant = number >= NUM_SURE or number in whole or number == len(words)
        if is_meant and shown[-number:] == words[:number]:
            return number
    return 0
