"""A process of its own: results and errors come back, and one that crashes or hangs ends within its time, with its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refusion_edge.errors import BackendError, InputError
from refusion_edge.selftest.subprocess import run_in_subprocess
from tests.raising import raises


def double(number: int) -> int:
    print("printed by a library")
    return 2 * number


def refuse() -> None:
    raise InputError("a mistake of the caller")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(7)


def hang_with_a_child(note: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note.write_text(str(child.pid))
    time.sleep(600)


def test_a_result_comes_back_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_in_subprocess(double, 21, limit_s=60) == 42
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "printed by a library" in printed.err


def test_an_error_comes_back_as_it_was() -> None:
    with pytest.raises(InputError, match="^a mistake of the caller$"):
        run_in_subprocess(refuse, limit_s=60)


@pytest.mark.parametrize(("work", "named"), [(crash, "SIGSEGV"), (leave, "exit code 7")])
def test_a_crash_is_an_error(work: object, named: str) -> None:
    with raises(BackendError, named):
        run_in_subprocess(work, limit_s=60)


@pytest.mark.slow
def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    started = time.monotonic()
    with raises(BackendError, "5 s"):
        run_in_subprocess(hang_with_a_child, note, limit_s=5)
    assert time.monotonic() - started < 60
    assert not is_running(int(note.read_text()))


def is_running(pid: int) -> bool:
    # An orphan that was killed may wait for somebody to collect it.
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True
