"""Engines of the back end ``fused``: programs of our Triton kernels, compiled ahead of time."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from importlib import resources

import onnx

from refusion_edge import cuda
from refusion_edge._version import __version__
from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends.registry import BACKENDS, Backend, Choice, Engine
from refusion_edge.bundle.folder import sha256
from refusion_edge.bundle.manifest import PROGRAM
from refusion_edge.bundle.spec import BuildSpec, EngineSpec
from refusion_edge.cuda.driver import Device
from refusion_edge.errors import BackendError, GateError, UsageError
from refusion_edge.export.targets.builder import EngineFile, GateProxies, Inputs, PhaseListener, Proxy, check_options
from refusion_edge.machine import ARCHITECTURES, choose_architecture, this_machine, usable_cores
from refusion_edge.network.family import make_model, network_of, shapes_of

# For a pixel, and for a multiply-add of the network. On one core of an AMD EPYC (Zen 4), the emulator takes 0.6 ms for a pixel
# of `refusion` and 0.05 ms for one of `fast`.
_EMULATION_S = 5e-6, 1e-8


def hash_of_kernels() -> str:
    """SHA-256 of the sources that the GPU kernels are compiled from: a cached program of other kernels is another one."""
    digest = hashlib.sha256()
    for file in sorted(resources.files("refusion_edge.kernels.gpu").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ProgramBuilder:
    """Builds programs of our kernels. Implements ``Builder``."""

    backend = "fused"
    compiles = True

    def check(self, spec: BuildSpec, choice: Choice) -> None:
        """See ``Builder.check``."""
        check_options(spec, (BACKENDS["fused"].form(spec.network, spec.precision),), has_architectures=True)
        if spec.architectures is None and not choice.status.usable:
            raise UsageError(
                "there is no GPU here to compile the kernels of fused for",
                "name the architecture of the device, such as --arch sm_87 for Orin",
            )
        if spec.proxy is not None and choice.status.usable:
            raise UsageError("the accuracy gate runs the program itself on the GPU of this machine", "leave --proxy out")

    def model(self, spec: EngineSpec, state: State) -> onnx.ModelProto:
        """See ``Builder.model``."""
        return make_model(BACKENDS["fused"].form(spec.network, spec.precision), spec.precision, state, spec.size_hw)

    def prepare(self, spec: BuildSpec, state: State, weights: bytes, choice: Choice) -> Inputs:
        """See ``Builder.prepare``.

        Raises:
            UsageError: There are no kernels for the layout of these weights.
        """
        from refusion_edge.kernels.gpu.kernel_sets import kernel_set

        kernel_set(state)
        facts = {
            "version": choice.build_status.reason,
            "architectures": spec.architectures,
            # Without a wish, the kernels are for the device of this machine.
            "machine": None if spec.architectures else asdict(this_machine()),
            "kernels": hash_of_kernels(),
            # Keeps engines that were never run apart from those that were.
            "ran": choice.status.usable,
        }
        return Inputs(state, weights, self.model(spec, state), facts=facts)

    def build(self, spec: BuildSpec, inputs: Inputs, listener: PhaseListener | None, remarks: list[str]) -> EngineFile:
        """See ``Builder.build``."""
        from refusion_edge.cuda.program_file import program_bytes
        from refusion_edge.export.targets.cubins import make_program

        facts = {
            "task": spec.task,
            "precision": spec.precision,
            "network": spec.network,
            "weights_sha256": sha256(inputs.weights),
            "refusion-edge": __version__,
        }
        architectures = spec.architectures
        if architectures is None:
            with cuda.open_driver() as driver:
                architectures = (require_architecture(driver.device, "build with another --backend"),)
        data = program_bytes(make_program(inputs.state, facts, architectures, jobs=usable_cores()))
        # The program holds kernels for several architectures and selects among them when it is loaded.
        engine = Engine(data, spec.precision, PROGRAM, spec.size_hw)
        return EngineFile(PROGRAM, engine, tools={"compiler": inputs.facts["version"]})

    def gate_proxies(self, spec: BuildSpec, state: State, pixels: int) -> GateProxies:
        """See ``Builder.gate_proxies``: the PTX of every architecture, or the references."""
        from refusion_edge.kernels.emulator.compiled import is_built, load_module

        architectures = spec.architectures or ()
        estimate_s = _emulation_s(state, pixels * len(architectures))
        if spec.proxy == "ptx":
            load_module()
            if estimate_s > spec.proxy_limit_s:
                raise UsageError(
                    f"the emulator would take about {estimate_s:.0f} s for the accuracy gate, but the limit is "
                    f"{spec.proxy_limit_s:g} s",
                    f"build for a smaller --size or for fewer architectures, or allow it with --proxy-limit-s "
                    f"{math.ceil(2 * estimate_s)}",
                    expected=spec.proxy_limit_s,
                    got=estimate_s,
                )
        if spec.proxy == "ptx" or (spec.proxy is None and is_built() and estimate_s <= spec.proxy_limit_s):
            return GateProxies(
                "ptx",
                "This machine has no GPU, so an emulator executed the PTX of the kernels in the accuracy gate. It cannot show "
                "that their machine code behaves the same; the device checks that whenever it loads the program.",
                lambda engine, _: tuple(emulated(engine, architecture) for architecture in architectures),
            )
        why = ""
        if spec.proxy is None:
            why = (
                f" Emulating their PTX would take about {estimate_s:.0f} s; to allow it, use --proxy-limit-s "
                f"{math.ceil(2 * estimate_s)}."
                if is_built()
                else " The emulator of their PTX was not built for this installation."
            )
        return GateProxies(
            "reference",
            "This machine has no GPU, so the accuracy gate ran the launches with the CPU reference of each kernel and executed "
            f"no kernel.{why} The device checks them whenever it loads the program.",
            lambda engine, model: (self.proxy(engine, model),),
        )

    def proxy(self, engine: Engine, model: bytes, *, threads: int = 0) -> Proxy:
        """See ``Builder.proxy``: the launches of the program, each run by the NumPy reference of its kernel."""
        return Proxy("its launches on the CPU", lambda: _open_launches(engine))


def emulated(engine: Engine, architecture: int) -> Proxy:
    """The launches of a program, each executed from the PTX of its kernel.

    Opening it raises ``BackendError`` if the PTX cannot be compiled or contains what the emulator does not know, and
    ``MisfitError`` if the program was not compiled from it. Opening and fusing raise ``GateError`` for every fault that the
    checker of the emulator finds.

    Args:
        engine: The engine.
        architecture: Which of its architectures.
    """
    return Proxy(f"its PTX for sm_{architecture}", lambda: _open_emulator(engine, architecture))


def require_architecture(device: Device, remedy: str) -> int:
    """The architecture to compile our kernels for, on a given device.

    Args:
        device: The device.
        remedy: What the user should do if there are no kernels for it.

    Raises:
        BackendError: There are no kernels for it.
    """
    chosen = choose_architecture(ARCHITECTURES, device.architecture)
    if chosen is None:
        known = ", ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
        raise BackendError(
            f"there are no kernels for {device}, only for {known}", remedy, expected=ARCHITECTURES, got=device.architecture
        )
    return chosen


def _emulation_s(state: State, pixels: int) -> float:
    work = network_of(state).work(shapes_of(state), "fp16")
    return pixels * (_EMULATION_S[0] + _EMULATION_S[1] * work.flops / 2)


def _open_emulator(engine: Engine, architecture: int) -> Backend:
    from refusion_edge.backends.fused import FusedBackend
    from refusion_edge.cuda.program_file import parse_program, program_bytes
    from refusion_edge.export.targets.ptx import with_ptx
    from refusion_edge.kernels.emulator.device import EmulatedDevice
    from refusion_edge.kernels.emulator.findings import faults

    program = with_ptx(parse_program(engine.data, engine.name), architecture, jobs=usable_cores())
    device = EmulatedDevice(program, architecture)

    def require_no_fault() -> None:
        if found := faults(device.findings):
            raise GateError(
                f"the emulator's checker finds {len(found)} faults in the PTX for sm_{architecture}; the first is {found[0]}",
                "report this, or build with another --backend",
            )

    class CheckedProgram(FusedBackend):
        def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
            fused = super().fuse(a, b)
            require_no_fault()
            return fused

    try:
        return CheckedProgram(program_bytes(program), engine.name, device)
    except BackendError:
        # The self-test fails where a kernel computes wrongly, and the findings say why.
        require_no_fault()
        raise


def _open_launches(engine: Engine) -> Backend:
    from refusion_edge.backends.fused import FusedBackend
    from refusion_edge.cuda.program_file import parse_program
    from refusion_edge.kernels.gpu.simulated_device import SimulatedProgramDevice

    program = parse_program(engine.data, engine.name)
    return FusedBackend(engine.data, engine.name, SimulatedProgramDevice(program, min(program.targets)))


FUSED = ProgramBuilder()
