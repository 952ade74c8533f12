"""Engine bundles: folders with a manifest, the weights, a plain ONNX model and the engine; and the cache of them.

    NAME/
      manifest.json        specification, target machine, hash of every file, result of the accuracy gate
      weights.safetensors  fp32 parameters, so that the bundle can be verified and rebuilt anywhere
      model.onnx           the model, in plain ONNX
      engine file          only for back ends that compile one; other tools can load it as well

A bundle is written under a temporary name and then renamed, so that a folder with a manifest is always complete.
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
from typing import TYPE_CHECKING

from refusion_edge.backends.registry import Engine
from refusion_edge.bundle.manifest import CALIBRATION, MANIFEST, MODEL, WEIGHTS, GateResult, Manifest, read_manifest
from refusion_edge.bundle.spec import EngineSpec
from refusion_edge.errors import BundleError, MisfitError, OutputError
from refusion_edge.files import output_error, read_file, write_atomically
from refusion_edge.machine import this_machine
from refusion_edge.network.checkpoint import parse_checkpoint
from refusion_edge.network.family import make_model
from refusion_edge.network.graph import FORM_KEY
from refusion_edge.text import printable

if TYPE_CHECKING:
    import onnx

# Plans of large networks have some hundred MB; ours have two.
_MOST_BYTES = 1 << 30
_STAGING = re.compile(r"^\.(?P<name>.+)\.(?P<kind>partial|replaced)-(?P<pid>\d+)$")


@dataclass(frozen=True, slots=True)
class EngineBundle:
    """A bundle whose files have been checked against its manifest.

    Attributes:
        path: Folder of the bundle.
        manifest: Its manifest.
    """

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """Read one file of the bundle and check its hash.

        Raises:
            BundleError: The file is missing, unreadable or changed.
        """
        return _read_checked(self.path, name, self.manifest.files[name])

    def engine(self) -> Engine:
        """Read the engine for the back end of the bundle.

        Raises:
            BundleError: The file is missing, unreadable or changed.
            MisfitError: It is an ONNX model that differs from the one that this release generates from the weights.
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
        model = make_model(manifest.form, manifest.precision, state, manifest.spec.size_hw)
        return checked_model(self.read(MODEL), model, self.path / MODEL, f"build it again: {self.rebuild_command()}")

    def rebuild_command(self, backend: str | None = None) -> str:
        """Write the command that rebuilds this engine in place from its own weights, for the machine that it is run on.

        Args:
            backend: Another back end, whose bundle goes to the default folder; None for the same.
        """
        spec, output = self.manifest.spec, None if backend not in (None, self.manifest.spec.backend) else self.path
        if output is None:
            # Settings of one compiler are meaningless to another.
            spec = EngineSpec(spec.task, spec.precision, backend or spec.backend, spec.size_hw, network=spec.network)
        calibration = None if self.manifest.quantized is None else self.path / CALIBRATION
        return spec.command(self.path / WEIGHTS, calibration=calibration, output=output)


def read_bundle(path: str | os.PathLike[str]) -> EngineBundle:
    """Open a bundle and check all its files.

    Raises:
        BundleError: It is not a bundle, a file is missing or changed, or its schema is unknown.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, digest in manifest.files.items():
        _read_checked(path, name, digest)
    return EngineBundle(path, manifest)


def check_target(bundle: EngineBundle) -> None:
    """Check that the engine of a bundle was built for this kind of machine.

    Raises:
        MisfitError: It was built for another one; the message names both, and the command to rebuild it.
    """
    here = this_machine()
    target = bundle.manifest.target
    if not target.fits(here):
        raise MisfitError(
            f"{bundle.path} was built for {target}, but this machine is {here}",
            f"rebuild it here: {bundle.rebuild_command()}",
            expected=target,
            got=here,
        )


def install_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> EngineBundle:
    """Write a bundle atomically, replacing an older bundle of that name if there is one.

    Leftovers of builds that were killed while writing are removed first.

    Raises:
        OutputError: ``path`` is something other than a bundle, or cannot be written; nothing is left behind.
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
    """Record in a bundle the result of an accuracy gate that could not run when the bundle was built.

    Raises:
        OutputError: The manifest cannot be written; the old one stays.
    """
    manifest = replace(bundle.manifest, gate=gate)
    write_atomically(bundle.path / MANIFEST, manifest.to_json().encode())
    return EngineBundle(bundle.path, manifest)


def require_same(path: Path, key: str, *, overwrite: bool) -> None:
    """Require that a folder holds no bundle, or one of the engine that is about to be built.

    Args:
        path: The folder.
        key: ``Manifest.key`` of the new bundle.
        overwrite: Whether any bundle may be replaced.

    Raises:
        OutputError: It holds the bundle of another engine.
    """
    if overwrite or not (path / MANIFEST).is_file():
        return
    try:
        same = read_bundle(path).manifest.key == key
    except BundleError:
        same = False
    if not same:
        raise OutputError(
            f"the bundle {path} exists and comes from another build", "choose another --output, or replace it with --overwrite"
        )


def check_replaceable(path: Path) -> None:
    """Check that a bundle may be written under this name; call this before expensive work.

    Raises:
        OutputError: Something other than a bundle exists there.
    """
    if path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir())):
        return
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path} exists and is not an engine bundle, so it is not replaced", "choose another --output")


def checked_model(data: bytes, made: onnx.ModelProto, path: Path, remedy: str) -> bytes:
    """Compare a model file with the model regenerated from the weights, ignoring the names of the nodes and of the graph.

    An untrusted file is never handed to a runtime, because a model can refer to files and memory, and can loop forever.

    Args:
        data: Content of the file, which is untrusted: it is parsed, but never run.
        made: The model regenerated by this release.
        path: Name of the file in messages.
        remedy: What to do about a different model, without a full stop.

    Returns:
        The regenerated model, serialized.

    Raises:
        MisfitError: The file contains a different model.
    """
    if not _is_same(data, made):
        raise MisfitError(
            f"{path} differs from the model that this release generates from the weights of the bundle: it was changed, or "
            "built by another release",
            remedy,
        )
    serialized: bytes = made.SerializeToString(deterministic=True)
    return serialized


def cache_folder() -> Path:
    """Folder of the cache: ``$REFUSION_EDGE_CACHE``, otherwise ``refusion-edge`` in the user's cache folder."""
    if chosen := os.environ.get("REFUSION_EDGE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refusion-edge"


def read_cached(key: str, sources: Mapping[str, str], remarks: list[str]) -> EngineBundle | None:
    """Look up an engine; None if it is not cached, or its entry is unusable.

    Args:
        key: Hash of everything that the engine depends on.
        sources: SHA-256 in hex digits of the files of the bundle that are known before it is built, by name. An entry whose
            manifest disagrees is damaged or foreign.
        remarks: Receives a sentence about an unusable entry.
    """
    entry = _entry(key)
    if not entry.exists():
        return None
    try:
        bundle = read_bundle(entry)
        manifest = bundle.manifest
        if manifest.key == key and all(manifest.files.get(name) == digest for name, digest in sources.items()):
            return bundle
        problem = f"{entry} was built from other sources"
    except BundleError as error:
        problem = error.problem
    remarks.append(f"A cached engine is unusable and was rebuilt: {problem}")
    return None


def store(manifest: Manifest, files: Mapping[str, bytes], remarks: list[str]) -> None:
    """Store an engine; if the cache cannot be written, add a remark."""
    try:
        install_bundle(_entry(manifest.key), manifest, files)
    except OutputError as error:
        remarks.append(f"The engine was built but could not be cached: {error}")


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, in hex digits."""
    return hashlib.sha256(data).hexdigest()


def _sweep(path: Path) -> None:
    """Remove leftovers of killed builds of this name, and restore the replaced bundle if the new one was never installed."""
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
    data = read_file(path / name, kind="file of the bundle", most_bytes=_MOST_BYTES, error=BundleError)
    found = sha256(data)
    if found != digest:
        raise BundleError(
            f"{name} in the bundle {path} has the SHA-256 {found[:12]}... ({len(data)} bytes) instead of "
            f"{printable(digest[:12])}...: it was changed or cut short",
            "build the bundle again",
            expected=digest,
            got=found,
        )
    return data


def _entry(key: str) -> Path:
    return cache_folder() / "bundles" / key


def _is_same(data: bytes, made: onnx.ModelProto) -> bool:
    import onnx
    from google.protobuf.message import DecodeError

    found, expected = onnx.ModelProto(), onnx.ModelProto()
    expected.CopyFrom(made)
    try:
        found.ParseFromString(data)
    except DecodeError:
        return False
    for model in (found, expected):
        # Release 0.1 named the single CPU layout after two runtimes.
        model.graph.name = ""
        for entry in model.metadata_props:
            if entry.key == FORM_KEY:
                entry.value = ""
        for node in model.graph.node:
            node.name = ""
    same: bool = found == expected
    return same
