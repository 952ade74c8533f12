"""Exhaustive search, on small copies, for the shift, rotation and scale that map one image onto another.

The two fields of view may differ: at each scale, the narrower image is a template that is looked for in the wider one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Float32Array
from refusion_edge.calibration.rig.structure import Mask, Scene, averaged, gradient_structure, scaled, without_mean
from refusion_edge.rig.model import Matrix
from refusion_edge.rig.warp import warp_points

# Long side of the small copy of the wider image; less where the narrower one has too few pixels, but not below the least.
_SIDE_PX, _LEAST_SIDE_PX = 256, 160
# Structure is taken from images this much finer, and averaged: the edges that it keeps tell small templates apart, and a pixel
# of the copy forgives what the two views are off by locally.
_FINER = 2
# Steps of a template that fills the wider view; smaller templates allow longer ones.
_ROTATION_STEP_DEG = 2.5
_SCALE_STEP = 0.045
_LEAST_TEMPLATE = 0.5
# Overlaps below this part of the largest are ignored: a few pixels can agree by chance.
_LEAST_OVERLAP = 0.25
# Peaks of one rotation and scale, and how far apart they are in pixels of the small copy.
_PEAKS, _PEAK_PX = 2, 6
# Candidates whose image outlines differ by less than this part of the long side count as one.
_DISTINCT = 0.04

Spectrum = NDArray[np.complex64]


@dataclass(frozen=True, slots=True)
class SearchRange:
    """Range of the search.

    Attributes:
        shift: How far the narrower view may reach beyond the wider one, as a part of the wider one's width and height.
        rotation_deg: Largest rotation in either direction.
        field: Smallest and largest field of view of the moving image as a multiple of that of the base: the width of the
            part of the scene that it shows over the width that the base shows.
    """

    shift: float = 0.2
    rotation_deg: float = 5.0
    field: tuple[float, float] = (0.4, 2.5)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """An alignment at which the images agree.

    Attributes:
        homography: Point of the base to point of the moving image.
        agreement: Normalized correlation of the gradient structure, at most 1.
        score: How far the agreement stands out from that of other shifts, and from chance for its area; for comparison only.
    """

    homography: Matrix
    agreement: float
    score: float


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
    low, high = within.field
    found: list[Candidate] = []
    if low < 1 or high <= 1:
        found += _look_for(moving, base, (low, min(high, 1.0)), within)
    if high > 1:
        for candidate in _look_for(base, moving, (1 / high, min(1 / low, 1.0)), within):
            inverse = np.linalg.inv(candidate.homography).astype(np.float64)
            found.append(Candidate(inverse / inverse[2, 2], candidate.agreement, candidate.score))
    found.sort(key=lambda candidate: -candidate.score)
    return _distinct(found, base.size_wh, moving.size_wh, count)


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """The gradient structure of a small copy as complex numbers, (H, W), and where it is known."""

    values: Spectrum
    mask: Mask


def _look_for(narrow: Scene, wide: Scene, part: tuple[float, float], within: SearchRange) -> Iterator[Candidate]:
    """Look for the narrower image, which shows ``part`` of the width of the wider one; candidates map wide to narrow."""
    side_px = min(_SIDE_PX, max(max(narrow.size_wh) / part[1], _LEAST_SIDE_PX))
    field, up = _field(wide, min(1.0, side_px / max(wide.size_wh)))
    height, width = field.mask.shape
    tallest = round(part[1] * width * narrow.size_wh[1] / narrow.size_wh[0])
    reach = math.ceil(within.shift * height), math.ceil(within.shift * width)
    # Room for every shift without wrapping around.
    shape = tuple(
        cv2.getOptimalDFTSize(max(side, other) + room + 1)
        for side, other, room in zip((height, width), (tallest, round(part[1] * width)), reach, strict=True)
    )
    field_hat, (energy_hat, mask_hat) = _transform(field.values, shape), _support(field, shape)
    down = np.linalg.inv(up)
    for share in _shares(*part):
        other, template_up = _field(narrow, share * width / narrow.size_wh[0])
        own_height, own_width = other.mask.shape
        rows, columns = (
            np.arange(min(0, side - own) - room, max(0, side - own) + room + 1)
            for side, own, room in zip((height, width), (own_height, own_width), reach, strict=True)
        )
        window = np.ix_(rows, columns)
        other_energy_hat, other_mask_hat = _support(other, shape)
        # Both are real, so one transform computes the two. A small turn hardly changes them.
        energies = _inverse(energy_hat * np.conj(other_mask_hat) + 1j * mask_hat * np.conj(other_energy_hat))[window]
        weight = 1 / np.sqrt(_floored(energies.real) * _floored(energies.imag))
        for angle in _angles(share, within.rotation_deg):
            turn = _turn((own_width, own_height), angle)
            other_hat = _transform(_turned(other.values, turn, angle), shape)
            agreement = _inverse(field_hat * np.conj(other_hat)).real[window] * weight
            mean, deviation = float(agreement.mean()), max(float(agreement.std()), 1e-6)
            for row, column, peak in _peaks(agreement):
                shift = np.eye(3)
                shift[:2, 2] = -columns[column], -rows[row]
                chance = max(peak, 0.0) * math.sqrt(other.mask.size)
                score = math.sqrt(chance * max((peak - mean) / deviation, 0.0))
                yield Candidate(template_up @ turn @ shift @ down, peak, score)


def _shares(low: float, high: float) -> list[float]:
    count = max(1, math.ceil((high - low) / _SCALE_STEP - 1e-9)) + 1 if high > low else 1
    return [float(share) for share in np.linspace(high, low, count)]


def _angles(share: float, rotation_deg: float) -> NDArray[np.float64]:
    """Rotations to try, in radians."""
    steps = math.ceil(rotation_deg * max(share, _LEAST_TEMPLATE) / _ROTATION_STEP_DEG)
    return np.deg2rad(np.linspace(-rotation_deg, rotation_deg, 2 * steps + 1)) if steps else np.zeros(1)


def _turn(size_wh: tuple[int, int], angle: float) -> Matrix:
    """Rotation about the center of a template, from points of the result."""
    center = (np.array(size_wh) - 1) / 2
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:2, 2] = center - turn[:2, :2] @ center
    return turn


def _turned(values: Spectrum, turn: Matrix, angle: float) -> Spectrum:
    """A field turned about its center: its places, and the doubled angles that it holds."""
    if abs(angle) < 1e-9:
        return values
    planes = values.view(np.float32).reshape(*values.shape, 2)
    height, width = values.shape
    looked_up = cv2.warpAffine(planes, turn[:2], (width, height), flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR)
    there: Spectrum = looked_up.view(np.complex64)[..., 0] * np.complex64(np.exp(-2j * angle))
    return there


def _field(scene: Scene, factor: float) -> tuple[_Field, Matrix]:
    """The structure of a copy at ``factor``, and the matrix that maps its points to those of ``scene``."""
    width, height = (max(round(side * factor), 8) for side in scene.size_wh)
    fine, _ = scaled(scene, _FINER * factor)
    structure, known = averaged(*gradient_structure(fine), (width, height))
    # Without its local mean: a street with mostly vertical edges on either side agrees a little with every other street.
    flat = without_mean(structure, known)
    step_x, step_y = scene.size_wh[0] / width, scene.size_wh[1] / height
    up = np.array([[step_x, 0, (step_x - 1) / 2], [0, step_y, (step_y - 1) / 2], [0, 0, 1]])
    return _Field(np.ascontiguousarray(flat).view(np.complex64)[..., 0], known), up


def _support(field: _Field, shape: tuple[int, ...]) -> tuple[Spectrum, Spectrum]:
    """Fourier transforms of the energy and the mask of a field."""
    # Both are real, so one transform gives the two: the even and the odd part.
    both = _transform((np.abs(field.values) ** 2 + 1j * field.mask).astype(np.complex64), shape)
    mirrored = np.conj(np.roll(both[::-1, ::-1], (1, 1), (0, 1)))
    return (both + mirrored) / 2, (both - mirrored) / 2j


def _transform(values: Spectrum, shape: tuple[int, ...]) -> Spectrum:
    height, width = values.shape
    padded = np.zeros(shape, np.complex64)
    padded[:height, :width] = values
    # OpenCV's is several times faster than NumPy's.
    planes = cv2.dft(padded.view(np.float32).reshape(*shape, 2), flags=cv2.DFT_COMPLEX_OUTPUT, nonzeroRows=height)
    spectrum: Spectrum = planes.view(np.complex64)[..., 0]
    return spectrum


def _inverse(spectrum: NDArray[np.complexfloating]) -> Spectrum:
    planes = np.ascontiguousarray(spectrum, np.complex64).view(np.float32).reshape(*spectrum.shape, 2)
    values: Spectrum = cv2.dft(planes, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE | cv2.DFT_COMPLEX_OUTPUT).view(np.complex64)[
        ..., 0
    ]
    return values


def _peaks(agreement: NDArray[np.floating]) -> Iterator[tuple[int, int, float]]:
    """Row, column and height of the highest peaks."""
    left = agreement.copy()
    for _ in range(_PEAKS):
        row, column = np.unravel_index(int(np.argmax(left)), left.shape)
        if not np.isfinite(left[row, column]):
            return
        yield int(row), int(column), float(left[row, column])
        near = tuple(slice(max(0, int(at) - _PEAK_PX), int(at) + _PEAK_PX + 1) for at in (row, column))
        left[near] = -np.inf


def _floored(energy: Float32Array) -> Float32Array:
    floor = max(_LEAST_OVERLAP * float(energy.max()), 1e-9)
    floored: Float32Array = np.maximum(energy, np.float32(floor))
    return floored


def _distinct(candidates: list[Candidate], base_wh: tuple[int, int], moving_wh: tuple[int, int], count: int) -> list[Candidate]:
    kept: list[Candidate] = []
    for candidate in candidates:
        if all(_apart(candidate.homography, old.homography, base_wh, moving_wh) > _DISTINCT for old in kept):
            kept.append(candidate)
        if len(kept) == count:
            break
    return kept


def _apart(one: Matrix, other: Matrix, base_wh: tuple[int, int], moving_wh: tuple[int, int]) -> float:
    """Largest distance of the corners of the view that shows less, as a part of its long side."""
    scale = math.sqrt(abs(float(np.linalg.det(one[:2, :2]))))
    size_wh = base_wh
    if moving_wh[0] < scale * base_wh[0]:
        one, other = (np.linalg.inv(matrix).astype(np.float64) for matrix in (one, other))
        scale, size_wh = 1 / scale, moving_wh
    width, height = size_wh
    outline = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    return float(np.abs(warp_points(one, outline) - warp_points(other, outline)).max()) / scale / max(size_wh)
