"""The compiled module of the emulator is optional."""

from __future__ import annotations

import pytest

from refusion_edge.errors import BackendError
from refusion_edge.kernels.emulator import compiled
from refusion_edge.kernels.emulator.decoder import decode
from tests.kernels.emulator.snippets import text_of
from tests.raising import raises


def test_an_installation_without_the_compiled_module_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MODULE", "refusion_edge.kernels.emulator._never_built")
    assert not compiled.is_built()
    with raises(BackendError, remedy="wheel.cmake"):
        decode(text_of(""))
