"""Shape buckets: the shape that a row is trained in, found from its columns without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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


def best_fits(
    shapes: Sequence[SampleShape],
    num_frames: np.ndarray,
    duration_s: np.ndarray,
    width: np.ndarray,
    height: np.ndarray,
) -> np.ndarray:
    """Which shape each row of this size (px, as displayed) is trained in, int16; -1: none fits.

    Of the shapes that it is long enough for and large enough for (of all the former if it is too
    small for each: then it is enlarged), the one of the nearest aspect; of equally near ones that
    of most frames, then the largest. Images go to shapes of one frame, and videos only where
    there is no other. The order is ours: what a crop takes is lost for good, while fewer frames or
    pixels lose only detail; and motion is what a video has over an image.
    """
    moving = any(shape.num_frames > 1 for shape in shapes)
    best = np.full(len(num_frames), -1, np.int16)
    nearest = np.full(len(num_frames), np.inf)
    # Of equally near shapes the first one stays.
    order = sorted(range(len(shapes)), key=lambda n: (-shapes[n].num_frames, -shapes[n].num_px, n))
    for n in order:
        shape = shapes[n]
        still = num_frames == 1
        asked = still if shape.num_frames == 1 and moving else ~still | (shape.num_frames == 1)
        fits = asked & shape.fits(num_frames, duration_s)
        aspect = np.round(np.abs(np.log(width * shape.height / (height * shape.width))), 6)
        # Any that is large enough comes before any that is not.
        distance = aspect + 1e6 * enlarges(shape, width, height)
        better = fits & (distance < nearest)
        best[better], nearest[better] = n, distance[better]
    return best


def best_fit(
    shapes: Sequence[SampleShape], num_frames: int, duration_s: float, width: int, height: int
) -> int | None:
    """`best_fits` of one row; None: none fits."""
    facts = (np.array([fact]) for fact in (num_frames, duration_s, width, height))
    found = int(best_fits(shapes, *facts)[0])
    return None if found < 0 else found


def enlarges(shape: SampleShape, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Whether rows of these sizes have to be scaled up to fill a shape."""
    return (width < shape.width) | (height < shape.height)
