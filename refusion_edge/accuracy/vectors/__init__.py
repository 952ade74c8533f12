"""Stored vectors: a small pair and what the network makes of it in float64, to hold a back end against on any machine.

``python -m tests.oracles.make_golden`` writes them from the weights of the package. No reference has to run beside the
engine, and a fault that the engine and the reference of one machine share does not hide from them.
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
from refusion_edge.errors import InputError
from refusion_edge.files import write_atomically
from refusion_edge.network.weights import weights_path

TASK = "ir_vis"
"""The task whose weights they are made with."""

FILE = f"{TASK}.npz"
_WHITE = 255.0


@dataclass(frozen=True, slots=True)
class Vectors:
    """A pair and its result.

    Attributes:
        a: Source a, (H, W) uint8.
        b: Source b, same shape.
        fused: What the network makes of them, (H, W) float32, (0, 1), rounded from float64.
        weights_sha256: Hash of the weights file that it was made with.
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
        """What a back end is given: both sources as (1, 1, H, W) float32, [0, 1]."""
        a, b = (np.divide(source, _WHITE, dtype=np.float32)[None, None] for source in (self.a, self.b))
        return a, b

    def write(self, folder: Path) -> None:
        """Write them.

        Raises:
            OutputError: The file cannot be written.
        """
        data = io.BytesIO()
        digest = np.frombuffer(bytes.fromhex(self.weights_sha256), np.uint8)
        np.savez_compressed(data, a=self.a, b=self.b, fused=self.fused, weights_sha256=digest)
        write_atomically(folder / FILE, data.getvalue())


def folder() -> Path:
    """Folder of the stored vectors."""
    # Installed wheels are always unpacked, so the resources are files.
    return Path(str(resources.files(__name__)))


def read_vectors(where: Path | None = None) -> Vectors:
    """Read the stored vectors.

    Args:
        where: Their folder, or None for that of the package.

    Raises:
        InputError: They are missing or damaged, or made with other weights than those of the package.
    """
    path = (where or folder()) / FILE
    remedy = "install refusion-edge anew (in a checkout: python -m tests.oracles.make_golden)"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            vectors = Vectors(stored["a"], stored["b"], stored["fused"], stored["weights_sha256"].tobytes().hex())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"expected stored vectors in {path}, got '{error}'; {remedy}.") from error
    if vectors.weights_sha256 != sha256(weights_path(TASK).read_bytes()):
        raise InputError(f"expected stored vectors for the weights of {TASK}, got some for others; {remedy}.")
    return vectors
