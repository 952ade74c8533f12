"""Warps: pixels land where the coordinates say, on every path, and what is not seen is marked."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import RigError
from refusion_edge.rig.model import Lens, Rig, RigAlignment, RigSource, SourceName, to_rows
from refusion_edge.rig.warp import make_warp, warp_points
from tests.raising import raises

Picture = Callable[..., Array]

TURN = np.array([[0.98, -0.03, 4.25], [0.03, 0.98, -2.5], [1e-5, -2e-5, 1]])


def make_rig(ir: RigSource, vis: RigSource, homography: Array, base: SourceName = "vis") -> Rig:
    return Rig(ir, vis, (RigAlignment(None, to_rows(homography)),), base=base)


def ramp(width: int, height: int) -> Array:
    """(H, W, 2) whose values are the coordinates, in which a bilinear look-up is exact."""
    return np.dstack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)))


def grid(width: int, height: int) -> Array:
    return ramp(width, height).reshape(-1, 2).astype(np.float64)


@pytest.mark.parametrize("base", ["vis", "ir"])
def test_a_warp_looks_up_where_the_homography_points(base: SourceName) -> None:
    rig = make_rig(RigSource((81, 67), None, (3, 5, 75, 61)), RigSource((91, 77), None, (2, 4, 85, 71)), TURN, base)
    warp = make_warp(rig)
    moving, fixed = (warp.ir, warp.vis) if base == "vis" else (warp.vis, warp.ir)
    width, height = rig.view_size_wh
    left, top, own_width, own_height = rig.source(rig.moving).view_xywh
    view = moving.apply(ramp(*rig.source(rig.moving).size_wh))
    expected = warp_points(TURN, grid(width, height)).reshape(height, width, 2)
    inside = (expected >= -0.001).all(axis=2) & (expected <= (own_width - 0.999, own_height - 0.999)).all(axis=2)
    np.testing.assert_array_equal(warp.mask, inside)
    np.testing.assert_array_equal(fixed.mask, np.ones((height, width), bool))
    assert np.abs(view - expected - (left, top))[inside].max() < 1 / 64 + 1e-3  # the tables are in 1/32 pixel
    assert (view[~inside] == 0).all()
    base_left, base_top = rig.source(base).view_xywh[:2]
    np.testing.assert_array_equal(fixed.apply(ramp(*rig.source(base).size_wh))[0, 0], (base_left, base_top))


@pytest.mark.parametrize("lens", [
    Lens("pinhole", (100.0, 98.0), (49.0, 40.0), (-0.2, 0.05, 0.001, -0.002)),
    Lens("pinhole", (100.0, 98.0), (49.0, 40.0)),
    Lens("fisheye", (80.0, 79.0), (50.0, 41.0), (0.02, -0.01, 0.002, 0.0)),
    Lens("fisheye", (80.0, 79.0), (50.0, 41.0)),
])  # fmt: skip
def test_a_lens_is_removed_as_opencv_does_it(lens: Lens) -> None:
    size = (101, 83)
    rig = make_rig(RigSource(size), RigSource(size, None, None, lens), np.eye(3), "vis")
    warp = make_warp(rig)
    distortion = np.array(lens.distortion) if lens.distortion else np.zeros(4)
    remove = cv2.fisheye.initUndistortRectifyMap if lens.model == "fisheye" else cv2.initUndistortRectifyMap
    x, y = remove(lens.matrix, distortion, np.eye(3), lens.matrix, size, cv2.CV_32FC1)
    view = warp.vis.apply(ramp(*size))
    assert np.abs(view - np.dstack((x, y)))[warp.vis.mask].max() < 1 / 64 + 2e-3
    assert warp.vis.mask.mean() > 0.6


def test_strong_distortion_does_not_fold_back_into_the_image() -> None:
    # This polynomial has its maximum at radius 1 and comes back to 0 outside.
    lens = Lens("pinhole", (100.0, 100.0), (50.0, 40.0), (-1 / 3, 0.0, 0.0, 0.0))
    rig = make_rig(
        RigSource((101, 81), None, None, lens), RigSource((401, 381)), np.array([[1, 0, -150.0], [0, 1, -150], [0, 0, 1]])
    )
    mask = make_warp(rig).mask
    far = np.linalg.norm(grid(401, 381) - (200, 190), axis=1).reshape(381, 401) > 110
    assert mask.any()
    assert not (mask & far).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_frame_is_warped_into_a_buffer_of_the_caller(picture: Picture, dtype: type, channels: int) -> None:
    rig = make_rig(RigSource((40, 30)), RigSource((44, 35)), TURN)
    warp = make_warp(rig)
    frame = picture(30, 40, channels, dtype)
    fresh = warp.ir.apply(frame)
    poisoned = np.full_like(fresh, 255)
    assert warp.ir.apply(frame, poisoned) is poisoned
    np.testing.assert_array_equal(poisoned, fresh)
    exact = cv2.warpPerspective(frame.astype(np.float64), TURN, (44, 35), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    scale = 1.0 if dtype is np.float32 else float(np.iinfo(dtype).max)
    assert np.abs(fresh - exact)[warp.mask].max() < 0.05 * scale
    other = picture(35, 44, channels, dtype)
    out = np.full_like(other, 7)
    assert warp.vis.apply(other, out) is out
    np.testing.assert_array_equal(out, other)
    assert [view.shape[:2] for view in warp.apply(frame, other)] == [(35, 44)] * 2


@pytest.mark.parametrize(("scale", "reduction"), [(1.9, 1), (2.0, 2), (3.4, 3)])
def test_a_finer_source_is_averaged_down_and_stays_in_place(scale: float, reduction: int) -> None:
    size = (int(40 * scale) + 1, int(30 * scale) + 1)
    homography = np.array([[scale, 0, 0.0], [0, scale, 0], [0, 0, 1]])
    warp = make_warp(make_rig(RigSource((40, 30)), RigSource(size), homography, "ir"))
    assert warp.vis.reduction == reduction
    view = warp.vis.apply(ramp(*size))
    error = np.abs(view - grid(40, 30).reshape(30, 40, 2) * scale)
    assert error[1:-1, 1:-1].max() < reduction / 64 + 1e-3
    assert error.max() < reduction  # the outermost pixel goes on
    checks = (np.indices(size[::-1]).sum(axis=0) % 2 * 255).astype(np.uint8)
    if reduction == 2:
        assert np.ptp(warp.vis.apply(checks).astype(int)) <= 1


def test_frames_of_another_size_are_refused(picture: Picture) -> None:
    warp = make_warp(make_rig(RigSource((40, 30)), RigSource((44, 35)), TURN))
    with raises(RigError, "ir", expected=(30, 40), got=(40, 30)):
        warp.apply(picture(40, 30), picture(35, 44))
    with raises(RigError, "vis", expected=(35, 44), got=(36, 44)):
        warp.apply(picture(30, 40), picture(36, 44))


def test_views_without_a_common_pixel_and_horizons_are_refused() -> None:
    with raises(RigError, "distance not stated"):
        make_warp(make_rig(RigSource((40, 30)), RigSource((40, 30)), np.array([[1, 0, 100.0], [0, 1, 0], [0, 0, 1]])))
    with raises(RigError, "horizon"):
        make_warp(make_rig(RigSource((40, 30)), RigSource((40, 30)), np.array([[1, 0, 0.0], [0, 1, 0], [-0.05, 0, 1]])))


def test_equal_views_are_only_cut_out(picture: Picture) -> None:
    rig = make_rig(RigSource((40, 30), None, (4, 2, 32, 24)), RigSource((32, 24)), np.eye(3))
    frame = picture(30, 40)
    view = make_warp(rig).ir.apply(frame)
    assert np.shares_memory(view, frame)
    np.testing.assert_array_equal(view, frame[2:26, 4:36])
