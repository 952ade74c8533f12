"""A fake of the module ``tensorrt.plugin``, as strict about signatures as that of TensorRT 10.9."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any


class TensorDesc:
    def __init__(self, shape_expr: tuple[int, ...], dtype: str) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str) -> None:
        self.io_types, self.layouts = io_types.split(", "), layouts.split(", ")


class SymInt32:
    def __init__(self, value: int) -> None:
        self.value = value


class SymExprs(list[SymInt32]):
    @classmethod
    def from_tuple(cls, values: list[SymInt32]) -> SymExprs:
        assert all(isinstance(value, SymInt32) for value in values)
        return cls(values)


class KernelLaunchParams:
    def __init__(self) -> None:
        self.grid_x = self.grid_y = self.grid_z = self.block_x = 1
        self.shared_mem = 0


class FakePlugins(ModuleType):
    """The module ``tensorrt.plugin``.

    Attributes:
        op: The plugins by namespace and name.
        defined: What each plugin registered, by its identifier.
    """

    TensorDesc, AutoTuneCombination, SymInt32 = TensorDesc, AutoTuneCombination, SymInt32
    KernelLaunchParams, SymExprs, SymIntExprs = KernelLaunchParams, SymExprs, SymExprs

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.op = SimpleNamespace()
        self.defined: dict[str, dict[str, Any]] = {}

    def cdiv(self, first: int, second: int) -> int:
        return -(-first // second)

    def from_shape_expr(self, shape: tuple[int, ...], dtype: str) -> TensorDesc:
        return TensorDesc(shape, dtype)

    def register(self, identifier: str) -> Callable[..., Any]:
        namespace, name = identifier.split("::")
        assert identifier not in self.defined, "TensorRT refuses to define a plugin twice"

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(function)
            assert all(issubclass(one.annotation, TensorDesc) for one in signature.parameters.values())
            assert typing.get_origin(signature.return_annotation) is tuple
            outputs = typing.get_args(signature.return_annotation)
            assert all(issubclass(one, TensorDesc) for one in outputs)
            self.defined[identifier] = {"inputs": list(signature.parameters), "outputs": len(outputs), "describe": function}
            spaces = vars(self.op).setdefault(namespace, SimpleNamespace())
            vars(spaces)[name] = function
            return function

        return decorate

    def autotune(self, identifier: str) -> Callable[..., Any]:
        return self._add(identifier, "formats", ["outputs"])

    def aot_impl(self, identifier: str) -> Callable[..., Any]:
        return self._add(identifier, "launch", ["outputs", "tactic"])

    def _add(self, identifier: str, key: str, more: list[str]) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(function)
            assert list(signature.parameters) == [*self.defined[identifier]["inputs"], *more]
            assert typing.get_origin(signature.parameters["outputs"].annotation) is tuple
            if key == "launch":
                symbol, code, params, extra = typing.get_args(signature.return_annotation)
                assert (symbol, code) == (str, str)
                assert issubclass(params, KernelLaunchParams)
                assert issubclass(extra, SymExprs)
            self.defined[identifier][key] = function
            return function

        return decorate
