"""How far meta-gradients of independent batches agree: whether P would learn or drift.

python -m benchmarks.meta_agreement RUN --data DIR [--pairs 1 2 8] [--batches 8] [--set SECTION.KEY=VALUE ...] [--device auto]
    [--json FILE]

Takes F, P and R from a run's newest checkpoint and prints, for each batch size, the mean cosine between the
meta-gradients of independent batches (1: all agree, 0: noise) with its standard error by jackknife over the batches, the mean
norm, and the seconds that one meta-gradient takes. Settings changed by ``--set`` give another rule, another outer objective
(``outer.*``), other data (``tone.*``) or another P (``proposal.*``), which then is at its start.

Before that, the leverage of P on these crops: the mean of w (1 - w) |a - b|, by which a change of a logit changes what
the intensity term asks for, relative to the largest possible one, |a - b| / 4; the same for v and gradient magnitudes.
A saturated prior, or sources that agree, leave P nothing to decide.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusion_edge.files import write_atomically
from refusion_edge.tasks import find_task
from refusion_edge.train.collection import PairCollection, split_held, survey
from refusion_edge.train.diagnostics import agreement
from refusion_edge.train.layers import Parameters
from refusion_edge.train.loop import build_networks
from refusion_edge.train.losses import gradient_magnitude
from refusion_edge.train.meta import Batch, FusionObjective, MetaRule, fusion_gradient, meta_gradient
from refusion_edge.train.networks import propose
from refusion_edge.train.session import choose_device
from refusion_edge.train.settings import Settings, with_assignments
from refusion_edge.train.state import TrainingState, initial_state, read_state, restore
from refusion_edge.train.targets import targets_of
from refusion_edge.train.views import Views

SCHEMA = "refusion-edge/bench-meta-agreement/2"

# Streams of their own, so that no crop is one of the run's steps.
_TRAIN, _TEST = 11, 12
_SEEN_PAIRS = 32


@dataclass(frozen=True, slots=True)
class Agreement:
    """Meta-gradients of independent batches of one size.

    Attributes:
        pairs: Pairs of a batch of meta-train, and of one of meta-test; each in both orders.
        batches: Number of such batches.
        cosine: Mean cosine between their meta-gradients.
        error: Its standard error, by jackknife over the batches.
        norm: Mean norm of the meta-gradients.
        seconds: Time of one meta-gradient.
    """

    pairs: int
    batches: int
    cosine: float
    error: float
    norm: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured.

    Attributes:
        settings: Settings of a run whose P learns.
        state: Its networks.
        views: Pairs to draw crops from.
        crop_px: Side of a crop.
    """

    settings: Settings
    state: TrainingState
    views: Views
    crop_px: int

    def batch(self, stream: int, index: int, pairs: int) -> Batch:
        """Draw a batch; the same numbers give the same."""
        crops = self.views.draw(index, batch=pairs, crop_px=self.crop_px, stream=stream)
        like = next(iter(self.state.theta.values()))
        figures = crops.figures.to(like) if self.settings.run.network == "fast" else None
        a, b = crops.a.to(like), crops.b.to(like)
        seen_a = None if crops.seen_a is None else crops.seen_a.to(like)
        targets = targets_of(a, b, self.settings.targets) if self.settings.targets.depart else None
        return Batch.in_both_orders(a, b, figures, targets=targets, seen_a=seen_a)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, or one of its checkpoints")
    parser.add_argument("--data", type=Path, required=True, help="folder of pairs, as for training")
    parser.add_argument("--exclude", action="append", default=[], metavar="PREFIX", help="leave out pairs with such names")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 8], help="pairs per batch; each in both orders")
    parser.add_argument("--crop", type=int, default=64, help="side of a crop")
    parser.add_argument("--batches", type=int, default=8, help="independent batches")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting of the run")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers as JSON")
    options = parser.parse_args()

    device = choose_device(options.device)
    task = read_state(options.run).task
    entries = split_held(survey(options.data, find_task(task), options.crop, exclude=options.exclude).entries, 0.1)[0]
    subject = subject_of(options.run, options.set, PairCollection(entries), options.crop, device)
    print(f"{options.run}, step {subject.state.counters.step}, {options.batches} batches, crops of {options.crop}, {device}")
    document: dict[str, Any] = {
        "schema": SCHEMA, "step": subject.state.counters.step, "crop_px": options.crop, "device": str(device),
        "leverage": leverages(subject), "rows": [],
    }  # fmt: skip
    for name, value in document["leverage"].items():
        print(f"leverage of {name}: {value:.3f}")
    print("pairs  agreement        norm  seconds")
    for pairs in options.pairs:
        found = measure_agreement(subject, pairs, options.batches)
        print(f"{pairs:5}  {found.cosine:5.2f} ± {found.error:4.2f}  {found.norm:8.1e}  {found.seconds:7.2f}", flush=True)
        document["rows"].append(asdict(found))
    if options.json:
        write_atomically(options.json, (json.dumps(document, indent=1) + "\n").encode())
    return 0


def subject_of(
    run: Path, assignments: Sequence[str], collection: PairCollection, crop_px: int, device: torch.device
) -> Subject:
    """Take the networks of a run, with some settings changed.

    Args:
        run: Folder of a run, or one of its checkpoints.
        assignments: ``section.key=value`` on top of its settings.
        collection: Pairs to draw from.
        crop_px: Side of a crop.
        device: Where to measure.
    """
    checkpoint = read_state(run)
    learning = "meta.engine=exact", "meta.reconstruct=true"
    settings = with_assignments(checkpoint.settings, (*learning, *assignments))
    state = initial_state(checkpoint.settings, device)
    restore(state, checkpoint)
    if settings.proposal != checkpoint.settings.proposal:
        state.phi = initial_state(settings, device).phi
    views = Views(collection, settings.tone, settings.run.seed, settings.teacher.variants, shift=settings.shift)
    return Subject(settings, state, views, crop_px)


def measure_agreement(subject: Subject, pairs: int, batches: int) -> Agreement:
    """Measure how far the meta-gradients of independent batches agree."""
    started = time.perf_counter()
    found = [_meta_gradient(subject, index, pairs) for index in range(batches)]
    seconds = (time.perf_counter() - started) / batches
    norm = torch.stack([gradient.norm() for gradient in found]).mean().item()
    return Agreement(pairs, batches, agreement(found), jackknife_error(found, agreement), norm, seconds)


def jackknife_error(samples: Sequence[Tensor], estimate: Callable[[Sequence[Tensor]], float]) -> float:
    """Standard error of an estimate: from the estimates without one sample each.

    Source:
        Tukey, 1958; Arvesen, "Jackknifing U-statistics", 1969.
    """
    count = len(samples)
    without = [estimate([*samples[:index], *samples[index + 1 :]]) for index in range(count)]
    mean = sum(without) / count
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in without))


@torch.no_grad()
def leverages(subject: Subject) -> dict[str, float]:
    """Leverage of P on w and on v."""
    seen = subject.batch(_TRAIN, 0, _SEEN_PAIRS)
    proposed = propose(subject.settings.proposal, subject.state.phi, *seen.compared)
    sides = seen.first, seen.second
    return {
        "w": leverage(proposed.intensity, *sides),
        "v": leverage(proposed.gradient, *(gradient_magnitude(plane) for plane in sides)),
    }


def leverage(weight: Tensor, first: Tensor, second: Tensor) -> float:
    """How much of its largest possible say a proposal has, [0, 1].

    Args:
        weight: Weight of the first input, (B, 1, H, W).
        first: What is weighted of the first input, same shape.
        second: The same of the second.
    """
    difference = (first - second).abs()
    return ((4 * weight * (1 - weight) * difference).sum() / difference.sum()).item()


def _meta_gradient(subject: Subject, index: int, pairs: int) -> Tensor:
    settings, state = subject.settings, subject.state
    networks, meta = build_networks(settings), settings.meta
    train, test = (subject.batch(stream, index, pairs) for stream in (_TRAIN, _TEST))
    phi: Parameters = {name: tensor.detach().requires_grad_() for name, tensor in state.phi.items()}
    weights = networks.propose(phi, *train.compared)
    objective = FusionObjective(settings.loss.gradient, settings.loss.coefficient, settings.loss.intensity)
    inner = fusion_gradient(networks, state.theta, train, weights, objective)
    rule = MetaRule("exact", meta.inner_rate, meta.adapt_reconstruction, meta.centered, settings.outer)
    found = meta_gradient(networks, state.theta, phi, state.rho, train, test, weights, inner, objective, rule)
    return torch.cat([tensor.flatten().cpu() for tensor in found.gradient.values()])


if __name__ == "__main__":
    raise SystemExit(main())
