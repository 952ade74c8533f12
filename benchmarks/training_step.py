"""What one training cycle costs in plain steps of F, and what the channels-last layout saves.

python -m benchmarks.training_step [--crop 64 96 128] [--pairs 2] [--rounds 15] [--json FILE]

All variants run in turn in one process on one thread, after one warm-up call each; the numbers are medians of process
CPU time, which the load of the machine moves less than the wall clock. A plain step of F is forward pass, fusion loss,
backward pass and optimiser. Memory is kept by the process, as `refusion-edge train` does it, for all variants alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.official_layout import official_fuse
from refusion_edge.model import FusionNetwork
from refusion_edge.train.loop import build_networks
from refusion_edge.train.memory import keep_freed_memory
from refusion_edge.train.meta import Batch, Engine, FusionObjective, MetaRule, Networks, fusion_gradient
from refusion_edge.train.optimisers import apply
from refusion_edge.train.probe import cycle_step, update_step
from refusion_edge.train.settings import resolve
from refusion_edge.train.state import initial_state


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, nargs="+", default=[64, 96, 128], help="sides of a crop")
    parser.add_argument("--pairs", type=int, default=2, help="pairs per step; each is fused in both orders")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the numbers as JSON")
    options = parser.parse_args()

    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, median CPU time of {options.rounds} rounds")
    medians = {str(crop_px): measure(crop_px, options.pairs, options.rounds) for crop_px in options.crop}
    if options.json:
        options.json.write_text(json.dumps({"schema": "refusion-edge/bench-training/2", "medians_s": medians}, indent=2) + "\n")
    return 0


def measure(crop_px: int, pairs: int, rounds: int) -> dict[str, float]:
    """Time all variants on one shape and print them; name to median seconds."""
    settings = resolve("default", "ir_vis", device="cpu")
    networks = build_networks(settings)
    state = initial_state(settings, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    planes = [torch.rand(pairs, 1, crop_px, crop_px, generator=generator) for _ in range(4)]
    batch, test = Batch.in_both_orders(*planes[:2]), Batch.in_both_orders(*planes[2:])
    weights = networks.propose(state.phi, *planes[:2])
    objective = FusionObjective(settings.loss.gradient, 1.0)
    official = Networks(official_fuse, networks.propose, networks.reconstruct, official_fuse)
    network = FusionNetwork()
    network.load_state_dict(state.theta)
    difference = (official_fuse(state.theta, batch.first, batch.second) - network(batch.first, batch.second)).abs().max().item()

    def f_step(variant: Networks) -> None:
        step = fusion_gradient(variant, state.theta, batch, weights, objective)
        apply(state.optimisers["fusion"], state.theta, step.gradient, 1e-6)

    def cycle(engine: Engine) -> Callable[[], None]:
        rule = MetaRule(engine, 1e-2)
        return lambda: cycle_step(networks, state, batch, test, objective, rule)

    variants: dict[str, Callable[[], None]] = {
        "F step, official layout": lambda: f_step(official),
        "F step, channels-last": lambda: f_step(networks),
        "update of F and R": lambda: update_step(networks, state, batch, objective),
        "cycle, exact": cycle("exact"),
        "cycle, exact-fd": cycle("exact-fd"),
        "cycle, pixel": cycle("pixel"),
        "cycle, double": cycle("double"),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for step in variants.values():
        step()
    for _ in range(rounds):
        for name, step in variants.items():
            started = time.process_time()
            step()
            times[name].append(time.process_time() - started)

    medians = {name: statistics.median(found) for name, found in times.items()}
    plain = medians["F step, channels-last"]
    print(f"\n{2 * pairs} x {crop_px}x{crop_px}; the official layout differs from the model by {difference:.1e}")
    for name, median in medians.items():
        spread = max(times[name]) / min(times[name])
        print(f"{name:24} {1e3 * median:8.1f} ms  {median / plain:5.2f} plain F steps  (slowest / fastest {spread:.2f})")
    print(f"channels-last saves a factor of {medians['F step, official layout'] / plain:.2f} (goal: at least 2.5)")
    print(f"a cycle costs {medians['cycle, exact'] / plain:.2f} plain F steps (goal: at most 4.5)")
    return medians


if __name__ == "__main__":
    raise SystemExit(main())
