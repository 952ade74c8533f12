"""Make two sequences of different frame rates from one registered pair, as two cameras on one moving mount record them.

python -m examples.two_rates OUTPUT [--ir IR.png --vis VIS.png]
refusion-edge stream --ir OUTPUT/ir --vis OUTPUT/vis --policy hold --record RECORDING --hash -o fused.mkv
refusion-edge stream --replay RECORDING --hash -o again.mkv

A window of three quarters of the pair swings from side to side. Each camera sees through it at the times of its own frames:
the infrared one at 9 Hz, in 16-bit counts with the noise of a sensor, the visible one at 30 Hz and some milliseconds later. So
a time difference is a known shift in the image. OUTPUT/ir and OUTPUT/vis hold PNG files and ``frames.csv`` with
their times.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.pairs import ImagePair, read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.stream.frames import MS, SECOND
from refusion_edge.stream.sources.folders import TIMES_NAME

_WINDOW = 3 / 4
_COLDEST_COUNTS, _COUNTS_PER_LEVEL, _NOISE_COUNTS = 21_000.0, 12.0, 4.0


@dataclass(frozen=True, slots=True)
class Swing:
    """How the two cameras look at the pair.

    Attributes:
        seconds: Length.
        ir_hz: Frames per second of the infrared camera.
        vis_hz: Frames per second of the visible camera.
        vis_late_ms: How much later the first visible frame is taken.
        period_s: Time of one swing to the right and back.
    """

    seconds: float = 4.0
    ir_hz: float = 9.0
    vis_hz: float = 30.0
    vis_late_ms: float = 4.0
    period_s: float = 4.0

    def left_top(self, size_wh: tuple[int, int], time_ns: int) -> tuple[int, int]:
        """Position of the window in an image of this size."""
        room_x, room_y = (side - int(side * _WINDOW) for side in size_wh)
        share = (1 - math.cos(2 * math.pi * time_ns / SECOND / self.period_s)) / 2
        return round(room_x * share), room_y // 2


def main() -> int:
    """Write the two folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--ir", metavar="FILE", help="infrared image (default: the sample pair street)")
    parser.add_argument("--vis", metavar="FILE", help="visible image of the same size")
    options = parser.parse_args()
    if (options.ir is None) != (options.vis is None):
        parser.error("--ir and --vis belong together, and only one was given; add the other")
    street = next(paths for paths in sample_paths("ir_vis") if paths.name == "street")
    pair = read_pair(street) if options.ir is None else ImagePair("pair", read_image(options.ir), read_image(options.vis))
    write_sequences(pair, options.output, Swing())
    return 0


def write_sequences(pair: ImagePair, folder: Path, swing: Swing) -> None:
    """Write what both cameras see.

    Args:
        pair: Infrared and visible image of one size, 8 bit.
        folder: Where; gets the folders ``ir`` and ``vis``.
        swing: How they look at it.
    """
    if pair.a.shape[:2] != pair.b.shape[:2]:
        raise SystemExit(f"the images have different sizes, {pair.a.shape[:2]} and {pair.b.shape[:2]}; name two of one size")
    gray = pair.a if pair.a.ndim == 2 else pair.a.mean(axis=2)
    draw = np.random.default_rng(0)
    ir = (_with_noise(window, time_ns, draw) for window, time_ns in _windows(gray, swing, swing.ir_hz, 0.0))
    for name, frames in (("ir", ir), ("vis", _windows(pair.b, swing, swing.vis_hz, swing.vis_late_ms))):
        (folder / name).mkdir(parents=True)
        with (folder / name / TIMES_NAME).open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("file", "time_ns"))
            for number, (image, time_ns) in enumerate(frames):
                write_image(folder / name / f"{number:06d}.png", image)
                table.writerow((f"{number:06d}.png", time_ns))


def _with_noise(levels: Array, time_ns: int, draw: np.random.Generator) -> tuple[Array, int]:
    counts = _COLDEST_COUNTS + _COUNTS_PER_LEVEL * levels + draw.normal(0, _NOISE_COUNTS, levels.shape)
    return np.rint(counts).astype(np.uint16), time_ns


def _windows(image: Array, swing: Swing, rate_hz: float, late_ms: float) -> Iterator[tuple[Array, int]]:
    size_wh = (image.shape[1], image.shape[0])
    width, height = (int(side * _WINDOW) for side in size_wh)
    for number in range(int(swing.seconds * rate_hz)):
        time_ns = round(number * SECOND / rate_hz + late_ms * MS)
        left, top = swing.left_top(size_wh, time_ns)
        yield np.ascontiguousarray(image[top : top + height, left : left + width]), time_ns


if __name__ == "__main__":
    raise SystemExit(main())
