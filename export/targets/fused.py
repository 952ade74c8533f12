"""Engines of the back end ``fused``: programs of our Triton kernels, compiled ahead of time."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from importlib import resources

import onnx

from refusion_edge import cuda
from refusion_edge._version import __version__
from refusion_edge.arrays import State
from refusion_edge.backends.registry import BACKENDS, Backend, Choice, Engine
from refusion_edge.bundle.folder import sha256
from refusion_edge.bundle.manifest import PROGRAM
from refusion_edge.bundle.spec import BuildSpec, EngineSpec
from refusion_edge.cuda.driver import Device
from refusion_edge.errors import BackendError, UsageError
from refusion_edge.export.targets.builder import EngineFile, Inputs, PhaseListener, Proxy, check_options
from refusion_edge.machine import ARCHITECTURES, choose_architecture, this_machine, usable_cores
from refusion_edge.network.family import make_model


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
        if not inputs.facts["ran"]:
            remarks.append(
                "This machine has no GPU to run the kernels, so the accuracy gate ran the launches with the CPU reference of "
                "each kernel. The kernels themselves are checked on the device whenever the program is loaded."
            )
        # The program holds kernels for several architectures and selects among them when it is loaded.
        engine = Engine(data, spec.precision, PROGRAM, spec.size_hw)
        return EngineFile(PROGRAM, engine, tools={"compiler": inputs.facts["version"]})

    def proxy(self, engine: Engine, model: bytes, *, threads: int = 0) -> Proxy:
        """See ``Builder.proxy``: the launches of the program, each run by the NumPy reference of its kernel."""
        return Proxy("its launches on the CPU", lambda: _open_launches(engine))


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


def _open_launches(engine: Engine) -> Backend:
    from refusion_edge.backends.fused import FusedBackend
    from refusion_edge.cuda.program_file import parse_program
    from refusion_edge.kernels.gpu.simulated_device import SimulatedProgramDevice

    program = parse_program(engine.data, engine.name)
    return FusedBackend(engine.data, engine.name, SimulatedProgramDevice(program, min(program.targets)))


FUSED = ProgramBuilder()
