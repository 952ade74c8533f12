"""Fusing an archive on a Ray cluster: Ray Data hands out the pairs, and gives those of a lost worker to another one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refusion_edge.archive.fusing import FusePlan, fuse_once
from refusion_edge.archive.manifest import Entry
from refusion_edge.documents import brief, shown
from refusion_edge.errors import BackendError, InputError, OutputError, RefusionError, StreamError
from refusion_edge.images.pairs import PairPaths
from refusion_edge.machine import require

_CONNECT_S = 10.0
# Small, as a lost worker repeats its batch.
_BATCH = 4
_MOST_WORKERS = 10_000

# Errors, of which the code does not survive pickling, by their names; they concern one pair, and do not end the others.
FAILURES: dict[str, type[RefusionError]] = {each.__name__: each for each in (BackendError, InputError, OutputError)}


@dataclass(frozen=True, slots=True)
class Task:
    """A pair to fuse.

    Attributes:
        paths: Its files, by names that every worker can read.
        target: File of the result, likewise.
        before: Its entry in the manifest, or None.
    """

    paths: PairPaths
    target: Path
    before: Entry | None


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a task.

    Attributes:
        name: Name of the pair.
        entry: For the manifest; None if it failed.
        fused: Whether it was fused now; otherwise its result was there already.
        kind: Name of the error that it failed with, one of ``FAILURES``; empty if it did not.
        problem: Why it failed.
        remedy: What to do about it.
    """

    name: str
    entry: Entry | None
    fused: bool
    kind: str = ""
    problem: str = ""
    remedy: str = ""

    @property
    def error(self) -> RefusionError | None:
        """What it failed with; None if it did not."""
        return FAILURES[self.kind](self.problem, self.remedy) if self.kind else None


def fuse_on_ray(plan: FusePlan, tasks: Sequence[Task], *, workers: int | None = None) -> Iterator[Done]:
    """Fuse pairs on a Ray cluster, the one of ``RAY_ADDRESS`` or else one on this machine; each worker opens the engine once.

    A worker that is lost is replaced, and its batch is done again; a result is written as a whole, so that doing one twice
    changes nothing. No pair is lost, and none is yielded twice.

    Args:
        plan: How to fuse.
        tasks: The pairs.
        workers: Number of workers; None for as many as the cluster has room for.

    Yields:
        One for each task, in any order.

    Raises:
        MissingDependencyError: Ray is not installed.
        StreamError: The cluster failed.
    """
    require("ray", "cluster", "--cluster ray")
    data = require("ray.data", "cluster", "--cluster ray")
    import ray

    started = not ray.is_initialized()
    if started:
        _require_reachable(os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        except Exception as error:  # Ray raises just that if its processes do not start in time
            ray.shutdown()
            raise StreamError(
                f"the cluster cannot be reached, or does not start ({brief(error)})",
                "check RAY_ADDRESS and the load of this machine, and run the command again",
            ) from error
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        most = min(workers or cores, _MOST_WORKERS)
        rows = data.from_items([{"number": number} for number in range(len(tasks))], override_num_blocks=_blocks(len(tasks)))
        done = rows.map_batches(
            _Worker,
            fn_constructor_args=(plan, ray.put(list(tasks))),
            batch_size=_BATCH,
            concurrency=(1, most),
            num_cpus=1,
        )
        seen: set[str] = set()
        for row in done.iter_rows():
            found = Done(**_plain(row))
            if found.name not in seen:
                seen.add(found.name)
                yield found
        if len(seen) != len(tasks):
            raise StreamError(f"the cluster returned {len(seen)} of {len(tasks)} pairs", "run the command again")
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise StreamError(
            f"the cluster failed ({type(error).__name__})", "check its logs, and run the command again"
        ) from error
    finally:
        if started:
            ray.shutdown()


def _require_reachable(address: str) -> None:
    """Require that somebody listens where the cluster should be: Ray itself tries for minutes, and logs every attempt."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isascii() or not port.isdecimal():
        return  # no address, the name of one, or one that Ray refuses at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError, ValueError) as error:
        raise StreamError(
            f"there is no cluster at RAY_ADDRESS {shown(address)} ({brief(error)})", "start it, or correct the address"
        ) from error


class _Worker:
    """One process of the cluster, with the engine open."""

    def __init__(self, plan: FusePlan, tasks: Any) -> None:
        import ray

        self._plan = plan
        self._tasks: list[Task] = ray.get(tasks)
        self._fuser = plan.open().__enter__()
        # Of this worker: others may have another processor.
        self._settings = plan.digest(self._fuser.backend)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        found = [self._do(self._tasks[int(number)]) for number in batch["number"]]
        return {name: np.array([_cell(getattr(each, name)) for each in found], object) for name in Done.__slots__}

    def _do(self, task: Task) -> Done:
        try:
            outcome = fuse_once(self._plan, self._fuser, task.paths, task.target, self._settings, task.before)
        except tuple(FAILURES.values()) as error:
            kind = next(name for name, each in FAILURES.items() if isinstance(error, each))
            return Done(task.paths.name, None, fused=False, kind=kind, problem=error.problem, remedy=error.remedy)
        return Done(task.paths.name, outcome.entry, fused=outcome.planes is not None)


def _cell(value: Any) -> Any:
    return [getattr(value, name) for name in Entry.__slots__] if isinstance(value, Entry) else value


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    entry = row["entry"]
    return {**row, "fused": bool(row["fused"]), "entry": None if entry is None else Entry(*map(str, entry))}


def _blocks(count: int) -> int:
    return max(1, min(1000, -(-count // _BATCH)))
