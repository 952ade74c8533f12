"""The processes of a training run: the ranks that train together, and the signals that stop one.

The networks are plain functions of their parameters, so nothing is wrapped for training on several ranks: the few gradients
that have to agree are averaged by hand, in one flat buffer each.
"""

from __future__ import annotations

import datetime
import os
import signal
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed
from typing_extensions import Self

from refusion_edge.errors import BackendError, UsageError
from refusion_edge.train.layers import Parameters

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# Long enough for a rank that validates or reads from a slow disk, short enough to notice a lost one.
_TIMEOUT = datetime.timedelta(minutes=5)
# Prefix of our keys in the store of torchrun, and how often the first rank looks for the questions of the others.
_PREFIX, _POLL_S = "refusion_edge", 0.05
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run, and the rank of this one.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        device: Device of its tensors.
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
            BackendError: Another rank was lost.
        """
        if self.size == 1:
            return tensors
        buffer = torch.cat([tensor.flatten() for tensor in tensors.values()])
        self._reduce(buffer, distributed.ReduceOp.SUM)
        parts = torch.split(buffer / self.size, [tensor.numel() for tensor in tensors.values()])
        return {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}

    def largest(self, values: Sequence[float]) -> list[float]:
        """Largest of each value over all ranks, so that all ranks make the same decisions.

        Raises:
            BackendError: Another rank was lost.
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
                f"lost one of {self.size} ranks (noticed by rank {self.rank}: {str(error).splitlines()[0]})",
                "start the run again with --resume",
            ) from error


def join_ranks(device: torch.device) -> Ranks:
    """Join the processes started by torchrun, or run alone without it.

    NCCL on a GPU, gloo on a CPU.

    Raises:
        UsageError: Only some of torchrun's variables are set.
        BackendError: The other ranks cannot be reached.
    """
    given = [name for name in _VARIABLES if name in os.environ]
    if "WORLD_SIZE" not in given or os.environ["WORLD_SIZE"] == "1":
        return Ranks(device=device)
    if len(given) < len(_VARIABLES):
        raise UsageError(
            f"only {', '.join(given)} of torchrun's variables {', '.join(_VARIABLES)} are set", "start with torchrun"
        )
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        backend = "nccl" if device.type == "cuda" else "gloo"
        # What torchrun sets where all attempts share the launcher's store.
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            distributed.init_process_group(backend, store=_own_store(rank, size), rank=rank, world_size=size, timeout=_TIMEOUT)
        else:
            distributed.init_process_group(backend, timeout=_TIMEOUT)
    except RuntimeError as error:
        raise BackendError(f"cannot reach all ranks: {error}", "check the address and the network") from error
    return Ranks(distributed.get_rank(), distributed.get_world_size(), device)


def _own_store(rank: int, size: int) -> Store:
    """The part of torchrun's store that belongs to this attempt alone.

    torchrun keeps one store for all attempts, in which gloo and NCCL would find the addresses of ranks that are dead. So the
    ranks agree on a random prefix, by keys that no earlier attempt can have written: the others ask with a random number,
    and the first one answers below that number until all have joined.

    Raises:
        RuntimeError: Not all ranks have joined in time.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = PrefixStore(_PREFIX, TCPStore(host, port, is_master=False, timeout=_TIMEOUT))
    token = uuid.uuid4().hex
    if rank:
        shared.set(f"question/{rank}", token)
        own = PrefixStore(shared.get(f"answer/{token}").decode(), shared)
        own.set(f"joined/{rank}", "")
        return own
    own, deadline_s = PrefixStore(token, shared), time.monotonic() + _TIMEOUT.total_seconds()
    while missing := [other for other in range(1, size) if not own.check([f"joined/{other}"])]:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"ranks {missing} have not joined in {_TIMEOUT}")
        for other in missing:
            if shared.check([f"question/{other}"]):
                shared.set(f"answer/{shared.get(f'question/{other}').decode()}", token)
        time.sleep(_POLL_S)
    return own


def leave_ranks(ranks: Ranks) -> None:
    """Leave the group, if there is one."""
    if ranks.size > 1 and distributed.is_initialized():
        distributed.destroy_process_group()


class StopSignal:
    """Records Ctrl-C and SIGTERM while it is open; a second one interrupts immediately.

    Attributes:
        received: Name of the signal, or empty.
    """

    def __init__(self) -> None:
        self.received = ""
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        try:
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        except ValueError:  # not in the main thread, where no signal arrives anyway
            self._previous = {}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
