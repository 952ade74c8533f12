"""The manifest of an engine bundle: what the engine is, what it was made from, and where it runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from refusion_edge.backends.registry import BACKENDS, Engine
from refusion_edge.errors import BundleError, UsageError
from refusion_edge.machine import Target
from refusion_edge.network.graph import INPUT_A, INPUT_B, OUTPUT
from refusion_edge.network.layouts import FORMS, PRECISIONS, Precision
from refusion_edge.sizes import MAX_SIDE, MIN_SIDE, parse_sizes
from refusion_edge.tasks import TASKS

SCHEMA = "refusion-edge/bundle/1"
MANIFEST, MODEL, WEIGHTS, PLAN = "manifest.json", "model.onnx", "weights.safetensors", "engine.plan"
CALIBRATION, PROGRAM = "calibration.json", "program.rfx"

# Fields of the manifest that only some engines have.
_OPTIONAL = ("compiled", "quantised")


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
        psnr_db: PSNR against the fp32 reference in dB, None if the pictures were equal.
        ssim: Structural similarity.
        max_error: Largest difference, in grey levels of 255.
        pairs: Number of pairs.
        pairs_sha256: Hash over the pictures of the pairs.
    """

    psnr_db: float | None
    ssim: float
    max_error: float
    pairs: int
    pairs_sha256: str


@dataclass(frozen=True, slots=True)
class GateNotRun:
    """An engine that could not run where it was built; it is judged where it is loaded for the first time.

    Attributes:
        not_run: Why the gate has not judged it.
        simulated: What the gate measured on its ONNX model, run on the CPU.
    """

    not_run: str
    simulated: GateResult


@dataclass(frozen=True, slots=True)
class Compiled:
    """How an engine was compiled, and what it needs.

    Attributes:
        command: The command of the vendor's tool that compiles the same from ``model.onnx``.
        options: What was asked for, as options of ``build`` without their dashes, name to value.
        device: Where it was compiled, in words.
        compute_capabilities: Kinds of device that it runs on; empty if the compiler's own choice.
        sizes: Least, typical and largest height and width, as ``--size`` takes it; None for a fixed size.
        scratch_bytes: Memory that a run needs at the largest size, besides inputs, output and weights; None if unknown.
    """

    command: str
    options: Mapping[str, str]
    device: str
    compute_capabilities: tuple[str, ...]
    sizes: str | None
    scratch_bytes: int | None

    def describe(self, engine: Engine) -> Engine:
        """Add to an engine what its back end has to know of how it was compiled."""
        version_compatible = "version-compatible" in self.options
        return replace(engine, compute_capabilities=self.compute_capabilities, version_compatible=version_compatible)


@dataclass(frozen=True, slots=True)
class Quantised:
    """What of an engine is INT8, and what its ranges were measured on.

    Attributes:
        method: How the ranges were chosen.
        pairs: Number of pairs.
        data_sha256: Hash over their pixels.
        random: Whether they were random numbers instead of pictures.
        int8: Layers in INT8.
        kept: Layers that could be, but stay in half precision so that the gate passes.
    """

    method: str
    pairs: int
    data_sha256: str
    random: bool
    int8: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        task: Name of the task.
        precision: Precision of the model.
        backend: Back end that the engine was built for.
        form: Graph form of the model.
        engine: Name of the file that the back end loads.
        key: Hash over everything that the engine was made from; names the cache entry.
        target: The machines that it runs on.
        weights_sha256: Hash of the weights file that it was built from.
        inputs: Inputs of the model.
        outputs: Outputs of the model.
        gate: Result of the accuracy gate, or why it has not run yet.
        tools: Versions of what built it, name to version.
        files: SHA-256 of every other file of the bundle, name to hex digits.
        compiled: How the engine was compiled; None where the back end loads the model itself.
        quantised: What of it is INT8; None if nothing is.
    """

    task: str
    precision: Precision
    backend: str
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
    quantised: Quantised | None = None

    def to_json(self) -> str:
        """Serialise; equal manifests give equal text. What does not apply is left out."""
        fields = {name: value for name, value in asdict(self).items() if name not in _OPTIONAL or value is not None}
        return json.dumps({"schema": SCHEMA, **fields}, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @property
    def size_text(self) -> str:
        """Size of the pictures as ``--size`` takes it: ``480x640`` (height x width), a range, or ``dynamic``."""
        if self.compiled is not None and self.compiled.sizes is not None:
            return self.compiled.sizes
        height, width = self.inputs[0].shape[2:]
        return "dynamic" if height is None else f"{height}x{width}"

    @property
    def gate_hw(self) -> tuple[int, int] | None:
        """Size that the sample pairs are judged at: the fixed one, the typical one of a range, or None for their own."""
        size_hw, sizes_hw = parse_sizes(self.size_text)
        return size_hw if sizes_hw is None else sizes_hw.typical_hw

    def rebuild_command(self, path: Path, backend: str | None = None) -> str:
        """The command that builds the same thing for the machine it is typed on.

        Args:
            path: Folder of this bundle, whose weights are used.
            backend: Another back end, or None for the same.
        """
        # What was asked of one compiler means nothing to another.
        options = self.compiled.options if self.compiled is not None and backend in (None, self.backend) else {}
        words = "".join(f" --{name} {value}".rstrip() for name, value in options.items())
        ranges = "" if self.quantised is None else f" --calib-data {shlex.quote(str(path / CALIBRATION))}"
        return (
            f"refusion-edge build --task {self.task} --precision {self.precision} --backend {backend or self.backend} "
            f"--size {self.size_text} --weights {shlex.quote(str(path / WEIGHTS))}{ranges}{words}"
        )


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a bundle.

    Raises:
        BundleError: There is none, or it is damaged or of another schema.
    """
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        what = "a folder without one" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise BundleError(
            f"expected an engine bundle (a folder with {MANIFEST}) at {path}, got {what}; make one with 'refusion-edge build'."
        ) from None
    except NotADirectoryError:
        raise BundleError(
            f"expected an engine bundle (a folder with {MANIFEST}), got the file {path}; make one with 'refusion-edge build'."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"expected a readable {MANIFEST} in {path}, got '{error}'; build it again.") from error
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"expected JSON in {path / MANIFEST}, got something that breaks off or is none ({error}); build it again."
        ) from error
    schema = fields.pop("schema", None) if isinstance(fields, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"expected a bundle of the schema {SCHEMA} in {path}, got {schema or 'none'}; build it again with "
            "this version of refusion-edge, or install the one that made it."
        )
    return _to_manifest(fields, path)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _to_manifest(fields: dict[str, Any], path: Path) -> Manifest:
    try:
        manifest = Manifest(
            **{
                **fields,
                "target": Target(**fields["target"]),
                "inputs": tuple(_to_spec(spec) for spec in fields["inputs"]),
                "outputs": tuple(_to_spec(spec) for spec in fields["outputs"]),
                "gate": _to_gate(fields["gate"]),
                "compiled": _to_compiled(fields.get("compiled")),
                "quantised": _to_quantised(fields.get("quantised")),
            }
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise BundleError(
            f"expected the fields of {SCHEMA} in {path / MANIFEST}, got others ({error}); build it again."
        ) from error
    for sound, what in _checks(manifest):
        if not sound:
            raise BundleError(f"expected {what} in {path / MANIFEST}, got something else; build it again.")
    return manifest


def _checks(manifest: Manifest) -> Iterator[tuple[bool, str]]:
    """Yield what has to hold, in an order in which each check can rely on those before it."""
    names = (manifest.task, manifest.precision, manifest.backend, manifest.form, manifest.engine)
    texts = (*names, manifest.key, manifest.weights_sha256)
    yield all(isinstance(text, str) for text in (*texts, *asdict(manifest.target).values())), "text for names and hashes"
    yield _is_text_to_text(manifest.tools) and _is_text_to_text(manifest.files), "names and texts for tools and files"
    yield manifest.task in TASKS, f"one of the tasks {', '.join(TASKS)}"
    yield manifest.precision in PRECISIONS, f"one of the precisions {', '.join(PRECISIONS)}"
    yield manifest.backend in BACKENDS and BACKENDS[manifest.backend].builds, "a back end that builds engines"
    yield manifest.precision in BACKENDS[manifest.backend].forms, f"a precision that {manifest.backend} builds"
    yield manifest.form in FORMS, f"one of the graph forms {', '.join(FORMS)}"
    # A name with a separator would reach outside the folder.
    yield all(name == Path(name).name and name.isprintable() for name in manifest.files), "plain file names"
    yield {manifest.engine, MODEL, WEIGHTS} <= manifest.files.keys(), "the hashes of the engine, the model and the weights"
    yield manifest.weights_sha256 == manifest.files[WEIGHTS], "one hash for the weights"
    yield [spec.name for spec in manifest.inputs] == [INPUT_A, INPUT_B], "the inputs a and b"
    yield [spec.name for spec in manifest.outputs] == [OUTPUT], "the output fused"
    shapes = {spec.shape for spec in (*manifest.inputs, *manifest.outputs)}
    yield len(shapes) == 1 and _is_shape(*shapes), "the shape (1, 1, H, W) for inputs and output"
    gate = manifest.gate
    if isinstance(gate, GateNotRun):
        yield isinstance(gate.not_run, str), "text for why the gate has not run"
        gate = gate.simulated
    figures = (gate.ssim, gate.max_error, gate.pairs, 0.0 if gate.psnr_db is None else gate.psnr_db)
    yield all(isinstance(figure, int | float) for figure in figures), "numbers for the gate"
    yield (manifest.quantised is not None) == (manifest.precision == "int8"), "what is INT8, for an int8 engine alone"
    if manifest.quantised is not None:
        yield _is_quantised(manifest.quantised) and CALIBRATION in manifest.files, "the INT8 layers and their calibration"
    if manifest.compiled is not None:
        yield _is_compiled(manifest.compiled), "texts, and a number of bytes, for how the engine was compiled"


def _is_compiled(compiled: Compiled) -> bool:
    texts = (compiled.command, compiled.device, compiled.sizes or "", *compiled.compute_capabilities)
    return (
        all(isinstance(text, str) for text in texts)
        and _is_text_to_text(compiled.options)
        and isinstance(compiled.scratch_bytes, int | None)
        and _is_range(compiled.sizes)
    )


def _is_quantised(quantised: Quantised) -> bool:
    texts = (quantised.method, quantised.data_sha256, *quantised.int8, *quantised.kept)
    return (
        all(isinstance(text, str) for text in texts) and isinstance(quantised.pairs, int) and isinstance(quantised.random, bool)
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
        return GateNotRun(**{**fields, "simulated": GateResult(**fields["simulated"])})
    return GateResult(**fields)


def _to_compiled(fields: dict[str, Any] | None) -> Compiled | None:
    if fields is None:
        return None
    return Compiled(**{**fields, "compute_capabilities": tuple(fields["compute_capabilities"])})


def _to_quantised(fields: dict[str, Any] | None) -> Quantised | None:
    if fields is None:
        return None
    return Quantised(**{**fields, "int8": tuple(fields["int8"]), "kept": tuple(fields["kept"])})


def _to_spec(fields: dict[str, Any]) -> TensorSpec:
    return TensorSpec(fields["name"], fields["dtype"], tuple(fields["shape"]))
