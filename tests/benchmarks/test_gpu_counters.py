"""Counters of ncu next to those of the emulator, from a profile in the form of ncu."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_counters
from benchmarks.gpu_counters import METRICS, Launch, beside, main, parse, table
from benchmarks.gpu_emulator import Recording, store
from refusion_edge.arrays import State
from refusion_edge.cuda.program import Program
from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.errors import InputError
from refusion_edge.network.fast import FastLayout
from tests.conftest import ROOT
from tests.fakes.programs import hollow_program

# What `ncu --csv --page details --print-units base` prints, by its documentation; no run of ours.
PROFILE = (ROOT / "tests/data/ncu.csv").read_text()


def small_state() -> State:
    draw = np.random.default_rng(3)
    return {
        name: draw.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in FastLayout(channels=8, convolutions=2).shapes.items()
    }


@pytest.fixture(scope="module")
def program() -> Program:
    return hollow_program(small_state(), 90)


def recording(**other: float) -> Recording:
    counts = (
        {"instructions": 1200.0, "wavefronts": 0.0, "sectors": 816.0, "ctas": 4.0},
        {"instructions": 30000.0, "wavefronts": 2500.0, "sectors": 1000.0, "ctas": 4.0, **other},
        {"instructions": 500.0, "wavefronts": 24.0, "sectors": 60.0, "ctas": 2.0},
    )
    return Recording("fast", np.zeros((2, 8, 9), np.float32), (), counts)


def test_the_table_of_ncu_is_read_among_its_other_lines() -> None:
    launches = parse(PROFILE)
    assert [launch.kernel for launch in launches] == 2 * [
        "fast_statistics_kernel",
        "fast_convolutions_kernel",
        "stretch_kernel",
    ]
    assert launches[4] == Launch(
        "fast_convolutions_kernel", {"ctas": 4.0, "instructions": 33456.0, "wavefronts": 2512.0, "sectors": 1000.0}
    )
    # The device does not have this counter.
    assert "wavefronts" not in launches[5].counts


def test_the_frame_after_the_self_test_is_compared_with_the_emulator(program: Program) -> None:
    rows = beside([(program, recording())], parse(PROFILE))
    assert [row["kernel"] for row in rows] == ["fast_statistics", "fast_convolutions", "stretch"]
    assert rows[1]["wavefronts"] == [2512.0, 2500.0]
    assert rows[2]["wavefronts"] == [None, 24.0]
    assert all(row["good"] for row in rows)
    text = table(rows)
    assert "| fast | `fast_convolutions` | 8x9 | 33456 | 1.12 | 2512 | 1.00 | 1000 | 1.00 | yes |" in text
    assert "| 60 | 1.00 | yes |" in text
    for other in ({"wavefronts": 3000.0}, {"sectors": 900.0}, {"ctas": 5.0}):
        assert [row["good"] for row in beside([(program, recording(**other))], parse(PROFILE))] == [True, False, True]


def test_launches_of_something_else_are_refused(program: Program) -> None:
    launches = parse(PROFILE)
    for wrong in (launches[:5], launches + launches[:1], launches[::-1]):
        with pytest.raises(InputError):
            beside([(program, recording())], wrong)


@pytest.mark.parametrize("text", ["", "==PROF== nothing", '"ID","Kernel Name"\n"x","y"\n', PROFILE.replace("(1, 4, 1)", "(4)")])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse(text)


def fake_ncu(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = Path("bin/ncu").absolute()
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")


def test_a_profile_is_made_and_compared(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    store(Path("recordings"), program_bytes(program), [recording()])
    # It writes the profile where it was told to, and the metrics it was asked for are ours.
    fake_ncu(monkeypatch, f'echo "$@" > asked; cp "{ROOT}/tests/data/ncu.csv" "$7"')
    assert main(["recordings", "--json", "counters.json"]) == 0
    document = json.loads(Path("counters.json").read_text())
    assert (document["schema"], len(document["rows"])) == ("refusion-edge/gpu-counters/1", 3)
    asked = Path("asked").read_text()
    assert all(metric in asked for metric in METRICS)
    assert "gpu_emulator frame recordings" in asked


@pytest.mark.parametrize("script", ["echo '==ERROR== ERR_NVGPUCTRPERM'; exit 1", "echo no >&2; exit 9"])
def test_a_profiler_that_fails_is_said_in_one_line(
    script: str, program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(Path("recordings"), program_bytes(program), [recording()])
    fake_ncu(monkeypatch, script)
    assert main(["recordings"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_without_ncu_a_stored_profile_can_be_read(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    store(Path("recordings"), program_bytes(program), [recording()])
    monkeypatch.setattr(gpu_counters.shutil, "which", lambda _: None)
    assert main(["recordings"]) == 3
    assert main(["recordings", "--csv", str(ROOT / "tests/data/ncu.csv")]) == 0
    assert main(["recordings", "--csv", "absent.csv"]) == 4
