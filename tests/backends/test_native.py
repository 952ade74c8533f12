"""The fused C++ kernels: right with every instruction set, the same for any number of threads, and hard to break."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge.accuracy.gate import LIMITS, compare
from refusion_edge.arrays import Array, Float32Array, State
from refusion_edge.backends import native
from refusion_edge.backends.registry import (
    Engine,
    RunOptions,
    choose_builder,
    choose_runner,
    open_engine,
    open_weights,
    require_usable,
    status,
)
from refusion_edge.bundle.folder import read_bundle
from refusion_edge.bundle.manifest import MODEL, WEIGHTS
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.errors import BackendError, InputError, ShapeError, UsageError
from refusion_edge.export.build import build
from refusion_edge.fuser import load, open_bundle
from refusion_edge.images.io import write_image
from refusion_edge.kernels.cpu.compiled import ISA_VARIABLE
from refusion_edge.network import fast
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from refusion_edge.network.forms import Precision
from refusion_edge.network.parameters import PARAMETERS
from tests.conftest import ROOT, TOLERANCE, one_sentence
from tests.oracles import fast as fast_oracle
from tests.oracles.network import fuse_in_double
from tests.raising import raises

if not status("native").usable:
    pytest.skip(f"native: {status('native').reason}; {status('native').fix}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("small_samples")

MODULE = native.load_module()
ISAS = native.instruction_sets()
HAS_BF16 = bool(native.instruction_sets("bf16"))
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="needs a processor, and a compiler, with bf16 instructions")
PRECISIONS: list[Any] = ["fp32", pytest.param("bf16", marks=needs_bf16)]
HAS_FP16 = bool(native.instruction_sets("fp16", "fast"))
needs_fp16 = pytest.mark.skipif(not HAS_FP16, reason="needs a processor, and a compiler, with fp16 instructions")
REDUCED: list[Any] = [pytest.param("bf16", marks=needs_bf16), pytest.param("fp16", marks=needs_fp16)]
"""Precisions of the network fast besides fp32."""
KERNELS_HERE = ", ".join(
    [f"{ISAS[0]} kernels"]
    + [f"{isa} for bf16" for isa in native.instruction_sets("bf16")[:1]]
    + [f"{isa} for fp16" for isa in native.instruction_sets("fp16", "fast")[:1]]
)
KERNELS = [*((isa, "fp32") for isa in ISAS[:2]), *((isa, "bf16") for isa in native.instruction_sets("bf16"))]
TASKS = ("IVIF", "MIF", "MFIF", "MEIF")
# Narrower than a vector, odd, longer than a strip, lower than a band, higher than the rows that are summed at a time.
SIZES = [(8, 8), (8, 31), (45, 9), (13, 47), (9, 203), (97, 131), (150, 33), (17, 700)]


def planes(height: int, width: int, seed: int = 1) -> tuple[Float32Array, Float32Array]:
    draw = np.random.default_rng(seed)
    a, b = (draw.random((1, 1, height, width), np.float32) for _ in range(2))
    return a, b


@pytest.fixture(params=PRECISIONS)
def engine(random_state: State, request: pytest.FixtureRequest) -> Iterator[native.NativeBackend]:
    with native.NativeBackend(random_state, precision=request.param, threads=2) as engine:
        yield engine


def test_the_parameters_are_those_of_the_table() -> None:
    assert [(name, tuple(shape)) for name, shape in MODULE.parameters()] == list(PARAMETERS.items())


@pytest.mark.parametrize("size_hw", SIZES)
def test_every_instruction_set_agrees_with_double_precision(random_state: State, size_hw: tuple[int, int]) -> None:
    a, b = planes(*size_hw)
    expected = fuse_in_double(random_state, a, b)
    assert expected.std() > 0.05  # a saturated output would agree with anything
    for isa in ISAS:
        with native.NativeBackend(random_state, threads=1, isa=isa) as engine:
            assert engine.isa == isa
            assert np.abs(engine.fuse(a, b) - expected).max() <= TOLERANCE["fp32"], isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("task", TASKS)
def test_crops_equal_the_official_release(shared_data: Path, task: str, isa: str) -> None:
    state = read_checkpoint(shared_data / f"reference/checkpoints/ReFusion_{task}.pth").state
    with native.NativeBackend(state, threads=1, isa=isa) as engine:
        for size in ("97x131", "64x200", "45x63_acts"):
            golden = np.load(shared_data / f"reference/golden/{task}_crop_{size}.npz")
            sources = golden["input"]
            fused = engine.fuse(sources[:, :1], sources[:, 1:])
            assert np.abs(fused - golden["raw"]).max() <= TOLERANCE["golden"], size


@pytest.mark.parametrize("task", [TASKS[0], *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS[1:])])
def test_whole_images_equal_the_official_release(shared_data: Path, task: str) -> None:
    state = read_checkpoint(shared_data / f"reference/checkpoints/ReFusion_{task}.pth").state
    cases = sorted((shared_data / "reference/golden").glob(f"{task}_case_*.npz"))
    assert len(cases) == 2
    with native.NativeBackend(state) as engine:
        for case in cases:
            golden = np.load(case)
            sources = golden["input"]
            assert np.abs(engine.fuse(sources[:, :1], sources[:, 1:]) - golden["raw"]).max() <= TOLERANCE["golden"], case


@needs_bf16
@pytest.mark.parametrize("size_hw", SIZES)
def test_bf16_differs_from_double_precision_by_its_rounding_only(random_state: State, size_hw: tuple[int, int]) -> None:
    a, b = planes(*size_hw)
    with native.NativeBackend(random_state, precision="bf16", threads=1) as engine:
        fidelity = compare(engine.fuse(a, b)[0, 0], fuse_in_double(random_state, a, b)[0, 0].astype(np.float32))
    # These parameters amplify rounding more than trained ones: 50 to 53 dB. A channel in the wrong place makes less than 20.
    assert 48 < fidelity.psnr_db < 60
    assert fidelity.ssim > LIMITS["bf16"].ssim
    assert fidelity.max_error < LIMITS["bf16"].max_error


@needs_bf16
@pytest.mark.parametrize("task", TASKS)
def test_bf16_is_close_to_the_official_release(shared_data: Path, task: str) -> None:
    state = read_checkpoint(shared_data / f"reference/checkpoints/ReFusion_{task}.pth").state
    cases = sorted((shared_data / "reference/golden").glob(f"{task}_c*.npz"))
    assert len(cases) == 5
    with native.NativeBackend(state, precision="bf16") as engine:
        for case in cases:
            golden = np.load(case)
            sources = golden["input"]
            fidelity = compare(engine.fuse(sources[:, :1], sources[:, 1:])[0, 0], golden["raw"][0, 0])
            assert LIMITS["bf16"].hold(fidelity), case
            assert 60 < fidelity.psnr_db < 75, case


@pytest.mark.parametrize(("isa", "precision"), KERNELS)
def test_the_number_of_threads_does_not_change_a_bit(random_state: State, isa: str, precision: Precision) -> None:
    for size_hw in ((8, 8), (61, 203), (200, 71)):
        a, b = planes(*size_hw)
        results = []
        for threads in (1, 2, 3, 8):
            with native.NativeBackend(random_state, precision=precision, threads=threads, isa=isa) as engine:
                results += [engine.fuse(a, b), engine.fuse(a, b)]
        assert all(np.array_equal(results[0], other) for other in results[1:]), size_hw


def test_what_was_fused_before_does_not_matter(engine: native.NativeBackend) -> None:
    a, b = planes(40, 52)
    first = engine.fuse(a, b)
    engine.fuse(*planes(64, 90, seed=2))
    engine.fuse(a * np.float32(np.nan), b)
    assert np.array_equal(engine.fuse(a, b), first)


def misaligned(plane: Array) -> Array:
    memory = np.zeros(plane.nbytes + 1, np.uint8)
    shifted = memory[1:].view(np.float32).reshape(plane.shape)
    shifted[...] = plane
    return shifted


def as_every_third(plane: Array) -> Array:
    wide = np.full((*plane.shape[:2], plane.shape[2] * 2, plane.shape[3] * 3), np.nan, np.float32)
    wide[:, :, 1::2, 2::3] = plane
    return wide[:, :, 1::2, 2::3]


@pytest.mark.parametrize(
    "laid_out",
    [
        misaligned,
        as_every_third,
        np.asfortranarray,
        lambda plane: np.ascontiguousarray(plane[..., ::-1, ::-1])[..., ::-1, ::-1],
        lambda plane: np.lib.stride_tricks.as_strided(plane, plane.shape, plane.strides, writeable=False),
    ],
    ids=["misaligned", "every third", "columns first", "backwards", "read-only"],
)
def test_layouts_do_not_matter(engine: native.NativeBackend, laid_out: Callable[[Array], Array]) -> None:
    a, b = planes(23, 39)
    before = a.copy()
    other = laid_out(a)
    assert np.array_equal(other, a)
    assert np.array_equal(engine.fuse(other, b), engine.fuse(a, b))
    assert np.array_equal(a, before)


def test_one_pixel_repeated_is_a_plane(engine: native.NativeBackend) -> None:
    a, b = planes(12, 12)
    repeated = np.broadcast_to(a[..., :1, :1], a.shape)
    assert np.array_equal(engine.fuse(repeated, b), engine.fuse(repeated.copy(), b))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (29, 40), (12, 39)])
def test_a_pixel_that_is_no_number_makes_none(engine: native.NativeBackend, poison: float, place: tuple[int, int]) -> None:
    for source in range(2):
        sources = planes(30, 41)
        sources[source][(0, 0, *place)] = poison
        assert np.isnan(engine.fuse(*sources)).all()


def test_wrong_planes_are_refused(engine: native.NativeBackend, random_state: State) -> None:
    a, b = planes(16, 24)
    sound = ((1, 1, "H", "W"), "float32")
    for bad_a, bad_b, expected, got in (
        (a.astype(np.float64), b, sound, ((1, 1, 16, 24), "float64")),
        (a.astype(">f4"), b, sound, ((1, 1, 16, 24), ">f4")),
        (a[0], b[0], sound, ((1, 16, 24), "float32")),
        (np.concatenate([a, a]), np.concatenate([b, b]), sound, ((2, 1, 16, 24), "float32")),
        (a[:, :, :-1], b, (15, 24), (16, 24)),
        (a[..., :7], b[..., :7], (8, 16384), (16, 7)),
    ):
        with raises(ShapeError, expected=expected, got=got):
            engine.fuse(bad_a, bad_b)
    with (
        native.NativeBackend(random_state, size_hw=(16, 20)) as fixed,
        raises(ShapeError, remedy="--size 16x24", expected=(16, 20), got=(16, 24)),
    ):
        fixed.fuse(a, b)


def test_wrong_settings_are_refused(random_state: State) -> None:
    flat = native.flat_parameters(random_state)
    for threads in (0, -1, 257):
        with pytest.raises(ValueError, match=rf"^{threads} .*\b256$"):
            MODULE.Network(flat, threads)
    with raises(UsageError, expected=(0, 256), got=-1):
        native.NativeBackend(random_state, threads=-1)
    for isa in ("abacus", "avx512_bf16"):
        with raises(UsageError, "fp32", f"'{isa}'", remedy="scalar"):
            native.NativeBackend(random_state, isa=isa)
    with pytest.raises(ValueError, match="'fp8'"):
        MODULE.Network(flat, 1, precision="fp8")
    with pytest.raises(ValueError, match="59855 .*59856"):
        MODULE.Network(flat[:-1], 1)
    network = MODULE.Network(flat, 1)
    plane = np.zeros((16, 16), np.float32)
    frozen = plane.copy()
    frozen.flags.writeable = False
    for arguments, problem in (
        ((plane, plane, frozen), (ValueError, BufferError)),
        ((plane, plane, plane.astype(np.float64)), ValueError),
        ((plane, plane, np.zeros((16, 32), np.float32)[:, ::2]), ValueError),
        ((plane, plane[:8], plane.copy()), ValueError),
        ((plane, plane, None), (TypeError, BufferError)),
        ((plane[:7], plane[:7], plane[:7].copy()), ValueError),
    ):
        with pytest.raises(problem):
            network.fuse(*arguments)


def test_the_environment_names_the_instruction_set(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "scalar")
    with native.NativeBackend(random_state) as engine:
        assert engine.isa == "scalar"
    assert status("native").reason == "scalar kernels"
    assert status("native").lacks == ("bf16", "fp16")
    monkeypatch.delenv(ISA_VARIABLE)
    with native.NativeBackend(random_state) as engine:
        assert engine.isa == ISAS[0]


def test_an_unknown_instruction_set_in_the_environment_makes_native_unusable(
    monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "no\npe")
    code, out, _ = run_cli("doctor", "--json", "-")
    told = json.loads(out)["backends"]["native"]
    assert (code, told["usable"], told["builds"]) == (0, False, False)
    assert all(word in told["reason"] for word in (ISA_VARIABLE, "no\\npe", *ISAS))
    with raises(BackendError, ISA_VARIABLE, remedy=f"unset {ISA_VARIABLE}"):
        require_usable("native")
    if any(status(name).usable for name in ("openvino", "onnxruntime")):
        choice = choose_runner("auto")
        assert choice.name != "native"
        assert ISA_VARIABLE in choice.reason


def test_one_instance_serves_several_threads(engine: native.NativeBackend) -> None:
    pairs = [planes(20 + 7 * i, 50 - 3 * i, seed=i) for i in range(4)]
    expected = [engine.fuse(*pair) for pair in pairs]
    wrong: list[str] = []

    def work(index: int) -> None:
        for turn in range(8):
            i = (index + turn) % len(pairs)
            if not np.array_equal(engine.fuse(*pairs[i]), expected[i]):
                wrong.append(f"pair {i}")

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert not any(worker.is_alive() for worker in workers)
    assert wrong == []


def test_no_memory_is_an_error_and_the_engine_lives_on() -> None:
    code = (
        "import resource, numpy as np\n"
        "from refusion_edge.backends.native import NativeBackend\n"
        "from refusion_edge.network.checkpoint import read_checkpoint\n"
        "from refusion_edge.errors import BackendError\n"
        "from refusion_edge.network.weights import weights_path\n"
        "engine = NativeBackend(read_checkpoint(weights_path('ir_vis')).state, threads=1)\n"
        "small, large = np.ones((1, 1, 16, 16), np.float32), np.ones((1, 1, 4096, 4096), np.float32)\n"
        "before = engine.fuse(small, small)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try:\n"
        "    engine.fuse(large, large)\n"
        "except BackendError as error:\n"
        "    print(error)\n"
        "assert np.array_equal(engine.fuse(small, small), before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(fact in done.stdout for fact in ("4096x4096", "4295 MB"))


@pytest.fixture(scope="module")
def fast_state() -> State:
    return fast_oracle.random_state(fast.FastLayout())


def test_weights_of_the_network_fast_are_run_by_their_names(fast_state: State) -> None:
    a, b = planes(45, 62)
    expected = fast.reference(fast_state, a[0, 0], b[0, 0])
    with open_weights(fast_state, "native", RunOptions(threads=2)) as engine:
        fused = engine.fuse(a, b)
    assert (fused.shape, fused.dtype) == (a.shape, np.float32)
    assert np.abs(fused[0, 0] - expected).max() <= TOLERANCE["fp32"]
    write_safetensors("fast.safetensors", Checkpoint("ir_vis", fast_state))
    data = Path("fast.safetensors").read_bytes()
    with open_engine("native", Engine(data, "fp32", size_hw=(45, 62))) as same:
        assert np.array_equal(same.fuse(a, b), fused)
        with pytest.raises(ShapeError) as caught:
            same.fuse(*planes(45, 64))
        assert one_sentence(str(caught.value))


def test_the_network_fast_adapts_to_given_statistics(fast_state: State) -> None:
    a, b = planes(30, 44)
    with native.NativeBackend(fast_state, threads=1) as engine:
        figures = engine.statistics(a, b)
        assert np.allclose(figures, fast.statistics(a[0, 0], b[0, 0]), rtol=0, atol=1e-12)
        assert np.array_equal(engine.fuse_adapted(a, b, figures), engine.fuse(a, b))
        before = figures * 0.5
        expected = fast.reference(fast_state, a[0, 0], b[0, 0], before)
        assert np.abs(engine.fuse_adapted(a, b, before)[0, 0] - expected).max() <= TOLERANCE["fp32"]
        for wrong in (figures[:7], figures[None], figures * np.nan):
            with pytest.raises(InputError) as caught:
                engine.fuse_adapted(a, b, wrong)
            assert one_sentence(str(caught.value))


def test_statistics_are_refused_for_the_network_without_them(random_state: State) -> None:
    a, b = planes(16, 16)
    with native.NativeBackend(random_state, threads=1) as engine:
        for ask in (lambda: engine.statistics(a, b), lambda: engine.fuse_adapted(a, b, np.zeros(8))):
            with pytest.raises(UsageError) as caught:
                ask()
            assert one_sentence(str(caught.value))


def test_the_papers_network_is_not_computed_in_fp16(random_state: State) -> None:
    with raises(BackendError, "fp16", expected=("fp32", "bf16"), got="fp16"):
        native.NativeBackend(random_state, precision="fp16")
    with raises(UsageError, "native", expected=("fp32", "bf16"), got="fp16"):
        choose_builder("native", "fp16")
    assert native.instruction_sets("fp16") == ()


def test_both_networks_are_computed_in_bf16_by_the_same_sets() -> None:
    assert native.instruction_sets("bf16", "fast") == native.instruction_sets("bf16")


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("size_hw", [(8, 8), (9, 70), (45, 62), (131, 401)])
def test_reduced_precision_of_the_network_fast_differs_by_its_rounding_only(
    fast_state: State, precision: Precision, size_hw: tuple[int, int]
) -> None:
    a, b = planes(*size_hw)
    expected = fast.reference(fast_state, a[0, 0], b[0, 0]).astype(np.float32)
    with (
        native.NativeBackend(fast_state, precision=precision, threads=1) as engine,
        native.NativeBackend(fast_state, precision=precision, threads=3) as same,
    ):
        fused = engine.fuse(a, b)
        assert np.array_equal(same.fuse(a, b), fused)
    assert LIMITS[precision].hold(compare(fused[0, 0], expected))
    assert np.abs(fused[0, 0] - expected).max() > TOLERANCE["fp32"]  # really in reduced precision


@pytest.mark.parametrize("precision", REDUCED)
def test_a_bundle_of_the_network_fast_in_reduced_precision_passes_its_gate(
    run_cli: Callable[..., tuple[int, str, str]], precision: Precision
) -> None:
    words = ("--network", "fast", "--precision", precision, "--backend", "native")
    code, _, err = run_cli("build", *words, "--size", "64x96", "-o", "bundle")
    assert code == 0, err
    manifest = read_bundle("bundle").manifest
    assert (manifest.backend, manifest.precision, manifest.spec.network) == ("native", precision, "fast")
    assert run_cli("verify", "bundle")[0] == 0


@pytest.mark.parametrize(("precision", "other"), [("bf16", "openvino"), ("fp16", "onnxruntime")])
def test_the_network_fast_without_the_instructions_is_refused_and_auto_passes_it_over(
    fast_state: State,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: Callable[..., tuple[int, str, str]],
    precision: Precision,
    other: str,
) -> None:
    monkeypatch.setattr(native, "instruction_sets", lambda precision="fp32", _="": ISAS if precision == "fp32" else ())
    with raises(BackendError, remedy="--precision fp32", got=precision):
        native.NativeBackend(fast_state, precision=precision)
    words = ("--network", "fast", "--precision", precision)
    code, _, err = run_cli("build", *words, "--backend", "native", "-o", "bundle")
    assert code == BackendError.exit_code
    assert one_sentence(err)
    assert not Path("bundle").exists()
    if status(other).usable:
        choice = choose_builder("auto", precision, "fast")
        assert choice.name != "native"
        assert re.search(rf"native.* \(usable, but not in {precision}\)", choice.reason)


def test_auto_prefers_native_for_fp32_and_says_so() -> None:
    for choice in (choose_runner("auto"), choose_builder("auto", "fp32")):
        assert choice.name == "native"
        assert f"auto chose native ({KERNELS_HERE})" in choice.reason
    assert re.search(r"native.* \(usable, but not in fp16\)", choose_builder("auto", "fp16").reason)
    with load("ir_vis") as fuser:
        assert fuser.backend.name == "native"


@needs_bf16
def test_half_the_bits_are_used_on_request_only(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose_builder("auto", "bf16")
    assert f"auto chose native ({KERNELS_HERE})" in choice.reason
    (isa,) = native.instruction_sets("bf16")
    monkeypatch.setenv(ISA_VARIABLE, isa)
    with native.NativeBackend(random_state, precision="bf16") as engine:
        assert engine.isa == isa
    assert (status("native").reason, status("native").lacks) == (f"{isa} kernels", ("fp16",))
    monkeypatch.setenv(ISA_VARIABLE, "avx2")
    with raises(UsageError, "bf16", "'avx2'", remedy=isa):
        native.NativeBackend(random_state, precision="bf16")


def test_bf16_without_the_instructions_is_refused_and_auto_passes_it_over(
    random_state: State, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(native, "instruction_sets", lambda precision="fp32", _="": ISAS if precision == "fp32" else ())
    with raises(BackendError, remedy="--precision fp32", got="bf16"):
        native.NativeBackend(random_state, precision="bf16")
    code, _, err = run_cli("build", "--precision", "bf16", "--backend", "native", "-o", "bundle")
    assert code == 3
    assert one_sentence(err)
    assert not Path("bundle").exists()
    assert status("native").reason == f"{ISAS[0]} kernels"
    if status("openvino").usable:
        choice = choose_builder("auto", "bf16")
        assert choice.name == "openvino"
        assert "native (usable, but not in bf16)" in choice.reason


def test_without_the_module_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_installed", lambda _: False)
    with raises(BackendError, "native", remedy="pip install . -Cwheel.cmake=true"):
        require_usable("native")
    assert choose_runner("auto").name in ("openvino", "onnxruntime")


def test_a_bundle_is_the_network_and_its_parameters(random_state: State) -> None:
    report = build(BuildSpec("ir_vis", "fp32", "native", output=Path("bundle")))
    assert all(result.fidelity.psnr_db > 100 for result in report.gate)
    bundle = read_bundle("bundle")
    assert (bundle.manifest.backend, bundle.manifest.engine) == ("native", WEIGHTS)
    assert MODEL in bundle.manifest.files
    a, b = planes(33, 40)
    state = read_checkpoint(bundle.path / WEIGHTS).state
    with open_bundle(bundle, options=RunOptions(threads=2)) as engine, open_weights(state, "onnxruntime") as graph:
        assert engine.name == "native"
        assert np.abs(engine.fuse(a, b) - graph.fuse(a, b)).max() <= TOLERANCE["fp32"]


@needs_bf16
@pytest.mark.parametrize("task", ["ir_vis", "medical", "multi_focus", "multi_exposure"])
def test_a_bundle_in_bf16_passes_its_gate(task: str) -> None:
    report = build(BuildSpec(task, "bf16", "native", size_hw=(64, 96), output=Path("bundle")))
    assert all(LIMITS["bf16"].psnr_db < result.fidelity.psnr_db < 75 for result in report.gate)
    bundle = read_bundle("bundle")
    assert (bundle.manifest.backend, bundle.manifest.precision, bundle.manifest.engine) == ("native", "bf16", WEIGHTS)
    assert not build(BuildSpec(task, "fp32", "native", size_hw=(64, 96), output=Path("exact"))).cached
    a, b = planes(64, 96)
    state = read_checkpoint(bundle.path / WEIGHTS).state
    with (
        open_bundle(bundle, options=RunOptions(threads=1)) as engine,
        native.NativeBackend(state, precision="bf16", threads=2) as same,
    ):
        assert np.array_equal(engine.fuse(a, b), same.fuse(a, b))


@needs_bf16
def test_a_bundle_in_bf16_is_verified_and_inspected(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run_cli("build", "--precision", "bf16", "-o", "bundle")
    assert code == 0, err
    assert "auto chose native" in out
    code, out, _ = run_cli("verify", "bundle")
    assert (code, "PASSED: bf16 on native" in out) == (0, True)
    code, out, _ = run_cli("inspect", "bundle", "--json", "-")
    assert json.loads(out)["precision"] == "bf16"


def test_the_command_line_treats_it_like_any_other(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run_cli("build", "--precision", "fp32", "--backend", "native", "--size", "64x96", "-o", "bundle")
    assert code == 0, err
    code, out, _ = run_cli("verify", "bundle")
    assert code == 0
    assert "PASSED: fp32 on native" in out
    code, out, _ = run_cli("inspect", "bundle", "--json", "-")
    assert json.loads(out)["engine"] == WEIGHTS
    code, out, _ = run_cli("doctor", "--json", "-")
    told = {"usable": True, "builds": True, "reason": KERNELS_HERE, "fix": None}
    assert json.loads(out)["backends"]["native"] == told
    code, _, err = run_cli("build", "--precision", "fp16", "--backend", "native", "-o", "other")
    assert code == 2
    assert one_sentence(err)


def test_fuse_says_what_auto_chose(run_cli: Callable[..., tuple[int, str, str]], picture: Callable[..., Array]) -> None:
    write_image("a.png", picture(20, 30))
    write_image("b.png", picture(20, 30))
    code, out, _ = run_cli("fuse", "a.png", "b.png", "-o", "fused.png")
    assert code == 0
    assert f"Back end: auto chose native ({KERNELS_HERE})." in out
    code, out, _ = run_cli("fuse", "a.png", "b.png", "-o", "again.png", "--backend", "native", "--threads", "1")
    assert code == 0
    assert "auto chose" not in out
