"""Online refinement: follows slowly, never leaves its bounds, gives up when there is nothing to see."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.motion import apart_px
from refusion_edge.calibration.rig.tracking import Bounds, OnlineRefinement
from refusion_edge.images.pairs import ImagePair
from refusion_edge.rig.model import Rig, RigAlignment, RigSource, to_rows
from refusion_edge.rig.warp import make_warp

BUMP = np.array([[1, 0, 5.0], [0, 1, -3.0], [0, 0, 1]])


@pytest.mark.slow
def test_it_follows_a_bump_step_by_step(street: ImagePair, moved: Callable[..., Array]) -> None:
    size = street.b.shape[1], street.b.shape[0]
    rig = Rig(RigSource(size), RigSource(size), (RigAlignment(None, to_rows(np.eye(3))),))
    refinement = OnlineRefinement(Bounds(smoothing=0.5))
    bumped = moved(street.a, BUMP)
    left = [apart_px(BUMP, np.eye(3), size)]
    for _ in range(4):
        ir, vis = make_warp(rig, correction=refinement.correction).apply(bumped, street.b)
        assert refinement.update(vis, ir) == "moved"
        left.append(apart_px(BUMP, refinement.correction, size))
    assert all(after < 0.65 * before + 0.1 for before, after in itertools.pairwise(left))
    assert left[-1] < 0.8


def test_it_stays_inside_its_bounds_and_goes_back(street: ImagePair, moved: Callable[..., Array]) -> None:
    size = street.b.shape[1], street.b.shape[0]
    refinement = OnlineRefinement(Bounds(shift_px=4.0, smoothing=0.6, refusals=2))
    bumped = moved(street.a, BUMP)
    assert refinement.update(street.b, bumped) == "moved"
    assert apart_px(np.eye(3), refinement.correction, size) == pytest.approx(0.6 * np.hypot(5, 3), abs=0.5)
    # The same distance again would lead out of the bounds.
    assert refinement.update(street.b, bumped) == "refused"
    assert apart_px(np.eye(3), refinement.correction, size) < 4
    assert refinement.update(street.b, bumped) == "reset"
    np.testing.assert_array_equal(refinement.correction, np.eye(3))


def test_it_does_nothing_without_evidence(street: ImagePair, noise_scene: Callable[[int], Array]) -> None:
    refinement = OnlineRefinement()
    assert refinement.update(street.b, np.full_like(street.a, 7)) == "refused"
    assert refinement.update(noise_scene(1), noise_scene(2)) == "refused"
    np.testing.assert_array_equal(refinement.correction, np.eye(3))
