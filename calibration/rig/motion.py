"""Motion models of the warp between two views, and the distance between two warps.

Points are (x, y) in pixels. Parameters are displacements in pixels at half the long side from the center, so that
all of them have one size and one meaning.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refusion_edge.rig.model import Matrix
from refusion_edge.rig.warp import warp_points

Model = Literal["similarity", "affine", "homography"]
MODELS: dict[Model, int] = {"similarity": 4, "affine": 6, "homography": 8}
"""Motion models and their numbers of parameters."""

Numbers: TypeAlias = NDArray[np.float64]

_GRID = 15


def basis_at(x: NDArray[np.float64], y: NDArray[np.float64], size_wh: tuple[int, int], count: int) -> Numbers:
    """Displacement in pixels by each parameter: shift x, shift y, scale, rotation; aspect, shear; two of perspective.

    Args:
        x: Horizontal coordinates, any shape.
        y: Vertical coordinates, same shape.
        size_wh: Size of the image.
        count: Number of parameters, K.

    Returns:
        (2, K, ...) as (x, y) displacement.
    """
    width, height = size_wh
    radius = max(size_wh) / 2
    u, v = (x - (width - 1) / 2) / radius, (y - (height - 1) / 2) / radius
    one, none = np.ones_like(u), np.zeros_like(u)
    horizontal = [one, none, u, -v, u, v, u * u, u * v][:count]
    vertical = [none, one, v, u, -v, u, u * v, v * v][:count]
    return np.stack((np.stack(horizontal), np.stack(vertical)))


def motion_matrix(parameters: Numbers, size_wh: tuple[int, int]) -> Matrix:
    """Homography whose displacements are, to first order, those of the parameters.

    Args:
        parameters: (K,).
        size_wh: Size of the image.
    """
    width, height = size_wh
    radius = max(size_wh) / 2
    normalize = np.array([[1 / radius, 0, -(width - 1) / 2 / radius], [0, 1 / radius, -(height - 1) / 2 / radius], [0, 0, 1]])
    p = np.zeros(8)
    p[: len(parameters)] = parameters / radius
    motion = np.array([[1 + p[2] + p[4], p[5] - p[3], p[0]], [p[3] + p[5], 1 + p[2] - p[4], p[1]], [-p[6], -p[7], 1]])
    composed: Matrix = np.linalg.inv(normalize) @ motion @ normalize
    return composed


def spread_px(covariance: Numbers, size_wh: tuple[int, int]) -> float:
    """RMS over an image of the standard error of the displacement, given the covariance (K, K) of the parameters."""
    points = grid(size_wh)
    basis = basis_at(points[:, 0], points[:, 1], size_wh, len(covariance))
    return float(np.sqrt(np.einsum("ckn,kl,cln->n", basis, covariance, basis).mean()))


def distance_px(one: Matrix, other: Matrix, size_wh: tuple[int, int]) -> float:
    """RMS over an image of the distance between the points two homographies map to, in pixels of their target."""
    points = grid(size_wh)
    apart = warp_points(one, points) - warp_points(other, points)
    return float(np.sqrt((apart**2).sum(axis=1).mean()))


def grid(size_wh: tuple[int, int]) -> Numbers:
    """Evenly spaced points of an image, (225, 2), including the corners."""
    x, y = np.meshgrid(*(np.linspace(0, side - 1, _GRID) for side in size_wh))
    return np.column_stack((x.ravel(), y.ravel()))


def apart_px(one: Matrix, other: Matrix, size_wh: tuple[int, int]) -> float:
    """RMS over the base view of the distance between two alignments, in pixels of the base view."""
    return distance_px(np.eye(3), np.linalg.inv(one) @ other, size_wh)
