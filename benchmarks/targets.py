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

from benchmarks.weights import METRICS
from refusion_edge import load
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.images.color import to_output_range
from refusion_edge.metrics import find_metric, score
from refusion_edge.tasks import find_task
from refusion_edge.train.collection import read_planes, split_held, survey
from refusion_edge.train.targets import TargetSettings, targets_of

_PARTS = ("", "clipped=1", "grain=0.012", "grain=0.025", "gaps=0.5", "hot=0.7")
_CROP_PX, _HELD = 128, 0.1


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ir/ and vis/")
    parser.add_argument("--exclude", action="append", default=[], metavar="PREFIX", help="leave out pairs with such names")
    parser.add_argument("--teacher", default="ir_vis", help="weights of the teacher (default: ir_vis)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth of the pairs (default: 1)")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="one row each, joined by commas")
    options = parser.parse_args()

    task = find_task("ir_vis")
    entries = split_held(survey(options.data, task, _CROP_PX, exclude=options.exclude).entries, _HELD)[1][:: options.every]
    pairs = [read_planes(entry) for entry in entries]
    with load(options.teacher, task="ir_vis") as fuser:
        taught = [fuser.backend.fuse(*map(_plane, pair)).copy() for pair in pairs]
    names = [name.rpartition(":")[2] for name in METRICS["ir_vis"]]
    print(f"{len(pairs)} pairs\n{'targets':24}" + "".join(f"{name:>8}" for name in names))
    for text in options.settings or _PARTS:
        settings = TargetSettings(**{name: float(value) for name, _, value in (s.partition("=") for s in text.split(",") if s)})
        rows = np.array([_values(a, b, lesson, settings) for (a, b), lesson in zip(pairs, taught, strict=True)])
        means = np.nanmean(rows, axis=0)
        means[names.index("Lost")] *= len(rows)
        print(f"{text or 'none':24}" + "".join(f"{value:8.3f}" for value in means), flush=True)
    return 0


def _values(a: Array, b: Array, lesson: Float32Array, settings: TargetSettings) -> list[float]:
    planes = (torch.from_numpy(_plane(plane)) for plane in (a, b))
    corrected = targets_of(*planes, settings, torch.from_numpy(lesson)).taught
    assert corrected is not None
    shown = np.rint(to_output_range(corrected.numpy()[0, 0].clip(0, 1), "stretch").clip(0, 255)).astype(np.uint8)
    return list(score(a, b, shown, [find_metric(name) for name in METRICS["ir_vis"]]).values())


def _plane(levels: Array) -> Float32Array:
    return (levels[None, None] / np.float32(255)).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
