"""Engine bundles: a folder with a manifest, the weights, the pure ONNX model and the pure engine.

    NAME/
      manifest.json        what it is, for which machine, hash of every file, result of the accuracy gate
      weights.safetensors  fp32 parameters, so that it can be verified and rebuilt anywhere
      model.onnx           the model, nothing wrapped around it
      engine file          only where a back end compiles one; other tools can load it as well

A bundle is written under a temporary name and renamed, so that a folder with a manifest is a whole bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refusion_edge.backends import BACKENDS
from refusion_edge.errors import BundleError, OutputError
from refusion_edge.files import output_error
from refusion_edge.graph import INPUT_A, INPUT_B, MAX_SIDE, OUTPUT, PRECISIONS, Precision
from refusion_edge.luminance import MIN_SIDE
from refusion_edge.machine import Target, this_machine
from refusion_edge.tasks import TASKS

SCHEMA = "refusion-edge/bundle/1"
MANIFEST, MODEL, WEIGHTS = "manifest.json", "model.onnx", "weights.safetensors"
PROGRAM = "program.rfx"

_STAGING = re.compile(r"^\.(?P<name>.+)\.(?P<kind>partial|replaced)-(?P<pid>\d+)$")


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
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        task: Name of the task.
        precision: Precision of the model.
        backend: Back end that the engine was built for.
        engine: Name of the file that the back end loads.
        key: Hash over everything that the engine was made from; names the cache entry.
        target: The machines that it runs on.
        weights_sha256: Hash of the weights file that it was built from.
        inputs: Inputs of the model.
        outputs: Outputs of the model.
        gate: Result of the accuracy gate.
        tools: Versions of what built it, name to version.
        files: SHA-256 of every other file of the bundle, name to hex digits.
    """

    task: str
    precision: Precision
    backend: str
    engine: str
    key: str
    target: Target
    weights_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gate: GateResult
    tools: Mapping[str, str]
    files: Mapping[str, str]

    def to_json(self) -> str:
        """Serialise; equal manifests give equal text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @property
    def size_text(self) -> str:
        """Size of the pictures in words: ``480x640`` (height x width) or ``dynamic``."""
        height, width = self.inputs[0].shape[2:]
        return "dynamic" if height is None else f"{height}x{width}"

    def rebuild_command(self, path: Path, backend: str | None = None) -> str:
        """The command that builds the same thing for the machine it is typed on.

        Args:
            path: Folder of this bundle, whose weights are used.
            backend: Another back end, or None for the same.
        """
        return (
            f"refusion-edge build --task {self.task} --precision {self.precision} --backend {backend or self.backend} "
            f"--size {self.size_text} --weights {shlex.quote(str(path / WEIGHTS))}"
        )


@dataclass(frozen=True, slots=True)
class EngineBundle:
    """A bundle whose files were checked against its manifest.

    Attributes:
        path: Folder.
        manifest: Its manifest.
    """

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """Read one file of the bundle and check its hash.

        Raises:
            BundleError: The file is missing, unreadable or was changed.
        """
        return _read_checked(self.path, name, self.manifest.files[name])


def read_bundle(path: str | os.PathLike[str]) -> EngineBundle:
    """Open a bundle and check every file of it.

    Raises:
        BundleError: It is not a bundle, a file is missing or changed, or its schema is not known here.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name, digest in manifest.files.items():
        _read_checked(path, name, digest)
    return EngineBundle(path, manifest)


def check_target(bundle: EngineBundle) -> None:
    """Make sure that the engine of a bundle runs on this machine.

    Raises:
        BundleError: It was built for another one; says which, what this one is, and the command to rebuild.
    """
    here = this_machine()
    target = bundle.manifest.target
    if not target.fits(here):
        raise BundleError(
            f"expected an engine for this machine ({here}), got {bundle.path}, which was built for {target}; "
            f"rebuild it here: {bundle.manifest.rebuild_command(bundle.path)}."
        )


def install_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> EngineBundle:
    """Write a bundle as a whole, in place of an older bundle of that name if there is one.

    Leftovers of builds that were killed while writing are swept away first.

    Raises:
        OutputError: ``path`` is something else than a bundle, or cannot be written; nothing is left behind.
    """
    check_replaceable(path)
    staging = path.parent / f".{path.name}.partial-{os.getpid()}"
    replaced = path.parent / f".{path.name}.replaced-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        staging.mkdir()
        for name, data in files.items():
            (staging / name).write_bytes(data)
        (staging / MANIFEST).write_text(manifest.to_json())
        if path.exists():
            path.rename(replaced)
        staging.rename(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return EngineBundle(path, manifest)


def check_replaceable(path: Path) -> None:
    """Make sure that a bundle may be written under this name, before any work is spent on it.

    Raises:
        OutputError: There is something that is not a bundle.
    """
    if path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir())):
        return
    if path.exists() or path.is_symlink():
        raise OutputError(f"expected a free name or an older bundle at {path}, got something else; choose another --output.")


def sha256(data: bytes) -> str:
    """Hash bytes, as hex digits."""
    return hashlib.sha256(data).hexdigest()


def _sweep(path: Path) -> None:
    """Remove what killed builds of this name left; bring the replaced bundle back if the new one never came."""
    for entry in path.parent.iterdir():
        match = _STAGING.match(entry.name)
        if match is None or match["name"] != path.name or _is_running(int(match["pid"])):
            continue
        if match["kind"] == "replaced" and not path.exists():
            entry.rename(path)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


def _read_checked(path: Path, name: str, digest: str) -> bytes:
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise BundleError(f"expected the file {name} in the bundle {path}, got '{error.strerror}'; build it again.") from error
    found = sha256(data)
    if found != digest:
        raise BundleError(
            f"expected {name} in the bundle {path} to have the SHA-256 {digest[:12]}..., got {found[:12]}... "
            f"({len(data)} bytes); it was changed or cut short, build it again."
        )
    return data


def _read_manifest(path: Path) -> Manifest:
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
                "gate": GateResult(**fields["gate"]),
            }
        )
    except (TypeError, KeyError) as error:
        raise BundleError(
            f"expected the fields of {SCHEMA} in {path / MANIFEST}, got others ({error}); build it again."
        ) from error
    for sound, what in _checks(manifest):
        if not sound:
            raise BundleError(f"expected {what} in {path / MANIFEST}, got something else; build it again.")
    return manifest


def _checks(manifest: Manifest) -> Iterator[tuple[bool, str]]:
    """Yield what has to hold, in an order in which each check can rely on those before it."""
    texts = (manifest.task, manifest.precision, manifest.backend, manifest.engine, manifest.key, manifest.weights_sha256)
    yield all(isinstance(text, str) for text in (*texts, *asdict(manifest.target).values())), "text for names and hashes"
    yield _is_text_to_text(manifest.tools) and _is_text_to_text(manifest.files), "names and texts for tools and files"
    yield manifest.task in TASKS, f"one of the tasks {', '.join(TASKS)}"
    yield manifest.precision in PRECISIONS, f"one of the precisions {', '.join(PRECISIONS)}"
    yield manifest.backend in BACKENDS and BACKENDS[manifest.backend].builds, "a back end that builds engines"
    # A name with a separator would reach outside the folder.
    yield all(name == Path(name).name and name.isprintable() for name in manifest.files), "plain file names"
    yield {manifest.engine, MODEL, WEIGHTS} <= manifest.files.keys(), "the hashes of the engine, the model and the weights"
    yield manifest.weights_sha256 == manifest.files[WEIGHTS], "one hash for the weights"
    yield [spec.name for spec in manifest.inputs] == [INPUT_A, INPUT_B], "the inputs a and b"
    yield [spec.name for spec in manifest.outputs] == [OUTPUT], "the output fused"
    shapes = {spec.shape for spec in (*manifest.inputs, *manifest.outputs)}
    yield len(shapes) == 1 and _is_shape(*shapes), "the shape (1, 1, H, W) for inputs and output"
    gate = manifest.gate
    figures = (gate.ssim, gate.max_error, gate.pairs, 0.0 if gate.psnr_db is None else gate.psnr_db)
    yield all(isinstance(figure, int | float) for figure in figures), "numbers for the gate"


def _is_text_to_text(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for item in value.items() for text in item)


def _is_shape(shape: tuple[object, ...]) -> bool:
    if len(shape) != 4 or shape[:2] != (1, 1):
        return False
    height, width = shape[2:]
    if height is None or width is None:
        return height is width
    return all(isinstance(side, int) and MIN_SIDE <= side <= MAX_SIDE for side in (height, width))


def _to_spec(fields: dict[str, Any]) -> TensorSpec:
    return TensorSpec(fields["name"], fields["dtype"], tuple(fields["shape"]))
