"""Fusing the pairs of an archive, each from its files to its result, once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refusion_edge._version import __version__
from refusion_edge.archive.manifest import Entry, sha256_of
from refusion_edge.arrays import Uint8Array
from refusion_edge.backends.native import NativeBackend
from refusion_edge.backends.registry import Backend
from refusion_edge.bundle.manifest import MANIFEST
from refusion_edge.errors import InputError, OutputError
from refusion_edge.files import output_error
from refusion_edge.fuser import Fuser, load
from refusion_edge.images.color import OutputRange
from refusion_edge.images.depth import NO_DEPTHS, Depths
from refusion_edge.images.io import MOST_PIXELS, write_image
from refusion_edge.images.luma import Planes
from refusion_edge.images.pairs import ImagePair, PairPaths, read_pair
from refusion_edge.images.ranges import Span
from refusion_edge.network.family import DEFAULT_NETWORK
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS


@dataclass(frozen=True, slots=True)
class FusePlan:
    """How pairs are fused, as plain values that can be sent to another process.

    Attributes:
        source: Task, bundle or weights file, as ``refusion_edge.fuser.load`` takes it.
        task: See there.
        network: See there.
        backend: See there.
        threads: See there.
        output_range: See there.
        gray: Whether the color of the sources is left out.
        a_range: See ``refusion_edge.fuser.Fuser.fuse``.
        b_range: See there.
        max_pixels: Largest number of pixels of an image.
        depths: Bit depths of the whole set, not only of the part that is fused here.
    """

    source: str
    task: str | None = None
    network: str | None = None
    backend: str = "auto"
    threads: int = 0
    output_range: OutputRange = "stretch"
    gray: bool = False
    a_range: Span | None = None
    b_range: Span | None = None
    max_pixels: int = MOST_PIXELS
    depths: Depths = NO_DEPTHS

    def open(self) -> Fuser:
        """Open the engine; errors as ``refusion_edge.fuser.load``."""
        return load(
            self.source, task=self.task, backend=self.backend, output_range=self.output_range, threads=self.threads,
            network=self.network,
        )  # fmt: skip

    def read(self, paths: PairPaths) -> ImagePair:
        """Read the files of a pair; errors as ``read_pair``."""
        return self.depths.apply(read_pair(paths, max_pixels=self.max_pixels))

    def fuse(self, fuser: Fuser, pair: ImagePair) -> tuple[Uint8Array, Planes]:
        """Fuse a pair; errors as ``Fuser.fuse``.

        Returns:
            The image, and the planes that it was fused from, whose remarks include those on the result.
        """
        planes = fuser.to_planes(*pair.stills, a_range=self.a_range, b_range=self.b_range)
        color = not self.gray
        output = fuser.infer(planes, color=color)
        remarks = (*planes.remarks, *fuser.remarks_on(output))
        return fuser.to_image(output, planes, color=color), replace(planes, remarks=remarks)

    def digest(self, backend: Backend | None) -> str:
        """Digest of what a result depends on besides its sources: weights, back end, version and options.

        Args:
            backend: The open back end, whose name counts, and for ``native`` its instruction set, which decides the last bits;
                None if it has no part.

        Raises:
            InputError: The weights cannot be read.
        """
        if self.source in TASKS:
            path = weights_path(self.source, self.network or DEFAULT_NETWORK)
        else:
            path = Path(self.source)
            path = path / MANIFEST if path.is_dir() else path
        try:
            engine = sha256_of(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}", "check the path") from error
        facts: dict[str, Any] = {
            "version": __version__, "engine": engine, "backend": backend and backend.name,
            "isa": backend.isa if isinstance(backend, NativeBackend) else None, "task": self.task, "range": self.output_range,
            "gray": self.gray, "a_range": self.a_range, "b_range": self.b_range, "bits": self.depths.bits,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a pair.

    Attributes:
        entry: For the manifest.
        planes: The planes it was fused from; None if the result was there already and is sound.
    """

    entry: Entry
    planes: Planes | None


def fuse_once(plan: FusePlan, fuser: Fuser, paths: PairPaths, target: Path, settings: str, before: Entry | None) -> Outcome:
    """Fuse a pair and write its result, unless it is there already: from the same files, with the same settings, intact.

    Args:
        plan: How.
        fuser: The open engine.
        paths: The files of the pair.
        target: File of the result.
        settings: ``plan.digest``.
        before: The entry of the pair in the manifest, or None.

    Raises:
        InputError: The pair cannot be fused.
        OutputError: The result cannot be written.
    """
    try:
        hashes = sha256_of(paths.a), sha256_of(paths.b)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}", "check the path and its permissions") from error
    same = before is not None and (before.a_sha256, before.b_sha256, before.settings) == (*hashes, settings)
    if before is not None and same and before.file == target.name and before.holds(target.parent):
        return Outcome(before, None)
    fused, planes = plan.fuse(fuser, plan.read(paths))
    try:
        write_image(target, fused)
        return Outcome(Entry(paths.name, target.name, sha256_of(target), *hashes, settings), planes)
    except OSError as error:
        raise error if isinstance(error, OutputError) else output_error(target, error) from error
