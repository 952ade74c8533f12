"""Choosing a back end: an explicit request works or fails, only auto chooses, and it says why."""

from __future__ import annotations

import importlib
import inspect

import pytest

from refusion_edge import backends
from refusion_edge.backends import BACKENDS, Backend, Status, choose_builder, require_usable, status
from refusion_edge.errors import BackendError, UsageError
from tests.conftest import one_sentence


def test_auto_takes_the_first_usable_and_says_why_not_the_others() -> None:
    choice = choose_builder("auto", "fp16")
    assert choice.name == "onnxruntime"
    for name, entry in BACKENDS.items():
        assert (name in choice.reason) == entry.builds
    assert one_sentence(f"expected got {choice.reason}")


def test_every_listed_module_keeps_the_protocol() -> None:
    for entry in BACKENDS.values():
        if entry.module is None:
            continue
        module = importlib.import_module(entry.module)
        assert isinstance(module.probe(), Status)
        (implementation,) = [
            value for _, value in inspect.getmembers(module, inspect.isclass) if value.__module__ == entry.module
        ]
        for method in ("__enter__", "__exit__", "fuse"):
            assert inspect.signature(getattr(implementation, method)).parameters.keys() == (
                inspect.signature(getattr(Backend, method)).parameters.keys()
            )
        assert implementation.name in BACKENDS


def test_an_explicit_request_fails_where_it_cannot_be_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.tensorrt.flavour.is_installed", lambda _: False)
    with pytest.raises(BackendError, match=r"tensorrt to be usable here, got 'tensorrt is not installed'; run: pip") as caught:
        choose_builder("tensorrt", "fp16")
    assert one_sentence(str(caught.value))
    with pytest.raises(UsageError, match="did you mean 'onnxruntime'"):
        status("onnxrutime")
    with pytest.raises(UsageError, match="builds engines"):
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
