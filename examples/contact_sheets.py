"""Draw one contact sheet per task from the sample pairs of the package: both sources, the fused image, and a detail.

python -m examples.contact_sheets [-o docs/images] [--task TASK ...] [--weights FILE] [--backend NAME]

The first row of a sample shows the whole images, the second row the same detail of each at 200 %: the square with the
most texture in either source. Writes ``contact_TASK.jpg``, each below 250 kB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.errors import OutputError
from refusion_edge.fuser import Fuser, load
from refusion_edge.images.color import split, to_display_range
from refusion_edge.images.io import write_image
from refusion_edge.images.montage import MontageRow, montage
from refusion_edge.images.pairs import read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.tasks import TASKS

_TILE_PX = 320
_LARGEST_BYTES = 250_000
_QUALITIES = (92, 85, 75, 65, 50)


def main(arguments: list[str] | None = None) -> int:
    """Draw the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images"), metavar="DIR")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--weights", metavar="FILE", help="other weights than those of the package; for one task")
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args(arguments)
    if options.weights is not None and len(options.task) > 1:
        parser.error("--weights is for one --task")

    for name in options.task:
        with load(options.weights or name, task=name, backend=options.backend) as fuser:
            sheet = draw_sheet(fuser)
        path = options.output / f"contact_{name}.jpg"
        quality = write_below(path, sheet, _LARGEST_BYTES)
        print(f"{path}: {sheet.shape[1]}x{sheet.shape[0]}, quality {quality}, {path.stat().st_size} bytes")
    return 0


def draw_sheet(fuser: Fuser) -> Uint8Array:
    """Fuse the sample pairs of a task and lay them out, (H, W, 3) RGB uint8."""
    task, rows = fuser.task, []
    for paths in sample_paths(task.name):
        pair = read_pair(paths)
        images = [pair.a, pair.b, fuser.fuse(pair.a, pair.b)]
        y, x, side = find_detail(pair.a, pair.b, _TILE_PX // 2)
        details = [image[y : y + side, x : x + side] for image in images]
        rows.append(MontageRow(images, [task.description_a, task.description_b, f"fused ({paths.name})"]))
        rows.append(MontageRow(details, ["200 %"] * len(details)))
    return montage(rows, _TILE_PX)


def find_detail(a: Array, b: Array, side: int) -> tuple[int, int, int]:
    """Find the square with most texture in either source.

    Args:
        a: Source a, (H, W) or (H, W, 3).
        b: Source b, same height and width.
        side: Side of the square; limited to the size of the image.

    Returns:
        Top, left and side, in pixels.
    """
    height, width = a.shape[:2]
    side = min(side, height, width)
    texture = np.maximum(_gradient(a), _gradient(b))
    sums = cv2.boxFilter(texture, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    y, x = np.unravel_index(np.argmax(sums[: height - side + 1, : width - side + 1]), (height - side + 1, width - side + 1))
    return int(y), int(x), side


def write_below(path: Path, image: Array, largest_bytes: int) -> int:
    """Write a JPEG in the best quality that stays below a size.

    Returns:
        The quality.

    Raises:
        OutputError: None does.
    """
    for quality in _QUALITIES:
        write_image(path, image, jpeg_quality=quality)
        if path.stat().st_size < largest_bytes:
            return quality
    path.unlink()
    raise OutputError(f"the sheet {path} does not fit into {largest_bytes} bytes", "choose smaller tiles")


def _gradient(image: Array) -> Float32Array:
    luma, _ = split(to_display_range(image, sensor=False))
    plane = np.asarray(luma, np.float32)
    # Square root: one bright edge should not outweigh a textured region.
    magnitude: Float32Array = np.sqrt(np.hypot(cv2.Sobel(plane, -1, 1, 0), cv2.Sobel(plane, -1, 0, 1)))
    return magnitude


if __name__ == "__main__":
    sys.exit(main())
