"""The command as a Ray job, in both forms, on a real cluster head of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from curation.shards import Dataset

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ray_command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m ray.scripts.scripts ARGUMENTS`, which is `ray` without needing it on PATH."""
    command = [sys.executable, "-m", "ray.scripts.scripts", *map(str, arguments)]
    # Jobs run `python`: it must be this one, as in an active virtual environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": path, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head as the README starts it; yields the environment that its users set."""
    # Ray's socket paths must be short: not pytest's own folders.
    folder = f"/tmp/vf{os.getpid()}"
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"http://127.0.0.1:{free_port()}"}
    dashboard_port = environment["RAY_ADDRESS"].rsplit(":", 1)[1]
    started = ray_command(
        *("start", "--head", "--port", free_port(), "--dashboard-port", dashboard_port),
        *("--num-cpus", 2, "--temp-dir", folder, "--disable-usage-stats"),
        # The Ray that tests share has an agent too; jobs are taken by the one that has this port.
        *("--dashboard-agent-listen-port", free_port()),
        RAY_AUTH_MODE="disabled",
    )
    assert started.returncode == 0, started.stderr
    yield environment
    ours = [p for p in psutil.process_iter() if folder in " ".join(command_line(p))]
    for process in ours:
        process.kill()
    psutil.wait_procs(ours, timeout=30)


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


@pytest.mark.parametrize("form", [["python", "curation/run.py"], ["curation/run.py"]])
def test_a_job_curates_from_a_bare_checkout(
    form: list[str],
    cluster: dict[str, str],
    make_video: Callable[..., Path],
    tmp_path: Path,
) -> None:
    video = make_video("shots.mp4")
    options = ["--pipeline", "web", "--output", tmp_path / "job"]
    options += ["--set", "rules.resolution.min=180", "--set", "rules.duration.min=0.5"]
    done = ray_command(
        "job", "submit", "--working-dir", ".", "--", *form, video, *options, **cluster
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert len(list(Dataset.at(tmp_path / "job").rows(["clip_id"]))) == 3


def test_a_relative_output_is_refused_in_a_job(cluster: dict[str, str]) -> None:
    done = ray_command(
        *("job", "submit", "--working-dir", ".", "--", "python", "curation/run.py"), **cluster
    )
    assert done.returncode != 0
    assert "is relative, and this is a Ray job" in done.stdout + done.stderr
