"""What each setting of ``[targets]`` gains and costs: metrics of the corrected teacher's result, without any training.

python -m benchmarks.targets --data DIR [--every N] [NAME=VALUE[,NAME=VALUE...] ...]

DIR holds the training pairs of ``ir_vis``. The pairs are those that training holds back, every Nth of them. Each argument is
one row, with the settings of ``refusion_edge.train.targets.TargetSettings``; without arguments, each setting is measured by
itself. A network that learns from the teacher can come close to these numbers. Metrics are of the conventions ``evaluator`` and
``appearance``, on the stretched result; ``Lost`` is the sum over the images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.weights import METRICS, held_pairs
from refusion_edge import load
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.images.color import to_output_range
from refusion_edge.metrics import find_metric, score
from refusion_edge.tasks import find_task
from refusion_edge.train.targets import TargetSettings, targets_of

NAMES = tuple(name.rpartition(":")[2] for name in METRICS["ir_vis"])
"""Names of the metrics."""
_PARTS = ("", "clipped=1", "grain=0.012", "grain=0.025", "gaps=0.5", "hot=0.7", "detail=0.1")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ir/ and vis/")
    parser.add_argument("--exclude", action="append", default=[], metavar="PREFIX", help="leave out pairs with such names")
    parser.add_argument("--teacher", default="ir_vis", help="weights of the teacher (default: ir_vis)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth of the pairs (default: 1)")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="one row each, joined by commas")
    options = parser.parse_args()

    pairs = [(pair.a, pair.b) for pair in held_pairs(options.data, find_task("ir_vis"), options.exclude)[:: options.every]]
    with load(options.teacher, task="ir_vis") as fuser:
        taught = [fuser.backend.fuse(plane(a), plane(b)).copy() for a, b in pairs]
    print(f"{len(pairs)} pairs\n{'targets':24}" + "".join(f"{name:>8}" for name in NAMES))
    for text in options.settings or _PARTS:
        settings = TargetSettings(**{name: float(value) for name, _, value in (s.partition("=") for s in text.split(",") if s)})
        rows = [scores_of(a, b, _corrected(a, b, lesson, settings)) for (a, b), lesson in zip(pairs, taught, strict=True)]
        print(f"{text or 'none':24}" + "".join(f"{value:8.3f}" for value in means_of(rows)), flush=True)
    return 0


def scores_of(a: Array, b: Array, fused: Array) -> list[float]:
    """The metrics ``NAMES`` of a fused plane, (H, W) floating in [0, 1], after the stretch."""
    shown = np.rint(to_output_range(fused.clip(0, 1), "stretch").clip(0, 255)).astype(np.uint8)
    return list(score(a, b, shown, [find_metric(name) for name in METRICS["ir_vis"]]).values())


def means_of(rows: list[list[float]]) -> Array:
    """Means over the images where a metric is defined; the sum for ``Lost``."""
    means: Array = np.nanmean(np.array(rows), axis=0)
    means[NAMES.index("Lost")] *= len(rows)
    return means


def plane(levels: Array) -> Float32Array:
    """Luma levels as a network takes them, (1, 1, H, W), [0, 1]."""
    return (levels[None, None] / np.float32(255)).astype(np.float32)


def _corrected(a: Array, b: Array, lesson: Float32Array, settings: TargetSettings) -> Array:
    corrected = targets_of(*(torch.from_numpy(plane(levels)) for levels in (a, b)), settings, torch.from_numpy(lesson)).taught
    assert corrected is not None
    result: Array = corrected.numpy()[0, 0]
    return result


if __name__ == "__main__":
    sys.exit(main())
