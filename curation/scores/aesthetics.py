"""The LAION aesthetic predictor: a small head on CLIP's embedding of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from curation.pipelines import Scorers
from curation.scores.image_text import Clip, check_clip, clip_weights
from curation.scores.models import Means
from curation.scores.weights import first_line
from curation.settings import ConfigError

# LAION's heads were trained on embeddings of OpenAI's ViT-L/14.
OTHERWISE = (
    "and a head, such as --set scorers.aesthetic_head=sac+logos+ava1-l14-linearMSE.pth "
    "(github.com/christophschuhmann/improved-aesthetic-predictor) or sa_0_4_vit_l_14_linear.pth "
    "(github.com/LAION-AI/aesthetic-predictor), "
    "or --set scorers.aesthetic=technical_quality for a score without weights"
)
# Without the other one each is of no use, so that both say how to give both.
HEAD = replace(
    clip_weights("aesthetic", OTHERWISE), what="aesthetic head", key="scorers.aesthetic_head"
)


def check_aesthetic(scorers: Scorers) -> None:
    """Raise ConfigError unless the weights that laion needs are there or can be had."""
    check_clip("aesthetic", scorers.aesthetic_checkpoint, OTHERWISE)
    if scorers.aesthetic_head is None:
        raise HEAD.not_set()
    load_head(scorers.aesthetic_head)


def load_head(name: str) -> list[tuple[Any, Any]]:
    """The linear layers (weight [out, in], bias [out]) of a head; their product is the score.

    A single layer (`weight`, `bias`: sa_0_4_vit_l_14_linear.pth) or a stack of them without
    anything nonlinear between (`layers.N.weight`: sac+logos+ava1-l14-linearMSE.pth). `name` is a
    file or OWNER/REPOSITORY/FILE on the hub. Raises ConfigError.
    """
    import pickle

    import torch

    try:
        state = torch.load(head_file(name), map_location="cpu", weights_only=True)
        names = sorted((k for k in state if k.endswith("weight")), key=layer_number)
        layers = [
            (state[k].float(), state[k.removesuffix("weight") + "bias"].float()) for k in names
        ]
        sizes = [tuple(weight.shape) for weight, _ in layers]
        joined = all(a[0] == b[1] for a, b in pairwise(sizes))
        if not sizes or not joined or sizes[-1][0] != 1:
            raise ValueError(f"its layers {sizes} do not lead from an embedding to one score")
    except (OSError, ValueError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise HEAD.unfit(name, f"cannot be loaded: {first_line(error)}") from None
    return layers


def layer_number(key: str) -> int:
    """N of `layers.N.weight`; 0 of `weight`."""
    return next((int(part) for part in key.split(".") if part.isdigit()), 0)


def head_file(name: str) -> str:
    """The path of a head; fetched where it is OWNER/REPOSITORY/FILE on the hub."""
    if Path(name).is_file() or name.count("/") != 2 or Path(name).is_absolute():
        return name
    from huggingface_hub import hf_hub_download

    owner, repository, file = name.split("/")
    return hf_hub_download(f"{owner}/{repository}", file)


class Laion:
    """LAION's aesthetic score, about 1 to 10, of pictures; 5 is so-so and 6 looks good.

    On cuda where there is one. Raises ConfigError through check_aesthetic.
    """

    def __init__(self, scorers: Scorers) -> None:
        check_aesthetic(scorers)
        assert scorers.aesthetic_checkpoint is not None and scorers.aesthetic_head is not None
        self.clip = Clip(scorers.aesthetic_checkpoint)
        self.layers = [
            (weight.numpy(), bias.numpy()) for weight, bias in load_head(scorers.aesthetic_head)
        ]
        wanted = self.layers[0][0].shape[1]
        if self.clip.width != wanted:
            raise ConfigError(
                f"the head {scorers.aesthetic_head!r} takes embeddings of {wanted} numbers, and "
                f"{scorers.aesthetic_checkpoint!r} gives {self.clip.width}; the heads of LAION "
                "need ViT-L/14 of OpenAI"
            )

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[float]:
        """A score for every picture, uint8 BGR [H, W, 3] of any size, in order.

        The embedding is of length one, as both heads were trained.
        """
        values = self.clip.pictures(pictures)
        for weight, bias in self.layers:
            values = values @ weight.T + bias
        return values[:, 0].tolist()


class AestheticScore(Means):
    """The mean of what the LAION predictor says of a clip's pictures."""

    def __init__(self, scorers: Scorers) -> None:
        super().__init__("aesthetic", Laion(scorers))
