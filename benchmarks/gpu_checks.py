"""Checks that the GPU benchmark runs before it measures: every kernel, the loss to second order, a whole frame.

Each check is a row of plain values with an ``error``, a ``limit`` and whether it is ``good``. Runs on a CUDA device, and on
the CPU in Triton's interpreter (``TRITON_INTERPRET=1``), where small sizes take minutes. Needs torch and Triton.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import gpu_cases
from refusion_edge.accuracy.gate import compare
from refusion_edge.arrays import Array, State
from refusion_edge.cuda.program import Tile
from refusion_edge.kernels.gpu.folding import fold
from refusion_edge.kernels.gpu.schedule import make_schedule
from refusion_edge.kernels.gpu.triton_frame import fuse
from refusion_edge.kernels.gpu.weighted_loss import Engine, Term, weighted_loss
from refusion_edge.network.model import FusionNetwork

Row = dict[str, Any]

TERMS: tuple[Term, ...] = ("signed", "magnitude", "signed-max")
# Wider than in the interpreter: a device's exponential and root are good to some units in the last place.
KERNEL_LIMITS = {"float32": 2e-5, "float16": 4e-3}
_LOSS_LIMIT = 1e-5
_LEAST_PSNR_DB = 70.0
_COEFFICIENT = 0.3


def check_kernels(
    state: State, tiles: Mapping[str, Tile], sizes_hw: Sequence[tuple[int, int]], device: str, names: Sequence[str] = ()
) -> Iterator[Row]:
    """Compare every kernel with its float64 reference, in half and single precision, and a repeat with the first run.

    Args:
        state: The 86 parameters.
        tiles: Tile of every kernel.
        sizes_hw: Height and width of each image.
        device: Torch's name of the device.
        names: Which kernels; empty for all.
    """
    folded = fold(state)
    for name in names or make_schedule().kernels:
        for dtype, limit in KERNEL_LIMITS.items():
            for seed, size_hw in enumerate(sizes_hw):
                case = gpu_cases.make_case(name, size_hw, dtype, folded, tiles, seed=seed)
                row: Row = {"check": "kernel", "name": name, "dtype": dtype, "size_hw": list(size_hw), "limit": limit}
                try:
                    first, second = gpu_cases.launch(case, device), gpu_cases.launch(case, device)
                except Exception as error:
                    # In single precision some taps do not fit the shared memory of a small device; nothing runs that.
                    if dtype != "float32" or type(error).__name__ != "OutOfResources":
                        raise
                    yield {**row, "error": None, "good": True, "remark": str(error).splitlines()[0]}
                    break
                error_found = gpu_cases.largest_error(case, first)
                same = all(np.array_equal(first[key], second[key]) for key in first)
                yield {
                    **row,
                    "error": error_found,
                    "good": error_found <= limit and same,
                    "remark": "" if same else "no repeat",
                }


def check_loss(shape: tuple[int, int, int, int], device: str) -> Iterator[Row]:
    """Compare loss, gradient and second order of the kernels with the closed forms in float64.

    Args:
        shape: (B, 1, H, W).
        device: Torch's name of the device.
    """
    draw = torch.Generator().manual_seed(2)
    planes = [torch.rand(shape, generator=draw, dtype=torch.float32) for _ in range(8)]
    for term in TERMS:
        got = [tensor.cpu().double() for tensor in loss_to_second_order([plane.to(device) for plane in planes], term, "triton")]
        expected = loss_to_second_order([plane.double() for plane in planes], term, "closed")
        for order, (one, other) in enumerate(zip(got, expected, strict=True)):
            error = (
                float((one - other).abs().max() / other.abs().max().clamp_min(1e-30)) if other.any() else float(one.abs().max())
            )
            what = ("value", *(f"first, {name}" for name in "fwv"), *(f"second, {name}" for name in "fwv"))[order]
            row = {"check": "loss", "name": f"{term}: {what}", "dtype": "float32", "size_hw": list(shape[2:])}
            yield {**row, "limit": _LOSS_LIMIT, "error": error, "good": error <= _LOSS_LIMIT, "remark": ""}


def loss_to_second_order(planes: Sequence[Tensor], term: Term, engine: Engine) -> list[Tensor]:
    """The loss, its derivatives in f, w and v, and the derivatives of those times fixed cotangents.

    Args:
        planes: f, w, v, a, b and three cotangents, each (B, 1, H, W).
        term: Which gradient term.
        engine: How it is computed.
    """
    leaves = [plane.clone().requires_grad_() for plane in planes[:3]]
    loss = weighted_loss(leaves[0], planes[3], planes[4], leaves[1], leaves[2], _COEFFICIENT, term, engine)
    first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    product = torch.stack([(one * cotangent).sum() for one, cotangent in zip(first, planes[5:8], strict=True)]).sum()
    second = torch.autograd.grad(product, leaves, materialize_grads=True)
    return [tensor.detach() for tensor in (loss, *first, *second)]


def check_frame(state: State, tiles: Mapping[str, Tile], planes: Array, device: str) -> Iterator[Row]:
    """Compare a whole frame with the network in float64.

    Args:
        state: The 86 parameters.
        tiles: Tile of every kernel.
        planes: (2, H, W) float32, [0, 1].
        device: Torch's name of the device.
    """
    model = FusionNetwork().double().eval().to(device)
    model.load_state_dict({name: torch.from_numpy(array.astype(np.float64)) for name, array in state.items()})
    a, b = (torch.from_numpy(plane)[None, None].to(device) for plane in planes)
    with torch.inference_mode():
        exact = model(a.double(), b.double())[0, 0].cpu().numpy()
    fused = fuse(make_schedule(), fold(state).rounded(np.dtype(np.float16)), tiles, a, b, fill=math.nan).plane.cpu().numpy()
    psnr_db = compare(fused, exact.astype(np.float32)).psnr_db
    yield {
        "check": "frame", "name": "PSNR in dB, at least", "dtype": "float16", "size_hw": list(planes.shape[1:]),
        "limit": _LEAST_PSNR_DB, "error": psnr_db, "good": psnr_db >= _LEAST_PSNR_DB, "remark": "",
    }  # fmt: skip
