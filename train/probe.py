"""Time training steps on this machine, and propose a crop and batch size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from refusion_edge.errors import BackendError
from refusion_edge.train.crops import CropSource, crop_batch
from refusion_edge.train.losses import LossWeights
from refusion_edge.train.meta import (
    Batch,
    FusionObjective,
    MetaRule,
    Networks,
    fusion_gradient,
    meta_gradient,
    reconstruction_gradient,
)
from refusion_edge.train.optimization import apply
from refusion_edge.train.settings import Settings
from refusion_edge.train.state import TrainingState, initial_state
from refusion_edge.train.targets import targets_of

CPU_CROPS_PX, CPU_BATCHES = (64, 96, 128), (2, 4)
CUDA_CROPS_PX, CUDA_BATCHES = (128, 192), (8, 16, 32)
_REPEATS = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """Cost of a step for one crop and batch size.

    Attributes:
        crop_px: Side of a crop.
        batch: Pairs per step.
        update_s: Seconds of a step that updates F and R.
        cycle_s: Seconds of a step that is also a meta cycle.
        peak_mib: Peak memory on a GPU, or None.
    """

    crop_px: int
    batch: int
    update_s: float
    cycle_s: float
    peak_mib: float | None

    def run_s(self, settings: Settings) -> float:
        """Seconds that the steps of a run take."""
        meta = settings.meta
        cycles = 0.0 if meta.engine == "off" else (1 - meta.warm_up) * (0.5 if meta.phase else 1 / meta.every)
        return settings.run.steps * (self.update_s + cycles * (self.cycle_s - self.update_s))

    @property
    def pixels_per_s(self) -> float:
        """Pixels processed per second of updates."""
        return self.batch * self.crop_px**2 / self.update_s


def update_step(networks: Networks, state: TrainingState, batch: Batch, objective: FusionObjective) -> None:
    """Take one step that updates F and R."""
    weights = _weights(networks, state, batch)
    fusion = fusion_gradient(networks, state.theta, batch, weights, objective)
    judged = reconstruction_gradient(networks, state.rho, fusion.fused, batch)
    apply(state.optimizers["fusion"], state.theta, fusion.gradient, 1e-6)
    apply(state.optimizers["reconstruction"], state.rho, judged.gradient, 1e-6)


def cycle_step(
    networks: Networks, state: TrainingState, batch: Batch, test: Batch, objective: FusionObjective, rule: MetaRule
) -> None:
    """Take one step that is a meta cycle and an update: inner, look-ahead, J v, outer, F and R."""
    phi = {name: tensor.detach().requires_grad_() for name, tensor in state.phi.items()}
    weights = networks.propose(phi, *batch.compared)
    fusion = fusion_gradient(networks, state.theta, batch, weights, objective)
    outer = meta_gradient(networks, state.theta, phi, state.rho, batch, test, weights, fusion, objective, rule)
    judged = reconstruction_gradient(networks, state.rho, fusion.fused, batch)
    apply(state.optimizers["proposal"], state.phi, outer.gradient, 1e-6)
    apply(state.optimizers["fusion"], state.theta, fusion.gradient, 1e-6)
    apply(state.optimizers["reconstruction"], state.rho, judged.gradient, 1e-6)


def probe(
    settings: Settings, networks: Networks, pairs: CropSource, device: torch.device, shapes: Sequence[tuple[int, int]]
) -> list[Timing]:
    """Time steps of several shapes; shapes that do not fit into GPU memory are left out.

    Args:
        settings: Settings of the run.
        networks: Its networks.
        pairs: Pairs to draw crops from.
        device: Where to run.
        shapes: Sides of a crop in pixels, and pairs per step.

    Returns:
        Best of two calls after one warm-up call each, on the wall clock, with the device idle at both ends.

    Raises:
        BackendError: No shape fits into GPU memory.
    """
    objective = FusionObjective(settings.loss.gradient, settings.loss.coefficient, settings.loss.intensity)
    engine = "exact" if settings.meta.engine == "off" else settings.meta.engine
    meta = settings.meta
    rule = MetaRule(engine, meta.inner_rate, meta.adapt_reconstruction, meta.centered, settings.outer)
    state = initial_state(settings, device)
    timings = []
    for crop_px, batch in shapes:
        try:
            train, test = (_draw(pairs, step, batch, crop_px, device, settings) for step in (0, 1))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.machine.bf16, cache_enabled=False):
                update_s = _best_s(lambda: update_step(networks, state, train, objective), device)  # noqa: B023
                cycle_s = _best_s(lambda: cycle_step(networks, state, train, test, objective, rule), device)  # noqa: B023
        except torch.OutOfMemoryError:
            continue
        peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
        timings.append(Timing(crop_px, batch, update_s, cycle_s, peak))
    if not timings:
        raise BackendError("not even the smallest shape fits into the GPU's memory", "free some or use --device cpu")
    return timings


def shapes_for(device: torch.device, least_side_px: int) -> list[tuple[int, int]]:
    """Shapes worth timing on a device, as sides of a crop and pairs per step."""
    crops, batches = (CUDA_CROPS_PX, CUDA_BATCHES) if device.type == "cuda" else (CPU_CROPS_PX, CPU_BATCHES)
    fitting = [crop_px for crop_px in crops if crop_px <= least_side_px] or [least_side_px]
    return [(crop_px, batch) for crop_px in fitting for batch in batches]


def propose_shape(timings: Sequence[Timing], settings: Settings, max_s: float) -> Timing:
    """The shape with most pixels per second whose run fits into the time, or else the one with the fastest run.

    Args:
        timings: At least one.
        settings: Settings of the run.
        max_s: Time for the run in seconds.
    """
    fitting = [timing for timing in timings if timing.run_s(settings) <= max_s]
    if fitting:
        return max(fitting, key=lambda timing: timing.pixels_per_s)
    return min(timings, key=lambda timing: timing.run_s(settings))


def _draw(pairs: CropSource, step: int, batch: int, crop_px: int, device: torch.device, settings: Settings) -> Batch:
    a, b = (plane.to(device) for plane in crop_batch(pairs, step, batch=batch, crop_px=crop_px, seed=0))
    targets = targets_of(a, b, settings.targets) if settings.targets.depart else None
    return Batch.in_both_orders(a, b, targets=targets)


@torch.no_grad()
def _weights(networks: Networks, state: TrainingState, batch: Batch) -> LossWeights:
    return networks.propose(state.phi, *batch.compared)


def _best_s(step: Callable[[], None], device: torch.device) -> float:
    step()
    times = []
    for _ in range(_REPEATS):
        _wait(device)
        started = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
