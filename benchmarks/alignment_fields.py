"""Cut one image of real infrared-visible pairs, and see whether ``align auto`` finds out from where.

Run as ``python -m benchmarks.alignment_fields FOLDER`` from the repository's root; the folder has the subfolders ``ir`` and
``vis`` of registered pairs. From the infrared or the visible image of each pair, a part of 45, 62 or 80 % of the width and
height is cut out at a random place; cases take turns over the pairs, so that a subset of them is a fair sample. Nothing tells
``align_scene`` the size of the part.

Two errors are printed. Both are mean distances of the four corners of the part from where they should be, in pixels of the
whole image:

* ``known``: against the cut, as if the given pair were registered perfectly. Many public pairs are off by several pixels by
  themselves, so this is also summed up for those whose registration ``benchmarks.registration`` confirms (``--registrations``);
* ``own``: against the cut and the alignment that ``align_scene`` finds for the whole pair (``--own``). Where the whole pair is
  refused, it is ``known``.

``--output`` keeps the results, so that a run that was interrupted goes on where it was. ``--wrong`` compares cut images of
different scenes instead: every one that is accepted is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# One core: these have to be set before the libraries are loaded.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cv2
import numpy as np

from benchmarks.registration import Registration, read_registrations
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

    @property
    def at(self) -> list[int]:
        """Left and top of the part."""
        return [int(self.shift[0, 2]), int(self.shift[1, 2])]

    @property
    def key(self) -> tuple[str, SourceName, float, list[int]]:
        """What tells the case from others."""
        return self.name, self.cut, self.part, self.at


@dataclass(frozen=True, slots=True)
class Result:
    """What ``align_scene`` says about a case, as it is kept in the output; homographies are rows of numbers.

    Attributes:
        name: Name of the pair.
        cut: Source that was cut.
        part: Width and height of the cut image over those of the whole one.
        at: Left and top of the part.
        accepted: Whether the alignment was accepted.
        homography: The alignment, from the visible to the infrared image; None if there is none at all.
        own: That of the whole pair; None if it was refused or not tried.
        stated_px: Error that is stated.
        taken_s: Processor time.
        note: Doubts.
    """

    name: str
    cut: SourceName
    part: float
    at: list[int]
    accepted: bool
    homography: list[list[float]] | None
    own: list[list[float]] | None
    stated_px: float
    taken_s: float
    note: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result and its errors, infinite if there is no alignment at all.

    Attributes:
        part: Width and height of the cut image over those of the whole one.
        accepted: Whether the alignment was accepted.
        known_px: Error as if the pair were registered perfectly.
        own_px: Error against the alignment of the whole pair; ``known_px`` if there is none.
        confirmed: Whether the registration of the pair is confirmed.
        step: A pixel as it is aligned, at most 640 of which are one side, in pixels of the whole image.
    """

    part: float
    accepted: bool
    known_px: float
    own_px: float
    confirmed: bool
    step: float

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
    parser.add_argument("--registrations", type=Path, metavar="FILE", help="output of benchmarks.registration")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file of results to add to")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    pairs = find_pairs(str(options.data / "ir"), str(options.data / "vis")).pairs
    registrations = read_registrations(options.registrations) if options.registrations else {}
    print(f"{len(pairs)} pairs in {options.data}, seed {options.seed}, OpenCV {cv2.__version__}")
    kept = [Result(**json.loads(line)) for line in _lines(options.output)]
    outcomes: list[Outcome] = []
    taken_s = 0.0
    for case in _cases(pairs, options.first, options.every, options.cuts, options.seed, wrong=options.wrong):
        result = next((result for result in kept if (result.name, result.cut, result.part, result.at) == case.key), None)
        if result is None:
            result = _aligned(case, own=options.own)
            if options.output:
                with options.output.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(result)) + "\n")
        outcome = _outcome(case, result, registrations.get(case.name))
        outcomes.append(outcome)
        taken_s += result.taken_s
        print(
            f"{case.name:40} {case.cut:3} {case.part:.2f} {'accepted' if outcome.accepted else 'refused':8}  known "
            f"{outcome.known_px:7.2f}  own {outcome.own_px:7.2f}  stated {result.stated_px:6.2f}  {result.note}",
            flush=True,
        )
    print(f"processor time {taken_s / max(len(outcomes), 1):.2f} s for each alignment, one core")
    for part in (*PARTS, None):
        _summary(part, [outcome for outcome in outcomes if part in (outcome.part, None)], own=options.own)
    accepted = [outcome.known_px for outcome in outcomes if outcome.accepted and (outcome.confirmed or not registrations)]
    if options.wrong:
        return int(any(outcome.accepted for outcome in outcomes))
    print(f"wanted: at least {100 * LEAST_ACCEPTED:.0f} % accepted, none of a confirmed pair beyond {WORST_PX:g} px")
    share = sum(outcome.accepted for outcome in outcomes) / max(len(outcomes), 1)
    return int(share < LEAST_ACCEPTED or max(accepted, default=0.0) > WORST_PX)


def _lines(path: Path | None) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []


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


def _aligned(case: Case, *, own: bool) -> Result:
    started_s = time.process_time()
    try:
        found: SceneAlignment | None = align_scene(case.vis, case.ir)
        note = "; ".join(map(str, found.doubts)) if found else ""
    except AlignmentError as error:
        found, note = None, error.problem
    taken_s = time.process_time() - started_s
    whole = _registration(*case.whole) if own and found is not None and not found.doubts else None
    return Result(
        case.name,
        case.cut,
        case.part,
        case.at,
        accepted=found is not None and not found.doubts,
        homography=None if found is None else found.homography.tolist(),
        own=None if whole is None else whole.tolist(),
        stated_px=np.inf if found is None else found.evidence.error_px,
        taken_s=taken_s,
        note=note,
    )


def _outcome(case: Case, result: Result, registration: Registration | None) -> Outcome:
    def error_px(whole: Matrix) -> float:
        return np.inf if result.homography is None else _error_px(case, np.array(result.homography), whole)

    return Outcome(
        case.part,
        result.accepted,
        known_px=error_px(np.eye(3)),
        own_px=error_px(np.eye(3) if result.own is None else np.array(result.own)),
        confirmed=registration is not None and registration.confirmed,
        step=max(1.0, max(case.whole[0].shape[:2]) / _ALIGNED_PX),
    )


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
        found, true = np.linalg.inv(homography).astype(np.float64), np.linalg.inv(whole).astype(np.float64) @ case.shift
    else:
        found, true = homography, whole @ case.shift
    return float(np.linalg.norm(warp_points(found, corners) - warp_points(true, corners), axis=1).mean())


def _summary(part: float | None, outcomes: list[Outcome], *, own: bool) -> None:
    name = "all" if part is None else f"{100 * part:.0f} %"
    accepted = [outcome for outcome in outcomes if outcome.accepted]
    confirmed = [outcome for outcome in outcomes if outcome.confirmed]
    print(f"{name:5} {len(outcomes):4} cases, {len(accepted):4} accepted ({100 * len(accepted) / max(len(outcomes), 1):.0f} %)")
    print(f"      of confirmed pairs {len(confirmed):4} cases, {sum(outcome.accepted for outcome in confirmed):4} accepted")
    for title, errors in (
        ("known", [outcome.known_px for outcome in accepted]),
        ("known, confirmed pairs", [outcome.known_px for outcome in accepted if outcome.confirmed]),
        ("own", [outcome.own_px for outcome in accepted if own]),
        ("own as aligned", [outcome.aligned_px for outcome in accepted if own]),
    ):
        if errors:
            print(
                f"      {title:23} {len(errors):4}: median {np.median(errors):.2f} px, worst {max(errors):.2f} px, beyond "
                f"{WORST_PX:g} px {sum(error > WORST_PX for error in errors)}"
            )


if __name__ == "__main__":
    raise SystemExit(main())
