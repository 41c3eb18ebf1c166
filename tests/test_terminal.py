"""What a user does at a terminal, in an interactive shell with job control."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest
from conftest import MakeVideo
from terminal import Terminal

from curation.commands import without_stdin

ROOT = Path(__file__).parents[1]
SMALL = "--pipeline web --set rules.resolution.min=180 --set rules.duration.min=0.5"
# Far more than any step takes, on one crowded core too: the first failure was to hang for ever.
HANG_S = 600.0
TINY = "max_steps=1 num_samples=0 held_out=0 num_frames=2 height=16 width=32"


@pytest.fixture
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """A user's. With the parameter True there is an ffmpeg on PATH.

    Importing scenedetect runs the one on PATH, and else the one that imageio-ffmpeg carries.
    """
    path = "/usr/bin:/bin"
    if request.param:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        path = f"{tmp_path}/bin:{path}"
    kept = ("HOME", "HF_HUB_OFFLINE", "LANG", "OMP_NUM_THREADS", "TMPDIR")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    terminal = Terminal(ROOT, found | {"PATH": path, "PYTHONPATH": str(ROOT)})
    yield terminal
    terminal.close()


@pytest.fixture(scope="module")
def run(make_video: MakeVideo) -> str:
    """A command that curates one short video; its output is to follow."""
    video = make_video("terminal.mp4")
    return f"{sys.executable} curation/run.py {video} {SMALL} --output"


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False], indirect=True)
def test_the_commands_end_on_a_terminal(terminal: Terminal, run: str, tmp_path: Path) -> None:
    """The first after Ctrl-Z, and on in the background."""
    terminal.type(f"{run} {tmp_path}/demo --ray-address local\n")
    terminal.wait_for("starting Ray", HANG_S)
    terminal.wait_for("fetch", HANG_S)  # the bars are up
    terminal.type("\x1a")
    terminal.wait_for("Stopped", HANG_S)
    code, shown = terminal.run("bg; wait $!", HANG_S)
    assert code == 0 and "1 shard in" in shown and "INFO" not in shown, shown
    clean = f"{sys.executable} -m curation.clean {tmp_path}/demo --output {tmp_path}/clean"
    code, shown = terminal.run(f"{clean} --set scorers.aesthetic=technical_quality", HANG_S)
    assert code == 0, shown
    settings = " ".join(f"--set {each}" for each in TINY.split())
    train = f"{sys.executable} -m training.train --preset tiny --workers 1 {settings}"
    code, shown = terminal.run(f"{train} --data {tmp_path}/demo --output {tmp_path}/run", HANG_S)
    assert code == 0 and "1 steps done" in shown, shown


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True], indirect=True)
def test_a_run_can_be_ended_and_goes_on(terminal: Terminal, run: str, tmp_path: Path) -> None:
    """Ctrl-C, and the same command goes on; both without Ray."""
    terminal.type(f"{run} {tmp_path}/demo\n")
    terminal.wait_for("fetch", HANG_S)  # the bars are up
    terminal.type("\x03")
    shown = terminal.wait_for("goes on from there", HANG_S)
    assert "Traceback" not in shown
    code, shown = terminal.run(f"{run} {tmp_path}/demo", HANG_S)
    assert code == 0 and "1 shard in" in shown and "INFO" not in shown, shown


def test_what_a_command_starts_has_no_terminal() -> None:
    """Runs end on a terminal without this too, as long as no Ray process imports scenedetect."""
    before, asked = os.fstat(0), "import os; print(os.fstat(0).st_rdev)"
    with without_stdin():
        child = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert int(child.stdout) == Path(os.devnull).stat().st_rdev
    assert os.path.samestat(before, os.fstat(0))
