"""One source without information, clipped, or noisy: the fused image keeps what the other shows, and noise is not amplified."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

import refusion_edge
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import InputError
from refusion_edge.fuser import load
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.metrics.planes import to_gray_plane
from refusion_edge.network import NETWORK_NAMES

Pair = tuple[Array, Array]

_PART = np.s_[60:236, 180:372]


@pytest.fixture(scope="module", params=NETWORK_NAMES)
def fuser(request: pytest.FixtureRequest) -> Iterator[refusion_edge.Fuser]:
    with load("ir_vis", network=request.param, threads=1) as fuser:
        yield fuser


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Part of a rendered street, luma levels of the infrared and of the visible image."""
    paths = next(paths for paths in sample_paths("ir_vis") if paths.name == "street")
    a, b = (to_gray_plane(read_image(path))[_PART] for path in (paths.a, paths.b))
    return a, b


def _fused(fuser: refusion_edge.Fuser, a: Array, b: Array) -> Float32Array:
    planes = (np.ascontiguousarray(plane[None, None] / 255, np.float32) for plane in (a, b))
    return fuser.backend.fuse(*planes)[0, 0].copy()


def _slopes(plane: Array) -> Array:
    """Both Sobel responses, without the border, where zero padding makes edges."""
    wide = plane.astype(np.float64)
    return np.concatenate([cv2.Sobel(wide, -1, *order)[8:-8, 8:-8].ravel() for order in ((1, 0), (0, 1))])


def _correlation(one: Array, other: Array) -> float:
    return float(np.corrcoef(_slopes(one), _slopes(other))[0, 1])


def _grain(plane: Array, clean: Array) -> float:
    """What a noise adds to a plane in [0, 255]: standard deviation."""
    return float(np.std(plane - clean))


@pytest.mark.parametrize("level", [0, 110])
def test_the_other_source_remains_where_one_shows_nothing(fuser: refusion_edge.Fuser, pair: Pair, level: int) -> None:
    a, b = pair
    assert _correlation(_fused(fuser, np.full_like(a, level), b), b) > 0.9
    assert _correlation(_fused(fuser, a, np.full_like(b, level)), a) > 0.9


def test_a_saturated_source_leaves_the_contours_of_the_other(fuser: refusion_edge.Fuser, pair: Pair) -> None:
    a, b = pair
    white = np.full_like(a, 255)
    for fused, other in ((_fused(fuser, white, b), b), (_fused(fuser, a, white), a)):
        assert _correlation(fused, other) > 0.5
        assert np.ptp(fused) > 0.1


def test_a_source_with_one_value_is_refused_as_a_file(fuser: refusion_edge.Fuser, pair: Pair) -> None:
    a, b = (plane.astype(np.uint8) for plane in pair)
    with pytest.raises(InputError):
        fuser.fuse(np.full_like(a, 255), b)


def _noise(plane: Array, rng: np.random.Generator) -> Array:
    return (plane + rng.normal(0, 40, plane.shape)).clip(0, 255)


def _dead_pixels(plane: Array, rng: np.random.Generator) -> Array:
    draw = rng.random(plane.shape)
    return np.where(draw < 0.005, 0.0, np.where(draw > 0.995, 255.0, plane))


@pytest.mark.parametrize("harm", [_noise, _dead_pixels])
@pytest.mark.parametrize("side", [0, 1])
def test_noise_of_one_source_is_not_amplified(
    fuser: refusion_edge.Fuser, pair: Pair, harm: Callable[..., Array], side: int, rng: np.random.Generator
) -> None:
    clean = 255.0 * _fused(fuser, *pair)
    harmed = list(pair)
    harmed[side] = harm(pair[side], rng)
    fused = 255.0 * _fused(fuser, *harmed)
    assert _grain(fused, clean) < 1.25 * _grain(harmed[side], pair[side])
