"""The checks of the self-test: whether each back end builds, runs and is accurate on this device.

Every back end is compared with stored vectors, never with another back end of the same machine. Times are only indicative;
``bench`` measures latency. The caller supplies the function that builds engines.
"""

from __future__ import annotations

import contextlib
import math
import platform
import re
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refusion_edge import cuda
from refusion_edge._version import __version__
from refusion_edge.accuracy.gate import LIMITS, Fidelity, compare, gate_pairs, measure, worst
from refusion_edge.accuracy.vectors import TASK, Vectors, read_vectors
from refusion_edge.arrays import Float32Array
from refusion_edge.backends.onnxruntime import open_reference
from refusion_edge.backends.registry import BACKENDS, Backend, build_status, find_entry, open_weights, status
from refusion_edge.backends.tensorrt.product import PRODUCTS, installed_version
from refusion_edge.bench.measurement import graph_problem
from refusion_edge.bench.sensors import read_state
from refusion_edge.bundle.folder import EngineBundle, read_bundle
from refusion_edge.bundle.manifest import WEIGHTS
from refusion_edge.errors import RefusionError, UsageError
from refusion_edge.fuser import open_bundle
from refusion_edge.images.luma import to_planes
from refusion_edge.machine import accelerator, is_installed, processor, this_machine, usable_cores
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.forms import Precision
from refusion_edge.network.weights import weights_path
from refusion_edge.selftest.software import Software, read_software
from refusion_edge.sizes import SizeRange
from refusion_edge.tasks import find_task

SCHEMA = "refusion-edge/selftest/1"
HEADINGS = (
    "device", "system", "JetPack, L4T", "driver, CUDA", "TensorRT", "Python", "power mode", "back ends", "release, date",
)  # fmt: skip
"""Headings of the row that goes into ``docs/platforms.md``."""

Outcome = Literal["passed", "failed", "built", "absent"]
Builder = Callable[[str, Precision, SizeRange, Path], EngineBundle]
"""Builds an engine for a back end in a precision, for one size or for a range, with the weights of the stored vectors."""

_WARMUP, _LEAST, _MOST, _TIMED_S = 2, 3, 200, 1.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of single calls of a back end, one after the other.

    Attributes:
        size_hw: Height and width of the images.
        count: Number of calls.
        median_ms: Median.
        max_ms: Largest.
        graph_problem: Why the calls were not replays of a recorded CUDA graph; empty if they were, or if no device is involved.
    """

    size_hw: tuple[int, int]
    count: int
    median_ms: float
    max_ms: float
    graph_problem: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """Result for one back end or bundle.

    Attributes:
        name: Back end, or folder of the bundle.
        backend: Back end.
        precision: Precision of the engine that ran.
        outcome: ``passed``; ``failed``; ``built`` if engines can be built but not run; ``absent`` if it cannot be used.
        reason: Version, or why it failed or is absent.
        build_s: Duration of the build; None if nothing was built.
        fidelity: Distance to the stored vectors, or of a bundle to its fp32 reference; None if nothing ran.
        latency: Times; None if nothing ran.
        trace: Traceback of an unexpected error, or empty.
    """

    name: str
    backend: str
    precision: Precision
    outcome: Outcome
    reason: str
    build_s: float | None = None
    fidelity: Fidelity | None = None
    latency: Latency | None = None
    trace: str = ""

    @property
    def text(self) -> str:
        """Text for the row: accuracy and time, or what went wrong."""
        what = f"{self.backend} {self.precision}"
        if self.outcome == "built":
            return f"{what}: built, not run"
        if self.outcome != "passed" or self.fidelity is None or self.latency is None:
            return f"{what}: {self.outcome.upper()}"
        height, width = self.latency.size_hw
        psnr = "equal" if self.fidelity.psnr_db == math.inf else f"{self.fidelity.psnr_db:.1f} dB"
        replayed = " without a CUDA graph" if self.latency.graph_problem else ""
        return f"{what}: {psnr}, {self.latency.median_ms:.3g} ms at {height}x{width}{replayed}"


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """Description of the device.

    Attributes:
        device: Name of the accelerator, or else of the processor.
        compute_capability: Such as ``8.7``; None if no CUDA device was found.
        memory: Whether the device shares memory with the processor, and its driver interface, as text; empty without one.
        system: Operating system and architecture.
        distribution: Name of the distribution.
        cores: Processor cores available.
        software: NVIDIA's software.
        bindings: Version of the Python packages of TensorRT, by package; None if missing.
        python: Version of Python.
        power_mode: Power mode and governor as text, or ``not available``.
    """

    device: str
    compute_capability: str | None
    memory: str
    system: str
    distribution: str
    cores: int
    software: Software
    bindings: dict[str, str | None]
    python: str
    power_mode: str


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result of the self-test.

    Attributes:
        started: Start, ISO 8601 in UTC.
        facts: Description of the device.
        checks: One per back end and bundle.
    """

    started: str
    facts: DeviceFacts
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing that is available failed."""
        return all(check.outcome != "failed" for check in self.checks)

    @property
    def row(self) -> str:
        """One row of the table of platforms, in Markdown, without what is absent."""
        facts, software = self.facts, self.facts.software
        capability = f" ({facts.compute_capability})" if facts.compute_capability else ""
        bindings = [f"{name} {version}" for name, version in facts.bindings.items() if version]
        ran = [check.text for check in self.checks if check.outcome != "absent"]
        cells = (
            facts.device + capability,
            f"{facts.distribution}, {facts.system}",
            _joined(software.jetpack, software.l4t),
            _joined(software.driver, software.cuda),
            _joined(software.tensorrt and f"library {software.tensorrt}", *bindings),
            facts.python,
            facts.power_mode,
            "; ".join(ran) or "none",
            f"{__version__}, {self.started[:10]}",
        )
        return f"| {' | '.join(_cell(text) for text in cells)} |"

    def to_document(self) -> dict[str, Any]:
        """Everything as strict JSON."""
        checks = []
        for check in self.checks:
            fidelity = None if check.fidelity is None else {
                name: value if math.isfinite(value) else None for name, value in asdict(check.fidelity).items()
            }  # fmt: skip
            checks.append({**asdict(check), "fidelity": fidelity, "limits": asdict(LIMITS[check.precision])})
        return {
            "schema": SCHEMA,
            "refusion-edge": __version__,
            "started": self.started,
            "facts": asdict(self.facts),
            "passed": self.passed,
            "checks": checks,
            "row": self.row,
        }


def describe_device() -> DeviceFacts:
    """Describe this device; starts the CUDA driver if there is one."""
    capability, memory = None, ""
    with contextlib.suppress(RefusionError, ImportError), cuda.open_driver() as driver:
        capability = driver.device.compute_capability
        memory = f"{'shared with' if driver.device.is_zero_copy else 'separate from'} the processor, through {driver.name}"
    return DeviceFacts(
        device=accelerator() or processor(),
        compute_capability=capability,
        memory=memory,
        system=str(this_machine()).partition(" with ")[0],
        distribution=_distribution(),
        cores=usable_cores(),
        software=read_software(),
        bindings={product.module: _bindings(product.name) for product in PRODUCTS.values()},
        python=platform.python_version(),
        power_mode=read_state().power_mode,
    )


def timing_sizes(size_hw: tuple[int, int] | None) -> SizeRange:
    """Size range of an engine that accepts the stored vectors and is timed at a given size.

    Args:
        size_hw: Size to time at, or None for that of the vectors.

    Raises:
        UsageError: It is smaller than the vectors.
    """
    min_hw = read_vectors().size_hw
    size_hw = size_hw or min_hw
    if any(side < least for side, least in zip(size_hw, min_hw, strict=True)):
        raise UsageError(
            f"a size of {size_hw[0]}x{size_hw[1]} is too small",
            f"choose at least {min_hw[0]}x{min_hw[1]}",
            expected=min_hw,
            got=size_hw,
        )
    return SizeRange(min_hw, size_hw, size_hw)


def unchecked(subject: str | Path) -> Check:
    """The entry of a back end or bundle before it is checked.

    Raises:
        UsageError: There is no such back end.
        BundleError: It is not a bundle, or a damaged one.
    """
    if isinstance(subject, Path):
        manifest = read_bundle(subject).manifest
        return Check(str(subject), manifest.backend, manifest.precision, "absent", status(manifest.backend).reason)
    precision: Precision = "fp16" if "fp16" in find_entry(subject).forms else "fp32"
    return Check(subject, subject, precision, "absent", status(subject).reason)


def check_backend(name: str, sizes_hw: SizeRange, build: Builder, folder: Path) -> Check:
    """Build a small engine for a back end, compare it with the stored vectors, and time it.

    Args:
        name: The back end.
        sizes_hw: Range from the size of the vectors to the size to time at.
        build: Builds the engine.
        folder: Existing folder to build in.

    Raises:
        UsageError: There is no such back end.
        InputError: The stored vectors are damaged.
    """
    entry, found = find_entry(name), status(name)
    vectors, blank = read_vectors(), unchecked(name)
    if entry.builds:
        builds = build_status(name)
        if not builds.usable or not (found.usable or entry.builds_anywhere):
            why = found.reason if not found.usable else f"{found.reason}; engines cannot be built here: {builds.reason}"
            return replace(blank, reason=why)
    elif not found.usable:
        return blank

    def run() -> Check:
        if not entry.builds:
            state = read_checkpoint(weights_path(TASK)).state
            return _ran(blank, open_weights(state, name), vectors, sizes_hw.max_hw)
        started = time.perf_counter()
        bundle = build(name, blank.precision, sizes_hw, folder / name)
        built = replace(blank, outcome="built", build_s=time.perf_counter() - started)
        if not found.usable:
            return built
        return _ran(built, open_bundle(bundle, run_gate=False), vectors, sizes_hw.max_hw)

    return _guarded(blank, run)


def check_bundle(path: Path) -> Check:
    """Compare the engine of a bundle with the fp32 reference of its own weights on the sample pairs, and time it.

    For engines built on another machine, such as programs of our kernels.

    Raises:
        BundleError: It is not a bundle, or a damaged one.
    """
    bundle, blank = read_bundle(path), unchecked(path)
    manifest = bundle.manifest
    if not status(manifest.backend).usable:
        return blank

    def run() -> Check:
        state, task = read_checkpoint(bundle.path / WEIGHTS).state, find_task(manifest.task)
        pairs = gate_pairs(task, manifest.gate_hw)
        with open_bundle(bundle, run_gate=False) as engine, open_reference(state) as reference:
            results = list(measure(engine, reference, pairs, task))
            planes = to_planes(pairs[0].a, pairs[0].b, task)
            latency = _timed(engine, planes.a, planes.b)
        return _evaluated(blank, worst(result.fidelity for result in results), latency)

    return _guarded(blank, run)


def _guarded(blank: Check, run: Callable[[], Check]) -> Check:
    try:
        return run()
    except RefusionError as error:
        return replace(blank, outcome="failed", reason=str(error))
    except Exception as error:  # an untested release may raise anything, and that is what the self-test reports
        reason = f"{type(error).__name__}: {error}"
        return replace(blank, outcome="failed", reason=reason, trace=traceback.format_exc())


def _ran(check: Check, backend: Backend, vectors: Vectors, size_hw: tuple[int, int]) -> Check:
    a, b = vectors.planes()
    with backend:
        fidelity = compare(backend.fuse(a, b)[0, 0].copy(), vectors.fused)
        latency = _timed(backend, _tiled(a, size_hw), _tiled(b, size_hw))
    return _evaluated(check, fidelity, latency)


def _evaluated(check: Check, fidelity: Fidelity, latency: Latency) -> Check:
    limits = LIMITS[check.precision]
    if limits.hold(fidelity):
        return replace(check, outcome="passed", fidelity=fidelity, latency=latency)
    reason = f"too far from the reference: {fidelity}, allowed {limits}; do not use this back end, and report this"
    return replace(check, outcome="failed", reason=reason, fidelity=fidelity, latency=latency)


def _timed(backend: Backend, a: Float32Array, b: Float32Array) -> Latency:
    for _ in range(_WARMUP):
        backend.fuse(a, b)
    times_s = list(_times_s(lambda: backend.fuse(a, b)))
    median_ms, max_ms = 1e3 * statistics.median(times_s), 1e3 * max(times_s)
    return Latency((a.shape[2], a.shape[3]), len(times_s), median_ms, max_ms, graph_problem(backend))


def _times_s(run: Callable[[], object]) -> Iterator[float]:
    started_s = time.perf_counter()
    for count in range(_MOST):
        before_s = time.perf_counter()
        if count >= _LEAST and before_s - started_s > _TIMED_S:
            return
        run()
        yield time.perf_counter() - before_s


def _tiled(plane: Float32Array, size_hw: tuple[int, int]) -> Float32Array:
    """A plane of a given size, tiled with a real one."""
    repeats = (-(-size // side) for size, side in zip(size_hw, plane.shape[2:], strict=True))
    return np.ascontiguousarray(np.tile(plane, (1, 1, *repeats))[..., : size_hw[0], : size_hw[1]])


def _bindings(backend: str) -> str | None:
    """Version reported by the package of a back end, if it is installed."""
    product = PRODUCTS[backend]
    with contextlib.suppress(RefusionError):
        return installed_version(product) if is_installed(product.module) else None
    return "installed, but cannot be loaded"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _joined(*texts: str | None) -> str:
    return ", ".join(text for text in texts if text) or "none"


def _cell(text: str) -> str:
    """Text that does not break a row of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def backends_to_check(names: Iterable[str] = ()) -> tuple[str, ...]:
    """The back ends that were asked for, or all.

    Raises:
        UsageError: There is no such back end.
    """
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        find_entry(name)
    return chosen or tuple(BACKENDS)
