"""Helper programs that run under the system's Python, for bindings that only system packages provide.

GStreamer and its Python bindings cannot be installed into a virtual environment. The programs (``gst_reader.py``,
``gst_writer.py``, ``rtsp_server.py``) import nothing from this package, run under ``/usr/bin/python3``, print ``ready`` or what
they need as their first line (``needs ...``), and end when their standard input closes.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import resources

from refusion_edge.errors import MissingDependencyError

_SYSTEM_PYTHON = "/usr/bin/python3"
_STOP_S = 3.0
BINDINGS = "GStreamer's Python bindings"
PACKAGES = "python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
"""The system's packages with them, and with the elements that pipelines of cameras are made of."""

Program = subprocess.Popen[bytes]


class NotReadyError(Exception):
    """A program ended, or was ended, before it was ready.

    Attributes:
        answer: Its first line, or ``no answer``.
        code: Its exit code.
    """

    def __init__(self, answer: str, code: int) -> None:
        super().__init__(answer, code)
        self.answer, self.code = answer, code


def start_ready(
    script: str, words: Sequence[str], secrets: Mapping[str, str], *, name: str, bindings: str, packages: str, within_s: float
) -> Program:
    """Start a program and wait until it is ready.

    Args:
        script: See ``start``.
        words: See there.
        secrets: See there.
        name: What needs the program, for messages.
        bindings: What the program needs, for messages.
        packages: The system's packages with it.
        within_s: How long to wait, in seconds.

    Raises:
        MissingDependencyError: There is no system's Python, or it lacks what the program needs.
        NotReadyError: The program did not start for another reason.
    """
    remedy = f"run: apt install {packages}"
    try:
        program = start(script, words, secrets)
    except OSError as error:
        raise MissingDependencyError(f"{name} needs the system's Python ({error})", remedy) from error
    try:
        answer = first_line(program, within_s)
    except BaseException:  # Ctrl-C, which the program does not get
        end(program)
        raise
    if answer == "ready":
        return program
    code = end(program)
    if answer.startswith("needs "):
        raise MissingDependencyError(f"{name} needs {bindings} ({answer})", remedy)
    raise NotReadyError(answer, code)


def start(script: str, words: Sequence[str], secrets: Mapping[str, str]) -> Program:
    """Start a program under the system's Python.

    Args:
        script: Its file below ``refusion_edge/stream``, such as ``sources/gst_reader.py``.
        words: Its arguments, which every user of the machine can read.
        secrets: Its environment variables, which only its own user can read.

    Raises:
        OSError: ``/usr/bin/python3`` is missing or cannot be started.
    """
    path = resources.files("refusion_edge.stream").joinpath(script)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.Popen(
        [_SYSTEM_PYTHON, "-I", str(path), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # GStreamer prints whole pipelines there, passwords included
        bufsize=0,
        env={**inherited, **secrets},
        start_new_session=True,  # only this process handles Ctrl-C
    )


def ask(code: str, within_s: float) -> str:
    """Run a few lines under the system's Python, and return what they print; empty if they fail or take too long."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [_SYSTEM_PYTHON, "-I", "-c", code], capture_output=True, text=True, timeout=within_s, check=False, env=inherited
        )
        return done.stdout if done.returncode == 0 else ""
    return ""


def first_line(program: Program, within_s: float) -> str:
    """Read the first line of a program; ``no answer`` after the timeout."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert program.stdout is not None
        lines.put(program.stdout.readline().decode(errors="replace").strip())

    threading.Thread(target=read, name="first line", daemon=True).start()
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(queue.Empty):
            return lines.get(timeout=0.1)
    return "no answer"


def send(program: Program, data: memoryview) -> None:
    """Write all bytes to the standard input of a program.

    Raises:
        OSError: The program has ended.
    """
    assert program.stdin is not None
    left = data.cast("B")
    while left:
        left = left[program.stdin.write(left) :]


def last_line(program: Program) -> str:
    """The last line of a program that has ended; empty if there is none."""
    assert program.stdout is not None
    lines = program.stdout.read().decode(errors="replace").splitlines()
    return lines[-1].strip() if lines else ""


def end(program: Program, within_s: float = _STOP_S) -> int:
    """Close the input of a program, which ends it, and return its exit code; kill it if it does not end in this time."""
    assert program.stdin is not None
    assert program.stdout is not None
    with contextlib.suppress(OSError):
        program.stdin.close()
    try:
        code = program.wait(within_s)
    except subprocess.TimeoutExpired:
        program.kill()
        code = program.wait()
    program.stdout.close()
    return code
