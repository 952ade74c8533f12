"""Pairs whose alignment is known exactly: the rendered samples, moved."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.images.pairs import ImagePair, read_pair
from refusion_edge.images.samples import sample_paths

MOVE = np.array([[1.05, 0.03, -22.0], [-0.03, 1.05, 13.0], [0.0, 0.0, 1.0]])
"""A shift of some 20 pixels, a turn of 1.6 degrees and a scale of 1.05, base to moving."""


@pytest.fixture(scope="session")
def street() -> ImagePair:
    """A rendered street, infrared and visible, registered exactly."""
    return next(read_pair(paths) for paths in sample_paths("ir_vis") if paths.name == "street")


@pytest.fixture
def moved() -> Callable[..., Array]:
    """Move a image: ``moved(image, homography)``; what it does not cover is black."""

    def move(picture: Array, homography: Array = MOVE) -> Array:
        return cv2.warpPerspective(picture, homography, (picture.shape[1], picture.shape[0]), flags=cv2.INTER_CUBIC)

    return move


@pytest.fixture
def noise_scene() -> Callable[[int], Array]:
    """A image of blurred noise: ``noise_scene(seed)``, 160x200 uint8; two seeds have nothing in common."""

    def make(seed: int) -> Array:
        noise = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal((160, 200)), (0, 0), 2.0)
        return np.clip(128 + 40 * noise / noise.std(), 1, 255).astype(np.uint8)

    return make
