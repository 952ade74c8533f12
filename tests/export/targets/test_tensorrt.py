"""Compiling a plan: what is asked of each release, how it is stopped, and what it says when it fails."""

from __future__ import annotations

import enum
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from refusion_edge.backends.tensorrt.product import TENSORRT, plan_version
from refusion_edge.backends.tensorrt.settings import NO_SETTINGS, PlanSettings
from refusion_edge.errors import BackendError, UsageError
from refusion_edge.export.targets.plan import Plan, compile_plan
from refusion_edge.sizes import DYNAMIC, SizeRange, parse_sizes
from tests.fakes.tensorrt import FakeTensorRT, release
from tests.raising import raises

RANGE = SizeRange((8, 8), (16, 24), (64, 96))


class Phases:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        self.told.append(("started", phase, parent, steps))

    def stepped(self, phase: str, step: int) -> None:
        self.told.append(("stepped", phase, step))

    def finished(self, phase: str) -> None:
        self.told.append(("finished", phase))


def compiled(settings: PlanSettings = NO_SETTINGS, sizes_hw: SizeRange | None = None, **options: Any) -> Plan:
    return compile_plan(TENSORRT, b"model", settings, sizes_hw, **options)


def test_strong_typing_is_asked_for_only_where_it_has_to_be(fake_trt: FakeTensorRT) -> None:
    plan = compiled()
    typed = fake_trt.__version__.startswith("10.")
    assert fake_trt.asked == [("network", 2 if typed else 0), ("no flag", "TF32")]
    command = "trtexec --onnx=model.onnx --saveEngine=engine.plan --skipInference --noTF32"
    assert plan.command == command + " --stronglyTyped" * typed
    assert plan.tools == {"tensorrt": fake_trt.__version__}
    assert plan.scratch_bytes == 4096
    assert plan_version(plan.data, TENSORRT) == "10.3.0.26"


def test_every_setting_reaches_the_compiler_and_the_command(fake_trt: FakeTensorRT) -> None:
    plan = compiled(PlanSettings(workspace_mib=512, optimization_level=4, version_compatible=True), RANGE)
    assert fake_trt.asked[2:] == [
        ("limit", "WORKSPACE", 512 << 20),
        ("flag", "VERSION_COMPATIBLE"),
        ("shape", "a", (1, 1, 8, 8), (1, 1, 16, 24), (1, 1, 64, 96)),
        ("shape", "b", (1, 1, 8, 8), (1, 1, 16, 24), (1, 1, 64, 96)),
        ("profile",),
    ]
    for word in (
        "--minShapes=a:1x1x8x8,b:1x1x8x8",
        "--optShapes=a:1x1x16x24,b:1x1x16x24",
        "--maxShapes=a:1x1x64x96,b:1x1x64x96",
        "--memPoolSize=workspace:512",
        "--builderOptimizationLevel=4",
        "--versionCompatible",
    ):
        assert word in plan.command.split()


def test_8_bit_sources_have_the_sizes_of_the_others(fake_trt: FakeTensorRT) -> None:
    fake_trt.network_inputs = ["a", "b", "a_pixels", "b_pixels"]
    plan = compiled(PlanSettings(uint8_input=True), RANGE)
    assert [asked[1] for asked in fake_trt.asked if asked[0] == "shape"] == ["a", "b", "a_pixels", "b_pixels"]
    assert "--minShapes=a:1x1x8x8,b:1x1x8x8,a_pixels:1x1x8x8,b_pixels:1x1x8x8" in plan.command.split()
    with raises(BackendError, expected=("a", "b", "fused"), got=("a", "a_pixels", "b", "b_pixels", "fused")):
        compiled()


def test_progress_is_told_in_phases(fake_trt: FakeTensorRT) -> None:
    phases = Phases()
    compiled(listener=phases)
    assert phases.told == [
        ("started", "Building engine", None, 3),
        ("started", "Timing", "Building engine", 1),
        ("finished", "Timing"),
        *[("stepped", "Building engine", step) for step in range(3)],
        ("finished", "Building engine"),
    ]


def test_an_interrupt_stops_the_compiler_and_then_comes_through(fake_trt: FakeTensorRT) -> None:
    """A real SIGINT, sent to the main thread while the compiler works in its own."""
    fake_trt.steps = 10_000
    begun = threading.Event()

    class Slow(Phases):
        def stepped(self, phase: str, step: int) -> None:
            begun.set()
            time.sleep(0.01)

    def interrupt() -> None:
        begun.wait(10)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        compiled(listener=Slow())
    assert fake_trt.asked[-1][0] == "stopped after"
    assert time.perf_counter() - started < 10


def test_an_interrupt_while_the_compiler_starts_is_not_lost(fake_trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread runs, but the interrupt hits the main thread before it has left ``start``."""
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        start(self)
        if self.name == "compiler":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compiled()
    assert "compiler" not in [thread.name for thread in threading.enumerate()]


def test_a_listener_that_fails_fails_the_build(fake_trt: FakeTensorRT) -> None:
    class Broken(Phases):
        def stepped(self, phase: str, step: int) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compiled(listener=Broken())


def test_timings_are_kept_from_build_to_build(fake_trt: FakeTensorRT) -> None:
    file = Path("cache/timing.cache")
    assert compiled(timing_cache=file).remarks == ()
    assert file.read_bytes() == b"timings"
    assert compiled(timing_cache=file).remarks == ()
    assert [asked for asked in fake_trt.asked if asked[0] == "timing cache"] == [
        ("timing cache", b""),
        ("timing cache", b"timings"),
    ]


def test_a_damaged_timing_cache_is_ignored_said_and_made_anew(fake_trt: FakeTensorRT) -> None:
    file = Path("timing.cache")
    file.write_bytes(b"rot")
    plan = compiled(timing_cache=file)
    assert plan.data
    assert "timing.cache is damaged" in plan.remarks[0]
    assert file.read_bytes() == b"timings"


def test_timings_that_cannot_be_read_or_kept_do_not_stop_the_build(fake_trt: FakeTensorRT) -> None:
    Path("timing.cache").mkdir()
    plan = compiled(timing_cache=Path("timing.cache"))
    assert "could not be read" in plan.remarks[0]
    assert "could not be written" in plan.remarks[1]


# What TensorRT reports, what the problem has to name, and what the remedy.
FAILURES = {
    "builder": (
        "CUDA initialization failure with error: 35",
        ("CUDA initialization failure with error: 35",),
        "refusion-edge doctor",
    ),
    "parse": ("", ("no such operator in the node node_7 (Fly)",), ""),
    "build": ("Error Code 9: no tactics to implement the operation", ("16 MiB", "Error Code 9"), "--workspace"),
    "memory": ("Cuda Runtime (Out of memory)", ("1024 MiB free of 1024", "Cuda Runtime"), "--size smaller"),
    "other": ("The moon is\nin the wrong quarter.", ("The moon is in the wrong quarter",), "--version-compatible"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_told_in_one_sentence_with_what_to_do(fake_trt: FakeTensorRT, failure: str) -> None:
    said, named, remedy = FAILURES[failure]
    fake_trt.troubles[failure if failure in ("builder", "parse") else "build"] = said
    with raises(BackendError, *named, remedy=remedy):
        compiled(PlanSettings(workspace_mib=16, version_compatible=True))


@pytest.mark.parametrize(("sizes_hw", "size"), [(None, "480x640"), (RANGE, "64x96")])
def test_too_little_memory_names_the_number_and_the_smaller_setting(
    fake_trt: FakeTensorRT, sizes_hw: SizeRange | None, size: str
) -> None:
    fake_trt.troubles["warning"] = "Requested amount of GPU memory (8589934592 bytes) could not be allocated."
    fake_trt.troubles["build"] = "Error Code 2: OutOfMemory (no further information)"
    with raises(BackendError, "8192 MiB", f"for {size}", "1024 MiB free of 1024", remedy=f"--size smaller than {size}"):
        compiled(sizes_hw=sizes_hw)
    assert not fake_trt.driver.held


def test_without_a_device_there_is_no_number_of_its_own(fake_trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise BackendError("there is no CUDA device")

    monkeypatch.setattr("refusion_edge.cuda.open_driver", refuse)
    fake_trt.troubles["build"] = "out of memory"
    with raises(BackendError, "for 480x640: out of memory", remedy="--size smaller than 480x640"):
        compiled()


def test_a_release_without_strong_typing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", release("8.6.1"))
    with raises(BackendError, expected="10.3", got="8.6.1"):
        compiled()


def test_what_a_compiler_does_not_offer_is_refused(fake_trt: FakeTensorRT) -> None:
    with raises(UsageError, "--compute-capability", expected="tensorrt-rtx", got="tensorrt"):
        compiled(PlanSettings(compute_capabilities=("8.6",)))
    fake_trt.BuilderFlag = enum.Enum("BuilderFlag", ["FP16"] * fake_trt.__version__.startswith("10.") + ["TF32"])
    with raises(UsageError, remedy="--version-compatible"):
        compiled(PlanSettings(version_compatible=True))


@pytest.mark.parametrize(
    ("settings", "expected", "got"),
    [
        ({"optimization_level": 6}, (0, 5), 6),
        ({"optimization_level": -1}, (0, 5), -1),
        ({"workspace_mib": 0}, (1, 1 << 20), 0),
        ({"compute_capabilities": ("8",)}, None, "8"),
        ({"compute_capabilities": ("sm_86",)}, None, "sm_86"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], expected: object, got: object) -> None:
    with raises(UsageError, expected=expected, got=got):
        PlanSettings(**settings)


def test_sizes_are_read_as_they_are_written() -> None:
    assert parse_sizes("480x640") == ((480, 640), None)
    assert parse_sizes("dynamic") == (None, None)
    assert parse_sizes(str(DYNAMIC)) == (None, DYNAMIC)
    for text in ("64x64:480x640", "64x64:480x640:320x320", "480x640:64x64:1024x1280", "64x64:dynamic:480x640", "1x1:2x2:3x3"):
        with raises(UsageError, got=(1, 1) if text.startswith("1x1") else text):
            parse_sizes(text)
