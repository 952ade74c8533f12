"""The cache of engines: bundles by a hash of everything that they were made from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from refusion_edge.bundle.folder import EngineBundle, install_bundle, read_bundle
from refusion_edge.bundle.manifest import Manifest
from refusion_edge.errors import BundleError, OutputError


def cache_folder() -> Path:
    """Folder of the engines built so far: ``$REFUSION_EDGE_CACHE``, else in the user's cache folder."""
    if chosen := os.environ.get("REFUSION_EDGE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refusion-edge"


def read_cached(key: str, sources: Mapping[str, str], remarks: list[str]) -> EngineBundle | None:
    """Look an engine up.

    Args:
        key: Hash over everything that it is made from.
        sources: SHA-256 of files of the bundle that are known without building it, name to hex digits. An entry whose
            manifest says otherwise was damaged, or put there by somebody else.
        remarks: Takes a sentence about an entry that is there and cannot be used.
    """
    entry = _entry(key)
    if not entry.exists():
        return None
    try:
        bundle = read_bundle(entry)
        manifest = bundle.manifest
        if manifest.key == key and all(manifest.files.get(name) == digest for name, digest in sources.items()):
            return bundle
        problem = "it was made from something else"
    except BundleError as error:
        problem = str(error)
    remarks.append(f"A cached engine was ignored and is built anew: {problem}")
    return None


def store(manifest: Manifest, files: Mapping[str, bytes], remarks: list[str]) -> None:
    """Keep an engine; a cache that cannot be written is a remark, not an error."""
    try:
        install_bundle(_entry(manifest.key), manifest, files)
    except OutputError as error:
        remarks.append(f"The engine was built but could not be cached: {error}")


def _entry(key: str) -> Path:
    return cache_folder() / "bundles" / key
