"""How close weights of ``fast`` come to those of the paper's network for ``ir_vis``, set by set.

python -m benchmarks.closeness --data DIR [--weights FILE] [--teacher FILE] [--sets SET ...] [--limit N]

DIR holds ``ir_vis/test/SOURCE/SET__NAME.ext``. PSNR and SSIM of both results before the stretch: the mean over the pairs of a
set and the lowest of them, over all pixels and outside clipped areas. The teacher loses the detail of one source where the
other one is clipped, so a difference there need not be a fault. A pixel is outside if none of either source is clipped (from
0.955 of full scale on, as in ``refusion_edge.train.targets``) within 12 pixels, about as far as ``fast`` sees. ``share`` is
that of such pixels. Pairs without any count only in the columns of all pixels.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.weights import test_cases
from refusion_edge import load
from refusion_edge.accuracy.gate import similarity
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.images.luma import to_planes
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import find_task

TASK = "ir_vis"
_CLIPPED, _REACH_PX = 0.955, 12


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ir_vis/test/SOURCE")
    parser.add_argument(
        "--weights", type=Path, default=weights_path(TASK, "fast"), metavar="FILE", help="default: shipped ones"
    )
    parser.add_argument("--teacher", type=Path, default=weights_path(TASK), metavar="FILE", help="default: shipped ones")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these sets")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="first N pairs of each set only")
    options = parser.parse_args()
    task = find_task(TASK)
    rows: dict[str, list[tuple[float, ...]]] = {}
    with load(options.weights, task=TASK, threads=1) as student, load(options.teacher, task=TASK, threads=1) as teacher:
        for case in test_cases(task, options.data, options.limit):
            if options.sets and case.group not in options.sets:
                continue
            planes = to_planes(case.pair.a, case.pair.b, task)
            fused, expected = (each.backend.fuse(planes.a, planes.b)[0, 0].copy() for each in (student, teacher))
            outside = outside_clipped(planes.a[0, 0], planes.b[0, 0])
            everywhere = np.ones_like(outside)
            rows.setdefault(case.group, []).append(
                (*closeness(fused, expected, everywhere), *closeness(fused, expected, outside), float(outside.mean()))
            )
    print("| set, pairs | PSNR | lowest | SSIM | PSNR outside | lowest | SSIM outside | share |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for group, found in rows.items():
        psnr, ssim, psnr_outside, ssim_outside, share = np.array(found).T
        cells = [f"{psnr.mean():.1f} dB", f"{psnr.min():.1f}", f"{ssim.mean():.3f}"]
        cells += [f"{np.nanmean(psnr_outside):.1f} dB", f"{np.nanmin(psnr_outside):.1f}", f"{np.nanmean(ssim_outside):.3f}"]
        print(f"| {group}, {len(found)} | {' | '.join(cells)} | {share.mean():.2f} |")
    return 0


def outside_clipped(a: Float32Array, b: Float32Array) -> NDArray[np.bool_]:
    """Pixels that are not near a clipped one of either source, (H, W)."""
    clipped = (np.maximum(a, b) >= _CLIPPED).astype(np.uint8)
    side = 2 * _REACH_PX + 1
    return np.asarray(cv2.dilate(clipped, np.ones((side, side), np.uint8)) == 0)


def closeness(fused: Array, expected: Array, where: NDArray[np.bool_]) -> tuple[float, float]:
    """PSNR in dB and SSIM of the pixels in a mask; NaN if there are none."""
    if not where.any():
        return math.nan, math.nan
    x, y = (plane.astype(np.float64) * 255 for plane in (fused, expected))
    error = float(np.square(x - y)[where].mean())
    return 10 * math.log10(255**2 / max(error, 1e-12)), float(similarity(x, y)[where].mean())


if __name__ == "__main__":
    sys.exit(main())
