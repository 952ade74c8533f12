"""Where two goals for the picture fight: both results side by side, at 200 %, on the rendered sample pairs.

python -m benchmarks.goal_pictures --earlier FILE [-o goals.png]

FILE holds the ``ir_vis`` weights of ``fast`` of the first run of its model card. Each row shows a part of both sources, then
what the one goal asks for and what the other does:

- a lamp in front of a pedestrian: the weights of the first run, with higher SCD and less noise, and the shipped ones, with more
  of the infrared detail in glare;
- a sky with the stripes of an infrared camera: the result of the teacher, with the higher Qabf, and the same without infrared
  grain (``targets.grain=0.025``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.targets import plane
from refusion_edge import load
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.images.color import to_output_range
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.montage import MontageRow, montage
from refusion_edge.images.samples import sample_paths
from refusion_edge.metrics.planes import to_gray_plane
from refusion_edge.train.targets import TargetSettings, targets_of

# Row, column and radius of the lamp; and the parts shown, (top, left), with their size.
_LAMP = (170, 340, 26.0)
_GLARE, _SKY, _HEIGHT, _WIDTH = (105, 264), (0, 110), 110, 120
_GRAIN = TargetSettings(grain=0.025)
_SCALE = 2


def main() -> int:
    """Fuse and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=Path, required=True, metavar="FILE", help="weights of the first run of fast")
    parser.add_argument("-o", "--output", type=Path, default=Path("goals.png"), metavar="FILE")
    options = parser.parse_args()
    pairs = {
        pair.name: tuple(np.rint(to_gray_plane(read_image(path))).astype(np.uint8) for path in (pair.a, pair.b))
        for pair in sample_paths("ir_vis")
    }

    a, b = pairs["night"]
    b = _with_lamp(b)
    with load(options.earlier, task="ir_vis") as earlier, load("ir_vis", network="fast") as shipped:
        before, after = (fuser.backend.fuse(plane(a), plane(b))[0, 0].copy() for fuser in (earlier, shipped))
    rows = [_row((a, b, before, after), _GLARE, ("infrared", "visible", "more SCD, less noise", "detail in glare"))]

    a, b = pairs["street"]
    a = _with_stripes(a)
    with load("ir_vis") as teacher:
        taught = teacher.backend.fuse(plane(a), plane(b)).copy()
    corrected = targets_of(*(torch.from_numpy(plane(levels)) for levels in (a, b)), _GRAIN, torch.from_numpy(taught)).taught
    assert corrected is not None
    rows.append(_row((a, b, taught[0, 0], corrected.numpy()[0, 0]), _SKY, ("infrared", "visible", "Qabf", "clean sky")))
    write_image(options.output, montage(rows, _WIDTH * _SCALE))
    return 0


def _with_lamp(levels: Array) -> Array:
    y, x = np.mgrid[: levels.shape[0], : levels.shape[1]]
    row, column, radius = _LAMP
    light = 600 * np.exp(-(np.square(y - row) + np.square(x - column)) / radius**2)
    return (levels + light).clip(0, 255).astype(np.uint8)


def _with_stripes(levels: Array) -> Array:
    """The fixed pattern and the noise of an uncooled camera, in a sky that is not black."""
    rng = np.random.default_rng(0)
    pattern = rng.normal(0, 4, levels.shape[1]) + rng.normal(0, 3, levels.shape)
    return (np.maximum(levels, 24) + pattern).clip(0, 255).astype(np.uint8)


def _row(
    images: tuple[Array, Array, Float32Array, Float32Array], corner: tuple[int, int], names: tuple[str, ...]
) -> MontageRow:
    """The same part of four images; those of [0, 1] are stretched first, as a whole."""
    top, left = corner
    shown = [np.rint(to_output_range(i, "stretch")).astype(np.uint8) if i.dtype == np.float32 else i for i in images]
    return MontageRow([image[top : top + _HEIGHT, left : left + _WIDTH] for image in shown], names)


if __name__ == "__main__":
    sys.exit(main())
