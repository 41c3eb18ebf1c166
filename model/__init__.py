"""VideoFactory's model; names are loaded on first use, so `import model` costs nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.pipelines import VideoFactoryPipeline as VideoFactoryPipeline
    from model.unet import SpaceTimeUNet as SpaceTimeUNet

HOMES = {"SpaceTimeUNet": "model.unet", "VideoFactoryPipeline": "model.pipelines"}
__all__ = ["SpaceTimeUNet", "VideoFactoryPipeline"]


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'model' has no attribute {name!r}")
