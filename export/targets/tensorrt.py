"""Engines of TensorRT and TensorRT-RTX: plans, optionally with our kernels as plugins."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from refusion_edge import cuda
from refusion_edge.arrays import State
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.backends.registry import BACKENDS, Choice, Engine, build_status
from refusion_edge.backends.tensorrt.product import (
    TENSORRT,
    TENSORRT_RTX,
    Product,
    installed_version,
    lacking,
    least_capability,
    load,
)
from refusion_edge.bundle.folder import cache_folder
from refusion_edge.bundle.manifest import MODEL, PLAN, Compiled
from refusion_edge.bundle.spec import BuildSpec, EngineSpec
from refusion_edge.cuda.driver import Device
from refusion_edge.errors import UsageError
from refusion_edge.export.graph.uint8 import add_uint8
from refusion_edge.export.targets.builder import EngineFile, GateProxies, Inputs, PhaseListener, Proxy, check_options
from refusion_edge.export.targets.fused import hash_of_kernels, require_architecture
from refusion_edge.export.targets.plan import compile_plan
from refusion_edge.machine import Target, this_machine, usable_cores
from refusion_edge.network.family import DEFAULT_NETWORK, make_model
from refusion_edge.sizes import DYNAMIC

_FORMS = ("tensorrt-folded", "tensorrt-literal")
# Raised with every change of what the compiler is told, so that no cached plan of before is taken; 2: without TF32.
_FLAGS = 2


@dataclass(frozen=True, slots=True)
class PlanBuilder:
    """Builds plans for one of the two products. Implements ``Builder``.

    Attributes:
        product: The product.
    """

    product: Product

    compiles = True

    @property
    def backend(self) -> str:
        """Name of the back end."""
        return self.product.name

    def check(self, spec: BuildSpec, choice: Choice) -> None:
        """See ``Builder.check``."""
        name = self.product.name
        has_forms = spec.network == DEFAULT_NETWORK and spec.precision != "int8"
        forms = _FORMS if has_forms else (BACKENDS[name].form(spec.network, spec.precision),)
        check_options(spec, forms, has_compiler_options=True)
        if spec.settings.plugins and spec.network != DEFAULT_NETWORK:
            raise UsageError(
                f"--plugins has kernels of the network {DEFAULT_NETWORK} only, and the network is {spec.network}",
                "leave --plugins out, or build for the back end fused",
                expected=DEFAULT_NETWORK,
                got=spec.network,
            )
        if spec.settings.plugins and (spec.precision != "fp16" or spec.form is not None):
            asked = spec.precision if spec.precision != "fp16" else f"the graph form {spec.form}"
            raise UsageError(
                f"--plugins needs --precision fp16 and the default graph form, not {asked}",
                "leave --plugins out",
                expected=("fp16", None),
                got=(spec.precision, spec.form),
            )
        spec.settings.check(self.product)
        for capability in spec.settings.compute_capabilities:
            lacks = lacking(name, capability)
            if spec.precision in lacks:
                others = [precision for precision in BACKENDS[name].forms if precision not in lacks]
                remedy = f", or build with --precision {' or '.join(others)}" if others else ""
                raise UsageError(
                    f"{name} computes in {spec.precision} from compute capability {least_capability(name, spec.precision)} "
                    f"on, and --compute-capability names {capability}",
                    f"leave it out{remedy}",
                    expected=least_capability(name, spec.precision),
                    got=capability,
                )

    def model(self, spec: EngineSpec, state: State) -> onnx.ModelProto:
        """See ``Builder.model``: with uint8 inputs and outputs, as set in the spec."""
        form = spec.form or BACKENDS[self.backend].form(spec.network, spec.precision)
        return add_uint8(make_model(form, spec.precision, state, spec.size_hw), spec.settings)

    def prepare(self, spec: BuildSpec, state: State, weights: bytes, choice: Choice) -> Inputs:
        """See ``Builder.prepare``: a plan needs bounds for the sizes."""
        sizes_hw = None if spec.size_hw is not None else spec.sizes_hw or DYNAMIC
        remarks: tuple[str, ...] = ()
        if spec.size_hw is None and spec.sizes_hw is None:
            least, largest = DYNAMIC.min_hw, DYNAMIC.max_hw
            remarks = (
                f"Without --size, the engine takes sizes from {least[0]}x{least[1]} to {largest[0]}x{largest[1]} (height x "
                "width). An engine of fixed size (--size 480x640) is faster and needs less memory.",
            )
        facts = {
            "version": installed_version(self.product),
            "sizes": None if sizes_hw is None else str(sizes_hw),
            "settings": spec.settings.to_fields(),
            "plugins": build_status("fused").reason if spec.settings.plugins else None,
            "kernels": hash_of_kernels() if spec.settings.plugins else None,
            "flags": _FLAGS,
            "machine": asdict(this_machine()),
            # Keeps engines that were never run apart from those that were.
            "ran": choice.status.usable,
        }
        return Inputs(state, weights, self.model(spec, state), sizes_hw, facts, remarks)

    def build(self, spec: BuildSpec, inputs: Inputs, listener: PhaseListener | None, remarks: list[str]) -> EngineFile:
        """See ``Builder.build``."""
        product, here = self.product, this_machine()
        compute_capabilities = spec.settings.compute_capabilities
        model, tools = inputs.model, {}
        if not product.builds_without_gpu:
            with cuda.open_driver() as driver:
                device = driver.device
            compute_capabilities = (device.compute_capability,)
            if spec.settings.plugins:
                model, tools = self._with_plugins(spec, inputs, device), {"triton": inputs.facts["plugins"]}
        plan = compile_plan(
            product, model.SerializeToString(deterministic=True), spec.settings, inputs.sizes_hw,
            timing_cache=self._timing_cache(spec, here), listener=listener, names=(MODEL, PLAN),
        )  # fmt: skip
        remarks.extend(plan.remarks)
        compiled = Compiled(
            command=plan.command,
            device=here.device,
            compute_capabilities=compute_capabilities,
            sizes=None if inputs.sizes_hw is None else str(inputs.sizes_hw),
            scratch_bytes=plan.scratch_bytes,
        )
        # A TensorRT plan holds kernels timed on one device; a TensorRT-RTX plan finishes compiling where it is loaded.
        target = Target(architecture=here.architecture) if product.builds_without_gpu else here
        engine = Engine(
            plan.data,
            spec.precision,
            PLAN,
            spec.size_hw,
            compute_capabilities,
            version_compatible=spec.settings.version_compatible,
        )
        return EngineFile(PLAN, engine, target, {**plan.tools, **tools}, compiled)

    def gate_proxies(self, spec: BuildSpec, state: State, pixels: int) -> GateProxies:
        """See ``Builder.gate_proxies``."""
        return GateProxies("model", "", lambda engine, model: (self.proxy(engine, model),))

    def proxy(self, engine: Engine, model: bytes, *, threads: int = 0) -> Proxy:
        """See ``Builder.proxy``: the model in ONNX Runtime, with the same arithmetic up to the order of summation."""
        return Proxy("its model on the CPU", lambda: OrtBackend(model, threads=threads))

    def _with_plugins(self, spec: BuildSpec, inputs: Inputs, device: Device) -> onnx.ModelProto:
        """Compile our kernels as plugins, register them, and return the model that uses them."""
        from refusion_edge.export.targets.plugins import (
            compile_plugins,
            make_plugin_model,
            ptx_version,
            register,
            require_plugins,
        )
        from refusion_edge.kernels.gpu.folding import fold

        trt = load(self.product)
        require_plugins(trt)
        architecture = require_architecture(device, "leave --plugins out")
        register(trt, compile_plugins(architecture, ptx_version(device.driver), jobs=usable_cores()))
        return add_uint8(make_plugin_model(fold(inputs.state).rounded(np.dtype(np.float16)), spec.size_hw), spec.settings)

    def _timing_cache(self, spec: BuildSpec, here: Target) -> Path | None:
        if spec.settings.timing_cache is not None:
            return spec.settings.timing_cache
        if not spec.use_cache:
            return None
        device = re.sub(r"[^A-Za-z0-9]+", "-", here.device)
        return cache_folder() / "timing" / f"{self.product.module}-{installed_version(self.product)}-{device}.cache"


CLASSIC = PlanBuilder(TENSORRT)
RTX = PlanBuilder(TENSORRT_RTX)
