"""Write the golden files of ``tests/data``, and the vectors that ship with the package. Needs torch.

python -m tests.oracles.make_golden
"""

from __future__ import annotations

import numpy as np
import torch

from refusion_edge.accuracy import vectors
from refusion_edge.accuracy.vectors import Vectors
from refusion_edge.arrays import Array
from refusion_edge.bundle.folder import sha256
from refusion_edge.fuser import load
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.network.checkpoint import parse_checkpoint
from refusion_edge.network.model import FusionNetwork
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS
from tests.bundle.test_bundle import manifest
from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "data"
CROP = (slice(100, 145), slice(90, 153))  # 45 x 63, an odd size


def main() -> None:
    """Write all golden files."""
    (FOLDER / "manifest.json").write_text(manifest().to_json())
    arrays = {}
    for task in TASKS:
        paths = sample_paths(task)[0]
        a, b = (np.ascontiguousarray(read_image(path)[CROP]) for path in (paths.a, paths.b))
        with load(task, output_range="fixed") as fuser:
            arrays |= {f"{task}_a": a, f"{task}_b": b, f"{task}_fused": fuser.fuse(a, b, color=False)}
    np.savez_compressed(FOLDER / "golden_fused.npz", **arrays)
    make_vectors().write(vectors.folder())


def make_vectors() -> Vectors:
    """Fuse a crop of a sample pair with the network in float64."""
    path = weights_path(vectors.TASK)
    data = path.read_bytes()
    network = FusionNetwork().double().eval()
    network.load_state_dict(
        {name: torch.from_numpy(array).double() for name, array in parse_checkpoint(data, path).state.items()}
    )
    a, b = (_gray(read_image(file)) for file in (sample_paths(vectors.TASK)[0].a, sample_paths(vectors.TASK)[0].b))
    with torch.inference_mode():
        # The planes of a back end are single precision; what they hold is what is fused, to the last digit.
        fused = network(*(torch.from_numpy(plane).double() for plane in Vectors(a, b, np.empty(a.shape), "").planes()))
    return Vectors(a, b, fused[0, 0].numpy().astype(np.float32), sha256(data))


def _gray(image: Array) -> Array:
    crop = image[CROP]
    return np.ascontiguousarray(crop if crop.ndim == 2 else crop[:, :, 1])


if __name__ == "__main__":
    main()
