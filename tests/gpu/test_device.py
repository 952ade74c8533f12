"""Everything that runs on a CUDA device, on one: ``pytest -m gpu``. Skipped elsewhere, and in runs that interpret kernels."""

from __future__ import annotations

import os

import numpy as np
import pytest

from refusion_edge import cuda
from refusion_edge.arrays import Float32Array, State
from refusion_edge.kernels.gpu.schedule import make_schedule, tiles
from refusion_edge.network.fast import FastLayout, reference
from tests.conftest import TOLERANCE

torch = pytest.importorskip("torch", reason="what kernels are compared with needs torch")
pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")


def why_not() -> str | None:
    """Why nothing can run on a device here, or None."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "kernels are interpreted in this run; on a machine with a GPU: pytest -m gpu"
    if trouble := cuda.problem():
        return trouble
    return None if torch.cuda.is_available() else "this torch was built without CUDA"


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]


@pytest.fixture(scope="module")
def architecture() -> int:
    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor


@pytest.fixture(scope="module", autouse=True)
def _compiled(architecture: int) -> None:
    """Everything compiled on all cores, instead of one after the other at the first launch."""
    from benchmarks.gpu_compile import compile_ahead, wanted

    compile_ahead(wanted(tiles(architecture)), architecture, with_loss=True)


def random_planes(*shape: int) -> Float32Array:
    return np.random.default_rng(5).random(shape, np.float32)


@pytest.mark.parametrize("name", make_schedule().kernels)
def test_every_kernel_matches_its_reference_and_repeats_itself(random_state: State, architecture: int, name: str) -> None:
    from benchmarks.gpu_checks import check_kernels

    rows = list(check_kernels(random_state, tiles(architecture), [(3, 5), (61, 83), (1, 200)], "cuda", [name]))
    assert len(rows) >= 4
    assert [row for row in rows if not row["good"]] == []


def test_the_loss_matches_its_closed_forms_to_second_order() -> None:
    from benchmarks.gpu_checks import check_loss

    for shape in ((2, 1, 37, 150), (1, 1, 1, 1)):
        assert [row for row in check_loss(shape, "cuda") if not row["good"]] == []


@pytest.mark.parametrize("order", ["value and gradient", "second order"])
def test_the_loss_takes_at_most_three_launches(order: str) -> None:
    from benchmarks.gpu_clock import count_kernels
    from refusion_edge.kernels.gpu.weighted_loss import weighted_loss

    f, w, v, a, b, u = (torch.from_numpy(random_planes(2, 1, 64, 64)).cuda() for _ in range(6))
    leaves = [f.requires_grad_(), w.requires_grad_()]
    if order == "second order":
        loss = weighted_loss(f, a, b, w, v, 0.3, "signed", "triton")
        first = torch.autograd.grad(loss, f, create_graph=True)[0]
        work = lambda: torch.autograd.grad(first, leaves, u, retain_graph=True)  # noqa: E731
    else:
        work = lambda: weighted_loss(f.detach(), a, b, w.detach(), v, 0.3, "signed", "triton")  # noqa: E731
    assert count_kernels(work) <= 3


@pytest.mark.parametrize("size_hw", [(8, 8), (61, 83), (480, 640)])
def test_the_network_from_the_kernels_is_the_network(random_state: State, architecture: int, size_hw: tuple[int, int]) -> None:
    from refusion_edge.kernels.gpu.folding import fold
    from refusion_edge.kernels.gpu.triton_frame import fuse
    from refusion_edge.network.model import FusionNetwork

    a, b = (torch.from_numpy(plane)[None, None].cuda() for plane in random_planes(2, *size_hw))
    model = FusionNetwork().double().eval().cuda()
    model.load_state_dict({name: torch.from_numpy(array.astype(np.float64)) for name, array in random_state.items()})
    with torch.inference_mode():
        expected = model(a.double(), b.double())[0, 0]
    weights = fold(random_state).rounded(np.dtype(np.float16))
    picture = fuse(make_schedule(), weights, tiles(architecture), a, b, fill=float("nan"))
    assert float((picture.plane - expected).abs().max()) <= TOLERANCE["fp16"]
    assert (int(picture.levels.min()), int(picture.levels.max())) == (0, 255)


@pytest.mark.parametrize("layer", ["pycuda", "cuda-bindings"])
def test_the_back_end_fused_runs_behind_each_layer_at_any_size(random_state: State, architecture: int, layer: str) -> None:
    from refusion_edge.backends.fused import FusedBackend
    from refusion_edge.backends.registry import open_weights
    from refusion_edge.cuda.program_file import program_bytes
    from refusion_edge.export.targets.cubins import make_program

    if layer not in cuda.layers():
        pytest.skip(f"{layer} is not installed")
    data = program_bytes(make_program(random_state, {"task": "medical"}, [architecture], jobs=os.cpu_count() or 1))
    with FusedBackend(data, driver=cuda.open_driver(layer)) as engine, open_weights(random_state) as reference:
        for size_hw in ((8, 8), (61, 83), (13, 131), (61, 83)):
            a, b = random_planes(2, 1, 1, *size_hw)
            fused = engine.fuse(a, b).copy()
            assert np.abs(fused - reference.fuse(a, b)).max() <= TOLERANCE["fp16"]
            assert np.array_equal(fused, engine.fuse(a, b))
            assert engine.fuse_uint8(a, b).max() == 255


@pytest.mark.parametrize("layout", [FastLayout(), FastLayout(16, 3, 4)])
def test_the_back_end_fused_runs_the_network_fast_at_any_size(architecture: int, layout: FastLayout) -> None:
    from refusion_edge.backends.fused import FusedBackend
    from refusion_edge.cuda.program_file import program_bytes
    from refusion_edge.export.targets.cubins import make_program

    draw = np.random.default_rng(0)
    state = {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in layout.shapes.items()}
    data = program_bytes(make_program(state, {"task": "ir_vis"}, [architecture], jobs=os.cpu_count() or 1))
    with FusedBackend(data) as engine:
        for size_hw in ((8, 8), (61, 83), (13, 131), (480, 640), (131, 13)):
            a, b = random_planes(2, 1, 1, *size_hw)
            fused = engine.fuse(a, b).copy()
            error = fused[0, 0] - reference(state, a[0, 0], b[0, 0])
            assert -10 * np.log10(np.mean(error**2)) >= 60
            assert np.array_equal(fused, engine.fuse(a, b))
            assert engine.fuse_uint8(a, b).max() == 255
