"""The loss kernels, value, gradient and second order: their PTX in the emulator against the closed forms in float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the loss is defined with torch")

import torch

from refusion_edge.cuda.program import Binary, Tile
from refusion_edge.export.targets.compiler import function_with_ptx
from refusion_edge.export.targets.cubins import run_compilers
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.decoder import decode
from refusion_edge.kernels.emulator.findings import faults
from refusion_edge.kernels.emulator.launch import Region, launch
from refusion_edge.kernels.gpu.weighted_loss import Norm, Term, second_order_product, value_and_gradient
from tests.kernels.emulator.launches import CHOSEN, why_not

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

# Of each architecture in turn: mma and wgmma make no difference here, but alignment and barriers may.
TERMS: tuple[Term, ...] = ("signed", "magnitude", "signed-max")
NORMS: tuple[Norm, ...] = ("squared", "absolute")
TILE, COEFFICIENT, SLOPE = 128, 10.0, 1.7
# Two images, two programs to a row, and rows and columns that end within one.
SHAPE = (2, 1, 5, 150)


def compile_loss(name: str, term: int, norm: int, architecture: int) -> tuple[Binary, int, str]:
    """Compile one of the two kernels; called in a process that compiles."""
    from refusion_edge.kernels.gpu import weighted_loss

    function = getattr(weighted_loss, name)
    numbers = {"height": "i32", "width": "i32", "coefficient": "fp32", "scale": "fp32"}
    types = {one: numbers.get(one, "*fp32") for one in function.arg_names if not one.isupper()}
    constants = {"TERM": term, "NORM": norm, "TILE": TILE, "HAS_F": 1, "HAS_W": 1, "HAS_V": 1}
    chosen = {one: value for one, value in constants.items() if one in function.arg_names}
    return function_with_ptx(function, types, chosen, Tile(TILE, 1, 4), architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
def test_loss_gradient_and_second_order_are_right_and_nothing_is_found(architecture: int) -> None:
    if reason := why_not(architecture):
        pytest.skip(reason)
    kernels = ("weighted_loss_kernel", "second_order_kernel")
    switches = [(name, term, norm) for name in kernels for term in range(len(TERMS)) for norm in range(len(NORMS))]
    work = {f"{name} {term} {norm}": (compile_loss, (name, term, norm, architecture)) for name, term, norm in switches}
    compiled = run_compilers(work, jobs=2)
    draw = np.random.default_rng(1)
    planes = [draw.random(SHAPE, np.float32) for _ in range(5)]
    cotangents = [draw.standard_normal(SHAPE).astype(np.float32) for _ in range(3)]
    wide = [torch.from_numpy(plane.astype(np.float64)) for plane in planes]
    of = torch.stack([torch.from_numpy(plane.astype(np.float64)) for plane in cotangents])
    for (name, term, norm), (binary, _, ptx) in zip(switches, compiled.values(), strict=True):
        loss, gradient = value_and_gradient(*wide, COEFFICIENT, TERMS[term], NORMS[norm])
        given, expected, total = planes, gradient, loss
        if name == "second_order_kernel":
            given = [*cotangents, np.array([SLOPE], np.float32), gradient.numpy().astype(np.float32), *planes]
            expected = SLOPE * second_order_product(of, *wide, COEFFICIENT, TERMS[term], NORMS[norm])
            total = (of * gradient).sum()
        out, partial = run(binary, ptx, given, where=f"{name} {TERMS[term]} {NORMS[norm]}")
        largest = max(float(expected.abs().max()), 1e-30)
        # Rows of signs, where a difference within rounding may fall on either side, are the same in both.
        assert np.abs(out - expected.numpy()).max() <= 2e-5 * largest, (name, term, norm)
        assert partial.sum(dtype=np.float64) == pytest.approx(float(total), rel=2e-5), (name, term, norm)


def run(binary: Binary, ptx: str, given: list[np.ndarray], *, where: str) -> tuple[np.ndarray, np.ndarray]:
    batch, _, height, width = SHAPE
    grid = (-(-width // TILE), height, batch)
    out, partial = np.full((3, *SHAPE), np.nan, np.float32), np.full(grid[0] * grid[1] * grid[2], np.nan, np.float32)
    regions, address = [], 1 << 40
    for index, array in enumerate([*given, out, partial]):
        written = index >= len(given)
        data = array.reshape(-1).view(np.uint8)
        regions.append(Region(f"{index}", address, data, np.full(data.size, not written, np.uint8), written, 4))
        address += -(-data.size // 256) * 256 + 4096
    addresses = [region.address for region in regions]
    scale = 1 / (batch * height * width)
    block = struct.pack(f"<{len(addresses)}QiiffQQ", *addresses, height, width, COEFFICIENT, scale, 0, 0)
    result = launch(decode(ptx), grid, 128, binary.shared_bytes, block, regions)
    assert not faults(result.findings), (where, [str(finding) for finding in faults(result.findings)])
    assert all(region.defined.all() for region in regions), where
    return out, partial
