"""A folder -> the videos in it, told by what files are; the rest is counted by reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from curation.sources.notes import Notes
from curation.sources.subtitles import beside, is_subtitle

# Taken for videos whatever they hold: what is wrong with one is its outcome.
VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe"),
    *(".m2v", ".mpv", ".vob", ".m2ts", ".m2t", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".ogm"),
    *(".3gp", ".3g2", ".mxf", ".dv", ".rm", ".rmvb", ".y4m", ".ivf", ".nut", ".wtv", ".gxf"),
    *(".264", ".h264", ".avc", ".265", ".h265", ".hevc", ".obu"),
}
# Also the suffixes of TypeScript: taken unless they hold text.
TEXT_OR_VIDEO = {".ts", ".mts"}
# Files whose first bytes are those of a video and that are none.
OTHER_SUFFIXES = {
    *(".m4a", ".m4b", ".m4p", ".m4r", ".mka", ".mks", ".weba", ".wma", ".oga", ".opus", ".spx"),
    *(".heic", ".heif", ".avif", ".jp2", ".jxl", ".cr3"),
    *(".part", ".ytdl", ".crdownload", ".aria2", ".tmp"),  # downloads that have not ended
}
NUM_BYTES = 4096  # read of a file to see what it is
TS_PACKET = 188  # bytes; ISO/IEC 13818-1. With a time stamp of 4 before each on Blu-ray


def videos(folder: str, notes: Notes) -> Iterator[str]:
    """Paths below a folder of the files that are videos, sorted, hidden ones left out.

    Links to folders are followed once everything else is walked, and no folder is walked twice.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [(folder, "")]
    while waiting:
        links: list[tuple[str, str]] = []
        for path, inside in waiting:
            yield from walk(path, inside, seen, links, notes)
        waiting = links


def walk(
    path: str,
    inside: str,
    seen: set[tuple[int, int]],
    links: list[tuple[str, str]],
    notes: Notes,
) -> Iterator[str]:
    """The videos of one folder and those in it; `inside` is its path below the given one."""
    try:
        facts = Path(path).stat()
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError:
        notes.leave_out("folders that cannot be read", inside or ".")
        return
    if (facts.st_dev, facts.st_ino) in seen:
        notes.leave_out("links to folders that are walked already", inside)
        return
    seen.add((facts.st_dev, facts.st_ino))
    texts: list[str] = []
    found: list[str] = []
    for entry in entries:
        name = os.path.join(inside, entry.name)  # noqa: PTH118  Path would cost more than the walk
        if entry.name.startswith("."):
            notes.leave_out("hidden", name)
        elif entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, name, seen, links, notes)
        elif leads_to_folder(entry):
            links.append((entry.path, name))
        elif reason := why_unusable(entry.path):
            notes.leave_out(reason, name)
        elif is_subtitle(entry.name):
            texts.append(entry.name)
        elif holds_video(entry.path):
            found.append(entry.name)
            yield name
        else:
            notes.no_videos[Path(name).suffix.lower() or "without a suffix"] += 1
    tell_of_texts(inside, texts, found, notes)


def tell_of_texts(inside: str, texts: list[str], found: list[str], notes: Notes) -> None:
    """Note which timed texts of a folder are read for its videos; both are sorted names."""
    unused = dict.fromkeys(texts)
    for video in found:
        for at, name in enumerate(beside(video, texts)):
            if at == 0:
                notes.count("with subtitles beside")
            elif name in unused:
                reason = "subtitles not read, since their video has others"
                notes.leave_out(reason, os.path.join(inside, name))  # noqa: PTH118
            unused.pop(name, None)
    for name in unused:
        notes.leave_out("subtitles beside no video", os.path.join(inside, name))  # noqa: PTH118


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def why_unusable(path: str) -> str | None:
    """Why a thing in a folder cannot be opened as a file; None when it can."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return "links to nothing"
    # Opening a FIFO would wait for ever.
    return None if stat.S_ISREG(mode) else "neither files nor folders"


def holds_video(path: str) -> bool:
    """Whether a file of a folder is taken for a video; one that cannot be read may be."""
    suffix = Path(path).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    try:
        with Path(path).open("rb") as file:
            head = file.read(NUM_BYTES)
    except OSError:
        return suffix not in OTHER_SUFFIXES
    if suffix in TEXT_OR_VIDEO:
        return not head or not is_text(head)
    if suffix in OTHER_SUFFIXES:
        return False
    return is_video(head) or (is_picture(head) and moves(path))


def is_text(head: bytes) -> bool:
    """Whether the beginning of a file has no byte that text has not."""
    return not set(head) - TEXT_BYTES


TEXT_BYTES = {*b"\t\n\f\r", *range(0x20, 0x7F), *range(0x80, 0x100)}


def is_video(head: bytes) -> bool:
    """Whether a file that begins so is a video, by the signatures of the containers.

    MP4 and QuickTime (ISO/IEC 14496-12), Matroska (RFC 8794), AVI (RIFF), ASF, FLV, Ogg with
    Theora, RealMedia, MXF (SMPTE 377M), MPEG program and transport streams and MPEG-1/2 video
    (ISO/IEC 13818), H.264 and H.265 in Annex B, DV (SMPTE 314M), WTV, IVF, Y4M and NUT.
    """
    box = head[4:8]
    if box == b"ftyp":
        return head[8:11] not in (b"M4A", b"M4B", b"M4P", b"hei", b"hev", b"mif", b"avi", b"crx")
    if box in (b"moov", b"mdat", b"wide") and head[:3] == b"\0\0\0":
        return True
    if head.startswith(b"RIFF"):
        return head[8:12] == b"AVI "
    if head.startswith(b"OggS"):
        return b"theora" in head[:512] or b"\x01video" in head[:512]
    return head.startswith(SIGNATURES) or is_transport_stream(head)


SIGNATURES = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    bytes.fromhex("3026b2758e66cf11"),  # ASF
    b"FLV\x01",
    b".RMF",
    bytes.fromhex("060e2b34020501010d010201"),  # MXF
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG video
    *(b"\0\0\x01\x67", b"\0\0\0\x01\x67", b"\0\0\0\x01\x09"),  # H.264: SPS, delimiter
    *(b"\0\0\x01\x40\x01", b"\0\0\0\x01\x40\x01", b"\0\0\0\x01\x46\x01"),  # H.265: VPS, delimiter
    *(b"\x1f\x07\0\x3f", b"\x1f\x07\0\xbf"),  # DV of 60 and of 50 fields
    bytes.fromhex("b7d800203749da11a64e0007e95ead8d"),  # WTV
    b"DKIF",
    b"YUV4MPEG2 ",
    b"nut/multimedia container",
)


def is_transport_stream(head: bytes) -> bool:
    """Whether packets of an MPEG transport stream begin where they should, five in a row."""
    for first, step in ((0, TS_PACKET), (4, TS_PACKET + 4)):
        places = range(first, first + 5 * step, step)
        if len(head) > places[-1] and all(head[at] == 0x47 for at in places):
            return True
    return False


def is_picture(head: bytes) -> bool:
    """Whether a file is a GIF, or a PNG with the chunk of those that move."""
    return head.startswith(b"GIF8") or (head.startswith(b"\x89PNG") and b"acTL" in head)


def moves(path: str) -> bool:
    """Whether a picture has more than one frame."""
    try:
        with Image.open(path) as picture:
            return bool(getattr(picture, "is_animated", False))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # what Pillow raises at damaged files
