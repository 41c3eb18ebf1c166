"""A folder is read by what its files are; what is left out is counted by reason."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ffmpeg

from curation.sources import read_given
from curation.sources.folders import VIDEO_SUFFIXES, holds_video


def names(folder: Path) -> list[str]:
    return [str(Path(s.url).relative_to(folder)) for s in read_given([str(folder)], folder).sources]


def told(folder: Path) -> str:
    return "".join(read_given([str(folder)], folder).ignored())


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of ffmpeg's: moving and still pictures, and sound, in many containers."""
    folder = tmp_path_factory.mktemp("kinds")
    picture = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.2")
    for suffix in MOVING:
        ffmpeg(*picture, folder / f"moving.{suffix}")
    wide = ("-f", "lavfi", "-i", "testsrc2=s=720x576:r=25:d=0.1", "-pix_fmt", "yuv420p")
    ffmpeg(*wide, folder / "moving.dv")
    for suffix in ("png", "gif", "jpg"):
        ffmpeg(*picture, "-frames:v", 1, folder / f"still.{suffix}")
    for suffix in ("m4a", "mka", "ogg", "wma", "wav", "mp3"):
        ffmpeg("-f", "lavfi", "-i", "sine=d=0.1", folder / f"sound.{suffix}")
    return folder


MOVING = [
    *("mp4", "mov", "mkv", "webm", "avi", "mpg", "vob", "ts", "m2ts", "flv", "wmv", "ogv", "mxf"),
    *("nut", "wtv", "y4m", "ivf", "h264", "m2v", "rm", "gif", "apng"),
]


@pytest.mark.parametrize("suffix", [*MOVING, "dv"])
def test_a_video_is_one_under_any_name(media: Path, tmp_path: Path, suffix: str) -> None:
    for name in (f"a.{suffix}", "b.bin", "c"):
        shutil.copy(media / f"moving.{suffix}", tmp_path / name)
    assert names(tmp_path) == [f"a.{suffix}", "b.bin", "c"]


def test_sound_and_still_pictures_are_left_out_and_counted(media: Path) -> None:
    assert all(name.startswith("moving") for name in names(media))
    line = told(media)
    assert "files that are no videos: " in line
    assert all(f"1 .{s}" in line for s in ("png", "gif", "jpg", "m4a", "mka", "ogg", "wma"))


def test_a_damaged_video_is_a_source_and_its_fault_an_outcome(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mkv").write_text("<html>")
    (tmp_path / "b.ts").write_bytes(b"\x47\0\1\2 damaged")
    assert names(tmp_path) == ["b.ts", "empty.mp4", "page.mkv"]


def test_typescript_is_no_video(tmp_path: Path) -> None:
    for name in ("index.ts", "module.mts"):
        (tmp_path / name).write_text("export const façade = 1;\n")
    assert names(tmp_path) == []
    assert "files that are no videos: 1 .ts, 1 .mts" in told(tmp_path)


def test_downloads_that_have_not_ended_are_left_out(media: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4.part").symlink_to(media / "moving.mp4")
    assert names(tmp_path) == []
    assert "1 .part" in told(tmp_path)


def test_two_names_of_one_file_are_one_source(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    assert names(tmp_path) == ["a.mp4"]


def test_links_to_folders_are_walked_once_and_loops_end(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    (inside / "real").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for path in (inside / "real/a.mp4", tmp_path / "out/b.mp4"):
        path.touch()
    (inside / "linked").symlink_to(tmp_path / "out")
    (inside / "again").symlink_to("real")
    (inside / "real/loop").symlink_to("..")
    (inside / "self").symlink_to("self")
    (inside / "lost.mp4").symlink_to("nowhere")
    assert names(inside) == ["real/a.mp4", "linked/b.mp4"]
    line = told(inside)
    assert "links to folders that are walked already: 2 (first: again)" in line
    assert "links to nothing: 2 (first: lost.mp4)" in line


def test_a_folder_named_like_a_video_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "dir.mp4/inner.mp4").touch()
    assert names(tmp_path) == ["dir.mp4/inner.mp4"]
    assert told(tmp_path) == ""


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[Path]:
    """A FIFO and a socket named like videos: opening the first would wait for ever."""
    os.mkfifo(tmp_path / "fifo.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.mp4"))
        yield tmp_path


def test_what_is_no_file_is_not_opened(strange: Path) -> None:
    assert names(strange) == []
    assert "neither files nor folders: 2" in told(strange)


def test_hidden_files_and_folders_are_counted(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "._a.mp4").touch()
    (tmp_path / "a.mp4").touch()
    assert names(tmp_path) == ["a.mp4"]
    assert "hidden: 2" in told(tmp_path)


def test_a_folder_that_cannot_be_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    scandir = os.scandir

    def refused(path: str) -> Iterator[os.DirEntry[str]]:
        if path.endswith("/d"):
            raise PermissionError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert "folders that cannot be read: 1 (first: d)" in told(tmp_path)


def test_names_that_are_not_utf_8_are_told_apart_and_reached(tmp_path: Path) -> None:
    for name in (b"caf\xe9.mp4", b"caf\xe8.mp4"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    found = read_given([str(tmp_path)], tmp_path).sources
    assert [Path(s.url).name for s in found] == ["caf\\xe8.mp4", "caf\\xe9.mp4"]
    assert [Path(s.path or "").read_bytes() for s in found] == [b"caf\xe8.mp4", b"caf\xe9.mp4"]


def test_a_damaged_picture_is_no_video_and_no_crash(tmp_path: Path) -> None:
    for name, data in (("a.gif", b"GIF89a" + b"\xff" * 50), ("b.png", b"\x89PNGacTL")):
        (tmp_path / name).write_bytes(data)
        assert not holds_video(str(tmp_path / name))


def test_suffixes_are_lower_case() -> None:
    assert all(s == s.lower() and s.startswith(".") for s in VIDEO_SUFFIXES)
