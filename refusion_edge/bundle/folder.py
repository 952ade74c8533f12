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
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from refusion_edge.backends.registry import Engine
from refusion_edge.bundle.manifest import CALIBRATION, MANIFEST, MODEL, WEIGHTS, GateResult, Manifest, read_manifest
from refusion_edge.bundle.model import checked_model
from refusion_edge.bundle.spec import EngineSpec
from refusion_edge.errors import BundleError, MisfitError, OutputError
from refusion_edge.files import output_error, write_atomically
from refusion_edge.machine import this_machine
from refusion_edge.network.checkpoint import parse_checkpoint
from refusion_edge.network.graph import fill, graph_precision, read_template

_STAGING = re.compile(r"^\.(?P<name>.+)\.(?P<kind>partial|replaced)-(?P<pid>\d+)$")


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

    def engine(self) -> Engine:
        """What the back end of the bundle loads.

        Raises:
            BundleError: The file is missing, unreadable or was changed.
            MisfitError: It is an ONNX model that this release does not make of the weights beside it.
        """
        manifest, compiled = self.manifest, self.manifest.compiled
        return Engine(
            self._model() if manifest.engine == MODEL else self.read(manifest.engine),
            manifest.precision,
            name=str(self.path / manifest.engine),
            size_hw=manifest.spec.size_hw,
            compute_capabilities=() if compiled is None else compiled.compute_capabilities,
            version_compatible=manifest.spec.settings.version_compatible,
            remedy=f"rebuild it here: {self.rebuild_command()}",
        )

    def _model(self) -> bytes:
        manifest = self.manifest
        state = parse_checkpoint(self.read(WEIGHTS), self.path / WEIGHTS).state
        model = fill(read_template(manifest.form, graph_precision(manifest.precision)), state, manifest.spec.size_hw)
        return checked_model(self.read(MODEL), model, self.path / MODEL, f"build it again: {self.rebuild_command()}")

    def rebuild_command(self, backend: str | None = None) -> str:
        """The command that builds this engine again, for the machine it is typed on, from the weights of this bundle.

        Args:
            backend: Another back end, or None for the same.
        """
        spec = self.manifest.spec
        if backend not in (None, spec.backend):
            # What was asked of one compiler means nothing to another.
            spec = EngineSpec(spec.task, spec.precision, backend or spec.backend, spec.size_hw)
        calibration = None if self.manifest.quantized is None else self.path / CALIBRATION
        return spec.command(self.path / WEIGHTS, calibration=calibration)


def read_bundle(path: str | os.PathLike[str]) -> EngineBundle:
    """Open a bundle and check every file of it.

    Raises:
        BundleError: It is not a bundle, a file is missing or changed, or its schema is not known here.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, digest in manifest.files.items():
        _read_checked(path, name, digest)
    return EngineBundle(path, manifest)


def check_target(bundle: EngineBundle) -> None:
    """Make sure that the engine of a bundle runs on this machine.

    Raises:
        MisfitError: It was built for another one; says which, what this one is, and the command to rebuild.
    """
    here = this_machine()
    target = bundle.manifest.target
    if not target.fits(here):
        raise MisfitError(
            f"expected an engine for this machine ({here}), got {bundle.path}, which was built for {target}; "
            f"rebuild it here: {bundle.rebuild_command()}."
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


def record_gate(bundle: EngineBundle, gate: GateResult) -> EngineBundle:
    """Note in a bundle what the accuracy gate measured on its engine, in place of why it had not.

    Raises:
        OutputError: The manifest cannot be written; the old one stays.
    """
    manifest = replace(bundle.manifest, gate=gate)
    write_atomically(bundle.path / MANIFEST, manifest.to_json().encode())
    return EngineBundle(bundle.path, manifest)


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
