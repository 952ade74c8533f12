"""The own ECC: against known motion, against OpenCV's, and with an error that is true."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.ecc import fit
from refusion_edge.calibration.rig.motion import MODELS, Model, apart_px, motion_matrix

SIZE = (200, 160)
KNOWN = np.ones((160, 200), np.bool_)


def field(picture: Array) -> Array:
    """(H, W, 1) around 0."""
    smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1.5)
    return ((smooth - smooth.mean()) / smooth.std())[..., None]


def looked_up(picture: Array, homography: Array) -> Array:
    return cv2.warpPerspective(picture, homography, SIZE, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


@pytest.mark.parametrize("model", MODELS)
def test_known_motion_is_recovered(noise_scene: Callable[[int], Array], model: Model) -> None:
    parameters = np.array([2.5, -1.8, 1.2, -0.9, 0.8, -0.7, 0.6, 0.5])[: MODELS[model]]
    truth = motion_matrix(parameters, SIZE)
    scene = noise_scene(1)
    found = fit(field(scene), KNOWN, field(looked_up(scene, truth)), KNOWN, model=model)
    assert found is not None
    assert apart_px(truth, found.homography, SIZE) < 0.05
    assert found.correlation > 0.97


def test_it_agrees_with_opencv(noise_scene: Callable[[int], Array]) -> None:
    truth = motion_matrix(np.array([1.5, -1.0, 0.7, 0.4, 0.3, -0.6]), SIZE)
    base, other = field(noise_scene(2)), field(looked_up(noise_scene(2), truth) // 2 + noise_scene(3) // 2)
    found = fit(base, KNOWN, other, KNOWN, model="affine")
    assert found is not None
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-7)
    start = np.eye(2, 3, dtype=np.float32)
    correlation, affine = cv2.findTransformECC(base[..., 0], other[..., 0], start, cv2.MOTION_AFFINE, criteria, None, 1)
    theirs = np.vstack((affine, [0, 0, 1]))
    assert found.correlation == pytest.approx(correlation, abs=0.02)
    assert apart_px(theirs, found.homography, SIZE) < 0.15


def test_the_standard_error_is_that_of_repeated_measurements(noise_scene: Callable[[int], Array]) -> None:
    errors, stated = [], []
    for seed in range(8):
        scene = noise_scene(seed).astype(np.float32)
        ones, others = (scene + 1.5 * noise_scene(1000 + 10 * seed + turn) for turn in (1, 2))
        found = fit(field(ones), KNOWN, field(others), KNOWN, model="similarity")
        assert found is not None
        errors.append(apart_px(np.eye(3), found.homography, SIZE))
        stated.append(found.error_px)
    true = float(np.sqrt(np.mean(np.square(errors))))
    assert true / 2 < np.mean(stated) < true * 2


def test_masks_keep_out_what_is_not_known(noise_scene: Callable[[int], Array]) -> None:
    truth = motion_matrix(np.array([2.0, 1.0, 0.0, 0.0]), SIZE)
    base, other = field(noise_scene(4)), field(looked_up(noise_scene(4), truth))
    known = KNOWN.copy()
    known[:, :70] = False
    other[:, :68] = field(noise_scene(5))[:, :68] * 4
    found = fit(base, known, other, KNOWN, model="similarity")
    assert found is not None
    assert apart_px(truth, found.homography, SIZE) < 0.1


def test_fields_without_anything_in_them_are_not_fitted() -> None:
    nothing = np.zeros((160, 200, 1), np.float32)
    assert fit(nothing, KNOWN, nothing, KNOWN, model="similarity") is None
    assert fit(nothing + 1, KNOWN, nothing + 1, ~KNOWN, model="similarity") is None
