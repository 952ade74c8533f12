"""The image that minimizes a fusion loss, found by optimizing the pixels themselves, next to the results of weights.

python -m benchmarks.loss_optimum TASK --data DIR --loss NAME=SETTINGS --weights NAME=FILE [--sets SET ...] [--limit N]

Repeat ``--loss`` to compare several. SETTINGS are ``prior``, ``sharpness``, ``intensity``, ``term`` and ``coefficient``, as
``key:value`` joined by commas; missing ones come from the preset ``default``. No network takes part, so a metric that is
low here is out of reach for a network trained with this loss, unless its errors happen to help. Tables as in
``benchmarks.weights``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.weights import METRICS, Fuse, fuser_of, measure, print_tables, test_cases
from refusion_edge.arrays import Float32Array
from refusion_edge.tasks import find_task
from refusion_edge.train.losses import LossWeights, fusion_loss
from refusion_edge.train.priors import PRIORS
from refusion_edge.train.settings import resolve

STEPS = 150
_RATE, _LAST_RATE = 0.03, 5e-4


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=METRICS)
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK/test/SOURCE")
    parser.add_argument("--loss", action="append", required=True, metavar="NAME=SETTINGS", help="repeatable")
    parser.add_argument("--weights", required=True, metavar="NAME=FILE", help="the reference")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these sets")
    parser.add_argument("--limit", type=int, default=3, metavar="N", help="first N pairs of each set (default: 3, 0 for all)")
    options = parser.parse_args()

    task = find_task(options.task)
    fusers: dict[str, Fuse] = {}
    for argument in options.loss:
        name, _, text = argument.partition("=")
        fusers[name] = loss_optimum(task.name, dict(part.split(":") for part in text.split(",") if part))
    reference, fuse = fuser_of(options.weights, task)
    fusers[reference] = fuse
    cases = [c for c in test_cases(task, options.data, options.limit) if not options.sets or c.group in options.sets]
    print_tables(cases, {name: [measure(fuse, task, case) for case in cases] for name, fuse in fusers.items()})
    return 0


def loss_optimum(task: str, given: Mapping[str, str]) -> Fuse:
    """Create a fusion function that minimizes a loss over the pixels, starting from the mean of the sources."""
    settings = resolve("default", task, device="cpu")
    prior = PRIORS[given.get("prior", settings.proposal.prior)]
    sharpness = float(given.get("sharpness", settings.proposal.gradient_sharpness))
    coefficient = float(given.get("coefficient", settings.loss.coefficient))
    term, intensity = given.get("term", settings.loss.gradient), given.get("intensity", settings.loss.intensity)

    def fuse(first: Float32Array, second: Float32Array) -> Float32Array:
        a, b = torch.from_numpy(first.copy()), torch.from_numpy(second.copy())
        weights = LossWeights.from_logits(prior(a, b, sharpness))
        fused = ((a + b) / 2).requires_grad_()
        optimizer = torch.optim.Adam([fused], lr=_RATE)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = _RATE * (1 - step / STEPS) + _LAST_RATE
            optimizer.zero_grad()
            fusion_loss(fused, a, b, weights, coefficient, term, intensity).backward()
            optimizer.step()
            with torch.no_grad():
                fused.clamp_(0, 1)
        return fused.detach().numpy()

    return fuse


if __name__ == "__main__":
    sys.exit(main())
