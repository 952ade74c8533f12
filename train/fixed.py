"""Training with fixed weights: the control run, and the source of the provisional weights that ship.

python -m refusion_edge.train.fixed --task ir_vis --a DIR --b DIR --output ir_vis.safetensors
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from refusion_edge.checkpoint import Checkpoint, write_safetensors
from refusion_edge.model import FusionNetwork
from refusion_edge.pairs import find_pairs
from refusion_edge.tasks import TASKS
from refusion_edge.train.crops import LumaPairs, crop_batch, load_luma_pairs
from refusion_edge.train.losses import fixed_weights, fusion_loss


@dataclass(frozen=True, slots=True)
class FixedRun:
    """Settings of a run with fixed weights.

    Attributes:
        task: Name of the task; chooses the weights.
        steps: Number of optimiser steps.
        batch: Crops per step before the swap; each is fused in both orders.
        crop_px: Side of a crop.
        learning_rate: Peak of the schedule: linear warm-up, then a cosine to 2 %.
        warmup_steps: Length of the warm-up.
        gradient_coefficient: Final factor of the gradient term; it rises linearly from a fifth of it over the
            first 30 % of the run.
        ema_decay: Decay of the moving average of the parameters, which is what is saved.
        seed: Seed of initialisation and crops.
    """

    task: str
    steps: int = 1500
    batch: int = 2
    crop_px: int = 80
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    gradient_coefficient: float = 1.0
    ema_decay: float = 0.995
    seed: int = 0


def learning_rate(run: FixedRun, step: int) -> float:
    """Learning rate of a step."""
    if step < run.warmup_steps:
        return run.learning_rate * (step + 1) / run.warmup_steps
    progress = (step - run.warmup_steps) / max(1, run.steps - run.warmup_steps)
    return run.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def gradient_coefficient(run: FixedRun, step: int) -> float:
    """Factor of the gradient term at a step."""
    rise = min(1.0, step / (0.3 * run.steps))
    return run.gradient_coefficient * (0.2 + 0.8 * rise)


def train(run: FixedRun, pairs: LumaPairs, *, report_every: int = 50) -> FusionNetwork:
    """Train from scratch and return the moving average of the network.

    Every crop is fused in both orders, so that the network does not learn which input is which.
    """
    torch.manual_seed(run.seed)
    # Depthwise convolutions on a CPU are several times faster with the channels innermost.
    network = FusionNetwork()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch 2.13's stubs
    average = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    started = time.monotonic()
    for step in range(run.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(run, step)
        loss = _loss(run, network, step, *crop_batch(pairs, step, batch=run.batch, crop_px=run.crop_px, seed=run.seed))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        decay = min(run.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        if (step + 1) % report_every == 0 or step + 1 == run.steps:
            elapsed_s = time.monotonic() - started
            remaining_s = elapsed_s / (step + 1) * (run.steps - step - 1)
            print(
                f"step {step + 1}/{run.steps}  loss {loss.item():.4f}  {elapsed_s:.0f} s, {remaining_s:.0f} s left", flush=True
            )
    return average


def _loss(run: FixedRun, network: FusionNetwork, step: int, a: Tensor, b: Tensor) -> Tensor:
    first, second = torch.cat((a, b)), torch.cat((b, a))
    fused = network(first.contiguous(memory_format=torch.channels_last), second.contiguous(memory_format=torch.channels_last))
    weights = fixed_weights(run.task, first, second)
    return fusion_loss(fused, first, second, weights, gradient_coefficient(run, step))


def main(argv: list[str] | None = None) -> int:
    """Run one training from the command line."""
    parser = argparse.ArgumentParser(description="Train the fusion network with fixed loss weights.")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--a", required=True, help="folder of source a")
    parser.add_argument("--b", required=True, help="folder of source b")
    parser.add_argument("--exclude", default=None, metavar="PREFIX", help="leave out pairs whose name starts with this")
    parser.add_argument("--output", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=FixedRun("").steps)
    parser.add_argument("--crop", type=int, default=FixedRun("").crop_px)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)

    torch.set_num_threads(options.threads)
    run = FixedRun(options.task, steps=options.steps, crop_px=options.crop)
    found = find_pairs(options.a, options.b).pairs
    kept = [pair for pair in found if options.exclude is None or not pair.name.startswith(options.exclude)]
    pairs = load_luma_pairs(kept, run.crop_px)
    print(f"{run.task}: {len(pairs.names)} pairs of at least {run.crop_px}x{run.crop_px} pixels")
    started = time.monotonic()
    network = train(run, pairs)
    state = {name: tensor.contiguous().numpy() for name, tensor in network.state_dict().items()}
    notes = {
        "run": json.dumps(asdict(run)),
        "training": "fixed weights (control run), no learned loss",
        "pairs": str(len(pairs.names)),
        "minutes": f"{(time.monotonic() - started) / 60:.1f}",
        "torch": torch.__version__,
    }
    write_safetensors(options.output, Checkpoint(run.task, state, notes))
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
