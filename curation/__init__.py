"""From open-domain videos to shards of captioned clips.

From Python: `from curation import curate, curate_one, open_dataset` (docs/python.md).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curation.calls import Curated, CuratedVideo, curate, curate_one
    from curation.places import open_dataset
    from curation.settings import ConfigError, RunError
    from curation.shards import DatasetError

# onnxruntime's wheels send usage events and write an identifier unless this is set before import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

PLACES = {
    **dict.fromkeys(("Curated", "CuratedVideo", "curate", "curate_one"), "curation.calls"),
    "open_dataset": "curation.places",
    **dict.fromkeys(("ConfigError", "RunError"), "curation.settings"),
    "DatasetError": "curation.shards",
}
__all__ = [
    "ConfigError",
    "Curated",
    "CuratedVideo",
    "DatasetError",
    "RunError",
    "curate",
    "curate_one",
    "open_dataset",
]


def __getattr__(name: str) -> Any:
    # Looked up when it is asked for: whoever reads shards needs none of it.
    if name not in PLACES:
        raise AttributeError(f"module 'curation' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(PLACES[name]), name)
