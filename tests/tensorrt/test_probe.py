"""Whether TensorRT can be used, and the line that changes it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from refusion_edge import cuda
from refusion_edge.errors import BackendError
from refusion_edge.tensorrt import flavour
from refusion_edge.tensorrt.flavour import FLAVOURS, TENSORRT, TENSORRT_RTX, Flavour, probe, probe_build
from tests.conftest import one_sentence


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "is_installed", lambda _: True)
    monkeypatch.setattr(flavour, "installed_version", lambda _: "10.3.0")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("product", FLAVOURS.values(), ids=FLAVOURS)
def test_without_a_driver_only_rtx_builds(product: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: "there is no NVIDIA driver here")
    assert (probe(product).usable, probe_build(product).usable) == (False, product is TENSORRT_RTX)
    found = probe(product)
    assert found.reason == f"{product.module} 10.3.0 is installed, but there is no NVIDIA driver here"


@pytest.mark.usefixtures("installed")
def test_with_a_driver_it_needs_a_way_to_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "installed", lambda: None)
    assert probe(TENSORRT).reason.endswith("neither pycuda nor cuda-bindings is")
    assert probe(TENSORRT).fix == "pip install 'refusion-edge[tensorrt]'"
    monkeypatch.setattr(cuda, "installed", lambda: "pycuda")
    assert probe(TENSORRT) == flavour.Status(usable=True, reason="tensorrt 10.3.0, pycuda")


def test_on_a_jetson_it_comes_with_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "is_installed", lambda _: False)
    assert probe(TENSORRT).fix == "pip install 'refusion-edge[tensorrt]'"
    monkeypatch.setattr(flavour, "accelerator", lambda: "NVIDIA Jetson AGX Orin Developer Kit")
    assert probe(TENSORRT).fix.startswith("sudo apt-get install python3-libnvinfer")


@pytest.mark.parametrize(("code", "words"), [(0, None), (100, "finds no device"), (3, "cuInit gives 3")])
def test_the_driver_itself_is_asked(code: int, words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(cuInit=lambda _: code))
    problem = cuda.problem()
    assert problem is None if words is None else words in (problem or "")


def test_a_missing_driver_layer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "is_installed", lambda _: False)
    for name in (None, "pycuda"):
        with pytest.raises(BackendError, match="got neither installed; run: pip install") as caught:
            cuda.open_driver(name)
        assert one_sentence(str(caught.value))
