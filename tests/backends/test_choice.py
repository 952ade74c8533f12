"""Choosing a back end: an explicit request works or fails, only auto chooses, and it says why."""

from __future__ import annotations

import importlib
import inspect

import pytest

from refusion_edge.backends import registry as backends
from refusion_edge.backends.registry import BACKENDS, Backend, Status, choose_builder, choose_runner, require_usable, status
from refusion_edge.errors import BackendError, UsageError
from tests.conftest import one_sentence


def test_auto_takes_the_first_usable_and_says_why_not_the_others() -> None:
    choice = choose_builder("auto", "fp16")
    assert choice.name == "onnxruntime"
    for name, entry in BACKENDS.items():
        assert (name in choice.reason) == entry.builds
    assert one_sentence(f"expected got {choice.reason}")


def test_auto_prefers_native_then_openvino_then_onnxruntime_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = {"native", "openvino", "onnxruntime", "eager"}
    monkeypatch.setattr(backends, "status", lambda name: Status(usable=name in usable, reason="because"))
    for name in ("native", "openvino", "onnxruntime"):
        assert choose_builder("auto", "fp32").name == name
        usable.remove(name)
    assert choose_runner("auto").name == "eager"


def test_auto_passes_over_a_back_end_without_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "status", lambda _: Status(usable=True, reason="because"))
    monkeypatch.setitem(BACKENDS, "fused", BACKENDS["openvino"])
    choice = choose_builder("auto", "fp16")
    assert choice.name == "tensorrt"
    assert "fused (usable, but not in fp16)" in choice.reason


def test_a_precision_that_a_back_end_does_not_build_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="bf16 .*onnxruntime; .*fp32 or fp16") as caught:
        choose_builder("onnxruntime", "bf16")
    assert one_sentence(str(caught.value))
    with pytest.raises(UsageError, match="fp16 .*openvino; .*fp32 or bf16"):
        choose_builder("openvino", "fp16")


def test_every_listed_module_keeps_the_protocol() -> None:
    for entry in BACKENDS.values():
        path, _, inside = entry.module.partition(":")
        module = importlib.import_module(path)
        assert isinstance(getattr(module, inside).probe() if inside else module.probe(), Status)
        (implementation,) = [
            value
            for name, value in inspect.getmembers(module, inspect.isclass)
            if value.__module__ == path and not name.startswith("_") and (not inside or name == inside)
        ]
        for method in ("__enter__", "__exit__", "fuse"):
            assert inspect.signature(getattr(implementation, method)).parameters.keys() == (
                inspect.signature(getattr(Backend, method)).parameters.keys()
            )
        assert implementation.name in BACKENDS


def test_an_explicit_request_fails_where_it_cannot_be_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.backends.tensorrt.product.is_installed", lambda _: False)
    with pytest.raises(BackendError, match="tensorrt .*tensorrt is not installed; run: pip") as caught:
        choose_builder("tensorrt", "fp16")
    assert one_sentence(str(caught.value))
    with pytest.raises(UsageError, match="did you mean 'onnxruntime'"):
        status("onnxrutime")
    with pytest.raises(UsageError, match="eager.*onnxruntime"):
        choose_builder("eager", "fp32")


def test_a_missing_package_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.backends.eager.is_installed", lambda _: False)
    assert not status("eager").usable
    with pytest.raises(BackendError, match=r"run: pip install 'refusion-edge\[train\]'"):
        require_usable("eager")


def test_auto_fails_with_every_reason_where_nothing_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "status", lambda _: Status(usable=False, reason="no"))
    with pytest.raises(BackendError, match=r"native.*onnxruntime \(no\)"):
        choose_builder("auto", "fp32")
