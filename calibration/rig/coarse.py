"""Exhaustive search, on small copies, for the shift, rotation and scale that map one image onto another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Float32Array
from refusion_edge.calibration.rig.structure import Mask, Scene, gradient_structure, scaled, warped
from refusion_edge.rig.model import Matrix
from refusion_edge.rig.warp import warp_points

_SIDE_PX = 160
_ROTATION_STEP_DEG = 2.0
_SCALE_STEP = 1.045
# Overlaps below this part of the largest are ignored: a few pixels can agree by chance.
_LEAST_OVERLAP = 0.25
# Candidates whose image outlines differ by less than this part of the long side count as one.
_DISTINCT = 0.04


@dataclass(frozen=True, slots=True)
class SearchRange:
    """Range of the search.

    Attributes:
        shift: Largest shift as a part of the width and height.
        rotation_deg: Largest rotation in either direction.
        scale: Smallest and largest scale of the moving image relative to the nominal one, the ratio of the widths.
    """

    shift: float = 0.2
    rotation_deg: float = 5.0
    scale: tuple[float, float] = (0.85, 1.18)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """An alignment at which the images agree.

    Attributes:
        homography: Point of the base to point of the moving image.
        agreement: Normalized correlation of the gradient structure, at most 1.
    """

    homography: Matrix
    agreement: float


def search(base: Scene, moving: Scene, within: SearchRange, count: int) -> list[Candidate]:
    """Find the alignments at which the gradient structures agree best.

    For each rotation and scale, all shifts are tried at once: correlation through the Fourier transform, normalized by the
    energy of both fields in the overlap.

    Args:
        base: Base image.
        moving: Moving image.
        within: Range of the search.
        count: Number of candidates.

    Returns:
        Up to ``count`` distinct candidates, best first.
    """
    small, up = scaled(base, _SIDE_PX / max(base.size_wh))
    structure, mask = gradient_structure(small)
    field = _complex(structure)
    height, width = field.shape
    reach = math.ceil(within.shift * width), math.ceil(within.shift * height)
    # Room for every shift without wrapping around.
    shape = (height + reach[1] + 1, width + reach[0] + 1)
    shape = (cv2.getOptimalDFTSize(shape[0]), cv2.getOptimalDFTSize(shape[1]))
    field_hat, energy_hat, mask_hat = (np.conj(np.fft.fft2(plane, shape)) for plane in (field, np.abs(field) ** 2, _real(mask)))
    rows, columns = (np.r_[0 : reach[axis] + 1, -reach[axis] : 0] for axis in (1, 0))

    found: list[Candidate] = []
    for pose in _poses(base, moving, within):
        turned, turned_mask = gradient_structure(warped(moving, pose @ up, (width, height)))
        other = _complex(turned)
        product = np.fft.ifft2(field_hat * np.fft.fft2(other, shape)).real
        # Both are real, so one transform computes the two.
        energies = np.fft.ifft2(
            energy_hat * np.fft.fft2(_real(turned_mask), shape) + 1j * mask_hat * np.fft.fft2(np.abs(other) ** 2, shape)
        )
        agreement = (product / np.sqrt(_floored(energies.real) * _floored(energies.imag)))[np.ix_(rows, columns)]
        row, column = np.unravel_index(int(np.argmax(agreement)), agreement.shape)
        shift = np.eye(3)
        shift[:2, 2] = columns[column], rows[row]
        found.append(Candidate(pose @ up @ shift @ np.linalg.inv(up), float(agreement[row, column])))
    found.sort(key=lambda candidate: -candidate.agreement)
    return _distinct(found, base.size_wh, count)


def _poses(base: Scene, moving: Scene, within: SearchRange) -> Iterator[Matrix]:
    """Homographies that rotate and scale about the centers of both images."""
    nominal = moving.size_wh[0] / base.size_wh[0]
    turns = 2 * math.ceil(within.rotation_deg / _ROTATION_STEP_DEG) + 1
    low, high = within.scale
    scales = max(1, math.ceil(math.log(high / low) / math.log(_SCALE_STEP))) + 1
    center, target = ((np.array(scene.size_wh) - 1) / 2 for scene in (base, moving))
    for angle in np.deg2rad(np.linspace(-within.rotation_deg, within.rotation_deg, turns)):
        for scale in np.geomspace(low, high, scales) * nominal:
            pose = np.eye(3)
            pose[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            pose[:2, 2] = target - pose[:2, :2] @ center
            yield pose


def _complex(structure: Float32Array) -> NDArray[np.complex64]:
    return np.ascontiguousarray(structure).view(np.complex64)[..., 0]


def _real(mask: Mask) -> Float32Array:
    return mask.astype(np.float32)


def _floored(energy: NDArray[np.floating]) -> NDArray[np.floating]:
    floor = max(_LEAST_OVERLAP * float(energy.max()), 1e-9)
    floored: NDArray[np.floating] = np.maximum(energy, floor)
    return floored


def _distinct(candidates: list[Candidate], size_wh: tuple[int, int], count: int) -> list[Candidate]:
    width, height = size_wh
    outline = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    kept: list[Candidate] = []
    for candidate in candidates:
        places = warp_points(candidate.homography, outline)
        scale = math.sqrt(abs(np.linalg.det(candidate.homography[:2, :2])))
        apart = (np.abs(warp_points(old.homography, outline) - places).max() / scale for old in kept)
        if all(distance > _DISTINCT * max(size_wh) for distance in apart):
            kept.append(candidate)
        if len(kept) == count:
            break
    return kept
