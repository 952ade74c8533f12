"""Draw what the loss proposal network learned: its weight maps at several points of a training run.

python -m examples.weight_maps CHECKPOINT [CHECKPOINT ...] -o maps.png [--a A.png --b B.png]

The checkpoints are the ``step-NNNNNNN.safetensors`` files of one run. The sheet shows both sources, the weights of the
prior alone, the weights w (intensity) and v (gradient) of source a at each checkpoint (white: source a counts, black:
source b counts), and below them the learned change from the prior, scaled so that the largest change in the
sheet is white or black; gray means no change. It also prints the mean and the largest change.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refusion_edge.arrays import Uint8Array
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.luma import to_luma8
from refusion_edge.images.montage import MontageRow, montage
from refusion_edge.images.samples import sample_paths
from refusion_edge.tasks import find_task
from refusion_edge.train.losses import LossWeights
from refusion_edge.train.networks import prior_weights, propose
from refusion_edge.train.state import TrainingCheckpoint, initial_state, read_state, restore

_TILE_PX = 220


def main() -> int:
    """Draw one sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--a", metavar="FILE", help="source a (default: the first sample pair of the task)")
    parser.add_argument("--b", metavar="FILE", help="source b")
    options = parser.parse_args()

    checkpoints = [read_state(path) for path in options.checkpoints]
    task = find_task(checkpoints[0].task)
    sample = sample_paths(task.name)[0]
    files = options.a or sample.a, options.b or sample.b
    a, b = (to_luma8(read_image(path), role) for path, role in zip(files, task.roles, strict=True))
    planes = [torch.from_numpy(plane[None, None] / np.float32(255)) for plane in (a, b)]
    prior = prior_weights(checkpoints[0].settings.proposal, *planes)
    learned = [_weights(checkpoint, *planes) for checkpoint in checkpoints]

    titles = [f"step {checkpoint.counters.step}" for checkpoint in checkpoints]
    rows = []
    for name, source, described, base, maps in (
        ("w", a, task.description_a, prior.intensity, [weights.intensity for weights in learned]),
        ("v", b, task.description_b, prior.gradient, [weights.gradient for weights in learned]),
    ):
        captions = [described, f"{name}, prior", *(f"{name}, {title}" for title in titles)]
        rows.append(MontageRow([source, *map(_gray, (base, *maps))], captions))
        changes = [found - base for found in maps]
        largest = max(float(change.abs().max()) for change in changes)
        blank = np.full_like(a, 255)
        enlarged = [_gray(0.5 + change / (2 * largest or 1)) for change in changes]
        captions = ["", f"white: +{largest:.4f}", *(f"change of {name}" for _ in titles)]
        rows.append(MontageRow([blank, blank, *enlarged], captions))
        for title, change in zip(titles, changes, strict=True):
            print(f"{name} at {title}: mean change {float(change.mean()):+.5f}, largest {float(change.abs().max()):.5f}")
    write_image(options.output, montage(rows, _TILE_PX))
    return 0


@torch.no_grad()
def _weights(checkpoint: TrainingCheckpoint, a: Tensor, b: Tensor) -> LossWeights:
    """Weights of source a as first input."""
    state = initial_state(checkpoint.settings, torch.device("cpu"))
    restore(state, checkpoint)
    both = propose(checkpoint.settings.proposal, state.phi, a, b)
    return LossWeights(both.intensity[:1], both.gradient[:1])


def _gray(plane: Tensor) -> Uint8Array:
    image: Uint8Array = np.rint(plane[0, 0].numpy() * 255).astype(np.uint8)
    return image


if __name__ == "__main__":
    sys.exit(main())
