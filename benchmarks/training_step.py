"""The cost of a training cycle in plain steps of F, and the savings over the official layout.

python -m benchmarks.training_step [--crop 64 96 128] [--pairs 2] [--rounds 15] [--json FILE]

All variants run in turn in one process on one thread, after one warm-up call each; the numbers are medians of process
CPU time, which the load of the machine affects less than wall time. A plain step of F is forward pass, fusion loss, backward
pass and optimizer. All variants keep freed memory, as `refusion-edge train` does; only "as it comes" runs the official layout
in a separate process that returns memory as the C library does by default.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.official_layout import official_fuse
from refusion_edge.machine import keep_freed_memory
from refusion_edge.network.model import FusionNetwork
from refusion_edge.train.loop import build_networks
from refusion_edge.train.meta import Batch, Engine, FusionObjective, MetaRule, Networks, fusion_gradient
from refusion_edge.train.optimization import apply
from refusion_edge.train.probe import cycle_step, update_step
from refusion_edge.train.settings import resolve
from refusion_edge.train.state import initial_state

PLAIN = "F step, as training does it"
OFFICIAL = "F step, official layout"
AS_IT_COMES = "F step, official layout, as it comes"


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
        options.json.write_text(json.dumps({"schema": "refusion-edge/bench-training/3", "medians_s": medians}, indent=2) + "\n")
    return 0


class Scene:
    """Training inputs: fresh parameters and two batches of noise."""

    def __init__(self, crop_px: int, pairs: int) -> None:
        settings = resolve("default", "ir_vis", device="cpu")
        self.networks = build_networks(settings)
        self.state = initial_state(settings, torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        planes = [torch.rand(pairs, 1, crop_px, crop_px, generator=generator) for _ in range(4)]
        self.batch, self.test = Batch.in_both_orders(*planes[:2]), Batch.in_both_orders(*planes[2:])
        self.weights = self.networks.propose(self.state.phi, *planes[:2])
        self.objective = FusionObjective(settings.loss.gradient, 1.0)
        self.official = Networks(official_fuse, self.networks.propose, self.networks.reconstruct, official_fuse)

    def f_step(self, variant: Networks) -> None:
        """One plain step of F."""
        step = fusion_gradient(variant, self.state.theta, self.batch, self.weights, self.objective)
        apply(self.state.optimizers["fusion"], self.state.theta, step.gradient, 1e-6)

    def cycle(self, engine: Engine) -> None:
        """One cycle with P."""
        cycle_step(self.networks, self.state, self.batch, self.test, self.objective, MetaRule(engine, 1e-2))

    def official_difference(self) -> float:
        """How far the official layout, written anew, is from the model."""
        network = FusionNetwork()
        network.load_state_dict(self.state.theta)
        a, b = self.batch.first, self.batch.second
        return (official_fuse(self.state.theta, a, b) - network(a, b)).abs().max().item()


def cpu_time_s(step: Callable[[], None]) -> float:
    """CPU time of this process for one step."""
    started = time.process_time()
    step()
    return time.process_time() - started


def serve_official(questions: Connection, crop_px: int, pairs: int) -> None:
    """Time a step of the official layout whenever asked, in a process that gives memory back."""
    torch.set_num_threads(1)
    scene = Scene(crop_px, pairs)
    while questions.recv():
        questions.send(cpu_time_s(lambda: scene.f_step(scene.official)))


def measure(crop_px: int, pairs: int, rounds: int) -> dict[str, float]:
    """Time and print all variants on one shape; returns median seconds by name."""
    scene = Scene(crop_px, pairs)
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    apart = spawning.Process(target=serve_official, args=(there, crop_px, pairs), daemon=True)
    apart.start()

    def official_apart() -> float:
        here.send(True)
        seconds: float = here.recv()
        return seconds

    engines: tuple[Engine, ...] = ("exact", "exact-fd", "pixel", "double")
    variants: dict[str, Callable[[], float]] = {
        AS_IT_COMES: official_apart,
        OFFICIAL: lambda: cpu_time_s(lambda: scene.f_step(scene.official)),
        PLAIN: lambda: cpu_time_s(lambda: scene.f_step(scene.networks)),
        "update of F and R": lambda: cpu_time_s(lambda: update_step(scene.networks, scene.state, scene.batch, scene.objective)),
        **{f"cycle, {engine}": partial(cpu_time_s, partial(scene.cycle, engine)) for engine in engines},
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for timed in variants.values():
        timed()
    for _ in range(rounds):
        for name, timed in variants.items():
            times[name].append(timed())
    here.send(False)
    apart.join()

    medians = {name: statistics.median(found) for name, found in times.items()}
    plain = medians[PLAIN]
    difference = scene.official_difference()
    print(f"\n{2 * pairs} x {crop_px}x{crop_px}; the official layout differs from the model by {difference:.1e}")
    for name, median in medians.items():
        spread = max(times[name]) / min(times[name])
        print(f"{name:36} {1e3 * median:8.1f} ms  {median / plain:5.2f} plain F steps  (slowest / fastest {spread:.2f})")
    saved, kept = medians[AS_IT_COMES] / plain, medians[OFFICIAL] / plain
    print(f"the official layout as it comes costs {saved:.2f} plain F steps (goal: at least 2.5), keeping memory {kept:.2f}")
    print(f"a cycle costs {medians['cycle, exact'] / plain:.2f} plain F steps (goal: at most 4.5)")
    return medians


if __name__ == "__main__":
    raise SystemExit(main())
