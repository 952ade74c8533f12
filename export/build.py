"""Building an engine bundle: weights, graph, engine, accuracy gate, and only then a folder on disk. No torch."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import onnx

from refusion_edge import __version__
from refusion_edge.architectures import parse_architectures
from refusion_edge.arrays import State
from refusion_edge.backends import AUTO, Backend, Choice, build_status, choose_builder, onnxruntime, status
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.bundle import (
    MODEL,
    PROGRAM,
    WEIGHTS,
    EngineBundle,
    GateResult,
    Manifest,
    TensorSpec,
    check_replaceable,
    install_bundle,
    read_bundle,
    sha256,
)
from refusion_edge.checkpoint import Checkpoint, read_checkpoint, safetensors_bytes
from refusion_edge.errors import BundleError, CheckpointError, GateError, OutputError, UsageError
from refusion_edge.fidelity import LIMITS, worst
from refusion_edge.fuser import open_weights
from refusion_edge.gate import PairFidelity, measure, resized
from refusion_edge.graph import INPUT_A, INPUT_B, OUTPUT, Precision, fill, read_template
from refusion_edge.machine import Target, usable_cores
from refusion_edge.pairs import ImagePair, fingerprint, read_pair
from refusion_edge.samples import sample_paths
from refusion_edge.tasks import find_task
from refusion_edge.weights import weights_path


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """What to build.

    Attributes:
        task: Name of the task.
        precision: Precision of the engine.
        backend: Back end, or ``auto``.
        size_hw: Fixed height and width, or None for any size.
        weights: Weights file, or None for the weights of the package.
        output: Folder of the bundle, or None for a name made from the rest.
        use_cache: Whether an engine that was built before from the same things may be used again.
        architectures: GPU architectures that a program for the back end ``fused`` is compiled for, 87 for sm_87; None
            for that of this machine. For no other back end.
    """

    task: str
    precision: Precision = "fp16"
    backend: str = AUTO
    size_hw: tuple[int, int] | None = None
    weights: Path | None = None
    output: Path | None = None
    use_cache: bool = True
    architectures: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        choice: Back end and why.
        bundle: The installed bundle.
        cached: Whether the engine came from the cache.
        gate: Result per sample pair; empty if the engine came from the cache, whose gate had passed.
        stages_s: Seconds per stage, in order.
        remarks: Sentences that the user should see.
    """

    choice: Choice
    bundle: EngineBundle
    cached: bool
    gate: tuple[PairFidelity, ...]
    stages_s: dict[str, float]
    remarks: tuple[str, ...]


def build(spec: BuildSpec, on_stage: Callable[[str], None] = lambda _: None) -> BuildReport:
    """Build one engine bundle.

    Everything is made in memory and judged there, so that a build that fails or is killed leaves nothing behind.

    Args:
        spec: What to build.
        on_stage: Called with the name of each stage as it starts.

    Raises:
        GateError: The engine is too far from the fp32 reference; nothing is installed.
        BackendError: The back end cannot be used here.
        CheckpointError: The weights cannot be used.
        OutputError: The bundle cannot be written.
        UsageError: The options contradict each other.
    """
    task = find_task(spec.task)
    choice = choose_builder(spec.backend)
    spec = _with_architectures(spec, choice.name)
    output = spec.output or default_output(spec, choice.name)
    check_replaceable(output)
    stages_s: dict[str, float] = {}
    remarks: list[str] = []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        on_stage(name)
        started = time.perf_counter()
        yield
        stages_s[name] = time.perf_counter() - started

    with stage("weights"):
        checkpoint = _read_weights(spec)
        weights = safetensors_bytes(Checkpoint(task.name, checkpoint.state, checkpoint.notes))
        pairs = _gate_pairs(spec)
    with stage("graph"):
        template = read_template(spec.precision)
        model = fill(template, checkpoint.state, spec.size_hw).SerializeToString(deterministic=True)
        key = _key(spec, choice.name, {"weights": weights, "model": model}, pairs)

    cache = cache_folder() / "bundles" / key
    cached = _from_cache(cache, key, remarks) if spec.use_cache else None
    if cached is not None:
        with stage("install"):
            bundle = install_bundle(output, cached.manifest, {name: cached.read(name) for name in cached.manifest.files})
        return BuildReport(choice, bundle, True, (), stages_s, tuple(remarks))

    with stage("engine"):
        engine, compiled = _make_engine(spec, choice.name, model, checkpoint.state, sha256(weights))
    if compiled and not status(choice.name).usable:
        remarks.append(
            "This machine has no GPU that runs the kernels: the gate ran its launches with the plain reference of each "
            "kernel. The kernels themselves are checked on the device, each time the program is loaded."
        )
    with stage("gate"), engine, open_weights(checkpoint.state, "onnxruntime", optimised=False) as reference:
        results = tuple(measure(engine, reference, pairs, task))
    _require_passed(results, spec.precision)
    with stage("install"):
        files = {MODEL: model, WEIGHTS: weights, **compiled}
        manifest = _manifest(spec, choice.name, key, files, _gate_result(results, pairs))
        bundle = install_bundle(output, manifest, files)
        if spec.use_cache:
            _to_cache(cache, manifest, files, remarks)
    return BuildReport(choice, bundle, False, results, stages_s, tuple(remarks))


def _with_architectures(spec: BuildSpec, backend: str) -> BuildSpec:
    if backend != "fused":
        if spec.architectures is not None:
            raise UsageError(f"expected --arch with the back end fused only, got it with {backend}; leave it out.")
        return spec
    if spec.precision != "fp16":
        raise UsageError(
            f"expected the precision fp16 for the back end fused, got {spec.precision}; build with --precision fp16."
        )
    if spec.architectures is None:
        if not status(backend).usable:
            raise UsageError(
                "expected --arch for the back end fused on a machine without a GPU, got none; name the device's, such as "
                "--arch sm_87 for Orin."
            )
        from refusion_edge.backends.device import open_device

        with closing(open_device()) as device:
            here = device.properties.architecture
        return replace(spec, architectures=parse_architectures(f"sm_{here}"))
    return spec


def _make_engine(
    spec: BuildSpec, backend: str, model: bytes, state: State, weights_sha256: str
) -> tuple[Backend, dict[str, bytes]]:
    """Make what the gate judges, and the files beside the model that it comes from."""
    if backend != "fused":
        return OrtBackend(model), {}
    from refusion_edge.backends.fused import FusedBackend
    from refusion_edge.backends.host_device import HostDevice
    from refusion_edge.export.program import make_program
    from refusion_edge.program_file import program_bytes

    facts = {"task": spec.task, "precision": spec.precision, "weights_sha256": weights_sha256, "refusion-edge": __version__}
    program = make_program(state, facts, spec.architectures or (), jobs=usable_cores())
    data = program_bytes(program)
    # The gate runs the file itself. Without a GPU its launches are computed with the plain reference of each kernel.
    device = None if status(backend).usable else HostDevice(program, min(program.targets))
    return FusedBackend(data, PROGRAM, device), {PROGRAM: data}


def default_output(spec: BuildSpec, backend: str) -> Path:
    """Name of the bundle folder where none was asked for."""
    size = "" if spec.size_hw is None else f"-{spec.size_hw[0]}x{spec.size_hw[1]}"
    return Path("bundles") / f"{spec.task}-{spec.precision}-{backend}{size}"


def cache_folder() -> Path:
    """Folder of the engines built so far: ``$REFUSION_EDGE_CACHE``, else in the user's cache folder."""
    if chosen := os.environ.get("REFUSION_EDGE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refusion-edge"


def _read_weights(spec: BuildSpec) -> Checkpoint:
    path = spec.weights or weights_path(spec.task)
    checkpoint = read_checkpoint(path)
    if checkpoint.task not in (None, spec.task):
        raise CheckpointError(
            f"expected weights for {spec.task}, got {path}, which is for {checkpoint.task}; use --task "
            f"{checkpoint.task} or other weights."
        )
    return checkpoint


def _gate_pairs(spec: BuildSpec) -> tuple[ImagePair, ...]:
    pairs = tuple(read_pair(paths) for paths in sample_paths(spec.task))
    return pairs if spec.size_hw is None else tuple(resized(pair, spec.size_hw) for pair in pairs)


def _require_passed(results: tuple[PairFidelity, ...], precision: Precision) -> None:
    overall = worst(result.fidelity for result in results)
    if not LIMITS[precision].hold(overall):
        remedy = "build with --precision fp32" if precision != "fp32" else "check the weights with 'refusion-edge inspect'"
        raise GateError(
            f"expected an {precision} engine close to the fp32 reference ({LIMITS[precision]}), got {overall}; nothing was "
            f"installed, {remedy}."
        )


def _gate_result(results: tuple[PairFidelity, ...], pairs: tuple[ImagePair, ...]) -> GateResult:
    overall = worst(result.fidelity for result in results)
    return GateResult(
        psnr_db=overall.psnr_db if math.isfinite(overall.psnr_db) else None,
        ssim=overall.ssim,
        max_error=overall.max_error,
        pairs=len(pairs),
        pairs_sha256=fingerprint(pairs),
    )


def _manifest(spec: BuildSpec, backend: str, key: str, files: dict[str, bytes], gate: GateResult) -> Manifest:
    shape = (1, 1, *(spec.size_hw or (None, None)))
    return Manifest(
        task=spec.task,
        precision=spec.precision,
        backend=backend,
        engine=next((name for name in files if name not in (MODEL, WEIGHTS)), MODEL),
        key=key,
        # ONNX Runtime compiles the portable model anew on every machine; a program chooses its kernels when it is loaded.
        target=Target(),
        weights_sha256=sha256(files[WEIGHTS]),
        inputs=(TensorSpec(INPUT_A, "float32", shape), TensorSpec(INPUT_B, "float32", shape)),
        outputs=(TensorSpec(OUTPUT, "float32", shape),),
        gate=gate,
        tools=_tools(),
        files={name: sha256(data) for name, data in files.items()},
    )


def _tools() -> dict[str, str]:
    return {
        "refusion-edge": __version__,
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.version(),
        "opencv": cv2.__version__,
    }


def _key(spec: BuildSpec, backend: str, made_from: dict[str, bytes], pairs: tuple[ImagePair, ...]) -> str:
    """Hash everything that the engine and the verdict on it depend on."""
    description = {
        "backend": backend,
        "precision": spec.precision,
        "size_hw": spec.size_hw,
        **{name: sha256(data) for name, data in made_from.items()},
        "pairs": fingerprint(pairs),
        "limits": asdict(LIMITS[spec.precision]),
        "tools": _tools(),
        "architectures": spec.architectures,
        "compiler": build_status(backend).reason,
    }
    return sha256(json.dumps(description, sort_keys=True).encode())


def _from_cache(cache: Path, key: str, remarks: list[str]) -> EngineBundle | None:
    if not cache.exists():
        return None
    try:
        bundle = read_bundle(cache)
        if bundle.manifest.key == key:
            return bundle
        problem = "its manifest is for something else."
    except BundleError as error:
        problem = str(error)
    remarks.append(f"A cached engine was ignored and is built anew: {problem}")
    return None


def _to_cache(cache: Path, manifest: Manifest, files: dict[str, bytes], remarks: list[str]) -> None:
    try:
        install_bundle(cache, manifest, files)
    except OutputError as error:
        remarks.append(f"The engine was built but could not be cached: {error}")
