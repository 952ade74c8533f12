"""A minute of the soak: every injected fault is in the report, every file plays, and nothing is left behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_a_stream_survives_a_minute_of_faults(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "benchmarks.stream_soak", "--minutes", "1", "--clean-s", "0", "--networks", "fast"]
    done = subprocess.run(
        [sys.executable, *words, "--port", str(port), "--json", str(tmp_path / "soak.json")],
        cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    (found,) = json.loads((tmp_path / "soak.json").read_text())
    report, injected, played = found["report"], found["injected"], found["played"]
    assert injected["engine"] > 3
    assert injected["disk"] > 0
    assert injected["viewers"] > 12
    assert report["engine"]["reopened"] == injected["engine"]
    assert report["recording"]["drops"]["disk full"] > 0
    assert injected["hangs"] > 0
    assert report["recording"]["drops"]["disk too slow"] > 0
    assert report["cameras"]["vis"]["timing"]["steps"] >= 3
    for camera in report["cameras"].values():
        assert camera["unexplained"] == 0
        # The last loss may outlast the run.
        assert 1 <= camera["losses"] <= camera["reconnects"] + 1
    assert report["cameras"]["ir"]["freezes"] >= 5
    assert played["ring"] == sum(played["parts"]) > 0
    (video,) = (output for name, output in report["outputs"].items() if name.endswith(".mp4"))
    assert played["video"] == video["frames"]
    assert found["after"]["threads"] == found["before"]["threads"]
    assert found["after"]["files"] <= found["before"]["files"] + 2
    warm = found["figures"][len(found["figures"]) // 2 :]
    assert max(row["ring_bytes"] for row in warm) <= report["settings"]["record_limit"]
    # A minute is too short for the limit of the soak itself, and long enough for a leak of a frame in each second.
    assert warm[-1]["rss_kib"] < 1.1 * warm[0]["rss_kib"]
