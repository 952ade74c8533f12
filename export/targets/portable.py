"""Engines that are the weights file or the ONNX model itself: their back ends compile them on loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from refusion_edge.arrays import State
from refusion_edge.backends import openvino
from refusion_edge.backends.registry import BACKENDS, Choice, Engine
from refusion_edge.bundle.manifest import MODEL, WEIGHTS
from refusion_edge.bundle.spec import BuildSpec, EngineSpec
from refusion_edge.errors import UsageError
from refusion_edge.export.targets.builder import EngineFile, GateProxies, Inputs, PhaseListener, Proxy, check_options
from refusion_edge.network.family import make_model


@dataclass(frozen=True, slots=True)
class PortableBuilder:
    """Builds engines for a back end on the CPU. Implements ``Builder``.

    Attributes:
        backend: Name of the back end.
        file: The file that it loads: ``model.onnx``, or the weights if its kernels implement the network.
        versions: Returns the versions of the tools that compile the file on loading, by name.
        fp16_remark: What the user should know about an fp16 engine; empty if there is nothing to say.
    """

    backend: str
    file: str = MODEL
    versions: Callable[[], dict[str, str]] = dict
    fp16_remark: str = ""

    compiles = False

    def check(self, spec: BuildSpec, choice: Choice) -> None:
        """See ``Builder.check``."""
        check_options(spec, (BACKENDS[self.backend].form(spec.network, spec.precision),))

    def model(self, spec: EngineSpec, state: State) -> onnx.ModelProto:
        """See ``Builder.model``."""
        return make_model(BACKENDS[self.backend].form(spec.network, spec.precision), spec.precision, state, spec.size_hw)

    def prepare(self, spec: BuildSpec, state: State, weights: bytes, choice: Choice) -> Inputs:
        """See ``Builder.prepare``."""
        remarks = (self.fp16_remark,) if spec.precision == "fp16" and self.fp16_remark else ()
        return Inputs(state, weights, self.model(spec, state), facts=self.versions(), remarks=remarks)

    def build(self, spec: BuildSpec, inputs: Inputs, listener: PhaseListener | None, remarks: list[str]) -> EngineFile:
        """See ``Builder.build``."""
        data, size_hw = (inputs.weights, spec.size_hw) if self.file == WEIGHTS else (inputs.model_bytes(), None)
        return EngineFile(self.file, Engine(data, spec.precision, self.file, size_hw), tools=self.versions())

    def gate_proxies(self, spec: BuildSpec, state: State, pixels: int) -> GateProxies:
        """See ``Builder.gate_proxies``: the engine always runs here."""
        return GateProxies("", "", lambda engine, model: (self.proxy(engine, model),))

    def proxy(self, engine: Engine, model: bytes, *, threads: int = 0) -> Proxy:
        """See ``Builder.proxy``.

        Raises:
            UsageError: Always, because the engine needs no device.
        """
        raise UsageError(f"the back end {self.backend} runs on the CPU and has no proxy", "leave --proxy out")


ONNXRUNTIME = PortableBuilder(
    "onnxruntime",
    fp16_remark="On a CPU, ONNX Runtime computes fp16 in fp32 steps, so this bundle rounds like fp16 but is not faster.",
)
OPENVINO = PortableBuilder("openvino", versions=lambda: {"openvino": openvino.version()})
NATIVE = PortableBuilder("native", WEIGHTS)
