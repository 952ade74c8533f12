"""Output to a window."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

XVFB = shutil.which("Xvfb")


SHOW = (
    "import refusion_edge.stream\n"  # as programs begin: it loads OpenCV before the conftest loads PyAV
    "from tests.stream.conftest import *\n"
    "settings = StreamSettings(ir=camera('ir'), vis=camera('vis'), frames=5)\n"  # the window is the default
    "session = StreamSession(settings, fuser=Fuser(MeanBackend(), find_task('ir_vis')))\n"
    "session.run()\n"
    "print(list(session.report()['outputs']))\n"
)


@pytest.mark.skipif(XVFB is None, reason="needs Xvfb, a display without a screen")
def test_a_window_shows_the_stream_and_is_the_default_where_there_is_a_display() -> None:
    read_end, write_end = os.pipe()
    command = [str(XVFB), "-displayfd", str(write_end), "-screen", "0", "320x240x24"]
    server = subprocess.Popen(command, pass_fds=(write_end,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as answer:
            environment = {**os.environ, "DISPLAY": f":{answer.readline().strip()}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SHOW], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, "['display://0']"), done.stderr
    finally:
        server.terminate()
        server.wait(300)
