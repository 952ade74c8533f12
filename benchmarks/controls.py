"""What each part of a training of ``fast`` is worth: short runs that differ from a first one in one thing only.

python -m benchmarks.controls --data DIR -o FOLDER [--steps N] [NAME ...]

DIR holds the training pairs of ``ir_vis``. Each run has the settings of the first run of the model card, the same crops in
the same order (except with another seed), and the same schedule. A run whose weights are in FOLDER is not repeated, and one
that was interrupted continues. The rows are the results on the pairs that training holds back, stretched, by metrics of the
conventions ``evaluator`` and ``appearance``; ``Lost`` is the sum over the images, and ``PSNR`` the mean closeness to the
teacher's result before the stretch.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.targets import NAMES, means_of, plane, scores_of
from benchmarks.weights import Fuse, held_pairs
from refusion_edge import load
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.files import write_atomically
from refusion_edge.machine import keep_freed_memory
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import find_task
from refusion_edge.train.session import Console, Request, run_session
from refusion_edge.train.settings import Settings, resolve
from refusion_edge.train.views import Teacher

TASK = "ir_vis"
_CARD = (
    *("loss.intensity=absolute", "loss.coefficient=10", "loss.coefficient_start=1.0", "proposal.gradient_sharpness=256"),
    *("data.repeat.msrs=30", "data.repeat.tno=4", "tone.share=0.3"),
)
"""Settings of the first run of the model card."""
_ONLY_AT_THE_END = ("validation.images=0", "validation.every=1000000", "checkpoint.every=200")


@dataclass(frozen=True, slots=True)
class Control:
    """One run.

    Attributes:
        assignments: Its settings beside those of the card.
        has_teacher: Whether it learns from a teacher.
    """

    assignments: tuple[str, ...] = ()
    has_teacher: bool = True


CONTROLS = {
    "baseline": Control(),
    "seed 1": Control(("run.seed=1",)),
    "seed 2": Control(("run.seed=2",)),
    "loss alone": Control(has_teacher=False),
    "teacher alone": Control(("teacher.loss=0",)),
    "no statistics": Control(("optimizer.frozen=['statistics.']",)),
    "32 channels": Control(("fast.channels=32",)),
    "16 channels": Control(("fast.channels=16",)),
}


def main() -> int:
    """Train what is missing, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ir/ and vis/")
    parser.add_argument("--exclude", action="append", default=[], metavar="PREFIX", help="leave out pairs with such names")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="steps of each run (default: 2000)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of PyTorch (default: 1)")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(CONTROLS)}")
    options = parser.parse_args()
    if unknown := set(options.names) - CONTROLS.keys():
        parser.error(f"there is no control {', '.join(sorted(unknown))}")

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    pairs = [(pair.a, pair.b) for pair in held_pairs(options.data, find_task(TASK), options.exclude)]
    with load(TASK, threads=options.threads) as fuser:
        teacher = _remembering(weights_path(TASK), fuser.backend.fuse, options.output / "taught")
        taught = [teacher.fuse(plane(a), plane(b)) for a, b in pairs]
        print(f"{len(pairs)} pairs, {options.steps} steps\n{'run':16}" + "".join(f"{name:>8}" for name in (*NAMES, "PSNR")))
        for name in options.names or CONTROLS:
            weights = _trained(CONTROLS[name], options, options.output / name.replace(" ", "-"), teacher)
            with load(weights, threads=options.threads) as trained:
                fused = [trained.backend.fuse(plane(a), plane(b)).copy() for a, b in pairs]
            scores = means_of([scores_of(a, b, result[0, 0]) for (a, b), result in zip(pairs, fused, strict=True)])
            closeness = np.mean([_psnr(result, target) for result, target in zip(fused, taught, strict=True)])
            print(f"{name:16}" + "".join(f"{value:8.3f}" for value in (*scores, closeness)), flush=True)
    return 0


def settings_of(control: Control, steps: int) -> Settings:
    """The settings of a run, apart from its teacher."""
    return resolve("default", TASK, device="cpu", assignments=_assignments(control, steps), network="fast")


def _assignments(control: Control, steps: int) -> tuple[str, ...]:
    return (*_CARD, *_ONLY_AT_THE_END, f"run.steps={steps}", *control.assignments)


def _trained(control: Control, options: argparse.Namespace, folder: Path, teacher: Teacher) -> Path:
    weights = folder / f"{TASK}.safetensors"
    if not weights.exists():
        request = Request(
            task=TASK,
            data=options.data,
            output=folder,
            assignments=_assignments(control, options.steps),
            exclude=tuple(options.exclude),
            auto_resume=True,
            device="cpu",
            network="fast",
            teacher=teacher if control.has_teacher else None,
        )
        outcome = run_session(request, Console(lambda _: None, lambda files: files, lambda *_: None))
        if not outcome.finished:
            sys.exit(f"stopped at step {outcome.step}; the same command continues")
    elif (steps := read_checkpoint(weights).notes.get("step")) != str(options.steps):
        sys.exit(f"{weights} comes from a run of {steps} steps, not {options.steps}; choose another --output")
    return weights


def _remembering(weights: Path, fuse: Fuse, folder: Path) -> Teacher:
    """A teacher that fuses a pair once for all runs."""
    folder.mkdir(parents=True, exist_ok=True)

    def remembered(a: Float32Array, b: Float32Array) -> Float32Array:
        path = folder / f"{hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest()}.npy"
        if not path.exists():
            data = io.BytesIO()
            np.save(data, fuse(a, b))
            write_atomically(path, data.getvalue())
        result: Float32Array = np.load(path)
        return result

    return Teacher(TASK, TASK, hashlib.sha256(weights.read_bytes()).hexdigest(), remembered)


def _psnr(result: Array, target: Array) -> float:
    return float(-10 * np.log10(np.mean((result.astype(np.float64) - target) ** 2)))


if __name__ == "__main__":
    sys.exit(main())
