"""What each back end is given to load: the model itself, a plan, a program of our kernels, or the bare parameters."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx

from refusion_edge import cuda
from refusion_edge._version import __version__
from refusion_edge.arrays import State
from refusion_edge.backends import openvino
from refusion_edge.backends.registry import Backend, Engine, build_status, open_engine, status
from refusion_edge.backends.tensorrt.product import FLAVOURS, Flavour, installed_version, load
from refusion_edge.backends.tensorrt.settings import PlanSettings
from refusion_edge.bundle.folder import sha256
from refusion_edge.bundle.manifest import MODEL, PLAN, PROGRAM, WEIGHTS, Compiled
from refusion_edge.cuda.driver import Device
from refusion_edge.errors import BackendError
from refusion_edge.export.graph.uint8 import add_levels, add_pixels
from refusion_edge.export.spec import BuildSpec
from refusion_edge.export.targets.cpu_proxy import stand_in
from refusion_edge.export.targets.tensorrt import PhaseListener, compile_plan
from refusion_edge.machine import ANY_MACHINE, ARCHITECTURES, Target, choose_architecture, this_machine, usable_cores
from refusion_edge.sizes import DYNAMIC, SizeRange


@dataclass(frozen=True, slots=True)
class EngineFile:
    """What a back end loads.

    Attributes:
        name: Name of the file.
        engine: Its content, and what the back end has to know about it.
        target: The machines that it runs on.
        tools: Versions of what compiled it.
        compiled: How it was compiled; None where the back end compiles it whenever it is loaded.
    """

    name: str
    engine: Engine
    target: Target = ANY_MACHINE
    tools: Mapping[str, str] = field(default_factory=dict)
    compiled: Compiled | None = None


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What an engine is made from.

    Attributes:
        state: The 86 parameters.
        weights: The same as a weights file.
        model: ONNX model with these parameters in the form that the back end takes.
        sizes_hw: Range of sizes of the engine; None if it has one size, or takes any.
    """

    state: State
    weights: bytes
    model: bytes
    sizes_hw: SizeRange | None


def make_engine(
    spec: BuildSpec, backend: str, made_from: Ingredients, listener: PhaseListener | None, remarks: list[str]
) -> EngineFile:
    """Make what a back end loads.

    Args:
        spec: What to build.
        backend: The back end that was chosen.
        made_from: What to make it from.
        listener: Told how far a compiler is.
        remarks: Takes sentences that the user should see.

    Raises:
        BackendError: A compiler cannot be used here, or refuses.
    """
    if backend in FLAVOURS:
        return _compile_plan(spec, FLAVOURS[backend], made_from, listener, remarks)
    if backend == "fused":
        return _compile_program(spec, made_from, remarks)
    if backend == "native":
        # The kernels are the network: all they need is its parameters.
        return EngineFile(WEIGHTS, Engine(made_from.weights, spec.precision, WEIGHTS, spec.size_hw))
    # ONNX Runtime and OpenVINO compile the portable model anew on every machine.
    tools = {"openvino": openvino.version()} if backend == "openvino" else {}
    return EngineFile(MODEL, Engine(made_from.model, spec.precision, MODEL), tools=tools)


def extended(model: onnx.ModelProto, settings: PlanSettings) -> onnx.ModelProto:
    """Add the steps before and after the network that the engine shall do."""
    if settings.pixels:
        model = add_pixels(model)
    return model if settings.levels is None else add_levels(model, settings.levels)


def open_judged(backend: str, made: EngineFile, model: bytes) -> Backend:
    """Open what the accuracy gate looks at: the engine, or what stands in for one that cannot run here."""
    if status(backend).usable:
        return open_engine(backend, made.engine)
    return stand_in(backend, made.engine, model).open()


def compiler_facts(spec: BuildSpec, backend: str) -> dict[str, object]:
    """Describe what compiles an engine, with what settings and where, as far as the engine depends on it."""
    if backend == "fused":
        return {"version": build_status(backend).reason, "architectures": spec.architectures, "judged": status(backend).usable}
    if backend == "openvino":
        return {"version": openvino.version()}
    if backend not in FLAVOURS:
        return {}
    return {
        "version": installed_version(FLAVOURS[backend]),
        "sizes": None if spec.size_hw else str(spec.sizes_hw or DYNAMIC),
        "options": spec.settings.options(),
        "plugins": build_status("fused").reason if spec.settings.plugins else None,
        "machine": asdict(this_machine()),
        # An engine that could not be judged is not taken for one that was.
        "judged": status(backend).usable,
    }


def cache_folder() -> Path:
    """Folder of the engines built so far: ``$REFUSION_EDGE_CACHE``, else in the user's cache folder."""
    if chosen := os.environ.get("REFUSION_EDGE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refusion-edge"


def _compile_plan(
    spec: BuildSpec, flavour: Flavour, made_from: Ingredients, listener: PhaseListener | None, remarks: list[str]
) -> EngineFile:
    here = this_machine()
    compute_capabilities = spec.settings.compute_capabilities
    model, tools = made_from.model, {}
    if not flavour.builds_without_gpu:
        with cuda.open_driver() as driver:
            device = driver.device
        compute_capabilities = (device.compute_capability,)
        if spec.settings.plugins:
            model, tools = _add_plugins(spec, flavour, made_from, device), {"triton": build_status("fused").reason}
    plan = compile_plan(
        flavour, model, spec.settings, made_from.sizes_hw,
        timing_cache=_timing_cache(spec, flavour, here), listener=listener, names=(MODEL, PLAN),
    )  # fmt: skip
    remarks.extend(plan.remarks)
    compiled = Compiled(
        command=plan.command,
        options=spec.settings.options(),
        device=here.device,
        compute_capabilities=compute_capabilities,
        sizes=None if made_from.sizes_hw is None else str(made_from.sizes_hw),
        scratch_bytes=plan.scratch_bytes,
    )
    # A plan of TensorRT holds kernels that were timed on one device; one of RTX is compiled to the end where it is loaded.
    target = Target(architecture=here.architecture) if flavour.builds_without_gpu else here
    engine = compiled.describe(Engine(plan.data, spec.precision, PLAN, spec.size_hw))
    return EngineFile(PLAN, engine, target, {**plan.tools, **tools}, compiled)


def _add_plugins(spec: BuildSpec, flavour: Flavour, made_from: Ingredients, device: Device) -> bytes:
    """Compile our kernels as plugins, make them known, and return the model that holds them."""
    from refusion_edge.export.targets.plugins import compile_plugins, make_model, ptx_version, register, require_plugins
    from refusion_edge.kernels.gpu.folding import fold

    trt = load(flavour)
    require_plugins(trt)
    architecture = _architecture(device, "leave --plugins out")
    register(trt, compile_plugins(architecture, ptx_version(device.driver), jobs=usable_cores()))
    model = extended(make_model(fold(made_from.state).rounded(np.dtype(np.float16)), spec.size_hw), spec.settings)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _compile_program(spec: BuildSpec, made_from: Ingredients, remarks: list[str]) -> EngineFile:
    from refusion_edge.cuda.program_file import program_bytes
    from refusion_edge.export.targets.program import make_program

    facts = {
        "task": spec.task,
        "precision": spec.precision,
        "weights_sha256": sha256(made_from.weights),
        "refusion-edge": __version__,
    }
    architectures = spec.architectures
    if architectures is None:
        with cuda.open_driver() as driver:
            architectures = (_architecture(driver.device, "build with another --backend"),)
    data = program_bytes(make_program(made_from.state, facts, architectures, jobs=usable_cores()))
    tools = {"compiler": build_status("fused").reason}
    if not status("fused").usable:
        remarks.append(
            "This machine has no GPU that runs the kernels: the gate ran its launches with the plain reference of each kernel. "
            "The kernels themselves are checked on the device, each time the program is loaded."
        )
    # It brings kernels for several architectures and chooses when it is loaded.
    return EngineFile(PROGRAM, Engine(data, spec.precision, PROGRAM, spec.size_hw), tools=tools)


def _architecture(device: Device, remedy: str) -> int:
    """The architecture that our kernels are compiled for on a device."""
    chosen = choose_architecture(ARCHITECTURES, device.architecture)
    if chosen is None:
        known = ", ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
        raise BackendError(f"expected a device that there are kernels for ({known}), got {device}; {remedy}.")
    return chosen


def _timing_cache(spec: BuildSpec, flavour: Flavour, here: Target) -> Path | None:
    if spec.settings.timing_cache is not None:
        return spec.settings.timing_cache
    if not spec.use_cache:
        return None
    device = re.sub(r"[^A-Za-z0-9]+", "-", here.device)
    return cache_folder() / "timing" / f"{flavour.module}-{installed_version(flavour)}-{device}.cache"
