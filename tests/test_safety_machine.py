"""What a run opens on its machine, and what its child processes are given: docs/security.md."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import MakeVideo

from curation.commands import TOKEN
from curation.flow import confinement, media_processes, stages
from curation.flow.media_processes import Job, MediaWorker, curate_isolated
from curation.pipelines import Media, Pipeline
from curation.places import Scratch, sweep_scratch
from curation.sources import Source, content_id
from curation.videos import curate_video, machine_error


def quiet(stage: str, at_s: float) -> None:
    """A listener that does nothing."""


WITHOUT_TOKEN = """
from ray._raylet import GcsClient
try:
    GcsClient(address={address!r})
    print("let in")
except Exception as error:
    print(error)
"""


# -- Ray


def test_a_local_ray_listens_on_loopback_alone(local_ray: None) -> None:
    me = psutil.Process()
    open_ones = [
        (process.name(), each.laddr.ip)
        for process in [me, *me.children(recursive=True)]
        for each in process.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    ]
    names = {name for name, _ in open_ones}
    assert {"gcs_server", "raylet"} <= names
    assert {ip.removeprefix("::ffff:") for _, ip in open_ones} == {"127.0.0.1"}


def test_a_local_ray_lets_nobody_in_without_its_token(local_ray: None) -> None:
    import ray

    code = WITHOUT_TOKEN.format(address=ray.get_runtime_context().gcs_address)
    environment = {name: value for name, value in os.environ.items() if "RAY_" not in name}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "InvalidAuthToken" in done.stdout and "let in" not in done.stdout
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "let in\n"


# -- child processes


def see(folder: Path, beat: object) -> tuple[dict[str, str], dict[str, int]]:
    """A job of a media process: its environment and its limits."""
    kinds = ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_CORE")
    limits = {kind: resource.getrlimit(getattr(resource, kind))[0] for kind in kinds}
    return dict(os.environ), limits


def want(num_bytes: int, folder: Path, beat: object) -> str:
    """A job that asks for memory and for room on the disk."""
    said = []
    try:
        bytearray(num_bytes)
    except MemoryError as error:
        found = machine_error(error)
        assert found is not None
        said.append(found.error_class)
    try:
        with (folder / "large").open("wb") as file:
            file.truncate(num_bytes)
    except OSError as error:
        said.append(os.strerror(error.errno))
    return ", ".join(said)


@pytest.fixture
def own_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_a_child_sees_no_secret(own_jobs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "SSH_AUTH_SOCK", "PASSWORD")
    for name in (*secrets, "https_proxy", "LC_ALL"):
        monkeypatch.setenv(name, "C.UTF-8")
    with MediaWorker(Media()) as worker:
        seen, limits = worker.run(Job("test_safety_machine:see"), quiet)
    assert not seen.keys() & set(secrets)
    assert {"PATH", "HOME", "https_proxy", "LC_ALL"} <= seen.keys()
    assert limits == {
        "RLIMIT_AS": int(6e9) + (4 << 30),
        "RLIMIT_FSIZE": 4 << 30,
        "RLIMIT_CORE": 0,
    }


def test_a_child_gets_no_more_memory_or_disk_than_it_may_have(own_jobs: None) -> None:
    with MediaWorker(Media(memory_gb=1), max_file_bytes=1 << 30) as worker:
        small, large = (Job("test_safety_machine:want", (n,)) for n in (1 << 29, 6 << 30))
        assert worker.run(small, quiet) == ""
        assert worker.run(large, quiet) == f"memory, {os.strerror(errno.EFBIG)}"


def test_where_memory_is_short_each_has_its_share(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video("plain.mp4")
    source = Source(url=str(path), path=str(path))
    monkeypatch.setattr(media_processes, "memory_share", lambda cpus: 1e6 * cpus)
    outcomes = []
    for short in (False, True):
        monkeypatch.setattr(media_processes, "is_short", lambda short=short: short)
        with MediaWorker(Media()) as worker:
            video = curate_isolated(worker, source, Pipeline(), quiet).video
        outcomes.append((video["decision"], video["error_class"], video["attempts"]))
    assert outcomes == [("kept", None, 1), ("failed", "no_memory", 2)]


@pytest.mark.parametrize(
    ("version", "files", "wanted"),
    [
        ("v2", {"memory.max": "1000000", "memory.current": "900000"}, (1_000_000, 350_000)),
        ("v2", {"memory.max": "max", "memory.current": "900000"}, None),
        (
            "v1",
            {"memory.limit_in_bytes": "1000000", "memory.usage_in_bytes": "600000"},
            (1_000_000, 650_000),
        ),
        ("v1", {"memory.limit_in_bytes": str(1 << 62), "memory.usage_in_bytes": "600000"}, None),
        ("none", {}, None),
    ],
)
def test_the_memory_of_a_container_is_what_it_may_have(
    tmp_path: Path, version: str, files: dict[str, str], wanted: tuple[int, int] | None
) -> None:
    folder = tmp_path / ("memory" if version == "v1" else "")
    folder.mkdir(exist_ok=True)
    counted = "total_inactive_file" if version == "v1" else "inactive_file"
    for name, text in (files | {"memory.stat": f"anon 3\n{counted} 250000"}).items():
        (folder / name).write_text(f"{text}\n")
    found = confinement.machine_memory(tmp_path)
    assert found == wanted if wanted else found[0] == psutil.virtual_memory().total


def test_two_cpus_of_all_have_their_part_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "machine_memory", lambda: (800, 79))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert (confinement.memory_share(2), confinement.memory_share(99)) == (200, 800)
    assert confinement.is_short()
    monkeypatch.setattr(confinement, "machine_memory", lambda: (800, 81))
    assert not confinement.is_short()


def test_only_scratch_of_ours_that_nobody_owns_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = tmp_path / "videofactory-99999999-notes"  # a user's, of a like name
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    alive = Scratch()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / ".owned").touch()
    (tmp_path / "videofactory-link").symlink_to(elsewhere)
    code = "from curation.places import Scratch; Scratch(); import os; os.abort()"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[1])
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 5
    sweep_scratch()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {mine.name, alive.folder.name, "elsewhere", "videofactory-link"}
    assert (mine / "thesis.txt").exists() and (elsewhere / "deep").exists()
    alive.remove()
    assert not alive.folder.exists()


def test_what_takes_too_long_to_read_is_left_for_later(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video("plain.mp4")
    source = Source(url=str(path), path=str(path))
    with MediaWorker(Media()) as worker:
        assert stages.identify(source, Pipeline(), worker).id == content_id(str(path))
        monkeypatch.setattr(stages, "IDENTIFY_TIMEOUT_S", 1e-9)
        assert stages.identify(source, Pipeline(), worker) == source


def test_text_beside_a_file_is_read_where_identify_died_of_it(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video("plain.mp4").read_bytes())
    path.with_suffix(".srt").write_text("1\n00:00:00,000 --> 00:01:00,000\nA dog runs.\n")
    result = curate_video(Source(url="a.mp4", path=str(path)), Pipeline(), tmp_path, quiet)
    assert {clip.row["caption"] for clip in result.clips} == {"A dog runs."}
