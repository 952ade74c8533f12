"""The GPU benchmark where there is no GPU: what it plans, checks, counts and prints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the benchmark runs on torch")

from benchmarks import gpu_suite
from benchmarks.gpu_engines import TimedDriver, time_engine, watch_for_leaks
from benchmarks.gpu_suite import PARTS, SCHEMA, Setting, chosen_parts, is_good, main, run_part, tables
from benchmarks.kernel_work import frame_work, layer_rows, least_ms, scratch_bytes
from refusion_edge.arrays import State
from refusion_edge.backends.fused import FusedBackend
from refusion_edge.cuda.program import Tile
from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.kernels.gpu.folding import fold
from refusion_edge.kernels.gpu.kernel_sets import fast_kernels
from refusion_edge.kernels.gpu.language import TRITON_INSTALLED
from refusion_edge.kernels.gpu.schedule import make_schedule, tiles
from refusion_edge.kernels.gpu.simulated_device import SimulatedProgramDevice
from refusion_edge.network.fast import FastLayout
from tests.fakes.programs import hollow_program

needs_triton = pytest.mark.skipif(not TRITON_INSTALLED, reason="needs Triton: pip install 'refusion-edge[triton]'")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "checks,speed"], "speed"),
        (["--sizes", "480x640,480"], "'480'"),
        (["--sizes", "480x640,dynamic"], "'480x640,dynamic'"),
        (["--rounds", "0"], "0"),
        (["--kernels", "stem,root"], "root"),
        ([], "no device"),
    ],
)
def test_what_cannot_be_measured_is_said(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_suite.cuda, "problem", lambda: "no device")
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_interpreter_is_not_taken_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite.cuda, "problem", lambda: None)
    monkeypatch.setattr(gpu_suite, "is_installed", lambda _: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset it" in (gpu_suite.problem() or "")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_suite.problem() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no device, or was built without CUDA" in (gpu_suite.problem() or "")
    monkeypatch.setattr(gpu_suite, "is_installed", lambda name: name != "triton")
    assert gpu_suite.problem() == "triton is not installed"


def test_parts_run_in_their_order() -> None:
    assert chosen_parts("loss,checks") == ["checks", "loss"]
    assert chosen_parts("all") == list(PARTS)


def test_a_part_that_fails_keeps_its_rows_and_lets_the_others_run(random_state: State, capsys: Any) -> None:
    def part(setting: Setting, ceilings: dict[str, float]) -> Iterator[dict[str, Any]]:
        yield {"name": "one", "error": float("nan"), "good": False}
        raise ValueError("no such thing\nand more")

    found = run_part(part, Setting(((8, 8),), 1, random_state), {})
    assert found == {"rows": [{"name": "one", "error": None, "good": False}], "error": "ValueError: no such thing"}
    assert "one" in capsys.readouterr().out
    assert not is_good({"parts": {"a": found}})
    assert not is_good({"parts": {"a": {"rows": found["rows"], "error": None}}})
    assert is_good({"parts": {"a": {"rows": [{"good": True}, {"ms": 1.0}], "error": None}}})


def stored() -> dict[str, Any]:
    """A run of every part with made-up numbers."""
    size = {"size_hw": [480, 640]}
    check = {"check": "kernel", "name": "stem", "dtype": "float16", "size_hw": [3, 5], "limit": 0.004, "remark": ""}
    rows: dict[str, list[dict[str, Any]]] = {
        "checks": [
            {**check, "error": 0.001, "good": True},
            {**check, "dtype": "float32", "error": None, "good": True, "remark": "out of shared memory"},
            {**check, "error": 0.5, "good": False},
            {**check, "check": "frame", "limit": 70.0, "error": 81.5, "good": True},
        ],
        "frame": [
            {"name": "ours", **size, "ms": 0.5, "beside_ours": 1.0, "roofline_ms": 0.3, "scratch_bytes": 71_000_000},
            {"name": "official, torch eager fp32", **size, "ms": 9.0, "beside_ours": 18.0},
            {"name": "official, torch.compile fp16", **size, "ms": 3.0, "beside_ours": 6.0},
            {"name": "ONNX Runtime CUDA", **size, "ms": 7.0},
        ],
        "launches": [{"name": "stem", **size, "ms": 0.01, "roofline_ms": 0.004, "launches": 1, "tile": [64, 8, 4]}],
        "loss": [{"name": "signed, kernels", "shape": [16, 1, 128, 128], "ms": 0.1, "launches": 3}],
        "engines": [
            {"name": "fused, pycuda", **size, "device_ms": 0.6, "wall_ms": 0.9},
        ],
        "leaks": [{"name": "fused, pycuda", "frames": 10000, "changes": 100, "lost_bytes": 0, "same": True, "good": True}],
        "sweep": [
            {"name": "stem", "tile": [64, 8, 4], "ms": 0.01, "remark": "", "chosen": True},
            {"name": "stem", "tile": [128, 8, 4], "ms": 0.008, "remark": "", "chosen": False},
            {"name": "stem", "tile": [128, 32, 8], "ms": 0.001, "remark": "wrong by 1e+00", "chosen": False},
            {"name": "narrow", "tile": [128, 32, 8], "ms": None, "remark": "out of resource", "chosen": True},
        ],
    }
    parts: dict[str, Any] = {name: {"rows": rows[name], "error": None} for name in PARTS}
    parts["loss"]["error"] = "ValueError: no"
    return {
        "schema": SCHEMA, "started": "2026-11-22T10:00:00+00:00", "machine": {}, "versions": {"torch": "2.11"},
        "device": {"name": "H200", "compute_capability": "9.0"}, "ceilings": {"bytes_per_s": 4.3e12, "flops_per_s": 7.9e14},
        "rounds": 50, "parts": parts,
    }  # fmt: skip


def test_the_tables_are_made_from_a_stored_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.json").write_text(json.dumps(stored()))
    assert main(["--table", "run.json"]) == 0
    text = capsys.readouterr().out
    assert text == tables(stored())
    for line in (
        "H200 (compute capability 9.0), 2026-11-22, medians of 50 rounds; torch 2.11.",
        "Measured rates: 4.30 TB/s in a copy, 790 TFLOP/s in a product of fp16 matrices.",
        "3 of 4 checks are good.",
        "| kernel | float16 | 0.5 | 0.004 |",
        "| frame | float16 | 81.5 | 70 |",
        "- **bad**: stem, float16, 5x3: 0.5",
        "| ours (60 % of the roofline, 71 MB) | 640x480 | 0.500 | 1.0x | 0.6 ms | yes |",
        "| official, torch eager fp32 | 640x480 | 9.000 | 18.0x | 20x | **no** |",
        "| official, torch.compile fp16 | 640x480 | 3.000 | 6.0x | 5x | yes |",
        "| ONNX Runtime CUDA | 640x480 | 7.000 |  |  |  |",
        "| `stem` | 640x480 | 1 | 10.0 | 40 % | 64x8, 4 warps |",
        "| signed, kernels | 16x1x128x128 | 0.100 | 3 |",
        "**The part loss did not come to its end: ValueError: no**",
        "| fused, pycuda | 640x480 | 0.600 | 0.900 |",
        "- fused, pycuda: 10000 frames and 100 changes of size left 0 bytes behind, the result is the same.",
        "| `stem` | 64x8/4 | 10.0 | 128x8/4 | 8.0 |",
    ):
        assert line in text, line
    assert "narrow" not in text


def test_work_is_counted_from_the_plan(random_state: State) -> None:
    works = frame_work(make_schedule(), fold(random_state).rounded(np.dtype(np.float16)))
    assert len(works) == 25
    stem, *_, narrow, to_plane, stretch = works
    # Two planes in single precision to two times 16 channels in half precision.
    assert (stem.kernel, stem.bytes, stem.flops) == ("stem", 2 * 4 + 32 * 2, 2 * 2 * 9 * 16)
    assert (narrow.bytes, narrow.flops) == (32 * 2 + 16 * 2, 2 * 9 * 32 * 16)
    assert (to_plane.bytes, stretch.bytes) == (16 * 2 + 4, 4 + 1)
    assert 270e3 <= sum(work.flops for work in works) / 2 <= 285e3
    assert sum(work.bytes for work in works) == 2065
    assert least_ms(narrow, 1000, 96e6, 1e15) == pytest.approx(1.0)
    assert least_ms(narrow, 1000, 1e15, 9.216e9) == pytest.approx(1.0)


def test_work_of_the_network_fast_is_counted_per_pixel_and_not_per_cell() -> None:
    layout = FastLayout()
    state = {name: np.zeros(shape, np.float32) for name, shape in layout.shapes.items()}
    kernels = fast_kernels(layout)
    schedule = kernels.schedule("float16")
    statistics, convolutions, stretch = frame_work(schedule, kernels.fold(state).rounded(np.dtype(np.float16)))
    assert (statistics.bytes, convolutions.bytes, stretch.bytes) == (2 * 4, 2 * 4 + 4, 4 + 1)
    # 8 channels are padded to 16, 24 to 32, and a cell has four pixels.
    assert convolutions.flops == 2 * 9 * (16 * 32 + 4 * 32 * 32 + 32 * 16) / 4
    kernel = schedule.kernels["fast_convolutions"]
    # 54 of 64 columns and 24 rows of cells are its own; every layer but the last makes some around them, written and read.
    assert layer_rows(kernel, Tile(108, 48, 4)) == [34, 32, 30, 28, 26, 24]
    assert scratch_bytes(schedule, kernel, Tile(108, 48, 4)) == pytest.approx(
        2 * 2 * (34 + 32 + 30 + 28 + 26) * 64 * 32 / (108 * 48)
    )


@pytest.mark.slow
@needs_triton
def test_checks_pass_in_the_interpreter_and_see_a_wrong_kernel(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_checks

    cut = dict.fromkeys(make_schedule().kernels, Tile(16, 4, 1))
    names = ["stem", "encoder_mixing", "to_plane", "stretch"]
    rows = list(gpu_checks.check_kernels(random_state, cut, [(3, 5), (1, 20)], "cpu", names))
    assert [row["name"] for row in rows[::4]] == names
    rows += gpu_checks.check_loss((1, 1, 2, 20), "cpu")
    assert len([row for row in rows if row["check"] == "loss"]) == 3 * 7
    assert all(row["good"] for row in rows)

    honest = gpu_checks.gpu_cases.launch

    def wrong(*given: Any) -> Any:
        results = honest(*given)
        next(iter(results.values()))[0] += 1
        return results

    monkeypatch.setattr(gpu_checks.gpu_cases, "launch", wrong)
    assert not next(gpu_checks.check_kernels(random_state, cut, [(3, 5)], "cpu", ["to_plane"]))["good"]


@needs_triton
def test_a_single_precision_kernel_that_does_not_fit_is_remarked(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_checks

    def refuse(case: Any, _: str) -> Any:
        raise type("OutOfResources", (Exception,), {})("out of resource: shared memory\nmore")

    monkeypatch.setattr(gpu_checks.gpu_cases, "launch", refuse)
    found = gpu_checks.check_kernels(random_state, tiles(87), [(3, 5)], "cpu", ["stem"])
    row = next(found)
    assert (row["dtype"], row["good"], row["remark"]) == ("float32", True, "out of resource: shared memory")
    with pytest.raises(Exception, match="out of resource"):  # in half precision it is an error
        next(found)


@pytest.mark.slow
@needs_triton
def test_a_frame_is_held_against_the_network(random_state: State) -> None:
    from benchmarks import gpu_checks

    planes = np.random.default_rng(0).random((2, 8, 9), np.float32)
    cut = dict.fromkeys(make_schedule().kernels, Tile(16, 8, 1))
    (row,) = gpu_checks.check_frame(random_state, cut, planes, "cpu")
    assert 50 < row["error"] < 110
    assert row["good"] == (row["error"] >= 70)


@needs_triton
def test_a_sweep_begins_with_the_chosen_tile_and_tries_none_twice() -> None:
    from benchmarks.gpu_speed import sweep_tiles

    tried = sweep_tiles("stem", Tile(64, 8, 4))
    assert tried[0] == Tile(64, 8, 4)
    assert len(tried) == len(set(tried)) == 27
    assert sweep_tiles("decoder_mixing", Tile(64, 8, 4)) == [Tile(64, 8, 4)]


def test_parts_come_one_by_one_after_everything_was_compiled(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_clock, gpu_compile

    device = SimpleNamespace(name="H200", major=9, minor=0, multi_processor_count=132, total_memory=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(gpu_clock, "measure_ceilings", lambda _: gpu_clock.Ceilings(1.0, 2.0))
    compiled: list[Any] = []
    monkeypatch.setattr(gpu_compile, "compile_ahead", lambda *given, **more: compiled.append((given, more)) or 0)
    for name in PARTS:
        monkeypatch.setitem(PARTS, name, lambda *_: iter([{"good": True}]))
    setting = Setting(((8, 8),), 1, random_state, ("stretch",))
    seen = [list(document["parts"]) for document in gpu_suite.measure(setting, ["checks", "sweep"])]
    assert seen == [["checks"], ["checks", "sweep"]]
    (((work, architecture), more),) = compiled
    assert (architecture, more) == (90, {"with_loss": True})
    names = [one.name for one in work]
    assert {names.count(name) for name in make_schedule().kernels if name != "stretch"} == {2}
    assert names.count("stretch") > 20


@pytest.mark.slow
@needs_triton
def test_kernels_are_compiled_ahead_as_a_launch_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks.gpu_compile import Wanted, compile_ahead

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    work = [Wanted("stretch", "float16", Tile(16, 4, 1)), Wanted("stretch", "float16", Tile(17, 4, 1))]
    assert compile_ahead(work, 90, jobs=1) == 1  # a tile has to be a power of two
    kept = sorted(path.name for path in (tmp_path / "triton").rglob("stretch_kernel.cubin"))
    assert kept == ["stretch_kernel.cubin"]
    assert compile_ahead(work[:1], 90, jobs=1) == 1
    assert len(list((tmp_path / "triton").rglob("stretch_kernel.cubin"))) == 1  # found, not made anew


@pytest.mark.slow
def test_engines_are_timed_on_the_device_and_on_the_wall(random_state: State) -> None:
    program = hollow_program(random_state, 87)
    data = program_bytes(program)
    rows = time_engine(
        "fused", SimulatedProgramDevice(program, 87), lambda driver: FusedBackend(data, driver=driver), [(8, 9), (9, 8)], 2
    )
    assert [row["size_hw"] for row in rows] == [[8, 9], [9, 8]]
    assert all(0 < row["device_ms"] < row["wall_ms"] for row in rows)
    with pytest.raises(RuntimeError, match="not entered"):
        TimedDriver(SimulatedProgramDevice(program, 87)).launch(1, 1)


@pytest.mark.slow
def test_a_leak_is_what_is_gone_after_many_frames(random_state: State) -> None:
    program = hollow_program(random_state, 87)
    data, free = program_bytes(program), iter((1000, 900))

    def opened(driver: Any) -> FusedBackend:
        return FusedBackend(data, driver=driver)

    row = watch_for_leaks(SimulatedProgramDevice(program, 87), opened, lambda: next(free), frames=1, changes=2, size_hw=(8, 9))
    assert row == {"frames": 1, "changes": 2, "lost_bytes": 100, "same": True}


def test_every_part_has_a_table() -> None:
    assert gpu_suite._TABLES.keys() == PARTS.keys()
    assert dataclasses.is_dataclass(Setting)
