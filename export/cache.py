"""The engine cache: bundles under a hash of everything that they depend on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from refusion_edge.bundle.folder import EngineBundle, install_bundle, read_bundle
from refusion_edge.bundle.manifest import Manifest
from refusion_edge.errors import BundleError, OutputError


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


def _entry(key: str) -> Path:
    return cache_folder() / "bundles" / key
