"""``stream --log-json``."""

from __future__ import annotations

import datetime
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refusion_edge.cli.log import JsonLog
from tests.stream.conftest import camera

Cli = Callable[..., tuple[int, str, str]]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_everything_that_is_said_is_a_line_of_json(run_cli: Cli) -> None:
    sources = "--ir", camera("ir", lose_every_ms=2500, lose_ms=1200), "--vis", camera("vis")
    words = "-o", "view://0.0.0.0:0", "--token", "geheim-4711", "--network", "fast", "--lost-after-ms", 300
    code, out, err = run_cli("stream", *sources, *words, "--duration-s", 4.5, "--log-json")
    assert (code, out) == (0, "")
    found = lines(err)
    assert all(datetime.datetime.fromisoformat(line["time"]).utcoffset() == datetime.timedelta(0) for line in found)
    assert {line["level"] for line in found} == {"info", "warning"}
    assert any(line["where"] == "ir" and line["level"] == "warning" for line in found)
    assert found[-1]["exit_code"] == 0
    assert "geheim" not in err


def test_an_error_is_the_last_line_with_its_code(run_cli: Cli) -> None:
    code, out, err = run_cli("stream", "--ir", "missing.mkv", "--vis", camera("vis"), "-o", "null://", "--log-json")
    last = lines(err)[-1]
    assert (code, out, last["exit_code"], last["level"]) == (4, "", 4, "error")
    assert "missing.mkv" in last["message"]
    assert last["remedy"]


@pytest.mark.parametrize("several", [False, True])
def test_a_report_that_cannot_be_written_is_the_last_line_too(several: bool, run_cli: Cli) -> None:
    ir, vis = (camera(side, live=0, frames=3) for side in ("ir", "vis"))
    words: tuple[object, ...] = ("--ir", ir, "--vis", vis, "--network", "fast", "-o", "null://")
    if several:
        Path("site.yaml").write_text(f"network: fast\noutputs: ['null://']\nrigs:\n  gate: {{ir: '{ir}', vis: '{vis}'}}\n")
        words = ("--config", "site.yaml")
    Path("file").write_text("")
    code, out, err = run_cli("stream", *words, "--log-json", "--json", "file/report.json")
    last = lines(err)[-1]
    assert (code, out, last["exit_code"], last["level"]) == (4, "", 4, "error")
    assert "report.json" in last["message"]


def test_a_reader_that_is_stuck_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        free = threading.Event()

        def write(self, _text: str) -> None:
            self.free.wait()

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stderr", Stuck())
    log = JsonLog()
    log.__enter__()
    started_s = time.monotonic()
    for _ in range(5000):
        log.add("info", "ir", "x")
    assert time.monotonic() - started_s < 5
    Stuck.free.set()
    log.__exit__()
