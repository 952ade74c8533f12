"""Test vectors: a small pair and its fused plane computed in float64, to check a back end against on any machine.

``python -m tests.oracles.make_golden`` writes them from the weights of the package. With them, no reference has to run next to
the engine, and faults that the engine and the reference share on one machine are detected as well.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from refusion_edge.arrays import Float32Array, Uint8Array
from refusion_edge.bundle.folder import sha256
from refusion_edge.documents import brief
from refusion_edge.errors import InputError
from refusion_edge.files import write_atomically
from refusion_edge.network.weights import weights_path

TASK = "ir_vis"
"""The task whose weights the vectors are computed with."""

FILE = f"{TASK}.npz"
_WHITE = 255.0


@dataclass(frozen=True, slots=True)
class Vectors:
    """A pair and its fused plane.

    Attributes:
        a: Source a, (H, W) uint8.
        b: Source b, same shape.
        fused: Output of the network for them, (H, W) float32, (0, 1), rounded from float64.
        weights_sha256: SHA-256 of the weights file that it was computed with.
    """

    a: Uint8Array
    b: Uint8Array
    fused: Float32Array
    weights_sha256: str

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.fused.shape
        return height, width

    def planes(self) -> tuple[Float32Array, Float32Array]:
        """Both sources as inputs of a back end: (1, 1, H, W) float32, [0, 1]."""
        a, b = (np.divide(source, _WHITE, dtype=np.float32)[None, None] for source in (self.a, self.b))
        return a, b

    def write(self, folder: Path) -> None:
        """Write the vectors to a folder, under the name ``FILE``.

        Raises:
            OutputError: The file cannot be written.
        """
        data = io.BytesIO()
        digest = np.frombuffer(bytes.fromhex(self.weights_sha256), np.uint8)
        np.savez_compressed(data, a=self.a, b=self.b, fused=self.fused, weights_sha256=digest)
        write_atomically(folder / FILE, data.getvalue())


def folder() -> Path:
    """Folder of the vectors in the package."""
    # Installed wheels are always unpacked, so resources are files.
    return Path(str(resources.files(__name__)))


def read_vectors(where: Path | None = None) -> Vectors:
    """Read stored vectors.

    Args:
        where: Their folder, or None for that of the package.

    Raises:
        InputError: They are missing or damaged, or were computed with weights other than those of the package.
    """
    path = (where or folder()) / FILE
    remedy = "reinstall refusion-edge (in a checkout, run: python -m tests.oracles.make_golden)"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            vectors = Vectors(stored["a"], stored["b"], stored["fused"], stored["weights_sha256"].tobytes().hex())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read the stored vectors in {path} ({brief(error)})", remedy) from error
    if vectors.weights_sha256 != sha256(weights_path(TASK).read_bytes()):
        raise InputError(f"the stored vectors in {path} were computed with weights other than those of {TASK}", remedy)
    return vectors
