"""Media made with ffmpeg's test sources, and the servers and clusters that tests share."""

from __future__ import annotations

import functools
import hashlib
import http.server
import itertools
import json
import logging
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from curation.commands import start_ray
from curation.decode.scenes import analysis_size
from curation.decode.signatures import Signatures
from curation.media.frames import Timeline, decode
from curation.media.pictures import small_pictures
from curation.media.probes import probe

# Tests write nothing into the checkout.
settings.register_profile("tests", database=None)
settings.load_profile("tests")
# Model hubs are never asked: what a test needs it builds.
os.environ["HF_HUB_OFFLINE"] = "1"
# Models this small gain nothing from threads, and on a shared machine threads spin while they
# wait: one test took 38 s with two and 2 s with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Under -n the longest files begin first: begun last, one of them runs on alone.
LONGEST = ("test_training_workers.py", "test_training_runs.py", "test_runs.py", "test_scorers.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


# What Ray sets for a job whose working directory is a copy.
PACKAGED_JOB = (
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_0123.zip"}}),
)
# Moving test pictures whose means differ; a shot begins with one of these names or is a filter.
PICTURES = {
    "test": "testsrc2=s={size}:r={fps}",
    "fractal": "mandelbrot=s={size}:r={fps}",
    "bars": "smptebars=s={size}:r={fps},scroll=horizontal=0.01",
    "gradient": "gradients=s={size}:r={fps}:seed=7:c0=red:c1=yellow:n=2:speed=0.05",
    "life": "life=s={size}:r={fps}:seed=3:mold=10:life_color=white:mold_color=blue",
    "still": "smptehdbars=s={size}:r={fps}",
}


@dataclass(frozen=True)
class Shot:
    """A stretch of one test picture."""

    picture: str
    duration_s: float
    fps: int = 25


THREE_SHOTS = (Shot("test", 1.2), Shot("bars", 1.0), Shot("fractal", 1.4))


@dataclass(frozen=True)
class Frame:
    """One displayed frame as another reader sees it: seconds after the first, and the picture."""

    time_s: float
    picture: np.ndarray  # stored luma and chroma planes, or RGB


def ffmpeg(*arguments: object) -> None:
    """Run ffmpeg to its end; its own words are the failure. The last argument is the output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error"]
    *before, output = map(str, arguments)
    # With two threads x264 gives other bytes from run to run.
    command += [*before, "-threads", "1", output]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def read_frames(path: Path | str, format: str | None = None) -> list[Frame]:
    """Every displayed frame of a file, by the plainest PyAV loop; stored planes or `format`."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        out: list[Frame] = []
        start = None
        for frame in container.decode(stream):
            start = frame.pts if start is None else start
            picture = frame.to_ndarray(format=format) if format else frame.to_ndarray()
            out.append(Frame(float((frame.pts - start) * stream.time_base), picture))
        return out


@functools.cache
def analysed(path: Path) -> tuple[Timeline, Signatures]:
    """What the analysis of a video keeps for cutting it."""
    signatures = Signatures(probe(path).turn)
    decoded = decode(path, num_threads=1)
    for timeline, frame in decoded:  # noqa: B007
        size = analysis_size(frame.width, frame.height)
        _, luma, is_full_range = small_pictures(frame, size)
        signatures.add(luma, is_full_range=is_full_range)
    return timeline, signatures


def num_packets(path: Path | str) -> int:
    """Packets of a file's video whatever its edit list hides."""
    with av.open(str(path), options={"ignore_editlist": "1"}) as container:
        return sum(p.size > 0 for p in container.demux(container.streams.video[0]))


def damaged(path: Path, start: float) -> Path:
    """A copy of a file with 200 bytes changed between this share of it and 80%."""
    data, rng = bytearray(path.read_bytes()), random.Random(1)
    for _ in range(200):
        data[int(len(data) * rng.uniform(start, 0.8))] ^= rng.randrange(1, 256)
    out = path.with_name(f"damaged_{path.name}")
    out.write_bytes(data)
    return out


MakeVideo = Callable[..., Path]


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="session")
def make_video(media_folder: Path) -> MakeVideo:
    """make_video(name, shots, size, options, filters): a video of shots, made once a session."""

    def make(
        name: str,
        shots: Sequence[Shot] = THREE_SHOTS,
        size: str = "320x180",
        options: Sequence[object] = (),
        filters: str = "null",
    ) -> Path:
        recipe = repr((name, tuple(shots), size, tuple(options), filters))
        path = media_folder / hashlib.sha256(recipe.encode()).hexdigest()[:8] / name
        if path.exists():
            return path
        path.parent.mkdir()
        inputs: list[object] = []
        for shot in shots:
            picture = PICTURES.get(shot.picture, shot.picture).format(size=size, fps=shot.fps)
            inputs += ["-t", shot.duration_s, "-f", "lavfi", "-i", picture]
        normal = "".join(
            f"[{i}:v]format=yuv420p,setsar=1,settb=1/90000[s{i}];" for i in range(len(shots))
        )
        joined = "".join(f"[s{i}]" for i in range(len(shots)))
        graph = f"{normal}{joined}concat=n={len(shots)},{filters}[v]"
        ffmpeg(
            *(*inputs, "-filter_complex", graph, "-map", "[v]", "-fps_mode", "passthrough"),
            *("-c:v", "libx264", "-preset", "veryfast", "-enc_time_base", "1/90000"),
            *(*options, path),
        )
        return path

    return make


def without_column(folder: Path, name: str) -> None:
    """Make a dataset folder as code wrote it before there was this column."""
    for path in folder.glob("manifest/*.json"):
        manifest = json.loads(path.read_text())
        for kind, facts in manifest["files"].items():
            file = folder / kind / f"{path.stem}.parquet"
            pq.write_table(pq.read_table(file).drop_columns([name]), file)
            data = file.read_bytes()
            facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        path.write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of two CPUs that belongs to this test session alone."""
    start_ray("local", num_cpus=2)
    yield
    sys.modules["ray"].shutdown()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process are local ones, though another test started a Ray."""
    monkeypatch.setattr("curation.flow.plans.ray_runs", lambda: False)


@dataclass(frozen=True)
class Store:
    """A bucket on an S3 server of this test session's own."""

    endpoint: str  # host:port
    bucket: str
    filesystem: pafs.FileSystem

    def uri(self, key: str = "", user: str = "test:test", bucket: str | None = None) -> str:
        """The URI of an object, or of what is below one, with all that it takes to reach it."""
        options = f"endpoint_override={self.endpoint}&scheme=http&region=us-east-1"
        return f"s3://{user}@{bucket or self.bucket}/{key}?{options}"

    def put(self, key: str, data: bytes | Path) -> str:
        """Write an object; returns the URI that is recorded of it."""
        with self.filesystem.open_output_stream(f"{self.bucket}/{key}") as stream:
            stream.write(data if isinstance(data, bytes) else data.read_bytes())
        return f"s3://{self.bucket}/{key}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> Store:
    """A new bucket."""
    name = f"clips-{next(NUMBERS)}"
    store = Store(s3_server, name, pafs.LocalFileSystem())
    uri = f"{store.uri()}&allow_bucket_creation=true"
    filesystem, _ = pafs.FileSystem.from_uri(uri)
    filesystem.create_dir(name)
    return replace(store, filesystem=filesystem)


NUMBERS = itertools.count()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local HTTP server: its URL, and the folder whose files it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()
