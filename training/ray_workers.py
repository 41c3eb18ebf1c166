"""`--workers N`: the same training in N processes that Ray Train starts, seen from this one.

Every worker does `jobs.work`. The first rank writes the RUN folder; its words come back
through a desk, and the wish to stop goes there.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from curation.commands import say, start_ray
from curation.settings import ConfigError, RunError
from training import jobs
from training.commands import StoppedError, stop_on_signals
from training.data.batches import TooManyBadError
from training.learning.steps import DivergedError
from training.parallel import Team

POLL_S = 0.2  # between looks at the desk
AGREED = (DivergedError, StoppedError, TooManyBadError)  # ends that all ranks come to together


class WorkerError(RunError):
    """A worker of several failed otherwise."""


@ray.remote(num_cpus=0)
class Desk:
    """What the driver and the first worker leave for each other."""

    def __init__(self) -> None:
        self.text, self.stop, self.begun = "", False, 0
        self.failure: tuple[str, str] | None = None

    def write(self, text: str) -> None:
        self.text += text

    def take(self) -> str:
        text, self.text = self.text, ""
        return text

    def begin(self) -> int:
        """Count the times that workers were started."""
        self.begun += 1
        return self.begun

    def give_up(self, kind: str, message: str) -> None:
        """Leave what no restart would mend."""
        self.failure = kind, message

    def given_up(self) -> tuple[str, str] | None:
        return self.failure

    def ask_to_stop(self) -> None:
        self.stop = True

    def is_asked_to_stop(self) -> bool:
        return self.stop


@dataclass
class Wire:
    """A file that is written to the desk."""

    desk: Any

    def write(self, text: str) -> None:
        self.desk.write.remote(text)

    def flush(self) -> None: ...


@contextmanager
def ray_here(address: str | None, workers: int) -> Iterator[None]:
    """A Ray: the one that is there already, the cluster at an address, or one of our own."""
    if ray.is_initialized():
        yield
        return
    start_ray(address, max(workers, os.cpu_count() or 1))
    try:
        yield
    finally:
        ray.shutdown()


def scaling(job: jobs.Job, workers: int, console: Console) -> ScalingConfig:
    """A GPU for each worker where the cluster has any, else a CPU."""
    have = ray.cluster_resources()
    use_gpu = bool(have.get("GPU")) and job.config.device != "cpu"
    if job.config.device.startswith("cuda") and not use_gpu:
        raise ConfigError(f"device is {job.config.device!r}, and Ray has no GPU; use device=auto")
    kind = "GPU" if use_gpu else "CPU"
    if have.get(kind, 0) < workers:
        say(console, f"{workers} workers wait for as many {kind}s; Ray has {have.get(kind, 0):g}")
    return ScalingConfig(num_workers=workers, use_gpu=use_gpu)


def launch(
    job: jobs.Job, workers: int, address: str | None, console: Console, restarts: int
) -> None:
    """Train in `workers` processes; raises what training raises, and WorkerError.

    Where one is lost, all begin again from the last checkpoint, so many times.
    """
    # Relative --data stays what it is here.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    # Ray Train wants a folder for checkpoints of its own; those of the run are beside it.
    storage = job.output.absolute() / ".ray"
    with ray_here(address, workers), stop_on_signals() as stop:
        desk = Desk.remote()  # type: ignore[attr-defined]
        look = {
            "force_terminal": console.is_terminal,
            "width": console.width,
            "soft_wrap": console.soft_wrap,
        }
        scale = scaling(job, workers, console)
        trainer = TorchTrainer(
            imported_late(),
            train_loop_config={
                "job": ray.put(job),
                "desk": desk,
                "look": look,
                "restarts": restarts,
            },
            scaling_config=scale,
            # Small words between ranks go through main memory on GPUs too.
            torch_config=TorchConfig("cpu:gloo,cuda:nccl" if scale.use_gpu else "gloo"),
            run_config=RunConfig(
                name="train",
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=restarts),
            ),
        )
        try:
            outcome = follow(trainer, desk, stop)
        except TrainingFailedError as error:
            outcome = ray.get(desk.given_up.remote())
            if not outcome:
                raise WorkerError(told(error)) from None
        finally:
            shutil.rmtree(storage, ignore_errors=True)
    for kind in (*AGREED, ConfigError, RunError):
        if outcome and outcome[0] == kind.__name__:
            raise kind(outcome[1])


def follow(trainer: TorchTrainer, desk: Any, stop: threading.Event) -> tuple[str, str] | None:
    """Run a trainer to its end, print what comes to the desk, pass on the wish to stop."""
    end: Future[Any] = Future()

    def fit() -> None:
        try:
            end.set_result(trainer.fit())
        except BaseException as error:
            end.set_exception(error)

    # Not in the main thread: there Ray Train takes Ctrl-C for itself.
    threading.Thread(target=fit, daemon=True).start()
    asked = False
    while True:
        over = end.done()
        sys.stdout.write(ray.get(desk.take.remote()))
        sys.stdout.flush()
        if over:
            return end.result().return_value
        if stop.is_set() and not asked:
            ray.get(desk.ask_to_stop.remote())
            asked = True
        time.sleep(POLL_S)


def imported_late() -> Callable[[dict[str, Any]], Any]:
    """run_worker, in a form that Ray pickles by value.

    By name, Ray's controller would import all of training and its libraries before any worker
    does, for nothing (9 of the 40 s to the first step on two cores); so the job is a reference.
    """

    def work(given: dict[str, Any]) -> Any:
        import ray

        if failure := ray.get(given["desk"].given_up.remote()):
            return failure  # before anything is loaded
        from training.ray_workers import run_worker

        return run_worker(given)

    return work


def run_worker(given: dict[str, Any]) -> tuple[str, str] | None:
    """One rank, from the same command line as all others; returns how all of them ended."""
    desk, team = given["desk"], Team.here()
    console = Console(file=Wire(desk), **given["look"]) if team.first else Console(quiet=True)  # type: ignore[arg-type]

    def stop() -> bool:
        return team.first and ray.get(desk.is_asked_to_stop.remote())

    times = ray.get(desk.begin.remote()) if team.first else 1
    if times > 1:
        again = f"a worker was lost: beginning again from the last checkpoint, {times - 1} of at "
        say(console, f"{again}most {given['restarts']} times (--restarts)", "yellow")
    try:
        jobs.work(ray.get(given["job"]), console, team, stop, ray.train.torch.get_device())
    except AGREED as error:
        return type(error).__name__, str(error)
    except (ConfigError, RunError) as error:  # perhaps on this rank alone: Ray ends the others
        kind = ConfigError if isinstance(error, ConfigError) else RunError
        ray.get(desk.give_up.remote(kind.__name__, str(error)))
        raise
    return None


def told(error: TrainingFailedError) -> str:
    """The last words of each worker that failed."""
    failures = getattr(error, "worker_failures", {None: error})
    return "; ".join(
        f"worker {rank}: {str(failure).strip().splitlines()[-1]}"
        for rank, failure in sorted(failures.items())
    )
