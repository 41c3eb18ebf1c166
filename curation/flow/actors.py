"""Scorers in processes of their own: one that raises, hangs or dies costs a clip and no more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from curation.decode.jpegs import bgr_from_jpeg
from curation.scores.models import Model, Row, Seen, score_each
from curation.scores.table import TABLE
from curation.settings import RunError

START_TIMEOUT_S = 600.0  # of a model, weights read and all
ON_CPU = {row.key for row in TABLE if row.sees == "pictures" and not row.on_gpu}
MAX_RESTARTS = 100  # of a model's actor, by pictures that kill it or hang in it
# Clips asked about at once, so that what is too slow and what hangs can be told apart.
# Ours: four clips' pictures are one batch, and one hang costs three others a second try.
CALL_CLIPS = 4

Shown = tuple[list[bytes], str | None]  # a clip's pictures as JPEGs, and its caption


class ScorerActor:
    """A model in a process of its own."""

    def __init__(self, make: Callable[[], Model]) -> None:
        self.model = make()
        self.cpu_s = time.process_time()

    def ready(self) -> None:
        """Answers once the model is built."""

    def score(self, clips: Sequence[Shown]) -> list[Row]:
        """A row per clip; one bad clip costs no other."""
        looks = [Seen([bgr_from_jpeg(jpeg) for jpeg in jpegs], text) for jpegs, text in clips]
        return score_each(self.model, looks)

    def spent_s(self) -> float:
        """CPU seconds since the last call of this, or since the model was built."""
        before, self.cpu_s = self.cpu_s, time.process_time()
        return self.cpu_s - before


def start_models(
    models: Mapping[str, Callable[[], Model]], num_workers: int | None, num_gpus: int
) -> dict[str, list[Any]]:
    """The actors of each model, built and ready; RunError when one cannot be built.

    What the table has on CPUs runs there, a thread each; the others share `num_gpus`. `num_workers`
    are of each model; None: an actor per two CPUs for those, one per GPU for the others.
    """
    cpus = int(ray.cluster_resources().get("CPU", 1))
    by_default = {key: max(1, cpus // 2) if key in ON_CPU else max(1, num_gpus) for key in models}
    numbers = {key: num_workers or number for key, number in by_default.items()}
    on_gpus = sum(number for key, number in numbers.items() if key not in ON_CPU)
    each = -(-on_gpus // num_gpus) if num_gpus and on_gpus else 0
    share = math.floor(1e4 / each) / 1e4 if each else 0  # Ray counts GPUs in ten-thousandths
    # An actor that held CPUs could starve the tasks that feed it on a small machine.
    made: dict[str, Any] = {
        key: ray.remote(
            num_cpus=0,
            num_gpus=0 if key in ON_CPU else share,
            max_restarts=MAX_RESTARTS,
            max_task_retries=0,
        )(ScorerActor)
        for key in models
    }
    actors = {
        key: [made[key].remote(make) for _ in range(numbers[key])] for key, make in models.items()
    }
    try:
        ready = [actor.ready.remote() for some in actors.values() for actor in some]
        ray.get(ready, timeout=START_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RunError(f"a scorer did not start: {str(cause).strip().splitlines()[-1]}") from None
    return actors


def ask(
    actor: Any, clips: Mapping[str, Shown], timeout_s: float, at_once: int = CALL_CLIPS
) -> dict[str, Row]:
    """A model's row for every clip by id; no call may take longer than `timeout_s`.

    Where it hangs or dies the clips of that call are asked about one by one.
    """
    ids = list(clips)
    out: dict[str, Row] = {}
    for start in range(0, len(ids), at_once):
        some = ids[start : start + at_once]
        try:
            call = actor.score.remote([clips[clip_id] for clip_id in some])
            out |= zip(some, ray.get(call, timeout=timeout_s), strict=True)
            continue
        except ray.exceptions.GetTimeoutError:
            ray.kill(actor, no_restart=False)  # a hanging call would hold all that wait behind it
            error = f"timeout: no score after {timeout_s:g} s"
        except ray.exceptions.RayActorError as death:
            error = f"crashed: the scorer's process died: {death}"[:500]
        # It starts anew; that is no hang of the clip that is asked about next.
        is_up = actor.ready.options(max_task_retries=MAX_RESTARTS).remote()
        ray.get(is_up, timeout=START_TIMEOUT_S)
        if len(some) == 1:
            out[some[0]] = {"error": error}
        else:
            out |= ask(actor, {clip_id: clips[clip_id] for clip_id in some}, timeout_s, at_once=1)
    return out
