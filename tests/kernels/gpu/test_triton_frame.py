"""The network from the kernels is the network: by the references in float64, and by Triton in its interpreter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network is defined in torch")

from refusion_edge.arrays import Array, State
from refusion_edge.cuda.program import Tile, lay_out
from refusion_edge.errors import BackendError, ShapeError
from refusion_edge.kernels.gpu import triton_frame as network
from refusion_edge.kernels.gpu.folding import fold
from refusion_edge.kernels.gpu.kernel_sets import REFUSION
from refusion_edge.kernels.gpu.language import TRITON_INSTALLED
from refusion_edge.kernels.gpu.schedule import FUSED, LEVELS, fuse_reference, make_schedule, tiles
from refusion_edge.machine import ARCHITECTURES
from refusion_edge.network.model import FusionNetwork
from tests.conftest import TOLERANCE
from tests.raising import raises

SMALL = Tile(32, 8, 1)


def reference(state: State, planes: Array) -> Array:
    model = FusionNetwork().double().eval()
    model.load_state_dict({name: torch.from_numpy(array.astype(np.float64)) for name, array in state.items()})
    a, b = (torch.from_numpy(plane.astype(np.float64))[None, None] for plane in planes)
    with torch.inference_mode():
        fused: Array = model(a, b)[0, 0].numpy()
    return fused


def on_host(state: State, planes: Array, dtype: str) -> Mapping[str, Array]:
    return fuse_reference(make_schedule(dtype), fold(state).rounded(np.dtype(dtype)), planes)


@pytest.mark.parametrize("size_hw", [(8, 8), (13, 31), (33, 9)])
def test_references_of_the_kernels_make_the_network(random_state: State, size_hw: tuple[int, int]) -> None:
    planes = np.random.default_rng(3).random((2, *size_hw))
    expected = reference(random_state, planes)
    assert expected.std() > 0.05
    assert np.abs(on_host(random_state, planes, "float64")[FUSED] - expected).max() <= 1e-12
    assert np.abs(on_host(random_state, planes, "float32")[FUSED] - expected).max() <= TOLERANCE["fp32"]
    half = on_host(random_state, planes, "float16")
    assert np.abs(half[FUSED] - expected).max() <= TOLERANCE["fp16"]
    stretched = (expected - expected.min()) / (expected.max() - expected.min()) * 255
    assert np.abs(half[LEVELS] - stretched).max() <= 0.5 + 255 * 3 * TOLERANCE["fp16"]


@pytest.mark.slow
@pytest.mark.skipif(not TRITON_INSTALLED, reason="needs Triton: pip install 'refusion-edge[triton]'")
def test_triton_kernels_make_the_network(random_state: State) -> None:
    planes = np.random.default_rng(4).random((2, 9, 11), np.float32)
    a, b = (torch.from_numpy(plane)[None, None] for plane in planes)
    weights = fold(random_state).rounded(np.dtype(np.float32))
    schedule = make_schedule("float32")
    fused = network.fuse(schedule, weights, dict.fromkeys(schedule.kernels, SMALL), a, b, fill=float("nan"))
    assert np.abs(fused.plane.numpy() - reference(random_state, planes)).max() <= TOLERANCE["fp32"]


@pytest.mark.skipif(not TRITON_INSTALLED, reason="needs Triton: pip install 'refusion-edge[triton]'")
@pytest.mark.parametrize(
    ("make", "named", "got"),
    [
        (lambda x: x.repeat(2, 1, 1, 1), "(1, 1, H, W)", (2, 1, 8, 8)),
        (lambda x: x[..., None], "(1, 1, H, W)", (1, 1, 8, 8, 1)),
        (lambda x: x.double(), "float32", torch.float64),
        (lambda x: x.transpose(2, 3), "strides", None),
        (lambda x: x[:, :, :-1].contiguous(), "(1, 1, 7, 8)", ((1, 1, 7, 8), torch.device("cpu"))),
        (lambda x: x.to("meta"), "meta", ((1, 1, 8, 8), torch.device("meta"))),
    ],
)
def test_what_does_not_fit_is_refused(make: object, named: str, got: object) -> None:
    x = torch.rand(1, 1, 8, 8) + torch.arange(8.0)
    for name, pair in (("b", (x, make(x))), ("a", (make(x), x))):
        with raises(ShapeError, named) as caught:
            network.fuse(make_schedule(), {}, {}, *pair)
        # The first fault ends the check: where the sources differ from each other, that of b, whichever was changed.
        assert (isinstance(got, tuple) and len(got) == 2) or f"source {name}" in caught.value.problem
        assert caught.value.got == got or name == "a"


@pytest.mark.skipif(not TRITON_INSTALLED, reason="needs Triton: pip install 'refusion-edge[triton]'")
def test_sources_that_are_not_on_a_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "is_interpreted", lambda: False)
    with raises(ShapeError, "source a", expected="cuda", got="cpu"):
        network.fuse(make_schedule(), {}, {}, torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_without_triton_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TRITON_INSTALLED", False)
    with raises(BackendError, "Triton", remedy="pip install 'refusion-edge[triton]'"):
        network.fuse(make_schedule(), {}, {}, torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_a_frame_is_at_most_25_launches_and_80_mb_of_scratch_at_640x480() -> None:
    schedule = make_schedule()
    assert len(schedule.launches) == 25
    for architecture in (80, 86, 87, 89, 90, 110, 120):
        assert lay_out(schedule.buffers.values(), (480, 640), tiles(architecture)).size <= 80e6


def test_the_self_test_has_several_strips_in_both_directions_on_every_architecture() -> None:
    height, width = REFUSION.self_test_hw
    for architecture in ARCHITECTURES:
        for tile in tiles(architecture).values():
            assert tile.rows < height <= 64
            assert tile.columns < width <= 128


def test_buffers_that_live_together_never_share_memory() -> None:
    schedule, cut = make_schedule(), tiles(87)
    for size_hw in ((8, 8), (17, 333)):
        arena = lay_out(schedule.buffers.values(), size_hw, cut)
        scratch = [buffer for buffer in schedule.buffers.values() if buffer.role == "scratch"]
        for one in scratch:
            start, end = arena.offsets[one.name], arena.offsets[one.name] + one.bytes(size_hw, cut)
            assert start % 256 == 0
            assert end <= arena.size
            for other in scratch:
                if other is not one and other.first <= one.last and one.first <= other.last:
                    apart = arena.offsets[other.name] >= end or arena.offsets[other.name] + other.bytes(size_hw, cut) <= start
                    assert apart, (one.name, other.name)
