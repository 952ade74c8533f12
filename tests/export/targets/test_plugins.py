"""Our kernels as TensorRT plugins, on a fake that checks what TensorRT checks and runs the NumPy references."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from refusion_edge.accuracy.gate import LIMITS, compare
from refusion_edge.arrays import State
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.backends.registry import Status
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.cuda.program import Kernel
from refusion_edge.errors import BackendError, UsageError
from refusion_edge.export.build import build
from refusion_edge.export.targets import plugins
from refusion_edge.export.targets.compiler import PtxKernel, plugin_order
from refusion_edge.export.targets.plugins import (
    NAMESPACE,
    make_plugin_model,
    plugin_kernels,
    plugin_tiles,
    ptx_version,
    register,
)
from refusion_edge.kernels.gpu.folding import fold
from refusion_edge.kernels.gpu.schedule import FUSED, SOURCES, fuse_reference, make_schedule
from tests.fakes.tensorrt import FakeTensorRT, release
from tests.fakes.tensorrt_plugin import FakePlugins, TensorDesc
from tests.raising import raises

SIZE_HW = (35, 71)  # odd, and more than one strip high and wide
ARCHITECTURE = 87


def hollow() -> dict[str, PtxKernel]:
    """Kernels whose code is their name."""
    return {
        name: PtxKernel(f"{kernel.source}_kernel", plugin_tiles(ARCHITECTURE)[name], 64, f"code of {name}")
        for name, kernel in plugin_kernels().items()
    }


@pytest.fixture
def fake_plugins(monkeypatch: pytest.MonkeyPatch) -> FakePlugins:
    fake = FakePlugins()
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", fake)
    monkeypatch.setattr(plugins, "_COMPILED", {})
    return fake


DTYPES = {"float16": "FP16", "float32": "FP32"}


def operator(kernel: Kernel, defined: dict[str, Any]) -> type[OpRun]:
    """An ONNX operator that does with a plugin what TensorRT would do."""
    ordered = [kernel.parameters[index] for index in plugin_order(kernel.parameters)]

    def run(_: OpRun, *arrays: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        assert attributes == {"plugin_namespace": NAMESPACE, "aot": 1}
        given = [TensorDesc(array.shape, str(array.dtype)) for array in arrays]
        outputs = defined["describe"](*given)
        (combination,) = defined["formats"](*given, outputs)
        dtypes = [str(array.dtype) for array in arrays] + [one.dtype for one in outputs]
        assert combination.io_types == [DTYPES[dtype] for dtype in dtypes]
        inputs = [stored(array, layout) for array, layout in zip(arrays, combination.layouts, strict=False)]
        written = [np.full(int(np.prod(one.shape_expr)), np.nan, one.dtype) for one in outputs]
        symbol, code, launch, extra = defined["launch"](*given, outputs, 0)
        assert (symbol, code) == (f"{kernel.source}_kernel", f"code of {kernel.name}")
        tile = plugin_tiles(ARCHITECTURE)[kernel.name]
        assert (launch.grid_x, launch.grid_y, launch.grid_z) == kernel.launch_grid(tile, SIZE_HW)
        assert (launch.block_x, launch.shared_mem) == (32 * tile.warps, 64)
        # What TensorRT hands over, in its order, meets the parameters in the order of the PTX.
        handed = [*inputs, *(one.value for one in extra), *written]
        arguments = dict(zip([parameter.name for parameter in ordered], handed, strict=True))
        SOURCES[kernel.source].run_reference({**arguments, **kernel.constants}, kernel.streams)
        layouts = combination.layouts[len(arrays) :]
        return tuple(
            loaded(array, one.shape_expr, layout) for array, one, layout in zip(written, outputs, layouts, strict=True)
        )

    return type(kernel.name, (OpRun,), {"op_domain": NAMESPACE, "_run": run})


def stored(array: np.ndarray, layout: str) -> np.ndarray:
    """Flat memory of a tensor; HWC8 of a multiple of 8 channels is channels last."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if layout == "HWC8" else array).reshape(-1)


def loaded(memory: np.ndarray, shape: tuple[int, ...], layout: str) -> np.ndarray:
    if layout == "LINEAR":
        return memory.reshape(shape)
    batch, channels, height, width = shape
    assert channels % 8 == 0
    return np.ascontiguousarray(memory.reshape(batch, height, width, channels).transpose(0, 3, 1, 2))


def test_the_network_of_plugins_is_the_network(fake_plugins: FakePlugins, random_state: State) -> None:
    register(release("10.9.0"), hollow())
    folded = fold(random_state)
    model = make_plugin_model(folded.rounded(np.dtype(np.float16)), None)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node if node.domain == NAMESPACE]
    assert set(kinds) == plugin_kernels().keys()
    # 25 launches without the last, which stretches; nothing else computes.
    assert len(kinds) == len(make_schedule().launches) - 1 == 24
    assert {node.op_type for node in model.graph.node if node.domain == ""} == {"Concat", "Identity"}
    operators = [operator(kernel, fake_plugins.defined[f"{NAMESPACE}::{name}"]) for name, kernel in plugin_kernels().items()]
    planes = np.random.default_rng(5).random((2, *SIZE_HW), np.float32)
    (fused,) = ReferenceEvaluator(model, new_ops=operators).run(None, {"a": planes[:1, None], "b": planes[1:, None]})
    exact = fuse_reference(make_schedule("float64"), folded.rounded(np.dtype(np.float64)), planes.astype(np.float64))[FUSED]
    assert fused.shape == (1, 1, *SIZE_HW)
    assert fused.dtype == np.float32
    found = compare(fused[0, 0], exact.astype(np.float32))
    assert LIMITS["fp16"].hold(found), found


def test_a_second_build_in_one_process_uses_its_own_kernels(fake_plugins: FakePlugins) -> None:
    for symbol in ("first", "second"):
        kernels = {name: PtxKernel(symbol, kernel.tile, 64, "") for name, kernel in hollow().items()}
        register(release("10.9.0"), kernels)
        launch = fake_plugins.defined[f"{NAMESPACE}::narrow"]["launch"]
        features, taps = TensorDesc((1, 32, 8, 8), "float16"), TensorDesc((9, 32, 16), "float16")
        assert launch(features, taps, (), 0)[0] == symbol


@pytest.mark.parametrize("has_module", [False, True])
def test_a_tensorrt_without_such_plugins_says_so(monkeypatch: pytest.MonkeyPatch, has_module: bool) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", ModuleType("tensorrt.plugin") if has_module else None)
    with raises(BackendError, remedy="--plugins", expected="10.9", got="10.3.0"):
        register(release("10.3.0"), hollow())


@pytest.mark.parametrize(("driver", "version"), [("12.0", 80), ("12.6", 85), ("13.2", 92), ("14.1", 92)])
def test_the_ptx_is_one_that_the_driver_takes(driver: str, version: int) -> None:
    assert ptx_version(driver) == version


def test_a_driver_that_is_too_old_is_refused() -> None:
    with raises(BackendError, remedy="--plugins", expected="12.0", got="11.8"):
        ptx_version("11.8")


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"precision": "fp32"}, ("fp32", None)),
        ({"form": "tensorrt-literal"}, ("fp16", "tensorrt-literal")),
    ],
)
def test_plugins_are_for_half_precision(
    options: dict[str, Any], got: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "refusion_edge.backends.tensorrt.runner.TrtBackend.probe_build", lambda: Status(usable=True, reason="fake")
    )
    settings = BuildSpec("ir_vis").settings
    spec = BuildSpec("ir_vis", backend="tensorrt", settings=type(settings)(plugins=True), **options)
    with raises(UsageError, "--plugins", remedy="--plugins", expected=("fp16", None), got=got):
        build(spec)


def test_a_bundle_with_plugins_is_built_evaluated_and_says_how_to_rebuild_it(
    fake_trt: FakeTensorRT, fake_plugins: FakePlugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refusion_edge.backends.tensorrt.settings import PlanSettings
    from refusion_edge.network.checkpoint import read_checkpoint
    from refusion_edge.network.family import make_model
    from refusion_edge.network.weights import weights_path

    parsed: list[onnx.ModelProto] = []
    honest = fake_trt.OnnxParser

    def parser(network: Any, log: Any) -> Any:
        made = honest(network, log)
        return SimpleNamespace(parse=lambda data: parsed.append(onnx.load_from_string(data)) or made.parse(data))

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(fake_trt, "OnnxParser", parser)
    monkeypatch.setattr(
        plugins, "compile_plugins", lambda architecture, version, jobs: asked.append((architecture, version)) or hollow()
    )
    for probe in ("tensorrt.runner.TrtBackend.probe", "tensorrt.runner.TrtBackend.probe_build", "fused.probe_build"):
        monkeypatch.setattr(f"refusion_edge.backends.{probe}", lambda: Status(usable=True, reason="fake"))
    monkeypatch.setattr("refusion_edge.export.targets.tensorrt.installed_version", lambda _: fake_trt.__version__)
    fake_trt.shape = (1, 1, 16, 24)
    state = read_checkpoint(weights_path("medical")).state
    with OrtBackend(make_model("tensorrt-folded", "fp16", state).SerializeToString(), threads=1) as network:
        fake_trt.compute = network.fuse
        spec = BuildSpec("medical", backend="tensorrt", size_hw=(16, 24), settings=PlanSettings(plugins=True), output=Path("x"))
        manifest = build(spec).bundle.manifest
    assert asked == [(86, 85)]
    assert {node.op_type for node in parsed[0].graph.node if node.domain == NAMESPACE} == plugin_kernels().keys()
    assert manifest.compiled is not None
    assert (manifest.compiled.command, manifest.spec.settings.plugins) == ("", True)
    assert manifest.spec.command(Path("x")).endswith("--plugins")
    assert manifest.tools["triton"] == "fake"
