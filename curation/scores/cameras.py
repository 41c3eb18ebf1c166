"""What a camera does between two pictures: where motion can be seen, which step most of it follows.

"Measured": benchmarks/filter_motions.py, the half that is for tuning.
"""

from __future__ import annotations

import cv2
import numpy as np

CELL = 4  # px; flow is read at the middle of each such cell. Ours: it is smooth over more
# Grey levels of range in 3x3 px, mean of a cell. Ours: over what coding noise makes.
TEXTURE = 8.0
NUM_POINTS = 400  # cells that a camera is fitted to. Ours: bounds what NUM_TRIES cost
# Of RANSAC: a camera that 1/6 of the cells follow is hit by two points with 0.996.
NUM_TRIES = 200
COARSE_PX = 1.5  # of a cell from the camera's fit, over large steps. Measured.
INLIER_PX = 0.5  # the same over small steps; DIS errs by 0.1 to 0.3 px. Measured.
MIN_CAMERA = 0.3  # share of textured cells that must follow a camera. Ours: an object is smaller
PARTS = 4  # the picture is taken in 4 x 4 parts
MIN_PARTS = 8  # of them that a camera moves at least: half; a large object near it moves fewer
NUM_ROUNDS = 3  # of least squares; more change nothing
GAIN_PX = 5  # side of the patch that is compared: a cell and its border


def textured(gray: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
    """The middles [N, 2] (x, y), in px, of the cells whose motion can be seen."""
    ranges = cv2.morphologyEx(gray, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    size = (gray.shape[1] // CELL, gray.shape[0] // CELL)
    mask = cv2.resize(ranges, size, interpolation=cv2.INTER_AREA) >= TEXTURE
    if inside is not None:
        mask &= cv2.resize(inside, size, interpolation=cv2.INTER_AREA) == 255
    return np.argwhere(mask)[:, ::-1] * CELL + CELL / 2


def warp(picture: np.ndarray, step: np.ndarray) -> np.ndarray:
    """A picture moved by an affine step [3, 3]; what comes in from outside is black."""
    return cv2.warpAffine(picture, step[:2], picture.shape[::-1], flags=cv2.INTER_LINEAR)


def field(step: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How far an affine step [3, 3] moves points [N, 2], in px."""
    return points @ step[:2, :2].T + step[:2, 2] - points


def corner_shift(step: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far an affine step moves the corner that it moves most, in px."""
    height, width = shape
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
    return float(np.linalg.norm(field(step, corners), axis=1).max())


def common_step(points: np.ndarray, steps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The shift, zoom and roll [3, 3] that most of the picture follows, by RANSAC (OpenCV)."""
    every = -(-len(points) // NUM_POINTS)
    some = np.ascontiguousarray(points[::every])
    moved = some + steps[::every]
    fit, inliers = cv2.estimateAffinePartial2D(
        some, moved, ransacReprojThreshold=COARSE_PX, maxIters=NUM_TRIES
    )
    if fit is None or inliers.mean() < MIN_CAMERA:
        return None
    columns, rows = (some[inliers[:, 0] > 0] * PARTS / shape[::-1]).astype(int).T
    if np.count_nonzero(np.bincount(rows * PARTS + columns)) < MIN_PARTS:
        return None
    return np.vstack([fit, [0, 0, 1]])


def camera_field(
    points: np.ndarray, steps: np.ndarray, start: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """How a camera moves every point [N, 2], in px, and its affine step [3, 3].

    The field of a plane before a moving camera, quadratic with 8 parameters (Longuet-Higgins 1984),
    by least squares over what follows it, from a first guess on.
    """
    side, (height, width) = max(shape), shape
    x, y = ((points - [width / 2, height / 2]) / side).T
    one, none = np.ones_like(x), np.zeros_like(x)
    rows = np.array(
        [[one, x, y, none, none, none, x * x, x * y], [none, none, none, one, x, y, x * y, y * y]]
    ).transpose(2, 0, 1)  # [N, 2, 8]
    every = -(-len(points) // NUM_POINTS)
    some, wanted = rows[::every], steps[::every]
    off = wanted - field(start, points[::every])
    for tolerance_px in (COARSE_PX, *[INLIER_PX] * NUM_ROUNDS):
        follow = np.linalg.norm(off, axis=1) < tolerance_px
        a, b = some[follow].reshape(-1, 8), wanted[follow].ravel()
        fit = np.linalg.solve(a.T @ a + 1e-6 * np.eye(8), a.T @ b)
        off = wanted - some @ fit
    (left, xx, xy), (top, yx, yy) = fit[:3], fit[3:6]
    step = np.array([[1 + xx / side, xy / side, 0], [yx / side, 1 + yy / side, 0], [0, 0, 1]])
    middle = step[:2, :2] @ [width / 2, height / 2] - [width / 2, height / 2]
    step[:2, 2] = np.array([left, top]) - middle
    return rows @ fit, step


def gained(
    before: np.ndarray,
    after: np.ndarray,
    points: np.ndarray,
    steps: np.ndarray,
    follows: np.ndarray,
) -> np.ndarray:
    """How much better the steps [N, 2] explain the later picture than the camera's, grey levels.

    Noise and coding give flow too, but nothing is where it says.
    """
    left, right = (cv2.blur(p, (GAIN_PX, GAIN_PX)).astype(np.float32) for p in (before, after))

    def at(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
        x, y = places.astype(np.float32).T
        return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).ravel()

    there = at(left, points)
    by_camera, by_step = (at(right, points + s) - there for s in (follows, steps))
    light = np.median(by_camera)
    return np.abs(by_camera - light) - np.abs(by_step - light)
