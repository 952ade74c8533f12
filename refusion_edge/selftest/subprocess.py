"""Run a function in a process of its own, so that a crash or hang does not affect the caller."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from refusion_edge.errors import BackendError

_T = TypeVar("_T")
_END_S = 10.0


def run_in_subprocess(work: Callable[..., _T], *arguments: object, limit_s: float) -> _T:
    """Call a function in a fresh process and return what it returns.

    The process shares no state with this one; what it prints goes to standard error. When the time is up, or when
    this process is interrupted, it is killed together with every process it started.

    Args:
        work: A module-level function; it, its arguments and its result are pickled.
        arguments: Its arguments.
        limit_s: Time limit in seconds.

    Raises:
        BackendError: It crashed or took longer.
        Exception: What the function raised.
    """
    # Spawned, not forked: a CUDA context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_deliver, args=(theirs, work, arguments), name=f"subprocess-{work.__name__}")
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            raise BackendError(f"no answer within {limit_s:g} s, so the process was stopped", "find out what it waits for")
        good, outcome = ours.recv()
    except EOFError:
        process.join(_END_S)
        raise BackendError(
            f"the process {_ending(process.exitcode)} without an answer", "report this with its output"
        ) from None
    finally:
        _end(process)
        ours.close()
    if good:
        result: _T = outcome
        return result
    raise outcome


def _deliver(answer: Connection, work: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    # A process group of its own, so that it can be killed with everything it starts.
    os.setpgid(0, 0)
    os.dup2(2, 1)
    try:
        outcome: tuple[bool, Any] = True, work(*arguments)
    except Exception as error:
        outcome = False, error
    answer.send(outcome)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    if process.pid is not None:
        # Even if it has ended: processes it started may be alive.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join(_END_S)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
