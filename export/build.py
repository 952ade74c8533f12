"""Building an engine bundle: weights, graph, engine, accuracy gate, and only then a folder on disk. No torch."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx

from refusion_edge._version import __version__
from refusion_edge.accuracy.fidelity import LIMITS, worst
from refusion_edge.accuracy.gate import PairFidelity, measure, resized, sample_pairs, verdict
from refusion_edge.backends import onnxruntime
from refusion_edge.backends.registry import Choice, choose_builder, read_graph, status
from refusion_edge.backends.tensorrt.product import FLAVOURS
from refusion_edge.bundle.folder import EngineBundle, check_replaceable, install_bundle, read_bundle, sha256
from refusion_edge.bundle.manifest import CALIBRATION, MODEL, WEIGHTS, GateNotRun, GateResult, Manifest, Quantised, TensorSpec
from refusion_edge.errors import BundleError, CheckpointError, GateError, OutputError
from refusion_edge.export.graph.int8 import SPARE_DB, Jury, Selection, select_layers
from refusion_edge.export.spec import BuildSpec, check_spec
from refusion_edge.export.targets.engines import (
    EngineFile,
    Ingredients,
    cache_folder,
    compiler_facts,
    extended,
    make_engine,
    open_judged,
)
from refusion_edge.export.targets.tensorrt import PhaseListener
from refusion_edge.fuser import open_weights
from refusion_edge.images.pairs import ImagePair, fingerprint
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, safetensors_bytes
from refusion_edge.network.graph import INPUT_A, INPUT_B, OUTPUT, fill, form_name
from refusion_edge.network.layouts import Precision
from refusion_edge.network.quantization import CalibrationTable, quantisable_layers
from refusion_edge.network.weights import weights_path
from refusion_edge.sizes import DYNAMIC, SizeRange
from refusion_edge.tasks import Task, find_task


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        choice: Back end and why.
        bundle: The installed bundle.
        cached: Whether the engine came from the cache.
        gate: Result per sample pair, of the engine or, if it cannot run here, of its model on the CPU; empty if the
            engine came from the cache, whose gate had passed.
        stages_s: Seconds per stage, in order.
        remarks: Sentences that the user should see.
    """

    choice: Choice
    bundle: EngineBundle
    cached: bool
    gate: tuple[PairFidelity, ...]
    stages_s: dict[str, float]
    remarks: tuple[str, ...]


def build(
    spec: BuildSpec, on_stage: Callable[[str], None] = lambda _: None, listener: PhaseListener | None = None
) -> BuildReport:
    """Build one engine bundle.

    Everything is made in memory and judged there, so that a build that fails or is killed leaves nothing behind.

    Args:
        spec: What to build.
        on_stage: Called with the name of each stage as it starts.
        listener: Told how far a compiler is.

    Raises:
        GateError: The engine is too far from the fp32 reference; nothing is installed.
        BackendError: The back end cannot be used here.
        CheckpointError: The weights cannot be used.
        OutputError: The bundle cannot be written.
        UsageError: The options contradict each other.
    """
    task = find_task(spec.task)
    choice = choose_builder(spec.backend, spec.precision)
    check_spec(spec, choice.name)
    output = spec.output or default_output(spec, choice.name)
    check_replaceable(output)
    stages = _Stages(on_stage)

    with stages.enter("weights"):
        checkpoint = _read_weights(spec)
        weights = safetensors_bytes(Checkpoint(task.name, checkpoint.state, checkpoint.notes))
    with stages.enter("graph"):
        template = read_graph(choice.name, spec.precision, spec.form)
        filled = fill(template, checkpoint.state, spec.size_hw)
        filled = extended(filled, spec.settings)
        model = filled.SerializeToString(deterministic=True)
        sizes_hw = _sizes(spec, choice.name, stages.remarks)
        pairs = _judges(spec, spec.size_hw if sizes_hw is None else sizes_hw.typical_hw)
        key = _key(spec, choice.name, {"weights": weights, "model": model}, pairs)

    cache = cache_folder() / "bundles" / key
    cached = _from_cache(cache, key, stages.remarks) if spec.use_cache else None
    if cached is not None:
        with stages.enter("install"):
            bundle = install_bundle(output, cached.manifest, {name: cached.read(name) for name in cached.manifest.files})
        return BuildReport(choice, bundle, True, (), stages.seconds, tuple(stages.remarks))

    files = {WEIGHTS: weights}
    quantised = None
    if spec.calibration is not None:
        with stages.enter("layers"):
            selection = _select(spec.calibration, filled, checkpoint, pairs, task, listener)
        model = selection.model.SerializeToString(deterministic=True)
        files[CALIBRATION] = spec.calibration.to_json().encode()
        quantised = _quantised(spec.calibration, selection)
        stages.remarks.extend(_int8_remarks(quantised))
    with stages.enter("engine"):
        made_from = Ingredients(checkpoint.state, weights, model, sizes_hw)
        made = make_engine(spec, choice.name, made_from, listener, stages.remarks)
    found = status(choice.name)
    with (
        stages.enter("gate"),
        open_weights(checkpoint.state, optimised=False) as reference,
        # An engine that cannot run here is judged by a stand-in for now, and itself where it is loaded first.
        open_judged(choice.name, made, model) as engine,
    ):
        results = tuple(measure(engine, reference, pairs, task))
    _require_passed(results, spec.precision)
    gate = verdict(results, pairs)
    with stages.enter("install"):
        files.update({MODEL: model, made.name: made.engine.data})
        judged = gate if found.usable else GateNotRun(found.reason, gate)
        manifest = _manifest(spec, choice.name, form_name(template), key, files, made, judged, quantised)
        bundle = install_bundle(output, manifest, files)
        if spec.use_cache:
            _to_cache(cache, manifest, files, stages.remarks)
    return BuildReport(choice, bundle, False, results, stages.seconds, tuple(stages.remarks))


class _Stages:
    """Times the stages of a build, and collects what the user should see.

    Args:
        on_stage: Called with the name of each stage as it starts.
    """

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.remarks: list[str] = []
        self._on_stage = on_stage

    @contextmanager
    def enter(self, name: str) -> Iterator[None]:
        self._on_stage(name)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def _judges(spec: BuildSpec, size_hw: tuple[int, int] | None) -> tuple[ImagePair, ...]:
    """Pairs that the engine is judged on, scaled to the size that it has or is tuned for."""
    judges = spec.judges if size_hw is None else tuple(resized(pair, size_hw) for pair in spec.judges)
    return (*sample_pairs(spec.task, size_hw), *judges)


def _select(
    table: CalibrationTable,
    model: onnx.ModelProto,
    checkpoint: Checkpoint,
    pairs: tuple[ImagePair, ...],
    task: Task,
    listener: PhaseListener | None,
) -> Selection:
    with open_weights(checkpoint.state, optimised=False) as reference:
        jury = Jury(reference, pairs, task)
    if listener is None:
        return select_layers(model, table, jury, LIMITS["int8"])
    scan, layers = "one layer at a time", itertools.count()
    listener.started(scan, None, len(quantisable_layers()))
    selection = select_layers(model, table, jury, LIMITS["int8"], lambda: listener.stepped(scan, next(layers)))
    listener.finished(scan)
    return selection


def _quantised(table: CalibrationTable, selection: Selection) -> Quantised:
    return Quantised(table.method, table.pairs, table.data_sha256, table.random, selection.int8, selection.kept)


def _int8_remarks(quantised: Quantised) -> Iterator[str]:
    if quantised.random:
        yield (
            "RANDOM DATA: the ranges of this INT8 engine were measured on noise, not on pictures. It shows that such an engine "
            "builds, nothing else; calibrate with real pairs before you use it."
        )
    kept = f"; more sensitive, and kept in fp16: {', '.join(quantised.kept)}" if quantised.kept else ""
    yield f"INT8 in {len(quantised.int8)} of {len(quantised.int8) + len(quantised.kept)} layers{kept}."


def _sizes(spec: BuildSpec, backend: str, remarks: list[str]) -> SizeRange | None:
    """Range of sizes of the engine; None if it has one size, or takes any."""
    if backend not in FLAVOURS or spec.size_hw is not None:
        return None
    if spec.sizes_hw is None:
        remarks.append(
            f"No size was given: the engine takes sizes from {DYNAMIC.least_hw[0]}x{DYNAMIC.least_hw[1]} to "
            f"{DYNAMIC.largest_hw[0]}x{DYNAMIC.largest_hw[1]} (height x width). One of a fixed size (--size 480x640) is faster "
            "and needs less memory."
        )
    return spec.sizes_hw or DYNAMIC


def default_output(spec: BuildSpec, backend: str) -> Path:
    """Name of the bundle folder where none was asked for."""
    size = "" if spec.size_hw is None else f"-{spec.size_hw[0]}x{spec.size_hw[1]}"
    if spec.sizes_hw is not None:
        size = f"-{spec.sizes_hw}".replace(":", "_")
    return Path("bundles") / f"{spec.task}-{spec.precision}-{backend}{size}"


def _read_weights(spec: BuildSpec) -> Checkpoint:
    path = spec.weights or weights_path(spec.task)
    checkpoint = read_checkpoint(path)
    if checkpoint.task not in (None, spec.task):
        raise CheckpointError(
            f"expected weights for {spec.task}, got {path}, which is for {checkpoint.task}; use --task "
            f"{checkpoint.task} or other weights."
        )
    return checkpoint


def _require_passed(results: tuple[PairFidelity, ...], precision: Precision) -> None:
    overall = worst(result.fidelity for result in results)
    if not LIMITS[precision].hold(overall):
        remedy = "build with --precision fp32" if precision != "fp32" else "check the weights with 'refusion-edge inspect'"
        raise GateError(
            f"expected an {precision} engine close to the fp32 reference ({LIMITS[precision]}), got {overall}; nothing was "
            f"installed, {remedy}."
        )


def _manifest(
    spec: BuildSpec,
    backend: str,
    form: str,
    key: str,
    files: dict[str, bytes],
    made: EngineFile,
    gate: GateResult | GateNotRun,
    quantised: Quantised | None,
) -> Manifest:
    shape = (1, 1, *(spec.size_hw or (None, None)))
    return Manifest(
        task=spec.task,
        precision=spec.precision,
        backend=backend,
        form=form,
        engine=made.name,
        key=key,
        target=made.target,
        weights_sha256=sha256(files[WEIGHTS]),
        inputs=(TensorSpec(INPUT_A, "float32", shape), TensorSpec(INPUT_B, "float32", shape)),
        outputs=(TensorSpec(OUTPUT, "float32", shape),),
        gate=gate,
        tools={**_tools(), **made.tools},
        files={name: sha256(data) for name, data in files.items()},
        compiled=made.compiled,
        quantised=quantised,
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
        "compiler": compiler_facts(spec, backend),
        "calibration": None if spec.calibration is None else spec.calibration.to_json(),
        **{name: sha256(data) for name, data in made_from.items()},
        "pairs": fingerprint(pairs),
        "limits": asdict(LIMITS[spec.precision]),
        "spare_db": SPARE_DB,
        "tools": _tools(),
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
