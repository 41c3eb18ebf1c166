"""Shape buckets: the shape that a row is trained in, found from its columns without decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from training.config import Config
from training.data.videos import CROP, SampleShape


def shapes_of(config: Config) -> list[SampleShape]:
    """Every shape that a run trains on: its buckets, and one frame of their sizes for images.

    Where buckets of one frame are given, images keep to these.
    """
    given = config.buckets or [(config.num_frames, config.height, config.width)]
    stills = [] if any(T == 1 for T, _, _ in given) else [(1, H, W) for _, H, W in given]
    return [
        SampleShape(T, H, W, config.fps, config.stride, config.num_windows)
        for T, H, W in dict.fromkeys([*given, *stills])
    ]


def transform_of(config: Config) -> dict[str, Any]:
    """Everything that the pixels of a sample depend on besides its clip and its start."""
    pace = {"stride": config.stride} if config.stride else {"fps": config.fps}
    shapes = [[s.num_frames, s.height, s.width] for s in shapes_of(config)]
    return {"shapes": shapes, **pace, "windows": config.num_windows, "crop": CROP}


def best_fit(
    shapes: Sequence[SampleShape], num_frames: int, duration_s: float, width: int, height: int
) -> int | None:
    """Which shape a row of this size (px, as displayed) is trained in; None: it is too short.

    Of the shapes that it is long enough for and large enough for (of all the former if it is too
    small for each: then it is enlarged), the one of the nearest aspect; of equally near ones that
    of most frames, then the largest. Images go to shapes of one frame, and videos only where
    there is no other. The order is ours: what a crop takes is lost for good, while fewer frames or
    pixels lose only detail; and motion is what a video has over an image.
    """
    stills = [n for n, shape in enumerate(shapes) if shape.num_frames == 1]
    moving = [n for n, shape in enumerate(shapes) if shape.num_frames > 1]
    pool = stills if num_frames == 1 else moving or stills
    long = [n for n in pool if shapes[n].fits(num_frames, duration_s)]
    large = [n for n in long if not enlarges(shapes[n], width, height)]

    def fit(n: int) -> tuple[float, int, int]:
        shape = shapes[n]
        aspect = abs(math.log(width * shape.height / (height * shape.width)))
        return (-round(aspect, 6), shape.num_frames, shape.height * shape.width)

    return max(large or long, key=fit, default=None)


def enlarges(shape: SampleShape, width: int, height: int) -> bool:
    """Whether a row of this size has to be scaled up to fill a shape."""
    return width < shape.width or height < shape.height
