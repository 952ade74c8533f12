"""The self-test on back ends of the processor, and how it tells of what is wrong, absent or unforeseen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.accuracy.gate import Fidelity
from refusion_edge.accuracy.vectors import read_vectors
from refusion_edge.arrays import Float32Array
from refusion_edge.backends.registry import Status
from refusion_edge.cli.selftest import build
from refusion_edge.errors import BackendError
from refusion_edge.selftest.checks import (
    HEADINGS,
    Check,
    DeviceFacts,
    Latency,
    SelfTest,
    check_backend,
    check_bundle,
    timing_sizes,
)
from refusion_edge.selftest.software import Software
from refusion_edge.selftest.subprocess import run_in_subprocess
from tests.conftest import ROOT, files_below, one_sentence

Run = Callable[..., tuple[int, str, str]]


def test_a_back_end_is_built_verified_and_timed(run_cli: Run) -> None:
    code, out, err = run_cli("selftest", "--backends", "onnxruntime", "--json", "-")
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "refusion-edge/selftest/1"
    assert document["passed"]
    (check,) = document["checks"]
    assert (check["outcome"], check["precision"], check["trace"]) == ("passed", "fp16", "")
    assert check["build_s"] > 0
    assert check["fidelity"]["psnr_db"] > check["limits"]["psnr_db"]
    assert check["latency"]["size_hw"] == [45, 63]
    assert check["latency"]["count"] >= 3
    assert document["row"].count("|") == len(HEADINGS) + 1
    assert "onnxruntime fp16: " in document["row"]
    assert files_below(Path("..")) == ["work"]


def test_the_row_fits_the_table_of_platforms() -> None:
    page = (ROOT / "docs" / "platforms.md").read_text()
    assert f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}\n|" in page


def test_a_bundle_is_held_against_its_own_reference(run_cli: Run) -> None:
    words = ("--task", "medical", "--precision", "fp16", "--backend", "onnxruntime", "--size", "48x64", "-o", "bundle")
    assert run_cli("build", *words)[0] == 0
    check = check_bundle(Path("bundle"))
    assert (check.outcome, check.backend, check.precision) == ("passed", "onnxruntime", "fp16")
    assert check.latency is not None
    assert check.latency.size_hw == (48, 64)
    assert check.name == "bundle"


@pytest.mark.parametrize(
    ("words", "expected", "hint"),
    [
        (("--backends", "tensort"), 2, "did you mean 'tensorrt'?"),
        (("--size", "16x16"), 2, "45x63"),
        (("--size", "dynamic"), 2, "'dynamic'"),
        (("--limit", "0"), 2, "--limit 0"),
        (("--limit", "nan"), 2, "--limit nan"),
        (("nothing",), 4, "build"),
    ],
)
def test_a_mistake_is_one_sentence(run_cli: Run, words: tuple[str, ...], expected: int, hint: str) -> None:
    code, _, err = run_cli("selftest", *words)
    assert code == expected
    assert hint in err
    assert one_sentence(err)


def test_what_was_asked_for_and_is_not_there_is_exit_code_3(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.selftest.subprocess.run_in_subprocess", lambda work, *words, limit_s: work(*words))
    monkeypatch.setattr(
        "refusion_edge.backends.tensorrt.runner.TrtBackend.probe_build", lambda: Status(usable=False, reason="no such thing")
    )
    monkeypatch.setattr(
        "refusion_edge.backends.tensorrt.runner.TrtBackend.probe", lambda: Status(usable=False, reason="no such thing")
    )
    code, out, _ = run_cli("selftest", "--backends", "tensorrt")
    assert code == 3
    assert re.search(r"^tensorrt fp16 +absent +no such thing", out, re.MULTILINE)
    assert out.rstrip().splitlines()[-1].startswith("| ")


def test_a_back_end_that_is_wrong_fails_and_the_others_go_on(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(work: Callable[..., Check], name: str, *words: object, limit_s: float) -> Check:
        if name == "eager":
            raise BackendError("the process was ended by SIGSEGV", "report this")
        return work(name, *words)

    monkeypatch.setattr("refusion_edge.selftest.subprocess.run_in_subprocess", answer)
    monkeypatch.setattr("refusion_edge.backends.onnxruntime.OrtBackend.fuse", lambda _, a, b: np.full_like(a, np.nan))
    code, out, _ = run_cli("selftest", "--backends", "onnxruntime,eager")
    assert code == 1
    assert re.search(r"^onnxruntime fp16 +failed", out, re.MULTILINE)
    assert re.search(r"^eager fp32 +failed .*SIGSEGV", out, re.MULTILINE)
    assert "onnxruntime fp16: FAILED; eager fp32: FAILED" in out


def test_numbers_that_are_off_fail_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vectors = read_vectors()

    class Off:
        name = "eager"

        def __enter__(self) -> Off:
            return self

        def __exit__(self, *exc: object) -> None: ...

        def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
            return np.resize(vectors.fused, a.shape) + np.float32(0.01)

    monkeypatch.setattr("refusion_edge.backends.eager.probe", lambda: Status(usable=True, reason="made up"))
    monkeypatch.setattr("refusion_edge.backends.eager.open_weights", lambda state, options: Off())
    check = check_backend("eager", timing_sizes((50, 70)), build, tmp_path)
    assert check.outcome == "failed"
    assert one_sentence(check.reason)
    assert check.latency is not None
    assert check.latency.size_hw == (50, 70)
    assert check.fidelity is not None
    assert 2.5 < check.fidelity.max_error < 2.6


def test_an_error_that_nobody_foresaw_is_kept_with_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fly(*_: object) -> None:
        raise AttributeError("module 'tensorrt' has no attribute 'fly'")

    check = check_backend("onnxruntime", timing_sizes(None), fly, tmp_path)
    assert check.outcome == "failed"
    assert check.reason == "AttributeError: module 'tensorrt' has no attribute 'fly'"
    assert "in fly" in check.trace


def test_a_check_travels_between_processes(tmp_path: Path) -> None:
    check = run_in_subprocess(check_backend, "tensorrt", timing_sizes(None), build, tmp_path, limit_s=120)
    assert check.name == "tensorrt"


def test_a_row_is_one_line_whatever_the_device_is_called() -> None:
    software = Software("6.2+b77", "36.4.3", "540.4.0", "12.6.68", "10.3.0.30")
    facts = DeviceFacts(
        "Orin | Nano\n8 GB", "8.7", "", "linux/aarch64", "Ubuntu 22.04", 6, software,
        {"tensorrt": "10.3.0", "tensorrt_rtx": None}, "3.10.12", "nvpmodel 25W",
    )  # fmt: skip
    good = Check(
        "fused", "fused", "fp16", "passed", "", 1.0, Fidelity(78.12, 0.99999, 0.3), Latency((480, 640), 50, 12.34567, 20.0)
    )
    built = Check("tensorrt-rtx", "tensorrt-rtx", "fp16", "built", "")
    absent = Check("tensorrt", "tensorrt", "fp16", "absent", "not installed")
    assert SelfTest("2026-11-22T10:00:00+00:00", facts, (good, built, absent)).row.startswith(
        "| Orin \\| Nano 8 GB (8.7) | Ubuntu 22.04, linux/aarch64 | 6.2+b77, 36.4.3 | 540.4.0, 12.6.68 "
        "| library 10.3.0.30, tensorrt 10.3.0 | 3.10.12 | nvpmodel 25W "
        "| fused fp16: 78.1 dB, 12.3 ms at 480x640; tensorrt-rtx fp16: built, not run |"
    )
