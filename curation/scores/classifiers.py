"""A watermark classifier through transformers, named by the user: a model in place of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curation.captions import missing_weights
from curation.pipelines import Scorers
from curation.scores.models import Means
from curation.settings import ConfigError


def check_classifier(settings: Scorers) -> None:
    """Raise ConfigError, before any work, when the watermark classifier cannot be loaded.

    A folder must hold config, image processor and weights; a hub id must be in the local cache or
    on a hub that answers. One label must say watermark.
    """
    name = settings.watermark_checkpoint
    other = "or --set scorers.watermark=network, which needs no download"
    if not name:
        raise ConfigError(
            "scorers.watermark is classifier but scorers.watermark_checkpoint is not set; give a "
            "hub id or a folder of an image-classification model, such as "
            f"--set scorers.watermark_checkpoint=/models/watermarks, {other}"
        )
    from transformers import AutoConfig, AutoImageProcessor

    try:
        marked_labels(name, AutoConfig.from_pretrained(name).id2label)
        AutoImageProcessor.from_pretrained(name)
        if missing := missing_weights(name):
            raise OSError(f"it has no {missing}")
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the watermark classifier {name!r} cannot be loaded: {str(error).splitlines()[0]} "
            f"Download it where there is a network (hf download {name} --local-dir FOLDER) and "
            f"give --set scorers.watermark_checkpoint=FOLDER, {other}"
        ) from None


DENIED = re.compile(r"(?:^|[^a-z])(?:no|not|non|un|without)(?=[^a-z]|watermark)")


def marked_labels(name: str, labels: Mapping[int, str]) -> list[int]:
    """The classes that mean a watermark is there; ConfigError when the labels do not tell.

    >>> marked_labels("m", {0: "no_watermark", 1: "Watermark"})
    [1]
    """
    told = {i: label.lower() for i, label in labels.items() if "watermark" in label.lower()}
    marked = [i for i, label in told.items() if not DENIED.search(label)]
    if not marked or len(marked) == len(labels):
        raise ConfigError(
            f"{name!r} has the labels {', '.join(labels.values())}; a watermark classifier needs "
            "one that says watermark, and one that does not"
        )
    return marked


class WatermarkClassifier:
    """An image-classification model through transformers: pictures in, shares of belief out.

    Raises ConfigError through check_classifier when it cannot be had. Runs on cuda where there is
    one.
    """

    def __init__(self, settings: Scorers) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        check_classifier(settings)
        name = settings.watermark_checkpoint
        assert name is not None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor: Any = AutoImageProcessor.from_pretrained(name)
        model: Any = AutoModelForImageClassification.from_pretrained(name)
        self.model = model.to(self.device).eval()
        self.marked = marked_labels(name, model.config.id2label)

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[float]:
        """How sure the model is of a watermark in each picture (uint8 BGR [H, W, 3]), 0..1."""
        import torch

        if not pictures:
            return []
        rgb = [np.ascontiguousarray(picture[..., ::-1]) for picture in pictures]
        inputs = self.processor(images=rgb, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            belief = self.model(**inputs).logits.float().softmax(dim=-1)
        return [float(b) for b in belief[:, self.marked].sum(dim=-1)]


class WatermarkScore(Means):
    """The mean of what the watermark classifier says of a clip's pictures."""

    def __init__(self, scorers: Scorers) -> None:
        super().__init__("watermark", WatermarkClassifier(scorers))
