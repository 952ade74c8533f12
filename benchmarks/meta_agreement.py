"""How far meta-gradients of independent batches agree: whether P would learn or drift.

python -m benchmarks.meta_agreement RUN --data DIR [--pairs 1 2 8] [--batches 8] [--device auto]
    [--json FILE]

Takes F, P and R from a run's newest checkpoint and prints, for each batch size, the mean cosine between the
meta-gradients of independent batches (1: all agree, 0: noise), as they are and with the brightness shift left out, and
seconds and peak GPU memory of one meta-gradient. First with the run's tone curves, as it trains, then without: R cannot
know which curve a source went through, so its errors in brightness differ from crop to crop.

Before that, the leverage of P on these crops: the mean of w (1 - w) |a - b|, by which a change of a logit changes what
the intensity term asks for, relative to the largest possible one, |a - b| / 4; the same for v and gradient magnitudes.
A saturated prior, or sources that agree, leave P nothing to decide.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusion_edge.files import write_atomically
from refusion_edge.tasks import find_task
from refusion_edge.train.augmentation import ToneSettings
from refusion_edge.train.collection import PairCollection, survey
from refusion_edge.train.crops import PLAIN, crop_batch
from refusion_edge.train.diagnostics import agreement
from refusion_edge.train.loop import build_networks
from refusion_edge.train.losses import gradient_magnitude
from refusion_edge.train.meta import Batch, FusionObjective, MetaRule, fusion_gradient, meta_gradient
from refusion_edge.train.session import choose_device
from refusion_edge.train.state import initial_state, read_state, restore

SCHEMA = "refusion-edge/bench-meta-agreement/1"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run whose P may learn, or one of its checkpoints")
    parser.add_argument("--data", type=Path, required=True, help="folder of pairs, as for training")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 8], help="pairs per batch; each in both orders")
    parser.add_argument("--crop", type=int, default=64, help="side of a crop")
    parser.add_argument("--batches", type=int, default=8, help="independent batches")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers as JSON")
    options = parser.parse_args()

    device = choose_device(options.device)
    checkpoint = read_state(options.run)
    settings = replace(checkpoint.settings, meta=replace(checkpoint.settings.meta, engine="exact"))
    state = initial_state(settings, device)
    restore(state, checkpoint)
    networks = build_networks(settings)
    collection = PairCollection(survey(options.data, find_task(checkpoint.task), options.crop).entries)
    objective = FusionObjective(settings.loss.gradient, settings.loss.coefficient, settings.loss.intensity)

    def batch(stream: int, index: int, pairs: int, tone: ToneSettings) -> Batch:
        crops = crop_batch(
            collection, index, batch=pairs, crop_px=options.crop, seed=settings.run.seed, stream=stream, tone=tone
        )
        return Batch.in_both_orders(*(plane.to(device) for plane in crops))

    def gradient(index: int, pairs: int, tone: ToneSettings, *, centred: bool) -> Tensor:
        # Streams of their own, so that no crop is one of the run's steps.
        train, test = batch(11, index, pairs, tone), batch(12, index, pairs, tone)
        phi = {name: tensor.detach().requires_grad_() for name, tensor in state.phi.items()}
        weights = networks.propose(phi, train.a[:pairs], train.b[:pairs])
        inner = fusion_gradient(networks, state.theta, train, weights, objective)
        rule = MetaRule("exact", settings.meta.inner_rate, settings.meta.adapt_reconstruction, centred)
        found = meta_gradient(networks, state.theta, phi, state.rho, train, test, weights, inner, objective, rule)
        return torch.cat([tensor.flatten().cpu() for tensor in found.gradient.values()])

    print(f"{checkpoint.path}, step {checkpoint.counters.step}, {options.batches} batches, crops of {options.crop}, {device}")
    seen = batch(11, 0, 4 * max(options.pairs), settings.tone)
    with torch.no_grad():
        proposed = networks.propose(state.phi, *(plane.chunk(2)[0] for plane in (seen.a, seen.b)))
    document: dict[str, Any] = {
        "schema": SCHEMA, "step": checkpoint.counters.step, "batches": options.batches, "crop_px": options.crop,
        "device": str(device), "leverage": {}, "rows": [],
    }  # fmt: skip
    for name, weight, view in (
        ("w", proposed.intensity, torch.clone),
        ("v", proposed.gradient, gradient_magnitude),
    ):
        document["leverage"][name] = leverage(weight, view(seen.first), view(seen.second))
        print(f"leverage of {name}: {document['leverage'][name]:.3f}")
    print("curves  pairs  agreement  centred  seconds  peak MiB")
    for curves, tone in (("the run's", settings.tone), ("none", PLAIN)):
        if curves == "none" and settings.tone.share == 0:
            break
        for pairs in options.pairs:
            started = time.perf_counter()
            plain = [gradient(index, pairs, tone, centred=False) for index in range(options.batches)]
            seconds = (time.perf_counter() - started) / options.batches
            centred = [gradient(index, pairs, tone, centred=True) for index in range(options.batches)]
            peak_bytes = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
            row = {
                "curves": curves,
                "pairs": pairs,
                "agreement": agreement(plain),
                "centred": agreement(centred),
                "seconds": seconds,
            }
            document["rows"].append({**row, "peak_bytes": peak_bytes})
            peak = "       -" if peak_bytes is None else f"{peak_bytes / 2**20:8.0f}"
            print(f"{curves:9}{pairs:4}  {row['agreement']:9.2f}  {row['centred']:7.2f}  {seconds:7.2f}  {peak}", flush=True)
    if options.json:
        write_atomically(options.json, (json.dumps(document, indent=1) + "\n").encode())
    return 0


def leverage(weight: Tensor, first: Tensor, second: Tensor) -> float:
    """How much of its largest possible say a proposal has, [0, 1].

    Args:
        weight: Weight of the first input, (B, 1, H, W).
        first: What is weighted of the first input, same shape.
        second: The same of the second.
    """
    difference = (first - second).abs()
    return ((4 * weight * (1 - weight) * difference).sum() / difference.sum()).item()


if __name__ == "__main__":
    raise SystemExit(main())
