"""Several processes, on one machine or on many, that train as one on the joined batch.

The networks are plain functions of their parameters, so nothing is wrapped: the few gradients that have to agree are
averaged by hand, in one flat buffer each.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from refusion_edge.errors import BackendError, UsageError
from refusion_edge.train.layers import Parameters

# Long enough for a rank that validates or reads a slow disk, short enough that a lost one is noticed.
_TIMEOUT = datetime.timedelta(minutes=5)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run, and which of them this is.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        device: Where its tensors are.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def average(self, tensors: Parameters) -> Parameters:
        """Mean over all ranks, the same on each.

        Raises:
            BackendError: Another rank is gone.
        """
        if self.size == 1:
            return tensors
        buffer = torch.cat([tensor.flatten() for tensor in tensors.values()])
        self._reduce(buffer, distributed.ReduceOp.SUM)
        parts = torch.split(buffer / self.size, [tensor.numel() for tensor in tensors.values()])
        return {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}

    def largest(self, values: Sequence[float]) -> list[float]:
        """Largest of each value over all ranks, so that they take the same decisions.

        Raises:
            BackendError: Another rank is gone.
        """
        if self.size == 1:
            return list(values)
        buffer = torch.tensor(values, dtype=torch.float64, device=self.device)
        self._reduce(buffer, distributed.ReduceOp.MAX)
        return [float(value) for value in buffer]

    def _reduce(self, buffer: Tensor, operation: distributed.ReduceOp.RedOpType) -> None:
        try:
            distributed.all_reduce(buffer, operation)
        except RuntimeError as error:
            raise BackendError(
                f"expected all {self.size} ranks to answer, got a lost one (rank {self.rank} noticed: "
                f"{str(error).splitlines()[0]}); start the run again with --resume."
            ) from error


def join_ranks(device: torch.device) -> Ranks:
    """Join the processes that torchrun started, or stay alone where it did not.

    NCCL on a GPU, gloo on a CPU.

    Raises:
        UsageError: Some of torchrun's variables are set and some are not.
        BackendError: The others cannot be reached.
    """
    given = [name for name in _VARIABLES if name in os.environ]
    if "WORLD_SIZE" not in given or os.environ["WORLD_SIZE"] == "1":
        return Ranks(device=device)
    if len(given) < len(_VARIABLES):
        raise UsageError(f"expected the variables {', '.join(_VARIABLES)}, got {', '.join(given)} only; start with torchrun.")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    except RuntimeError as error:
        raise BackendError(f"expected all ranks to meet, got '{error}'; check the address and the network.") from error
    return Ranks(distributed.get_rank(), distributed.get_world_size(), device)


def leave_ranks(ranks: Ranks) -> None:
    """Leave the group, if there is one."""
    if ranks.size > 1 and distributed.is_initialized():
        distributed.destroy_process_group()
