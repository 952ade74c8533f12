"""Running a plan: order of calls, sizes of buffers, and who releases what when, on a device that is not there."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest

from refusion_edge.arrays import Float32Array, Uint8Array
from refusion_edge.backends.tensorrt.runner import TrtBackend
from refusion_edge.bench.measurement import Pipeline, measure, times_of
from refusion_edge.bench.subjects import Identity, Subject, Wanted, find_subjects
from refusion_edge.bench.timing import Plan, SystemClock
from refusion_edge.cuda.driver import Device, HostBuffer
from refusion_edge.errors import BackendError, BundleError, GateError, MisfitError, ShapeError
from refusion_edge.fuser import Fuser
from refusion_edge.images.color import OutputRange, merge, to_output_range
from refusion_edge.images.pairs import ImagePair
from refusion_edge.kernels.gpu.simulated_device import SimulatedDevice
from refusion_edge.network.cost import refusion_work
from refusion_edge.tasks import find_task
from tests.conftest import one_sentence
from tests.fakes.tensorrt import DESKTOP, JETSON, FakeTensorRT, plan_bytes, refuse_to_record
from tests.raising import raises

HW = (16, 24)
NBYTES = 4 * HW[0] * HW[1]


def planes(size_hw: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.random((1, 1, *size_hw), np.float32), draw.random((1, 1, *size_hw), np.float32)


def test_images_are_copied_to_a_discrete_device_and_back(fake_trt: FakeTensorRT) -> None:
    driver = fake_trt.driver
    a, b = planes(HW)
    with TrtBackend(plan_bytes()) as engine:
        fused = engine.fuse(a, b)
        assert np.array_equal(fused, (a + b) / 2)
        assert fused.shape == a.shape
        assert fused.dtype == np.float32
        assert driver.calls == [
            *[f"host {NBYTES}", f"allocate {NBYTES}"] * 3, f"allocate {NBYTES // 4 * 10}",
            "upload", "upload", "enqueue", "download", "synchronize", "capture",
        ]  # fmt: skip


def test_the_second_run_is_a_recorded_graph(fake_trt: FakeTensorRT) -> None:
    with TrtBackend(plan_bytes()) as engine:
        for seed in range(3):
            fake_trt.driver.calls.clear()
            a, b = planes(HW, seed)
            assert np.array_equal(engine.fuse(a, b), (a + b) / 2)
        assert fake_trt.driver.calls == ["launch", "synchronize"]
        assert engine.graph_problem == ""


def test_a_graph_that_cannot_be_recorded_is_done_without_and_said(
    fake_trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_trt.driver, "capture", refuse_to_record)
    with TrtBackend(plan_bytes()) as engine:
        for seed in range(3):
            a, b = planes(HW, seed)
            assert np.array_equal(engine.fuse(a, b), (a + b) / 2)
        assert engine.graph_problem == "a graph cannot be recorded; go on"


def test_bench_says_which_engine_is_not_replayed_from_a_graph(fake_trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(warmup_ms=0, warmup_iterations=1, iterations=9, seconds=0, tolerance=1e6, most_windows=3)
    draw = np.random.default_rng(8)
    pair = ImagePair("x", *(draw.integers(0, 256, HW, np.uint8) for _ in range(2)))
    identity = Identity("bundle", "ir_vis", "fp16", HW, "tensorrt", 0)
    files = find_subjects("ir_vis", Wanted())[0].files
    subject = Subject(
        identity,
        "ir_vis",
        files,
        None,
        lambda: Fuser(TrtBackend(plan_bytes()), find_task("ir_vis")),
        lambda: pair,
        False,
        refusion_work("fp16"),
    )
    assert measure(subject, plan, SystemClock(), None).graph_problem == ""

    monkeypatch.setattr(fake_trt.driver, "capture", refuse_to_record)
    row = measure(subject, plan, SystemClock(), None)
    assert row.graph_problem == "a graph cannot be recorded; go on"
    # The device still times its stages, of runs that are started piece by piece.
    assert row.stages is not None
    assert {"h2d", "infer", "d2h"} < row.stages.keys()


def test_a_device_that_shares_memory_copies_nothing(fake_trt: FakeTensorRT) -> None:
    fake_trt.driver.device = JETSON
    a, b = planes(HW)
    with TrtBackend(plan_bytes()) as engine:
        assert np.array_equal(engine.fuse(a, b), (a + b) / 2)
        assert engine.device is JETSON
    calls = fake_trt.driver.calls
    assert calls[:5] == [*[f"host {NBYTES} mapped"] * 3, f"allocate {NBYTES // 4 * 10}", "enqueue"]
    assert not {"upload", "download"} & set(calls)


def test_a_new_size_gives_the_old_memory_back_first(fake_trt: FakeTensorRT) -> None:
    with TrtBackend(plan_bytes()) as engine:
        for size_hw in (HW, (8, 8), (64, 96), HW):
            a, b = planes(size_hw)
            assert np.array_equal(engine.fuse(a, b), (a + b) / 2)
            assert fake_trt.driver.held == "4 pointers, 3 host buffers, 1 streams, 1 graphs"


def test_everything_is_released_in_the_right_order(fake_trt: FakeTensorRT) -> None:
    with TrtBackend(plan_bytes()) as engine:
        engine.fuse(*planes(HW))
        fake_trt.driver.calls.clear()
    gc.collect()
    calls = fake_trt.driver.calls
    assert calls[0] == "destroy graph"
    assert calls[-4:] == ["drop context", "drop engine", "destroy stream", "close"]
    assert sorted(calls[1:-4]) == ["free"] * 4 + ["free host"] * 3


@pytest.mark.parametrize("trouble", ["load", "context", "dtype"])
def test_an_engine_that_does_not_open_leaves_nothing_on_the_device(fake_trt: FakeTensorRT, trouble: str) -> None:
    fake_trt.troubles[trouble] = "as the test wants it"
    with pytest.raises((BackendError, BundleError)) as caught:
        TrtBackend(plan_bytes())
    assert one_sentence(str(caught.value))
    assert not fake_trt.driver.is_open
    assert not fake_trt.driver.held


@pytest.mark.parametrize(("trouble", "named"), [("shape", "16x24"), ("run", "RTX of the tests")])
def test_an_engine_that_does_not_run_says_so(fake_trt: FakeTensorRT, trouble: str, named: str) -> None:
    fake_trt.troubles[trouble] = "as the test wants it"
    with TrtBackend(plan_bytes()) as engine, raises(BackendError, named):
        engine.fuse(*planes(HW))


def test_too_little_memory_is_told_in_numbers_and_a_smaller_image_still_runs(fake_trt: FakeTensorRT) -> None:
    fake_trt.driver.total = 100_000
    with TrtBackend(plan_bytes()) as engine:
        with raises(BackendError, "device memory", remedy="smaller --size"):
            engine.fuse(*planes((64, 96)))
        assert fake_trt.driver.held == "1 streams"
        a, b = planes(HW)
        assert np.array_equal(engine.fuse(a, b), (a + b) / 2)


def test_a_plan_that_does_not_fit_into_the_memory_is_told_in_numbers(fake_trt: FakeTensorRT) -> None:
    fake_trt.troubles["load"] = "Error Code 2: OutOfMemory (no further information)"
    with raises(BackendError, "1024 MiB free of 1024"):
        TrtBackend(plan_bytes())
    assert not fake_trt.driver.held


def test_sizes_outside_the_range_are_refused(fake_trt: FakeTensorRT) -> None:
    with TrtBackend(plan_bytes()) as engine, raises(ShapeError, remedy="--size 64x98", got=(64, 98)):
        engine.fuse(*planes((64, 98)))
    fake_trt.shape = (1, 1, *HW)
    with TrtBackend(plan_bytes()) as engine:
        with raises(ShapeError, remedy="--size 8x8", got=(8, 8)):
            engine.fuse(*planes((8, 8)))
        engine.fuse(*planes(HW))


def test_code_inside_a_plan_is_allowed_only_where_the_plan_was_built_so(fake_trt: FakeTensorRT) -> None:
    for version_compatible in (False, True):
        fake_trt.asked.clear()
        with TrtBackend(plan_bytes(), version_compatible=version_compatible):
            assert fake_trt.asked == [("load", version_compatible)]


MISFITS = {
    "another release": (plan_bytes("8.6.1.6"), (), "it was built with TensorRT 8.6.1.6"),
    "another product": (plan_bytes("1.7.1.116", b"vtrt"), (), "it is a plan of TensorRT-RTX"),
    "another device": (plan_bytes(), ("8.7",), "it was built for compute capability 8.7"),
    "flipped bytes": (b"\0" * 200, (), "is damaged"),
    "cut short": (plan_bytes()[:20], (), "is damaged"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_plan_that_does_not_fit_says_what_it_is_and_what_this_is(fake_trt: FakeTensorRT, misfit: str) -> None:
    plan, built_for, words = MISFITS[misfit]
    fake_trt.troubles["load"] = "Serialization assertion failed"
    with raises(
        MisfitError,
        words,
        f"TensorRT {fake_trt.__version__} on RTX of the tests, compute capability 8.6",
        remedy="rebuild it here: refusion-edge build",
    ) as caught:
        TrtBackend(plan, built_for=built_for, remedy="rebuild it here: refusion-edge build")
    if fake_trt.__version__.startswith("11.") and "plan of" not in words and "damaged" not in words:
        assert "it was built for other devices" in caught.value.problem


def test_the_reason_of_tensorrt_itself_is_told_where_nothing_else_is_known(fake_trt: FakeTensorRT) -> None:
    fake_trt.troubles["load"] = "The moon is in\nthe wrong quarter."
    fake_trt.findings = 0
    version = fake_trt.__version__ + ".1"
    with raises(MisfitError, "The moon is in the wrong quarter"):
        TrtBackend(plan_bytes(version))


def test_the_device_is_closed_with_the_engine(fake_trt: FakeTensorRT) -> None:
    own = SimulatedDevice(JETSON)
    with TrtBackend(plan_bytes(), driver=own):
        assert own.is_open
    assert not own.is_open


@pytest.mark.parametrize(
    ("device", "stages"), [(DESKTOP, ["h2d", "infer", "d2h"]), (JETSON, ["infer"])], ids=["discrete", "integrated"]
)
def test_the_device_times_its_stages_where_it_is_asked_to(fake_trt: FakeTensorRT, device: Device, stages: list[str]) -> None:
    fake_trt.driver.device = device

    def slow(a: Float32Array, b: Float32Array) -> Float32Array:
        time.sleep(0.02)
        return (a + b) / 2

    with TrtBackend(plan_bytes()) as engine:
        engine.fuse(*planes(HW))
        engine.fuse(*planes(HW))
        assert engine.device_stages_ms() == {}
        engine.time_stages()
        fake_trt.compute = slow
        found = []
        for seed in range(3):  # the first is started piece by piece, the others are replays of a graph
            a, b = planes(HW, seed)
            assert np.array_equal(engine.fuse(a, b), (a + b) / 2)
            found.append(engine.device_stages_ms())
        assert fake_trt.driver.calls[-2:] == ["launch", "synchronize"]
        assert engine.graph_problem == ""
    for times_ms in found:
        assert list(times_ms) == stages
        # Nothing else holds the pause: events lie around the stages, not around the whole.
        assert times_ms["infer"] >= 20
        assert all(times_ms[stage] < 20 for stage in stages if stage != "infer")
    assert len({times_ms["infer"] for times_ms in found}) == 3


def test_bench_gets_the_stages_of_the_device_and_measures_its_levels(fake_trt: FakeTensorRT) -> None:
    fake_trt.levels = "stretch"
    draw = np.random.default_rng(7)
    pair = ImagePair("x", draw.integers(0, 256, HW, np.uint8), draw.integers(0, 256, (*HW, 3), np.uint8))
    with Fuser(TrtBackend(plan_bytes()), find_task("ir_vis")) as fuser:
        for color in (True, False):
            pipeline = Pipeline(fuser, lambda: pair, captured=False, clock=SystemClock(), color=color)
            laps = [pipeline.run() for _ in range(2)]
            assert list(times_of(laps)) == ["preprocess", "h2d", "infer", "d2h", "postprocess", "end_to_end", "cpu"]
            downloads = [call for call in fake_trt.driver.calls if call == "download"]
            assert len(downloads) == (1 if color else 2)
            fake_trt.driver.calls.clear()


@pytest.mark.parametrize("levels", ["stretch", "fixed"])
@pytest.mark.parametrize("device", [DESKTOP, JETSON])
def test_levels_come_back_instead_of_the_plane(fake_trt: FakeTensorRT, device: Device, levels: OutputRange) -> None:
    fake_trt.driver.device = device
    fake_trt.levels = levels
    fake_trt.compute = lambda a, b: (a + b) / 3
    with TrtBackend(plan_bytes()) as engine:
        for seed in range(3):
            a, b = planes(HW, seed)
            fake_trt.driver.calls.clear()
            found = engine.fuse_uint8(a, b)
            assert (found.shape, found.dtype) == (HW, np.uint8)
            assert np.array_equal(found, merge(to_output_range(((a + b) / 3)[0, 0], levels), None))
            assert np.array_equal(engine.fuse(a, b), (a + b) / 3)
        # One graph for each of the two, which copies what is asked for and nothing else.
        assert fake_trt.driver.calls == ["launch", "synchronize"] * 2


def test_a_fuser_takes_the_levels_of_the_device_for_gray_results_of_their_range(fake_trt: FakeTensorRT) -> None:
    fake_trt.levels = "stretch"
    draw = np.random.default_rng(4)
    gray, other = (draw.integers(0, 256, HW, np.uint8) for _ in range(2))
    color = draw.integers(0, 256, (*HW, 3), np.uint8)
    asked: list[str] = []

    class Watched(TrtBackend):
        def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
            asked.append("plane")
            return super().fuse(a, b)

        def fuse_uint8(self, a: Float32Array, b: Float32Array) -> Uint8Array:
            asked.append("levels")
            return super().fuse_uint8(a, b)

    for output_range, pair, more, way in (
        ("stretch", (gray, other), {}, "levels"),
        ("stretch", (gray, color), {}, "plane"),
        ("stretch", (gray, color), {"color": False}, "levels"),
        ("fixed", (gray, other), {}, "plane"),
    ):
        asked.clear()
        with Fuser(Watched(plan_bytes()), find_task("ir_vis"), output_range) as fuser:
            found = fuser.fuse(*pair, **more)
            planes_of = fuser.to_planes(*pair)
            expected = fuser.to_image((planes_of.a + planes_of.b) / 2, planes_of, **more)
        assert asked == [way]
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("device", [DESKTOP, JETSON])
def test_sources_in_8_bits_and_in_float_give_the_same_in_any_order(fake_trt: FakeTensorRT, device: Device) -> None:
    fake_trt.driver.device = device
    fake_trt.pixels = True
    draw = np.random.default_rng(11)
    with TrtBackend(plan_bytes()) as engine:
        assert engine.takes_uint8
        # Every way twice in a row, and after every other one: what the last way left in the other input must be gone.
        for size_hw in (HW, (8, 8), HW):
            for way in (0, 1, 1, 2, 2, 3, 3, 0, 2, 1, 3, 0, 0):
                levels = [draw.integers(0, 256, (1, 1, *size_hw), np.uint8) for _ in range(2)]
                floats = [one / np.float32(255) for one in levels]
                a, b = (levels[side] if way >> side & 1 else floats[side] for side in range(2))
                assert np.array_equal(engine.fuse(a, b), (floats[0] + floats[1]) / 2), (size_hw, way)
        assert fake_trt.driver.held.endswith("1 streams, 4 graphs")


def test_bytes_of_8_bit_sources_go_to_the_device_and_no_others(fake_trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_trt.pixels, fake_trt.levels = True, "stretch"
    draw = np.random.default_rng(12)
    gray, other = (draw.integers(0, 256, HW, np.uint8) for _ in range(2))
    sent: list[int] = []
    upload = fake_trt.driver.upload

    def watched(pointer: int, buffer: HostBuffer, stream: int) -> None:
        sent.append(buffer.array.nbytes)
        upload(pointer, buffer, stream)

    monkeypatch.setattr(fake_trt.driver, "upload", watched)
    with Fuser(TrtBackend(plan_bytes()), find_task("ir_vis")) as fuser:
        for _ in range(2):
            found = fuser.fuse(gray, other)
        # What may have to be zero is made so once; a byte for each pixel goes over in the first run and in its recording.
        assert sent == [NBYTES, NBYTES, *[NBYTES // 4] * 4]
        mean = (gray / np.float32(255) + other / np.float32(255)) / 2
        assert np.array_equal(found, merge(to_output_range(mean, "stretch"), None))
        sent.clear()
        color = draw.integers(0, 256, (*HW, 3), np.uint8)
        given = fuser.to_planes(gray, color)
        assert (given.a.dtype, given.b.dtype) == (np.uint8, np.float32)
        fuser.fuse(gray, color)
        assert sent == [NBYTES // 4, *[NBYTES // 4, NBYTES] * 2]


def test_an_engine_without_8_bit_sources_says_how_to_get_them(fake_trt: FakeTensorRT) -> None:
    plane = np.zeros((1, 1, *HW), np.uint8)
    with TrtBackend(plan_bytes()) as engine, raises(BackendError, remedy="--uint8-input", expected="float32", got="uint8"):
        engine.fuse(plane, plane)


def test_levels_of_what_is_not_finite_are_refused(fake_trt: FakeTensorRT) -> None:
    fake_trt.levels = "stretch"
    fake_trt.compute = lambda a, b: np.where(a > 0.5, np.float32(np.nan), b)
    with TrtBackend(plan_bytes()) as engine, raises(GateError, "tensorrt"):
        engine.fuse_uint8(*planes(HW))


def test_an_engine_without_levels_says_how_to_get_them(fake_trt: FakeTensorRT) -> None:
    with TrtBackend(plan_bytes()) as engine, raises(BackendError, remedy="--uint8-output stretch"):
        engine.fuse_uint8(*planes(HW))
