"""The manifest of an engine bundle: its specification, its origin, and the machines that it runs on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refusion_edge.backends.registry import BACKENDS
from refusion_edge.bundle.spec import EngineSpec, parse_spec
from refusion_edge.errors import BundleError, RefusionError, UsageError
from refusion_edge.machine import Target
from refusion_edge.network.family import NETWORKS
from refusion_edge.network.fast import FORM as FAST_FORM
from refusion_edge.network.forms import Precision, form_named
from refusion_edge.network.graph import INPUT_A, INPUT_B, OUTPUT
from refusion_edge.sizes import MAX_SIDE, MIN_SIDE, parse_sizes

SCHEMA = "refusion-edge/bundle/2"
FIRST_SCHEMA = "refusion-edge/bundle/1"
"""Schema of release 0.1, whose bundles are still read."""
MANIFEST, MODEL, WEIGHTS, PLAN = "manifest.json", "model.onnx", "weights.safetensors", "engine.plan"
CALIBRATION, PROGRAM = "calibration.json", "program.rfx"

# Largest manifest that is read; real ones take 3 kB.
_MOST_BYTES = 1 << 20
# Fields of the manifest that only some engines have.
_OPTIONAL = ("compiled", "quantized")
# Options of `build` that the first schema kept as words, and the settings that they stand for.
_FIRST_OPTIONS = {
    "workspace": "workspace_mib",
    "opt-level": "optimization_level",
    "version-compatible": "version_compatible",
    "compute-capability": "compute_capabilities",
    "pixels": "uint8_input",
    "levels": "uint8_output",
    "plugins": "plugins",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of the model.

    Attributes:
        name: Name in the ONNX model.
        dtype: Element type, NumPy's name.
        shape: (1, 1, H, W); None for a side that may vary.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the accuracy gate measured when the bundle was built, worst over the pairs.

    Attributes:
        psnr_db: PSNR against the fp32 reference in dB, None if the images were equal.
        ssim: Structural similarity.
        max_error: Largest difference, in gray levels of 255.
        pairs: Number of pairs.
        pairs_sha256: Hash over the images of the pairs.
        reference: Means of the fp32 reference's fused image over 4x4 blocks, row by row, in [0, 1], by the hash of the pair.
            They reveal changed weights even if the hashes were changed as well. Empty in bundles of release 0.1.
    """

    psnr_db: float | None
    ssim: float
    max_error: float
    pairs: int
    pairs_sha256: str
    reference: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GateNotRun:
    """The gate of an engine that could not run where it was built; it runs where the engine is first loaded.

    Attributes:
        not_run: Why the gate has not run on the engine.
        proxy: What the gate measured on the engine's CPU proxy.
        proxy_name: What that proxy is, in words that follow "on". Empty in bundles of release 0.1.
    """

    not_run: str
    proxy: GateResult
    proxy_name: str = ""


@dataclass(frozen=True, slots=True)
class Compiled:
    """How an engine was compiled, and what it needs.

    Attributes:
        command: The command of the vendor's tool that compiles the same engine from ``model.onnx``.
        device: Where it was compiled, in words.
        compute_capabilities: Compute capabilities of the devices that it runs on; empty if left to the compiler.
        sizes: Minimum, optimum and maximum height and width, as ``--size`` takes it; None for a fixed size.
        scratch_bytes: Memory that a run needs at the maximum size, besides inputs, outputs and weights; None if unknown.
    """

    command: str
    device: str
    compute_capabilities: tuple[str, ...]
    sizes: str | None
    scratch_bytes: int | None


@dataclass(frozen=True, slots=True)
class Quantized:
    """The INT8 layers of an engine, and how they were calibrated.

    Attributes:
        method: How the ranges were chosen.
        pairs: Number of pairs.
        data_sha256: Hash over their pixels.
        random: Whether they were random numbers instead of images.
        int8: Layers in INT8.
        kept: Quantizable layers that stay in half precision so that the gate passes.
    """

    method: str
    pairs: int
    data_sha256: str
    random: bool
    int8: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        spec: Specification, with the back end that was chosen; rebuilding starts from it.
        form: Layout of the graph of the model.
        engine: Name of the file that the back end loads.
        key: Hash over everything that the engine was built from; names the cache entry.
        target: The machines that it runs on.
        weights_sha256: Hash of the weights file that it was built from.
        inputs: Inputs of the model.
        outputs: Outputs of the model.
        gate: Result of the accuracy gate, or why it has not run yet.
        tools: Versions of what built it, name to version.
        files: SHA-256 of every other file of the bundle, name to hex digits.
        compiled: How the engine was compiled; None where the back end loads the model itself.
        quantized: Its INT8 layers; None if there are none.
    """

    spec: EngineSpec
    form: str
    engine: str
    key: str
    target: Target
    weights_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gate: GateResult | GateNotRun
    tools: Mapping[str, str]
    files: Mapping[str, str]
    compiled: Compiled | None = None
    quantized: Quantized | None = None

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.spec.task

    @property
    def precision(self) -> Precision:
        """Precision of the engine."""
        return self.spec.precision

    @property
    def backend(self) -> str:
        """Back end that the engine was built for."""
        return self.spec.backend

    @property
    def size_text(self) -> str:
        """Size of the images as ``--size`` takes it: ``480x640`` (height x width), a range, or ``dynamic``."""
        compiled = self.compiled
        return self.spec.size_text if compiled is None or compiled.sizes is None else compiled.sizes

    @property
    def gate_hw(self) -> tuple[int, int] | None:
        """Size of the sample pairs in the gate: the fixed one, the optimum of a range, or None for their own."""
        size_hw, sizes_hw = parse_sizes(self.size_text)
        return size_hw if sizes_hw is None else sizes_hw.opt_hw

    def to_json(self) -> str:
        """Serialize; equal manifests give equal text. Fields that do not apply are left out."""
        fields = {name: value for name, value in asdict(self).items() if name not in _OPTIONAL or value is not None}
        fields["spec"] = self.spec.to_fields()
        return json.dumps({"schema": SCHEMA, **fields}, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a bundle, which is untrusted. Bundles of release 0.1 can be read as well.

    Raises:
        BundleError: It is missing, damaged, or of an unknown schema.
    """
    file = path / MANIFEST
    if not file.is_file():
        problem = f"has no {MANIFEST}" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise BundleError(f"{path} {problem}, so it is not an engine bundle", "build one with 'refusion-edge build'")
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"cannot read {file}: {_reason(error)}", "build the bundle again") from error
    schema = document.pop("schema", None)
    if schema not in (SCHEMA, FIRST_SCHEMA):
        raise BundleError(
            f"{path} has the schema {schema or 'none'}, but this release reads {SCHEMA} and {FIRST_SCHEMA}",
            "build the bundle again, or install the release that built it",
            expected=(SCHEMA, FIRST_SCHEMA),
            got=schema,
        )
    try:
        manifest = _to_manifest(_from_first(document) if schema == FIRST_SCHEMA else document)
        for sound, what in _checks(manifest):
            if not sound:
                raise ValueError(f"it lacks {what}")
    except (TypeError, KeyError, AttributeError, ValueError, UsageError) as error:
        raise BundleError(f"{file} is damaged: {_reason(error)}", "build the bundle again") from error
    return manifest


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, RefusionError):
        return error.problem
    return f"the field {error} is missing" if isinstance(error, KeyError) else str(error)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _from_first(document: dict[str, Any]) -> dict[str, Any]:
    """Convert the fields of the first schema to those of the current one."""
    fields = dict(document)
    asked: dict[str, Any] = {name: fields.pop(name) for name in ("task", "precision", "backend")}
    height, width = fields["inputs"][0]["shape"][2:]
    asked["size"] = "dynamic" if height is None else f"{height}x{width}"
    asked["form"] = fields["form"]
    if fields.get("compiled") is not None:
        compiled = dict(fields["compiled"])
        asked["settings"] = _first_settings(compiled.pop("options"))
        asked["size"] = asked["size"] if compiled["sizes"] is None else compiled["sizes"]
        fields["compiled"] = compiled
    if "quantised" in fields:
        fields["quantized"] = fields.pop("quantised")
    if "not_run" in fields["gate"]:
        fields["gate"] = {"not_run": fields["gate"]["not_run"], "proxy": fields["gate"]["simulated"]}
    return {**fields, "spec": asked}


def _first_settings(options: Mapping[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, text in options.items():
        if name not in _FIRST_OPTIONS or not isinstance(text, str):
            raise ValueError(f"'{str(name)[:40]}' is not a compiler option")
        setting = _FIRST_OPTIONS[name]
        if setting in ("workspace_mib", "optimization_level"):
            settings[setting] = int(text[:9])
        elif setting == "compute_capabilities":
            settings[setting] = text.split(",")
        else:
            settings[setting] = text or True
    return settings


def _to_manifest(fields: dict[str, Any]) -> Manifest:
    return Manifest(
        **{
            **fields,
            "spec": parse_spec(fields["spec"]),
            "form": fields["form"] if fields["form"] == FAST_FORM else form_named(fields["form"]),
            "target": Target(**fields["target"]),
            "inputs": tuple(_to_tensor(tensor) for tensor in fields["inputs"]),
            "outputs": tuple(_to_tensor(tensor) for tensor in fields["outputs"]),
            "gate": _to_gate(fields["gate"]),
            "compiled": _to_compiled(fields.get("compiled")),
            "quantized": _to_quantized(fields.get("quantized")),
        }
    )


def _checks(manifest: Manifest) -> Iterator[tuple[bool, str]]:
    """Yield all conditions, each with what is required; each may rely on those before it."""
    texts = (manifest.engine, manifest.key, manifest.weights_sha256, *asdict(manifest.target).values())
    yield all(isinstance(text, str) for text in texts), "text for names and hashes"
    yield _is_text_to_text(manifest.tools) and _is_text_to_text(manifest.files), "text for all tools and files"
    yield manifest.backend in BACKENDS and BACKENDS[manifest.backend].builds, "a back end that builds engines"
    network = NETWORKS[manifest.spec.network]
    precisions = BACKENDS[manifest.backend].precisions(network.name)
    yield manifest.precision in precisions, f"a precision in which {network.name} is built for {manifest.backend}"
    yield manifest.form in network.forms, f"one of the graph forms {', '.join(network.forms)}"
    # A name with a separator would reach outside the folder.
    yield all(name == Path(name).name and name.isprintable() for name in manifest.files), "plain file names"
    yield {manifest.engine, MODEL, WEIGHTS} <= manifest.files.keys(), "the hashes of the engine, the model and the weights"
    yield manifest.weights_sha256 == manifest.files[WEIGHTS], "equal hashes for the weights"
    yield [tensor.name for tensor in manifest.inputs] == [INPUT_A, INPUT_B], "the inputs a and b"
    yield [tensor.name for tensor in manifest.outputs] == [OUTPUT], "the output fused"
    shapes = {tensor.shape for tensor in (*manifest.inputs, *manifest.outputs)}
    yield len(shapes) == 1 and _is_shape(*shapes), "the shape (1, 1, H, W) for inputs and output"
    yield manifest.inputs[0].shape[2:] == (manifest.spec.size_hw or (None, None)), "the same size in spec and inputs"
    gate = manifest.gate
    if isinstance(gate, GateNotRun):
        texts = (gate.not_run, gate.proxy_name)
        yield all(isinstance(text, str) for text in texts), "text for why the gate has not run, and for what ran instead"
        gate = gate.proxy
    figures = (gate.ssim, gate.max_error, gate.pairs, 0.0 if gate.psnr_db is None else gate.psnr_db)
    yield all(_is_number(figure) for figure in figures), "numbers for the gate"
    yield _is_reference(gate.reference), "16 means for each reference image"
    yield (manifest.quantized is not None) == (manifest.precision == "int8"), "INT8 layers for int8 engines, and only for them"
    if manifest.quantized is not None:
        yield _is_quantized(manifest.quantized) and CALIBRATION in manifest.files, "the INT8 layers and their calibration"
    if manifest.compiled is not None:
        yield _is_compiled(manifest.compiled), "texts, and a number of bytes, for how the engine was compiled"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_reference(reference: Mapping[str, tuple[float, ...]]) -> bool:
    rows = reference.values()
    return all(isinstance(means, tuple) and len(means) == 16 and all(map(_is_number, means)) for means in rows)


def _is_compiled(compiled: Compiled) -> bool:
    texts = (compiled.command, compiled.device, compiled.sizes or "", *compiled.compute_capabilities)
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(compiled.scratch_bytes, int | None)
        and _is_range(compiled.sizes)
    )


def _is_quantized(quantized: Quantized) -> bool:
    texts = (quantized.method, quantized.data_sha256, *quantized.int8, *quantized.kept)
    return (
        all(isinstance(text, str) for text in texts) and isinstance(quantized.pairs, int) and isinstance(quantized.random, bool)
    )


def _is_range(text: str | None) -> bool:
    try:
        return text is None or parse_sizes(text)[1] is not None
    except UsageError:
        return False


def _is_text_to_text(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for item in value.items() for text in item)


def _is_shape(shape: tuple[object, ...]) -> bool:
    if len(shape) != 4 or shape[:2] != (1, 1):
        return False
    height, width = shape[2:]
    if height is None or width is None:
        return height is width
    return all(isinstance(side, int) and MIN_SIDE <= side <= MAX_SIDE for side in (height, width))


def _to_gate(fields: dict[str, Any]) -> GateResult | GateNotRun:
    if "not_run" in fields:
        return GateNotRun(**{**fields, "proxy": _to_result(fields["proxy"])})
    return _to_result(fields)


def _to_result(fields: dict[str, Any]) -> GateResult:
    reference = {name: tuple(means) for name, means in fields.get("reference", {}).items()}
    return GateResult(**{**fields, "reference": reference})


def _to_compiled(fields: dict[str, Any] | None) -> Compiled | None:
    if fields is None:
        return None
    return Compiled(**{**fields, "compute_capabilities": tuple(fields["compute_capabilities"])})


def _to_quantized(fields: dict[str, Any] | None) -> Quantized | None:
    if fields is None:
        return None
    return Quantized(**{**fields, "int8": tuple(fields["int8"]), "kept": tuple(fields["kept"])})


def _to_tensor(fields: dict[str, Any]) -> TensorSpec:
    return TensorSpec(fields["name"], fields["dtype"], tuple(fields["shape"]))
