"""Programs that run under the system's Python."""

from __future__ import annotations

import subprocess
import sys

import pytest

from refusion_edge.stream import system_python


def test_an_interrupt_while_a_program_starts_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as program:
        monkeypatch.setattr(system_python, "start", lambda *_: program)
        monkeypatch.setattr(system_python, "first_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            system_python.start_ready("x.py", (), {}, name="x", bindings="y", packages="z", within_s=5)
        assert program.poll() is not None
