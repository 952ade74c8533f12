"""Write test vectors for ``driver.cpp``: sources, the expected image, and the weights.

python -m tests.kernels.cpu.native.vectors build/vectors

One random pair per task with the weights of the package, expected as ONNX Runtime without optimisations computes it; one
pair for each of two layouts of the network ``fast``, expected as its definition computes it; and the official golden crops
where they lie beside the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from refusion_edge.arrays import Float32Array
from refusion_edge.backends.onnxruntime import open_reference
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from refusion_edge.network.fast import FastLayout
from refusion_edge.network.fast import reference as fast_reference
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS
from tests.conftest import SHARED
from tests.oracles.fast import random_state

_GOLDEN = ("45x63_acts",)
_FAST = (FastLayout(), FastLayout(channels=32, convolutions=3, factor=4))


def main() -> int:
    """Write all vectors into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(1)
    for task in TASKS:
        checkpoint = read_checkpoint(weights_path(task))
        a, b = (draw.random((1, 1, 41, 67), np.float32) for _ in range(2))
        with open_reference(checkpoint.state, 1) as reference:
            write_vector(folder / task, checkpoint, a, b, reference.fuse(a, b))
    for layout in _FAST:
        state = random_state(layout)
        a, b = draw.random((2, 41, 67), np.float32)
        name = f"fast-{layout.channels}x{layout.convolutions}-{layout.factor}"
        fused = fast_reference(state, a, b).astype(np.float32)
        write_vector(folder / name, Checkpoint("ir_vis", state), *(plane[None, None] for plane in (a, b, fused)))
    for path in sorted((SHARED / "reference/checkpoints").glob("ReFusion_*.pth")):
        checkpoint = read_checkpoint(path)
        task = path.stem.removeprefix("ReFusion_")
        for size in _GOLDEN:
            golden = np.load(SHARED / f"reference/golden/{task}_crop_{size}.npz")
            sources = golden["input"]
            write_vector(folder / f"golden-{task}-{size}", checkpoint, sources[:, :1], sources[:, 1:], golden["raw"])
    print(f"{len(list(folder.glob('*.vector')))} vectors in {folder}")
    return 0


def write_vector(path: Path, checkpoint: Checkpoint, a: Float32Array, b: Float32Array, fused: Float32Array) -> None:
    """Write ``PATH.vector`` (height, width, then three planes, all little-endian) and ``PATH.safetensors``."""
    write_safetensors(path.with_suffix(".safetensors"), checkpoint)
    sides = np.array(a.shape[2:], "<i4").tobytes()
    path.with_suffix(".vector").write_bytes(sides + b"".join(plane.astype("<f4").tobytes() for plane in (a, b, fused)))


if __name__ == "__main__":
    raise SystemExit(main())
