"""How well the pairs of a data set are registered, measured without the alignment that the benchmarks judge by it.

``measure`` moves the infrared image over the visible one, and looks for the similarity around the data set's own registration
at which the mutual information of their gray levels, given the part of the image that they are in, is largest. ``align_scene``
uses directions of edges, and no gray levels. A registration is *confirmed* if it is within 1.5 px of that place: half of the
error that ``benchmarks.alignment_fields`` allows. Where it is not, either the pair is off, or its gray levels do not tell.

Run as ``python -m benchmarks.registration FOLDER OUTPUT`` from the repository's root; the folder has the subfolders ``ir`` and
``vis``. The output has one line of JSON for each pair; pairs that are in it already are skipped.

Source:
    Loeckx, Slagmolen, Maes, Vandermeulen and Suetens, Nonrigid image registration using conditional mutual information, IEEE
    Transactions on Medical Imaging 2010.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

# One core: these have to be set before the libraries are loaded.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.motion import Numbers, motion_matrix
from refusion_edge.images.luma import to_luma
from refusion_edge.images.pairs import find_pairs, read_pair
from refusion_edge.rig.warp import warp_points
from refusion_edge.tasks import DISPLAY

CONFIRMED_PX = 1.5
"""Largest distance of a confirmed registration from where the mutual information is largest."""

_SIDE_PX = 640
# How far the search goes each way, and its steps: a grid of shifts at half scale, then halved steps of all four parameters.
_REACH_PX, _GRID_PX, _FINEST_PX = 8, 2, 0.125
# Gray levels relate differently in each part of an image: the sky, a street.
_BINS, _PARTS, _SMOOTHING_PX = 16, 4, 1.0


@dataclass(frozen=True, slots=True)
class Registration:
    """Where the mutual information of a pair is largest.

    Attributes:
        name: Name of the pair.
        offset_px: Mean distance of the corners of the image from where the data set has them, in its pixels.
        gain: Mutual information there over that of the data set's registration.
    """

    name: str
    offset_px: float
    gain: float

    @property
    def confirmed(self) -> bool:
        """Whether the data set's registration is right to within half of the error that is allowed."""
        return self.offset_px <= CONFIRMED_PX


def read_registrations(path: Path) -> dict[str, Registration]:
    """Read what this script has written, by the names of the pairs."""
    found = (Registration(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    return {each.name: each for each in found}


def measure(name: str, ir: Array, vis: Array) -> Registration:
    """Look for the largest mutual information within 8 px of a pair's own registration.

    Args:
        name: Name of the pair.
        ir: Infrared image, (H, W) or (H, W, 3), uint8.
        vis: Visible image of the same size.
    """
    height, width = ir.shape[:2]
    step = max(1.0, max(width, height) / _SIDE_PX)
    size_wh = (round(width / step), round(height / step))
    half_wh = (size_wh[0] // 2, size_wh[1] // 2)
    coarse, fine = (_Pair.of(ir, vis, size) for size in (half_wh, size_wh))
    shifts = np.arange(-_REACH_PX, _REACH_PX + 1, _GRID_PX, dtype=np.float64)
    at = max((np.array([x, y, 0.0, 0.0]) for x in shifts for y in shifts), key=lambda tried: coarse.information(tried / 2))
    most, stride = fine.information(at), _GRID_PX / 2
    while stride >= _FINEST_PX:
        moved = False
        for index, way in ((index, way) for index in range(4) for way in (stride, -stride)):
            tried = at.copy()
            tried[index] += way
            if np.abs(tried).max() <= _REACH_PX and (there := fine.information(tried)) > most:
                at, most, moved = tried, there, True
        if not moved:
            stride /= 2
    up = np.array([[width / size_wh[0], 0, 0], [0, height / size_wh[1], 0], [0, 0, 1]])
    up[:2, 2] = (up[0, 0] - 1) / 2, (up[1, 1] - 1) / 2
    homography = (up @ motion_matrix(at, size_wh) @ np.linalg.inv(up)).astype(np.float64)
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], np.float64)
    offset_px = float(np.linalg.norm(warp_points(homography, corners) - corners, axis=1).mean())
    return Registration(name, offset_px, most / max(fine.information(np.zeros(4)), 1e-12))


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Both images at one scale: gray levels as positions among the bins, the parts of the image, and the pixels that count."""

    fixed: Numbers
    moving: Numbers
    parts: NDArray[np.intp]
    inner: NDArray[np.bool_]

    @classmethod
    def of(cls, ir: Array, vis: Array, size_wh: tuple[int, int]) -> _Pair:
        """Scale both images."""
        width, height = size_wh
        moving, fixed = (_binned(image, size_wh) for image in (ir, vis))
        rows, columns = (np.arange(side) * _PARTS // side for side in (height, width))
        # A border stays out, so that every motion compares the same pixels.
        border = round(1.5 * _REACH_PX * max(size_wh) / _SIDE_PX)
        inner = np.zeros((height, width), np.bool_)
        inner[border:-border, border:-border] = True
        return cls(fixed[inner], moving, (rows[:, None] * _PARTS + columns)[inner], inner)

    def information(self, parameters: Numbers) -> float:
        """Mutual information of the gray levels given the part of the image, in nats, with the infrared image moved."""
        height, width = self.inner.shape
        matrix = motion_matrix(parameters, (width, height))
        flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        moved = cv2.warpPerspective(self.moving, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        one, other = self.fixed, np.asarray(moved, np.float64)[self.inner]
        # Each pixel is shared among the four bins around it.
        a, b = (np.minimum(levels.astype(np.intp), _BINS - 2) for levels in (one, other))
        u, v = one - a, other - b
        joint = np.zeros(_PARTS**2 * _BINS**2)
        for i, p in ((0, 1 - u), (1, u)):
            for j, q in ((0, 1 - v), (1, v)):
                joint += np.bincount((self.parts * _BINS + a + i) * _BINS + b + j, p * q, len(joint))
        shares = (joint / joint.sum()).reshape(_PARTS**2, _BINS, _BINS)
        alone = shares.sum(axis=2, keepdims=True) * shares.sum(axis=1, keepdims=True)
        independent = alone / np.maximum(shares.sum(axis=(1, 2), keepdims=True), 1e-12)
        held = shares > 0
        return float((shares[held] * np.log(shares[held] / independent[held])).sum())


def _binned(image: Array, size_wh: tuple[int, int]) -> Numbers:
    """Gray levels as positions among the bins, [0, bins - 1]; about as many pixels in each."""
    luma = to_luma(image, DISPLAY).values.astype(np.float64)
    if luma.shape[::-1] != size_wh:
        luma = cv2.resize(luma, size_wh, interpolation=cv2.INTER_AREA).astype(np.float64)
    smooth = cv2.GaussianBlur(luma, (0, 0), _SMOOTHING_PX)
    edges = np.quantile(smooth, np.linspace(0, 1, _BINS)) + np.arange(_BINS) * 1e-9
    return np.asarray(np.interp(smooth, edges, np.arange(_BINS, dtype=np.float64)), np.float64)


def main() -> int:
    """Measure each pair, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="FOLDER", help="folder with ir and vis")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="file to add to")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    found = read_registrations(options.output) if options.output.exists() else {}
    for paths in find_pairs(str(options.data / "ir"), str(options.data / "vis")).pairs:
        if paths.name in found:
            continue
        pair = read_pair(paths)
        own = found[pair.name] = measure(pair.name, pair.a, pair.b)
        with options.output.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(own)) + "\n")
        print(
            f"{own.name:32} {'confirmed' if own.confirmed else 'not confirmed':13}  off by {own.offset_px:5.2f} px, where the "
            f"mutual information is {own.gain:.3f} times as large",
            flush=True,
        )
    for name in [*sorted({name.split("__")[0] for name in found}), ""]:
        offsets_px = [each.offset_px for each in found.values() if each.name.startswith(name)]
        confirmed = sum(offset_px <= CONFIRMED_PX for offset_px in offsets_px)
        print(f"{name or 'all':10} {confirmed:3} of {len(offsets_px):3} confirmed, median {np.median(offsets_px):.2f} px")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
