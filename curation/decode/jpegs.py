"""Pictures as JPEG bytes: how frames travel from the decode to the models that see them.

Apart from the decode because those models' processes need no video library.
"""

from __future__ import annotations

import cv2
import numpy as np

QUALITY = 95  # ours: a model sees no difference to the frame


def jpeg_from_picture(picture: np.ndarray) -> bytes:
    """uint8 RGB [H, W, 3] as JPEG bytes."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def picture_from_jpeg(data: bytes) -> np.ndarray:
    """JPEG bytes as uint8 RGB [H, W, 3]."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture is not None, "our own JPEG"
    return picture


def bgr_from_jpeg(data: bytes) -> np.ndarray:
    """The same in BGR, as OpenCV and the models behind it want it."""
    return cv2.cvtColor(picture_from_jpeg(data), cv2.COLOR_RGB2BGR)
