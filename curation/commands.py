"""What all commands share: the terminal, the place of the output, the start of Ray.

Loads neither Ray nor a video library when it is imported; the trainer's commands use it too.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curation.settings import ConfigError

RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the process that a job runs


# -- the terminal


@contextmanager
def without_stdin() -> Iterator[None]:
    """Inside, standard input is empty for this process and for all that it starts.

    ffmpeg sets the terminal's attributes when its standard input is one. A process that does so
    outside the terminal's foreground group, as Ray's workers are, is stopped by the kernel
    (SIGTTOU) and waits for ever. Importing scenedetect runs ffmpeg.
    """
    before = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


# -- the place of the output


def in_packaged_job() -> bool:
    """Whether this is a Ray job whose folder is a copy that Ray deletes when the job ends."""
    config = json.loads(os.environ.get(RAY_JOB, "{}"))
    return bool((config.get("runtime_env") or {}).get("working_dir"))


def check_lasting(output: str) -> None:
    """Raise ConfigError for a relative output in a folder that Ray deletes."""
    if in_packaged_job() and "://" not in output and not Path(output).is_absolute():
        raise ConfigError(
            f"--output {output} is relative, and this Ray job runs in a copy of the working "
            "directory that Ray deletes; give an absolute path or a URI such as s3://bucket/folder"
        )


def default_output(name: str) -> str:
    """Where runs/NAME is when the user names no output.

    In a job with a packaged working directory it is in VIDEOFACTORY_HOME, or else ~/videofactory,
    of the machine that runs this process.
    """
    if not in_packaged_job():
        return f"runs/{name}"
    home = os.environ.get("VIDEOFACTORY_HOME") or Path.home() / "videofactory"
    return str(Path(home) / "runs" / name)


# -- Ray


def start_ray(address: str | None, num_cpus: int | None = None) -> None:
    """Join the cluster at `address` or at RAY_ADDRESS (set inside a Ray job), or start one here.

    A cluster that happens to run on this machine is not joined unasked. `num_cpus` is of one
    that is started here, all of the machine's by default. Raises ConfigError when there is no
    cluster at the address.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        # A local Ray is for this process alone. Without this, Ray 2.60 leaves a token file in
        # the home folder that makes a later `ray start` and `ray job submit` disagree.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # When this process is killed, a worker that was just starting looks for its head this
        # long before it gives up; 60 s otherwise.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        options |= {"include_dashboard": False, "num_cpus": num_cpus}
    try:
        with without_stdin():
            ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {error}") from None


def check_reachable(output: str) -> None:
    """Raise ConfigError for a folder of one machine as the output of a cluster of several."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and "://" not in output:
        raise ConfigError(
            f"--output {output} is a folder of one machine, and this Ray has {len(nodes)} nodes: "
            f"give a URI such as s3://bucket/folder, or file://{Path(output).absolute()} "
            "if it is a folder that all of them share"
        )
