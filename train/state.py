"""The state of a training run, and the checkpoints that hold it.

A checkpoint is one safetensors file: ``fusion.*``, ``fusion_ema.*``, ``proposal.*``, ``proposal_healthy.*``,
``reconstruction.*``, ``optim.*``, and in the metadata one JSON document with the settings and the counters. Crops are
drawn by counter, so there is no generator state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from refusion_edge.arrays import State
from refusion_edge.documents import brief, shown, typed
from refusion_edge.errors import CheckpointError, UsageError
from refusion_edge.files import read_file, write_atomically
from refusion_edge.network.checkpoint import (
    AVERAGE_GROUP,
    METADATA_KEY,
    MOST_BYTES,
    TRAINING_SCHEMA,
    Checkpoint,
    read_checkpoint,
    read_header,
    require_network,
)
from refusion_edge.network.fast import layout_of
from refusion_edge.network.fast_module import initial
from refusion_edge.train.layers import Parameters
from refusion_edge.train.networks import initial_fusion, initial_proposal, initial_reconstruction
from refusion_edge.train.optimization import adamw, outer_optimizer
from refusion_edge.train.settings import Settings

_PATTERN = "step-*.safetensors"


@dataclass(slots=True)
class Counters:
    """Progress of a run.

    Attributes:
        step: Steps taken.
        elapsed_s: Seconds of training in all sessions.
        accumulated: Meta-gradients since the last outer update.
        frozen: Why P no longer learns, or empty.
        reference: Distances of the guarded diagnostics beyond their limits when P began to learn.
        best: Largest validation score, or None.
    """

    step: int = 0
    elapsed_s: float = 0.0
    accumulated: int = 0
    frozen: str = ""
    reference: dict[str, float] = field(default_factory=dict)
    best: float | None = None


@dataclass(slots=True)
class TrainingState:
    """Parameters, optimizers and counters; the training loop modifies them in place.

    Attributes:
        theta: Parameters of F.
        average: Their moving average, which is validated and exported.
        phi: Parameters of P.
        healthy_phi: phi at the last validation that passed the guards.
        rho: Parameters of R.
        accumulated: Sum of meta-gradients since the last outer update.
        optimizers: ``fusion``, ``proposal`` and ``reconstruction``.
        counters: Progress of the run.
    """

    theta: Parameters
    average: Parameters
    phi: Parameters
    healthy_phi: Parameters
    rho: Parameters
    accumulated: Parameters
    optimizers: dict[str, Optimizer]
    counters: Counters

    def groups(self) -> dict[str, Parameters]:
        """Parameters by the prefix under which they are stored."""
        return {
            "fusion": self.theta,
            AVERAGE_GROUP: self.average,
            "proposal": self.phi,
            "proposal_healthy": self.healthy_phi,
            "reconstruction": self.rho,
            "optim.accumulated": self.accumulated,
        }

    def exported(self) -> State:
        """The averaged theta as arrays."""
        return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in self.average.items()}


def initial_state(
    settings: Settings, device: torch.device, theta: Parameters | None = None, dtype: torch.dtype = torch.float32
) -> TrainingState:
    """Initialize a run.

    Args:
        settings: Settings; the seed determines everything random.
        device: Device of the tensors.
        theta: Parameters of F to start from, or None to start from scratch.
        dtype: Precision of all tensors.
    """
    generator = torch.Generator().manual_seed(settings.run.seed)

    def place(parameters: Parameters) -> Parameters:
        return {name: tensor.detach().to(device, dtype, copy=True) for name, tensor in parameters.items()}

    drawn = initial(settings.fast, generator) if settings.run.network == "fast" else initial_fusion(generator)
    fusion = place(drawn if theta is None else theta)
    phi, rho = place(initial_proposal(settings.proposal, generator)), place(initial_reconstruction(generator))
    optimizers = {"fusion": adamw(fusion), "proposal": outer_optimizer(phi, settings.meta), "reconstruction": adamw(rho)}
    accumulated = {name: torch.zeros_like(tensor) for name, tensor in phi.items()}
    return TrainingState(fusion, place(fusion), phi, place(phi), rho, accumulated, optimizers, Counters())


@dataclass(frozen=True, slots=True)
class TrainingCheckpoint:
    """The contents of a checkpoint.

    Attributes:
        path: Its file.
        task: Name of the task.
        settings: Settings of the run.
        counters: Progress of the run.
        pairs: Names of the training pairs.
        tensors: All tensors by stored name.
    """

    path: Path
    task: str
    settings: Settings
    counters: Counters
    pairs: tuple[str, ...]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _About:
    """What a checkpoint says of itself."""

    task: str
    settings: dict[str, Any]
    counters: Counters
    pairs: tuple[str, ...]


_ABOUT_KEYS = ("task", "settings", "counters", "pairs")


def save_state(path: Path, state: TrainingState, *, task: str, settings: Settings, pairs: tuple[str, ...]) -> None:
    """Write a checkpoint; it appears under its name only when complete.

    Raises:
        OutputError: It cannot be written, for example because the disk is full; earlier ones are kept.
    """
    tensors = {f"{prefix}.{name}": tensor for prefix, group in state.groups().items() for name, tensor in group.items()}
    tensors.update(_optimizer_tensors(state))
    about = {
        "schema": TRAINING_SCHEMA,
        "task": task,
        "network": settings.run.network,
        "settings": settings.to_tables(),
        "counters": {name: getattr(state.counters, name) for name in Counters.__slots__},
        "pairs": pairs,
        "torch": torch.__version__,
        "device": str(next(iter(state.theta.values())).device),
    }
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(stored, {METADATA_KEY: json.dumps(about, sort_keys=True)}))


def checkpoint_path(folder: Path, step: int) -> Path:
    """Name of the checkpoint after a step."""
    return folder / f"step-{step:07d}.safetensors"


def find_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(folder.glob(_PATTERN))


def newest_checkpoint(folder: Path) -> Path:
    """The last checkpoint of a run.

    Raises:
        CheckpointError: There is none.
    """
    found = find_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoints ({_PATTERN})", "give the folder of a run")
    return found[-1]


def read_state(path: Path) -> TrainingCheckpoint:
    """Read a checkpoint.

    Args:
        path: A checkpoint, or the folder of a run for its newest one.

    Raises:
        CheckpointError: There is none, or it is damaged or not a checkpoint.
    """
    if path.is_dir():
        path = newest_checkpoint(path)
    data = read_file(path, kind="checkpoint", most_bytes=MOST_BYTES, error=CheckpointError)
    document = read_header(data, str(path))
    if document.get("schema") != TRAINING_SCHEMA:
        raise CheckpointError(
            f"{path} has the schema {shown(document.get('schema'))} instead of {TRAINING_SCHEMA}",
            "give a training checkpoint",
            expected=TRAINING_SCHEMA,
            got=document.get("schema"),
        )
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} is a damaged training checkpoint ({brief(error)})", "take an older one") from error
    try:
        about = typed(_About, {key: document[key] for key in _ABOUT_KEYS if key in document}, "", error=CheckpointError)
        settings = Settings.from_tables(about.settings)
    except (CheckpointError, UsageError) as error:
        raise CheckpointError(
            f"{path} has other settings or counters than this version ({error.problem})",
            "resume with the version that wrote it, or start a new run with --init",
        ) from error
    if min(about.counters.step, about.counters.accumulated) < 0 or about.counters.elapsed_s < 0:
        raise CheckpointError(f"{path} has counters below 0", "take an older checkpoint")
    return TrainingCheckpoint(path, about.task, settings, about.counters, about.pairs, tensors)


def restore(state: TrainingState, checkpoint: TrainingCheckpoint) -> None:
    """Load a checkpoint into a state created with the same settings.

    Raises:
        CheckpointError: The two do not match.
    """
    tensors = dict(checkpoint.tensors)
    for prefix, group in state.groups().items():
        for name, tensor in group.items():
            stored = tensors.pop(f"{prefix}.{name}", None)
            if stored is None or stored.shape != tensor.shape:
                stored_text = "missing" if stored is None else f"of shape {tuple(stored.shape)}"
                raise CheckpointError(
                    f"{prefix}.{name} in {checkpoint.path} is {stored_text}, but the run needs the shape {tuple(tensor.shape)}",
                    "resume with the settings of the run",
                    expected=tuple(tensor.shape),
                    got=None if stored is None else tuple(stored.shape),
                )
            tensor.copy_(stored)
    for label, parameters in _optimised(state):
        for name, tensor in parameters.items():
            prefix = f"optim.{label}.{name}."
            entries = {key: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            if entries:
                # The step counter of AdamW stays on the CPU.
                state.optimizers[label].state[tensor] = {
                    key.removeprefix(prefix): value if value.ndim == 0 else value.to(tensor.device)
                    for key, value in entries.items()
                }
    if tensors:
        raise CheckpointError(
            f"{checkpoint.path} also holds {next(iter(tensors))}, which no network of this run has", "give another checkpoint"
        )
    state.counters = checkpoint.counters


def read_fusion(path: Path, settings: Settings) -> tuple[str | None, Parameters]:
    """Read parameters of F to start from: our weights file, an official ``.pth``, or a training checkpoint.

    Args:
        path: The file, or the folder of a run for its newest checkpoint.
        settings: Settings of the run.

    Returns:
        Name of the task, if the file states it, and theta (the moving average of a training checkpoint).

    Raises:
        CheckpointError: It is none of these, or of another network or layout.
    """
    if path.is_dir():
        path = newest_checkpoint(path)
    weights: Checkpoint = read_checkpoint(path)
    require_network(weights, settings.run.network, str(path))
    if weights.network == "fast":
        found = layout_of({name: array.shape for name, array in weights.state.items()})
        if found != settings.fast:
            words = " ".join(f"--set fast.{name}={value}" for name, value in asdict(found).items())
            raise CheckpointError(
                f"{path} has the layout {asdict(found)}, but the run has {asdict(settings.fast)}",
                f"add {words}",
                expected=settings.fast,
                got=found,
            )
    return weights.task, {name: torch.from_numpy(np.array(array)) for name, array in weights.state.items()}


def _optimised(state: TrainingState) -> Iterator[tuple[str, Parameters]]:
    yield from (("fusion", state.theta), ("proposal", state.phi), ("reconstruction", state.rho))


def _optimizer_tensors(state: TrainingState) -> dict[str, Tensor]:
    return {
        f"optim.{label}.{name}.{key}": value
        for label, parameters in _optimised(state)
        for name, tensor in parameters.items()
        for key, value in state.optimizers[label].state.get(tensor, {}).items()
    }
