"""One row of the table: numbers, their absence, memory, and files that change meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from refusion_edge.arrays import Float32Array
from refusion_edge.bench import measurement, sensors
from refusion_edge.bench.limits import Limits
from refusion_edge.bench.measurement import measure
from refusion_edge.bench.subjects import Subject, Wanted, find_subjects
from refusion_edge.bundle.manifest import MANIFEST, WEIGHTS
from refusion_edge.errors import BackendError, BundleError, CheckpointError, RefusionError, UsageError
from refusion_edge.export.build import build
from refusion_edge.export.spec import BuildSpec
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from refusion_edge.network.weights import weights_path
from tests.bench.conftest import QUICK, MadeUpBackend, MadeUpClock
from tests.conftest import one_sentence

MakeSubject = Callable[..., Subject]


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
    with pytest.raises(BackendError, match="native .*got onnxruntime"):
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
        """Takes 4 mJ for every picture."""

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
    with pytest.raises(CheckpointError) as caught:
        subject.check_unchanged()
    assert one_sentence(str(caught.value))


def test_a_bundle_that_changes_meanwhile_is_noticed() -> None:
    bundle = build(BuildSpec("ir_vis", "fp32", "onnxruntime", (16, 24), output=Path("bundle"))).bundle
    (subject,) = find_subjects("bundle", Wanted())
    assert subject.identity.size_hw == (16, 24)
    assert subject.quality is not None
    subject.check_unchanged()
    manifest = (bundle.path / MANIFEST).read_bytes()
    (bundle.path / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(BundleError, match="changed or cut short"):
        subject.check_unchanged()
    # Another whole bundle under the same name.
    build(BuildSpec("ir_vis", "fp16", "onnxruntime", (16, 24), output=Path("bundle")))
    assert (bundle.path / MANIFEST).read_bytes() != manifest
    with pytest.raises(BundleError, match="another one meanwhile") as caught:
        subject.check_unchanged()
    assert one_sentence(str(caught.value))


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
    with pytest.raises(error) as caught:
        find_subjects(origin, wanted)
    assert one_sentence(str(caught.value))
