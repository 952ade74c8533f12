"""From weights to a program for the back end ``fused``: folding, compiling, self-test. Needs neither a GPU nor torch."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping

import cv2
import numpy as np

from refusion_edge.arrays import State
from refusion_edge.cuda.program import Program, SelfTest, Target
from refusion_edge.errors import CheckpointError
from refusion_edge.export.targets.cubins import compile_targets
from refusion_edge.kernels.gpu.folding import FoldedWeights, fold
from refusion_edge.kernels.gpu.reference_frame import fuse_reference
from refusion_edge.kernels.gpu.schedule import FUSED, make_schedule

# Small, odd, and wider than one strip of any architecture.
_SELF_TEST_SIZE_HW = (19, 70)
# A wrong kernel is off by tenths, half precision by less than this.
_SELF_TEST_TOLERANCE = 0.02


def make_program(state: State, model: Mapping[str, str], architectures: Iterable[int], *, jobs: int = 1) -> Program:
    """Compile the network with these weights.

    Args:
        state: The 86 parameters.
        model: Description of the model, texts by name; the version of the compiler is added.
        architectures: Out of ``refusion_edge.export.targets.cubins.ARCHITECTURES``.
        jobs: Number of compilers that run at a time.

    Raises:
        BackendError: Triton is missing, or a kernel does not compile.
        CheckpointError: A folded weight is out of the range of half precision.
    """
    folded = fold(state)
    targets = compile_targets(architectures, jobs=jobs)
    return assemble(folded, {**model, "triton": importlib.metadata.version("triton")}, targets)


def assemble(folded: FoldedWeights, model: Mapping[str, str], targets: Mapping[int, Target]) -> Program:
    """Put folded weights and compiled kernels together, with a self-test.

    Raises:
        CheckpointError: A folded weight is out of the range of half precision.
    """
    with np.errstate(over="ignore"):
        weights = folded.rounded(np.dtype(np.float16))
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"the folded weights {name} are out of the range of half precision", "use other weights or another back end"
            )
    height, width = _SELF_TEST_SIZE_HW
    noise = np.random.default_rng(0).random((2, height, width)).astype(np.float32)
    planes = np.stack([cv2.GaussianBlur(plane, (5, 5), 1.0) for plane in noise])
    exact = fuse_reference(make_schedule("float64"), folded.rounded(np.dtype(np.float64)), planes.astype(np.float64))[FUSED]
    test = SelfTest(planes, exact.astype(np.float32), _SELF_TEST_TOLERANCE)
    return Program(dict(model), make_schedule(), weights, dict(targets), test)
