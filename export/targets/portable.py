"""Engines that are the weights file or the ONNX model itself: their back ends compile them on loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from refusion_edge.backends import openvino
from refusion_edge.backends.registry import BACKENDS, Engine
from refusion_edge.bundle.manifest import MODEL, WEIGHTS
from refusion_edge.bundle.spec import EngineSpec
from refusion_edge.errors import UsageError
from refusion_edge.export.spec import BuildSpec
from refusion_edge.export.targets.builder import (
    EngineFile,
    Inputs,
    PhaseListener,
    Proxy,
    refuse_architectures,
    refuse_compiler_options,
    refuse_form,
)
from refusion_edge.sizes import SizeRange


@dataclass(frozen=True, slots=True)
class PortableBuilder:
    """Builds engines for a back end on the CPU. Implements ``Builder``.

    Attributes:
        backend: Name of the back end.
        file: The file that it loads: ``model.onnx``, or the weights if its kernels implement the network.
        versions: Returns the versions of the tools that compile the file on loading, by name.
    """

    backend: str
    file: str = MODEL
    versions: Callable[[], dict[str, str]] = dict

    compiles = False

    def check(self, spec: BuildSpec) -> None:
        """See ``Builder.check``."""
        refuse_compiler_options(spec, self.backend)
        refuse_architectures(spec, self.backend)
        refuse_form(spec, self.backend, (BACKENDS[self.backend].forms[spec.precision],))

    def sizes_hw(self, spec: BuildSpec, remarks: list[str]) -> SizeRange | None:
        """See ``Builder.sizes_hw``: any size, or the fixed one."""
        return None

    def extend(self, model: onnx.ModelProto, spec: EngineSpec) -> onnx.ModelProto:
        """See ``Builder.extend``: nothing is added."""
        return model

    def facts(self, spec: BuildSpec) -> dict[str, Any]:
        """See ``Builder.facts``."""
        return self.versions()

    def build(self, spec: BuildSpec, inputs: Inputs, listener: PhaseListener | None, remarks: list[str]) -> EngineFile:
        """See ``Builder.build``."""
        data, size_hw = (inputs.weights, spec.size_hw) if self.file == WEIGHTS else (inputs.model, None)
        return EngineFile(self.file, Engine(data, spec.precision, self.file, size_hw), tools=self.versions())

    def proxy(self, engine: Engine, model: bytes, *, threads: int = 0) -> Proxy:
        """See ``Builder.proxy``.

        Raises:
            UsageError: Always, because the engine needs no device.
        """
        raise UsageError(f"the back end {self.backend} runs on the CPU and has no proxy", "leave --proxy out")


ONNXRUNTIME = PortableBuilder("onnxruntime")
OPENVINO = PortableBuilder("openvino", versions=lambda: {"openvino": openvino.version()})
NATIVE = PortableBuilder("native", WEIGHTS)
