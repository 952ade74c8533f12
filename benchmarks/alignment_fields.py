"""Cut one image of real infrared-visible pairs, and see whether ``align auto`` finds out from where.

Run as ``python -m benchmarks.alignment_fields FOLDER`` from the repository's root; the folder has the subfolders ``ir`` and
``vis`` of registered pairs. From the infrared or the visible image of each pair, a part of 45, 62 or 80 % of the width and
height is cut out at a random place; cases take turns over the pairs, so that a subset of them is a fair sample. Nothing tells
``align_scene`` the size of the part.

Two errors are printed. Both are mean distances of the four corners of the part from where they should be, in pixels of the
whole image:

* ``known``: against the cut, as if the given pair were registered perfectly;
* ``own``: against the cut and the alignment that ``align_scene`` finds for the whole pair (``--own``). Many public pairs are
  off by several pixels by themselves, which this leaves out. Where the whole pair is refused, it is ``known``.

``--wrong`` compares cut images of different scenes instead: every one that is accepted is wrong.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# One core: these have to be set before the libraries are loaded.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cv2
import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.coarse import SearchRange
from refusion_edge.calibration.rig.scene import SceneAlignment, align_scene
from refusion_edge.errors import AlignmentError
from refusion_edge.images.pairs import PairPaths, find_pairs, read_pair
from refusion_edge.rig.model import SOURCE_NAMES, Matrix, SourceName
from refusion_edge.rig.warp import warp_points

PARTS = (0.45, 0.62, 0.8)
LEAST_ACCEPTED, WORST_PX = 0.8, 3.0
_ALIGNED_PX = 640
_REGISTERED = SearchRange(shift=0.05, rotation_deg=2.0, field=(0.95, 1.05))


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A pair one of whose images is cut.

    Attributes:
        name: Name of the pair, or of both.
        cut: Source that is cut.
        part: Width and height of the cut image over those of the whole one.
        ir: Infrared image.
        vis: Visible image.
        whole: Both images before the cut.
        shift: Point of the cut image to point of the whole one.
    """

    name: str
    cut: SourceName
    part: float
    ir: Array
    vis: Array
    whole: tuple[Array, Array]
    shift: Matrix


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a case; errors are infinite if there is no alignment at all, and ``step`` is a pixel as it is aligned."""

    part: float
    accepted: bool
    known_px: float
    own_px: float
    stated_px: float
    step: float = 1.0

    @property
    def aligned_px(self) -> float:
        """``own`` in pixels of the image as it is aligned, at most 640 pixels wide."""
        return self.own_px / self.step


def main() -> int:
    """Print one line for each case and the shares; returns 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="FOLDER", help="folder with ir and vis")
    parser.add_argument("--every", type=int, default=1, help="take every n-th pair (default: all)")
    parser.add_argument("--first", type=int, default=0, help="index of the first pair")
    parser.add_argument("--cuts", type=int, default=6, help="cuts of each pair, of the six of a part and a source (default: 6)")
    parser.add_argument("--own", action="store_true", help="also align the whole pair, and measure against that")
    parser.add_argument("--wrong", action="store_true", help="pair each image with one of another scene")
    parser.add_argument("--seed", type=int, default=20261129, help="seed of the places and of the wrong scenes")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    pairs = find_pairs(str(options.data / "ir"), str(options.data / "vis")).pairs
    registered: dict[str, Matrix | None] = {}
    cases = _cases(pairs, options.first, options.every, options.cuts, options.seed, wrong=options.wrong)
    print(f"{len(pairs)} pairs in {options.data}, seed {options.seed}, OpenCV {cv2.__version__}")
    outcomes: list[Outcome] = []
    taken_s = 0.0
    for case in cases:
        started_s = time.process_time()
        try:
            found: SceneAlignment | None = align_scene(case.vis, case.ir)
            note = "; ".join(map(str, found.doubts)) if found else ""
        except AlignmentError as error:
            found, note = None, error.problem
        taken_s += time.process_time() - started_s
        outcome = _measured(case, found, registered if options.own else None)
        outcomes.append(outcome)
        print(
            f"{case.name:40} {case.cut:3} {case.part:.2f} {'accepted' if outcome.accepted else 'refused':8}  known "
            f"{outcome.known_px:7.2f}  own {outcome.own_px:7.2f}  stated {outcome.stated_px:6.2f}  {note}",
            flush=True,
        )
    print(f"processor time {taken_s / max(len(outcomes), 1):.2f} s for each alignment, one core")
    for part in (*PARTS, None):
        _summary(part, [outcome for outcome in outcomes if part in (outcome.part, None)])
    accepted = [outcome.own_px for outcome in outcomes if outcome.accepted]
    if options.wrong:
        return int(bool(accepted))
    print(f"wanted: at least {100 * LEAST_ACCEPTED:.0f} % accepted, none beyond {WORST_PX:g} px")
    return int(len(accepted) < LEAST_ACCEPTED * len(outcomes) or max(accepted, default=0.0) > WORST_PX)


def _cases(pairs: Sequence[PairPaths], first: int, every: int, cuts: int, seed: int, *, wrong: bool) -> Iterator[Case]:
    kinds = [(part, cut) for cut in SOURCE_NAMES for part in PARTS]
    for number, index in enumerate(range(first, len(pairs), every)):
        pair = read_pair(pairs[index])
        for turn in range(cuts):
            part, cut = kinds[(number + turn) % len(kinds)]
            rng = np.random.default_rng((seed, index, turn))
            name, ir, vis = pair.name, pair.a, pair.b
            if wrong:
                other = read_pair(pairs[(index + int(rng.integers(1, len(pairs)))) % len(pairs)])
                name, vis = f"{name} with {other.name}", other.b
            image = ir if cut == "ir" else vis
            height, width = image.shape[:2]
            own_height, own_width = round(part * height), round(part * width)
            top, left = rng.integers(0, height - own_height + 1), rng.integers(0, width - own_width + 1)
            shift = np.eye(3)
            shift[:2, 2] = left, top
            piece = np.ascontiguousarray(image[top : top + own_height, left : left + own_width])
            yield Case(name, cut, part, piece if cut == "ir" else ir, piece if cut == "vis" else vis, (ir, vis), shift)


def _measured(case: Case, found: SceneAlignment | None, registered: dict[str, Matrix | None] | None) -> Outcome:
    """Errors of a result; ``registered`` keeps the alignments of whole pairs."""
    if found is None:
        return Outcome(case.part, False, np.inf, np.inf, np.inf)
    known_px = own_px = _error_px(case, found.homography, np.eye(3))
    if registered is not None:
        if case.name not in registered:
            registered[case.name] = _registration(*case.whole)
        whole = registered[case.name]
        own_px = known_px if whole is None else _error_px(case, found.homography, whole)
    step = max(1.0, max(case.whole[0].shape[:2]) / _ALIGNED_PX)
    return Outcome(case.part, not found.doubts, known_px, own_px, found.evidence.error_px, step)


def _registration(ir: Array, vis: Array) -> Matrix | None:
    """Where a whole pair is by itself, from the visible to the infrared image; None if that is refused."""
    try:
        whole = align_scene(vis, ir, within=_REGISTERED)
    except AlignmentError:
        return None
    return None if whole.doubts else whole.homography


def _error_px(case: Case, homography: Matrix, whole: Matrix) -> float:
    """Mean distance of the corners of the cut image in pixels of the other; ``whole`` maps the whole vis to the whole ir."""
    image = case.ir if case.cut == "ir" else case.vis
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], np.float64)
    if case.cut == "ir":
        found, true = np.linalg.inv(homography), np.linalg.inv(whole) @ case.shift
    else:
        found, true = homography, whole @ case.shift
    return float(np.linalg.norm(warp_points(found, corners) - warp_points(true, corners), axis=1).mean())


def _summary(part: float | None, outcomes: list[Outcome]) -> None:
    name = "all" if part is None else f"{100 * part:.0f} %"
    accepted = [outcome for outcome in outcomes if outcome.accepted]
    if not accepted:
        print(f"{name:5} {len(outcomes):4} cases, none accepted")
        return
    known, own, aligned = (np.array([getattr(each, key) for each in accepted]) for key in ("known_px", "own_px", "aligned_px"))
    print(
        f"{name:5} {len(outcomes):4} cases, {len(accepted):4} accepted ({100 * len(accepted) / len(outcomes):.0f} %) | known: "
        f"median {np.median(known):.2f}, worst {known.max():.2f} | own: median {np.median(own):.2f}, worst {own.max():.2f}, "
        f"beyond {WORST_PX:g} px {np.count_nonzero(own > WORST_PX)} | own as aligned: worst {aligned.max():.2f}, beyond "
        f"{WORST_PX:g} px {np.count_nonzero(aligned > WORST_PX)}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
