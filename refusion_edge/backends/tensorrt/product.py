"""The products TensorRT and TensorRT-RTX: names, availability on this machine, logs, and why a plan does not load."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from refusion_edge import cuda
from refusion_edge.backends.registry import Status
from refusion_edge.cuda.driver import Device
from refusion_edge.errors import MisfitError
from refusion_edge.machine import accelerator, is_installed, require
from refusion_edge.network.forms import Precision

# The first release with strong typing, the progress monitor and enqueueV3 that JetPack 6.2 contains.
OLDEST = "10.3"

_NO_MEMORY = ("out of memory", "outofmemory", "cudaerrormemoryallocation", "cuda error 2", "cudaerror 2:")
# First bytes of a plan; the four numbers of its version are at byte 24, where trtexec --getPlanVersionOnly reads them.
_MAGIC = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}
_VERSION = slice(24, 28)
_REASONS = {
    "VERSION_MISMATCH": "it was built with another version",
    "UNSUPPORTED_CC": "it was built for other devices",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA libraries are too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the device has too little memory for it",
    "MALFORMED_ENGINE": "it is damaged",
    "CUDA_ERROR": "the CUDA driver reports an error",
}


@dataclass(frozen=True, slots=True)
class Product:
    """TensorRT or TensorRT-RTX.

    Attributes:
        name: Name of the back end.
        title: Name in print.
        module: Python module.
        extra: Extra of refusion-edge that installs it.
        tool: The vendor's command that compiles an ONNX model.
        builds_without_gpu: Whether it compiles on a machine without a device.
    """

    name: str
    title: str
    module: str
    extra: str
    tool: str
    builds_without_gpu: bool

    def probe(self) -> Status:
        """Report, without loading the library, whether plans can run here."""
        package = self._probe_package()
        if not package.usable:
            return package
        if problem := cuda.problem():
            return Status(usable=False, reason=f"{package.reason} is installed, but {problem}")
        if cuda.installed() is None:
            reason = f"{package.reason} is installed, but neither pycuda nor cuda-bindings is"
            return Status(usable=False, reason=reason, fix=_install(self))
        reason = f"{package.reason}, {cuda.installed()}"
        capability = cuda.compute_capability()
        lacks = () if capability is None else lacking(self.name, capability)
        if not lacks:
            return Status(usable=True, reason=reason)
        if "fp32" in lacks:
            least = least_capability(self.name, "fp32")
            needs = f"needs compute capability {least} or newer, and this device has {capability}"
            return Status(usable=False, reason=f"{package.reason} is installed, but {needs}")
        return Status(usable=True, reason=f"{reason}, compute capability {capability}", lacks=lacks)

    def probe_build(self) -> Status:
        """Report whether plans can be built here: TensorRT times its kernels on a device, TensorRT-RTX needs none."""
        return self._probe_package() if self.builds_without_gpu else self.probe()

    def _probe_package(self) -> Status:
        if not is_installed(self.module):
            return Status(usable=False, reason=f"{self.module} is not installed", fix=_install(self))
        return Status(usable=True, reason=f"{self.module} {installed_version(self)}")


TENSORRT = Product("tensorrt", "TensorRT", "tensorrt", "tensorrt", "trtexec", builds_without_gpu=False)
TENSORRT_RTX = Product("tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", "rtx", "tensorrt_rtx", builds_without_gpu=True)
PRODUCTS = {product.name: product for product in (TENSORRT, TENSORRT_RTX)}


def _install(product: Product) -> str:
    if product is TENSORRT and "jetson" in (accelerator() or "").lower():
        # A package of JetPack, which a virtual environment sees only with this option.
        return "sudo apt-get install python3-libnvinfer; python3 -m venv --system-site-packages .venv"
    return f"pip install 'refusion-edge[{product.extra}]'"


def installed_version(product: Product) -> str:
    """Version of the installed package, without loading the library."""
    try:
        return importlib.metadata.version(product.module)
    except importlib.metadata.PackageNotFoundError:  # in some releases, the package of JetPack has no metadata
        return str(load(product).__version__)


def load(product: Product) -> Any:
    """Import the module of a product.

    Raises:
        MissingDependencyError: It is not installed or cannot be loaded.
    """
    return require(product.module, product.extra, f"the back end {product.name}")


@dataclass(slots=True)
class Log:
    """Log messages of TensorRT, kept instead of printed.

    Attributes:
        errors: Errors, oldest first.
        warnings: Warnings.
        notes: Everything else, down to the size of each layer's scratch memory.
        sink: The ``ILogger`` to pass to TensorRT; it has to outlive every object that it was passed to.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sink: Any = None

    @property
    def everything(self) -> list[str]:
        """All messages: errors, warnings, notes."""
        return [*self.errors, *self.warnings, *self.notes]

    @property
    def says_no_memory(self) -> bool:
        """Whether the device ran out of memory."""
        said = " ".join(self.errors).lower()
        return any(words in said for words in _NO_MEMORY)

    @property
    def first_error(self) -> str:
        """The first error, in one line; later ones are consequences of it."""
        return " ".join(self.errors[0].split()).rstrip(".") if self.errors else "no reason given"


def open_log(trt: Any) -> Log:
    """Create a log for the module of a product."""
    log = Log()
    severity = trt.ILogger.Severity
    kept = {severity.INTERNAL_ERROR: log.errors, severity.ERROR: log.errors, severity.WARNING: log.warnings}

    def keep(_: Any, level: Any, message: str) -> None:
        kept.get(level, log.notes).append(message)

    log.sink = implement(trt.ILogger, log=keep)
    return log


def implement(interface: Any, **methods: Callable[..., Any]) -> Any:
    """Create an object that implements one of TensorRT's interfaces, which exist only once its module is loaded."""
    return type(interface.__name__, (interface,), {"__init__": interface.__init__, **methods})()


# 10 times the minimum compute capability, from NVIDIA's support matrices of TensorRT 10 and TensorRT-RTX 1. A release may
# require more and then says so itself; Pascal and older are unsupported since TensorRT 10.
_LEAST: Mapping[str, Mapping[Precision, int]] = {
    "tensorrt": {"fp32": 70, "fp16": 70, "int8": 70},
    "tensorrt-rtx": {"fp32": 75, "fp16": 75, "int8": 80},
}


def lacking(name: str, compute_capability: str) -> tuple[Precision, ...]:
    """Precisions that a device does not support.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        compute_capability: Compute capability of the device, such as ``8.7``.
    """
    major, _, minor = compute_capability.partition(".")
    here = 10 * int(major) + int(minor)
    return tuple(precision for precision, least in _LEAST[name].items() if here < least)


def least_capability(name: str, precision: Precision) -> str:
    """Minimum compute capability for a precision, such as ``8.0``."""
    least = _LEAST[name][precision]
    return f"{least // 10}.{least % 10}"


def plan_version(plan: bytes, product: Product) -> str | None:
    """Version of the compiler that wrote a plan, such as ``10.3.0.26``; None if it is not a plan of this product."""
    if plan[: len(_MAGIC[product.name])] != _MAGIC[product.name] or len(plan) < _VERSION.stop:
        return None
    return ".".join(map(str, plan[_VERSION]))


def explain(
    trt: Any, runtime: Any, plan: bytes, *, product: Product, device: Device, built_for: tuple[str, ...], log: Log, remedy: str
) -> MisfitError:
    """Make the error for a plan that did not load: what the plan is, what this machine is, and how to build one that fits.

    Args:
        trt: The module of the product.
        runtime: The ``Runtime`` that refused the plan.
        plan: Content of the plan.
        product: The product that should run it.
        device: The device of this machine.
        built_for: Compute capabilities that it was built for; empty if unknown.
        log: Log of TensorRT.
        remedy: What to do, without a full stop.
    """
    reasons = list(_reasons(trt, runtime, plan, product, device, built_for)) or [log.first_error]
    return MisfitError(
        f"the plan does not load in {product.title} {trt.__version__} on {device} ({'; '.join(reasons)})", remedy
    )


def _reasons(
    trt: Any, runtime: Any, plan: bytes, product: Product, device: Device, built_for: tuple[str, ...]
) -> Iterator[str]:
    version = plan_version(plan, product)
    if version is None:
        other = next((one.title for one in PRODUCTS.values() if plan_version(plan, one)), None)
        yield f"it is a plan of {other}" if other else "it is not a plan, or is damaged"
        return
    if not _same_version(version, trt.__version__):
        yield f"it was built with {product.title} {version}"
    if built_for and device.compute_capability not in built_for:
        yield f"it was built for compute capability {', '.join(built_for)}"
    validity: Callable[[bytes], tuple[Any, int]] | None = getattr(runtime, "get_engine_validity", None)
    if validity is not None:
        _, findings = validity(plan)
        for name, flag in trt.EngineInvalidityDiagnostics.__members__.items():
            if int(findings) & int(flag):
                yield _REASONS.get(name, name)


def _same_version(version: str, other: str) -> bool:
    # Some releases leave the build number out of __version__.
    pairs = zip(version.split("."), other.split("."), strict=False)
    return all(one == two for one, two in pairs)
