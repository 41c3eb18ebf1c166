"""The LAION aesthetic predictor: a small head on CLIP's embedding of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.pipelines import ConfigError, Scorers

# LAION's heads were trained on OpenAI's ViT-L/14, whose GELU is the quick one. With the other
# one every key of the file loads and the scores are wrong.
ARCHITECTURE = "ViT-L-14-quickgelu"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
BATCH_SIZE = 32

ALTERNATIVE = "or --set scorers.aesthetic=technical_quality for a score without weights"
HOW = (
    "give a file (ViT-L-14.pt of OpenAI), a folder or a hub id, such as --set "
    "scorers.aesthetic_checkpoint=timm/vit_large_patch14_clip_224.openai, and a head, such as "
    "--set scorers.aesthetic_head=sac+logos+ava1-l14-linearMSE.pth (github.com/christophschuhmann/"
    "improved-aesthetic-predictor) or sa_0_4_vit_l_14_linear.pth (github.com/LAION-AI/"
    f"aesthetic-predictor), {ALTERNATIVE}"
)


def check_aesthetic(scorers: Scorers) -> None:
    """Raise ConfigError unless the weights that scorers.aesthetic needs are there or can be had."""
    if scorers.aesthetic != "laion":
        return
    for key in ("aesthetic_checkpoint", "aesthetic_head"):
        if getattr(scorers, key) is None:
            raise ConfigError(f"scorers.aesthetic is laion but scorers.{key} is not set; {HOW}")
    assert scorers.aesthetic_checkpoint is not None and scorers.aesthetic_head is not None
    check_clip(scorers.aesthetic_checkpoint)
    load_head(scorers.aesthetic_head)


def check_clip(name: str) -> None:
    """Raise ConfigError unless `name` is a file, a whole folder or a hub id that can be had."""
    path = Path(name)
    if path.is_file():
        return
    if path.is_dir():
        missing = [] if (path / CONFIG).is_file() else [CONFIG]
        if not any((path / file).is_file() for file in WEIGHTS):
            missing.append(WEIGHTS[0])
        if missing:
            raise ConfigError(f"the CLIP folder {name!r} has no {' and no '.join(missing)}; {HOW}")
        return
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    try:
        hf_hub_download(name, CONFIG)
        there = any(isinstance(try_to_load_from_cache(name, file), str) for file in WEIGHTS)
        if constants.HF_HUB_OFFLINE and not there:
            raise OSError(f"its {WEIGHTS[0]} is not in the local cache.")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the CLIP checkpoint {name!r} cannot be had: {str(error).splitlines()[0]} "
            f"Download it where there is a network (hf download {name} --local-dir FOLDER) and "
            f"give --set scorers.aesthetic_checkpoint=FOLDER, {ALTERNATIVE}"
        ) from None


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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the aesthetic head {name!r} cannot be loaded: {reason}; {HOW}"
        ) from None
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
        import open_clip
        import torch

        check_aesthetic(scorers)
        assert scorers.aesthetic_checkpoint is not None and scorers.aesthetic_head is not None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        name = scorers.aesthetic_checkpoint
        if Path(name).is_file():
            given = {"model_name": ARCHITECTURE, "pretrained": name}
        else:
            schema = "local-dir" if Path(name).is_dir() else "hf-hub"
            given = {"model_name": f"{schema}:{name}"}
        try:
            # Refuses, as create_model does not, to go on with random weights.
            model, self.prepare = open_clip.create_model_from_pretrained(
                **given, device=self.device
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the CLIP {name!r} cannot be loaded: {str(error).splitlines()[0]}; {HOW}"
            ) from None
        self.clip = model.eval()
        self.layers = [
            tuple(t.to(self.device) for t in pair) for pair in load_head(scorers.aesthetic_head)
        ]
        width, wanted = int(model.visual.output_dim), int(self.layers[0][0].shape[1])
        if width != wanted:
            raise ConfigError(
                f"the head {scorers.aesthetic_head!r} takes embeddings of {wanted} numbers, and "
                f"{name!r} gives {width}; the heads of LAION need ViT-L/14 of OpenAI"
            )

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[float]:
        """A score for every picture, uint8 BGR [H, W, 3] of any size, in order.

        The embedding is normalised first, as both heads were trained.
        """
        import torch
        from PIL import Image

        scores: list[float] = []
        for start in range(0, len(pictures), BATCH_SIZE):
            some = pictures[start : start + BATCH_SIZE]
            images = [Image.fromarray(cv2.cvtColor(p, cv2.COLOR_BGR2RGB)) for p in some]
            batch = torch.stack([self.prepare(image) for image in images]).to(self.device)
            with torch.inference_mode():
                values = self.clip.encode_image(batch, normalize=True)
                for weight, bias in self.layers:
                    values = torch.nn.functional.linear(values, weight, bias)
            scores += values[:, 0].tolist()
        return scores
