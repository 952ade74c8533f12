"""The quality of weights: compared with other weights, image by image, on the test sets.

python -m benchmarks.weights TASK --data DIR --weights NAME=FILE [--weights NAME=FILE ...] [--sets SET ...] [--limit N]
                             [--held [--exclude PREFIX ...]]
python -m benchmarks.weights TASK --data DIR --names [--held [--exclude PREFIX ...]]

DIR holds ``TASK/test/SOURCE/SET__NAME.ext``. With ``--held``, the only set is that of the pairs in ``TASK/train`` that
training holds back: decisions are made there. ``--names`` prints the names of the pairs, for the option ``--split`` of other
commands, and measures nothing. Every weights file is compared with the last one named. Per set and metric it prints the mean
of both, the mean difference per image and its standard error; ``-`` marks a mean difference below minus one standard error,
``+`` one above zero. Results are stretched, and metrics are those of the convention ``evaluator`` on grayscale images, for
``ir_vis`` also those of ``appearance``, over the images where they are defined. The exceptions:

- ``medical``: metrics inside the head. The outside (both sources black, not enclosed by either) is blanked in all
  images, which are then cropped to the box around the head. ``black`` is the mean level where both sources are exactly
  black outside, ``black-p99`` the 99th percentile there.
- ``multi_focus``: a set ``defocus`` of pairs made from visible images of ``ir_vis/test``, which no training has seen;
  PSNR and SSIM against the sharp image, without the stretch.
- All but ``defocus``: ``range``, the difference of the largest and the smallest value in [0, 1] before the stretch, which
  divides contrast by it.
- All: ``swap``, the mean change in [0, 1] of the network's output when the inputs are swapped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np

from refusion_edge import load
from refusion_edge.arrays import Float32Array, Uint8Array
from refusion_edge.images.color import OUTPUT_RANGES, merge, to_output_range
from refusion_edge.images.io import read_image
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import ImagePair, find_images, find_pairs, read_pair
from refusion_edge.metrics import Metric, find_metric, score
from refusion_edge.metrics.planes import to_gray_plane
from refusion_edge.metrics.structure import structural_similarity_gaussian
from refusion_edge.tasks import Task, find_task
from refusion_edge.train.augmentation import defocused_pair
from refusion_edge.train.collection import Entry, read_planes, split_held, survey

METRICS = {
    "ir_vis": (
        *("SD", "SF", "AG", "SCD", "VIF", "Qabf", "MI"),
        *(f"appearance:{name}" for name in ("Kept_a", "Kept_b", "Target", "Lost", "Noise", "Rim")),
    ),
    "medical": ("VIF", "Qabf", "SCD", "SD"),
    "multi_focus": ("Qabf", "VIF", "MI"),
    "multi_exposure": ("survey:MEF-SSIM", "Qabf"),
}
LOWER = ("swap", "range", "black", "black-p99", "Lost", "Noise", "Rim")
"""Measured quantities of which less is better."""

AVERAGE, MAXIMUM = "average", "max"
# Levels up to this count as black; the sources are JPEG in part.
_BLACK = 8
_DEFOCUSED = 50
# Largest crop and share of held-back pairs in the presets: they decide which pairs these are.
_CROP_PX, _HELD = 128, 0.1

Values: TypeAlias = dict[str, float]
Fuse: TypeAlias = Callable[[Float32Array, Float32Array], Float32Array]
"""Both sources to the fused plane, each (1, 1, H, W), [0, 1]."""


@dataclass(frozen=True, slots=True)
class Case:
    """One pair of a test set.

    Attributes:
        group: Name of the set.
        pair: Both sources.
        sharp: What the result should be, (H, W) uint8, where that is known.
    """

    group: str
    pair: ImagePair
    sharp: Uint8Array | None = None


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=METRICS)
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK/test/SOURCE")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE", help="repeatable; the last one is the reference; "
        "'average' and 'max' instead of a file stand for the mean and the maximum of the sources",
    )  # fmt: skip
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these sets")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="first N pairs of each set only")
    parser.add_argument("--held", action="store_true", help="pairs that training holds back, instead of the test sets")
    parser.add_argument("--exclude", action="append", default=[], metavar="PREFIX", help="with --held: as training left out")
    parser.add_argument("--names", action="store_true", help="print the names of the pairs only")
    options = parser.parse_args()
    if not (options.weights or options.names):
        parser.error("expected --weights, or --names")

    task = find_task(options.task)
    if options.held:
        pairs = held_pairs(options.data / task.name / "train", task, options.exclude)[: options.limit or None]
        cases = [Case("held-back", pair) for pair in pairs]
    else:
        cases = list(test_cases(task, options.data, options.limit))
    cases = [case for case in cases if not options.sets or case.group in options.sets]
    if options.names:
        print("\n".join(case.pair.name for case in cases))
        return 0
    found = {
        name: [measure(fuse, task, case) for case in cases]
        for name, fuse in (fuser_of(argument, task) for argument in options.weights)
    }
    print_tables(cases, found)
    return 0


def print_tables(cases: list[Case], found: dict[str, list[Values]]) -> None:
    """Print the results of each set next to those of the last entry of ``found``."""
    *names, reference = found
    for group in dict.fromkeys(case.group for case in cases):
        rows = [index for index, case in enumerate(cases) if case.group == group]
        print(f"\n{group}, {len(rows)} images, against {reference}")
        print(f"{'metric':12} {reference:>12}" + "".join(f" {name:>12} {'difference (error)':>22}" for name in names))
        for metric in found[reference][rows[0]]:
            base = np.array([found[reference][row][metric] for row in rows])
            defined = np.isfinite(base)
            if not defined.any():
                continue
            line = f"{metric:12} {base[defined].mean():12.4f}"
            for name in names:
                mine = np.array([found[name][row][metric] for row in rows])[defined]
                line += f" {mine.mean():12.4f} {_compared(mine - base[defined], lower=metric in LOWER):>22}"
            print(line + ("" if defined.all() else f"  on {defined.sum()} images"))


def _compared(differences: np.ndarray, *, lower: bool) -> str:
    mean = differences.mean()
    error = differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else np.nan
    better = -mean if lower else mean
    mark = "+" if better > 0 else "-" if better < -error else " "
    return f"{mean:+.4f} ({error:.4f}) {mark}"


def fuser_of(argument: str, task: Task) -> tuple[str, Fuse]:
    """Split ``NAME=FILE`` and open the file: returns the name and the fusion function."""
    name, _, path = argument.partition("=")
    if path == AVERAGE:
        return name, lambda a, b: (a + b) / 2
    if path == MAXIMUM:
        return name, np.maximum
    return name, load(path, task=task.name).backend.fuse


def test_cases(task: Task, data: Path, limit: int) -> Iterator[Case]:
    """Pairs of the test sets, the first ``limit`` of each (0 for all)."""
    folder = data / task.name / "test"
    counts: dict[str, int] = {}
    for paths in find_pairs(str(folder / task.folder_a), str(folder / task.folder_b)).pairs:
        group = paths.name.partition("__")[0]
        counts[group] = counts.get(group, 0) + 1
        if not limit or counts[group] <= limit:
            yield Case(group, read_pair(paths))
    if task.name == "multi_focus":
        yield from _defocused(data, limit or _DEFOCUSED)


def held_pairs(folder: Path, task: Task, exclude: Iterable[str] = ()) -> list[ImagePair]:
    """Pairs that training in this folder holds back, luma planes (H, W) uint8."""
    return [ImagePair(entry.name, *read_planes(entry)) for entry in split_entries(folder, task, exclude)[1]]


def split_entries(folder: Path, task: Task, exclude: Iterable[str] = ()) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """What training in this folder uses, and what it holds back."""
    return split_held(survey(folder, task, _CROP_PX, exclude=tuple(exclude)).entries, _HELD)


def _defocused(data: Path, count: int) -> Iterator[Case]:
    images = find_images(str(data / "ir_vis" / "test" / "vis"))
    for index, stem in enumerate([stem for stem in images if stem.startswith("roadscene")][:count]):
        sharp = np.rint(to_gray_plane(read_image(images[stem]))).astype(np.uint8)
        near, far = defocused_pair(sharp, np.random.default_rng(index))
        yield Case("defocus", ImagePair(stem, near, far), sharp)


def measure(fuse: Fuse, task: Task, case: Case) -> Values:
    """Fuse a pair and score the result."""
    a, b = case.pair.a, case.pair.b
    planes = to_planes(a, b, task)
    fused = fuse(planes.a, planes.b)[0, 0].copy()
    swap = float(np.abs(fused - fuse(planes.b, planes.a)[0, 0]).mean())
    stretched, plain = (merge(to_output_range(fused, kind), None) for kind in OUTPUT_RANGES)
    if case.sharp is not None:
        error = float(np.mean((plain.astype(np.float64) - case.sharp) ** 2))
        sharp, result = case.sharp.astype(np.float64), plain.astype(np.float64)
        similarity = structural_similarity_gaussian(sharp, sharp, result) / 2
        return {"PSNR": 10 * np.log10(255**2 / max(error, 1e-12)), "SSIM": similarity, "swap": swap}
    values: Values = {}
    if task.name == "medical":
        gray_a, gray_b = (np.rint(to_gray_plane(image)).astype(np.uint8) for image in (a, b))
        head = _head(gray_a, gray_b)
        black = stretched[~head & (np.maximum(gray_a, gray_b) == 0)]
        values["black"] = float(black.mean()) if black.size else 0.0
        values["black-p99"] = float(np.percentile(black, 99)) if black.size else 0.0
        rows, columns = np.flatnonzero(head.any(1)), np.flatnonzero(head.any(0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        a, b, stretched = ((image * head)[box] for image in (gray_a, gray_b, stretched))
    metrics: tuple[Metric, ...] = tuple(find_metric(name) for name in METRICS[task.name])
    scores = score(a, b, stretched, metrics, sensor_a=task.ranged_a)
    return {**{metric.name: scores[metric] for metric in metrics}, **values, "range": float(np.ptp(fused)), "swap": swap}


def _head(a: Uint8Array, b: Uint8Array) -> np.ndarray:
    """Mask of the pixels where a source is not black, with the areas that they enclose."""
    shown = (np.maximum(a, b) > _BLACK).astype(np.uint8)
    contours, _ = cv2.findContours(shown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(shown), contours, -1, 1, cv2.FILLED)
    return filled.astype(bool)


if __name__ == "__main__":
    sys.exit(main())
