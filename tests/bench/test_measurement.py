"""The stages of a run and one row of the table: numbers, their absence, memory, and files that change meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.arrays import Float32Array
from refusion_edge.bench import measurement, sensors
from refusion_edge.bench.limits import Limits
from refusion_edge.bench.measurement import DeviceTimed, Pipeline, measure, parse_stages, times_of
from refusion_edge.bench.subjects import Subject, Wanted, find_subjects
from refusion_edge.bundle.folder import sha256
from refusion_edge.bundle.manifest import MANIFEST, WEIGHTS
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.errors import BackendError, BundleError, CheckpointError, RefusionError, UsageError
from refusion_edge.export.build import build
from refusion_edge.fuser import Fuser
from refusion_edge.images.pairs import ImagePair
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import find_task
from tests.bench.conftest import QUICK, MadeUpBackend, MadeUpClock
from tests.raising import raises

MakeSubject = Callable[..., Subject]


class TimedBackend(MadeUpBackend):
    """Tells the times of its stages on the device."""

    def time_stages(self) -> None:
        self.is_timed = True

    def device_stages_ms(self) -> Mapping[str, float]:
        return {"h2d": 1.0, "infer": 2.5}


def pipeline_of(
    clock: MadeUpClock, backend: MadeUpBackend, *, captured: bool = False, source: Callable[[], None] = lambda: None
) -> Pipeline:
    rng = np.random.default_rng(4)
    pair = ImagePair("x", rng.integers(0, 256, (16, 24), np.uint8), rng.integers(0, 256, (16, 24, 3), np.uint8))

    def give() -> ImagePair:
        source()
        return pair

    backend.__enter__()
    return Pipeline(Fuser(backend, find_task("ir_vis")), give, captured=captured, clock=clock)


def test_a_cpu_back_end_has_no_copies_and_memory_no_capture(clock: MadeUpClock) -> None:
    lap = pipeline_of(clock, MadeUpBackend(clock, itertools.repeat(7.0))).run()
    assert lap.stages_ms == {"preprocess": 0, "infer": 7, "postprocess": 0}
    assert (lap.end_to_end_ms, lap.cpu_ms) == (7, 14)


def test_reading_files_is_a_stage(clock: MadeUpClock) -> None:
    backend = MadeUpBackend(clock, itertools.repeat(7.0))
    lap = pipeline_of(clock, backend, captured=True, source=lambda: clock.pass_ms(3)).run()
    assert lap.stages_ms["capture"] == 3
    assert lap.end_to_end_ms == 10


def test_times_of_the_device_count_where_it_tells_them(clock: MadeUpClock) -> None:
    backend = TimedBackend(clock, itertools.repeat(7.0))
    assert isinstance(backend, DeviceTimed)
    lap = pipeline_of(clock, backend).run()
    assert backend.is_timed
    assert lap.stages_ms == {"preprocess": 0, "h2d": 1.0, "infer": 2.5, "postprocess": 0}
    assert lap.end_to_end_ms == 7


def test_times_are_gathered_by_stage(clock: MadeUpClock) -> None:
    pipeline = pipeline_of(clock, MadeUpBackend(clock, iter([1.0, 2.0, 4.0])))
    times = times_of([pipeline.run() for _ in range(3)])
    assert list(times) == ["preprocess", "infer", "postprocess", "end_to_end", "cpu"]
    assert times["infer"].tolist() == [1, 2, 4]
    assert times["cpu"].tolist() == [2, 4, 8]


def test_stages_are_named_or_refused() -> None:
    assert parse_stages("infer, cpu,infer") == ("infer", "cpu")
    with raises(UsageError, "'preprocess'", got="preproces"):
        parse_stages("infer,preproces")


def test_a_fuser_gives_the_same_image_in_steps_and_at_once(clock: MadeUpClock) -> None:
    backend = MadeUpBackend(clock, itertools.repeat(1.0))
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 256, (17, 23), np.uint8), rng.integers(0, 256, (17, 23, 3), np.uint8)
    with Fuser(backend, find_task("ir_vis")) as fuser:
        planes = fuser.to_planes(a, b)
        stepwise = fuser.to_image(backend.fuse(planes.a, planes.b), planes)
        assert np.array_equal(stepwise, fuser.fuse(a, b))
        assert fuser.to_image(backend.fuse(planes.a, planes.b), planes, color=False).ndim == 2


def test_a_stable_row_has_every_number(clock: MadeUpClock, make_subject: MakeSubject) -> None:
    row = measure(make_subject(itertools.repeat(5.0)), QUICK, clock, Limits(100.0, 10.0, 2))
    assert row.stable
    assert row.stages is not None
    assert row.stages["infer"].median_ms == row.stages["end_to_end"].median_ms == 5
    assert row.stages["cpu"].median_ms == 10
    assert (row.pairs_per_s, row.drift, row.outline_ms) == (200, 1, (5.0,) * 101)
    assert [window.count for window in row.windows] == [3, 3, 3]
    assert row.roofline is not None
    # 16x24 pixels of 120,352 operations at 100 GFLOP/s take 0.462 ms.
    assert row.roofline.bound == "arithmetic"
    assert row.roofline.share == pytest.approx(384 * 120_352 / 100e9 / 5e-3)
    assert row.memory.peak_mib > 1


def test_a_row_that_is_not_stable_has_no_number_but_its_windows(clock: MadeUpClock, make_subject: MakeSubject) -> None:
    times = itertools.chain([1.0], itertools.cycle([5.0] * 3 + [6.0] * 3))
    row = measure(make_subject(times), QUICK, clock, Limits(100.0, 10.0, 2))
    assert not row.stable
    assert (row.stages, row.outline_ms, row.pairs_per_s, row.energy_mj, row.roofline) == (None,) * 5
    assert [window.median_ms for window in row.windows] == [5, 6, 5, 6, 5, 6]


def test_the_back_end_is_closed_whatever_happens(clock: MadeUpClock, make_subject: MakeSubject) -> None:
    backend = MadeUpBackend(clock, iter([5.0, 5.0]))
    with pytest.raises(StopIteration):
        measure(make_subject(iter(()), backend=backend), QUICK, clock, None)
    assert not backend.is_open
    backend = MadeUpBackend(clock, itertools.repeat(5.0))
    measure(make_subject(iter(()), backend=backend), QUICK, clock, None)
    assert (backend.is_open, backend.calls) == (False, 10)


def test_another_back_end_than_the_one_asked_for_is_no_row(clock: MadeUpClock, make_subject: MakeSubject) -> None:
    subject = make_subject(itertools.repeat(5.0))
    subject = replace(subject, identity=replace(subject.identity, backend="native"))
    with raises(BackendError, expected="native", got="onnxruntime"):
        measure(subject, QUICK, clock, None)


def test_energy_is_that_of_the_windows_that_count(
    clock: MadeUpClock, make_subject: MakeSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "sys/class/powercap/intel-rapl:0"
    package.mkdir(parents=True)
    (package / "name").write_text("package-0\n")
    counter = package / "energy_uj"
    counter.write_text("1000")

    class Burning(MadeUpBackend):
        """Takes 4 mJ for every image."""

        def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
            counter.write_text(f"{int(counter.read_text()) + 4000}")
            return super().fuse(a, b)

    monkeypatch.setattr(measurement, "open_meter", lambda: sensors.open_meter(tmp_path))
    backend = Burning(clock, itertools.chain([50.0], itertools.repeat(5.0)))
    row = measure(make_subject(iter(()), backend=backend), QUICK, clock, None)
    assert row.energy_mj == pytest.approx(4)
    assert row.energy_source == "RAPL package-0"


def change_weights(path: Path) -> None:
    state = read_checkpoint(path).state
    state["project_out_1.weight"] = state["project_out_1.weight"] * 0.5
    write_safetensors(path, Checkpoint("ir_vis", state))


@pytest.mark.parametrize("kind", ["weights", "gone"])
def test_weights_that_change_meanwhile_are_noticed(clock: MadeUpClock, make_subject: MakeSubject, kind: str) -> None:
    path = Path("w.safetensors")
    path.write_bytes(weights_path("ir_vis").read_bytes())
    (subject,) = find_subjects(str(path), Wanted(sizes_hw=((16, 24),)))
    subject.check_unchanged()
    if kind == "gone":
        path.unlink()
    else:
        change_weights(path)
    with raises(CheckpointError, "w.safetensors"):
        subject.check_unchanged()


def test_a_bundle_that_changes_meanwhile_is_noticed() -> None:
    bundle = build(BuildSpec("ir_vis", "fp32", "onnxruntime", (16, 24), output=Path("bundle"))).bundle
    (subject,) = find_subjects("bundle", Wanted())
    assert subject.identity.size_hw == (16, 24)
    assert subject.quality is not None
    subject.check_unchanged()
    manifest = (bundle.path / MANIFEST).read_bytes()
    (bundle.path / WEIGHTS).write_bytes(b"broken")
    with raises(BundleError, WEIGHTS, got=sha256(b"broken")):
        subject.check_unchanged()
    # Another whole bundle under the same name.
    build(BuildSpec("ir_vis", "fp16", "onnxruntime", (16, 24), output=Path("bundle")))
    assert (bundle.path / MANIFEST).read_bytes() != manifest
    with raises(BundleError, "bundle", expected=None):
        subject.check_unchanged()


@pytest.mark.parametrize(
    ("origin", "wanted", "error"),
    [
        ("nowhere", Wanted(), CheckpointError),
        ("bundle", Wanted(sizes_hw=((32, 32),)), UsageError),
        ("empty", Wanted(), BundleError),
        ("untold.safetensors", Wanted(), UsageError),
    ],
)
def test_what_cannot_be_measured_is_refused(origin: str, wanted: Wanted, error: type[RefusionError]) -> None:
    if origin == "bundle":
        build(BuildSpec("ir_vis", "fp32", "onnxruntime", (16, 24), output=Path("bundle")))
    Path("empty").mkdir()
    write_safetensors("untold.safetensors", Checkpoint(None, read_checkpoint(weights_path("ir_vis")).state))
    with raises(error, origin):
        find_subjects(origin, wanted)
