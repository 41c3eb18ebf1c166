"""The command as a Ray job, in the forms that the README gives, on a real cluster of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import MakeVideo

from curation.shards import Dataset

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks: Ray hashes the folder, which nothing else may write to."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        if (ROOT / name).is_file():  # not one that is deleted and not committed yet
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


class Cluster:
    """A head that was started in a folder, as the README says, and what its users set."""

    def __init__(self, checkout: Path, temp_dir: str, home: Path) -> None:
        self.checkout, self.temp_dir, self.home = checkout, temp_dir, home
        self.port, dashboard_port = free_port(), free_port()
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
            "HOME": str(home),
        }
        made = self.ray("get-auth-token", "--generate")
        assert made.returncode == 0, made.stderr
        assert (home / ".ray/auth_token").is_file()
        self.start("--head", "--port", self.port, "--dashboard-port", dashboard_port)

    def start(self, *arguments: object) -> None:
        """`ray start`, for the head or for another node."""
        done = self.ray(
            *("start", *arguments, "--num-cpus", 2, "--disable-usage-stats"),
            *(("--temp-dir", self.temp_dir) if "--head" in arguments else ()),
            # The Ray that tests share has an agent too; jobs go to the one that has this port.
            *("--dashboard-agent-listen-port", free_port()),
        )
        assert done.returncode == 0, done.stderr

    def ray(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`python -m ray.scripts.scripts ARGUMENTS`, which is `ray` without needing it on PATH."""
        # Jobs run `python`: it must be this one, as in an active virtual environment.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        # The Ray that tests share has a token of its own.
        ours = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *map(str, arguments)],
            cwd=self.checkout,
            env=ours | {"PATH": path, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def submit(self, *arguments: object) -> tuple[int, str]:
        """`ray job submit ARGUMENTS`: its exit code and all that it said."""
        done = self.ray("job", "submit", *arguments)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # Ray's socket paths must be short: not pytest's own folders.
    folder = f"/tmp/vf{os.getpid()}"
    yield Cluster(checkout, folder, tmp_path_factory.mktemp("home"))
    ours = [p for p in psutil.process_iter() if folder in " ".join(command_line(p))]
    for process in ours:
        with suppress(psutil.NoSuchProcess):  # its parent, killed before it, took it along
            process.kill()
    psutil.wait_procs(ours, timeout=30)


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def num_clips(folder: Path) -> int:
    return len(list(Dataset.at(folder).rows(["clip_id"])))


@pytest.mark.slow
def test_the_plain_line_works_where_ray_was_started(cluster: Cluster) -> None:
    """`ray job submit curation/run.py`: the job runs in the checkout itself."""
    code, said = cluster.submit("curation/run.py")
    assert code == 0, said[-3000:]
    assert num_clips(cluster.checkout / "runs/demo") == 7
    shutil.rmtree(cluster.checkout / "runs")  # the next jobs pack the folder


@pytest.mark.slow
def test_a_packaged_job_without_an_output_writes_to_the_home(cluster: Cluster) -> None:
    code, said = cluster.submit("--working-dir", ".", "curation/run.py")
    assert code == 0, said[-3000:]
    output = cluster.home / "videofactory/runs/demo"
    assert num_clips(output) == 7
    told = [line for line in said.splitlines() if str(output) in line]
    assert "sources ->" in told[0] and "look into it" in told[-1]


def test_a_relative_output_is_refused_in_a_packaged_job(cluster: Cluster) -> None:
    command = ["python", "curation/run.py", "--output", "runs/x"]
    code, said = cluster.submit("--working-dir", ".", "--", *command)
    assert code != 0
    assert "--output runs/x is relative, and this Ray job runs in a copy" in said


@pytest.mark.slow
def test_a_packaged_job_with_options_on_several_machines(
    cluster: Cluster, make_video: MakeVideo, tmp_path: Path
) -> None:
    """A folder of one machine is refused there, with what to write in its place."""
    cluster.start("--address", f"127.0.0.1:{cluster.port}")
    options = ["--pipeline", "web", "--set", "rules.resolution.min=180"]
    options += ["--set", "rules.duration.min=0.5", "--output"]
    command = ["python", "curation/run.py", make_video("shots.mp4"), *options]
    code, said = cluster.submit("--working-dir", ".", "--", *command, tmp_path)
    assert code != 0
    assert "is a folder of one machine, and this Ray has 2 nodes" in said
    assert f"file://{tmp_path}" in said
    code, said = cluster.submit("--working-dir", ".", "--", *command, f"file://{tmp_path}/all")
    assert code == 0, said[-3000:]
    assert num_clips(tmp_path / "all") == 3
