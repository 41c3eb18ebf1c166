"""FVD of a run while it trains: what vf-eval's protocol `dataset` says of its EMA weights.

The weights are measured where they are, in memory. Real clips are measured once, before the first
step, by the same code as vf-eval's, and so are the generated ones: the same clips from the same
seeds, in the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from curation.settings import ConfigError
from model import VideoFactoryPipeline
from training.checkpoints.folders import code_version
from training.config import Config
from training.data.rows import Rows
from training.evaluation.i3d import Features
from training.evaluation.protocols import Protocol, load_protocol
from training.evaluation.references import Reference, TooFewError, enough
from training.evaluation.scoring import (
    NONE,
    PART,
    Asked,
    Measurer,
    check_rate,
    load_features,
    of_dataset,
    score,
)
from training.parallel import Team, uncompiled
from training.sample import settings_of

if TYPE_CHECKING:
    from training.learning.losses import Objective
    from training.learning.steps import State


@dataclass
class Watch:
    """A checked protocol, its network and clips. real: this rank's parts, once measured."""

    every: int
    asked: Asked
    i3d: Features
    reference: Reference
    real: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def __str__(self) -> str:
        protocol = self.asked.protocol
        return (
            f"every {self.every} steps: {protocol} of held-out clips of {self.asked.reference}, "
            f"features {self.i3d.label}"
        )

    def measure_real(self, state: State, objective: Objective, stop: Callable[[], bool]) -> None:
        """Measure this rank's real clips; ConfigError on all ranks for one that does not decode."""
        measurer, problem = self.measurer(state, objective), ""
        for part in self.own_parts(state.team, stop):
            try:
                if part is not None and not problem:
                    self.real[part] = measurer.real(part)
            except ConfigError as error:
                problem = f"protocol_every: {error}"
        for told in filter(None, state.team.gather(problem)):
            raise ConfigError(told)

    def measure(
        self, state: State, objective: Objective, stop: Callable[[], bool]
    ) -> dict[str, Any]:
        """A result as vf-eval writes it, on the first rank; {} on others, and after a stop.

        Each rank generates its share. With FSDP those who are through compute along, since blocks
        are gathered by all.
        """
        measurer, team, made = self.measurer(state, objective), state.team, []
        sharded = team.world > 1 and objective.config.parallel != "ddp"
        with state.ema.swapped(state.unet), uncompiled(objective.config):
            for part in self.own_parts(team, stop):
                if part is not None:
                    made.append(self.real[part] | measurer.generated(part))
                elif sharded:
                    measurer.generate(measurer.items(0))
        parts = team.join(made)
        if not team.first or len(parts) < self.num_parts:
            return {}
        result = score(self.asked.protocol, measurer.facts(), parts)
        return {**result, "code": code_version()}

    @property
    def num_parts(self) -> int:
        return -(-len(self.reference.items) // PART)

    def own_parts(self, team: Team, stop: Callable[[], bool]) -> Iterator[int | None]:
        """This rank's parts, then None while others have some; ends where a rank is to stop."""
        for first in range(0, self.num_parts, team.world):
            if team.any(stop()):
                return
            part = first + team.rank
            yield part if part < self.num_parts else None

    def measurer(self, state: State, objective: Objective) -> Measurer:
        """What measures the U-Net as it is now."""
        config = objective.config
        pipe = VideoFactoryPipeline(
            state.unet, objective.codec, objective.text, objective.schedule, settings_of(config)
        )
        model = {"path": str(self.asked.run), "checkpoint": f"step-{state.step:08d}",
                 "weights": "ema", "sha256": "in memory"}  # fmt: skip
        return Measurer(self.asked, config, pipe, model, self.i3d, None, self.reference)


def watch(config: Config, rows: Rows, run: Path, device: torch.device) -> Watch | None:
    """Check `protocol_every` and load what it needs; None without it.

    rows: of the first `--data`; its held-out videos are measured. Raises ConfigError.
    """
    if config.protocol_every is None:
        return None
    place = rows.dataset.uri
    try:
        protocol = protocol_of(config)
        check_rate(protocol, config, "this run")
        i3d = load_features(config.protocol_i3d, device)
        found = of_dataset(protocol, rows, config.held_out, place)
    except TooFewError as error:
        advice = enough("protocol_samples", error.count)
        raise ConfigError(f"protocol_every: {error.told}: {advice}, or hold out more") from None
    except ConfigError as error:
        raise ConfigError(
            f"protocol_every: {error}. Here a protocol's settings are protocol_samples and "
            "protocol_set=[key=value], the weights protocol_i3d; protocol_every=null asks for none"
        ) from None
    asked = Asked(protocol, place, run, run, i3d=config.protocol_i3d, clip=NONE)
    return Watch(config.protocol_every, asked, i3d, found)


def protocol_of(config: Config) -> Protocol:
    """The protocol as `vf-eval --protocol dataset --set num_samples=N` has it."""
    return load_protocol(
        "dataset", [f"num_samples={config.protocol_samples}", *config.protocol_set]
    )
