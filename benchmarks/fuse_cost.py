"""What ``fuse`` costs besides the network: reading, luma and color, and writing one 640x480 pair, as PNG and as JPEG.

Run as ``python -m benchmarks.fuse_cost`` from the repository's root. The images are a rendered street, enlarged; infrared is
gray, visible is in color. Printed are medians of the processor time of each step, which a busy machine changes least, and
their sum beside the network. The goal is a sum of at most twice the network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from refusion_edge.fuser import load
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.pairs import PairPaths, read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.machine import processor

SIZE_WH = (640, 480)
MOST_TIMES = 2.0
_WARM_UP = 3

T = TypeVar("T")


def main() -> int:
    """Print the table; returns 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="fast", help="network (default: fast)")
    parser.add_argument("--pairs", type=int, default=30, help="pairs of each format (default: 30)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"{processor()}, one thread, {SIZE_WH[0]}x{SIZE_WH[1]}, {options.pairs} pairs, processor time in ms")
    missed = False
    for suffix in (".png", ".jpg"):
        taken_ms = _steps(options.network, suffix, options.pairs)
        total_ms, network_ms = sum(taken_ms.values()), taken_ms["network"]
        steps = ", ".join(f"{name} {spent:.1f}" for name, spent in taken_ms.items())
        print(f"{suffix}: {steps}; together {total_ms:.1f}, {total_ms / network_ms:.2f} times the network")
        missed |= total_ms > MOST_TIMES * network_ms
    print(f"wanted: at most {MOST_TIMES:g} times the network")
    return int(missed)


def _steps(network: str, suffix: str, pairs: int) -> dict[str, float]:
    taken_s: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, work: Callable[[], T]) -> T:
        before_s = time.process_time()
        result = work()
        taken_s[name].append(time.process_time() - before_s)
        return result

    with tempfile.TemporaryDirectory() as name, load("ir_vis", network=network, threads=1) as fuser:
        folder = Path(name)
        street = sample_paths("ir_vis")[-1]
        for side, path in (("ir", street.a), ("vis", street.b)):
            image = cv2.resize(read_image(path), SIZE_WH, interpolation=cv2.INTER_CUBIC)
            write_image(folder / f"{side}{suffix}", image.astype(np.uint8, copy=False))
        paths = PairPaths("street", folder / f"ir{suffix}", folder / f"vis{suffix}")
        for _ in range(pairs + _WARM_UP):
            pair = timed("reading", lambda: read_pair(paths))
            planes = timed("luma", lambda pair=pair: fuser.to_planes(*pair.stills))
            output = timed("network", lambda planes=planes: fuser.infer(planes))
            image = timed("color", lambda output=output, planes=planes: fuser.to_image(output, planes))
            timed("writing", lambda image=image: write_image(folder / f"fused{suffix}", image))
    return {name: 1000 * float(np.median(times[_WARM_UP:])) for name, times in taken_s.items()}


if __name__ == "__main__":
    raise SystemExit(main())
