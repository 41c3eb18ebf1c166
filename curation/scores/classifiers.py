"""A watermark classifier through transformers, named by the user: a model in place of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curation.pipelines import Scorers
from curation.scores.models import Means
from curation.scores.weights import Weights, missing_file
from curation.settings import ConfigError

CLASSIFIER = Weights(
    "watermark classifier",
    "scorers.watermark_checkpoint",
    "a hub id or a folder of an image-classification model, such as "
    "--set scorers.watermark_checkpoint=/models/watermarks",
    "or --set scorers.watermark=network, which needs no download",
)


def check_classifier(settings: Scorers) -> None:
    """Raise ConfigError, before any work, when the watermark classifier cannot be loaded.

    A folder must hold config, image processor and weights; a hub id must be in the local cache or
    on a hub that answers. One label must say watermark.
    """
    name = settings.watermark_checkpoint
    if not name:
        raise CLASSIFIER.not_set("scorers.watermark is classifier but ")
    CLASSIFIER.check_place(name)
    from transformers import AutoConfig, AutoImageProcessor

    try:
        labels = AutoConfig.from_pretrained(name).id2label
        AutoImageProcessor.from_pretrained(name)
        missing = missing_file(name)
    except (OSError, ValueError) as error:
        raise CLASSIFIER.not_had(name, error) from None
    marked_labels(name, labels)
    if missing:
        raise CLASSIFIER.not_had(name, f"it has no {missing}")


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
