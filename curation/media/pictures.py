"""A decoded frame as an array: its brightness, small and in colour, upright."""

from __future__ import annotations

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange

from curation.media.probes import Turn

# Brightness of limited range (ITU-R BT.709: 16 to 235) as full range.
FULL = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def luma(frame: av.VideoFrame) -> np.ndarray:
    """The stored brightness plane as uint8 [H, W], not rotated; a view where the format allows."""
    if frame.format.name in ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "nv12"):
        return plane(frame, 0)
    return frame.reformat(format="gray").to_ndarray()


def stored_luma(frame: av.VideoFrame) -> np.ndarray | None:
    """The brightness plane of planar YUV of 8 to 16 bits, uint8 [H, W]; None for other formats."""
    name, bits = frame.format.name, frame.format.components[0].bits
    if not name.startswith("yuv") or not frame.format.is_planar or name.endswith("be"):
        return None
    if bits == 8:
        return plane(frame, 0)
    data = frame.planes[0]
    lines = np.frombuffer(memoryview(data), np.uint16).reshape(data.height, -1)[:, : data.width]
    return (lines >> (bits - 8)).astype(np.uint8)


def whole_luma(frame: av.VideoFrame) -> tuple[np.ndarray, bool]:
    """The brightness at the stored size, uint8 [H, W], and whether it is of full range."""
    stored = stored_luma(frame)
    if stored is None:
        return cv2.cvtColor(frame.to_ndarray(format="bgr24"), cv2.COLOR_BGR2GRAY), True
    return stored, is_full_range(frame)


def is_full_range(frame: av.VideoFrame) -> bool:
    """Whether stored brightness goes from 0 to 255 and not from 16 to 235."""
    return "yuvj" in frame.format.name or frame.color_range == ColorRange.JPEG


def plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    """One 8-bit plane as a view on the decoder's memory, without the padding of its lines."""
    data = frame.planes[index]
    return np.frombuffer(memoryview(data), np.uint8).reshape(-1, data.line_size)[
        : data.height, : data.width
    ]


def small_bgr(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """The picture of `small_pictures` in colour alone."""
    return small_pictures(frame, size)[0]


def small_pictures(
    frame: av.VideoFrame, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The picture shrunk to `size` = (width, height) px, even, not rotated.

    As uint8 BGR [H, W, 3]; its brightness [H, W]; and whether that is of full range. 4:2:0 frames
    are shrunk plane by plane before they are converted. The matrix is BT.601 whatever the file
    says: for comparing frames of one video with each other that does not matter.
    """
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        small = shrink(frame.reformat(format="bgr24").to_ndarray(), size)
        stored = stored_luma(frame)
        if stored is None:
            return small, cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), True
        return small, shrink(stored, size), is_full_range(frame)
    width, height = size
    i420 = np.empty((height * 3 // 2, width), np.uint8)
    i420[:height] = shrink(plane(frame, 0), size)
    chroma = [shrink(plane(frame, i), (width // 2, height // 2)) for i in (1, 2)]
    i420[height:] = np.concatenate([c.reshape(-1) for c in chroma]).reshape(-1, width)
    return cv2.cvtColor(i420, cv2.COLOR_YUV2BGR_I420), i420[:height], is_full_range(frame)


def shrink(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture at `size` = (width, height) px: halved by averaging while it can be, then linear.

    Measured on 1280x720 to 256x144: 0.27 ms against 0.64 ms for area averaging in one step.
    """
    width, height = size
    while picture.shape[1] >= 2 * width and picture.shape[0] >= 2 * height:
        half = (picture.shape[1] // 2, picture.shape[0] // 2)
        picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)
    return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)


def upright(picture: np.ndarray, turn: Turn) -> np.ndarray:
    """Turn a stored picture [H, W, ...] so that it is shown upright."""
    if turn.is_mirrored:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(np.rot90(picture, turn.degrees // 90))
