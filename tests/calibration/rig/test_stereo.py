"""Calibration files of OpenCV: homographies as geometry has them, and every flaw named."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.stereo import align_calibration, read_calibration
from refusion_edge.errors import InputError
from refusion_edge.rig.warp import warp_points

FACTS: dict[str, Array | float] = {
    "M1": np.array([[520.0, 0, 319.5], [0, 521, 255.5], [0, 0, 1]]),
    "D1": np.array([[-0.3, 0.1, 0.001, -0.001, 0.0]]),
    "M2": np.array([[700.0, 0, 330], [0, 702, 240], [0, 0, 1]]),
    "D2": np.zeros((1, 5)),
    "R": np.asarray(cv2.Rodrigues(np.array([0.01, -0.02, 0.005]))[0]),
    "T": np.array([[-35.0], [1.0], [2.0]]),
    "rms": 0.31,
}
SIZES = ((640, 512), (640, 480))


def write(name: str, **changes: Array | float | None) -> Path:
    store = cv2.FileStorage(name, cv2.FILE_STORAGE_WRITE)
    for key, value in (FACTS | changes).items():
        if value is not None:
            store.write(key, value)
    store.release()
    return Path(name)


@pytest.mark.parametrize("suffix", ["yml", "xml", "json"])
@pytest.mark.parametrize("base", ["ir", "vis"])
def test_points_of_a_plane_land_where_both_cameras_see_them(rng: np.random.Generator, suffix: str, base: str) -> None:
    calibration = read_calibration([write(f"stereo.{suffix}")], unit_m=0.001)
    sources, alignments, parallax = align_calibration(
        calibration, SIZES, [math.inf, 2.0, 5.0], first="ir", base="vis" if base == "vis" else "ir"
    )
    assert [alignment.distance_m for alignment in alignments] == [2.0, 5.0, math.inf]
    assert (sources["ir"].size_wh, sources["vis"].size_wh) == SIZES
    assert sources["ir"].lens is not None
    assert sources["ir"].lens.distortion == (-0.3, 0.1, 0.001, -0.001, 0.0)
    assert parallax.baseline_m == pytest.approx(math.hypot(35, 1, 2) / 1000)
    assert {alignment.error_px for alignment in alignments} == {0.31}
    rotation, translation = np.asarray(FACTS["R"]), np.asarray(FACTS["T"]).ravel() / 1000
    for alignment in alignments[:2]:
        assert alignment.distance_m is not None
        plane = np.column_stack((rng.uniform(-0.5, 0.5, (20, 2)), np.full(20, alignment.distance_m)))
        if base == "vis":  # the plane is parallel to the base sensor
            in_vis, in_ir = plane, (plane - translation) @ rotation
        else:
            in_ir, in_vis = plane, plane @ rotation.T + translation
        pixels = {}
        for name, points, key in (("ir", in_ir, "M1"), ("vis", in_vis, "M2")):
            seen = points @ np.asarray(FACTS[key]).T
            pixels[name] = seen[:, :2] / seen[:, 2:]
        moving = "ir" if base == "vis" else "vis"
        np.testing.assert_allclose(warp_points(alignment.matrix, pixels[base]), pixels[moving], atol=1e-6)


def test_intrinsics_and_extrinsics_may_be_two_files() -> None:
    both = [write("in.yml", R=None, T=None, rms=None), write("ex.yml", M1=None, D1=None, M2=None, D2=None, rms=None)]
    calibration = read_calibration(both, unit_m=0.001)
    assert calibration.error_px is None
    _, alignments, _ = align_calibration(calibration, SIZES, [math.inf], first="vis", base="vis")
    assert alignments[0].error_px is None
    assert "not measured" in alignments[0].error_method


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"R": None}, r"rotation \(R\)"),
        ({"M1": None, "D2": None}, "matrix of camera 1"),
        ({"R": np.eye(3) * 2}, "R "),
        ({"R": np.diag([1.0, 1, -1])}, "R "),
        ({"T": np.zeros((2, 1))}, "T "),
        ({"T": np.array([[np.nan], [0], [0]])}, "T "),
        ({"T": np.array([[35000.0], [0], [0]])}, "add --unit mm"),
        ({"M1": np.eye(4)}, "3x3"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(changes: dict[str, Array | None], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        read_calibration([write("stereo.yml", **changes)], unit_m=0.001)


@pytest.mark.parametrize("text", [b"", b"hello", b"%YAML:1.0\n---\n[1, 2]\n", b"\x00\xff", b"<?xml?><a>"])
def test_what_is_no_calibration_is_refused(text: bytes) -> None:
    Path("stereo.yml").write_bytes(text)
    with pytest.raises(InputError, match="expected"):
        read_calibration([Path("stereo.yml")])
    with pytest.raises(InputError, match="got nothing"):
        read_calibration([Path("none.yml")])
