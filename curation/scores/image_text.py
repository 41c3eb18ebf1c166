"""CLIP through open_clip: pictures and texts in, vectors of length one out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.pipelines import Scorers
from curation.scores.models import Row, Seen, by_clip, pictures_of
from curation.scores.weights import Weights
from curation.settings import ConfigError

# What a file alone is taken for: OpenAI's ViT-L/14, whose GELU is the quick one. With the other
# one every key of the file loads and the embeddings are wrong.
ARCHITECTURE = "ViT-L-14-quickgelu"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
BATCH_SIZE = 32


def clip_weights(key: str, otherwise: str) -> Weights:
    """What scorers.<key>_checkpoint names; `otherwise` is what else the user may do."""
    setting = f"scorers.{key}_checkpoint"
    return Weights(
        "CLIP checkpoint",
        setting,
        "a file (ViT-L-14.pt of OpenAI), a folder or a hub id, such as "
        f"--set {setting}=timm/vit_large_patch14_clip_224.openai",
        otherwise,
    )


def check_clip(key: str, name: str | None, otherwise: str) -> None:
    """Raise ConfigError unless scorers.<key>_checkpoint, `name`, is a file, a whole folder or a
    hub id that can be had; `otherwise` is what else the user may do."""
    weights = clip_weights(key, otherwise)
    if name is None:
        raise weights.not_set()
    path = Path(name)
    if path.is_file():
        return
    if path.is_dir():
        missing = [] if (path / CONFIG).is_file() else [CONFIG]
        if not any((path / file).is_file() for file in WEIGHTS):
            missing.append(WEIGHTS[0])
        if missing:
            raise weights.not_had(name, f"it has no {' and no '.join(missing)}")
        return
    weights.check_place(name, CONFIG)
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    try:
        hf_hub_download(name, CONFIG)
        there = any(isinstance(try_to_load_from_cache(name, file), str) for file in WEIGHTS)
        if constants.HF_HUB_OFFLINE and not there:
            raise OSError(f"its {WEIGHTS[0]} is not in the local cache.")
    except (OSError, ValueError) as error:
        raise weights.not_had(name, error) from None


class Clip:
    """An open_clip model from a file, folder or hub id; on cuda where there is one.

    Raises ConfigError where `name` holds no such model.
    """

    def __init__(self, name: str) -> None:
        import open_clip
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if Path(name).is_file():
            self.model_name, given = ARCHITECTURE, {"pretrained": name}
        else:
            schema = "local-dir" if Path(name).is_dir() else "hf-hub"
            self.model_name, given = f"{schema}:{name}", {}
        try:
            # Refuses, as create_model does not, to go on with random weights.
            model, self.prepare = open_clip.create_model_from_pretrained(
                self.model_name, device=self.device, **given
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the CLIP {name!r} cannot be loaded: {str(error).splitlines()[0]}"
            ) from None
        self.model: Any = model.eval()
        self.width = int(self.model.visual.output_dim)

    @cached_property
    def tokenize(self) -> Any:
        import open_clip

        return open_clip.get_tokenizer(self.model_name)

    def pictures(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings float32 [N, D] of N pictures, uint8 BGR [H, W, 3] of any size."""
        import torch
        from PIL import Image

        out = [np.empty((0, self.width), np.float32)]
        for some in batches(pictures):
            images = [Image.fromarray(cv2.cvtColor(p, cv2.COLOR_BGR2RGB)) for p in some]
            batch = torch.stack([self.prepare(image) for image in images]).to(self.device)
            with torch.inference_mode():
                out.append(self.model.encode_image(batch, normalize=True).float().cpu().numpy())
        return np.concatenate(out)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [N, D] of N texts; what is longer than its context is cut off."""
        import torch

        out = [np.empty((0, self.width), np.float32)]
        for some in batches(texts):
            tokens = self.tokenize(list(some)).to(self.device)
            with torch.inference_mode():
                out.append(self.model.encode_text(tokens, normalize=True).float().cpu().numpy())
        return np.concatenate(out)


def batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[i : i + BATCH_SIZE] for i in range(0, len(items), BATCH_SIZE))


def check_caption(scorers: Scorers) -> None:
    """Raise ConfigError unless the CLIP that the caption score needs can be had."""
    check_clip("caption", scorers.caption_checkpoint, "or leave scorers.caption out")


class CaptionScore:
    """How well a clip's caption fits its pictures by CLIP, -1..1; null without a caption.

    The cosine between the text's embedding and the mean of the pictures', each of length one
    (CLIPScore of Hessel et al. 2021 is 2.5 times this, cut off at 0; the mean is CLIP4Clip's).
    """

    def __init__(self, scorers: Scorers) -> None:
        assert scorers.caption_checkpoint is not None
        self.model = Clip(scorers.caption_checkpoint)
        _ = (
            self.model.tokenize
        )  # one that is not there stops the run; later it would fail each clip

    def __call__(self, clips: Sequence[Seen]) -> list[Row]:
        told = [clip for clip in clips if clip.caption and clip.caption.strip()]
        texts = self.model.texts([clip.caption or "" for clip in told])
        pictures = by_clip(told, self.model.pictures(pictures_of(told)))
        means = [np.mean(vectors, axis=0) for vectors in pictures]
        cosines = {
            id(clip): float(mean @ text / np.linalg.norm(mean))
            for clip, mean, text in zip(told, means, texts, strict=True)
        }
        return [{"caption_score": cosines.get(id(clip))} for clip in clips]
