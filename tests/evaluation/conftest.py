"""Small data sets on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.images.io import write_image

NAMES = ("01", "02", "03", "04", "05")


@pytest.fixture
def dataset(picture: Callable[..., Array]) -> Path:
    """Five pairs and three methods below the working folder: ir, vis, good (the mean), plain (noisy) and black."""
    root = Path.cwd()
    for name in NAMES:
        a, b = picture(48, 56), picture(48, 56, 3)
        mean = ((a.astype(int) + b.mean(axis=2)) / 2).astype(np.uint8)
        noisy = np.clip(mean + np.random.default_rng(int(name)).normal(0, 20, mean.shape), 0, 255).astype(np.uint8)
        write_image(root / "ir" / f"{name}.png", a)
        write_image(root / "vis" / f"{name}.png", b)
        write_image(root / "good" / f"{name}.png", mean)
        write_image(root / "noisy" / f"{name}.jpg", noisy)
        write_image(root / "black" / f"{name}.png", np.zeros_like(mean))
    return root
