"""Whether TensorRT can be used, and the line that changes it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from refusion_edge import cuda
from refusion_edge.backends import registry as backends
from refusion_edge.backends.tensorrt import product
from refusion_edge.backends.tensorrt.product import PRODUCTS, TENSORRT, TENSORRT_RTX, Product
from refusion_edge.errors import BackendError
from tests.conftest import one_sentence
from tests.raising import raises


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "is_installed", lambda _: True)
    monkeypatch.setattr(product, "installed_version", lambda _: "10.3.0")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_without_a_driver_only_rtx_builds(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: "there is no NVIDIA driver")
    assert (product.probe().usable, product.probe_build().usable) == (False, product is TENSORRT_RTX)
    found = product.probe()
    assert found.reason == f"{product.module} 10.3.0 is installed, but there is no NVIDIA driver"


@pytest.mark.usefixtures("installed")
def test_with_a_driver_it_needs_a_way_to_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "installed", lambda: None)
    assert TENSORRT.probe().reason.endswith("neither pycuda nor cuda-bindings is")
    assert TENSORRT.probe().fix == "pip install 'refusion-edge[tensorrt]'"
    monkeypatch.setattr(cuda, "installed", lambda: "pycuda")
    assert TENSORRT.probe() == product.Status(usable=True, reason="tensorrt 10.3.0, pycuda")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("product", "capability", "lacks"),
    [(TENSORRT, "8.7", ()), (TENSORRT, "11.0", ()), (TENSORRT_RTX, "8.6", ()), (TENSORRT_RTX, "7.5", ("int8",)),
     (TENSORRT, "6.1", None), (TENSORRT_RTX, "7.0", None)],
)  # fmt: skip
def test_a_device_says_what_it_does_not_compute_in(
    product: Product, capability: str, lacks: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "installed", lambda: "pycuda")
    monkeypatch.setattr(cuda, "compute_capability", lambda: capability)
    found = product.probe()
    if lacks is None:
        assert not found.usable
        assert found.reason.endswith(f" {capability}")
    else:
        assert (found.usable, found.lacks) == (True, lacks)


@pytest.mark.usefixtures("installed")
def test_a_precision_that_the_device_lacks_is_refused_before_anything_is_built(
    run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = backends.Status(usable=True, reason="tensorrt 10.3.0, pycuda, compute capability 7.0", lacks=("int8",))
    monkeypatch.setattr("refusion_edge.backends.tensorrt.runner.TrtBackend.probe_build", lambda: lacking)
    code, _, err = run_cli("build", "--backend", "tensorrt", "--precision", "int8", "--calib-data", "random")
    assert (code, one_sentence(err)) == (3, True)
    for fact in ("int8", "tensorrt 10.3.0, pycuda, compute capability 7.0", "--precision fp32 or fp16"):
        assert fact in err
    monkeypatch.setattr(backends, "status", lambda name: lacking if "tensorrt" in name else backends.Status(False, "no"))
    with raises(BackendError, "int8"):
        backends.choose_builder("auto", "int8")


@pytest.mark.usefixtures("installed")
def test_a_precision_that_a_named_capability_lacks_is_refused(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    words = ("--backend", "tensorrt-rtx", "--precision", "int8", "--calib-data", "random", "--compute-capability", "8.6,7.5")
    code, _, err = run_cli("build", *words)
    assert (code, one_sentence(err)) == (2, True)
    assert all(fact in err for fact in ("int8", "8.0", "7.5", "--precision fp32 or fp16"))
    for name, code in (("bf16", 2), ("fp8", 2)):
        assert run_cli("build", "--backend", "tensorrt-rtx", "--precision", name)[0] == code


def test_the_driver_is_asked_for_the_capability_without_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    def attribute(value: Any, which: int, _: Any) -> int:
        value._obj.value = {75: 8, 76: 7}[which]
        return 0

    library = SimpleNamespace(cuInit=lambda _: 0, cuDeviceGet=lambda *_: 0, cuDeviceGetAttribute=attribute)
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    assert cuda.compute_capability() == "8.7"
    library.cuDeviceGetAttribute = lambda *_: 1
    assert cuda.compute_capability() is None
    library.cuInit = lambda _: 100
    assert cuda.compute_capability() is None


def test_on_a_jetson_it_comes_with_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "is_installed", lambda _: False)
    assert TENSORRT.probe().fix == "pip install 'refusion-edge[tensorrt]'"
    monkeypatch.setattr(product, "accelerator", lambda: "NVIDIA Jetson AGX Orin Developer Kit")
    assert TENSORRT.probe().fix.startswith("sudo apt-get install python3-libnvinfer")


@pytest.mark.parametrize(("code", "words"), [(0, None), (100, "finds no device"), (3, "3")])
def test_the_driver_itself_is_asked(code: int, words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(cuInit=lambda _: code))
    problem = cuda.problem()
    assert problem is None if words is None else words in (problem or "")


def test_a_missing_driver_layer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "is_installed", lambda _: False)
    for name, named in ((None, "cuda-bindings"), ("pycuda", "pycuda")):
        with raises(BackendError, named, remedy="pip install 'refusion-edge[fused]'"):
            cuda.open_driver(name)
