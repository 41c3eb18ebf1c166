"""Every kind of bad or odd media has its outcome, in a real media process, within its limits."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import MakeVideo, Shot, ffmpeg
from PIL import Image

from curation.flow.media_processes import MediaWorker, curate_isolated
from curation.media.files import MediaError, open_video
from curation.pipelines import Media, Pipeline, Rule
from curation.records import TRIED_AGAIN
from curation.sources import Source, stamp_of
from curation.videos import curate_video

# What one media process may take for all of these; none of them needs more than 8K's frames.
MEMORY_GB = 1.5
PIPELINE = Pipeline(rules={"hdr": Rule(max=0)}, media=Media(memory_gb=MEMORY_GB, timeout_s=120))
Make = Callable[[MakeVideo, Path], Path]


@pytest.fixture(scope="module")
def worker() -> Iterator[MediaWorker]:
    with MediaWorker(PIPELINE.media) as worker:
        yield worker


# -- makers


def video(name: str, *options: object, filters: str = "null", shots: float = 1.0) -> Make:
    """A second of moving pictures, as these options of ffmpeg make it."""

    def make(make_video: MakeVideo, folder: Path) -> Path:
        return make_video(name, [Shot("test", shots)], "160x90", options, filters)

    return make


def raw(name: str, data: bytes) -> Make:
    def make(make_video: MakeVideo, folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def share(of: Make, part: float) -> Make:
    """The first part of a file."""

    def make(make_video: MakeVideo, folder: Path) -> Path:
        whole = of(make_video, folder)
        data = whole.read_bytes()
        (folder / whole.name).write_bytes(data[: int(len(data) * part)])
        return folder / whole.name

    return make


def edited(of: Make, change: Callable[[bytearray], None]) -> Make:
    """A file with other bytes in it."""

    def make(make_video: MakeVideo, folder: Path) -> Path:
        whole = of(make_video, folder)
        data = bytearray(whole.read_bytes())
        change(data)
        (folder / whole.name).write_bytes(data)
        return folder / whole.name

    return make


def ten_hours(data: bytearray) -> None:
    """The durations of mvhd, tkhd and mdhd (version 0) claim ten hours."""
    for box, at, scale in ((b"mvhd", 16, 12), (b"mdhd", 16, 12), (b"tkhd", 24, None)):
        start = data.index(box)
        ticks = struct.unpack_from(">I", data, start + 4 + scale)[0] if scale else 1000
        struct.pack_into(">I", data, start + 4 + at, ticks * 36_000)


def another_rate(data: bytearray) -> None:
    """Matroska's DefaultDuration (RFC 9559, 5.1.4.1.13) says 5 frames a second of 25."""
    at = data.index(bytes.fromhex("23e383")) + 3
    assert data[at] == 0x84  # four bytes of nanoseconds
    struct.pack_into(">I", data, at + 1, 200_000_000)


def sound_alone(make_video: MakeVideo, folder: Path) -> Path:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", folder / "sound.mp4")
    return folder / "sound.mp4"


def cover_alone(make_video: MakeVideo, folder: Path) -> Path:
    picture = ("-f", "lavfi", "-i", "testsrc2=d=0.04", "-c:v", "png")
    sound = ("-f", "lavfi", "-i", "sine=d=1")
    ffmpeg(*sound, *picture, "-disposition:v", "attached_pic", folder / "cover.m4a")
    return folder / "cover.m4a"


def turned(make_video: MakeVideo, folder: Path) -> Path:
    plain = video("plain.mp4")(make_video, folder)
    ffmpeg("-display_rotation", 90, "-i", plain, "-c", "copy", folder / "turned.mp4")
    return folder / "turned.mp4"


def big(make_video: MakeVideo, folder: Path) -> Path:
    ffmpeg(
        *("-f", "lavfi", "-i", "color=c=gray:s=7680x4320", "-frames:v", 1),
        *("-preset", "ultrafast", folder / "big.mp4"),
    )
    return folder / "big.mp4"


def bomb(make_video: MakeVideo, folder: Path) -> Path:
    """A picture of 256 million pixels in a file of 40 kB."""
    Image.new("1", (16_000, 16_000)).save(folder / "bomb.png")
    ffmpeg("-i", folder / "bomb.png", "-c", "copy", folder / "bomb.mov")
    return folder / "bomb.mov"


def pointing(name: str, text: str) -> Make:
    """A playlist that names another file, which is a good video."""

    def make(make_video: MakeVideo, folder: Path) -> Path:
        other = make_video("secret.ts", [Shot("test", 1.0)], "160x90")
        shutil.copy(other, folder)
        (folder / name).write_text(text)
        return folder / name

    return make


def pictures(make_video: MakeVideo, folder: Path) -> Path:
    """A file whose name is a pattern that others fit."""
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(folder / f"p{number}.jpg")
    (folder / "p%d.jpg").write_bytes(b"nothing")
    return folder / "p%d.jpg"


def fifo(make_video: MakeVideo, folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def link_to_itself(make_video: MakeVideo, folder: Path) -> Path:
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    return folder / "loop.mp4"


def named(name: str) -> Make:
    def make(make_video: MakeVideo, folder: Path) -> Path:
        path = folder / name
        path.write_bytes(video("plain.mp4")(make_video, folder).read_bytes())
        return path

    return make


FAST = ("-movflags", "+faststart")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", 8)
TEN_BITS = ("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params")
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile secret.ts\n"
KEPT = ("kept", None)

POISON: dict[str, tuple[Make, tuple[str, str | None]]] = {
    # no video
    "zero bytes": (raw("zero.mp4", b""), ("failed", "empty")),
    "one byte": (raw("one.mp4", b"\0"), ("failed", "not_video")),
    "HTML": (raw("page.mp4", b"<!DOCTYPE html><html>404</html>" * 99), ("failed", "not_video")),
    "JSON": (raw("say.mp4", json.dumps({"error": "gone"}).encode()), ("failed", "not_video")),
    "noise": (raw("noise.mp4", bytes(range(256)) * 99), ("failed", "not_video")),
    "sound alone": (sound_alone, ("failed", "no_video_stream")),
    "a cover alone": (cover_alone, ("failed", "no_video_stream")),
    "no file": (lambda make_video, folder: folder / "x.mp4", ("failed", "missing")),
    "a FIFO": (fifo, ("failed", "missing")),
    "a folder": (lambda make_video, folder: folder, ("failed", "missing")),
    "a link to itself": (link_to_itself, ("failed", "missing")),
    # of other files
    "HLS": (pointing("list.m3u8", HLS), ("failed", "not_video")),
    "HLS as mp4": (pointing("list.mp4", HLS), ("failed", "not_video")),
    "concat": (pointing("list.txt", CONCAT), ("failed", "not_video")),
    "pictures by a pattern": (pictures, ("failed", "not_video")),
    # cut off
    "3%": (share(video("a.mp4", *FAST), 0.03), ("failed", "not_video")),
    "10%": (share(video("a.mp4", *FAST), 0.1), ("failed", "truncated")),
    "50%": (share(video("a.mp4", *FAST), 0.5), ("failed", "truncated")),
    "90%": (share(video("a.mp4", *FAST), 0.9), ("failed", "truncated")),
    "50% of mkv": (share(video("a.mkv", shots=4.0), 0.5), ("failed", "truncated")),
    "no moov": (share(video("a.mp4"), 0.9), ("failed", "not_video")),
    # odd, and well
    "one frame": (video("one.mp4", shots=0.04), KEPT),
    "two frames": (video("two.mp4", shots=0.08), KEPT),
    "ten hours claimed": (edited(video("a.mp4", *FAST), ten_hours), KEPT),
    "variable rate": (video("vfr.mp4", filters="select=not(mod(n\\,3))+lt(n\\,9)"), KEPT),
    "rotated": (turned, KEPT),
    "oblong pixels": (video("oblong.mp4", filters="setsar=2"), KEPT),
    "odd size": (video("odd.webm", *VP9, filters="crop=159:89"), KEPT),
    "grey": (video("grey.mkv", "-pix_fmt", "gray"), KEPT),
    "alpha": (video("alpha.mov", "-c:v", "qtrle", "-pix_fmt", "argb"), KEPT),
    "4:4:4": (video("four.mp4", "-pix_fmt", "yuv444p"), KEPT),
    "an edit list": (video("edit.mp4", "-ss", 0.3, "-bf", 2), KEPT),
    "negative stamps": (video("early.mp4", "-output_ts_offset", -0.5), KEPT),
    "no stamps": (video("bare.h264"), KEPT),
    "another rate in the header": (edited(video("rate.mkv"), another_rate), KEPT),
    "GIF": (video("anim.gif", "-c:v", "gif"), KEPT),
    "PQ": (video("pq.mp4", *TEN_BITS, "log-level=none:transfer=smpte2084"), ("dropped", "hdr")),
    "HLG": (
        video("hlg.mp4", *TEN_BITS, "log-level=none:transfer=arib-std-b67"),
        ("dropped", "hdr"),
    ),
    "8K, one frame": (big, KEPT),
    # names
    "brackets": (named("My talk [dQw4w9WgXcQ] {a}.mp4"), KEPT),
    "options": (named("-i --help.mp4"), KEPT),
    "a protocol": (named("concat:a|b.mp4"), KEPT),
    "quotes and lines": (named("a 'b' \"c\"\nd;$(e).mp4"), KEPT),
    "a pattern": (named("%03d*?.mp4"), KEPT),
    "not UTF-8": (named(os.fsdecode(b"caf\xe9.mp4")), KEPT),
    # more than there is room for
    "a bomb": (bomb, ("failed", "memory")),
}


@pytest.mark.parametrize("kind", POISON)
def test_every_kind_has_its_outcome(
    worker: MediaWorker, make_video: MakeVideo, tmp_path: Path, kind: str
) -> None:
    make, expected = POISON[kind]
    path = make(make_video, tmp_path)
    source = Source(url=f"{kind}.mp4", path=str(path))
    result = curate_isolated(worker, source, PIPELINE, lambda stage, at_s: None)
    video = result.video
    assert (video["decision"], video["rule"] or video["error_class"]) == expected, video["message"]
    assert (len(result.clips) == 1) == (expected == KEPT)
    assert video["attempts"] == 1  # nothing kills its process
    assert expected[0] != "failed" or video["message"]
    assert peak_gb(worker) < MEMORY_GB


def peak_gb(worker: MediaWorker) -> float:
    """The most memory that the process ever had; 0 when it was killed."""
    if worker.process is None or not psutil.pid_exists(worker.process.pid):
        return 0.0
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e6


# -- while it is read


@pytest.mark.parametrize("at", ["before", "decode"])
@pytest.mark.parametrize("num_bytes", [None, 100], ids=["whole", "part"])
def test_a_file_that_grows_is_tried_again(
    make_video: MakeVideo, tmp_path: Path, at: str, num_bytes: int | None
) -> None:
    """Its id is that of other content, whenever in a run it is written to."""
    at = "fetch" if num_bytes and at == "decode" else at  # a part is not decoded
    whole = video("grows.ts")(make_video, tmp_path).read_bytes()[:num_bytes]
    path = tmp_path / "grows.ts"
    path.write_bytes(whole)
    source = Source(url="grows.ts", path=str(path), id="id", stamp=stamp_of(str(path)))

    def grow(stage: str, at_s: float) -> None:
        if stage == at:
            path.write_bytes(whole + whole)

    grow("before", 0.0)
    result = curate_video(source, PIPELINE, tmp_path, grow)
    assert (result.video["decision"], result.video["error_class"]) == ("failed", "changing")
    assert "changing" in TRIED_AGAIN and result.clips == []


def test_a_file_that_may_not_be_read(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video("plain.mp4")(make_video, tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(MediaError, match="may not be read"):
        open_video(path)
