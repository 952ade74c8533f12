"""TensorRT and TensorRT-RTX on a real device: what no stand-in shows. Skipped, with the reason, where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refusion_edge import cuda
from refusion_edge.accuracy.gate import LIMITS, compare
from refusion_edge.accuracy.vectors import TASK, read_vectors
from refusion_edge.backends import registry as backends
from refusion_edge.backends.onnxruntime import open_reference
from refusion_edge.backends.registry import status
from refusion_edge.backends.tensorrt.product import PRODUCTS
from refusion_edge.backends.tensorrt.runner import PlanRunner
from refusion_edge.bundle.folder import EngineBundle, read_bundle, sha256
from refusion_edge.bundle.manifest import PLAN, GateResult
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.calibration.int8 import collect, random_pairs
from refusion_edge.errors import BundleError, ShapeError
from refusion_edge.export.build import build
from refusion_edge.fuser import open_bundle
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.graph import fill, read_template
from refusion_edge.network.weights import weights_path
from refusion_edge.sizes import SizeRange
from refusion_edge.tasks import find_task
from tests.conftest import one_sentence
from tests.raising import raises

pytestmark = pytest.mark.gpu

VECTORS_HW = read_vectors().size_hw
RANGE = SizeRange((16, 16), VECTORS_HW, (96, 128))


@pytest.fixture(params=list(PRODUCTS))
def product(request: pytest.FixtureRequest) -> str:
    """A product that can be used here."""
    found = status(request.param)
    if not found.usable:
        pytest.skip(f"{request.param}: {found.reason}")
    name: str = request.param
    return name


@pytest.fixture
def built(product: str) -> Callable[..., EngineBundle]:
    """Build a small engine: ``built(precision="fp32")``."""

    def make(precision: str = "fp16", **more: object) -> EngineBundle:
        spec = BuildSpec(TASK, backend=product, output=Path("bundle"), use_cache=False)
        return build(replace(spec, **{"precision": precision, "size_hw": VECTORS_HW, **more})).bundle

    return make


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_passes_its_gate_and_the_stored_vectors(built: Callable[..., EngineBundle], precision: str) -> None:
    bundle = built(precision)
    assert isinstance(bundle.manifest.gate, GateResult)
    vectors = read_vectors()
    with open_bundle(bundle) as engine:
        found = [engine.fuse(*vectors.planes()).copy() for _ in range(4)]
        assert isinstance(engine, PlanRunner)
        # The first run is started piece by piece, the later ones are replays of a graph.
        assert engine.graph_problem == ""
    assert LIMITS[precision].hold(compare(found[0][0, 0], vectors.fused))
    for again in found[1:]:
        assert np.array_equal(again, found[0])


def test_every_size_of_a_range_is_right_in_any_order(built: Callable[..., EngineBundle]) -> None:
    bundle = built(size_hw=None, sizes_hw=RANGE)
    state = read_checkpoint(weights_path(TASK)).state
    draw = np.random.default_rng(6)
    with open_bundle(bundle) as engine, open_reference(state) as reference:
        for size_hw in ((16, 16), (95, 127), (17, 128), (96, 16), (45, 63), (16, 16)):
            a, b = (draw.random((1, 1, *size_hw), np.float32) for _ in range(2))
            for _ in range(2):
                found = compare(engine.fuse(a, b)[0, 0], reference.fuse(a, b)[0, 0])
                assert LIMITS["fp16"].hold(found), (size_hw, found)
        with pytest.raises(ShapeError):
            engine.fuse(np.zeros((1, 1, 97, 128), np.float32), np.zeros((1, 1, 97, 128), np.float32))


def test_an_int8_engine_builds_and_runs(built: Callable[..., EngineBundle]) -> None:
    state = read_checkpoint(weights_path(TASK)).state
    pairs = list(random_pairs(find_task(TASK)))
    table = collect(fill(read_template("tensorrt-folded", "fp32"), state), pairs, find_task(TASK), "min-max", random=True)
    with open_bundle(built("int8", calibration=table)) as engine:
        fused = engine.fuse(*read_vectors().planes())
    assert np.isfinite(fused).all()
    assert np.ptp(fused) > 0.1


def test_two_engines_at_once_do_not_disturb_each_other(built: Callable[..., EngineBundle]) -> None:
    bundle = built()
    a, b = read_vectors().planes()
    with open_bundle(bundle) as one, open_bundle(bundle) as other:
        first = one.fuse(a, b).copy()
        swapped = other.fuse(b, a).copy()
        assert np.array_equal(one.fuse(a, b), first)
        assert np.array_equal(other.fuse(b, a), swapped)
        assert not np.array_equal(first, swapped)


def test_nothing_stays_on_the_device(built: Callable[..., EngineBundle]) -> None:
    bundle = built()
    for _ in range(3):
        with open_bundle(bundle) as engine:
            engine.fuse(*read_vectors().planes())
    with cuda.open_driver() as driver:
        driver.free(driver.allocate(1 << 20))


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_plan_is_refused_in_words(built: Callable[..., EngineBundle], product: str, damage: str) -> None:
    bundle = built()
    plan = bytearray(bundle.read(PLAN))
    if damage == "flipped":
        for place in range(32, len(plan), 997):
            plan[place] ^= 0xFF
    data = bytes(plan[: len(plan) // 2] if damage == "cut" else plan)
    with pytest.raises(BundleError) as caught:
        backends.open_engine(product, replace(bundle.engine(), data=data))
    assert one_sentence(str(caught.value))
    (bundle.path / PLAN).write_bytes(data)
    with raises(BundleError, PLAN, got=sha256(data)):
        read_bundle(bundle.path)
