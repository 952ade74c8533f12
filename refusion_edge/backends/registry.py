"""The table of back ends, and the choice of one that is usable on this machine.

The table refers to modules by dotted name, so that listing back ends imports none of them. An explicit request succeeds or
fails; only ``auto`` makes a choice, and reports what it chose and why.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from typing_extensions import Self

from refusion_edge.arrays import Float32Array, Float64Array, State, Uint8Array
from refusion_edge.documents import brief
from refusion_edge.errors import BackendError, ShapeError, UsageError
from refusion_edge.network.family import DEFAULT_NETWORK, find_network, network_of
from refusion_edge.network.forms import Precision

AUTO = "auto"

# As libraries put it, in lower case.
_NO_MEMORY = ("allocate memory", "bad alloc", "bad_alloc", "out of memory", "enough memory", "not enough space")


class Backend(Protocol):
    """Runs the network. Use it as a context manager, and each instance from one thread only."""

    name: str

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes.

        Args:
            a: Source a, (1, 1, H, W), [0, 1].
            b: Source b, same shape.

        Returns:
            (1, 1, H, W), (0, 1), before any stretch. The next call may overwrite it.

        Raises:
            ShapeError: The planes do not have the fixed size of the engine.
            BackendError: There is not enough memory, or the network cannot be run.
        """


@runtime_checkable
class Uint8OutputBackend(Backend, Protocol):
    """A back end whose engine may have a uint8 output, finished on the device.

    Attributes:
        uint8_range: Range of that output, see ``refusion_edge.images.color.to_output_range``; None without one.
    """

    uint8_range: str | None

    def fuse_uint8(self, a: Float32Array, b: Float32Array) -> Uint8Array:
        """Fuse two luma planes to uint8; only for engines with a ``uint8_range``.

        Args:
            a: Source a, (1, 1, H, W), [0, 1].
            b: Source b, same shape.

        Returns:
            (H, W), a new array.

        Raises:
            ShapeError: The planes do not have the fixed size of the engine.
            GateError: The fused plane contains NaN or infinities.
        """


@runtime_checkable
class Uint8InputBackend(Backend, Protocol):
    """A back end whose engine may accept uint8 sources and convert them to float32 planes on the device.

    Attributes:
        takes_uint8: Whether this engine accepts them: each source of ``fuse`` and of ``fuse_uint8`` may then be uint8,
            (1, 1, H, W), [0, 255].
    """

    takes_uint8: bool


@runtime_checkable
class AdaptedBackend(Backend, Protocol):
    """A back end that can adapt the network to given statistics, such as those of a video over time.

    Attributes:
        adapts: Whether its network is one that adapts to statistics, ``fast``; the methods are for such networks only.
    """

    adapts: bool

    def statistics(self, a: Float32Array, b: Float32Array) -> Float64Array:
        """Take the statistics of a pair that the network adapts to, see ``refusion_edge.network.fast``.

        Args:
            a: Source a, (1, 1, H, W), [0, 1].
            b: Source b, same shape.

        Returns:
            (8,); the same bits for any number of threads.

        Raises:
            ShapeError: The planes differ in shape, or are too small or too large.
            UsageError: The network does not adapt to statistics.
        """

    def fuse_adapted(self, a: Float32Array, b: Float32Array, figures: Float64Array) -> Float32Array:
        """Fuse two luma planes with a network that is adapted to given statistics instead of those of the pair.

        Args:
            a: Source a, (1, 1, H, W), [0, 1].
            b: Source b, same shape.
            figures: Statistics, (8,) as ``statistics`` returns them, or a weighted mean of several.

        Returns:
            As ``fuse``; with the statistics of the pair itself, exactly what ``fuse`` returns.

        Raises:
            InputError: The figures are not eight finite numbers.
            ShapeError: As ``fuse``.
            UsageError: The network does not adapt to statistics.
        """


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that a back end loads: one file of a bundle, or the same data in memory.

    Attributes:
        data: Content of the file.
        precision: Precision that it computes in.
        name: Name of the engine in messages.
        size_hw: Height and width that all planes must have; None for any size, or if the file itself determines it.
        compute_capabilities: Compute capabilities that it was compiled for; empty if left to the compiler.
        version_compatible: Whether it contains a runtime of its own, which is code that will be executed.
        remedy: What to do about an engine that does not fit this machine, without a full stop.
    """

    data: bytes
    precision: Precision
    name: str = "the engine"
    size_hw: tuple[int, int] | None = None
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    remedy: str = "build it again on this machine"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Run-time options of a back end.

    Attributes:
        threads: Threads on the CPU; 0 for the back end's default.
        streaming: Whether there are pauses between images, as with a camera: threads then sleep during the pauses.
    """

    threads: int = 0
    streaming: bool = False


DEFAULTS = RunOptions()


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table.

    Attributes:
        module: Dotted name of the module, or of a class in it after a colon. It defines ``probe() -> Status``;
            ``open_engine(Engine, RunOptions) -> Backend`` if there are engines for it; ``open_weights(State, RunOptions) ->
            Backend`` if it runs weights directly; and ``probe_build() -> Status`` if building has requirements other than
            those of running.
        summary: Description in a few words.
        forms: Graph form of the network ``refusion`` that ``build`` uses, by the precision of the engine; empty if no bundles
            are built for it.
        fast: Precisions in which it runs the network ``fast``; empty if it does not.
        takes_weights: Whether it can run weights in fp32 without building an engine first.
        on_gpu: Whether its engines run on a CUDA device.
        builds_anywhere: Whether its engines can be built on machines without a CUDA device.
        takes_ranges: Whether one engine can accept a range of sizes.
    """

    module: str
    summary: str
    forms: Mapping[Precision, str] = field(default_factory=dict)
    fast: tuple[Precision, ...] = ()
    takes_weights: bool = False
    on_gpu: bool = False
    builds_anywhere: bool = False
    takes_ranges: bool = False

    @property
    def builds(self) -> bool:
        """Whether ``build`` can build bundles for it."""
        return bool(self.forms)

    def precisions(self, network: str) -> tuple[Precision, ...]:
        """Precisions in which it runs a network, fp32 where there are no engines for it; empty if it does not run it."""
        if network == DEFAULT_NETWORK:
            return tuple(self.forms) or ("fp32",)
        return self.fast

    def form(self, network: str, precision: Precision) -> str:
        """Graph form that ``build`` uses for a network in one of its precisions."""
        return self.forms[precision] if network == DEFAULT_NETWORK else find_network(network).forms[0]


@dataclass(frozen=True, slots=True)
class Status:
    """Whether a back end can be used on this machine.

    Attributes:
        usable: Whether it can.
        reason: Its version if it can, or the reason why it cannot.
        fix: The command that makes it usable, or empty if none does.
        lacks: Precisions that it supports in general but not on this machine, as far as known in advance.
    """

    usable: bool
    reason: str
    fix: str = ""
    lacks: tuple[Precision, ...] = ()


_FOLDED: Mapping[Precision, str] = {"fp32": "tensorrt-folded", "fp16": "tensorrt-folded", "int8": "tensorrt-folded"}
# In the order of preference of `auto`, which chooses the first usable one that supports the requested precision.
BACKENDS: dict[str, Entry] = {
    "fused": Entry(
        "refusion_edge.backends.fused",
        "our compiled GPU kernels, without torch",
        {"fp16": "tensorrt-literal"},
        ("fp16",),
        on_gpu=True,
    ),
    "tensorrt": Entry(
        "refusion_edge.backends.tensorrt.runner:TrtBackend",
        "TensorRT engine",
        _FOLDED,
        tuple(_FOLDED),
        on_gpu=True,
        takes_ranges=True,
    ),
    "tensorrt-rtx": Entry(
        "refusion_edge.backends.tensorrt.runner:TrtRtxBackend",
        "TensorRT-RTX engine",
        _FOLDED,
        tuple(_FOLDED),
        on_gpu=True,
        builds_anywhere=True,
        takes_ranges=True,
    ),
    "native": Entry(
        "refusion_edge.backends.native",
        "our C++ kernels for the CPU",
        {"fp32": "cpu", "bf16": "cpu"},
        ("fp32", "bf16", "fp16"),
        takes_weights=True,
    ),
    "openvino": Entry(
        "refusion_edge.backends.openvino",
        "OpenVINO on the CPU",
        {"fp32": "cpu", "bf16": "cpu"},
        ("fp32", "bf16"),
        takes_weights=True,
    ),
    "onnxruntime": Entry(
        "refusion_edge.backends.onnxruntime",
        "ONNX Runtime on the CPU",
        # In fp16 it computes in fp32 between casts, so that no layout is faster than another.
        {"fp32": "cpu", "fp16": "tensorrt-literal"},
        ("fp32", "fp16"),
        takes_weights=True,
    ),
    "eager": Entry("refusion_edge.backends.eager", "PyTorch, the reference", fast=("fp32",), takes_weights=True),
}


def status(name: str) -> Status:
    """Find out whether a back end can be used here, without changing anything.

    Raises:
        UsageError: There is no such back end; the message suggests the nearest one.
    """
    probed: Status = _module(name).probe()
    return probed


def build_status(name: str) -> Status:
    """Find out whether engines for a back end can be built here, even if they cannot run here.

    Raises:
        UsageError: There is no such back end; the message suggests the nearest one.
    """
    module = _module(name)
    probed: Status = module.probe_build() if hasattr(module, "probe_build") else module.probe()
    return probed


def open_engine(name: str, engine: Engine, options: RunOptions = DEFAULTS, *, known_usable: bool = False) -> Backend:
    """Run an engine.

    Args:
        name: A back end.
        engine: An engine that was built for it.
        options: How to run.
        known_usable: Whether the caller knows already that the back end is usable here.

    Raises:
        MisfitError: The engine was built for another machine.
        BackendError: The back end cannot be used here, cannot load the engine, or does not support its precision.
    """
    if not known_usable:
        require_usable(name)
    backend: Backend = _module(name).open_engine(engine, options)
    return backend


def open_weights(state: State, name: str = AUTO, options: RunOptions = DEFAULTS) -> Backend:
    """Run parameters in fp32 without building an engine first; see ``open_runner``."""
    return open_runner(state, name, options)[0]


def open_runner(state: State, name: str = AUTO, options: RunOptions = DEFAULTS) -> tuple[Backend, Choice]:
    """Choose a back end that takes weights of a network, and run its parameters in fp32 on it.

    Args:
        state: Parameters of either network.
        name: A back end, or ``auto`` for the first usable one of the table that takes weights.
        options: How to run.

    Raises:
        UsageError: There is no such back end, it needs an engine, or it does not run this network.
        BackendError: It cannot be used here or cannot run them, or no back end can.
    """
    choice = choose_runner(name, network_of(state).name)
    backend: Backend = _module(choice.name).open_weights(state, options)
    return backend, choice


def _module(name: str) -> Any:
    module, _, inside = find_entry(name).module.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, inside) if inside else loaded


def find_entry(name: str) -> Entry:
    """Look a back end up by its name.

    Raises:
        UsageError: There is no such back end; the message suggests the nearest one.
    """
    entry = BACKENDS.get(name)
    if entry is None:
        nearest = difflib.get_close_matches(name, [AUTO, *BACKENDS], n=1, cutoff=0.4)
        hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
        raise UsageError(
            f"unknown back end '{name}'{hint}",
            f"choose one of {AUTO}, {', '.join(BACKENDS)}",
            expected=(AUTO, *BACKENDS),
            got=name,
        )
    return entry


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen back end, and why it was chosen.

    Attributes:
        name: Name of the back end.
        reason: The reason, to be shown to the user.
        status: Whether its engines run here.
        build_status: Whether its engines can be built here; without a compiler of its own, the same.
        automatic: Whether ``auto`` chose it.
    """

    name: str
    reason: str
    status: Status
    build_status: Status
    automatic: bool = False


def choose_builder(name: str, precision: Precision, network: str = DEFAULT_NETWORK) -> Choice:
    """Choose the back end to build for.

    Args:
        name: A back end that can be built for here, even if it cannot run here; or ``auto`` for the first usable one of the
            table that supports this precision.
        precision: Precision of the engine.
        network: Name of the network.

    Raises:
        UsageError: There is no such back end, no engines of this network are built for it, or none in this precision.
        BackendError: It, or this precision of it, cannot be used here; or no back end can.
    """
    if name != AUTO:
        if not find_entry(name).forms:
            builders = ", ".join(other for other, entry in BACKENDS.items() if entry.builds)
            raise UsageError(
                f"no engines are built for {name}, which runs weights directly", f"choose one of {builders}, which have engines"
            )
        _require_network(name, network)
        precisions = BACKENDS[name].precisions(network)
        if precision not in precisions:
            of_network = "" if network == DEFAULT_NETWORK else f" of the network {network}"
            raise UsageError(
                f"no engines{of_network} in {precision} are built for {name}",
                f"build with --precision {' or '.join(precisions)}",
                expected=precisions,
                got=precision,
            )
        found = _require(name, build_status)
        if precision in found.lacks:
            rest = [other for other in precisions if other not in found.lacks]
            raise BackendError(
                f"{name} does not compute in {precision} on this machine ({found.reason})",
                f"build with --precision {' or '.join(rest)}",
                expected=tuple(rest),
                got=precision,
            )
        return Choice(name, "as asked", status(name), found)
    candidates = (other for other, entry in BACKENDS.items() if entry.builds)
    return _first_usable(candidates, precision, network, building=True)


def usable_runners(network: str = DEFAULT_NETWORK) -> tuple[str, ...]:
    """Names of all back ends that can run weights of a network here without an engine, in order of preference."""
    return tuple(name for name in _runners(network) if status(name).usable)


def choose_runner(name: str, network: str = DEFAULT_NETWORK) -> Choice:
    """Choose the back end that runs weights in fp32, without an engine.

    Args:
        name: A back end, or ``auto`` for the first usable one of the table that takes weights of this network.
        network: Name of the network.

    Raises:
        UsageError: There is no such back end, it needs an engine, or it does not run this network.
        BackendError: It cannot be used here, or no back end can.
    """
    runners = _runners(network)
    if name == AUTO:
        return _first_usable(runners, "fp32", network)
    find_entry(name)
    _require_network(name, network)
    found = _require(name, status)
    if name not in runners:
        raise UsageError(
            f"{name} cannot run weights without an engine",
            f"run: refusion-edge build --backend {name}; or choose one of {', '.join(runners)}",
        )
    return Choice(name, "as asked", found, found)


def _runners(network: str) -> list[str]:
    return [name for name, entry in BACKENDS.items() if entry.takes_weights and entry.precisions(network)]


def _require_network(name: str, network: str) -> None:
    if not BACKENDS[name].precisions(network):
        others = [other for other, entry in BACKENDS.items() if entry.precisions(network)]
        raise UsageError(
            f"the back end {name} does not run the network {network}",
            f"choose one of {', '.join(others)}",
            expected=others,
            got=name,
        )


def _first_usable(candidates: Iterable[str], precision: Precision, network: str, *, building: bool = False) -> Choice:
    rejected: dict[str, list[str]] = {}
    for candidate in candidates:
        precisions = BACKENDS[candidate].precisions(network)
        if not precisions:
            continue
        found = status(candidate)
        if building and found.usable and not build_status(candidate).usable:
            found = build_status(candidate)  # its engines run here, but cannot be built here
        fits = precision in precisions and precision not in found.lacks
        if found.usable and fits:
            chosen = f"auto chose {candidate} ({found.reason})"
            reason = f"{chosen}; not usable here: {_listed(rejected)}; see refusion-edge doctor." if rejected else f"{chosen}."
            return Choice(candidate, reason, found, build_status(candidate), automatic=True)
        reason = found.reason if not found.usable else f"usable, but not in {precision}"
        rejected.setdefault(reason, []).append(candidate)
    raise BackendError(f"no back end is usable here: {_listed(rejected)}", "run 'refusion-edge doctor' for what to do")


def _listed(names_by_reason: dict[str, list[str]]) -> str:
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in names_by_reason.items())


def require_size(built_for_hw: tuple[int, int] | None, got_hw: tuple[int, ...]) -> None:
    """Check that planes have the size of a fixed-size engine.

    Raises:
        ShapeError: They do not; the message says how to build an engine for them.
    """
    if built_for_hw is not None and built_for_hw != got_hw:
        raise ShapeError(
            f"the engine was built for images of {built_for_hw[0]}x{built_for_hw[1]} (height x width), but these are "
            f"{got_hw[0]}x{got_hw[1]}",
            f"build one with --size {got_hw[0]}x{got_hw[1]} or --size dynamic",
            expected=built_for_hw,
            got=got_hw,
        )


def load_error(library: str, problem: Exception) -> BackendError:
    """Make the error for a model that a library cannot load."""
    if _is_no_memory(problem):
        return BackendError(f"there is not enough memory to load the model in {library}", "free some first")
    return BackendError(f"{library} cannot load the model: {brief(problem)}", "build it again")


def execution_error(library: str, problem: Exception, size_hw: tuple[int, ...]) -> BackendError:
    """Make the error for a network that a library could not run.

    Args:
        library: Name of the library.
        problem: What it raised.
        size_hw: Height and width of the planes.
    """
    size = f"{size_hw[0]}x{size_hw[1]} (height x width)"
    if _is_no_memory(problem):
        return BackendError(f"there is not enough memory to fuse {size} in {library}", "fuse smaller images")
    return BackendError(f"{library} cannot run the network on {size}: {brief(problem)}", "choose another --backend")


def _is_no_memory(problem: Exception) -> bool:
    return isinstance(problem, MemoryError) or any(words in str(problem).lower() for words in _NO_MEMORY)


def require_usable(name: str) -> None:
    """Check that a back end can be used here.

    Raises:
        BackendError: It cannot; the message says why, and how to make it usable or what to choose instead.
    """
    _require(name, status)


def _require(name: str, look: Callable[[str], Status]) -> Status:
    found = look(name)
    if found.usable:
        return found
    usable = [other for other in BACKENDS if other != name and status(other).usable]
    remedy = f"run: {found.fix}" if found.fix else f"choose {' or '.join(usable)}" if usable else "see 'refusion-edge doctor'"
    raise BackendError(f"the back end {name} cannot be used here: {found.reason}", remedy)
