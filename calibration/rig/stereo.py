"""Alignment from a stereo calibration of both cameras in OpenCV's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refusion_edge.calibration.rig.motion import Numbers
from refusion_edge.calibration.rig.storage import read_storage, to_matrix, to_number
from refusion_edge.errors import InputError
from refusion_edge.rig.model import Lens, LensModel, Matrix, ParallaxModel, RigAlignment, RigSource, SourceName, to_rows

# Names under which programs store the results of stereoCalibrate, those of OpenCV's samples first.
_NAMES = {
    "matrix of camera 1": ("M1", "K1", "cameraMatrix1", "camera_matrix_1", "camera_matrix1"),
    "distortion of camera 1": ("D1", "distCoeffs1", "dist_coeffs_1", "distortion_coefficients_1", "distCoeffs_1"),
    "matrix of camera 2": ("M2", "K2", "cameraMatrix2", "camera_matrix_2", "camera_matrix2"),
    "distortion of camera 2": ("D2", "distCoeffs2", "dist_coeffs_2", "distortion_coefficients_2", "distCoeffs_2"),
    "rotation": ("R", "rotation"),
    "translation": ("T", "translation"),
}
_ERROR_NAMES = ("rms", "reprojection_error", "avg_reprojection_error", "stereo_reprojection_error")
# No rig has its cameras farther apart than this; a larger number is in another unit.
_LARGEST_BASELINE_M = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class StereoCalibration:
    """Two calibrated cameras; a point X of the first is ``R X + T`` in the second.

    Attributes:
        lenses: Lens of camera 1 and of camera 2.
        rotation: R, (3, 3).
        translation_m: T in meters, (3,).
        error_px: Reprojection error as stated by the file, or None.
    """

    lenses: tuple[Lens, Lens]
    rotation: Matrix
    translation_m: Numbers
    error_px: float | None


def read_calibration(paths: list[Path], *, model: LensModel = "pinhole", unit_m: float = 1.0) -> StereoCalibration:
    """Read a stereo calibration.

    Args:
        paths: One or more files of ``cv2.FileStorage`` (YAML, XML or JSON) that hold M1, D1, M2, D2, R and T between them.
        model: Lens model of the calibration.
        unit_m: Unit of T in meters: the unit in which the squares of the board were measured.

    Raises:
        InputError: A file cannot be read, a matrix is missing or invalid, or the baseline is impossible in this unit.
    """
    stores = [read_storage(path) for path in paths]
    where = ", ".join(map(str, paths))
    found = {what: _find(stores, names) for what, names in _NAMES.items()}
    stated = (to_number(store[name]) for name in _ERROR_NAMES for store in stores if name in store)
    error = next(stated, None)
    missing = [f"{what} ({_NAMES[what][0]})" for what, matrix in found.items() if matrix is None]
    if missing:
        raise InputError(f"the stereo calibration in {where} lacks {', '.join(missing)}", "add the file that holds it")
    known = {what: matrix for what, matrix in found.items() if matrix is not None}
    rotation, translation = known["rotation"], known["translation"].ravel() * unit_m
    if rotation.size == 3:
        rotation = np.asarray(cv2.Rodrigues(rotation.reshape(3, 1))[0], np.float64)
    if rotation.shape != (3, 3) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise InputError(f"R in {where} is not a rotation: {rotation.tolist()}", "calibrate again")
    if translation.shape != (3,) or not np.isfinite(translation).all():
        raise InputError(f"T in {where} is not three finite numbers: {translation.tolist()}", "calibrate again")
    baseline_m = float(np.linalg.norm(translation))
    if baseline_m > _LARGEST_BASELINE_M:
        raise InputError(
            f"{where} puts the cameras {baseline_m:g} m apart, more than {_LARGEST_BASELINE_M:g} m, so T is probably in "
            "millimeters",
            "add --unit mm",
            expected=_LARGEST_BASELINE_M,
            got=baseline_m,
        )
    lenses = tuple(_lens(known[f"matrix of camera {n}"], known[f"distortion of camera {n}"], model, where) for n in (1, 2))
    return StereoCalibration((lenses[0], lenses[1]), rotation, translation, error)


def align_calibration(
    calibration: StereoCalibration,
    sizes_wh: tuple[tuple[int, int], tuple[int, int]],
    distances_m: list[float],
    *,
    first: SourceName,
    base: SourceName,
) -> tuple[dict[SourceName, RigSource], tuple[RigAlignment, ...], ParallaxModel]:
    """Homographies of planes parallel to the base sensor, from the calibration alone.

    ``H = K' (R + t n^T / Z) K^-1`` with n along the optical axis of the base camera (Hartley and Zisserman, Multiple View
    Geometry, 2nd edition, equation 13.2, with its sign of the plane's normal).

    Args:
        calibration: Both cameras.
        sizes_wh: Frame sizes of camera 1 and camera 2.
        distances_m: Working distances, ``inf`` for far away.
        first: Source that is camera 1.
        base: Source whose view the fused image has.

    Returns:
        Sources by name, alignments ordered by distance, and the model of the parallax.
    """
    second: SourceName = "vis" if first == "ir" else "ir"
    sources = {
        name: RigSource(size, lens=lens) for name, size, lens in zip((first, second), sizes_wh, calibration.lenses, strict=True)
    }
    rotation, translation = calibration.rotation, calibration.translation_m
    of_base, of_moving = calibration.lenses if base == first else calibration.lenses[::-1]
    if base != first:
        rotation, translation = rotation.T, -rotation.T @ translation
    alignments: list[RigAlignment] = []
    for distance_m in sorted(set(distances_m)):
        plane = rotation + np.outer(translation / distance_m, (0.0, 0.0, 1.0))
        homography = of_moving.matrix @ plane @ np.linalg.inv(of_base.matrix)
        stated = calibration.error_px is not None
        method = (
            "reprojection error stated by the calibration file"
            if stated
            else "not measured: the calibration file states no error"
        )
        alignments.append(RigAlignment(distance_m, to_rows(homography), calibration.error_px, method))
    parallax = ParallaxModel(of_base.focal_px[0], float(np.linalg.norm(translation)))
    return sources, tuple(alignments), parallax


def _find(stores: list[dict[str, Any]], names: tuple[str, ...]) -> Numbers | None:
    for store in stores:
        for name in names:
            if (matrix := to_matrix(store.get(name), name)) is not None:
                return matrix
    return None


def _lens(matrix: Numbers, distortion: Numbers, model: LensModel, where: str) -> Lens:
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or matrix[2, 2] != 1:
        raise InputError(
            f"{where} holds a camera matrix that is not 3x3 with a last element of 1: {matrix.tolist()}", "calibrate again"
        )
    return Lens(
        model,
        (float(matrix[0, 0]), float(matrix[1, 1])),
        (float(matrix[0, 2]), float(matrix[1, 2])),
        tuple(map(float, distortion.ravel())),
    )
