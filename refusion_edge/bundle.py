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
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refusion_edge.errors import BundleError, OutputError
from refusion_edge.files import output_error
from refusion_edge.graph import PRECISIONS, Precision
from refusion_edge.machine import Target, this_machine
from refusion_edge.tasks import TASKS

SCHEMA = "refusion-edge/bundle/1"
MANIFEST, MODEL, WEIGHTS = "manifest.json", "model.onnx", "weights.safetensors"

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

    @property
    def rebuild_command(self) -> str:
        """The command that builds the same thing for the machine it is typed on."""
        return (
            f"refusion-edge build --task {self.task} --precision {self.precision} --backend {self.backend} "
            f"--size {self.size_text}"
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
            f"rebuild it here: {bundle.manifest.rebuild_command} --weights {bundle.path / WEIGHTS}."
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
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise BundleError(
            f"expected JSON in {path / MANIFEST}, got something that ends or breaks off at line {error.lineno}; build it again."
        ) from error
    schema = fields.pop("schema", None) if isinstance(fields, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"expected a bundle of the schema {SCHEMA} in {path}, got {schema or 'none'}; build it again with "
            "this version of refusion-edge, or install the one that made it."
        )
    return _to_manifest(fields, path)


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
        sound = (
            manifest.task in TASKS
            and manifest.precision in PRECISIONS
            and {manifest.engine, MODEL, WEIGHTS} <= manifest.files.keys()
            # A name with a separator would reach outside the folder.
            and all(name == Path(name).name for name in manifest.files)
            and len(manifest.inputs) == 2
            and all(len(spec.shape) == 4 for spec in manifest.inputs)
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BundleError(
            f"expected the fields of {SCHEMA} in {path / MANIFEST}, got others ({error}); build it again."
        ) from error
    if not sound:
        raise BundleError(
            f"expected a sound manifest in {path / MANIFEST}, got values that do not fit together; build it again."
        )
    return manifest


def _to_spec(fields: dict[str, Any]) -> TensorSpec:
    return TensorSpec(fields["name"], fields["dtype"], tuple(fields["shape"]))
