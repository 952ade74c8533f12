"""Choosing a back end: an explicit request works or fails, only auto chooses, and it says why."""

from __future__ import annotations

import importlib
import inspect

import pytest

from refusion_edge.backends import registry as backends
from refusion_edge.backends.registry import BACKENDS, Backend, Status, choose_builder, choose_runner, require_usable, status
from refusion_edge.errors import BackendError, UsageError
from tests.conftest import one_sentence
from tests.raising import raises


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
    for ask in ("status", "build_status"):
        monkeypatch.setattr(backends, ask, lambda _: Status(usable=True, reason="because"))
    monkeypatch.setitem(BACKENDS, "fused", BACKENDS["openvino"])
    choice = choose_builder("auto", "fp16")
    assert choice.name == "tensorrt"
    assert "fused (usable, but not in fp16)" in choice.reason


def test_auto_builds_for_a_back_end_whose_engines_can_be_built_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "status", lambda _: Status(usable=True, reason="runs"))
    monkeypatch.setattr(backends, "build_status", lambda name: Status(usable=name != "fused", reason="no compiler"))
    choice = choose_builder("auto", "fp16")
    assert choice.name == "tensorrt"
    assert "fused (no compiler)" in choice.reason


def test_a_precision_that_a_back_end_does_not_build_is_refused_in_words() -> None:
    with raises(UsageError, "onnxruntime", expected=("fp32", "fp16"), got="bf16"):
        choose_builder("onnxruntime", "bf16")
    with raises(UsageError, "openvino", expected=("fp32", "bf16"), got="fp16"):
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
    with raises(BackendError, "tensorrt", remedy="pip install 'refusion-edge[tensorrt]'"):
        choose_builder("tensorrt", "fp16")
    with raises(UsageError, "'onnxruntime'", got="onnxrutime"):
        status("onnxrutime")
    with raises(UsageError, "eager", remedy="onnxruntime"):
        choose_builder("eager", "fp32")


def test_a_missing_package_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.backends.eager.is_installed", lambda _: False)
    assert not status("eager").usable
    with raises(BackendError, "torch", remedy="pip install 'refusion-edge[train]'"):
        require_usable("eager")


def test_auto_fails_with_every_reason_where_nothing_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "status", lambda _: Status(usable=False, reason="no"))
    with raises(BackendError, "native", "onnxruntime (no)"):
        choose_builder("auto", "fp32")
