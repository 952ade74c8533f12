"""Apply known homographies to real infrared-visible pairs and see how well ``align auto`` recovers them.

Run as ``python -m benchmarks.alignment`` from the repository's root, with the pairs in ``--data`` (a folder with ``ir`` and
``vis``). The infrared image is shifted by up to 40 pixels, rotated by up to 3 degrees and scaled by 0.9 to 1.1 about its
center; uncovered pixels are black, as a warp leaves them.

Two errors are printed, both RMS over the visible image in its pixels:

* ``known``: against the applied homography as if the given pair were registered perfectly;
* ``recovered``: against the applied homography after the alignment that the same method finds for the untouched pair. This
  removes the misalignment of the given pair itself, which is printed as ``pair``.

The rendered sample pairs of the package are registered exactly; they are moved in the same way, and only ``known`` counts.

Only accepted results count as recovered; a refusal counts as not recovered.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

# One core: these have to be set before the libraries are loaded.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cv2
import numpy as np

from refusion_edge.calibration.rig.motion import apart_px
from refusion_edge.calibration.rig.scene import SceneAlignment, align_scene
from refusion_edge.errors import AlignmentError
from refusion_edge.images.pairs import ImagePair, find_pairs, read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.rig.model import Matrix

GOOD_PX, WORST_PX, LEAST_GOOD = 1.0, 3.0, 0.8
SAMPLE_MOVES = 5
SHIFT_PX, ROTATION_DEG, SCALE = 40.0, 3.0, 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result for one pair; errors are infinite if the alignment was refused."""

    accepted: bool
    known_px: float
    recovered_px: float
    pair_px: float
    stated_px: float


def main() -> int:
    """Print one line for each pair and the shares; returns 1 if a limit on ``recovered`` is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ir_vis/test"), help="folder with ir and vis")
    parser.add_argument("--every", type=int, default=1, help="take every n-th pair (default: all)")
    parser.add_argument("--first", type=int, default=0, help="index of the first pair")
    parser.add_argument("--seed", type=int, default=20261122, help="seed of the homographies")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    pairs = find_pairs(str(options.data / "ir"), str(options.data / "vis")).pairs[options.first :: options.every]
    rng = np.random.default_rng(options.seed)
    outcomes: list[tuple[str, Outcome]] = []
    print(f"{len(pairs)} pairs of {options.data}, seed {options.seed}, OpenCV {cv2.__version__}")
    started_s = time.process_time()
    for paths in pairs:
        pair = read_pair(paths)
        outcome, note = _try(pair, random_homography(rng, pair.b.shape[1], pair.b.shape[0]))
        outcomes.append((pair.name.split("__")[0], outcome))
        print(
            f"{pair.name:30} {'accepted' if outcome.accepted else 'refused':8}  known {outcome.known_px:6.2f}  recovered "
            f"{outcome.recovered_px:6.2f}  pair {outcome.pair_px:6.2f}  stated {outcome.stated_px:5.2f}  {note}",
            flush=True,
        )
    taken_s = (time.process_time() - started_s) / (2 * len(pairs))
    print(f"processor time {taken_s:.2f} s for each alignment, one core")
    for name in [*sorted({name for name, _ in outcomes}), "all"]:
        _summary(name, [outcome for own, outcome in outcomes if name in (own, "all")])
    _samples(rng)
    accepted = [outcome.recovered_px for _, outcome in outcomes if outcome.accepted]
    good = sum(error <= GOOD_PX for error in accepted) / len(outcomes)
    print(f"wanted: at least {100 * LEAST_GOOD:.0f} % recovered to {GOOD_PX:g} px, and none accepted beyond {WORST_PX:g} px")
    return int(good < LEAST_GOOD or max(accepted, default=0.0) > WORST_PX)


def random_homography(rng: np.random.Generator, width: int, height: int) -> Matrix:
    """A shift, rotation and scale about the center of an image, from points of the image to points of the moved one."""
    angle = np.deg2rad(rng.uniform(-ROTATION_DEG, ROTATION_DEG))
    scale = rng.uniform(1 - SCALE, 1 + SCALE)
    center = np.array([width - 1, height - 1]) / 2
    homography = np.eye(3)
    homography[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    homography[:2, 2] = center - homography[:2, :2] @ center + rng.uniform(-SHIFT_PX, SHIFT_PX, 2)
    return homography


def _try(pair: ImagePair, homography: Matrix) -> tuple[Outcome, str]:
    size_wh = (pair.b.shape[1], pair.b.shape[0])
    moved = cv2.warpPerspective(pair.a, homography, size_wh, flags=cv2.INTER_LINEAR)
    try:
        found: SceneAlignment = align_scene(pair.b, moved)
        own = align_scene(pair.b, pair.a)
    except AlignmentError as error:
        return Outcome(False, np.inf, np.inf, np.inf, np.inf), str(error)
    outcome = Outcome(
        accepted=not found.doubts,
        known_px=apart_px(homography, found.homography, size_wh),
        recovered_px=apart_px(homography @ own.homography, found.homography, size_wh),
        pair_px=apart_px(np.eye(3), own.homography, size_wh),
        stated_px=found.evidence.error_px,
    )
    return outcome, f"{found.model}{': ' if found.doubts else ''}{', '.join(map(str, found.doubts))}"


def _samples(rng: np.random.Generator) -> None:
    errors: list[float] = []
    for paths in sample_paths("ir_vis") * SAMPLE_MOVES:
        pair = read_pair(paths)
        size_wh = (pair.b.shape[1], pair.b.shape[0])
        homography = random_homography(rng, *size_wh)
        found = align_scene(pair.b, cv2.warpPerspective(pair.a, homography, size_wh, flags=cv2.INTER_LINEAR))
        errors.append(np.inf if found.doubts else apart_px(homography, found.homography, size_wh))
    print(
        f"{'samples':10} {len(errors):4} moves of rendered pairs, {np.isfinite(errors).sum():4} accepted | known: median "
        f"{np.median(errors):.2f}, worst {max(errors):.2f}"
    )


def _summary(name: str, outcomes: list[Outcome]) -> None:
    count, accepted = len(outcomes), [outcome for outcome in outcomes if outcome.accepted]
    if not accepted:
        print(f"{name:10} {count:4} pairs, none accepted")
        return
    known, recovered = (np.array([getattr(each, key) for each in accepted]) for key in ("known_px", "recovered_px"))
    pair = np.median([outcome.pair_px for outcome in accepted])
    shares = []
    for what, errors in (("recovered", recovered), ("known", known)):
        good = 100 * (errors <= GOOD_PX).sum() / count
        shares.append(
            f"{what}: <= {GOOD_PX:g} px {good:3.0f} % of all, median {np.median(errors):.2f}, worst {errors.max():.2f}"
        )
    print(
        f"{name:10} {count:4} pairs, {len(accepted):4} accepted | {' | '.join(shares)} | pairs by themselves: median {pair:.2f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
