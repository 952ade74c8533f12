"""Building an engine bundle: weights, graph, engine, accuracy gate, and only then a folder on disk. Imports no torch."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import onnx

from refusion_edge._version import __version__
from refusion_edge.accuracy.gate import LIMITS, PairFidelity, gate_pairs, run_gate, worst_gate
from refusion_edge.arrays import State
from refusion_edge.backends import onnxruntime
from refusion_edge.backends.registry import Backend, Choice, choose_builder, open_engine
from refusion_edge.bundle.folder import (
    EngineBundle,
    check_replaceable,
    checked_model,
    install_bundle,
    read_cached,
    require_same,
    sha256,
    store,
)
from refusion_edge.bundle.manifest import (
    CALIBRATION,
    MODEL,
    WEIGHTS,
    GateNotRun,
    GateResult,
    Manifest,
    Quantized,
    TensorSpec,
)
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.bundle.trust import is_code, is_trusted, trust_built
from refusion_edge.errors import CheckpointError
from refusion_edge.export.graph.int8 import SPARE_DB, Evaluator, Selection, quantize, select_layers
from refusion_edge.export.targets.builder import Builder, EngineFile, GateProxies, Inputs, PhaseListener
from refusion_edge.export.targets.fused import FUSED
from refusion_edge.export.targets.portable import NATIVE, ONNXRUNTIME, OPENVINO
from refusion_edge.export.targets.tensorrt import CLASSIC, RTX
from refusion_edge.images.pairs import ImagePair, fingerprint
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, require_network, safetensors_bytes
from refusion_edge.network.family import DEFAULT_NETWORK, find_network
from refusion_edge.network.graph import INPUT_A, INPUT_B, OUTPUT, form_name
from refusion_edge.network.quantization import CalibrationTable, quantizable_layers, read_table
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import Task, find_task


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        choice: The back end, and why it was chosen.
        bundle: The installed bundle.
        cached: Whether the engine came from the cache.
        gate: Result for each gate pair, from the engine or, if it cannot run here, from its CPU proxy; empty for a cached
            engine whose gate passed when it was built.
        stages_s: Seconds spent in each stage, in order.
        remarks: Sentences that the user should see.
    """

    choice: Choice
    bundle: EngineBundle
    cached: bool
    gate: tuple[PairFidelity, ...]
    stages_s: dict[str, float]
    remarks: tuple[str, ...]


def build(
    spec: BuildSpec,
    on_stage: Callable[[str], None] = lambda _: None,
    listener: PhaseListener | None = None,
    *,
    overwrite: bool = True,
) -> BuildReport:
    """Build one engine bundle.

    Everything is built and evaluated in memory, so a build that fails or is killed leaves nothing behind.

    Args:
        spec: What to build.
        on_stage: Called with the name of each stage as it starts.
        listener: Receives the progress of the compiler.
        overwrite: Whether to replace a bundle in the output folder that holds another engine.

    Raises:
        GateError: The engine differs too much from the fp32 reference; nothing is installed.
        BackendError: The back end is unusable here.
        CheckpointError: The weights are unusable.
        OutputError: The bundle cannot be written, or another one is in its place.
        UsageError: The options contradict each other.
    """
    task = find_task(spec.task)
    choice = choose_builder(spec.backend, spec.precision, find_network(spec.network).name)
    spec, builder = replace(spec, backend=choice.name), BUILDERS[choice.name]
    builder.check(spec, choice)
    output = spec.output or default_output(spec)
    check_replaceable(output)
    stages = _Stages(on_stage)

    with stages.enter("weights"):
        checkpoint = _read_weights(spec)
        weights = safetensors_bytes(Checkpoint(task.name, checkpoint.state, checkpoint.notes))
    with stages.enter("graph"):
        inputs = builder.prepare(spec, checkpoint.state, weights, choice)
        pairs = gate_pairs(task, spec.size_hw if inputs.sizes_hw is None else inputs.sizes_hw.opt_hw, spec.gate_pairs)
        form, model = form_name(inputs.model), inputs.model_bytes()
        sources = {WEIGHTS: sha256(weights), MODEL: sha256(model)}
        proxies = _proxies(builder, spec, choice, checkpoint.state, pairs)
        stages.remarks.extend([*inputs.remarks, *([proxies.remark] if proxies and proxies.remark else [])])
        key = _key(spec, inputs, {"weights": sources[WEIGHTS], "model": sources[MODEL]}, pairs, proxies)
        require_same(output, key, overwrite=overwrite)

    if spec.calibration is not None:
        del sources[MODEL]  # known only after the selection of the layers
    cached = _cached(key, sources, stages.remarks) if spec.use_cache else None
    if cached is not None:
        results: tuple[PairFidelity, ...] = ()
        if builder.compiles:
            # A compiled engine cannot be checked against its sources, and cached files can be damaged.
            with stages.enter("gate"):
                file = EngineFile(cached.manifest.engine, cached.engine())
                results, _ = _run_gate(builder, choice, proxies, file, model_of(cached), inputs, pairs, task)
        with stages.enter("install"):
            bundle = install_bundle(output, cached.manifest, {name: cached.read(name) for name in cached.manifest.files})
        return BuildReport(choice, bundle, True, results, stages.seconds, tuple(stages.remarks))

    files = {WEIGHTS: weights}
    quantized = None
    if spec.calibration is not None:
        with stages.enter("layers"):
            selection = _select(spec.calibration, inputs, pairs, task, listener)
            inputs, files[CALIBRATION] = replace(inputs, model=selection.model), spec.calibration.to_json().encode()
            model = inputs.model_bytes()
        quantized = _quantized(spec.calibration, selection)
        stages.remarks.extend(_int8_remarks(quantized))
    with stages.enter("engine"):
        engine = builder.build(spec, inputs, listener, stages.remarks)
    with stages.enter("gate"):
        results, gate = _run_gate(builder, choice, proxies, engine, model, inputs, pairs, task)
    with stages.enter("install"):
        files.update({MODEL: model, engine.name: engine.engine.data})
        manifest = _manifest(spec, form, key, files, engine, gate, quantized)
        bundle = _install(output, manifest, files, stages.remarks)
        if spec.use_cache:
            store(manifest, files, stages.remarks)
    return BuildReport(choice, bundle, False, results, stages.seconds, tuple(stages.remarks))


def rebuild(
    bundle: EngineBundle, on_stage: Callable[[str], None] = lambda _: None, listener: PhaseListener | None = None
) -> BuildReport:
    """Rebuild a bundle in place for this machine, from its own weights and its own spec.

    Args:
        bundle: The bundle.
        on_stage: See ``build``.
        listener: See ``build``.

    Raises:
        RefusionError: As for ``build``; the old bundle is unchanged.
    """
    manifest = bundle.manifest
    table = None if manifest.quantized is None else _table_of(bundle, read_checkpoint(bundle.path / WEIGHTS).state)
    fields = {name: getattr(manifest.spec, name) for name in manifest.spec.__dataclass_fields__}
    return build(BuildSpec(**fields, weights=bundle.path / WEIGHTS, output=bundle.path, calibration=table), on_stage, listener)


def model_of(bundle: EngineBundle) -> bytes:
    """The ONNX model of a bundle, derived from its weights and its spec, and compared with the stored file.

    Raises:
        MisfitError: The file holds a different model.
    """
    manifest = bundle.manifest
    state = read_checkpoint(bundle.path / WEIGHTS).state
    model = BUILDERS[manifest.backend].model(manifest.spec, state)
    if manifest.quantized is not None:
        model = quantize(model, _table_of(bundle, state), keep=manifest.quantized.kept)
    return checked_model(bundle.read(MODEL), model, bundle.path / MODEL, f"rebuild it with: {bundle.rebuild_command()}")


def _table_of(bundle: EngineBundle, state: State) -> CalibrationTable:
    return read_table(bundle.read(CALIBRATION).decode(), str(bundle.path / CALIBRATION), quantizable_layers(state))


BUILDERS: dict[str, Builder] = {
    "fused": FUSED,
    "tensorrt": CLASSIC,
    "tensorrt-rtx": RTX,
    "native": NATIVE,
    "openvino": OPENVINO,
    "onnxruntime": ONNXRUNTIME,
}
"""The builder of each back end that engines are built for."""


class _Stages:
    """Times the stages of a build, and collects remarks for the user.

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


def _install(output: Path, manifest: Manifest, files: Mapping[str, bytes], remarks: list[str]) -> EngineBundle:
    """Install a bundle that was built just now, whose engine may run here."""
    bundle = install_bundle(output, manifest, files)
    trust_built(bundle, remarks)
    return bundle


def _cached(key: str, sources: Mapping[str, str], remarks: list[str]) -> EngineBundle | None:
    """A cached engine that may run here; None if there is none."""
    cached = read_cached(key, sources, remarks)
    if cached is None or not is_code(cached) or is_trusted(cached.manifest.files[cached.manifest.engine]):
        return cached
    remarks.append(f"A cached engine was rebuilt, because it is not recorded as built here: {cached.path}")
    return None


def _proxies(
    builder: Builder, spec: BuildSpec, choice: Choice, state: State, pairs: tuple[ImagePair, ...]
) -> GateProxies | None:
    if choice.status.usable:
        return None
    return builder.gate_proxies(spec, state, sum(pair.a.shape[0] * pair.a.shape[1] for pair in pairs))


def _run_gate(
    builder: Builder,
    choice: Choice,
    proxies: GateProxies | None,
    file: EngineFile,
    model: bytes,
    inputs: Inputs,
    pairs: tuple[ImagePair, ...],
    task: Task,
) -> tuple[tuple[PairFidelity, ...], GateResult | GateNotRun]:
    """Run the gate on an engine, or on its CPU proxies if it cannot run here; the first load then runs it on the engine."""
    precision = file.engine.precision
    remedy = "build with --precision fp32" if precision != "fp32" else "check the weights with 'refusion-edge inspect'"

    def run(open_it: Callable[[], Backend]) -> tuple[tuple[PairFidelity, ...], GateResult]:
        with open_it() as engine:
            return run_gate(
                engine, inputs.state, pairs, task, precision,
                subject=f"the {precision} engine was not installed, because it differs too much from",
                remedy=remedy,
            )  # fmt: skip

    if proxies is None:
        return run(lambda: open_engine(builder.backend, file.engine, known_usable=True))
    each = [(proxy, *run(proxy.open)) for proxy in proxies.of(file.engine, model)]
    # One of several says which it is.
    results = tuple(
        replace(result, name=f"{result.name} ({proxy.name})") if len(each) > 1 else result
        for proxy, found, _ in each
        for result in found
    )
    names = ", ".join(proxy.name for proxy, _, _ in each)
    return results, GateNotRun(choice.status.reason, worst_gate([gate for _, _, gate in each]), names)


def _select(
    table: CalibrationTable, inputs: Inputs, pairs: tuple[ImagePair, ...], task: Task, listener: PhaseListener | None
) -> Selection:
    evaluator = Evaluator(inputs.state, pairs, task)
    if listener is None:
        return select_layers(inputs.model, table, evaluator, LIMITS["int8"])
    scan, layers = "one layer at a time", itertools.count()
    listener.started(scan, None, len(quantizable_layers(inputs.state)))
    selection = select_layers(inputs.model, table, evaluator, LIMITS["int8"], lambda: listener.stepped(scan, next(layers)))
    listener.finished(scan)
    return selection


def _quantized(table: CalibrationTable, selection: Selection) -> Quantized:
    return Quantized(table.method, table.pairs, table.data_sha256, table.random, selection.int8, selection.kept)


def _int8_remarks(quantized: Quantized) -> Iterator[str]:
    if quantized.random:
        yield (
            "RANDOM DATA: the ranges of this INT8 engine were measured on noise. It shows only that such an engine builds; "
            "calibrate with real pairs before you use it."
        )
    kept = f"; kept in fp16 because they are more sensitive: {', '.join(quantized.kept)}" if quantized.kept else ""
    yield f"INT8 in {len(quantized.int8)} of {len(quantized.int8) + len(quantized.kept)} layers{kept}."


def default_output(spec: BuildSpec) -> Path:
    """Default bundle folder of a spec whose back end has been chosen."""
    size = "" if spec.size_hw is None else f"-{spec.size_hw[0]}x{spec.size_hw[1]}"
    if spec.sizes_hw is not None:
        size = f"-{spec.sizes_hw}".replace(":", "_")
    network = "" if spec.network == DEFAULT_NETWORK else f"-{spec.network}"
    return Path("bundles") / f"{spec.task}{network}-{spec.precision}-{spec.backend}{size}"


def _read_weights(spec: BuildSpec) -> Checkpoint:
    path = spec.weights or weights_path(spec.task, spec.network)
    checkpoint = read_checkpoint(path)
    require_network(checkpoint, spec.network, str(path))
    if checkpoint.task not in (None, spec.task):
        raise CheckpointError(
            f"the task is {spec.task}, and the weights {path} are for {checkpoint.task}",
            f"use --task {checkpoint.task} or other weights",
            expected=spec.task,
            got=checkpoint.task,
        )
    return checkpoint


def _manifest(
    spec: BuildSpec,
    form: str,
    key: str,
    files: dict[str, bytes],
    file: EngineFile,
    gate: GateResult | GateNotRun,
    quantized: Quantized | None,
) -> Manifest:
    shape = (1, 1, *(spec.size_hw or (None, None)))
    return Manifest(
        spec=spec.engine,
        form=form,
        engine=file.name,
        key=key,
        target=file.target,
        weights_sha256=sha256(files[WEIGHTS]),
        inputs=(TensorSpec(INPUT_A, "float32", shape), TensorSpec(INPUT_B, "float32", shape)),
        outputs=(TensorSpec(OUTPUT, "float32", shape),),
        gate=gate,
        tools={**_tools(), **file.tools},
        files={name: sha256(data) for name, data in files.items()},
        compiled=file.compiled,
        quantized=quantized,
    )


def _tools() -> dict[str, str]:
    return {
        "refusion-edge": __version__,
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.version(),
        "opencv": cv2.__version__,
    }


def _key(
    spec: BuildSpec,
    inputs: Inputs,
    sources: Mapping[str, str],
    pairs: tuple[ImagePair, ...],
    proxies: GateProxies | None,
) -> str:
    """Hash everything that the engine and its gate result depend on."""
    description = {
        "backend": spec.backend,
        "precision": spec.precision,
        "size_hw": spec.size_hw,
        "compiler": inputs.facts,
        "calibration": None if spec.calibration is None else spec.calibration.to_json(),
        **sources,
        "pairs": fingerprint(pairs),
        "proxy": None if proxies is None else proxies.kind,
        "limits": asdict(LIMITS[spec.precision]),
        "spare_db": SPARE_DB,
        "tools": _tools(),
    }
    return sha256(json.dumps(description, sort_keys=True).encode())
