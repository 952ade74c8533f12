"""The last strips of the largest image: offsets have to be 64 bits wide where 32 do not suffice.

Only the bytes that these strips may touch exist; everything else is out of bounds, so that an offset that wraps is a fault.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from refusion_edge.arrays import State
from refusion_edge.cuda.program import Argument, Kernel, Schedule, Tile, pack
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.decoder import decode
from refusion_edge.kernels.emulator.launch import Region, Result, launch
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet
from refusion_edge.sizes import MAX_SIDE
from tests.kernels.emulator.launches import FAST, FAST_LAYOUT, QUICK, decoded, fast_state, why_not

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

SIDE = MAX_SIDE
STRIPED = [name for name, kernel in REFUSION.schedule("float16").kernels.items() if kernel.grid == "strips"]
# What is smaller than this exists as a whole.
_SMALL = 64 << 20
# Rows above the last strips that a kernel may read: 1 for a convolution, 12 for all layers of `fast`.
_MARGIN = 12


def streams_of(schedule: Schedule, name: str) -> int:
    """How many images a buffer holds one after another."""
    if schedule.buffers[name].role == "input":
        return 2
    for one in schedule.launches:
        kernel = schedule.kernels[one.kernel]
        for parameter, argument in zip(kernel.parameters, one.arguments, strict=True):
            if parameter.written and argument.name == name:
                return 1 if kernel.constants.get("JOINED", 0) else kernel.streams
    raise LookupError(name)


def regions_of(
    schedule: Schedule, argument: Argument, tiles: dict[str, Tile], rows: int, address: int, *, written: bool
) -> list[Region]:
    """The bytes of a buffer that the last two rows of strips, each of some rows of pixels, may touch."""
    buffer = schedule.buffers[argument.name]
    item, draw = np.dtype(buffer.dtype).itemsize, np.random.default_rng(0)

    def region(offset: int, nbytes: int) -> Region:
        if np.dtype(buffer.dtype).kind == "f":
            values = draw.random(nbytes // item, np.float32).astype(buffer.dtype).view(np.uint8)
        else:
            values = np.zeros(nbytes, np.uint8)
        return Region(argument.name, address + offset, values, np.ones(nbytes, np.uint8), written, item)

    nbytes = buffer.bytes((SIDE, SIDE), tiles)
    if nbytes <= _SMALL:
        return [region(0, nbytes)]
    streams = streams_of(schedule, argument.name)
    if buffer.per_pixel:
        used = SIDE * buffer.per_pixel // streams * item * (2 * rows + _MARGIN)
    else:
        assert buffer.strips_of
        used = 2 * tiles[buffer.strips_of].strips((SIDE, SIDE))[0] * buffer.per_strip // streams * item
    whole = nbytes // streams
    return [region((stream + 1) * whole - used, used) for stream in range(streams)]


def in_the_corner(text: str, first: tuple[int, int], grid: tuple[int, int, int]) -> str:
    """A kernel that begins at another strip of a larger grid."""
    for axis, start, number in zip("xy", first, grid[:2], strict=True):
        text = re.sub(rf"mov\.[bu]32\s+(%r\d+), %ctaid\.{axis};", rf"\g<0>\n\tadd.s32 \1, \1, {start};", text)
        text = re.sub(rf"mov\.[bu]32\s+(%r\d+), %nctaid\.{axis};", rf"mov.b32 \1, {number};", text)
    assert "%nctaid.x" not in text
    assert "%nctaid.y" not in text
    return text


def in_32_bits(text: str) -> str:
    """A kernel whose 64-bit products are cut to 32 bits, as if they had been computed so."""
    declared = re.search(r"\.reg \.b32\s+%r<(\d+)>;", text)
    assert declared
    spare = int(declared[1])
    text = text.replace(declared[0], f".reg .b32 %r<{spare + 1}>;")
    cut = rf"\g<0>\n\tcvt.u32.u64 %r{spare}, \1;\n\tcvt.s64.s32 \1, %r{spare};"
    return re.sub(r"m(?:ul|ad)\.lo\.s64\s+(%rd\d+), [^;]*;", cut, text)


def run_corner(kernels: KernelSet, state: State, architecture: int, name: str, *, narrow: bool = False) -> Result:
    if reason := why_not(architecture):
        pytest.skip(reason)
    schedule, tiles = kernels.schedule("float16"), kernels.tiles(architecture)
    kernel: Kernel = schedule.kernels[name]
    (arguments,) = {one.kernel: one.arguments for one in reversed(schedule.launches) if one.kernel == name}.values()
    weights, tile = kernels.fold(state).rounded(np.dtype(np.float16)), tiles[name]
    regions, values, address = [], [], 1 << 44
    for parameter, argument in zip(kernel.parameters, arguments, strict=True):
        if argument.kind == "size":
            values.append(SIDE)
            continue
        if argument.kind == "strips":
            across, down = tiles[argument.name].strips((SIDE, SIDE))
            values.append(across * down)
            continue
        values.append(address)
        if argument.kind == "weights":
            data = weights[argument.name].reshape(-1).view(np.uint8).copy()
            regions.append(Region(argument.name, address, data, np.ones_like(data), False, 2))
        else:
            regions += regions_of(schedule, argument, tiles, tile.rows, address, written=parameter.written)
        address += 1 << 38
    _, binary = decoded(architecture, name, kernels)
    grid = kernel.launch_grid(tile, (SIDE, SIDE))
    text = in_the_corner(binary.image.decode(), (grid[0] - 2, grid[1] - 2), grid)
    if narrow:
        text = in_32_bits(text)
    block = pack(kernel.parameters, values, binary.hidden_pointers)
    return launch(
        decode(text), (2, 2, grid[2]), 32 * tile.warps, binary.shared_bytes, block, regions, check=False, budget=1 << 32
    )


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STRIPED])
def test_the_last_strips_of_the_largest_image_stay_in_their_buffers(random_state: State, name: str) -> None:
    assert run_corner(REFUSION, random_state, 87, name).findings == ()


def test_offsets_of_32_bits_are_seen(random_state: State) -> None:
    kinds = {finding.kind for finding in run_corner(REFUSION, random_state, 87, "encoder_apply", narrow=True).findings}
    assert "global_bounds" in kinds


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [90, 120])
@pytest.mark.parametrize("name", STRIPED)
def test_so_they_do_on_architectures_with_other_instructions(random_state: State, architecture: int, name: str) -> None:
    assert run_corner(REFUSION, random_state, architecture, name).findings == ()


# With the smaller tiles of sm_90, strips of fast_convolutions lie closer together than the schedule says.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture"),
    [(name, one) for name in FAST.schedule("float16").kernels for one in (87, 90) if (name, one) != ("fast_convolutions", 90)],
)
def test_so_they_do_in_the_network_fast(name: str, architecture: int) -> None:
    assert run_corner(FAST, fast_state(FAST_LAYOUT), architecture, name).findings == ()
