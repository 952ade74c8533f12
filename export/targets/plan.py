"""Compiling an ONNX model to a plan, with one code path for TensorRT (10.3 or newer) and TensorRT-RTX.

Features are detected in the module of a release, never derived from its version. The compiler runs in its own thread and
releases Python's global lock, so the main thread can show progress and handle an interrupt, and no Python exception has to
cross C++ code.
"""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusion_edge import cuda
from refusion_edge.backends.tensorrt.product import OLDEST, Log, Product, implement, load, open_log
from refusion_edge.backends.tensorrt.settings import PlanSettings, tool_command
from refusion_edge.cuda.driver import memory_text
from refusion_edge.errors import BackendError, OutputError, UsageError
from refusion_edge.export.targets.builder import PhaseListener
from refusion_edge.files import write_atomically
from refusion_edge.network.graph import MEAN, OUTPUT, UINT8_OUTPUTS
from refusion_edge.sizes import SizeRange

_MIB = 1 << 20
_POLL_S = 0.1
_START_S = 1.0
_SCRATCH = re.compile(r"^Max Scratch Memory: (\d+) bytes")
_NO_TACTIC = ("no tactics", "could not find any implementation", "insufficient workspace")
_REQUESTED = re.compile(r"Requested amount of GPU memory \((\d+) bytes\)")


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled engine.

    Attributes:
        data: The plan, in the vendor's own format.
        scratch_bytes: Memory that one run at the largest size needs in addition to inputs, output and weights; None if the
            compiler did not report it.
        command: Equivalent command of the vendor's tool.
        tools: Versions of the tools that compiled it, by name.
        remarks: Sentences for the user.
    """

    data: bytes
    scratch_bytes: int | None
    command: str
    tools: dict[str, str]
    remarks: tuple[str, ...]


def compile_plan(
    product: Product,
    model: bytes,
    settings: PlanSettings,
    sizes_hw: SizeRange | None,
    *,
    timing_cache: Path | None = None,
    listener: PhaseListener | None = None,
    names: tuple[str, str] = ("model.onnx", "engine.plan"),
) -> Plan:
    """Compile a strongly typed ONNX model.

    Args:
        product: The compiler.
        model: Serialized ONNX model with the inputs of the settings and the output ``fused``.
        settings: How to compile it.
        sizes_hw: Size range of a model of dynamic size; None for a fixed size.
        timing_cache: Kernel timing cache, read if it exists and updated afterwards; None for no cache.
        listener: Receives the progress of the compiler.
        names: File names of model and plan in the command.

    Raises:
        BackendError: The compiler cannot start here, rejects the model, or finds no kernels within the limits.
        MissingDependencyError: The compiler is not installed.
        UsageError: The compiler does not support a setting.
        KeyboardInterrupt: The user interrupted the compiler, and it has stopped.
    """
    settings.check(product)
    trt = load(product)
    log = open_log(trt)
    remarks: list[str] = []
    builder = _open_builder(trt, product, log)
    network, says_typed = _create_network(trt, product, builder)
    config = builder.create_builder_config()
    _apply(trt, product, settings, config)
    cache = _attach_timing_cache(config, timing_cache, log, remarks)
    cancel = threading.Event()
    monitor = _attach_monitor(trt, config, listener, cancel)
    parser = trt.OnnxParser(network, log.sink)
    if not _in_thread(lambda: parser.parse(model), cancel):
        raise BackendError(
            f"{product.title} {trt.__version__} rejects the model: {_parse_problem(parser, log)}",
            "report this with the versions of both packages",
        )
    _check_tensors(network, settings)
    if sizes_hw is not None:
        _add_profile(builder, config, settings, sizes_hw)
    serialized = _in_thread(lambda: builder.build_serialized_network(network, config), cancel)
    if serialized is None:
        max_hw = network.get_input(0).shape[2:] if sizes_hw is None else sizes_hw.max_hw
        raise _build_problem(trt, product, settings, max_hw, log)
    if cache is not None and timing_cache is not None:
        _save_timing_cache(timing_cache, cache, remarks)
    # The compiler may call the monitor up to this point.
    del monitor
    return Plan(
        data=bytes(serialized),
        scratch_bytes=_scratch(log),
        command=tool_command(product, settings, sizes_hw, *names, says_typed=says_typed),
        tools={product.module: str(trt.__version__)},
        remarks=tuple(remarks),
    )


def _open_builder(trt: Any, product: Product, log: Log) -> Any:
    try:
        builder = trt.Builder(log.sink)
    except (RuntimeError, TypeError) as error:  # how pybind11 reports a constructor that returned null
        raise _no_builder(trt, product, log) from error
    if builder is None:
        raise _no_builder(trt, product, log)
    return builder


def _no_builder(trt: Any, product: Product, log: Log) -> BackendError:
    return BackendError(
        f"the builder of {product.title} {trt.__version__} does not start here: {log.first_error}",
        "check the NVIDIA driver with 'refusion-edge doctor'",
    )


def _create_network(trt: Any, product: Product, builder: Any) -> tuple[Any, bool]:
    """Create a strongly typed network, and tell whether that took a flag."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if typed is not None:
        return builder.create_network(1 << int(typed)), True
    # Releases without the flag make every network strongly typed (TensorRT 11) or none.
    if hasattr(trt.BuilderFlag, "FP16"):
        raise BackendError(
            f"{product.title} {trt.__version__} has no strongly typed networks",
            f"update it to {OLDEST} or newer",
            expected=OLDEST,
            got=trt.__version__,
        )
    return builder.create_network(), False


def _apply(trt: Any, product: Product, settings: PlanSettings, config: Any) -> None:
    # On by default. It rounds the factors of fp32 products to ten bits of mantissa, which fp32 does not mean, and which would
    # shift whole images where it hits statistics.
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MIB)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.version_compatible:
        _set_version_compatible(trt, product, config)
    if settings.compute_capabilities:
        _set_compute_capabilities(trt, product, settings.compute_capabilities, config)


def _set_version_compatible(trt: Any, product: Product, config: Any) -> None:
    flag = getattr(trt.BuilderFlag, "VERSION_COMPATIBLE", None)
    if flag is None:
        raise UsageError(f"{product.title} {trt.__version__} has no version-compatible plans", "leave --version-compatible out")
    config.set_flag(flag)


def _set_compute_capabilities(trt: Any, product: Product, wanted: tuple[str, ...], config: Any) -> None:
    offered = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    names = ["SM" + text.replace(".", "") for text in wanted]
    for text, name in zip(wanted, names, strict=True):
        if name not in offered:
            raise UsageError(
                f"{product.title} {trt.__version__} does not build for compute capability {text}",
                f"choose from {', '.join(f'{name[2:-1]}.{name[-1]}' for name in offered)}",
                expected=tuple(f"{name[2:-1]}.{name[-1]}" for name in offered),
                got=text,
            )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(offered[name], index)


def _attach_timing_cache(config: Any, file: Path | None, log: Log, remarks: list[str]) -> Any:
    """Attach the timing cache, if any; an unusable file is reported and replaced."""
    if file is None:
        return None
    try:
        kept = file.read_bytes() if file.exists() else b""
    except OSError as error:
        remarks.append(f"The timing cache {file} could not be read ({error.strerror}) and was replaced.")
        kept = b""
    said = len(log.errors) + len(log.warnings)
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        cache = config.create_timing_cache(kept)
        attached = cache is not None and config.set_timing_cache(cache, False)
    if complaints:  # TensorRT-RTX deprecates it: its builder times no kernels
        return None
    if kept and (not attached or len(log.errors) + len(log.warnings) > said):
        remarks.append(f"The timing cache {file} is damaged, or from another device or version, and was replaced.")
        log.errors.clear()
        cache = config.create_timing_cache(b"")
        attached = config.set_timing_cache(cache, False)
    return cache if attached else None


def _save_timing_cache(file: Path, cache: Any, remarks: list[str]) -> None:
    try:
        write_atomically(file, bytes(cache.serialize()))
    except OutputError as error:
        remarks.append(f"The timing cache could not be written: {error}")


def _attach_monitor(trt: Any, config: Any, listener: PhaseListener | None, cancel: threading.Event) -> Any:
    """Attach a monitor that reports progress and can cancel the build; the caller must keep it alive during the build."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    def start(_: Any, phase: str, parent: str | None, steps: int) -> None:
        if listener is not None:
            listener.started(phase, parent, steps)

    def step(_: Any, phase: str, number: int) -> bool:
        if listener is not None:
            listener.stepped(phase, number)
        return not cancel.is_set()

    def finish(_: Any, phase: str) -> None:
        if listener is not None:
            listener.finished(phase)

    monitor = implement(trt.IProgressMonitor, phase_start=start, step_complete=step, phase_finish=finish)
    config.progress_monitor = monitor
    return monitor


def _check_tensors(network: Any, settings: PlanSettings) -> None:
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    outputs = [network.get_output(index).name for index in range(network.num_outputs)]
    besides = [[], *([levels, MEAN] for levels in UINT8_OUTPUTS.values())]
    if inputs != set(settings.inputs()) or outputs[:1] != [OUTPUT] or outputs[1:] not in besides:
        raise BackendError(
            f"the model should have the inputs {', '.join(settings.inputs())} and the output {OUTPUT}, but has the inputs "
            f"{', '.join(sorted(inputs))} and the outputs {', '.join(outputs)}",
            "build from weights",
            expected=(*settings.inputs(), OUTPUT),
            got=(*sorted(inputs), *outputs),
        )


def _add_profile(builder: Any, config: Any, settings: PlanSettings, sizes_hw: SizeRange) -> None:
    profile = builder.create_optimization_profile()
    shapes = [(1, 1, *size) for size in (sizes_hw.min_hw, sizes_hw.opt_hw, sizes_hw.max_hw)]
    for name in settings.inputs():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)


def _in_thread(work: Callable[[], Any], cancel: threading.Event) -> Any:
    """Run work that ignores signals; an interrupt asks it to stop, and is raised once it has stopped."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            if not cancel.is_set():
                outcome.append(work())
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    # Not Thread.join: after an interrupt, Python 3.11 takes a running thread for one that has ended.
    done = threading.Event()
    thread = threading.Thread(target=run, name="compiler", daemon=True)
    try:
        thread.start()
        while not done.wait(_POLL_S):
            pass
    except BaseException:
        cancel.set()
        # If the interrupt came during the start, there may be no thread yet; one that starts later sees the cancellation.
        while not done.wait(_START_S) and thread.ident is not None:
            pass
        raise
    if failure:
        raise failure[0]
    return outcome[0]


def _parse_problem(parser: Any, log: Log) -> str:
    if not parser.num_errors:
        return log.first_error
    error = parser.get_error(0)
    node = error.node_name() if hasattr(error, "node_name") else ""
    where = f" in the node {node} ({error.node_operator()})" if node else ""
    return " ".join(error.desc().split()).rstrip(".") + where


def _build_problem(trt: Any, product: Product, settings: PlanSettings, max_hw: tuple[int, int], log: Log) -> BackendError:
    said = " ".join(log.errors).lower()
    if log.says_no_memory:
        wanted = max((int(match[1]) for note in log.everything if (match := _REQUESTED.search(note))), default=0)
        amount, size = f"{wanted / _MIB:.0f} MiB of" if wanted else "more", f"{max_hw[0]}x{max_hw[1]}"
        return BackendError(
            f"{product.title} {trt.__version__} needs {amount} device memory to build for {size}: "
            f"{_free_memory()}{log.first_error}",
            f"build for a --size smaller than {size}, or close other programs",
        )
    if any(words in said for words in _NO_TACTIC):
        limit = (
            "no limit on the workspace" if settings.workspace_mib is None else f"a workspace of {settings.workspace_mib} MiB"
        )
        return BackendError(
            f"{product.title} {trt.__version__} finds no kernel for an operation with {limit} ({log.first_error})",
            "raise or drop --workspace, or choose another --compute-capability",
        )
    asked = " and ".join(word for word in settings.words() if word in ("--version-compatible", "--compute-capability"))
    remedy = f"leave {asked} out, or change it" if asked else "see 'refusion-edge doctor', or report this"
    return BackendError(f"{product.title} {trt.__version__} cannot build a plan: {log.first_error}", remedy)


def _free_memory() -> str:
    """Memory of the device in words, followed by a comma; empty without a device."""
    with contextlib.suppress(BackendError), cuda.open_driver() as driver:
        return f"{memory_text(*driver.memory())}, "
    return ""


def _scratch(log: Log) -> int | None:
    found = [int(match[1]) for note in log.notes if (match := _SCRATCH.match(note))]
    return max(found, default=None)
