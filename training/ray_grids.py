"""Many trainings at once, each a task of Ray in a process of its own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from curation.commands import one_line, say
from curation.settings import RunError
from training.jobs import Job
from training.ray_workers import ray_here


def run_on_ray(
    left: list[Job], workers: int | None, ray_address: str | None, console: Console
) -> None:
    """Do all jobs, `workers` at once, with a GPU each where Ray has any, else a CPU.

    The others go on where one fails; RunError then names each. What a run says is in RUN.log.
    """
    with ray_here(ray_address, workers or 1):
        have = ray.cluster_resources()
        use_gpu = bool(have.get("GPU")) and left[0].config.device != "cpu"
        at_once = workers or int(have["GPU" if use_gpu else "CPU"])
        task = ray.remote(num_cpus=1, num_gpus=int(use_gpu), max_retries=0)(run_job)
        waiting, running, failed = list(left), dict[Any, Job](), list[str]()
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[task.remote(job, str(Path.cwd()))] = job
            (ready,), _ = ray.wait(list(running))
            job = running.pop(ready)
            try:
                ray.get(ready)
                say(console, f"done, {len(waiting) + len(running)} left: {job.output}")
            except Exception as error:  # one line of it, with the rest in the log
                failed.append(f"{job.output}: {one_line(error).strip().splitlines()[-1]}")
                say(console, f"failed: {failed[-1]}", "red")
    if failed:
        raise RunError(f"{len(failed)} of {len(left)} runs failed; the first: {failed[0]}")


def run_job(job: Job, folder: str) -> None:
    """One `vf-train` job; `folder` is what relative paths of the data begin at."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training import jobs

    job.output.parent.mkdir(parents=True, exist_ok=True)
    log = job.output.with_suffix(".log")
    with contextlib.chdir(folder), log.open("a") as file, jobs.only_trainer(job.output):
        jobs.work(job, Console(file=file, width=120, soft_wrap=True))
